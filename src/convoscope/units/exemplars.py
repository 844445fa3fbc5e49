"""Exemplars: the places in a data set that show what each unit responds to, exact and in any order of the data.

A place is an image with a row and a column of the layer's map; fields.py has the pixels behind it. Layers are `(B, C, h, w)`,
or `(B, C)`, which is a map of one row and one column.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.statistic import CONCATENATE, MAXIMUM, MINIMUM, SUM, Samples, Statistic
from convoscope.units.reservoir import GAMMA, mixed

NONE = torch.iinfo(torch.int64).max  # comes after every place
SIDE, IMAGES = 1 << 15, 1 << 31  # more rows or columns, and images, than there may be
LOW = (1 << 32) - 1


@dataclass(frozen=True)
class Patches:
    """Places of each unit: activation, image, row and column, `(units, k)` each; where there are fewer the image is -1 and the
    activation NaN."""

    values: Float[Tensor, "units k"]
    images: Int[Tensor, "units k"]
    rows: Int[Tensor, "units k"]
    columns: Int[Tensor, "units k"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, units: Any) -> "Patches":
        """Those of some units: a slice, numbers or a mask."""
        parts = (t[units] for t in (self.values, self.images, self.rows, self.columns))
        return Patches(*(p if p.dim() == 2 else p[None] for p in parts))


def _patches(values: Tensor, places: Tensor) -> Patches:
    there = places != NONE
    parts = (places >> 32, places >> 16 & 0xFFFF, places & 0xFFFF)
    return Patches(values.masked_fill(~there, torch.nan), *(p.masked_fill(~there, -1) for p in parts))


def _maps(batch: Tensor, samples: Samples | None, channels: int | None) -> Float[Tensor, "batch channels places"]:
    """Activations with their places in one axis, in single precision at least."""
    if samples is None:
        raise UsageError("exemplars have to know which images the rows are: update(batch, samples)")
    if batch.dim() not in (2, 4):
        raise UnsupportedError(
            f"a layer of shape {tuple(batch.shape[1:])} has no rows and columns of units; exemplars are found for layers "
            "(channels, height, width) or (channels,)"
        )
    if channels not in (None, batch.shape[1]):
        raise UsageError(f"expected a batch of channels (B, {channels}, ...); got shape {tuple(batch.shape)}")
    if max(batch.shape[2:], default=1) >= SIDE or samples.total >= IMAGES:
        raise UnsupportedError(f"maps have under {SIDE:,} rows and columns and data sets under {IMAGES:,} images")
    batch = batch.detach()
    return (batch if batch.dtype == torch.float64 else batch.float()).flatten(2) if batch.dim() == 4 else _alone(batch)


def _alone(batch: Tensor) -> Tensor:
    return (batch if batch.dtype == torch.float64 else batch.float())[:, :, None]


def _checked(peaks: Tensor, samples: Samples) -> Tensor:
    if bool(peaks.isnan().any()):
        row, unit = peaks.isnan().nonzero()[0].tolist()
        raise UnsupportedError(f"unit {unit} is not a number in image {int(samples.index[row])}")
    return peaks + 0.0  # no negative zero


def _best(values: Tensor, order: Tensor, count: int, *others: Tensor) -> tuple[Tensor, ...]:
    """The largest values of each row, falling, and what belongs to them; among equal ones those of the lowest order."""
    by = order.argsort(dim=1, stable=True)
    by = by.gather(1, values.gather(1, by).argsort(dim=1, descending=True, stable=True))[:, :count]
    return tuple(t.gather(1, by) for t in (values, order, *others))


@dataclass(kw_only=True, eq=False)
class TopPatches(Statistic):
    """The `k` places where each unit is most active, strongest first; at most `per_image` of one image (0 is any number).

    Exact: of equal activations the first image counts, then the upper row, then the left column, so that any split of the
    data gives the same places bit for bit. An image costs one comparison for each unit unless it belongs to the best so far.
    """

    k: Annotated[int, "places kept for each unit"] = 9
    per_image: Annotated[int, "places of one image at most; 0 is any number"] = 1

    state = {"values": MAXIMUM, "places": MINIMUM}  # both together, in merge
    sign: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.k < 1 or self.per_image < 0:
            raise UsageError(f"patches are 1 or more, 0 (any number) or more of each image; got {self.k}, {self.per_image}")

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        maps = _maps(batch, samples, len(self.values) if self.begun else None)
        assert samples is not None
        if not self.begun:
            empty = maps.new_full((maps.shape[1], self.k), -torch.inf)
            self.values, self.places = empty, torch.full_like(empty, NONE, dtype=torch.int64)
        elif self.values.device != maps.device:  # state that was loaded
            self.values, self.places = self.values.to(maps.device), self.places.to(maps.device)
        if not maps.numel():
            return
        peaks = _checked(maps.amax(2) if self.sign > 0 else -maps.amin(2), samples).T
        images = samples.index.to(maps.device)
        units, rows = self._may_enter(peaks, images).nonzero(as_tuple=True)
        if len(units):
            width = batch.shape[3] if batch.dim() == 4 else 1
            found = maps[rows, units]
            self._enter(units, *self._candidates(found, peaks[units, rows], images[rows], units, width))

    def _may_enter(self, peaks: Tensor, images: Tensor) -> Tensor:
        """(units, rows): where an image beats the last place kept, or equals it and may come before it."""
        last, units = self.values[:, -1:], torch.arange(len(peaks), device=peaks.device)[:, None]
        places = self.places[:, -1:]
        turn = torch.where(places == NONE, IMAGES, self._turn(places >> 32, units))
        return (peaks > last) | ((peaks == last) & (self._turn(images, units) <= turn))

    def _candidates(self, found: Tensor, peaks: Tensor, images: Tensor, units: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values and places (pairs, n) of the best of each map `found` (pairs, positions)."""
        count = min(self.per_image or self.k, self.k, found.shape[1])
        if count == 1:
            at = self._spot(found == self.sign * peaks[:, None], images, units)
            return peaks[:, None], ((images << 32) + (at // width << 16) + at % width)[:, None]
        found, at = self.sign * found + 0.0, torch.arange(found.shape[1], device=found.device)
        places = (images << 32)[:, None] + (at // width << 16) + at % width
        values, _, places = _best(found, self._order(places, units[:, None]), count, places)
        return values, places

    def _spot(self, peak: Tensor, images: Tensor, units: Tensor) -> Tensor:
        """Which of the positions (pairs, positions) where an image is at its best counts."""
        return peak.byte().argmax(1)  # the first

    def _enter(self, units: Tensor, values: Tensor, places: Tensor) -> None:
        """Take in what was found: rows `(pairs, n)`, sorted by unit."""
        here, counts = units.unique_consecutive(return_counts=True)
        slot = torch.arange(len(units), device=units.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        row = torch.arange(len(here), device=units.device).repeat_interleave(counts)
        size = (len(here), int(counts.max()), values.shape[1])
        packed, at = values.new_full(size, -torch.inf), places.new_full(size, NONE)
        packed[row, slot], at[row, slot] = values, places
        self._keep(here, torch.cat([self.values[here], packed.flatten(1).to(self.values)], 1),
                   torch.cat([self.places[here], at.flatten(1)], 1))  # fmt: skip

    def _keep(self, units: Tensor, values: Tensor, places: Tensor) -> None:
        found, _, where = _best(values, self._order(places, units[:, None]), self.k, places)
        self.values[units], self.places[units] = found, where

    def _turn(self, images: Tensor, units: Tensor) -> Tensor:
        """Which of several images comes first, 31 bits."""
        return images

    def _order(self, places: Tensor, units: Tensor) -> Tensor:
        """Which of several places of the same activation comes first: first by the turn of its image."""
        return places

    def merge(self, other: "TopPatches") -> "TopPatches":  # type: ignore[override]
        if self.accepts(other):
            values, places = other.values.to(self.values), other.places.to(self.places.device)
            units = torch.arange(len(values), device=self.values.device)
            self._keep(units, torch.cat([self.values, values], 1), torch.cat([self.places, places], 1))
        return self

    def value(self) -> Patches:
        """The places of each unit, strongest first. Raises UsageError before the first batch."""
        if not self.begun:
            raise UsageError("no exemplars: nothing was seen")
        return _patches(self.sign * self.values.cpu() + 0.0, self.places.cpu())


@dataclass(kw_only=True, eq=False)
class BottomPatches(TopPatches):
    """The `k` places where each unit is lowest, lowest first, one of each image by default.

    Of equal activations (the zeros behind a ReLU) a sample is taken, by a hash of unit, image and place: exact for any split of
    the data, and not the upper left corners of the first images.
    """

    sign = -1

    def _turn(self, images: Tensor, units: Tensor) -> Tensor:
        return (mixed(mixed((units + 1) * GAMMA) + (images + 1) * GAMMA) >> 33) & (IMAGES - 1)

    def _spot(self, peak: Tensor, images: Tensor, units: Tensor) -> Tensor:
        equal = peak.cumsum(1, dtype=torch.int32)
        drawn = mixed(mixed((units + 1) * GAMMA) + (images + 1) * GAMMA) & (IMAGES - 1)  # other bits than those of the turn
        return torch.searchsorted(equal, (drawn % equal[:, -1] + 1).to(torch.int32)[:, None])[:, 0]

    def _order(self, places: Tensor, units: Tensor) -> Tensor:
        low = mixed(mixed((units + 1) * GAMMA) + (places + 1) * GAMMA) & LOW
        return torch.where(places == NONE, NONE, (self._turn(places >> 32, units) << 32) + low)


class SampledImages(Statistic):
    """Base of exemplars from a uniform sample of the images: those with the smallest hashes of (image, seed).

    For each the strongest place of every unit is kept. Any split of the data gives the same sample, bit for bit.
    """

    seed: int
    state = {
        "order": CONCATENATE, "images": CONCATENATE, "peaks": CONCATENATE, "spots": CONCATENATE, "limit": MINIMUM, "seen": SUM,
    }  # fmt: skip

    @property
    def count(self) -> int:
        """How many images are kept."""
        raise NotImplementedError

    def hint(self, earlier: "SampledImages") -> None:  # type: ignore[override]
        """What is not in a sample of some images is in none of all images; the limit is kept, so that what is found stays a
        fair sample whatever becomes of the others."""
        if earlier.begun:
            self._hint = earlier._most()

    def brief(self) -> "SampledImages":  # type: ignore[override]
        """Its limit alone."""
        if not self.begun:
            return self
        state = {k: getattr(self, k)[:0] for k in ("order", "images", "peaks", "spots")}
        return self.fresh().load_state_dict({**state, "limit": self._most(), "seen": self.seen})

    def _most(self) -> Tensor:
        """What no image of the sample of all is above."""
        return torch.minimum(self.limit, self.order[-1]) if len(self.order) == self.count else self.limit

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        maps = _maps(batch, samples, self.peaks.shape[1] if self.begun else None)
        assert samples is not None
        if not self.begun:
            self._begin(maps.shape[1], maps.dtype)
        self.seen = self.seen + len(maps)
        key = samples.index.cpu()
        order = mixed(mixed(torch.tensor(self.seed) * GAMMA) + (key + 1) * GAMMA)
        chosen = order <= self._most()
        if not bool(chosen.any()) or not maps.shape[2]:
            return
        peaks, spots = (maps if bool(chosen.all()) else maps[chosen.to(maps.device)]).max(2)
        width = batch.shape[3] if batch.dim() == 4 else 1
        spots = ((spots // width << 16) + spots % width).to(torch.int32)
        peaks = _checked(peaks, _rows(samples, chosen)).cpu().to(self.peaks.dtype)
        self._keep(order[chosen], key[chosen], peaks, spots.cpu())

    def _begin(self, channels: int, dtype: torch.dtype) -> None:
        self.order = self.images = torch.zeros(0, dtype=torch.int64)
        self.peaks, self.spots = torch.zeros(0, channels, dtype=dtype), torch.zeros(0, channels, dtype=torch.int32)
        self.seen, self.limit = torch.tensor(0), getattr(self, "_hint", torch.tensor(NONE))

    def _keep(self, *more: Tensor) -> None:
        names = ("order", "images", "peaks", "spots")
        parts = [torch.cat([getattr(self, n), m]) for n, m in zip(names, more, strict=True)]
        by = parts[0].argsort(stable=True)
        by = by[parts[0][by] <= self.limit][: self.count]
        for name, part in zip(names, parts, strict=True):
            setattr(self, name, part[by])

    def merge(self, other: "SampledImages") -> "SampledImages":  # type: ignore[override]
        if self.accepts(other):
            self.seen = self.seen + other.seen
            self.limit = torch.minimum(self.limit, other.limit)
            self._keep(other.order, other.images, other.peaks.to(self.peaks.dtype), other.spots)
        return self

    def lacks(self, part: "SampledImages") -> bool:  # type: ignore[override]
        """Whether the part left out images that the sample of all has room for."""
        return self.begun and part.begun and len(self.order) < min(self.count, int(self.seen)) and int(part.limit) < NONE

    def _chosen(self, which: Int[Tensor, "units k"]) -> Patches:
        """The patches of these places in the sample."""
        if not self.begun:
            raise UsageError("no exemplars: nothing was seen")
        places = (self.images[which] << 32) + self.spots.T.gather(1, which)
        return _patches(self.peaks.T.gather(1, which), places)


def _rows(samples: Samples, which: Tensor) -> Samples:
    return Samples(samples.index[which.to(samples.index.device)], samples.inputs, samples.classes, samples.total)


def _filled(patches: Patches, k: int) -> Patches:
    """With -1 for the images that are not there."""
    missing = (len(patches), k - patches.images.shape[1])
    images = [torch.cat([t, t.new_full(missing, -1)], 1) for t in (patches.images, patches.rows, patches.columns)]
    return Patches(torch.cat([patches.values, patches.values.new_full(missing, torch.nan)], 1), *images)


@dataclass(kw_only=True, eq=False)
class RandomPatches(SampledImages):
    """`k` images drawn at random, the same for every unit, with the place of each where the unit is strongest.

    What a unit does on any picture, beside its best (a check that exemplars say something: Borowski et al. 2021).
    """

    k: Annotated[int, "images drawn"] = 9
    seed: Annotated[int, "another seed, other images"] = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"patches are 1 or more; got {self.k}")

    @property
    def count(self) -> int:
        return self.k

    def value(self) -> Patches:
        """The places of each unit, in random order. Raises UsageError before the first batch."""
        units = self.peaks.shape[1] if self.begun else 0
        which = torch.arange(len(self.order) if self.begun else 0).expand(units, -1)
        return _filled(self._chosen(which), self.k)


@dataclass(kw_only=True, eq=False)
class QuantilePatches(SampledImages):
    """Images from each unit's strongest to its weakest: those at quantiles of its largest activation in each image.

    `quantiles` default to the middles of `k` equal parts. The q-quantile of n images is the one of rank ceil(q n) from the
    weakest, always an image that was seen. Exact up to `sample` images; of more, the quantiles are those of a uniform sample
    of as many (standard error of a share: sqrt(q (1 - q) / sample)), which merges exactly. It takes 8 bytes a unit and image
    of the sample.
    """

    k: Annotated[int, "number of quantiles"] = 9
    quantiles: Annotated[tuple[float, ...], "shares 0 to 1, instead of k equal parts"] = ()
    sample: Annotated[int, "images kept at most"] = 1024
    seed: Annotated[int, "another seed, another sample"] = 0

    def __post_init__(self) -> None:
        self.quantiles = tuple(float(q) for q in self.quantiles)
        if self.k < 1 or self.sample < 1 or not all(0 <= q <= 1 for q in self.quantiles):
            raise UsageError(f"quantiles are shares 0 to 1 of 1 or more images; got {self.settings}")

    @property
    def count(self) -> int:
        return self.sample

    def value(self) -> Patches:
        """The places of each unit, strongest first. Raises UsageError before the first batch."""
        if not self.begun or not len(self.order):
            raise UsageError("no exemplars: nothing was seen")
        n = len(self.order)
        shares = sorted(self.quantiles or ((2 * i + 1) / (2 * self.k) for i in range(self.k)), reverse=True)
        ranks = torch.tensor([min(max(math.ceil(q * n - 1e-9), 1), n) - 1 for q in shares])
        by = self.peaks.argsort(dim=0, stable=True)  # rows are in the order of their hashes: ties are drawn by lot
        return self._chosen(by[ranks].T)
