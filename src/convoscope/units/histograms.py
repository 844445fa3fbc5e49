"""How active units are: exact histograms of all their activations, moments and sparseness, for a sweep to fold."""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.statistic import MAXIMUM, MINIMUM, SUM, Samples, Statistic

OCTAVES = 12  # sizes from 2^-12 to 2^12 are told apart
PER_OCTAVE = 4
SIDE = 2 * OCTAVES * PER_OCTAVE + 2  # bins of one sign, with those for everything smaller and everything larger
BINS = 2 * SIDE + 1  # below zero, zero, above zero
_SHIFT = 21  # of a float32, what is left is the sign, the exponent and the first two digits of the fraction
_KEYS = 1 << (31 - _SHIFT)
AT_ONCE = 1 << 18  # values counted together


def of_channels(batch: Tensor, channels: int | None = None) -> Tensor:
    """`batch` (B, C) or (B, C, h, w) as (B, C, positions). Raises UsageError for other shapes or numbers of channels."""
    if batch.dim() not in (2, 4) or (channels is not None and batch.shape[1] != channels):
        expected = f"(B, {'C' if channels is None else channels}) or (B, {'C' if channels is None else channels}, h, w)"
        raise UsageError(f"units are the channels of activations {expected}; got shape {tuple(batch.shape)}")
    return batch.detach().flatten(2) if batch.dim() == 4 else batch.detach()[..., None]


