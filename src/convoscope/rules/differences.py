"""DeepLIFT's rules: what an operator hands back of the difference between an image and its reference.

Rows are images, then their references (`Probe.contrast`). The gradient of the image rows holds the multipliers of Shrikumar
et al. 2017: each operator's sum to the difference of its value, whatever the network does in between.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError
from convoscope.core.operators import ACTIVATIONS, Call
from convoscope.rules.composites import Composite, Entry
from convoscope.rules.expansions import EXPANSIONS, first_half, halves, midpoint, of_images, secant
from convoscope.rules.function import Function
from convoscope.rules.rules import Rule

Multipliers = Sequence[Tensor | None]
Share = Callable[[Call, Tensor, Tensor], Multipliers]


class Difference(Rule, abstract=True):
    """Base of the rules for differences."""

    several = True

    def __call__(self, call: Call) -> Any:
        return self.applied(call, call.redirect_each, 2)

    def applied(self, call: Call, redirect: Callable[[Share], Tensor], groups: int) -> Any:
        """The value of a call whose rows are `groups` of as many rows as there are images."""
        check_rows(call, groups)
        share = self.share(call)
        if share is None and groups == 2:
            return call.native()
        function = Function(call)
        return redirect(share or (lambda call, value, gradient: midpoint(function, call.signals, gradient)))

    def share(self, call: Call) -> Share | None:
        """What hands back the gradient of each signal, of images and references; None for the ordinary gradient."""
        raise NotImplementedError


def refuse(call: Call, why: str) -> UnsupportedError:
    """The error for a call that differences cannot pass."""
    return UnsupportedError(
        f"no difference from a reference passes {call.name!r} at {call.address!r}: {why}; integrated-gradients has no rules"
    )


def check_rows(call: Call, groups: int) -> None:
    """Raises UnsupportedError unless the rows of all signals can be images and as many references."""
    if any(s.dim() == 0 or len(s) % groups for s in call.signals):
        raise refuse(call, "its rows are not those of the images")


class Affine(Difference):
    """Weights are the multipliers of linear operators and of batch norms (Shrikumar et al. 2017, section 3.5.1)."""

    def applied(self, call: Call, redirect: Callable[[Share], Tensor], groups: int) -> Any:
        if groups > 2 or call.weight is None or len(call.signals) > 1:
            return super().applied(call, redirect, groups)
        check_rows(call, groups)
        return call.turn(lambda gradient: _through_weights(call, gradient))

    def share(self, call: Call) -> Any:
        if call.name == "batch_norm":
            names = ("input", "running_mean", "running_var", "weight", "bias", "training")
            if {**dict(zip(names, call.args, strict=False)), **call.kwargs}.get("training"):
                raise refuse(call, "it normalizes over the batch")
            return None
        if len(call.signals) > 1 and call.weight is not None:
            return Bilinear().share(call)
        if call.weight is None:
            if len(call.signals) > 1:
                raise refuse(call, "it is not linear in two signals")
            return None
        # The references' rows are left out: half the cost of a backward pass through all of them.
        return lambda call, value, gradient: [first_half(call.pull(halves(gradient)[0], x=halves(call.x)[0]))]


def _through_weights(call: Call, gradient: Tensor) -> Tensor:
    """The references' rows are left out: half the cost of a backward pass through all of them."""
    every, images = of_images(call.x)
    images.copy_(call.pull(halves(gradient)[0], x=halves(call.x)[0]))
    return every


class Rescale(Difference):
    """The slope of the chord of an elementwise function (Shrikumar et al. 2017, section 3.5.2)."""

    def applied(self, call: Call, redirect: Callable[[Share], Tensor], groups: int) -> Any:
        if groups > 2 or call.name != "relu":
            return super().applied(call, redirect, groups)
        check_rows(call, groups)
        slope = chord_of_relu(*halves(call.x.detach()))

        def pull(gradient: Tensor) -> Tensor:
            every, images = of_images(gradient)
            torch.mul(halves(gradient)[0], slope, out=images)
            return every

        return call.turn(pull)

    def share(self, call: Call) -> Any:
        if len(call.signals) > 1:
            raise refuse(call, "it is no function of one signal")
        function = Function(call)
        return lambda call, value, gradient: [secant(function, call.x, value, gradient)]


def chord_of_relu(end: Tensor, start: Tensor) -> Tensor:
    """The slope between two points, 0 or 1 where both lie on one side: without the difference of values that cancel."""
    step = (end - start).abs_().clamp_(min=torch.finfo(end.dtype).tiny)
    return torch.maximum(end, start).div_(step).clamp_(0, 1)


class Bilinear(Difference):
    """Each factor is multiplied by the mean of the other in image and reference: exact, and fair to both (Shapley 1953)."""

    def share(self, call: Call) -> Any:
        if len(call.signals) == 1 and call.name not in ("square", "var"):
            return None
        if len(call.signals) > 2 and call.name != "addcmul":
            raise refuse(call, "it multiplies more than two signals")
        function = Function(call)
        return lambda call, value, gradient: midpoint(function, call.signals, gradient)


class Expanded(Difference):
    """The operator as sums, products and functions of one variable, each with its own rule."""

    def share(self, call: Call) -> Any:
        function = Function(call, EXPANSIONS[call.name])

        def pull(call: Call, value: Tensor, gradient: Tensor) -> Multipliers:
            try:
                with torch.enable_grad():
                    leaves = [s.detach().requires_grad_() for s in call.signals]
                    found = function(*leaves)
            except UnsupportedError as error:
                raise refuse(call, str(error)) from error
            return torch.autograd.grad(found, leaves, first_half(halves(gradient)[0]), allow_unused=True)

        return pull


