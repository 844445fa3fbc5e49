"""Rules for operators of several signals: products, attention, sums."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from convoscope.core.errors import UnsupportedError
from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast
from convoscope.rules.function import Function
from convoscope.rules.rules import STABILIZER, Rule


class Product(Rule):
    """The epsilon rule for matrix products; where both factors carry the signal, each receives half (Achtibat et al. 2024)."""

    several = True
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        if len(call.signals) > 2 or (len(call.signals) == 2 and call.name in ("addmm", "baddbmm")):
            raise UnsupportedError(f"{call.name!r} at {call.address!r} combines signals; no rule shares its value among them")
        function = Function(call)

        def pull(call: Call, value: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            half = _stabilized(gradient, value, self.epsilon) / len(call.signals)
            return _pulled(function, call.signals, half, range(len(call.signals)))

        return call.redirect_each(pull)


class Attention(Rule):
    """Attention with its weights held constant: the values receive all relevance (Ali et al. 2022)."""

    several = True
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Any:
        source, rest = call.args[2] if len(call.args) > 2 else call.kwargs["value"], []
        place = [i for i, s in enumerate(call.signals) if s is source]
        if not place:
            return call.value()
        func, function = call.func, Function(call)

        def single(*args: Any, **kwargs: Any) -> Tensor:
            found = func(*args, **kwargs)
            if isinstance(found, Tensor):
                return found
            rest[:] = found[1:]
            return found[0]

        def pull(call: Call, value: Tensor, gradient: Tensor) -> list[Tensor | None]:
            gradient = _stabilized(gradient, value, self.epsilon)
            (found,) = _pulled(function, call.signals, gradient, place[-1:])
            return [found if i == place[-1] else None for i in range(len(call.signals))]

        call.func = function.func = single  # the operator of nn.MultiheadAttention also returns its weights
        output = call.redirect_each(pull)
        return (output, *rest) if rest else output


class PositiveSum(Rule):
    """A sum whose terms share relevance in proportion to their positive parts (the z+ rule of Montavon et al. 2017)."""

    several = True
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Any:
        same = [s for s in call.signals if s.shape == call.signals[0].shape]
        if len(call.signals) != 2 or len(same) != 2 or call.kwargs.get("alpha", 1) != 1:
            return call.native()
        return call.redirect_each(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> list[Tensor]:
        total = sum(s.clamp(min=0) for s in call.signals)
        assert isinstance(total, Tensor)
        share = gradient * value / (total + step_from_zero(total, self.epsilon))
        return [torch.where(s > 0, share, 0) for s in call.signals]


def _pulled(function: Function, signals: list[Tensor], gradient: Tensor, to: Sequence[int]) -> tuple[Tensor, ...]:
    """The gradients of some of the signals, the others held constant."""
    with torch.enable_grad():
        leaves = [s.detach().requires_grad_(i in to) for i, s in enumerate(signals)]
        return torch.autograd.grad(function(*leaves), [leaves[i] for i in to], gradient)


def _stabilized(gradient: Tensor, value: Tensor, epsilon: float) -> Tensor:
    size = value.abs()
    return gradient * (size / (size + step_from_zero(value, epsilon)))
