"""What black and white become on their way to the first layer, for the rules there."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from convoscope.core.errors import UnsupportedError
from convoscope.core.operators import ACTIVATIONS, LINEAR, PRODUCTS, PROPORTIONAL, Call
from convoscope.rules.composites import Composite
from convoscope.rules.pixels import Keep, PixelRule, ZBox
from convoscope.rules.rules import Rule

_KEPT = ACTIVATIONS | {"add", "sub", "rsub", "mul", "div", "batch_norm"}


class Bounded:
    """A composite whose rules for the first layer are told what black and white are there.

    The two colors are carried through everything that comes before the first linear operators: reshaping, padding, the
    network's own normalization. On that way every pixel keeps its relevance.
    """

    def __init__(self, composite: Composite, low: Tensor, high: Tensor) -> None:
        self.composite, self.colors = composite, (low, high)
        self.strict, self.unmatched = composite.strict, composite.unmatched
        self._known = WeakTensorKeyDictionary()

    def rule_for(self, name: str, address: str, first: bool = False) -> Any:
        rule = self.composite.rule_for(name, address, first)
        linear = name in LINEAR or name in PRODUCTS
        if not first or (linear and not isinstance(rule, PixelRule)):
            return rule
        if rule is None and name not in PROPORTIONAL and name not in _KEPT:
            return None
        return _Told(self, rule, linear)

    def at(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Black and white at a tensor, of its shape."""
        if tensor in self._known:
            return self._known[tensor]
        try:
            low, high = (c.to(tensor).expand(tensor.shape) for c in self.colors)
        except RuntimeError as error:
            raise UnsupportedError(f"what black and white are cannot be followed to a tensor {tuple(tensor.shape)}") from error
        return low, high

    def carry(self, call: Call, rule: Rule | None) -> Any:
        """Runs an operator before the first linear ones, on the image and on both colors."""
        signals, first, inplace = call.signals, call.args[0] if call.args else None, call.inplace
        ends = [self._run(call, signals, end) for end in (0, 1)]
        if call.name in _KEPT and len(signals) == 1 and ends[0].shape == signals[0].shape:
            rule = Keep()
        if isinstance(rule, PixelRule):
            output: Any = rule.within(call, *(c[:1] for c in self.at(call.x)))
        else:
            output = call.native() if rule is None else rule(call)
        output = first if output is None else output  # x[...] = y
        outputs, pairs = (output, zip(*ends, strict=True)) if isinstance(output, tuple | list) else ([output], [tuple(ends)])
        for tensor, pair in zip(outputs, pairs, strict=True):
            if isinstance(tensor, Tensor):
                self._known[first if inplace else tensor] = pair
        return output

    @torch.no_grad()
    def _run(self, call: Call, signals: list[Tensor], end: int) -> Any:
        def swapped(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.at(value)[end].clone() if any(value is s for s in signals) else value
            if isinstance(value, tuple | list):
                return type(value)(swapped(v) for v in value)
            return value

        args = tuple(swapped(a) for a in call.args)
        output = call.func(*args, **{k: swapped(v) for k, v in call.kwargs.items()})
        return args[0] if output is None else output


class _Told:
    several = True

    def __init__(self, bounds: Bounded, rule: Any, linear: bool) -> None:
        self.bounds, self.rule, self.linear = bounds, rule, linear

    def __call__(self, call: Call) -> Any:
        if not self.linear:
            if len(call.signals) > 1 and call.name not in PROPORTIONAL:
                raise UnsupportedError(f"{call.name!r} at {call.address!r} combines two signals before the first layer")
            return self.bounds.carry(call, self.rule)
        if isinstance(self.rule, ZBox) and self.rule.low is not None and self.rule.high is not None:
            return self.rule(call)
        low, high = self.bounds.at(call.x)
        return self.rule.within(call, low[:1], high[:1])
