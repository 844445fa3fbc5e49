"""Maps of units at the size of pictures, bilinear, as a whole or only where they are above a threshold.

Both ways make each value by the same operations in the same order, `near + weight * (far - near)` with a weight of at most a
half, first along columns, then along rows. Each operation is rounded once, whatever the machine, so both ways agree to the
last bit; and no such value is above both ends, whatever the rounding.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.geometry import Field

Anchor = Literal["centers", "tiles"]
PIECE = 1 << 22  # values interpolated at once


@dataclass(frozen=True)
class Axis:
    """The pixels of one axis, in the `units + 1` gaps before, between and after the centers of its units.

    Gap k holds `lengths[k]` pixels from `starts[k]` on, between units k - 1 and k; beyond the outermost centers the map goes
    on as it is there. Pixel j of gap k is nearer to the unit before it if `before[k, j]`, and its value is that of its nearer
    unit plus `weights[k, j]` times (after - before).
    """

    units: int
    pixels: int
    starts: Int[Tensor, " gaps"]
    lengths: Int[Tensor, " gaps"]
    before: Bool[Tensor, "gaps longest"]
    weights: Float[Tensor, "gaps longest"]

    @classmethod
    def of(cls, units: int, pixels: int, first: float, step: float) -> Self:
        """Units with centers at first, first + step, ..., in pixels; the middle of the first pixel is 0."""
        places = (torch.arange(pixels, dtype=torch.float64) - first) / step
        gaps = (places.floor() + 1).clamp(0, units).long()
        lengths = torch.bincount(gaps, minlength=units + 1)
        starts = lengths.cumsum(0) - lengths
        inner = (gaps > 0) & (gaps < units)
        part = torch.where(inner, places - places.floor(), 0.0)
        before = part <= 0.5
        shape = (units + 1, int(lengths.max()))
        rows, columns = gaps, torch.arange(pixels) - starts[gaps]
        nearer, weights = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.float64)
        nearer[rows, columns], weights[rows, columns] = before, torch.where(before, part, part - 1)
        return cls(units, pixels, starts, lengths, nearer, weights)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """On a device, weights in a type."""
        tables = (self.starts, self.lengths, self.before)
        return type(self)(self.units, self.pixels, *(t.to(device) for t in tables), self.weights.to(device, dtype))

    def line(self, gaps: Int[Tensor, " n"]) -> tuple[Bool[Tensor, "n longest"], Float[Tensor, "n longest"]]:
        """`before` and `weights` of some gaps; one line for all where they are the same between all units, since beyond the
        outermost centers any weight will do."""
        if self.even:
            return self.before[1:2], self.weights[1:2]
        return self.before[gaps], self.weights[gaps]

    @cached_property
    def even(self) -> bool:
        """Whether pixels lie alike between any two units."""
        inner = slice(1, self.units)
        alike = (self.weights[inner] == self.weights[1]).all() & (self.before[inner] == self.before[1]).all()
        return bool(alike & (self.lengths[inner] == self.weights.shape[1]).all())

    @property
    def inside(self) -> Bool[Tensor, "gaps longest"]:
        """Where the tables hold pixels."""
        return torch.arange(self.weights.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def interpolated(self, maps: Tensor, axis: int) -> Tensor:
        """Every pixel along an axis of `maps`."""
        gaps, places = self.inside.nonzero(as_tuple=True)
        near = [-1 if d == axis % maps.dim() else 1 for d in range(maps.dim())]
        before = maps.index_select(axis, (gaps - 1).clamp(min=0))
        after = maps.index_select(axis, gaps.clamp(max=self.units - 1))
        nearer = torch.where(self.before[gaps, places].view(near), before, after)
        return nearer + self.weights[gaps, places].view(near) * (after - before)


@dataclass(frozen=True)
class Placing:
    """Where the units of a map lie in pictures of one size."""

    rows: Axis
    columns: Axis
    anchor: Anchor

    @classmethod
    def of(cls, grid: tuple[int, int], size: tuple[int, int], field: Field | None = None, anchor: Anchor = "centers") -> Self:
        """A grid of units over pictures of a size (height, width).

        "centers" puts each unit at the center of its receptive field (Bau et al. 2017), or, where that is the whole image or
        not evenly spaced, as "tiles" does: in the middle of one of equal tiles (`align_corners=False`).
        """
        if anchor not in ("centers", "tiles"):
            raise UsageError(f"no anchor {anchor!r}; expected 'centers' or 'tiles'")
        known = field is not None and not field.whole and None not in field.stride and tuple(field.grid) == tuple(grid)
        axes = []
        for axis, (units, pixels) in enumerate(zip(grid, size, strict=True)):
            if anchor == "centers" and known:
                first, step = field.offset[axis] + (field.size[axis] - 1) / 2, field.stride[axis]  # type: ignore[union-attr, operator]
            else:
                first, step = (pixels / units - 1) / 2, pixels / units
            axes.append(Axis.of(units, pixels, first, step))  # type: ignore[arg-type]
        return cls(*axes, anchor if known else "tiles")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.rows.pixels, self.columns.pixels

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """On a device, weights in a type."""
        return type(self)(self.rows.to(device, dtype), self.columns.to(device, dtype), self.anchor)

    def dense(self, maps: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch height width"]:
        """Maps at the size of pictures."""
        own = self.to(maps.device, maps.dtype)
        return own.columns.interpolated(own.rows.interpolated(maps, -2), -1)

    def above(
        self, maps: Float[Tensor, "maps h w"], thresholds: Float[Tensor, " maps"]
    ) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"]]:
        """The pixels of `dense(maps)` above the threshold of their map: which map, and row * width + column.

        A value between four units is at most the largest of theirs, so only gaps with a unit above the threshold are
        interpolated; memory is that of the pixels found.
        """
        own = self.to(maps.device, maps.dtype)
        over = maps > thresholds[:, None, None]
        live = over.flatten(1).any(1).nonzero()[:, 0]
        which, i, j = _gaps(over[live])
        filled = (own.rows.lengths > 0)[i] & (own.columns.lengths > 0)[j]
        which, i, j = live[which[filled]], i[filled], j[filled]
        piece = max(1, PIECE // max(1, own.rows.weights.shape[1] * own.columns.weights.shape[1]))
        parts = [own._piece(maps, thresholds, *p) for p in zip(which.split(piece), i.split(piece), j.split(piece), strict=True)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([p for p, _ in parts]), torch.cat([p for _, p in parts])

    def _piece(self, maps: Tensor, thresholds: Tensor, which: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Active pixels of some gaps (map, gap of rows, gap of columns)."""
        h, w = maps.shape[1:]
        sides = torch.stack([(j - 1).clamp(min=0), j.clamp(max=w - 1)], 1)
        flat, limit = maps.reshape(-1), thresholds[which]
        before = flat[((which * h + (i - 1).clamp(min=0)) * w)[:, None] + sides][:, None]  # (gaps, 1, 2)
        after = flat[((which * h + i.clamp(max=h - 1)) * w)[:, None] + sides][:, None]
        nearer, weights = self.rows.line(i)
        lines = torch.where(nearer[:, :, None], before, after)
        lines = lines.add_(weights[:, :, None] * (after - before))  # (gaps, rows, 2): what is left and right of a row
        gap, row = (lines > limit[:, None, None]).any(2).nonzero(as_tuple=True)
        there = row < self.rows.lengths[i][gap]
        gap, row = gap[there], row[there]
        left, right = lines[gap, row].unbind(1)
        j = j[gap]
        nearer, weights = self.columns.line(j)
        values = torch.where(nearer, left[:, None], right[:, None])
        values.add_(weights * (right - left)[:, None])
        line, column = (values > limit[gap][:, None]).nonzero(as_tuple=True)
        there = column < self.columns.lengths[j][line]
        line, column = line[there], column[there]
        first = (self.rows.starts[i[gap]] + row) * self.columns.pixels + self.columns.starts[j]
        return which[gap][line], first[line] + column


def _gaps(above: Bool[Tensor, "maps h w"]) -> tuple[Tensor, Tensor, Tensor]:
    """The gaps with a unit above the threshold at one of their corners."""
    maps, h, w = above.shape
    found = above.new_zeros(maps, h + 1, w + 1)
    for i in (0, 1):
        for j in (0, 1):
            found[:, i : i + h, j : j + w] |= above
    return found.nonzero(as_tuple=True)  # type: ignore[return-value]
