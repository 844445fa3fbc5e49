"""Faithfulness by random subsets of the pixels: drawn once, shown to the network once, judged for all maps by one product."""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, chunks, key_of, pearson, rounding, seeded
from convoscope.evaluation.removal import FILL, OF, Fill, Of
from convoscope.evaluation.sweeps import filled
from convoscope.targets import Target

SUBSETS = "how many random subsets"


def subsets(
    case: Case, size: int, count: int, shape: str = "pixels", some: range | None = None
) -> Bool[Tensor, "subsets pixels"]:
    """Random subsets of `size` pixels each, alike for all images: single pixels, or one square of about that many.

    Number k is the same however many there are; `some` are those to draw.
    """
    height, width = case.x.shape[2:]
    if not 1 <= size <= height * width:
        raise UsageError(f"a subset of {size} pixels; expected 1 to {height * width}")
    some = range(count) if some is None else some
    found = torch.zeros(len(some), height * width, dtype=torch.bool)
    for row, k in zip(found, some, strict=True):
        generator = seeded(case.seed, "subset", shape, size, k)
        if shape == "pixels":
            row[torch.randperm(height * width, generator=generator)[:size]] = True
            continue
        side = max(1, round(size**0.5))
        rows, columns = min(side, height), min(side, width)
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        row.view(height, width)[top : top + rows, left : left + columns] = True
    return found


