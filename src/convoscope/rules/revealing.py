"""DeepLIFT's reveal-cancel rules: what raises a value and what lowers it are handed back apart (Shrikumar et al. 2017, 3.5.3).

Rows are images x, references x0, and points p between them: p - x0 is the difference's positive part, x - p its negative part.
With M+ and M- their multipliers, the difference is M- x + (M+ - M-) p - M+ x0, so the gradient of the rows of x is M- and that
of the rows of p is M+ - M-. Sums and rearrangements therefore need no rule.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from convoscope.core.operators import Call
from convoscope.rules.composites import Composite, Entry
from convoscope.rules.differences import (
    AFFINE,
    DEFINED,
    LINEAR,
    PARTLY_DEFINED,
    PRODUCTS,
    WINNERS,
    Affine,
    Bilinear,
    Difference,
    Expanded,
    Function,
    Multipliers,
    Rescale,
    Share,
    Winner,
    check_rows,
    refuse,
)
from convoscope.rules.expansions import EXPANSIONS, first_half
from convoscope.rules.rules import Rule


def _thirds(t: Tensor) -> tuple[Tensor, ...]:
    return t.split(len(t) // 3)


def _apart(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The multipliers of the positive and the negative part."""
    lowering, _, rest = _thirds(gradient)
    return lowering + rest, lowering


def _between(value: Tensor, positive: Tensor) -> Tensor:
    """The value with the third group of rows at the reference plus its difference's positive part."""
    with torch.no_grad():
        _, start, middle = _thirds(value)
        shift = torch.cat([torch.zeros_like(value[: 2 * len(start)]), start + positive - middle])
    return value + shift


class Total(Rule):
    """A rule for differences as a whole: a rising value receives the multiplier of positive parts, a falling one the other."""

    of: Annotated[Difference, "the rule"]
    several = True

    def __call__(self, call: Call) -> Any:
        def redirect(share: Share) -> Tensor:
            value = call.redirect_each(lambda call, value, gradient: _pulled(share, call, value, gradient))
            end, start, _ = _thirds(value.detach())
            return _between(value, (end - start).clamp(min=0))

        return self.of.applied(call, redirect, 3)


def _pulled(share: Share, call: Call, value: Tensor, gradient: Tensor) -> Multipliers:
    (end, start, _), (raising, lowering) = _thirds(value), _apart(gradient)
    both = torch.where(end > start, raising, torch.where(end < start, lowering, (raising + lowering) / 2))
    call.signals = [s[: len(s) // 3 * 2] for s in call.signals]
    call.x = call.signals[0]
    found = share(call, value[: 2 * len(end)], first_half(both))
    return [None if m is None else torch.cat([m, torch.zeros_like(m[: len(m) // 2])]) for m in found]


class Split(Rule):
    """Contributions of a linear operator by their sign: those that raise its value receive M+, the others M-."""

    several = True

    def __call__(self, call: Call) -> Tensor:
        if len(call.signals) > 1 or call.weight is None:
            return Total(Affine())(call)
        check_rows(call, 3)
        x, weight = call.x, call.weight
        value = call.redirect_each(self._pull)
        with torch.no_grad():
            step = _thirds(x)[0] - _thirds(x)[1]
            raising = call.linear(step.clamp(min=0), weight.clamp(min=0)) + call.linear(step.clamp(max=0), weight.clamp(max=0))
        return _between(value, raising)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Multipliers:
        assert call.weight is not None
        (end, start, _), parts = _thirds(call.x), torch.cat(_apart(gradient))
        twice = torch.cat([end, start])
        up_raised, up_lowered = call.pull(parts, call.weight.clamp(min=0), twice).chunk(2)
        down_raised, down_lowered = call.pull(parts, call.weight.clamp(max=0), twice).chunk(2)
        rising, falling = up_raised + down_lowered, down_raised + up_lowered
        found = torch.where(end > start, rising, torch.where(end < start, falling, (rising + falling) / 2))
        return [torch.cat([found, torch.zeros_like(twice)])]


class RevealCancel(Rule):
    """What positive and negative parts do to an elementwise function, each averaged over which of them comes first."""

    several = True

    def __call__(self, call: Call) -> Tensor:
        check_rows(call, 3)
        if len(call.signals) > 1:
            raise refuse(call, "it is no function of one signal")
        function, x = Function(call), call.x.detach().clone() if call.inplace else call.x.detach()
        value = call.redirect_each(lambda call, value, gradient: [_revealed(function, call.x, value, gradient)])
        return _between(value, _parts(function, x, value.detach())[0])


def _parts(function: Function, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positive and negative part of the value's difference; where the negative part of the input alone leads."""
    (x1, x0, p), (y1, y0, yp) = _thirds(x), _thirds(value)
    lowered = x0 + (x1 - p)
    with torch.no_grad():
        low = function(torch.cat([lowered] * 3))[: len(x0)]
    raising = ((yp - y0) + (y1 - low)) / 2
    return raising, (y1 - y0) - raising, lowered


def _revealed(function: Function, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    (x1, x0, p), (raising, lowering) = _thirds(x), _apart(gradient)
    up, down, lowered = _parts(function, x, value)
    with torch.enable_grad():
        leaf = torch.cat([x0, lowered, p]).requires_grad_()
        total = function(leaf).sum()
    at_start, at_lowered, at_raised = _thirds(torch.autograd.grad(total, leaf)[0].nan_to_num(0, 0, 0))
    raising = raising * _slope(up, p - x0, x0, (at_start + at_lowered) / 2)
    lowering = lowering * _slope(down, x1 - p, x0, (at_start + at_raised) / 2)
    return torch.cat([lowering, torch.zeros_like(x0), raising - lowering])


def _slope(rise: Tensor, step: Tensor, start: Tensor, derivative: Tensor) -> Tensor:
    near = step.abs() <= torch.finfo(step.dtype).eps ** 0.75 * (start.abs() + (start + step).abs())
    return torch.where(near, derivative, rise / step.masked_fill(near, 1))


REVEAL_CANCEL = Composite(
    (
        Entry(LINEAR, Split()),
        Entry(AFFINE, Total(Affine())),
        Entry(f"{PRODUCTS}|sub|rsub|neg", Total(Bilinear())),
        Entry(WINNERS, Total(Winner())),
        Entry("|".join(EXPANSIONS), Total(Expanded())),
        Entry(DEFINED, RevealCancel()),
        Entry(PARTLY_DEFINED, Total(Rescale())),  # a negative part alone may leave where they are defined
    ),
    unmatched="the network calls no operator whose value changes with the image",
)
