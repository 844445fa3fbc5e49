"""A data set, a network whose arithmetic is exact, and statistics of every sort, which other processes can import."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

import convoscope as cs
from convoscope.core.statistic import CONCATENATE, MAXIMUM, SUM, Samples, Statistic

LAYERS = ["input", "first", "part.last", "head"]


class Drawn:
    """Pictures of multiples of 1/64, made when asked for. `broken` cannot be read, `sizes` are used in turn."""

    name = "drawn"
    classes = ("a", "b", "c")
    concepts = ()

    def __init__(self, count: int = 50, broken: tuple[int, ...] = (), sizes: tuple[int, ...] = (12,), log: Path | None = None):
        self.count, self.broken, self.sizes, self.log, self.changed = count, broken, sizes, log, -1

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"picture {i}" + (" changed" if i == self.changed else "")

    def picture(self, i: int) -> Tensor:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{self.noted(i)}\n")
        if i in self.broken:
            raise cs.ImageError(f"picture {i} is damaged")
        size = self.sizes[i % len(self.sizes)]
        seed = i + 1000 * (i == self.changed)
        return torch.randint(0, 65, (3, size, size), generator=torch.Generator().manual_seed(seed)) / 64

    def noted(self, i: int) -> int:
        """What the log is told."""
        return i

    def class_of(self, i: int) -> int:
        return i % 3

    def segments(self, i: int) -> Tensor:
        return torch.zeros(0, 12, 12, dtype=torch.int32)


class Deadly(Drawn):
    """Notes which process reads it, and kills the first one that reads picture 13."""

    def picture(self, i: int) -> Tensor:
        found, mark = super().picture(i), self.log.with_suffix(".killed")
        if i == 13 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def noted(self, i: int) -> int:
        return os.getpid()


class Net(nn.Module):
    """Weights of small integers: sums in double precision are exact, so that batches of any size agree to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=2)
        self.part = nn.Sequential()
        self.part.last = nn.Conv2d(5, 4, 2)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)
        draw = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randint(-3, 4, p.shape, generator=draw).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.part.last(self.first(x).relu()).relu_()
        return self.head(x.amax((2, 3)))


def network(size: int | None = 12, **settings: Any) -> cs.Network:
    return cs.Network(Net(), size, 0.5, 0.25, **settings)


@dataclass(kw_only=True, eq=False)
class Counts(Statistic):
    """Histogram, largest value and number of each class, of channels."""

    bins: int = 8
    state = {"histogram": SUM, "largest": MAXIMUM, "classes": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        assert samples is not None
        assert not batch.requires_grad
        rows = batch.transpose(0, 1).flatten(1)
        found = torch.stack([torch.histc(r, self.bins, -64, 64) for r in rows]).long()
        classes = torch.bincount(samples.classes, minlength=3)
        if self.begun:
            self.histogram, self.classes = self.histogram + found, self.classes + classes
            self.largest = torch.maximum(self.largest, rows.amax(1))
        else:
            self.histogram, self.classes, self.largest = found, classes, rows.amax(1)

    def value(self) -> dict[str, Tensor]:
        return self.state_dict()


@dataclass(kw_only=True, eq=False)
class Top(Statistic):
    """The k largest values of each channel and where they are: the first image and position where values are equal."""

    k: int = 4
    state = {"values": SUM, "places": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        assert samples is not None
        assert samples.total >= int(samples.index.max()) + 1
        maps = batch.flatten(2) if batch.dim() == 4 else batch[:, :, None]
        positions = torch.arange(maps.shape[2])
        places = (samples.index[:, None] * 10_000 + positions).flatten()
        values = maps.transpose(0, 1).flatten(1)
        few = max(0, self.k - values.shape[1])
        self._keep(pad(values, (0, few), value=-torch.inf), pad(places, (0, few), value=1 << 60).expand(len(values), -1))

    def _keep(self, values: Tensor, places: Tensor) -> None:
        if self.begun:
            values, places = torch.cat([self.values, values], 1), torch.cat([self.places, places], 1)
        order = places.argsort(1)
        order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, : self.k]
        self.values, self.places = values.gather(1, order), places.gather(1, order)

    def merge(self, other: Self) -> Self:
        if self.accepts(other):
            self._keep(other.values, other.places)
        return self

    def value(self) -> tuple[Tensor, Tensor]:
        return self.values, self.places


@dataclass(kw_only=True, eq=False)
class Loud(Statistic):
    """The largest value of all, and in the shards every row above what is known of it so far."""

    state = {"most": MAXIMUM, "rows": CONCATENATE, "where": CONCATENATE}
    spilled = ("rows", "where")
    known: float = field(default=float("-inf"), init=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def hint(self, earlier: Self) -> None:
        self.known = float(earlier.most)

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        assert samples is not None
        best = batch.flatten(1).amax(1)
        rows, where = best[best >= self.known], samples.index[best >= self.known]
        most = best.max().clamp(min=self.known)
        if self.begun:
            rows, where, most = torch.cat([self.rows, rows]), torch.cat([self.where, where]), torch.maximum(self.most, most)
        self.rows, self.where, self.most = rows, where, most

    def value(self) -> float:
        return float(self.most)


@dataclass(kw_only=True, eq=False)
class Refuses(Counts):
    """Does not take image 9."""

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        assert samples is not None
        if 9 in samples.index:
            raise cs.UsageError("refused at image 9")
        super().update(batch, samples)


def all_of() -> list[Statistic]:
    return [Counts(), Top(), Loud()]


def states(sweep: Any) -> dict[tuple[str, str, str], Tensor]:
    """Every tensor that was merged."""
    found = {}
    for layer in sweep.layers:
        for name, statistic in sweep[layer].items():
            found |= {(layer, name, k): t for k, t in statistic.state_dict().items() if k not in statistic.spilled}
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two sweeps agree bit for bit."""
    one, other = states(a), states(b)
    return one.keys() == other.keys() and a.failed == b.failed and all(torch.equal(t, other[k]) for k, t in one.items())
