"""The score handed back layer by layer, by rules that keep its sum."""

from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.rules.bounded import Bounded
from convoscope.rules.composites import Composite, composite, epsilon_alpha_beta, epsilon_gamma_box, layered
from convoscope.rules.contributions import Gamma
from convoscope.rules.pixels import without_zeros
from convoscope.rules.rules import STABILIZER, Epsilon

BACH = Paper(
    "bach2015pixel", "Bach, Sebastian and Binder, Alexander and Montavon, Gregoire and Klauschen, Frederick and Mueller, "
    "Klaus-Robert and Samek, Wojciech",
    "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", "PLOS ONE", 2015,
)  # fmt: skip
OVERVIEW = Paper(
    "montavon2019layer", "Montavon, Gregoire and Binder, Alexander and Lapuschkin, Sebastian and Samek, Wojciech and Mueller, "
    "Klaus-Robert",
    "Layer-Wise Relevance Propagation: An Overview", "Explainable AI: Interpreting, Explaining and Visualizing Deep Learning",
    2019,
)  # fmt: skip
SUPPORT = "networks whose operators have rules"


def table(which: str | Composite, probe: Probe, epsilon: float | None = None) -> Composite | Bounded:
    """The composite for what is explained: rules for pixels are told what black and white are, and are for pixels only."""
    found = composite(which, epsilon)
    if probe.session.at != "input":
        return found.inside()
    return Bounded(found, *probe.bounds()) if found.of_pixels else found


def relevance(probe: Probe, x: Images, rules: Composite | Bounded) -> tuple[Maps, Tensor]:
    """The relevance of each input value, and what was lost: the target minus its sum. Notes the loss."""
    with probe.rules(rules):
        gradient, score = probe.grad_and_score(x)
    maps = _times(x, gradient, rules)
    lost = score - maps.flatten(1).sum(1)
    probe.note("lost relevance", lost)
    probe.note("lost relevance relative", lost.abs() / score.abs().clamp(min=torch.finfo(score.dtype).tiny))
    return maps, lost


def _times(x: Images, gradient: Tensor, rules: Composite | Bounded) -> Maps:
    return (without_zeros(x) if isinstance(rules, Bounded) else x) * gradient


