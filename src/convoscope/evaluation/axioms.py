"""What a map has to obey by definition: completeness, no relevance without effect, invariance to how the input is coded."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, chunks, key_of, twin_of
from convoscope.evaluation.randomization import similarity
from convoscope.evaluation.removal import FILL, OF, Fill, Of
from convoscope.network import Network


class Completeness(Metric):
    """How far the sum of the map is from what the target gains over the filled picture, as a share of that (Sundararajan
    et al. 2017, section 3). 0 exact; the share is of the gain or of the sum's magnitude, whichever is larger.

    Holds for methods that promise it, for the baseline they were given and for the target itself.
    """

    title, family, unit, range, scale_free = "Completeness", "axioms", "share of the target's change", (0.0, 2.0), False
    direction, use = -1, "does the map add up?"
    drawback = "a map may add up and be wrong everywhere; only for methods that promise it"
    paper: ClassVar[Paper] = Paper(
        "sundararajan2017axiomatic", "Sundararajan, Mukund and Taly, Ankur and Yan, Qiqi",
        "Axiomatic attribution for deep networks", "ICML", 2017, "1703.01365",
    )  # fmt: skip
    fill: Annotated[Fill, "the baseline: " + FILL] = "black"
    of: Annotated[Of, OF] = "target"

    def score(self, case: Case) -> Scores:
        target = case.judge(self.of)
        rows = torch.arange(len(case.x))
        blank = case.once(("blank", key_of(self.fill), target), lambda: case.scores(case.fill(self.fill), rows, target))
        gain = (case.clean(target) - blank).cpu()
        whole = case.maps.flatten(2).sum(-1).cpu()
        scale = torch.maximum(gain.abs(), whole.abs())
        return torch.where(scale > 0, (whole - gain).abs() / scale.clamp(min=1e-300), torch.nan)

    def passes(self, case: Case) -> int:
        return 2


class NonSensitivity(Metric):
    """The share of sampled regions where relevance and effect disagree: one is zero and the other is not (Nguyen and
    Martínez 2020, section 4.1). Regions are squares; zero is less than a thousandth of the largest of either.
    """

    title, family, unit, range = "Non-sensitivity", "axioms", "share of the regions", (0.0, 1.0)
    direction, use = -1, "is relevance where there is effect, and nowhere else?"
    drawback = "a region that works only together with another has no effect of its own"
    paper: ClassVar[Paper] = Paper(
        "nguyen2020quantitative", "Nguyen, An-phi and Martínez, María Rodríguez",
        "On quantitative aspects of model interpretability", "preprint", 2020, "2007.07584",
    )  # fmt: skip
    cells: Annotated[int, "regions along each side", AtLeast(1)] = 14
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "target"

    def score(self, case: Case) -> Scores:
        effect = self._effects(case)
        said = regions(case.maps.abs().cpu(), self.cells)
        few = 1e-3
        works = effect.abs() > few * effect.abs().amax(-1, keepdim=True)
        marked = said > few * said.amax(-1, keepdim=True)
        found = (works != marked).double().mean(-1)
        flat = case.maps.flatten(2).cpu()
        return torch.where(flat.amax(-1) > flat.amin(-1), found, torch.nan)

    def _effects(self, case: Case) -> Tensor:
        target, base = case.judge(self.of), case.fill(self.fill)
        labels = cells_of(*case.x.shape[2:], self.cells).to(case.x.device)
        count = int(labels.max()) + 1

        def ask() -> Tensor:
            out = []
            for i in range(len(case.x)):
                for part in chunks(count, case.batch_size):
                    gone = labels == torch.arange(part.start, part.stop, device=labels.device).view(-1, 1, 1)
                    rows = torch.where(gone[:, None], base[i], case.x[i])
                    out.append(case.clean(target)[i].cpu() - case.scores(rows, torch.full((len(part),), i), target).cpu())
            return torch.cat(out).view(len(case.x), count)

        return case.once(("effects", self.cells, key_of(self.fill), target), ask)

    def passes(self, case: Case) -> int:
        return self.cells**2 + 1


def cells_of(height: int, width: int, cells: int) -> Tensor:
    """The number of the cell that each pixel `(height, width)` lies in, at most `cells` along each side."""
    down, across = min(cells, height), min(cells, width)
    return (torch.arange(height) * down // height)[:, None] * across + torch.arange(width) * across // width


def regions(maps: Tensor, cells: int) -> Tensor:
    """What each cell of a grid holds of maps `(..., height, width)`."""
    labels = cells_of(*maps.shape[-2:], cells).flatten()
    found = torch.zeros(*maps.shape[:-2], int(labels.max()) + 1, dtype=maps.dtype)
    return found.index_add_(-1, labels, maps.flatten(-2))


class _Shifted(nn.Module):
    """The same function of pictures that are stored with something added."""

    def __init__(self, module: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x - self.shift)


def recoded(network: Network, shift: Tensor) -> Network:
    """The same function of pictures that are stored with `shift` `(1, channels, 1, 1)` added, in input space."""
    return twin_of(network, _Shifted(network.plain, shift))


class InputInvariance(Metric):
    """How alike maps are of the same network for pictures stored with a constant added, which it takes off again
    (Kindermans et al. 2019, section 3). 1: the same map, as it has to be.

    Methods with a baseline see another baseline, unless it is one of the picture's own, such as "mean" or "blur".
    """

    title, family, unit, range, needs = "Input invariance", "axioms", "rank correlation", (-1.0, 1.0), ("methods",)
    use, drawback = "does the map depend on how pixels are coded?", "punishes baselines that are a color"
    paper: ClassVar[Paper] = Paper(
        "kindermans2019unreliability", "Kindermans, Pieter-Jan and Hooker, Sara and Adebayo, Julius and others",
        "The (un)reliability of saliency methods", "Explainable AI", 2019, "1711.00867",
    )  # fmt: skip
    shift: Annotated[float, "what is added to every pixel, in units of 0..1 pixels"] = 0.5

    def score(self, case: Case) -> Scores:
        network = case.network
        one = torch.ones_like(case.x[:1, :, :1, :1])
        shift = (network.normalize(one) - network.normalize(0 * one)) * self.shift
        twin = recoded(network, shift)
        rows = torch.arange(len(case.x))
        return torch.stack([similarity(m, case.explain(n, case.x + shift, rows, network=twin), "spearman")
                            for n, m in enumerate(case.maps)])  # fmt: skip

    def passes(self, case: Case) -> int:
        return 1


class Symmetry(Metric):
    """How alike the map of a mirrored picture is to the mirrored map, for the network made indifferent to mirroring.

    The network's answer is averaged over the picture and its mirror image, so that both have the same target by construction:
    a method that treats equal pixels alike gives mirrored maps (the symmetry axiom, Sundararajan et al. 2017, section 4).
    """

    title, family, unit, range, needs = "Symmetry", "axioms", "rank correlation", (-1.0, 1.0), ("methods",)
    use, drawback = "are equal pixels treated alike?", "an order of pixels, as in segments, breaks it a little"
    paper: ClassVar[Paper] = Completeness.paper

    def score(self, case: Case) -> Scores:
        twin = twin_of(case.network, _Mirrored(case.network.plain, case.network.head))
        rows = torch.arange(len(case.x))
        found = []
        for number in range(len(case.names)):
            plain = case.explain(number, case.x, rows, network=twin)
            mirrored = case.explain(number, case.x.flip(-1), rows, network=twin)
            found.append(similarity(plain, mirrored.flip(-1), "spearman"))
        return torch.stack(found)

    def passes(self, case: Case) -> int:
        return 4


class _Mirrored(nn.Module):
    def __init__(self, module: nn.Module, head: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self.head = module, head

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.module(x)) + self.head(self.module(x.flip(-1)))) / 2
