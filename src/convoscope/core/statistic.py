"""What is measured over a data set: update with a batch, merge with another, ask for the value."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from convoscope.core.errors import UsageError

Merge = Callable[[Tensor, Tensor], Tensor]
SUM: Merge = torch.add
MINIMUM: Merge = torch.minimum
MAXIMUM: Merge = torch.maximum


def CONCATENATE(a: Tensor, b: Tensor) -> Tensor:
    """Merge of rows that are all kept."""
    return torch.cat([a, b])


class Statistic:
    """Base of all statistics. `state` names the tensors kept and how each merges; merging any split equals one pass.

    A subclass sets the named tensors in `__init__`, adds to them in `update` and reads them in `value`. Sums of floats are
    equal up to rounding, all else bit for bit.
    """

    state: ClassVar[dict[str, Merge]] = {}

    def update(self, batch: Tensor) -> None:
        """Take in one batch, rows first."""
        raise NotImplementedError

    def value(self) -> Any:
        """The result over everything taken in so far."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Take in everything the other has taken in; returns self."""
        if type(other) is not type(self):
            raise UsageError(f"a {type(self).__name__} cannot merge a {type(other).__name__}")
        for name, theirs in other.state_dict().items():
            _check_fit(self, name, theirs)
        for name, how in self.state.items():
            mine = getattr(self, name)
            setattr(self, name, how(mine, getattr(other, name).to(mine.device)))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the tensors kept, by name: all that has to be stored or sent."""
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """Continue from stored tensors; returns self. Raises UsageError for other names, types or shapes."""
        if set(state) != set(self.state):
            raise UsageError(f"{type(self).__name__} keeps {sorted(self.state)}; got {sorted(state)}")
        for name, tensor in state.items():
            _check_fit(self, name, tensor)
        for name, tensor in state.items():
            setattr(self, name, tensor.to(getattr(self, name).device, copy=True))
        return self


def _check_fit(statistic: Statistic, name: str, theirs: Tensor) -> None:
    mine = getattr(statistic, name)
    rows = 1 if statistic.state[name] is CONCATENATE else 0  # those may differ in number
    if mine.dtype != theirs.dtype or mine.dim() != theirs.dim() or mine.shape[rows:] != theirs.shape[rows:]:
        raise UsageError(
            f"{type(statistic).__name__}: {name} is {mine.dtype} of shape {tuple(mine.shape)} here and "
            f"{theirs.dtype} of shape {tuple(theirs.shape)} there; only statistics of the same settings merge"
        )


class ChannelMoments(Statistic):
    """Mean and standard deviation of each channel over rows and positions of `(B, C, ...)`, in float64.

    Sums of first and second powers are kept: a deviation under a millionth of the mean is lost in rounding.
    """

    state = {"count": SUM, "total": SUM, "square": SUM}

    def __init__(self, channels: int) -> None:
        self.count = torch.zeros((), dtype=torch.int64)
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.square = torch.zeros(channels, dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        if batch.dim() < 2 or batch.shape[1] != len(self.total):
            raise UsageError(f"expected a batch of {len(self.total)} channels (B, C, ...); got shape {tuple(batch.shape)}")
        rows = batch.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)
        self.count = self.count + rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.square = self.square + rows.square().sum(1)

    def value(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, `(C,)` each; nan before the first value."""
        mean = self.total / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=0).sqrt()
