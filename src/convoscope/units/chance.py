"""What chance makes of the same units and the same labels: intersections over unions of units that mean nothing."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.units.tally import Labels

Null = Literal["shifted", "swapped", "permuted"]
NULLS = ("shifted", "swapped", "permuted")
PICTURES, POINTS = 4096, 1 << 18  # at most: pictures, and points of each unit in all of them


@dataclass
class Points:
    """Evenly spaced points of some pictures: the labels there, and for each layer where its units are active.

    A test of chance needs no every pixel: units and their shifted selves are compared on the same points.
    """

    size: tuple[int, int]
    step: int
    labels: list[Tensor] = field(default_factory=list)  # (layers, rows, columns) for each picture
    active: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)  # units, pictures, points

    @classmethod
    def of(cls, size: tuple[int, int], pictures: int) -> "Points":
        """Points of so many pictures of a size, as many as are affordable."""
        step = 1
        while -(-size[0] // step) * -(-size[1] // step) * pictures > POINTS and step < min(size):
            step += 1
        return cls(size, step)

    def lines(self, axis: int) -> Int[Tensor, " points"]:
        """The rows (0) or columns (1) of pixels that points lie on."""
        return torch.arange(min(self.step // 2, self.size[axis] - 1), self.size[axis], self.step)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of points."""
        return len(self.lines(0)), len(self.lines(1))

    def take_labels(self, labels: Int[Tensor, "layers height width"]) -> int:
        """Add a picture; its number."""
        self.labels.append(labels[:, self.lines(0)][:, :, self.lines(1)].clone())
        return len(self.labels) - 1

    def take_active(self, address: str, units: Tensor, pictures: Tensor, pixels: Tensor) -> None:
        """Add the active pixels of a layer; pictures by number."""
        table = torch.full(self.size, -1)
        table[self.lines(0)[:, None], self.lines(1)] = torch.arange(self.grid[0] * self.grid[1]).view(self.grid)
        points = table.view(-1)[pixels]
        on = points >= 0
        self.active.setdefault(address, []).append((units[on], pictures[on], points[on]))

    def stacked(self) -> Labels:
        """The labels of all pictures."""
        layers = max(len(found) for found in self.labels)
        whole = torch.zeros(len(self.labels), layers, *self.grid, dtype=torch.int64)
        for picture, found in zip(whole, self.labels, strict=True):
            picture[: len(found)] = found
        return Labels.of(whole)


@dataclass(frozen=True)
class Chance:
    """A unit's best intersection over union against those of units that mean nothing, by their kind.

    `p[kind]` `(units,)` is the share of draws, the real one among them, in which the best over all concepts is as large: the
    choice of the best label is part of the test. `p_of[kind]` `(units, categories)` is the same within each category. `usual`
    `(units,)` is the mean of the best of the first kind, and `detectors[kind]` how many units of the layer are above the
    limit in a draw, in the mean.
    """

    p: dict[str, Float[Tensor, " units"]]
    p_of: dict[str, Float[Tensor, "units categories"]]
    usual: Float[Tensor, " units"] | None
    detectors: dict[str, float]


def chance(
    points: Points, labels: Labels, address: str, units: int, category: Int[Tensor, " concepts"], categories: int,
    kinds: tuple[str, ...], draws: int, limit: float, seed: int,
) -> Chance:  # fmt: skip
    """Draws of units that mean nothing, of each kind:

    - "shifted": each picture's maps against the labels of another picture, rolled around by a random distance;
    - "swapped": against the labels of another picture, in place, which keeps where in pictures units and concepts tend to be;
    - "permuted": in each picture, each unit has the map of another unit of the layer.
    """
    if not set(kinds) <= set(NULLS):
        raise UsageError(f"no null model {next(k for k in kinds if k not in NULLS)!r}; expected some of {', '.join(NULLS)}")
    trial = _Trial(points, labels, address, units, category, categories)
    real, random = trial.best(), torch.Generator().manual_seed(seed)
    p, p_of, means, detectors = {}, {}, [], {}
    for kind in kinds:
        above, above_of, total, over = torch.ones(units), torch.ones(units, categories), torch.zeros(units).double(), 0.0
        for _ in range(draws):
            found = trial.best(kind, random)
            above += found.amax(1) >= real.amax(1)
            above_of += found >= real
            total += found.amax(1)
            over += float((found.amax(1) > limit).sum())
        p[kind], p_of[kind] = above.double() / (draws + 1), above_of.double() / (draws + 1)
        means.append(total / max(draws, 1))
        detectors[kind] = over / max(draws, 1)
    return Chance(p, p_of, means[0] if means else None, detectors)


class _Trial:
    """The best intersection over union of each unit and category, with maps and labels as they are or as chance has them."""

    def __init__(self, points: Points, labels: Labels, address: str, units: int, category: Tensor, categories: int) -> None:
        self.grid, self.labels, self.units = points.grid, labels, units
        parts = points.active.get(address) or [(torch.zeros(0, dtype=torch.int64),) * 3]
        self.unit, self.picture, self.point = (torch.cat(part) for part in zip(*parts, strict=True))
        self.category, self.categories = category[labels.concepts[1:] - 1], categories
        self.present = labels.present(category, categories).double()
        self.total = labels.totals.sum(0)[1:]

    def best(self, kind: str = "", random: torch.Generator | None = None) -> Float[Tensor, "units categories"]:
        """Of one draw, or of units as they are."""
        pictures, (rows, columns) = self.labels.pictures, self.grid
        other = torch.arange(pictures)
        unit, point = self.unit, self.point
        if kind == "permuted":
            unit = (unit + torch.randint(self.units, (pictures,), generator=random)[self.picture]) % self.units
        elif kind:
            other = torch.randperm(pictures, generator=random)
        if kind == "shifted":
            down = torch.randint(rows, (pictures,), generator=random)[self.picture]
            right = torch.randint(columns, (pictures,), generator=random)[self.picture]
            point = (point // columns + down) % rows * columns + (point % columns + right) % columns
        found = self.labels.at(other[self.picture], point)
        present = len(self.labels.concepts)
        both = torch.bincount((unit[:, None] * present + found).reshape(-1), minlength=self.units * present)
        both = both.view(self.units, present)[:, 1:].double()
        active = torch.bincount(unit * pictures + self.picture, minlength=self.units * pictures).view(self.units, pictures)
        area = active.double() @ self.present[other]
        iou = both / (area[:, self.category] + self.total - both).clamp(min=1)
        index = self.category.expand(self.units, -1)
        return iou.new_zeros(self.units, self.categories).scatter_reduce_(1, index, iou, "amax")
