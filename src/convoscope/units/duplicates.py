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

TOGETHER = 1 << 11  # positions multiplied at once
WIDE = 256  # units of a block of the products: of two that mirror each other one is computed


@dataclass(kw_only=True, eq=False)
class UnitCorrelation(Statistic):
    """Correlation of every two units of a layer, over all images and positions.

    Of maps with more than `positions` a regular grid of positions is taken. Products are summed in the type of the
    activations over some thousand positions and in float64 beyond. The state is C x C numbers; an image costs half as much as
    a 1 x 1 convolution from the layer to itself at the positions taken.
    """

    positions: Annotated[int, "positions of a map that are taken at most"] = 256

    state = {"count": SUM, "sums": SUM, "products": SUM}

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise UsageError(f"positions are 1 or more; got {self.positions}")

    @property
    def begun(self) -> bool:
        """Whether it has seen anything; asked for every batch, so without multiplying what waits."""
        return hasattr(self, "_products")

    @property
    def products(self) -> Float[Tensor, "units units"]:
        """Sums of products of every two units."""
        self._multiply()
        return self._products

    @products.setter
    def products(self, values: Tensor) -> None:
        self._products, self._waiting = values, []

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        values = of_channels(batch, len(self.sums) if self.begun else None)
        if values.shape[2] > self.positions:
            step = math.ceil(math.sqrt(values.shape[2] / self.positions))
            values = batch.detach()[:, :, step // 2 :: step, step // 2 :: step].flatten(2)
        values = values if values.dtype == torch.float64 else values.float()
        if not self.begun:
            units = values.shape[1]
            self.count, self.sums = torch.tensor(0), torch.zeros(units, dtype=torch.float64)
            self.products = torch.zeros(units, units, dtype=torch.float64)
        self.count = self.count + len(values) * values.shape[2]
        self.sums = self.sums + values.sum((0, 2)).double().to(self.sums.device)
        self._waiting.append(values.transpose(0, 1).reshape(values.shape[1], -1) if len(values) > 1 else values[0].clone())
        if sum(rows.shape[1] for rows in self._waiting) >= TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of what waits: many positions at once, and of the mirrored half only one."""
        if not self._waiting:
            return
        rows, self._waiting, whole = torch.cat(self._waiting, 1), [], self._products
        for a in range(0, len(rows), WIDE):
            found = (rows[a : a + WIDE] @ rows[a:].T).to(whole.device)
            whole[a : a + WIDE, a:] += found
            whole[a + WIDE :, a : a + WIDE] += found[:, WIDE:].T

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


def nearest(correlations: Float[Tensor, "units units"]) -> tuple[Float[Tensor, " units"], Tensor]:
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
