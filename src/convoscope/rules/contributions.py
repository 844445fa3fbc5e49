"""Rules that treat what speaks for a unit and what speaks against it differently.

A contribution is one product x_i w_ij. Positive ones are (x+, w+) and (x-, w-), with the positive part of the bias.
"""

from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.errors import SpecError
from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast
from convoscope.rules.rules import STABILIZER, Rule


class Parts:
    """A linear call by the sign of its contributions. Nothing is computed before it is asked for."""

    def __init__(self, call: Call) -> None:
        assert call.weight is not None
        self.call, self.weight = call, call.weight
        self.signed = not bool(call.x.amin() >= 0)  # so too where an image beside it holds NaN
        self.axis = -1 if call.name == "linear" else 1

    @cached_property
    def up(self) -> Tensor:
        return self.weight.clamp(min=0)

    @cached_property
    def down(self) -> Tensor:
        return self.weight.clamp(max=0)

    @cached_property
    def both(self) -> Tensor:
        """The positive and the negative part of the input as twice the channels: one convolution serves both."""
        x = self.call.x
        return torch.cat([x.clamp(min=0), x.clamp(max=0)], self.axis)

    def positive(self) -> Tensor:
        """The sum of the positive contributions to each value; the caller may overwrite it."""
        bias = self.call.bias
        return self._sum(True, None if bias is None else bias.clamp(min=0))

    def negative(self) -> Tensor:
        """The sum of the negative contributions to each value; the caller may overwrite it."""
        bias = self.call.bias
        return self._sum(False, None if bias is None else bias.clamp(max=0))

    def _sum(self, positive: bool, bias: Tensor | None) -> Tensor:
        call, same = self.call, self.up if positive else self.down
        if not self.signed:
            return call.linear(call.x, same, bias)
        other = self.down if positive else self.up
        if call.grouped:
            return call.linear(call.x.clamp(min=0), same, bias).add_(call.linear(call.x.clamp(max=0), other))
        return call.linear(self.both, torch.cat([same, other], 1), bias)

    def pull(self, share: Tensor, positive: float, negative: float) -> Tensor:
        """The gradient that gives each contribution its part of `share`, times `positive` or `negative` by its sign."""
        call = self.call
        same = self._weighted(positive, negative)
        if not self.signed:
            return call.pull(share, same)
        other = self._weighted(negative, positive)
        if call.grouped:
            pulled = call.pull(share, same), call.pull(share, other)
        else:
            pulled = call.pull(share, torch.cat([same, other], 1), self.both).chunk(2, self.axis)
        # A zero input has no relevance to hand on, whatever its gradient.
        return torch.where(call.x > 0, pulled[0], torch.where(call.x < 0, pulled[1], 0))

    def _weighted(self, up: float, down: float) -> Tensor:
        if not down:
            return self.up if up == 1 else self.up * up
        return self.up * up + self.down * down if up else self.down * down


class ZPlus(Rule):
    """Only positive contributions carry relevance: alpha-beta with alpha = 1, beta = 0 (Bach et al. 2015, eq. 60).

    R_i = sum_j (x_i w_ij)+ / (sum_i (x_i w_ij)+ + b_j+ + e) R_j
    """

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull, pointwise=True)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        parts = Parts(call)
        return parts.pull(_share(gradient * value, parts.positive(), self.epsilon), 1, 0)


class AlphaBeta(Rule):
    """Positive contributions share `alpha` times the relevance, negative ones minus `beta` times (Bach et al. 2015, eq. 60).

    R_i = sum_j (alpha (x_i w_ij)+ / (sum_i (x_i w_ij)+ + b_j+) - beta (x_i w_ij)- / (sum_i (x_i w_ij)- + b_j-)) R_j

    with alpha - beta = 1. What a unit has no contributions for is lost. Raises SpecError for other alpha and beta.
    """

    alpha: Annotated[float, "factor of what positive contributions carry", AtLeast(1)] = 2.0
    beta: Annotated[float, "factor of what negative contributions take away; alpha - 1", AtLeast(0)] = 1.0
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise SpecError(f"alpha-beta: alpha - beta is {self.alpha - self.beta:g}; expected 1, to conserve relevance")

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull, pointwise=True)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        parts, relevance = Parts(call), gradient * value
        pulled = parts.pull(_share(relevance, parts.positive(), self.epsilon), self.alpha, 0)
        if self.beta:
            pulled = pulled.add_(parts.pull(_share(relevance, parts.negative().neg_(), self.epsilon), 0, self.beta))
        return pulled


class Gamma(Rule):
    """Contributions of the sign of the value count 1 + gamma times (Montavon et al. 2019; Andeol et al. 2021).

    R_i = sum_j x_i w_ij (1 + gamma [x_i w_ij z_j > 0]) / (sum_i x_i w_ij (1 + gamma [x_i w_ij z_j > 0]) + e) R_j

    where the bias is one of the contributions summed below. For inputs that are not negative and values that are positive
    this is the rule of 2019, x_i (w + gamma w+); gamma = 0 is the epsilon rule, a large one approaches z-plus there.
    """

    gamma: Annotated[float, "by how much contributions of the value's sign are favored", AtLeast(0)] = 0.25
    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        parts, below = Parts(call), value < 0
        favored = parts.positive()
        favored = torch.where(below, favored - value, favored)  # what has the sign of the value, in magnitude
        share = gradient * value.abs()
        share.div_(favored.mul_(self.gamma).add_(value.abs()).add_(step_from_zero(value, self.epsilon)))
        against = torch.where(below, share, 0)
        if not bool(against.any()):  # behind a ReLU only positive values have relevance
            return parts.pull(share, 1 + self.gamma, 1)
        pulled = parts.pull(share.sub_(against), 1 + self.gamma, 1)
        return pulled.add_(parts.pull(against, 1, 1 + self.gamma))


class PerChannel(Rule):
    """A rule for convolutions, for a batch norm that stands alone: each channel times a number, and a bias."""

    rule: Annotated[Rule, "rule of convolutions, such as ZPlus()"]

    def __call__(self, call: Call) -> Tensor:
        affine = _normalization(call)
        if affine is None or not hasattr(self.rule, "_pull"):
            return call.native()
        return call.redirect(lambda call, value, gradient: self.rule._pull(_Scaled(call.x, *affine), value, gradient))  # type: ignore[attr-defined]


class _Scaled:
    """What rules need of a call, of one that scales channels."""

    name, grouped = "batch_norm", True

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor) -> None:
        self.x, self.weight, self.bias = x, scale, shift

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = x * self._along(weight)
        return found if bias is None else found + self._along(bias)

    def pull(self, gradient: Tensor, weight: Tensor | None = None) -> Tensor:
        return gradient * self._along(self.weight if weight is None else weight)

    def _along(self, channels: Tensor) -> Tensor:
        return channels.view(-1, *[1] * (self.x.dim() - 2))


def _normalization(call: Call) -> tuple[Tensor, Tensor] | None:
    """By what a batch norm with fixed statistics multiplies each channel, and what it adds."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    mean, variance = given.get("running_mean"), given.get("running_var")
    if given.get("training") or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance + given.get("eps", 1e-5))
    scale = scale if given.get("weight") is None else scale * given["weight"].detach()
    shift = -mean * scale
    return scale, shift if given.get("bias") is None else shift + given["bias"].detach()


def _share(relevance: Tensor, total: Tensor, epsilon: float) -> Tensor:
    """The relevance in units of contributions that sum to `total`, none of them negative; that is overwritten."""
    return relevance.div(total.add_(step_from_zero(total, epsilon)))
