"""Backpropagation with another rule at rectifiers, or with probabilities in place of gradients."""

from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.errors import SpecError, UnsupportedError
from convoscope.core.operators import RuleTable
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.rules.composites import DECONVNET, GUIDED
from convoscope.rules.rectify import EXCITATION, Contrast, rectified


class GuidedBackprop(Method):
    """The gradient that passes a ReLU only where both its input and the gradient that arrives are positive.

    Springenberg et al. 2015, figure 1. Every ReLU counts: of modules, of functions, in place, used many times. Activations that
    are not rectifiers keep their ordinary gradient, and the result lists them.
    """

    title, unit = "Guided backprop", "{target} per unit of input, rectified"
    default = True
    paper = Paper(
        "springenberg2015striving", "Springenberg, Jost Tobias and Dosovitskiy, Alexey and Brox, Thomas and Riedmiller, Martin",
        "Striving for Simplicity: The All Convolutional Net", "ICLR Workshop", 2015, "1412.6806",
    )  # fmt: skip
    about = About(
        "decision", "fine structure that excites the class", "1 forward + 1 backward", "networks with ReLU",
        "shows edges of the image; hardly depends on the class (Adebayo et al. 2018)",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(GUIDED):
            return probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1


class Deconvnet(Method):
    """The way back through a deconvolutional network: rectified at every ReLU, through the switches of max pooling.

    Zeiler and Fergus 2014, section 2.1. With `target=Neuron(layer, channel)` it is their projection of a feature's strongest
    activation.
    """

    title, unit = "Deconvnet", "{target} per unit of input, rectified"
    paper = Paper(
        "zeiler2014visualizing", "Zeiler, Matthew D. and Fergus, Rob", "Visualizing and Understanding Convolutional Networks",
        "ECCV", 2014, "1311.2901",
    )  # fmt: skip
    about = About(
        "decision", "reconstruct what excites a unit", "1 forward + 1 backward", "networks with ReLU",
        "needs max pooling to be specific to the image; hardly depends on the class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(DECONVNET):
            return probe.grad(x)

    def evaluations(self, x: Images) -> int:
        return 1


class RectGrad(Method):
    """The gradient that passes a ReLU only where activation times gradient is among the largest of its layer.

    Kim et al. 2019: each call of a ReLU, for each image, keeps what exceeds the q-th percentile. The authors' code multiplies
    by the input at the end; here `times_input` does. Activations that are not rectifiers keep their ordinary gradient, and
    the result lists them. Units: target per unit of input, or those of the target with `times_input`.
    """

    q: Annotated[float, "percentile of activation x gradient below which nothing passes, 0 to 100", AtLeast(0)] = 98.0
    times_input: Annotated[bool, "multiply the map by the input, as for contributions"] = False

    title, unit = "RectGrad", "{target} per unit of input, rectified"
    paper = Paper(
        "kim2019why", "Kim, Beomsu and Seo, Junghoon and Jeon, SeungHyun and Koo, Jamyoung and Choe, Jeongyeol and "
        "Jeon, Taegyun", "Why are Saliency Maps Noisy? Cause of and Solution to Noisy Saliency Maps", "ICCV Workshop", 2019,
        "1902.04893",
    )  # fmt: skip
    about = About(
        "decision", "the few paths that matter most, without noise", "1 forward + 1 backward", "networks with ReLU",
        "sparse: with a high percentile little of the image is left; depends on where ReLUs stand",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q > 100:
            raise SpecError(f"rect-grad: a percentile is 0 to 100; got q={self.q:g}")

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(rectified(self.q)):
            gradient = probe.grad(x)
        return x * gradient if self.times_input else gradient

    def evaluations(self, x: Images) -> int:
        return 1


ZHANG = Paper(
    "zhang2016top", "Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan",
    "Top-down Neural Attention by Excitation Backprop", "ECCV", 2016, "1608.00507",
)  # fmt: skip


class ExcitationBackprop(Method):
    """Where a walk from the target down ends, if units choose who excites them in proportion (Zhang et al. 2016, section 3.2).

    The marginal winning probability of each position of a layer, summed over channels: not negative and summing to 1 in
    networks of ReLU, pools and sums. What goes to units that nothing excites is lost, and reported. `layer="input"` goes down
    to the pixels. Batch norms behind convolutions belong to their weights; other normalizations and activations pass
    probabilities unchanged.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None

    title, unit = "Excitation backprop", "probability"
    signed = False
    paper = ZHANG
    about = About(
        "decision", "where the evidence for a unit comes from, at any layer", "1 forward + 1 backward to the layer",
        "networks with ReLU", "positive evidence only: classes that share evidence have similar maps",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        maps = _excitation(probe, x, self.layer, EXCITATION)
        probe.note("lost probability", 1 - maps.flatten(1).sum(1))
        return maps

    def evaluations(self, x: Images) -> int:
        return 1


class ContrastiveExcitationBackprop(Method):
    """Excitation backprop of the target minus that of its dual, whose topmost weights are negated.

    Zhang et al. 2016, section 3.3. Positive where positions speak for the target rather than against it. Sums to zero; the
    paper shows the positive part.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None

    title, unit = "Contrastive excitation backprop", "probability, minus that of the dual unit"
    paper = ZHANG
    about = About(
        "decision", "what tells the class from others, at any layer", "1 forward + 1 backward to the layer",
        "networks with ReLU and a linear operator on top", "depends on how the topmost weights are centered",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return _excitation(probe, x, self.layer, Contrast())

    def evaluations(self, x: Images) -> int:
        return 1


def _excitation(probe: Probe, x: Images, layer: str | None, table: RuleTable) -> Tensor:
    layer = probe.layer(layer)
    with probe.rules(table):
        found = probe.gradients(x, (layer,))
    (values, gradients), score = found[layer], found["score"]
    if values.dim() != 4:
        raise UnsupportedError(
            f"excitation backprop needs a tensor (images, channels, rows, columns); {layer!r} has shape {tuple(values.shape)}"
        )
    score = score.view(-1, 1, 1, 1)
    return torch.where(score == 0, 0, (values * gradients).sum(1, keepdim=True) / score)
