"""The same network with fewer operators, for the many forward passes that metrics ask for."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoscope.core.layout import arranged
from convoscope.core.operators import Call, operator_name, tensors_in

_name_of = cache(operator_name)
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_HARMLESS = {"dim", "ndim", "size", "shape", "numel", "dtype", "device", "layout", "is_cuda", "requires_grad"}


class Folded(nn.Module):
    """A network whose batch norms are folded into the convolutions before them; the user's module is not changed.

    What it gives is what the module gives up to rounding, which is tried on one row first. A pass that calls other operators
    than that one did is run again by the module as it is.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module = module
        self._plan: dict[int, _Pair] = {}
        if not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):  # which may read what is folded away
            self._plan = _planned(module, x[:1])
        if self._plan and not self._agrees(x[:1]):
            self._plan = {}

    def forward(self, x: Tensor) -> Any:
        if not self._plan:
            return self.module(x)
        kept = x.clone() if self._overwrites else x
        run = _Folding(self._plan)
        try:
            with run:
                out = self.module(x)
            if not run.pending:
                return out
        except _Differs:
            pass
        return self.module(kept)

    _overwrites = True

    @torch.no_grad()
    def _agrees(self, x: Tensor) -> bool:
        given = x.clone()
        expected = list(tensors_in(self.module(given)))
        self._overwrites = not torch.equal(given, x)
        found = list(tensors_in(self(x.clone())))
        if arranged(self, x).is_contiguous(memory_format=torch.channels_last):
            for pair in self._plan.values():
                if pair.weight.dim() == 4:
                    pair.weight = pair.weight.contiguous(memory_format=torch.channels_last)
        close = 1e-5 if x.dtype == torch.float32 else 1e-12
        return len(expected) == len(found) > 0 and all(
            a.shape == b.shape and bool((a - b).abs().max() <= close * a.abs().max().clamp(min=1e-6))
            for a, b in zip(expected, found, strict=True)
        )


class _Pair:
    """A convolution and the batch norm of its value, as one convolution."""

    def __init__(self, convolution: Call, norm: Call, both: Call) -> None:
        assert both.weight is not None and both.bias is not None
        self.original = (_identity(convolution.weight), _identity(convolution.bias))
        self.statistics = _statistics(norm.args, norm.kwargs)
        self.weight, self.bias = both.weight.detach(), both.bias.detach()


class _Differs(Exception):
    """A value that was to be folded is used in another way."""


def _statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the call of a batch norm from another, beside its input."""
    values = (*args[1:], *(v for k, v in sorted(kwargs.items()) if k != "input"))
    return tuple(_identity(v) for v in values)


def _identity(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return id(value), 0 if value.is_inference() else value._version


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("input")


@torch.no_grad()
def _planned(module: nn.Module, x: Tensor) -> "dict[int, _Pair]":
    """The pairs by the convolution's weight: those whose value only the batch norm reads, in a dtype that bears folding."""
    if x.dtype not in (torch.float32, torch.float64):
        return {}
    watch = _Watching()
    with watch:
        module(x.clone())
    found: dict[int, _Pair] = {}
    for weight, calls in watch.convolutions.items():
        pairs = [_pair(call, value, watch) for call, value in calls]
        if all(p is not None and p.statistics == pairs[0].statistics for p in pairs):  # type: ignore[union-attr]
            found[weight] = pairs[0]  # type: ignore[assignment]
    return found


def _pair(call: Call, value: Tensor, watch: "_Watching") -> _Pair | None:
    norms = watch.readers.get(id(value), [])
    if len(norms) != 1 or norms[0] is None:
        return None
    both = call.followed_by(norms[0])
    return None if both is None else _Pair(call, norms[0], both)


class _Watching(TorchFunctionMode):
    """Which convolutions are called, and who reads what they give: a batch norm's call, or None for anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: dict[int, list[tuple[Call, Tensor]]] = {}
        self.values: dict[int, Tensor] = {}
        self.readers: dict[int, list[Call | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name_of(func)
        call = Call(name, "", func, args, kwargs) if name in _CONVOLUTIONS | {"batch_norm"} else None
        for tensor in tensors_in(args, kwargs) if name not in _HARMLESS else ():
            if id(tensor) in self.values:
                normed = name == "batch_norm" and _input(args, kwargs) is tensor
                self.readers.setdefault(id(tensor), []).append(call if normed else None)
        out = func(*args, **kwargs)
        if name in _CONVOLUTIONS and call is not None and call.weight is not None:
            self.values[id(out)] = out  # held, so that no other tensor gets its number
            self.convolutions.setdefault(id(call.weight), []).append((call, out))
        return out


class _Folding(TorchFunctionMode):
    """Runs planned convolutions with what they are folded into, and hands their values past the batch norms."""

    def __init__(self, plan: "dict[int, _Pair]") -> None:
        super().__init__()
        self.plan = plan
        self.pending: dict[int, tuple[Tensor, _Pair]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name_of(func)
        if name in _HARMLESS:
            return func(*args, **kwargs)
        if name == "batch_norm" and id(_input(args, kwargs)) in self.pending:
            value, pair = self.pending.pop(id(_input(args, kwargs)))
            if _statistics(args, kwargs) != pair.statistics:
                raise _Differs
            return value
        if self.pending and any(id(t) in self.pending for t in tensors_in(args, kwargs)):
            raise _Differs
        if name not in _CONVOLUTIONS or len(args) < 2 or id(args[1]) not in self.plan:
            return func(*args, **kwargs)
        pair = self.plan[id(args[1])]
        if (_identity(args[1]), _identity(args[2] if len(args) > 2 else kwargs.get("bias"))) != pair.original:
            return func(*args, **kwargs)
        kwargs.pop("bias", None)
        value = func(args[0], pair.weight, pair.bias, *args[3:], **kwargs)
        self.pending[id(value)] = (value, pair)
        return value