def asked(
    case: Case, size: int, count: int, shape: str, fill: Fill, target: Target
) -> tuple[Float[Tensor, "methods images subsets"], Float[Tensor, "images subsets"]]:
    """What each map says of each subset, the sum of its pixels, and what the target loses as it is filled. In float64.

    The network sees each subset once, whatever the number of methods. Masks are drawn some at a time, as `case.room` allows.
    """
    key = (size, count, shape)
    said, lost = [], []
    for some in chunks(count, max(1, case.room // (18 * case.x[0, 0].numel()))):
        masks = _masks(case, size, count, shape, some)
        said.append(case.once(("sums", *key, some), lambda masks=masks: sums(case, masks)))
        of = ("falls", *key, some, key_of(fill), target)
        lost.append(case.once(of, lambda masks=masks: falls(case, masks, fill, target)))
    return torch.cat(said, -1), torch.cat(lost, -1)


def _masks(case: Case, size: int, count: int, shape: str, some: range) -> Tensor:
    """The masks of all images of an evaluation, those held for which half of the room suffices."""
    key = ("subsets", size, shape, some, tuple(case.x.shape[2:]))
    if key not in case.kept:
        masks = subsets(case, size, count, shape, some)
        held = case.kept.get("bytes of subsets", 0) + masks.numel()
        if held > case.room // 2:
            return masks
        case.kept[key], case.kept["bytes of subsets"] = masks, held
    return case.kept[key]


def falls(case: Case, masks: Tensor, fill: Fill, target: Target) -> Float[Tensor, "images subsets"]:
    """How much the target falls as each subset is filled, in float64; 0 where it is a rounding error of the network's."""
    shown = masks.view(len(masks), *case.x.shape[2:]).to(case.x.device)
    jobs = [(i, len(masks), lambda some: shown[some.start : some.stop]) for i in range(len(case.x))]
    clean = case.clean(target).cpu()[:, None]
    lost = clean - torch.stack(filled(case, case.fill(fill), jobs, target))
    return torch.where(lost.abs() > rounding(case.x.dtype) * clean.abs(), lost, 0.0)


def sums(case: Case, masks: Tensor) -> Float[Tensor, "methods images subsets"]:
    """What each map says of each subset: the sum of its pixels."""
    device = case.x.device if case.x.device.type == "cuda" else case.maps.device
    weights = masks.to(device).double().T
    return torch.stack([(m.to(device).flatten(1) @ weights).to(case.maps.device) for m in case.maps])


class FaithfulnessCorrelation(Metric):
    """The correlation of what a map says of random subsets of pixels with what the target loses by them (Bhatt et al. 2020)."""

    title, family, range, unit = "Faithfulness correlation", "faithfulness", (-1.0, 1.0), "correlation"
    shared = True
    use, drawback = "do the map's sums tell the network's losses?", "noisy: thousands of subsets for two digits"
    paper: ClassVar[Paper] = Paper(
        "bhatt2020evaluating", "Bhatt, Umang and Weller, Adrian and Moura, José",
        "Evaluating and aggregating feature-based model explanations", "IJCAI", 2020, "2005.00631",
    )  # fmt: skip
    count: Annotated[int, SUBSETS, AtLeast(3)] = 100
    share: Annotated[float, "the part of the pixels that a subset has, 0 to 1"] = 0.05
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "target"

    def score(self, case: Case) -> Scores:
        size = max(1, round(self.share * case.maps[0, 0].numel()))
        said, lost = asked(case, size, self.count, "pixels", self.fill, case.judge(self.of))
        return pearson(said, lost.expand_as(said))

    def passes(self, case: Case) -> int:
        return self.count + 1


class SensitivityN(Metric):
    """Faithfulness correlation for subsets of several sizes n, their mean (Ancona et al. 2018, section 4)."""

    title, family, range, unit = "Sensitivity-n", "faithfulness", (-1.0, 1.0), "correlation"
    shared = True
    use, drawback = "as faithfulness correlation, from few pixels to most", "costs one run for each size"
    paper: ClassVar[Paper] = Paper(
        "ancona2018towards", "Ancona, Marco and Ceolini, Enea and Öztireli, Cengiz and Gross, Markus",
        "Towards better understanding of gradient-based attribution methods for deep neural networks", "ICLR", 2018,
        "1711.06104",
    )  # fmt: skip
    count: Annotated[int, SUBSETS + " of each size", AtLeast(3)] = 32
    shares: Annotated[tuple, "the sizes n, as parts of the pixels"] = (0.01, 0.05, 0.2, 0.5, 0.8)
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "target"

    def score(self, case: Case) -> Scores:
        each = [FaithfulnessCorrelation(self.count, float(s), self.fill, self.of).score(case) for s in self.shares]
        return torch.stack(each).mean(0)

    def passes(self, case: Case) -> int:
        return self.count * len(self.shares) + 1


class Infidelity(Metric):
    """How far what a map says of random subsets is from what the target loses by them, squared, mean (Yeh et al. 2019, eq. 1).

    With `scale="optimal"` the map is first multiplied by the number, zero or more, that serves it best (their section 2.2);
    the error is in units of the mean squared loss: 0 perfect, 1 no better than a map of zeros. With "none" it is in units of
    the target squared, and the map has to be in units of the target. The subsets are their square removal (section 3). A map is
    read as what each pixel contributes: its sum over a subset stands for their product of perturbation and explanation.
    """

    title, family, range = "Infidelity", "faithfulness", (0.0, float("inf"))
    unit = "share of the mean squared loss"
    direction, shared = -1, True
    use, drawback = "do the map's sums equal the network's losses?", "without scaling it punishes maps in other units"
    paper: ClassVar[Paper] = Paper(
        "yeh2019infidelity", "Yeh, Chih-Kuan and Hsieh, Cheng-Yu and Suggala, Arun and Inouye, David and Ravikumar, Pradeep",
        "On the (in)fidelity and sensitivity of explanations", "NeurIPS", 2019, "1901.09392",
    )  # fmt: skip
    count: Annotated[int, SUBSETS, AtLeast(1)] = 100
    share: Annotated[float, "the part of the pixels that a square has, 0 to 1"] = 0.05
    shape: Annotated[Literal["square", "pixels"], "one square, or single pixels"] = "square"
    scale: Annotated[Literal["optimal", "none"], "multiply each map by the best number first, or take it as it is"] = "optimal"
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "target"

    def score(self, case: Case) -> Scores:
        size = max(1, round(self.share * case.maps[0, 0].numel()))
        said, lost = asked(case, size, self.count, self.shape, self.fill, case.judge(self.of))
        if self.scale == "none":
            return (said - lost).square().mean(-1)
        tiny = torch.finfo(said.dtype).tiny
        best = (said * lost).sum(-1, keepdim=True).clamp(min=0) / said.square().sum(-1, keepdim=True).clamp(min=tiny)
        whole = lost.square().mean(-1)
        return torch.where(whole > 0, (best * said - lost).square().mean(-1) / whole.clamp(min=tiny), torch.nan)

    def passes(self, case: Case) -> int:
        return self.count + 1
