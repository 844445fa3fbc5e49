"""What one operator call sends backwards.

Relevance rules are written for gradient times input: the relevance of a tensor is its value times the gradient that
arrives there, so a rule only says by which factor the gradient differs (Montavon et al. 2019; Achtibat et al. 2024).
"""

from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.errors import UnsupportedError
from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast, Spec

STABILIZER = "stabilizer, as a fraction of the values' root mean square"


class Rule(Spec, kind="rule", abstract=True):
    """Base of all rules: the value of the call, with another gradient."""

    def __call__(self, call: Call) -> Tensor:
        raise NotImplementedError


class Zero(Rule):
    """LRP-0: each input receives what it contributed, R_i = x_i sum_j w_ij R_j / z_j; this is the ordinary gradient.

    The bias keeps its own part; contributions that cancel make large values (Montavon et al. 2019).
    """

    def __call__(self, call: Call) -> Tensor:
        return call.native()


class Epsilon(Rule):
    """Each input receives what it contributed to the value; `epsilon` absorbs what weak or contradictory values carry.

    R_i = x_i sum_j w_ij R_j / (z_j + e sign z_j)   (Bach et al. 2015, eq. 58)

    where e is `epsilon` times the root mean square of z in the image: the same network in other units gives the same map.
    The default only keeps from dividing by zero; 0.1 to 0.3 makes sparser maps and loses relevance.
    """

    epsilon: Annotated[float, STABILIZER, AtLeast(0)] = 1e-9

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        size = value.abs()
        share = gradient * size
        return call.pull(share.div_(size.add_(step_from_zero(value, self.epsilon))))


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


class Refuse(Rule):
    """Raises UnsupportedError: the method is not defined for the operator."""

    reason: Annotated[str, "what the method needs"]
    several = True

    def __call__(self, call: Call) -> Tensor:
        raise UnsupportedError(f"{self.reason}; {call.name!r} at {call.address!r} is something else")


class Guided(Rule):
    """The ordinary gradient of a rectifier where the one that arrives is positive (Springenberg et al. 2015, figure 1)."""

    def __call__(self, call: Call) -> Tensor:
        value = call.native()
        value.register_hook(lambda gradient: gradient.clamp(min=0))
        return value


class Rectify(Rule):
    """The positive part of the gradient that arrives, whether the rectifier was open or not (Zeiler and Fergus 2014, 2.1)."""

    def __call__(self, call: Call) -> Tensor:
        return call.turn(lambda gradient: gradient.clamp(min=0))


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
