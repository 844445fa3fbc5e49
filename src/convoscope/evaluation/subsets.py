"""Faithfulness by random subsets of the pixels: drawn once, shown to the network once, judged for all maps by one product."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, chunks, pearson, seeded
from convoscope.evaluation.removal import FILL, OF, Fill, Of
from convoscope.targets import Target

SUBSETS = "how many random subsets"


def subsets(case: Case, size: int, count: int, shape: str = "pixels") -> Bool[Tensor, "subsets pixels"]:
    """Random subsets of `size` pixels each, alike for all images: single pixels, or one square of about that many."""
    height, width = case.x.shape[2:]
    if not 1 <= size <= height * width:
        raise UsageError(f"a subset of {size} pixels; expected 1 to {height * width}")

    def draw() -> Tensor:
        found = torch.zeros(count, height * width, dtype=torch.bool)
        for k in range(count):
            generator = seeded(case.seed, "subset", shape, size, k)
            if shape == "pixels":
                found[k, torch.randperm(height * width, generator=generator)[:size]] = True
                continue
            side = max(1, round(size**0.5))
            rows, columns = min(side, height), min(side, width)
            top = int(torch.randint(height - rows + 1, (), generator=generator))
            left = int(torch.randint(width - columns + 1, (), generator=generator))
            found[k].view(height, width)[top : top + rows, left : left + columns] = True
        return found

    return case.once(("subsets", size, count, shape), draw)


def falls(case: Case, masks: Tensor, key: Any, fill: Fill, target: Target) -> Float[Tensor, "images subsets"]:
    """How much the target falls as each subset is filled, in float64."""

    def ask() -> Tensor:
        base, rows = case.fill(fill), []
        shown = masks.view(len(masks), 1, *case.x.shape[2:]).to(case.x.device)
        for i in range(len(case.x)):
            parts = [
                case.scores(torch.where(shown[c.start : c.stop], base[i], case.x[i]), torch.full((len(c),), i), target).cpu()
                for c in chunks(len(masks), case.batch_size)
            ]
            rows.append(case.clean(target)[i].cpu() - torch.cat(parts))
        return torch.stack(rows)

    return case.once(("falls", key, fill if not isinstance(fill, Tensor) else id(fill), target), ask)


def sums(case: Case, masks: Tensor) -> Float[Tensor, "methods images subsets"]:
    """What each map says of each subset: the sum of its pixels."""
    return case.maps.flatten(2) @ masks.double().T.to(case.maps.device)


class FaithfulnessCorrelation(Metric):
    """The correlation of what a map says of random subsets of pixels with what the target loses by them (Bhatt et al. 2020)."""

    title, family, range, unit = "Faithfulness correlation", "faithfulness", (-1.0, 1.0), "correlation"
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
        masks = subsets(case, size, self.count)
        lost = falls(case, masks, (size, self.count, "pixels"), self.fill, case.judge(self.of))
        said = sums(case, masks)
        return pearson(said, lost.expand_as(said))

    def passes(self, case: Case) -> int:
        return self.count + 1


class SensitivityN(Metric):
    """Faithfulness correlation for subsets of several sizes n, their mean (Ancona et al. 2018, section 4)."""

    title, family, range, unit = "Sensitivity-n", "faithfulness", (-1.0, 1.0), "correlation"
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
    the target squared, and the map has to be in units of the target. The subsets are their square removal (section 3).
    """

    title, family, range = "Infidelity", "faithfulness", (0.0, float("inf"))
    unit = "share of the mean squared loss"
    direction = -1
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
        masks = subsets(case, size, self.count, self.shape)
        lost = falls(case, masks, (size, self.count, self.shape), self.fill, case.judge(self.of))
        said = sums(case, masks)
        if self.scale == "none":
            return (said - lost).square().mean(-1)
        tiny = torch.finfo(said.dtype).tiny
        best = (said * lost).sum(-1, keepdim=True).clamp(min=0) / said.square().sum(-1, keepdim=True).clamp(min=tiny)
        whole = lost.square().mean(-1)
        return torch.where(whole > 0, (best * said - lost).square().mean(-1) / whole.clamp(min=tiny), torch.nan)

    def passes(self, case: Case) -> int:
        return self.count + 1