class Winner(Difference):
    """The largest (or smallest) value of each window, and of each axis.

    Where the image's is the larger one, its position receives all of the difference, elsewhere the position of the
    reference's. Windows that overlap add up.
    """

    def applied(self, call: Call, redirect: Callable[[Share], Tensor], groups: int) -> Any:
        if call.name in ("max", "min") and ("other" in call.kwargs or any(isinstance(a, Tensor) for a in call.args[1:])):
            call.name += "imum"
            return Expanded().applied(call, redirect, groups)
        check_rows(call, groups)
        if "pool" in call.name and groups == 2:
            return _pooled(call)
        share = self.share(call)
        if call.name not in ("max", "min"):
            return redirect(share)
        found, func = call.value(), call.func
        call.func = lambda *args, **kwargs: func(*args, **kwargs)[0]
        value = redirect(share)
        call.kept = None  # the network knows nothing but the pair
        return type(found)((value, found[1]))

    def share(self, call: Call) -> Any:
        if "pool" in call.name:
            function = Function(call, getattr(F, call.name))
            function.kwargs["return_indices"] = True
            axes = int(call.name[-2])
            return lambda call, value, gradient: [_won_in_windows(function, call.x, axes, gradient)]
        along, sign = Function(call, _axes)(call.x), -1 if "min" in call.name else 1
        if not along or 0 in along:
            raise refuse(call, "it goes over all images at once")
        return lambda call, value, gradient: [_won_along(along, call.x, sign, gradient)]


def _pooled(call: Call) -> Tensor:
    """A max pool of images and references, from one pass."""
    function, axes = Function(call, getattr(F, call.name)), int(call.name[-2])
    function.kwargs["return_indices"] = True
    with torch.no_grad():
        value, index = function(call.x)
        winner, slope = _winners(*(t.flatten(-axes) for t in (call.x, value, index)))

    def pull(gradient: Tensor) -> Tensor:
        every = torch.zeros_like(call.x)
        halves(every)[0].flatten(-axes).scatter_add_(-1, winner, halves(gradient)[0].flatten(-axes) * slope)
        return every

    call.func = lambda *args, **kwargs: value
    return call.turn(pull)


def _axes(x: Tensor, dim: Any = (), *_: Any, **__: Any) -> list[int]:
    return [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _won_in_windows(function: Function, x: Tensor, axes: int, gradient: Tensor) -> Tensor:
    value, index = function(x)
    found = _won(x.flatten(-axes), value.flatten(-axes), index.flatten(-axes), gradient.flatten(-axes))
    return first_half(found.reshape(halves(x)[0].shape))


def _won_along(axes: list[int], x: Tensor, sign: int, gradient: Tensor) -> Tensor:
    order = [a for a in range(x.dim()) if a not in axes] + axes
    moved = x.permute(order)
    flat = sign * moved.flatten(-len(axes))
    index = flat.argmax(-1, keepdim=True)
    found = _won(flat, flat.gather(-1, index), index, gradient.reshape(*flat.shape[:-1], 1))
    return first_half(found.reshape(halves(moved)[0].shape).permute([order.index(a) for a in range(x.dim())]))


def _won(x: Tensor, value: Tensor, index: Tensor, gradient: Tensor) -> Tensor:
    """Multipliers of positions, given the value and the position of each window's winner, in image and reference."""
    winner, slope = _winners(x, value, index)
    return torch.zeros_like(halves(x)[0]).scatter_add_(-1, winner, halves(gradient)[0] * slope)


def _winners(x: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Which position each window's difference goes to, and its multiplier.

    The rise from y0 to max(y, y0) is the image's winner's, the fall from there to y the reference's; one of them is zero.
    """
    (x1, x0), (y1, y0), (i1, i0) = halves(x), halves(value), halves(index)
    winner = torch.where(y1 >= y0, i1, i0)
    step = x1.gather(-1, winner) - x0.gather(-1, winner)
    same = step == 0
    return winner, ((y1 - y0) / step.masked_fill(same, 1)).masked_fill_(same, 1)


DEFINED = "|".join(sorted(ACTIVATIONS)) + (
    "|logsigmoid|hardshrink|softshrink|tanhshrink|abs|exp|exp2|expm1|rpow|sin|cos|arctan|atan|sinh|cosh|asinh|erf|erfc|sinc|sign"
)
PARTLY_DEFINED = "log|log2|log10|log1p|logit|sqrt|rsqrt|pow|float_power|reciprocal|rtruediv|rdiv|tan|asin|acos|acosh|atanh"
LINEAR = "conv*|linear"
AFFINE = "batch_norm|cumsum|tril|triu|diff|diagonal|masked_fill|grid_sample"
PRODUCTS = "mul|matmul|mm|bmm|addmm|baddbmm|addbmm|einsum|addcmul|square|var|lerp"
WINNERS = "max_pool?d|adaptive_max_pool?d|max|min|amax|amin"
RESCALE = Composite(
    (
        Entry(f"{LINEAR}|{AFFINE}", Affine()),
        Entry(PRODUCTS, Bilinear()),
        Entry(WINNERS, Winner()),
        Entry("|".join(EXPANSIONS), Expanded()),
        Entry(f"{DEFINED}|{PARTLY_DEFINED}", Rescale()),
    ),
    unmatched="the network calls no operator whose value changes with the image",
)
