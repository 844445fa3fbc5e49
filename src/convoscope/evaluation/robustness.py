"""How much maps change where the picture hardly does. A map that never changes is stable, and may explain nothing."""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, seeded

CHANGES = "how many slightly changed pictures"
RADIUS = "the largest change of a pixel, in units of 0..1 pixels"
STABLE = "a map that never changes is perfectly stable and explains nothing; constant maps have no score"


class _Stable(Metric, abstract=True):
    """Base of what explains slightly changed pictures again: uniform noise of every pixel, within the range of pixels.

    Noise that changes the top class is kept: the target is the one asked for. Methods that draw at random draw the same for
    the picture and its changed ones. A map that is constant has no score.
    """

    family, needs, direction, drawback = "robustness", ("methods",), -1, STABLE
    count: Annotated[int, CHANGES, AtLeast(1)] = 10
    radius: Annotated[float, RADIUS] = 0.02

    def passes(self, case: Case) -> int:
        return self.count

    def score(self, case: Case) -> Scores:
        found = []
        for number in range(len(case.names)):
            maps, pictures = self._again(case, number)
            values = self._compared(case, case.maps[number].cpu(), maps, pictures)
            flat = case.maps[number].flatten(1)
            found.append(torch.where((flat.amax(1) > flat.amin(1)).cpu(), values, torch.nan))
        return torch.stack(found)

    def _again(self, case: Case, number: int) -> tuple[Float[Tensor, "changes images height width"], Tensor]:
        """The maps of the changed pictures, and those in input space; the same pictures for every method."""
        pictures = changed(case, self.count, self.radius)
        images = torch.arange(len(case.x)).repeat(self.count)
        maps = case.once(
            ("again", self.count, self.radius, case.names[number]),
            lambda: case.explain(number, pictures.flatten(0, 1), images).cpu(),
        )
        return maps.view(self.count, *case.x[:, 0].shape), pictures

    def _compared(self, case: Case, clean: Tensor, maps: Tensor, pictures: Tensor) -> Float[Tensor, " images"]:
        raise NotImplementedError


def changed(case: Case, count: int, radius: float) -> Float[Tensor, "changes images channels height width"]:
    """Each picture with uniform noise of at most `radius` at every pixel, clipped to 0..1, in input space."""
    network = case.network
    low, high = (network.normalize(torch.full_like(case.x[:1, :, :1, :1], value)) for value in (0.0, 1.0))
    step = (high - low) * radius
    out = []
    for k in range(count):
        drawn = [torch.rand(case.x.shape[1:], generator=seeded(case.seed, "change", k, place)) for place in case.places]
        noise = (2 * torch.stack(drawn).to(case.x) - 1) * step
        out.append(torch.minimum(torch.maximum(case.x + noise, torch.minimum(low, case.x)), torch.maximum(high, case.x)))
    return torch.stack(out)


def _norm(values: Tensor) -> Tensor:
    return values.flatten(2).norm(dim=-1)


class MaxSensitivity(_Stable):
    """The largest change of the map, relative to the map, as noise is added to the picture (Yeh et al. 2019, eq. 5)."""

    title, unit, use = "Max sensitivity", "share of the map's norm", "can noise make another map?"
    range = (0.0, float("inf"))
    paper: ClassVar[Paper] = Paper(
        "yeh2019infidelity", "Yeh, Chih-Kuan and Hsieh, Cheng-Yu and Suggala, Arun and Inouye, David and Ravikumar, Pradeep",
        "On the (in)fidelity and sensitivity of explanations", "NeurIPS", 2019, "1901.09392",
    )  # fmt: skip

    def _compared(self, case: Case, clean: Tensor, maps: Tensor, pictures: Tensor) -> Tensor:
        return (_norm(maps - clean) / clean.flatten(1).norm(dim=1).clamp(min=1e-300)).amax(0)


class AverageSensitivity(_Stable):
    """The mean change of the map, relative to the map, as noise is added to the picture (Yeh et al. 2019)."""

    title, unit, use = "Average sensitivity", "share of the map's norm", "how steady is the map under noise?"
    range = (0.0, float("inf"))
    paper: ClassVar[Paper] = MaxSensitivity.paper

    def _compared(self, case: Case, clean: Tensor, maps: Tensor, pictures: Tensor) -> Tensor:
        return (_norm(maps - clean) / clean.flatten(1).norm(dim=1).clamp(min=1e-300)).mean(0)


