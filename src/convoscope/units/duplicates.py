"""Units that say the same: correlations of their maps over all images and positions."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.statistic import SUM, Samples, Statistic
from convoscope.units.histograms import of_channels, seen


@dataclass(kw_only=True, eq=False)
class UnitCorrelation(Statistic):
    """Correlation of every two units of a layer, over all images and positions.

    Of maps with more than `positions` a regular grid of positions is taken. Products are summed in the type of the
    activations within a batch and in float64 over batches. The state is C x C numbers; an image costs as much as a 1 x 1
    convolution from the layer to itself at the positions taken.
    """

    positions: Annotated[int, "positions of a map that are taken at most"] = 256

    state = {"count": SUM, "sums": SUM, "products": SUM}

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise UsageError(f"positions are 1 or more; got {self.positions}")

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        values = of_channels(batch, len(self.sums) if self.begun else None)
        if values.shape[2] > self.positions:
            step = math.ceil(math.sqrt(values.shape[2] / self.positions))
            values = batch.detach()[:, :, step // 2 :: step, step // 2 :: step].flatten(2)
        values = values if values.dtype == torch.float64 else values.float()
        nothing = values.new_zeros(values.shape[1], values.shape[1])
        products = torch.addbmm(nothing, values, values.transpose(1, 2))
        made = torch.tensor(len(values) * values.shape[2]), values.sum((0, 2)).double().cpu(), products.double().cpu()
        before = (self.count, self.sums, self.products) if self.begun else (0, 0, 0)
        self.count, self.sums, self.products = (a + b for a, b in zip(made, before, strict=True))

    def value(self) -> Float[Tensor, "units units"]:
        """Pearson's correlations, -1 to 1; NaN with units that never change."""
        seen(self)
        mean = self.sums / self.count
        power = self.products / self.count
        covariance = power - mean[:, None] * mean
        variance = covariance.diagonal()
        constant = variance <= 1e-6 * power.diagonal()  # what rounding leaves of a constant
        deviation = torch.where(constant, torch.nan, variance.clamp(min=0).sqrt())
        return (covariance / deviation[:, None] / deviation).clamp(-1, 1)


def nearest(correlations: Float[Tensor, "units units"]) -> tuple[Float[Tensor, "units"], Tensor]:
    """The largest correlation of each unit with another, and which unit that is; NaN and -1 where there is none."""
    others = correlations.clone()
    others.fill_diagonal_(torch.nan)
    others = torch.where(others.isnan(), -torch.inf, others)
    if others.shape[1] == 0:
        return others.new_zeros(0), torch.zeros(0, dtype=torch.int64)
    best, which = others.max(1)
    none = best.isinf()
    return torch.where(none, torch.nan, best), torch.where(none, -1, which)


def duplicates(correlations: Float[Tensor, "units units"], threshold: float = 0.95) -> list[list[int]]:
    """Groups of units that are linked by correlations of at least `threshold`, each in order, the first unit's first."""
    if not -1 <= threshold <= 1:
        raise UsageError(f"threshold is a correlation, -1 to 1; got {threshold}")
    linked = correlations >= threshold
    group = list(range(len(linked)))

    def root(unit: int) -> int:
        while group[unit] != unit:
            unit = group[unit]
        return unit

    for a, b in linked.triu(1).nonzero().tolist():
        first, second = sorted((root(a), root(b)))
        group[second] = first
    found: dict[int, list[int]] = {}
    for unit in range(len(linked)):
        found.setdefault(root(unit), []).append(unit)
    return [units for units in found.values() if len(units) > 1]
