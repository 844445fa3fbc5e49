"""Class activation maps from noisy copies, from second derivatives, against similar classes, and times guided backprop."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from convoscope.attribution.cam import (
    PIECEWISE_LINEAR,
    GradCAM,
    Values,
    gradient_weights,
    layer_values,
    linear_behind,
    ratio,
    weighted,
    with_places,
)
from convoscope.core.errors import UnsupportedError
from convoscope.core.probe import Place, Probe
from convoscope.core.record import Activations
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method, vars_of
from convoscope.network import Images
from convoscope.rules.composites import GUIDED
from convoscope.targets import Logit
from convoscope.targets.base import per_row


class SmoothGradCAMPlusPlus(Method):
    """Grad-CAM++ with first, second and third derivatives averaged over noisy copies of the image (Omeiza et al. 2019).

    The derivatives of an exponential of the target, without the factor they have in common: means of g, g^2 and g^3. A place
    counts `alpha = D2 / (2 D2 + sum(A) D3)`, a channel `sum(alpha relu(D1))`, with the activations A of the image itself.
    Noise is that of SmoothGrad with the same settings.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    samples: Annotated[int, "noisy copies of each image", AtLeast(1)] = 16
    sigma: Annotated[float, "deviation of the noise, as a fraction of the image's range", AtLeast(0)] = 0.15

    title, unit = "Smooth Grad-CAM++", "{target} per position"
    stochastic, signed = True, False
    paper = Paper(
        "omeiza2019smooth", "Omeiza, Daniel and Speakman, Skyler and Cintas, Celia and Weldemariam, Komminist",
        "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional Neural Network Models",
        "arXiv", 2019, "1908.01224",
    )  # fmt: skip
    about = About(
        "decision", "a steadier Grad-CAM++ in early layers", "1 + samples forwards + backwards to the layer",
        "any CNN, any layer", "explains the neighborhood, not the image; noise changes little at the last layer",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values = layer_values(probe, x, layer, self.title)
        deviation = self.sigma * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
        d1, d2, d3 = torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values)
        for block in probe.blocks(self.samples):
            copies, repeated = probe.repeat(block), x.repeat_interleave(len(block), 0)
            noise = deviation.repeat_interleave(len(block)).view(-1, *[1] * (x.dim() - 1)) * copies.normal(repeated)
            g = copies.grad(repeated + noise, layer).unflatten(0, (len(x), len(block)))
            d1, d2, d3 = d1 + g.sum(1), d2 + g.square().sum(1), d3 + g.pow(3).sum(1)
        alpha = ratio(d2, 2 * d2 + values.sum((2, 3), keepdim=True) * d3)
        weights = (alpha * d1.relu()).sum((2, 3), keepdim=True) / self.samples
        return weighted(values, weights).relu()

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 1 + self.samples