class LocalLipschitz(_Stable):
    """The largest ratio of a map's change to the picture's, both L2 (Alvarez-Melis and Jaakkola 2018, eq. 2).

    In units of the map per unit of input space: maps in other units have other numbers, and are not to be compared.
    """

    title, unit, use = "Local Lipschitz estimate", "map per unit of input", "how fast can the map change?"
    range, scale_free = (0.0, float("inf")), False
    paper: ClassVar[Paper] = Paper(
        "alvarezmelis2018robustness", "Alvarez-Melis, David and Jaakkola, Tommi",
        "On the robustness of interpretability methods", "ICML workshop", 2018, "1806.08049",
    )  # fmt: skip

    def _compared(self, case: Case, clean: Tensor, maps: Tensor, pictures: Tensor) -> Tensor:
        moved = (pictures - case.x).double().flatten(2).norm(dim=-1).cpu()
        return (_norm(maps - clean) / moved.clamp(min=1e-300)).amax(0)


class _Relative(_Stable, abstract=True):
    """Base of relative stability: the map's relative change over another relative change, the largest over noise.

    Both are L2 norms of element-wise relative changes; elements nearer to zero than a thousandth of the largest count as that,
    so that a single zero decides nothing. NaN where nothing but zeros changes: no change of it is small.
    """

    range = (0.0, float("inf"))
    paper: ClassVar[Paper] = Paper(
        "agarwal2022rethinking", "Agarwal, Chirag and Johnson, Nari and Pawelczyk, Martin and others",
        "Rethinking stability for attribution-based explanations", "preprint", 2022, "2203.06877",
    )  # fmt: skip

    def _compared(self, case: Case, clean: Tensor, maps: Tensor, pictures: Tensor) -> Tensor:
        moved = _relative(clean, maps)
        by = self._by(case, pictures)
        return (moved / by.clamp(min=1e-12)).amax(0)

    def _by(self, case: Case, pictures: Tensor) -> Float[Tensor, "changes images"]:
        raise NotImplementedError


def _relative(clean: Tensor, others: Tensor) -> Tensor:
    clean, others = clean.flatten(1).double().cpu(), others.flatten(2).double().cpu()
    floor = 1e-3 * clean.abs().amax(1, keepdim=True)
    return ((others - clean) / torch.where(floor > 0, torch.maximum(clean.abs(), floor), torch.nan)).norm(dim=-1)


class RelativeInputStability(_Relative):
    """The largest ratio of the map's relative change to the picture's (Agarwal et al. 2022, eq. 2)."""

    title, unit, use = "Relative input stability", "ratio of relative changes", "does the map change faster than the picture?"

    def _by(self, case: Case, pictures: Tensor) -> Tensor:
        return _relative(case.x, pictures)


class RelativeOutputStability(_Relative):
    """The largest ratio of the map's relative change to the L2 norm of the output's (Agarwal et al. 2022, eq. 5).

    The output's change is not relative, as in the paper, so that it depends on the units of the output.
    """

    title, unit, use = "Relative output stability", "per unit of output", "does the map change more than the answer?"

    def _by(self, case: Case, pictures: Tensor) -> Tensor:
        clean, others = _answers(case, "output", pictures)
        return _norm((others - clean).double().cpu())


class RelativeRepresentationStability(_Relative):
    """The largest ratio of the map's relative change to that of a layer (Agarwal et al. 2022, eq. 3)."""

    title, unit = "Relative representation stability", "ratio of relative changes"
    use = "does the map change more than what the network sees?"
    layer: Annotated[str | None, "address; None for the last spatial tensor"] = None

    def _by(self, case: Case, pictures: Tensor) -> Tensor:
        layer = self.layer or case.network.trace(case.x).last_spatial() or "output"
        return _relative(*_answers(case, layer, pictures))


def _answers(case: Case, layer: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What is at a layer for the pictures, and for the changed ones."""

    def ask() -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(case.x))
        clean = case.probe(rows).activations(case.x, layer)
        others = case.probe(rows.repeat(len(pictures))).activations(pictures.flatten(0, 1), layer)
        return clean, others.view(len(pictures), *clean.shape)

    return case.once(("answers", layer, tuple(pictures.shape)), ask)
