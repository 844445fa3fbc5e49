"""Rules for the first layer, where zero is a color like any other: relevance does not depend on the sign of a pixel.

Relevance is handed on as gradient times input, so a pixel that is exactly zero counts as a tiny number (`without_zeros`).
"""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import SpecError, UnsupportedError
from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast
from convoscope.rules.rules import STABILIZER, Rule


def without_zeros(x: Tensor) -> Tensor:
    """`x` with a tiny number in place of what is smaller than that."""
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    return torch.where(x.abs() < tiny, tiny, x)


class PixelRule(Rule, abstract=True):
    """Base of rules that need the range of the inputs; where that is empty, as in padding, no relevance goes."""

    def within(self, call: Call, low: Tensor, high: Tensor) -> Tensor:
        """The value of the call, for inputs between `low` and `high`, one row each, of the shape of the input."""
        return call.redirect(lambda call, value, gradient: self._pull(call, value, gradient, low, high))

    def _pull(self, call: Call, value: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, call: Call) -> Tensor:
        return self.within(call, torch.zeros_like(call.x[:1]), torch.ones_like(call.x[:1]))


class ZBox(PixelRule):
    """Relevance by the distance from the nearest colors that would take a contribution away (Montavon et al. 2017, z-B rule).

    R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / sum_i (x_i w_ij - l_i w_ij+ - h_i w_ij-) R_j

    for inputs between l and h; the bias takes no part. Padding is zero in x, l and h, so that it receives nothing.
    """

    low: Annotated[Tensor | float | None, "lowest inputs, in input space; None: black, as it arrives there"] = None
    high: Annotated[Tensor | float | None, "highest inputs, in input space; None: white, as it arrives there"] = None
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        if self.low is None or self.high is None:
            raise SpecError("the z-B rule needs low and high outside of LRP methods, which know the colors of a network")
        ends = (torch.as_tensor(v, device="cpu").to(call.x).expand_as(call.x[:1]) for v in (self.low, self.high))
        return self.within(call, *ends)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        x, weight = call.x, call.weight
        assert weight is not None
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        total = value - call.linear(low, up, call.bias) - call.linear(high, down)
        total = total + torch.copysign(step_from_zero(total, self.epsilon), total)
        share = gradient * value / total
        if call.grouped:
            pulled = call.pull(share, up), call.pull(share, down)
        else:
            axis = -1 if call.name == "linear" else 1
            pulled = call.pull(share, torch.cat([up, down], 1), torch.cat([x, x], axis)).chunk(2, axis)
        return ((x - low) * pulled[0] + (x - high) * pulled[1]) / without_zeros(x)


class WSquare(PixelRule):
    """Relevance by squared weights, whatever the image shows: R_i = sum_j w_ij^2 / sum_i w_ij^2 R_j (Montavon et al. 2017).

    Sums are over pixels, not over padding.
    """

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def _pull(self, call: Call, value: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        assert call.weight is not None
        return _spread(call, gradient * value, call.weight.square(), (low != high).to(call.x), self.epsilon)


class Flat(PixelRule):
    """Relevance in equal parts to all pixels that a unit or a pool sees, padding left out (Lapuschkin et al. 2019)."""

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def _pull(self, call: Call, value: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        pixels, relevance = (low != high).to(call.x), gradient * value
        if call.weight is not None:
            return _spread(call, relevance, torch.ones_like(call.weight), pixels, self.epsilon)
        with torch.enable_grad():
            leaf = pixels.expand_as(call.x).detach().requires_grad_()
            total = _averaged(call, leaf)
        share = relevance / total.detach().clamp(min=torch.finfo(total.dtype).eps)
        return pixels * torch.autograd.grad(total, leaf, share)[0] / without_zeros(call.x)


class Keep(Rule):
    """Each element keeps its relevance, whatever a function of it alone did, also where that was zero."""

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(lambda call, value, gradient: gradient * (without_zeros(value) / without_zeros(call.x)))


def _spread(call: Call, relevance: Tensor, weight: Tensor, pixels: Tensor, epsilon: float) -> Tensor:
    total = call.linear(pixels, weight)
    share = relevance / (total + step_from_zero(total, epsilon))
    return pixels * call.pull(share, weight) / without_zeros(call.x)


def _averaged(call: Call, x: Tensor) -> Tensor:
    """The mean over the windows of a pool, also of one that takes the maximum."""
    if "avg" in call.name or call.name == "mean":
        return call.func(x, *call.args[1:], **call.kwargs)
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    if "adaptive" in call.name:
        names = ("output_size",)
    given = {**dict(zip(names, call.args[1:], strict=False)), **{k: v for k, v in call.kwargs.items() if k in names}}
    if given.pop("dilation", 1) not in (1, (1,), (1, 1), (1, 1, 1)) or "max_pool" not in call.name:
        raise UnsupportedError(f"the flat rule does not cover {call.name!r} at {call.address!r}")
    return getattr(F, call.name.replace("max", "avg"))(x, **given)