@cache
def _sides() -> tuple[float, ...]:
    steps = range(-OCTAVES * PER_OCTAVE, OCTAVES * PER_OCTAVE + 1)
    return tuple(2.0 ** (k // PER_OCTAVE) * (1 + k % PER_OCTAVE / PER_OCTAVE) for k in steps)


def edges() -> Float[Tensor, " bins_plus_one"]:
    """Where the bins of every histogram begin and end, in float64; the outermost ends are infinite.

    Four bins to each factor of two, from 2^-12 to 2^12 on both sides of zero; the bin from 0 to 0 holds zeros alone.
    """
    side = torch.tensor([0.0, *_sides(), torch.inf], dtype=torch.float64)
    return torch.cat([-side.flip(0), side])


@dataclass(kw_only=True, eq=False)
class ActivationHistogram(Statistic):
    """Of each unit, how many of its activations, over all images and positions, fall into each of 197 bins.

    The bins are the same for every unit, network and data set (`edges()`), four to each factor of two: counts of any split
    add up to the counts of one pass, bit for bit. A value is put where it lies after rounding to float32; what is closer to
    zero than 2^-128 counts as zero, infinities and NaN as outermost.
    """

    state = {"counts": SUM}

    @property
    def begun(self) -> bool:
        """Whether it has seen anything; asked for every batch, so without counting what waits."""
        return hasattr(self, "_counts")

    @property
    def counts(self) -> Int[Tensor, "units bins"]:
        """How many activations of each unit lie in each bin."""
        self._count()
        return self._counts

    @counts.setter
    def counts(self, values: Tensor) -> None:
        self._counts, self._waiting = values, []

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        values = of_channels(batch, len(self._counts) if self.begun else None)
        if not self.begun:
            self.counts = torch.zeros(values.shape[1], BINS, dtype=torch.int64)
        keys = values.to(torch.float32).contiguous().view(torch.int32) >> _SHIFT  # -1024..-1 below zero, 0..1023 above
        self._waiting.append(keys.to(torch.int16))
        if sum(rows.numel() for rows in self._waiting) >= max(AT_ONCE, 2 * _KEYS * values.shape[1]):
            self._count()

    def _count(self) -> None:
        """Count what waits: at least as many values as there are keys to count them by."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        channels, device = waiting[0].shape[1], waiting[0].device
        first = torch.arange(channels, device=device, dtype=torch.int32)[:, None] * 2 * _KEYS + _KEYS
        found = torch.zeros(2 * _KEYS * channels, dtype=torch.int64, device=device)
        whole = waiting[0] if len(waiting) == 1 else torch.cat(waiting)
        for rows in whole.split(max(1, AT_ONCE // max(1, waiting[0][0].numel()))):
            place_of = (rows + first).flatten()
            found.index_add_(0, place_of, torch.ones_like(place_of, dtype=torch.int64))
        found = found.view(channels, 2, _KEYS)
        low, high = (127 - OCTAVES) * PER_OCTAVE, (127 + OCTAVES) * PER_OCTAVE
        near, far = found[..., 1:low].sum(-1, keepdim=True), found[..., high:].sum(-1, keepdim=True)
        below, above = torch.cat([near, found[..., low:high], far], -1).unbind(1)
        self._counts = self._counts + torch.cat([below.flip(1), found[..., 0].sum(1, keepdim=True), above], 1).cpu()

    def value(self) -> Int[Tensor, "units bins"]:
        """How many activations lie in each bin. Raises UsageError before the first batch."""
        seen(self)
        return self.counts

    def dead(self) -> Tensor:
        """(C,) whether a unit never was above zero."""
        return self.value()[:, SIDE + 1 :].sum(1) == 0

    def zero_share(self) -> Float[Tensor, " units"]:
        """The share, 0 to 1, of activations that are zero."""
        counts = self.value()
        return counts[:, SIDE].double() / counts.sum(1)

    def near_zero_share(self, fraction: float = 0.01) -> Float[Tensor, " units"]:
        """The share of activations in bins of sizes wholly under `fraction` of where the unit's outermost bin begins."""
        counts, size = self.value(), edges()[SIDE + 1 : -1]  # lower ends of the bins above zero
        both = counts[:, SIDE + 1 :] + counts[:, :SIDE].flip(1)
        top = (both > 0).to(torch.int64).mul(torch.arange(1, SIDE + 1)).amax(1) - 1
        bound = torch.where(top >= 0, size[top.clamp(min=0)] * fraction, 0.0)
        under = torch.searchsorted(size.contiguous(), bound.contiguous(), right=True) - 1  # the bin the bound lies in
        below = torch.cat([torch.zeros(len(both), 1, dtype=both.dtype), both.cumsum(1)], 1)
        inner = below.gather(1, under.clamp(min=0)[:, None])[:, 0]
        return (counts[:, SIDE] + inner).double() / counts.sum(1)

    def quantile(self, q: float) -> Float[Tensor, "units 2"]:
        """Ends of the bin in which the smallest value with a share of at least `q` of all values up to it lies."""
        if not 0 <= q <= 1:
            raise UsageError(f"a quantile is between 0 and 1; got {q!r}")
        counts = self.value()
        wanted = (counts.sum(1, keepdim=True).double() * q).ceil().clamp(min=1).long()
        place = torch.searchsorted(counts.cumsum(1), wanted)[:, 0]
        return torch.stack([edges()[place], edges()[place + 1]], 1)


@dataclass(kw_only=True, eq=False)
class UnitActivity(Statistic):
    """Of each unit: extremes, mean and deviation over all images and positions, and how few images it responds to.

    The response to an image is the largest activation in its map, or 0 where that is negative. Sums are float64 over images
    of sums in the type of the activations over positions.
    """

    state = {
        "images": SUM, "positions": SUM, "low": MINIMUM, "high": MAXIMUM,
        "total": SUM, "square": SUM, "response": SUM, "energy": SUM, "responding": SUM,
    }  # fmt: skip

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        values = of_channels(batch, len(self.low) if self.begun else None)
        values = values if values.dtype == torch.float64 else values.float()
        high, response = values.amax(2), values.amax(2).clamp(min=0).double()
        made = {
            "images": torch.tensor(len(values)),
            "positions": torch.tensor(values.shape[0] * values.shape[2]),
            "low": values.amin((0, 2)).double(),
            "high": high.amax(0).double(),
            "total": values.sum(2).double().sum(0),
            "square": torch.linalg.vector_norm(values, dim=2).double().square().sum(0),
            "response": response.sum(0),
            "energy": response.square().sum(0),
            "responding": (response > 0).sum(0),
        }
        made = {k: v.cpu() for k, v in made.items()}
        for name, found in made.items():
            setattr(self, name, self.state[name](getattr(self, name), found) if self.begun else found)

    def value(self) -> dict[str, Tensor]:
        """Columns over units, each (C,).

        `minimum`, `maximum`, `mean`, `deviation` of activations; `responding`, the share of images with a response;
        `lifetime-sparseness` and `hoyer-sparseness` of the responses over images; `dead`, never above zero.
        """
        seen(self)
        mean = self.total / self.positions
        return {
            "minimum": self.low,
            "maximum": self.high,
            "mean": mean,
            "deviation": (self.square / self.positions - mean.square()).clamp(min=0).sqrt(),
            "responding": self.responding.double() / self.images,
            "lifetime-sparseness": lifetime_sparseness(self.response, self.energy, int(self.images)),
            "hoyer-sparseness": hoyer_sparseness(self.response, self.energy, int(self.images)),
            "dead": self.high <= 0,
        }


def lifetime_sparseness(
    total: Float[Tensor, " units"], energy: Float[Tensor, " units"], images: int
) -> Float[Tensor, " units"]:
    """Sparseness of responses r_i >= 0 to n images from their sum and sum of squares, (1 - a) / (1 - 1/n).

    a = (sum r / n)^2 / (sum r^2 / n) is the breadth of Treves and Rolls. 0 where all responses are the same, 1 where one
    image has all of it, NaN where there is no response or one image alone. (Treves and Rolls, "What determines the capacity
    of autoassociative memories in the brain?", Network 1991; rescaled by Vinje and Gallant, Science 2000.)
    """
    breadth = total.square() / (energy * images)
    return (1 - breadth) / (1 - 1 / images) if images > 1 else torch.full_like(breadth, torch.nan)


def hoyer_sparseness(total: Float[Tensor, " units"], energy: Float[Tensor, " units"], images: int) -> Float[Tensor, " units"]:
    """Sparseness of responses r_i >= 0 to n images, (sqrt n - sum r / sqrt(sum r^2)) / (sqrt n - 1).

    0 where all are the same, 1 where one image has all of it, NaN where there is no response or one image alone. (Hoyer,
    "Non-negative matrix factorization with sparseness constraints", JMLR 2004, equation of section 3.1.)
    """
    root = images**0.5
    found = (root - total / energy.sqrt()) / (root - 1) if images > 1 else torch.full_like(total, torch.nan)
    return found


def seen(statistic: Statistic) -> None:
    """Raises UsageError where a statistic has seen nothing."""
    if not statistic.begun:
        raise UsageError("no value: nothing was seen")
