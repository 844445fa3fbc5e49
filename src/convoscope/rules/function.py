"""An operator call as a function of the tensors that carry the signal."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from convoscope.core.operators import Call

_HOLE = object()


class Function:
    """A call as a function of its signals; or another operator with the same other arguments."""

    def __init__(self, call: Call, func: Callable[..., Any] | None = None) -> None:
        self.func, self.clone = func or call.func, call.inplace and func is None
        self.args, self.kwargs = _pierced(call.args), _pierced(call.kwargs)

    def __call__(self, *signals: Tensor) -> Any:
        rest = iter([s.clone() for s in signals] if self.clone else signals)
        return self.func(*_filled(self.args, rest), **_filled(self.kwargs, rest))


def _pierced(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _HOLE if value.requires_grad else value
    if type(value) is dict:
        return {k: _pierced(v) for k, v in value.items()}
    return type(value)(_pierced(v) for v in value) if type(value) in (tuple, list) else value


def _filled(value: Any, signals: Iterator[Tensor]) -> Any:
    if value is _HOLE:
        return next(signals)
    if type(value) is dict:
        return {k: _filled(v, signals) for k, v in value.items()}
    return type(value)(_filled(v, signals) for v in value) if type(value) in (tuple, list) else value