class ShapleyCAM(Method):
    """Grad-CAM with half of the curvature taken off: weights are means of `g - H A / 2` (Cai 2025); the positive part.

    To second order around the activations A, `A (g - H A / 2)` are the Shapley values of a game that shows the rest of the
    network some of them and zeros for others. Where all that follows is linear but for kinks, as in networks of ReLUs for a
    logit, the Hessian H is zero and the map is Grad-CAM's. Else its product with A is taken from gradients at activations a
    little larger and a little smaller, which counts the kinks between them as curvature, too.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None

    title, unit = "ShapleyCAM", "{target} per position"
    signed = False
    paper = Paper(
        "cai2025cams", "Cai, Huaiguang", "CAMs as Shapley Value-based Explainers", "The Visual Computer", 2025, "2501.06261",
    )  # fmt: skip
    about = About(
        "decision", "Grad-CAM of targets that bend, such as probabilities", "1 to 3 forwards + backwards to the layer",
        "any CNN, any layer", "Grad-CAM again for logits of ReLU networks; noisy for other targets in early layers",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values, gradients = probe.activations_and_gradients(x, layer)
        values = with_places(values, layer, self.title)
        if not linear_behind(probe, layer, PIECEWISE_LINEAR):
            gradients = gradients - self._curvature(probe, x, layer) / 2
        return weighted(values, gradient_weights(gradients)).relu()

    def _curvature(self, probe: Probe, x: Images, layer: str) -> Values:
        """The Hessian times the activations, to second order in a step at which rounding and curvature err as much."""
        step = torch.finfo(x.dtype).eps ** (1 / 3)
        more, less = (probe.grad(x, layer, {layer: lambda v, s=s: v * (1 + s)}) for s in (step, -step))
        return (more - less) / (2 * step)

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 3


@dataclass(frozen=True)
class Difference:
    """The logit of a class minus `alpha` times the mean of those that are nearest to it, found anew for each row."""

    target: Logit
    similar: int
    alpha: float

    open = False

    def addresses(self) -> tuple[str, ...]:
        return self.target.addresses()

    def resolve(self, activations: Activations) -> "Difference":
        return self

    def __call__(self, activations: Activations) -> Tensor:
        own, every = self.target(activations), activations["output"]
        if every.dim() != 2 or every.shape[1] < 2:
            raise UnsupportedError(f"Finer-CAM compares classes; the network's output has shape {tuple(every.shape)}")
        away = (every - own[:, None]).detach().abs()
        away = away.scatter(1, self._own(activations, away), torch.inf)
        nearest = away.topk(min(self.similar, every.shape[1] - 1), largest=False).indices
        return own - self.alpha * every.gather(1, nearest).mean(1)

    def _own(self, activations: Activations, like: Tensor) -> Tensor:
        index = self.target.index
        if index is None:
            return activations["output"].argmax(1, keepdim=True)
        return per_row(index, activations.rows, like.device)[:, None]  # type: ignore[arg-type]


class FinerCAM(Method):
    """A class activation map of what tells a class from those that score most alike (Zhang et al. 2025).

    The map of `logit - alpha * mean of the logits nearest to it`, from one pass: what the class shares with its neighbors
    cancels out. `target` must be a Logit; against classes of your own choice, explain Contrast(class, others) by any method.
    """

    layer: Annotated[str | None, "address, instead of that of the method"] = None
    of: Annotated[Method, "the method whose map it is"] = GradCAM()
    similar: Annotated[int, "how many classes to compare with", AtLeast(1)] = 3
    alpha: Annotated[float, "how much of their logits is taken off", AtLeast(0)] = 0.6

    title, unit = "Finer-CAM", "difference of logits per position"
    signed = False
    paper = Paper(
        "zhang2025finer", "Zhang, Ziheng and Gu, Jianyang and Chowdhury, Arpita and Mai, Zheda and Carlyn, David and "
        "Berger-Wolf, Tanya and Su, Yu and Chao, Wei-Lun",
        "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", "CVPR", 2025, "2501.11309",
    )  # fmt: skip
    about = About(
        "decision", "what sets a class apart from similar ones", "as the method", "classifiers; as the method",
        "evidence shared with similar classes is not shown, however strong",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "signed", self.of.signed)

    def attribute(self, probe: Probe, x: Images) -> Maps:
        target = probe.session.target
        if not isinstance(target, Logit):
            raise UnsupportedError(f"Finer-CAM compares a class with others; its target is a Logit, not {target}")
        of = self.of if self.layer is None else type(self.of).make({**vars_of(self.of), "layer": self.layer})
        with probe.aiming(Difference(target, self.similar, self.alpha)):
            return of.attribute(probe, x)  # type: ignore[attr-defined]

    def evaluations(self, x: Images) -> int:
        return self.of.evaluations(x)


class GuidedGradCAM(Method):
    """Guided backprop, shown where Grad-CAM is: their product at the size of the input (Selvaraju et al. 2017, section 3.2).

    Grad-CAM's map is interpolated between the centers of what its units see. One pass there and back gives both where no
    ReLU comes after the layer.
    """

    layer: Annotated[str | None, "address for Grad-CAM; none is the last spatial tensor"] = None

    title, unit = "Guided Grad-CAM", "{target} squared per unit of input, rectified"
    paper = GradCAM.paper
    about = About(
        "decision", "fine structure within the evidence for a class", "1 or 2 forwards + backwards", "networks with ReLU",
        "its fine structure is that of the image (Adebayo et al. 2018); only its place depends on the class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        plain = () if self._alone(probe) else probe.activations_and_gradients(x, layer)
        with probe.rules(GUIDED):
            guided = probe.gradients(x, ("input",) if plain else (layer, "input"))
        values, gradients = plain or guided[layer]
        cam = GradCAM().map(with_places(values, layer, self.title), gradients)
        return probe.place(cam, layer) * guided["input"][1]

    def _alone(self, probe: Probe) -> bool:
        """Whether the pass of guided backprop has the ordinary gradient at the layer."""
        return {"relu", "relu6"}.isdisjoint(probe.tail(probe.layer(self.layer)))

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return () if self._alone(probe) else (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 2
