"""How selective units are for classes: indexes between 0 (all alike) and 1 (one alone), each from its paper."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.statistic import CONCATENATE, Samples, Statistic
from convoscope.units.histograms import of_channels, seen


@dataclass(kw_only=True, eq=False)
class ClassActivity(Statistic):
    """Of each class, how many images it has and each unit's activations summed over them, averaged over positions.

    There are as many classes as were seen; images without one are left out. Sums are float64.
    """

    # Rows are classes. They are added, not concatenated: that only lets two with a different number of them fit.
    state = {"images": CONCATENATE, "sums": CONCATENATE}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        if samples is None:
            raise UsageError("class activity needs to know the classes of the rows: update(batch, samples)")
        values = of_channels(batch, self.sums.shape[1] if self.begun else None)
        means = (values if values.dtype == torch.float64 else values.float()).mean(2).double().cpu()
        classes = samples.classes.cpu()
        known = classes >= 0
        rows = int(classes.max()) + 1 if known.any() else 0
        images = torch.bincount(classes[known], minlength=rows)
        sums = torch.zeros(rows, means.shape[1], dtype=torch.float64).index_add_(0, classes[known], means[known])
        self._add(images, sums)

    def merge(self, other: "ClassActivity") -> "ClassActivity":
        if self.accepts(other):
            self._add(other.images.cpu(), other.sums.cpu())
        return self

    def _add(self, images: Tensor, sums: Tensor) -> None:
        if self.begun:
            rows = max(len(images), len(self.images))
            images = _longer(images, rows) + _longer(self.images, rows)
            sums = _longer(sums, rows) + _longer(self.sums, rows)
        self.images, self.sums = images, sums

    def value(self) -> Float[Tensor, "classes units"]:
        """Mean activation of each unit over the images of each class; NaN for classes without images."""
        seen(self)
        return self.sums / self.images[:, None]

    def selectivity(self) -> tuple[Float[Tensor, " units"], Int[Tensor, " units"]]:
        """The class selectivity of each unit, and the class it prefers; see `class_selectivity`."""
        return class_selectivity(self.value())


def _longer(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0,) * (2 * rows.dim() - 1) + (length - len(rows),))


def class_selectivity(means: Float[Tensor, "classes units"]) -> tuple[Float[Tensor, " units"], Int[Tensor, " units"]]:
    """(a - b) / (a + b) with a a unit's mean activation for the class it prefers, b that for all other classes.

    0 where it does not tell classes apart, 1 where it answers to one class alone; for activations that are never negative,
    as the index means it (others are taken as they are). NaN, with class -1, where there are fewer than two classes or no
    activity. Rows of NaN are classes without images. (Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of
    single directions for generalization", ICLR 2018, section A.3.)
    """
    there = ~means.isnan().any(1) if means.shape[1] else torch.zeros(len(means), dtype=torch.bool)
    number = torch.arange(len(means))[there]
    means = means[there]
    if len(means) < 2:
        return torch.full(means.shape[1:], torch.nan, dtype=means.dtype), torch.full(means.shape[1:], -1)
    best, which = means.max(0)
    rest = (means.sum(0) - best) / (len(means) - 1)
    index = (best - rest) / (best + rest)
    index = torch.where(best + rest == 0, torch.nan, index)
    return index, torch.where(index.isnan(), -1, number[which])


def class_shares(
    weights: Float[Tensor, "units patches"], classes: Int[Tensor, "units patches"]
) -> tuple[Float[Tensor, "units patches"], Int[Tensor, "units patches"]]:
    """What share of a unit's strongest patches the classes have, largest first, and which classes these are.

    A patch counts by its activation; weights below zero, NaN and classes below zero count nothing. Rows sum to 1, or are all
    zero; places beyond the last class have share 0 and class -1. Of two classes with the same share the lower comes first.
    """
    weights = torch.where((classes >= 0) & (weights > 0), weights.double(), 0.0)
    alike = (classes[:, :, None] == classes[:, None, :]).double()  # (C, k, k): no table over all classes
    share = (alike * weights[:, None]).sum(2)
    first = (alike.tril(-1).sum(2) == 0) & (weights.sum(1, keepdim=True) > 0)  # each class once, where it is first
    share = torch.where(first & (share > 0), share, 0.0)
    total = share.sum(1, keepdim=True)
    share = share / torch.where(total > 0, total, 1.0)
    by_class = classes.argsort(dim=1, stable=True)
    order = by_class.gather(1, share.gather(1, by_class).argsort(dim=1, descending=True, stable=True))
    share = share.gather(1, order)
    return share, torch.where(share > 0, classes.gather(1, order), -1)


def class_index(
    weights: Float[Tensor, "units patches"], classes: Int[Tensor, "units patches"], threshold: float = 1.0
) -> Float[Tensor, " units"]:
    """(N - M) / (N - 1): N patches drive a unit, and M classes are enough for a share `threshold` of their activation.

    1 where one class is enough, 0 where each patch is of another class and all are needed; NaN where fewer than two patches
    count. Patches are those of `class_shares`. (Rafegas, Vanrell, Alexandre and Arias, "Understanding trained CNNs by
    indexing neuron selectivity", Pattern Recognition Letters 2020.)
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold is {threshold}; expected a share of the activation, above 0 and at most 1")
    share, _ = class_shares(weights, classes)
    count = ((classes >= 0) & (weights > 0)).sum(1)
    needed = (share.cumsum(1) < threshold - 1e-9).sum(1) + 1  # sums of shares are 1 up to rounding
    found = (count - needed).double() / (count - 1)
    return torch.where(count > 1, found, torch.nan)


def class_entropy(weights: Float[Tensor, "units patches"], classes: Int[Tensor, "units patches"]) -> Float[Tensor, " units"]:
    """Entropy in bits of the shares of classes among the strongest patches: 0 for one class, log2 N for N; NaN for none."""
    share, _ = class_shares(weights, classes)
    found = -torch.special.xlogy(share, share).sum(1) / torch.log(torch.tensor(2.0, dtype=share.dtype))
    return torch.where(share.sum(1) > 0, found.clamp(min=0), torch.nan)


def classes_of(dataset: Any, images: Int[Tensor, "units patches"]) -> Int[Tensor, "units patches"]:
    """The classes of the images that patches are from, -1 where there is none."""
    known = {i: dataset.class_of(i) if i >= 0 else -1 for i in images.unique().tolist()}
    return torch.tensor([[known[i] for i in row] for row in images.tolist()], dtype=torch.int64).view(images.shape)
