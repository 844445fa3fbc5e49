"""What is measured over a data set: update with a batch, merge with another, ask for the value."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UsageError

Merge = Callable[[Tensor, Tensor], Tensor]
SUM: Merge = torch.add
MINIMUM: Merge = torch.minimum
MAXIMUM: Merge = torch.maximum


def CONCATENATE(a: Tensor, b: Tensor) -> Tensor:
    """Merge of rows that are all kept."""
    return torch.cat([a, b])


@dataclass(frozen=True)
class Samples:
    """What the rows of a batch are: their places in the data set of `total` images, their inputs and classes (-1: none)."""

    index: Int[Tensor, " rows"]
    inputs: Float[Tensor, "rows channels height width"]
    classes: Int[Tensor, " rows"]
    total: int


class Statistic:
    """Base of all statistics. `state` names the tensors kept and how each merges; merging any split equals one pass.

    A subclass is a dataclass of its settings. It makes the named tensors at its first `update`, when it has seen how many
    channels there are, adds to them, and reads them in `value`; one that has seen nothing merges as if it were not there.
    Tensors that merge only together (the largest values and where they were) have a `merge` of their own. Sums of floats
    are equal up to rounding, all else bit for bit. What `spilled` names is too much to merge: it stays in the shards of a
    sweep, to be read one shard at a time.
    """

    state: ClassVar[dict[str, Merge]] = {}
    spilled: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def label(cls) -> str:
        """Its registered name: `top-patches`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name, as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    @property
    def begun(self) -> bool:
        """Whether it has seen anything."""
        return all(hasattr(self, name) for name in self.state)

    def fresh(self) -> Self:
        """Another of the same settings that has seen nothing."""
        return replace(self) if is_dataclass(self) else type(self)()

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        """Take in one batch, rows first, on any device."""
        raise NotImplementedError

    def hint(self, earlier: Self) -> None:
        """What another shard has found, before the first update: it may save work, and must not change the value."""

    def brief(self) -> Self:
        """As much of it as `hint` needs, to be sent to other processes."""
        return self

    def lacks(self, part: Self) -> bool:
        """Whether this value needs what `part`, merged into it, left out for a hint of others that are gone or have changed.

        `part` may be the whole itself, which stands for all of its parts.
        """
        return False

    def value(self) -> Any:
        """The result over everything taken in so far."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Take in everything the other has taken in; returns self."""
        if self.accepts(other):
            for name, how in self.state.items():
                if name not in self.spilled:
                    setattr(self, name, how(getattr(self, name), getattr(other, name).to(getattr(self, name).device)))
        return self

    def accepts(self, other: Self) -> bool:
        """Whether there is anything to merge on both sides; takes the other's state over if there is none on this one.

        Raises UsageError where the two do not fit.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            raise UsageError(f"a {_text(self)} cannot merge a {_text(other)}")
        if not other.begun:
            return False
        if not self.begun:
            self.load_state_dict(other.state_dict())
            return False
        for name in self.state:
            _check_fit(self, name, getattr(other, name))
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the tensors kept, by name: all that has to be stored or sent; empty before the first batch."""
        return {name: getattr(self, name).clone() for name in self.state} if self.begun else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Continue from stored tensors; returns self. Raises UsageError for other names, types or shapes."""
        if set(state) not in (set(), set(self.state)):
            raise UsageError(f"{type(self).__name__} keeps {sorted(self.state)}; got {sorted(state)}")
        for name, tensor in state.items() if self.begun else ():
            _check_fit(self, name, tensor)
        for name, tensor in state.items():
            setattr(self, name, tensor.clone())
        return self


def _text(statistic: Statistic) -> str:
    return f"{type(statistic).__name__}({', '.join(f'{k}={v!r}' for k, v in statistic.settings.items())})"


def _check_fit(statistic: Statistic, name: str, theirs: Tensor) -> None:
    mine = getattr(statistic, name)
    rows = 1 if statistic.state[name] is CONCATENATE else 0  # those may differ in number
    if mine.dtype != theirs.dtype or mine.dim() != theirs.dim() or mine.shape[rows:] != theirs.shape[rows:]:
        raise UsageError(
            f"{type(statistic).__name__}: {name} is {mine.dtype} of shape {tuple(mine.shape)} here and "
            f"{theirs.dtype} of shape {tuple(theirs.shape)} there; only statistics of the same settings merge"
        )


@dataclass(kw_only=True, eq=False)
class ChannelMoments(Statistic):
    """Mean and standard deviation of each channel over rows and positions of `(B, C, ...)`, in float64.

    Sums of first and second powers are kept: a deviation under a millionth of the mean is lost in rounding.
    """

    state = {"count": SUM, "total": SUM, "square": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        if batch.dim() < 2 or (self.begun and batch.shape[1] != len(self.total)):
            expected = len(self.total) if self.begun else "C"
            raise UsageError(f"expected a batch of channels (B, {expected}, ...); got shape {tuple(batch.shape)}")
        rows = batch.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        found = torch.tensor(rows.shape[1], device="cpu"), rows.sum(1), rows.square().sum(1)
        before = (self.count, self.total, self.square) if self.begun else (0, 0, 0)
        self.count, self.total, self.square = (a + b for a, b in zip(found, before, strict=True))

    def value(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, `(C,)` each. Raises UsageError before the first batch."""
        if not self.begun:
            raise UsageError("no value: nothing was seen")
        mean = self.total / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=0).sqrt()
