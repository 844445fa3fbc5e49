"""What one operator call sends backwards.

Relevance rules are written for gradient times input: the relevance of a tensor is its value times the gradient that
arrives there, so a rule only says by which factor the gradient differs (Montavon et al. 2019; Achtibat et al. 2024).
"""

from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast, Spec


class Rule(Spec, kind="rule", abstract=True):
    """Base of all rules: the value of the call, with another gradient."""

    def __call__(self, call: Call) -> Tensor:
        raise NotImplementedError


class Epsilon(Rule):
    """Each input receives what it contributed to the value; `epsilon` absorbs what weak or contradictory values carry.

    R_i = x_i sum_j w_ij R_j / (z_j + e sign z_j)   (Bach et al. 2015, eq. 58)

    where e is `epsilon` times the root mean square of z in the image: the same network in other units gives the same map.
    The default only keeps from dividing by zero; 0.1 to 0.3 makes sparser maps and loses relevance.
    """

    epsilon: Annotated[float, "stabilizer, as a fraction of the values' root mean square", AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        size = value.abs()
        share = gradient * size
        return call.pull(share.div_(size.add_(step_from_zero(value, self.epsilon))))


class ZPlus(Rule):
    """Only positive contributions carry relevance: alpha-beta with alpha = 1, beta = 0 (Bach et al. 2015, eq. 60)."""

    epsilon: Annotated[float, "stabilizer, as a fraction of the values' root mean square", AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull, pointwise=True)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        weight, x = call.weight, call.x
        assert weight is not None
        up, bias = weight.clamp(min=0), None if call.bias is None else call.bias.clamp(min=0)
        if bool(x.amin() >= 0):
            return call.pull(self._share(call.linear(x, up, bias), value, gradient), up)
        down, positive, negative = weight.clamp(max=0), x.clamp(min=0), x.clamp(max=0)
        if call.grouped:
            share = self._share(call.linear(positive, up, bias).add_(call.linear(negative, down)), value, gradient)
            pulled = call.pull(share, up), call.pull(share, down)
        else:  # both parts as twice the channels: one convolution, which few input channels make hardly dearer
            axis = -1 if call.name == "linear" else 1
            x2, weight2 = torch.cat([positive, negative], axis), torch.cat([up, down], 1)
            pulled = call.pull(self._share(call.linear(x2, weight2, bias), value, gradient), weight2, x2).chunk(2, axis)
        # A zero input has no relevance to hand on, whatever its gradient.
        return torch.where(x > 0, pulled[0], torch.where(x < 0, pulled[1], 0))

    def _share(self, positive: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """The gradient times the value, in units of the positive contributions, which are overwritten."""
        return (gradient * value).div_(positive.add_(step_from_zero(positive, self.epsilon)))


class Pass(Rule):
    """Relevance passes an elementwise function unchanged: the gradient is value / input."""

    epsilon: Annotated[float, "stabilizer, as a fraction of the inputs' root mean square", AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        x = call.x
        step = torch.copysign(step_from_zero(x, self.epsilon), x + 0.0)  # zero counts as positive
        return gradient * (value / (x + step))


class Gate(Rule):
    """The value counts as a constant: in a product with it, all relevance goes to the other factor (Arras et al. 2017)."""

    def __call__(self, call: Call) -> Tensor:
        return call.value()


class Normalize(Rule):
    """Layer and group normalization with the deviation held constant, so that it is linear (Ali et al. 2022)."""

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        x, settings = call.x, _normalization(call)
        grouped = x.reshape(settings["shape"])
        axes = settings["axes"]
        deviation = (grouped.var(axes, correction=0, keepdim=True) + settings["eps"]).sqrt()
        if settings["weight"] is not None:
            gradient = gradient * settings["weight"]
        scaled = gradient.reshape(settings["shape"]) / deviation
        return (scaled - scaled.mean(axes, keepdim=True)).reshape(x.shape)


class Guided(Rule):
    """The ordinary gradient of a rectifier where the one that arrives is positive (Springenberg et al. 2015, figure 1)."""

    def __call__(self, call: Call) -> Tensor:
        value = call.native()
        value.register_hook(lambda gradient: gradient.clamp(min=0))
        return value


class Rectify(Rule):
    """The positive part of the gradient that arrives, whether the rectifier was open or not (Zeiler and Fergus 2014, 2.1)."""

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(lambda call, value, gradient: gradient.clamp(min=0))


def _normalization(call: Call) -> dict:
    x = call.x
    if call.name == "group_norm":
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        groups = given["num_groups"]
        shape, axes = (len(x), groups, x.shape[1] // groups, *x.shape[2:]), tuple(range(2, x.dim() + 1))
        weight = given.get("weight")
        weight = None if weight is None else weight.view(-1, *[1] * (x.dim() - 2))
    else:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        shape, axes = tuple(x.shape), tuple(range(-len(given["normalized_shape"]), 0))
        weight = given.get("weight")
    return {"shape": shape, "axes": axes, "weight": weight, "eps": given.get("eps", 1e-5)}