class LRP(Method):
    """Layer-wise relevance propagation, in its gradient-times-input form.

    Each operator shares the relevance of its value among its inputs by the rule its composite gives; skip additions and
    concatenations share in proportion, and a convolution with the batch norm behind it counts as one. It starts with the
    target's value (for a target that is not linear in the activations it reads: those times its gradient). What biases and
    stabilizers absorb is reported as lost relevance. Units: those of the target. Bach et al. 2015; Montavon et al. 2019.
    """

    composite: Annotated[str | Composite, "rules by name, such as epsilon-gamma-box, or a Composite"] = "epsilon-plus"
    epsilon: Annotated[float | None, "stabilizer of epsilon rules, fraction of the root mean square", AtLeast(0)] = None

    title = "LRP"
    default = True
    paper = BACH
    about = About(
        "decision", "which pixels the score is made of", "1 forward + about 2 backward", SUPPORT,
        "the choice of rules shapes the map",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        composite(self.composite, self.epsilon)  # says at once what is wrong with it

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table(self.composite, probe, self.epsilon))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPZero(Method):
    """LRP with the basic rule everywhere, R_i = sum_j x_i w_ij / z_j R_j: on ReLU networks, input times gradient.

    Bach et al. 2015. Units: those of the target.
    """

    title = "LRP-0"
    paper = BACH
    about = About(
        "decision", "the rule that all others mend", "1 forward + 1 backward", SUPPORT,
        "as noisy as the gradient; contributions that cancel become large",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table("lrp-0", probe))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPEpsilon(Method):
    """LRP with the epsilon rule everywhere: what weak or contradictory values carry is absorbed (Bach et al. 2015, eq. 58).

    Units: those of the target. `epsilon` absorbs in each layer, so the relevance that is left is less in deep networks.
    """

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 0.25

    title = "LRP-epsilon"
    paper = BACH
    about = About(
        "decision", "few, salient contributions", "1 forward + 1 backward", SUPPORT,
        "noisy where epsilon is small; loses relevance where it is large",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table("epsilon", probe, self.epsilon))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPGamma(Method):
    """LRP with the gamma rule in convolutions and the epsilon rule in linear operators.

    Contributions of a value's own sign count 1 + gamma times; between the epsilon rule (0) and z-plus (large). Inputs and
    values may have any sign (Montavon et al. 2019; generalized by Andeol et al. 2021). Units: those of the target.
    """

    gamma: Annotated[float, "by how much contributions of the value's sign are favored", AtLeast(0)] = 0.25

    title = "LRP-gamma"
    paper = OVERVIEW
    about = About(
        "decision", "smooth maps that keep some evidence against", "1 forward + 2 to 3 backward", SUPPORT,
        "gamma is a matter of taste",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table(layered(Gamma(self.gamma), Epsilon()), probe))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPAlphaBeta(Method):
    """LRP with the alpha-beta rule in convolutions (Bach et al. 2015, eq. 60) and the epsilon rule in linear operators.

    beta is alpha - 1. Units: those of the target.
    """

    alpha: Annotated[float, "factor of what positive contributions carry; negative ones take alpha - 1 times", AtLeast(1)] = 2.0

    title = "LRP-alpha-beta"
    paper = BACH
    about = About(
        "decision", "evidence for and against, apart", "1 forward + 4 backward", SUPPORT,
        "relevance of both signs grows with depth",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table(epsilon_alpha_beta(alpha=self.alpha), probe))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPZPlus(Method, name="lrp-z-plus"):
    """LRP with positive contributions only, in every linear operator: alpha-beta with alpha 1, beta 0.

    Bach et al. 2015; the z+ rule of Montavon et al. 2017. Units: those of the target.
    """

    title = "LRP-z+"
    paper = BACH
    about = About(
        "decision", "smooth maps of what excites", "1 forward + 2 backward", SUPPORT,
        "shows no evidence against; hardly depends on the class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table("alpha1beta0", probe))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class LRPEpsilonGammaBox(Method):
    """LRP with the epsilon rule in linear operators, gamma in convolutions, z-B at the pixels (Montavon et al. 2019).

    The box is black and white, followed through what the network does to its input before the first layer. Units: those of
    the target.
    """

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9
    gamma: Annotated[float, "by how much contributions of the value's sign are favored", AtLeast(0)] = 0.25

    title = "LRP-epsilon-gamma-box"
    paper = OVERVIEW
    about = About(
        "decision", "clear maps of natural images", "1 forward + 2 to 3 backward", SUPPORT, "needs the range of the input",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return relevance(probe, x, table(epsilon_gamma_box(self.epsilon, self.gamma), probe))[0]

    def evaluations(self, x: Images) -> int:
        return 1


class CRP(Method):
    """Concept relevance propagation: the relevance that flows through chosen channels of a layer (Achtibat et al. 2023).

    With no channels named, through those with the most relevance in each image, which the result lists. What passes by the
    layer on other ways (skip connections) is left out, so the maps of all channels sum to the relevance that goes through the
    layer. Units: those of the target.
    """

    through: Annotated[str | None, "address of the layer; None: the last spatial tensor"] = None
    channels: Annotated[tuple, "numbers of the channels; none: the most relevant ones of each image"] = ()
    count: Annotated[int, "how many channels, where none are named", AtLeast(1)] = 1
    composite: Annotated[str | Composite, "rules by name, such as epsilon-gamma-box, or a Composite"] = "epsilon-plus"

    title = "CRP"
    paper = Paper(
        "achtibat2023attribution", "Achtibat, Reduan and Dreyer, Maximilian and Eisenbraun, Ilona and Bosse, Sebastian and "
        "Wiegand, Thomas and Samek, Wojciech and Lapuschkin, Sebastian",
        "From Attribution Maps to Human-Understandable Explanations through Concept Relevance Propagation",
        "Nature Machine Intelligence", 2023, "2206.03208",
    )  # fmt: skip
    about = About(
        "decision", "where one feature of a layer contributes to the score", "2 forward + about 4 backward", SUPPORT,
        "a channel need not be a concept",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        composite(self.composite)

    def attribute(self, probe: Probe, x: Images) -> Maps:
        address = probe.layer(self.through)
        rules, found = table(self.composite, probe), []
        with probe.rules(rules):
            kept = probe.grad(x, edits={address: lambda values: self._conditioned(values, found)})
            around = probe.grad(x, edits={address: _blocked})
        if not found:
            raise UnsupportedError(
                f"no relevance arrives at {address!r}: the target does not depend on it, or it is a convolution that counts as "
                "one with its batch norm; name that"
            )
        if not self.channels:
            probe.note("channels", torch.cat(found))
        return _times(x, kept - around, rules)

    def _conditioned(self, values: Tensor, found: list[Tensor]) -> Tensor:
        """The same tensor; of its gradient, only what arrives at the channels, which go into `found`, goes on."""
        if values.dim() < 2 or any(not isinstance(c, int) or not 0 <= c < values.shape[1] for c in self.channels):
            raise UsageError(f"no channels {self.channels} in a tensor of shape {tuple(values.shape)}; they are counted from 0")
        fixed = torch.tensor(self.channels, device=values.device).expand(len(values), -1) if self.channels else None
        before = values.detach().clone() if fixed is None else values.detach()  # the network may overwrite its own

        def mask(gradient: Tensor) -> Tensor:
            index = _best(before * gradient, self.count) if fixed is None else fixed
            found.append(index)
            chosen = torch.zeros(before.shape[:2], dtype=torch.bool, device=before.device).scatter(1, index, True)
            return torch.where(chosen.view(*chosen.shape, *[1] * (before.dim() - 2)), gradient, 0)

        if values.requires_grad:
            values.register_hook(mask)
        return values

    def evaluations(self, x: Images) -> int:
        return 2


def _blocked(values: Tensor) -> Tensor:
    if values.requires_grad:
        values.register_hook(torch.zeros_like)
    return values


def _best(maps: Tensor, count: int) -> Tensor:
    """The numbers of the channels with the largest sums, `(rows, count)`."""
    return maps.reshape(*maps.shape[:2], -1).sum(2).topk(min(count, maps.shape[1])).indices
