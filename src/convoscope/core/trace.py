"""Every address of a network in the order of one forward pass, with shape and receptive field."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import AddressError, did_you_mean
from convoscope.core.geometry import Field, Geometry
from convoscope.core.operators import tensors_in
from convoscope.core.record import Observer, record


@dataclass(frozen=True)
class Entry:
    """One address: the class of its module or the name of its operator, shape without the batch, field, own parameters."""

    address: str
    operator: str
    shape: tuple[int, ...]
    field: Field | None
    parameters: int
    step: int


@dataclass
class Trace(Observer):
    """What one forward pass ran. `operators` lists the names of the calls that the signal went through."""

    geometry: Geometry
    entries: list[Entry] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.geometry.observe(name, args, kwargs, output)
        if any(t in self.geometry.reaches for t in tensors_in(output)):
            self.operators.append(name)

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        own = 0 if module is None else sum(p.numel() for p in module.parameters())
        shape = tuple(output.shape[1:])
        self.entries.append(Entry(address, operator, shape, self.geometry.field(output), own, len(self.operators)))

    def last_spatial(self) -> str | None:
        """The outermost address of the last tensor with rows and columns; None where there is none."""
        spatial = [e for e in self.entries if len(e.shape) == 3 and e.shape[1] * e.shape[2] > 1 and _is_map(e)]
        if not spatial:
            return None
        return min((e for e in spatial if e.step == spatial[-1].step), key=lambda e: len(e.address)).address

    def field_of(self, address: str) -> Field | None:
        """What a unit of the tensor at an address sees; None where that is not known."""
        return next((e.field for e in self.entries if e.address == address), None)

    def tail(self, address: str) -> list[str]:
        """Names of the operators that ran after an address, in order. Raises AddressError where nothing has that name."""
        ends = {"input": 0, "output": len(self.operators)}
        step = next((e.step for e in self.entries if e.address == address), ends.get(address.split(".")[0]))
        if step is None:
            hint = did_you_mean(address, [e.address for e in self.entries])
            raise AddressError(f"layer {address!r} does not exist{hint} (net.layers() lists them all)")
        return self.operators[step:]


def _is_map(entry: Entry) -> bool:
    """Whether the last two axes are rows and columns of units, not positions and channels (as where channels come last)."""
    field = entry.field
    return field is not None and field.grid == entry.shape[1:] and not (field.whole and min(entry.shape[1:]) == 1)


def trace(module: nn.Module, x: Tensor, head: Callable[[Any], Tensor] | None = None) -> Trace:
    """Runs one forward pass of `x` `(1, C, H, W)` and returns what it ran."""
    with torch.no_grad():
        x = x.clone()  # the network may overwrite its input
        found = Trace(Geometry(x))
        record(module, x, observer=found, head=head)
    return found
