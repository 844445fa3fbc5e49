"""A uniform sample of a layer's activations that is the same for any sharding of the data."""

from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.statistic import CONCATENATE, SUM, Samples, Statistic

GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, the odd number next to 2^64 / golden ratio, as a signed number
MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))  # splitmix64: 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
KEPT = ("hash", "image", "row", "column", "category", "values")


def mixed(numbers: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

    A bijection of 64-bit numbers after which every bit depends on every bit. Products wrap around, shifts are unsigned:
    the same numbers on every device.
    """
    z = numbers
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def hashes(image: Tensor, row: Tensor, column: Tensor, seed: int) -> Int64[Tensor, "..."]:
    """A number for each (image, row, column), uniform over all 64-bit numbers; shapes broadcast.

    Each part in turn is added to the state as a multiple of an odd constant, and mixed: `h = mix(h + (part + 1) g)`.
    """
    state = mixed(torch.tensor((seed + (1 << 63)) % (1 << 64) - (1 << 63), device=image.device) + GAMMA)
    for part in (image, row, column):
        state = mixed(state + (part + 1) * GAMMA)
    return state


@dataclass(frozen=True)
class Sample:
    """Sampled activations, in random order: the first m of them are a sample of m.

    `image` is the place in the data set and `category` its class (-1: none); `row` and `column` are those of the unit, -1 where
    the layer has none.
    """

    values: Float[Tensor, "samples channels"]
    image: Int64[Tensor, " samples"]
    row: Int64[Tensor, " samples"]
    column: Int64[Tensor, " samples"]
    category: Int64[Tensor, " samples"]
    seen: int

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: Any) -> "Sample":
        parts = (getattr(self, name)[which] for name in ("values", "image", "row", "column", "category"))
        return Sample(*parts, seen=self.seen)


class _Kept:
    """One of the tensors of a reservoir, put in order when it is read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, reservoir: Any, owner: type) -> Any:
        if reservoir is None:
            return self
        reservoir._settle()
        return reservoir._found[self.name]

    def __set__(self, reservoir: Any, tensor: Tensor) -> None:
        reservoir.__dict__.setdefault("_found", {})[self.name] = tensor


@dataclass(kw_only=True, eq=False)
class Reservoir(Statistic):
    """A sample of `count` activations, each the vector over channels at one position of one image.

    The positions with the smallest hashes of (image, row, column, seed) are kept, so every position is as likely as any
    other and any split of the data gives the same sample, bit for bit. `per_image` lets only so many positions of each image
    compete (the atlas of Carter et al. 2019 takes one of each); 0 is all.
    """

    count: Annotated[int, "how many activations to keep"] = 10_000
    per_image: Annotated[int, "positions of one image that may be kept at most; 0 is all"] = 0
    seed: Annotated[int, "another seed, another sample"] = 0

    state = {**dict.fromkeys(KEPT, CONCATENATE), "seen": SUM}
    hash, image, row, column, category, values = (_Kept() for _ in KEPT)

    def __post_init__(self) -> None:
        self._waiting: list[dict[str, Tensor]] = []
        if self.count < 1 or self.per_image < 0:
            raise UsageError(f"a reservoir keeps 1 or more, 0 (all) or more of each image; got {self.count}, {self.per_image}")

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        if samples is None:
            raise UsageError("a reservoir has to know which images the rows are; update(batch, samples)")
        if batch.dim() not in (2, 4):
            raise UsageError(f"expected activations (B, C) or (B, C, h, w); got shape {tuple(batch.shape)}")
        if self.begun and batch.shape[1] != self._found["values"].shape[1]:
            raise UsageError(f"expected {self._found['values'].shape[1]} channels; got shape {tuple(batch.shape)}")
        if not len(batch):
            return
        found = self._candidates(batch.detach(), samples)
        if not self.begun:
            self._found = {name: tensor[:0] for name, tensor in found.items()}
            self.seen = torch.tensor(0)
        self.seen = self.seen + batch.numel() // batch.shape[1]
        self._waiting.append(found)
        if sum(len(waiting["hash"]) for waiting in self._waiting) > self.count // 2:
            self._settle()

    @property
    def begun(self) -> bool:
        """Whether it has seen anything; asked for every batch, so without putting in order what waits."""
        return hasattr(self, "seen")

    def _settle(self) -> None:
        """Put what waits in order, and let go what is too much."""
        if self._waiting:
            parts, self._waiting = [self._found, *self._waiting], []
            self._keep({name: torch.cat([part[name] for part in parts]) for name in KEPT})

    def _candidates(self, batch: Tensor, samples: Samples) -> dict[str, Tensor]:
        """What of a batch may be kept, on the CPU: only that is copied from the device."""
        height, width = batch.shape[2:] if batch.dim() == 4 else (1, 1)
        device = batch.device
        row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        image = samples.index.to(device)
        key = hashes(image[:, None, None], row, column, self.seed).flatten(1)
        places = key.flatten()
        chosen = torch.arange(len(places), device=device).view(key.shape)
        if 0 < self.per_image < key.shape[1]:
            best = key.topk(self.per_image, 1, largest=False).indices
            chosen = best + key.shape[1] * torch.arange(len(best), device=device)[:, None]
        chosen = chosen.flatten()
        if self.begun and len(self._found["hash"]) == self.count:  # what is beyond the new one goes later
            chosen = chosen[places[chosen] <= self._found["hash"][-1].to(device)]
        elif len(chosen) > self.count:
            chosen = chosen[places[chosen] <= places[chosen].kthvalue(self.count).values]
        rows, unit = chosen // key.shape[1], chosen % key.shape[1]
        found = {"hash": places[chosen], "image": image[rows], "row": unit // width, "column": unit % width}
        if batch.dim() == 2:
            found |= {name: torch.full_like(unit, -1) for name in ("row", "column")}
        found["category"] = samples.classes.to(device)[rows]
        found["values"] = batch[rows, :, unit // width, unit % width] if batch.dim() == 4 else batch[rows]
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _keep(self, found: dict[str, Tensor]) -> None:
        """The smallest hashes, in order; between equal ones the place decides, so that the order of arrival never does."""
        order = torch.arange(len(found["hash"]))
        for name in ("column", "row", "image", "hash"):
            order = order[found[name][order].argsort(stable=True)]
        self._found = {name: found[name][order[: self.count]] for name in KEPT}

    def merge(self, other: Self) -> Self:
        if self.accepts(other):
            self._keep({name: torch.cat([getattr(self, name), getattr(other, name)]) for name in KEPT})
            self.seen = self.seen + other.seen
        return self

    def value(self) -> Sample:
        """The sample. Raises UsageError before the first batch."""
        if not self.begun:
            raise UsageError("no value: nothing was seen")
        return Sample(self.values, self.image, self.row, self.column, self.category, int(self.seen))
