"""The largest values of every unit over a data set: its threshold, exact, and the places above it."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.errors import ConvoscopeError, UnsupportedError, UsageError
from convoscope.core.statistic import CONCATENATE, MAXIMUM, MINIMUM, SUM, Samples, Statistic
from convoscope.units.spilled import Spilled, where


@dataclass(frozen=True)
class Thresholds:
    """Where the tail of each unit begins: a unit is active where its value is above `value`.

    `exceedance` is the share of values above it, at most the fraction asked for and less where values are equal. `dead` units
    never change; `sparse` ones are at their lowest value for all but less than the fraction, so that everything above it is
    tail (a rectified unit that is zero nearly everywhere). `values` counts what was seen of each unit.
    """

    value: Float[Tensor, " units"]
    exceedance: Float[Tensor, " units"]
    dead: Bool[Tensor, " units"]
    sparse: Bool[Tensor, " units"]
    values: int


@dataclass(kw_only=True, eq=False)
class Tail(Statistic):
    """The top `fraction` of every unit's values, over all places of all images, exact and in any order (Bau et al. 2017, 3.2).

    Of N values in all it keeps the K = floor(fraction * N) + 1 largest of each unit; the K-th is the threshold T, the smallest
    number with P(a > T) <= fraction. Beside it, `rows` holds the images seen, and `cells` and `levels` every value that may be
    above the final threshold with its eight neighbors, which is what bilinear interpolation above it needs: one pass over
    the images is enough. Maps are `(B, C, h, w)` of one size, or `(B, C)`.
    """

    fraction: float = 0.005
    state = {
        "largest": CONCATENATE, "smallest": MINIMUM, "bound": MAXIMUM, "images": SUM, "total": MAXIMUM, "grid": MAXIMUM,
        "rows": CONCATENATE, "cells": CONCATENATE, "levels": CONCATENATE,
    }  # fmt: skip
    spilled = ("rows", "cells", "levels")

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise UsageError(f"the tail is a fraction between 0 and 1 of the values; got {self.fraction}")

    # ---- tensors kept
    @property
    def begun(self) -> bool:
        """Whether it has seen anything; asked for every batch, so without putting together what was kept."""
        return hasattr(self, "_kept")

    @property
    def largest(self) -> Float[Tensor, "kept units"]:
        """The largest values of each unit, falling; -inf below those of units that have fewer."""
        self._compact()
        found = self._kept.sort(1, descending=True).values.T.contiguous()
        return found[: int((found > -torch.inf).any(1).sum())]

    @largest.setter
    def largest(self, values: Tensor) -> None:
        self._kept, self._pending, self._blocks = values.T.contiguous(), [], []
        self._waiting = torch.zeros(values.shape[1], dtype=torch.int64, device=values.device)

    @property
    def rows(self) -> Tensor:
        """The images seen, by number."""
        return _joined(self._rows)

    @rows.setter
    def rows(self, values: Tensor) -> None:
        self._rows = [values]

    @property
    def cells(self) -> Tensor:
        """Places of spilled values: ((image * units + unit) * h + row) * w + column."""
        return _joined(self._settled().cells)

    @cells.setter
    def cells(self, values: Tensor) -> None:
        self._spilled = Spilled([values], self.__dict__.get("_spilled", Spilled()).levels)

    @property
    def levels(self) -> Tensor:
        """The spilled values themselves."""
        return _joined(self._settled().levels)

    @levels.setter
    def levels(self, values: Tensor) -> None:
        self._spilled = Spilled(self.__dict__.get("_spilled", Spilled()).cells, [values])

    def _settled(self) -> "Spilled":
        if self._spilled.batches:
            self._spilled.settle(torch.maximum(self.bound, self._kth()))
        return self._spilled

    @property
    def kept(self) -> int:
        """How many values of each unit are kept."""
        return self._rank(int(self.total))

    def _rank(self, images: int) -> int:
        return math.floor(Fraction(str(self.fraction)) * images * int(self.grid.prod())) + 1

    # ---- taking in
    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        maps = _maps(batch)
        if samples is None:
            raise UsageError("the tail of a data set needs to know how many images there are: update(batch, samples)")
        if not self.begun:
            self._begin(maps, samples)
        self._check(maps, samples)
        lowest = maps.flatten(2).amin(2).amin(0)
        if bool(lowest.isnan().any()):
            unit = int(lowest.isnan().nonzero()[0])
            raise UnsupportedError(f"unit {unit} is not a number somewhere in images {samples.index.tolist()[:3]} and on")
        self._start(maps.device)
        self.smallest = torch.minimum(self.smallest, lowest)
        self.images += len(maps)
        self._rows.append(samples.index.cpu())
        above = maps > self._floor[:, None, None]
        if self._keep(maps, above, self._floor):
            self._floor = torch.maximum(self.bound, self._kth())
            above = maps > self._floor[:, None, None]
        self._spilled.add(maps, above, samples.index, self._floor)

    def hint(self, earlier: "Tail") -> None:
        """What is below the threshold of other images of the same data set is below that of all."""
        if earlier.begun:
            self._hint = torch.maximum(earlier.bound, earlier._kth())

    def brief(self) -> "Tail":  # type: ignore[override]
        """Its bound alone."""
        if not self.begun:
            return self
        state = {k: t[:0] for k, t in self.state_dict().items() if k in ("largest", "rows", "cells", "levels")}
        same = {k: getattr(self, k) for k in ("smallest", "images", "total", "grid")}
        return self.fresh().load_state_dict({**state, **same, "bound": torch.maximum(self.bound, self._kth())})

    def _begin(self, maps: Tensor, samples: Samples) -> None:
        channels, like = maps.shape[1], {"dtype": maps.dtype, "device": maps.device}
        self.total, self.grid = torch.tensor(samples.total), torch.tensor(maps.shape[2:])
        self.images, self.smallest = torch.tensor(0), torch.full((channels,), torch.inf, **like)
        hint = getattr(self, "_hint", None)
        self.bound = torch.full((channels,), -torch.inf, **like) if hint is None else hint.to(**like)
        self.largest = torch.empty(0, channels, **like)
        self._rows, self._spilled = [], Spilled()

    def _check(self, maps: Tensor, samples: Samples) -> None:
        if maps.shape[1] != len(self._kept):
            raise UsageError(f"expected a batch of channels (B, {len(self._kept)}, ...); got shape {tuple(maps.shape)}")
        if list(maps.shape[2:]) != self.grid.tolist():
            raise UsageError(
                f"maps of {_by(self.grid.tolist())} units before and {_by(maps.shape[2:])} now: thresholds count the values "
                "of maps of one size; give the network a size"
            )
        if samples.total != int(self.total):
            raise UsageError(f"a data set of {int(self.total)} images before and of {samples.total} now")

    def _start(self, device: torch.device) -> None:
        """State that was loaded or merged continues on the device of the batch, with a floor: what no threshold is below."""
        if self.smallest.device != device:
            self.smallest, self.bound = self.smallest.to(device), self.bound.to(device)
            self.largest = self.largest.to(device)
        if getattr(self, "_floor_of", None) is not self.bound or self._floor.device != device:
            self._floor, self._floor_of = torch.maximum(self.bound, self._kth()), self.bound

    def _kth(self) -> Tensor:
        """The smallest of the values kept, where that is all that may be; else -inf."""
        self._compact()
        return self._kept.amin(1) if self._kept.shape[1] >= self.kept else torch.full_like(self.smallest, -torch.inf)

    def _keep(self, maps: Tensor, above: Tensor, floor: Tensor) -> bool:
        """Note new values of the tail; whether the floor may have risen."""
        channels = maps.shape[1]
        if bool((floor == -torch.inf).all()):
            self._blocks.append(maps.transpose(0, 1).flatten(1) + 0.0)  # no negative zero
            self._waiting += self._blocks[-1].shape[1]
        else:
            places = where(above)
            units = places // maps[0, 0].numel() % channels
            self._pending.append((units, maps.reshape(-1)[places] + 0.0))
            self._waiting += torch.bincount(units, minlength=channels)
        most, mean = int(self._waiting.max()), float(self._waiting.sum()) / channels
        full = self._kept.shape[1] >= self.kept
        if most <= self.kept and (mean <= self.kept / 4 if full else mean + self._kept.shape[1] < self.kept):
            return False
        self._compact()
        return True

    def _compact(self) -> None:
        if self._pending:
            units = torch.cat([u for u, _ in self._pending])
            order = units.argsort(stable=True)
            units, values = units[order], torch.cat([v for _, v in self._pending])[order]
            counts = torch.bincount(units, minlength=len(self._kept))
            places = torch.arange(len(units), device=units.device) - (counts.cumsum(0) - counts)[units]
            packed = values.new_full((len(self._kept), int(counts.max())), -torch.inf)
            packed[units, places] = values
            self._blocks.append(packed)
        if self._blocks:
            self._kept = self._largest_of(torch.cat([self._kept, *self._blocks], 1))
            self._pending, self._blocks = [], []
            self._waiting.zero_()

    def _largest_of(self, values: Float[Tensor, "units values"]) -> Float[Tensor, "units kept"]:
        return values.topk(self.kept, 1, sorted=False).values if values.shape[1] > self.kept else values

    # ---- together
    def merge(self, other: "Tail") -> "Tail":
        if self.accepts(other):
            for name, what in (("grid", "maps of {} units"), ("total", "a data set of {} images")):
                mine, theirs = getattr(self, name).tolist(), getattr(other, name).tolist()
                if mine != theirs:
                    raise UsageError(f"tails of {what.format(mine)} here and {what.format(theirs)} there do not merge")
            device = self.smallest.device
            self.largest = self._largest_of(torch.cat([self.largest, other.largest.to(device)]).T).T
            self.smallest = torch.minimum(self.smallest, other.smallest.to(device))
            self.bound = torch.maximum(self.bound, other.bound.to(device))
            self.images = self.images + other.images.to(self.images.device)
        return self

    def _threshold(self) -> Tensor:
        """The final one, were this all: the K-th of the values kept; -inf where there are fewer."""
        self._compact()
        rank = self._rank(int(self.images))
        if self._kept.shape[1] < rank:
            return torch.full_like(self.smallest, -torch.inf)
        return self._kept.topk(rank, 1, sorted=False).values.amin(1)

    def lacks(self, part: "Tail") -> bool:  # type: ignore[override]
        """Whether the part left out values that may be above the threshold of all."""
        return self.begun and part.begun and bool((part.bound.to(self.smallest.device) > self._threshold()).any())

    def value(self) -> Thresholds:
        """The threshold of each unit over everything taken in. Raises UsageError before the first batch, ConvoscopeError where
        shards were begun with the hint of others that are missing here."""
        if not self.begun:
            raise UsageError("no threshold: nothing was seen")
        full, seen, largest = self._threshold(), int(self.images) * int(self.grid.prod()), self.largest
        if bool((self.bound > full).any() | full.isinf().any()):
            raise ConvoscopeError(
                "these shards were measured knowing others that are missing or have changed; merge them all, or sweep their "
                "store again"
            )
        dead = largest[0] == self.smallest
        return Thresholds(full, (largest > full).sum(0).cpu().double() / seen, dead, (full == self.smallest) & ~dead, seen)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one tensor, which then stands for them."""
    if len(parts) != 1:
        parts[:] = [torch.cat(parts)]
    return parts[0]


def _by(grid: "list[int] | torch.Size") -> str:
    return " x ".join(map(str, grid))


def _maps(batch: Tensor) -> Tensor:
    """Activations as `(B, C, h, w)` in single precision at least."""
    if batch.dim() not in (2, 4):
        raise UnsupportedError(
            f"a layer of shape {tuple(batch.shape[1:])} has no rows and columns of units; dissection takes layers "
            "(channels, height, width) or (channels,)"
        )
    batch = batch.detach()
    batch = (batch if batch.dtype == torch.float64 else batch.float()).contiguous()
    return batch if batch.dim() == 4 else batch[:, :, None, None]
