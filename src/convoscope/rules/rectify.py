"""Rules that let only what counts most through a rectifier, and rules of winner-take-all attention."""

from typing import Annotated

import torch
from torch import Tensor

from convoscope.core.errors import SpecError
from convoscope.core.operators import Call, step_from_zero
from convoscope.core.spec import AtLeast
from convoscope.rules.composites import Composite, Entry
from convoscope.rules.contributions import Parts
from convoscope.rules.rules import Gate, Pass, Rule
from convoscope.rules.sums import PositiveSum


class Important(Rule):
    """The gradient at a rectifier where activation times gradient exceeds its q-th percentile (Kim et al. 2019).

    The percentile is that of one image and one call, interpolated linearly. Units that are off count as zeros: below a
    negative percentile they would pass the gradient too, as in the paper.
    """

    q: Annotated[float, "percentile of activation x gradient, 0 to 100", AtLeast(0)] = 98.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q > 100:
            raise SpecError(f"a percentile is 0 to 100; got q={self.q:g}")

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        importance = value * gradient
        limit = percentile(importance.flatten(1), self.q).view(-1, *[1] * (value.dim() - 1))
        return torch.where(importance > limit, gradient, 0)


def percentile(rows: Tensor, q: float) -> Tensor:
    """The q-th percentile of each row, interpolated linearly between the two nearest values."""
    place = (rows.shape[1] - 1) * q / 100
    low = int(place)
    values = [rows.kthvalue(k + 1, dim=1).values for k in (low, min(low + 1, rows.shape[1] - 1))]
    return torch.lerp(values[0], values[1], place - low)


def rectified(q: float) -> Composite:
    """RectGrad's rule at every ReLU; other activations keep their ordinary gradient."""
    return Composite((Entry("relu|relu6", Important(q)),), strict=False, unmatched=NO_RELU)


NO_RELU = "the network calls no ReLU, which this method needs; gradient and integrated-gradients work on any activation"


class Excite(Rule):
    """The probability of an output goes to its inputs in proportion to what excites it (Zhang et al. 2016, section 3.2).

    P(i|j) = x_i w_ij+ / sum_i x_i w_ij+, without biases. Negative inputs, such as pixels, excite through negative weights;
    averages have equal positive weights. In the gradient-times-input form of the relevance rules.
    """

    def __call__(self, call: Call) -> Tensor:
        call.bias = None
        return call.redirect(lambda call, value, gradient: excited(call, value * gradient))


def excited(call: Call, probability: Tensor, sign: int = 1) -> Tensor:
    """What inputs receive of their outputs' probability; `sign` -1: as if the weights were negated, and negative."""
    if call.weight is not None:
        parts = Parts(call)
        if sign > 0:
            return parts.pull(_shared(probability, parts.positive()), 1, 0)
        return parts.pull(_shared(probability, parts.negative().neg_()), 0, 1)
    x = call.x.clamp(min=0)
    with torch.no_grad():
        total = call.func(x, *call.args[1:], **call.kwargs)
    return torch.where(x > 0, call.pull(_shared(probability, total), x=x), 0)


def _shared(probability: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, probability / (total + step_from_zero(total, 0.0)), 0)


EXCITATION = Composite(
    (
        Entry("conv*|linear|avg_pool?d|adaptive_avg_pool?d|mean", Excite()),
        Entry("add", PositiveSum()),
        Entry("batch_norm|layer_norm|group_norm|instance_norm", Pass()),
        Entry("leaky_relu|prelu|relu6|elu|selu|celu|gelu|silu|mish|softplus|softsign|hardswish|hardtanh|tanh|clamp", Pass()),
        Entry("sigmoid|hardsigmoid|softmax", Gate()),
    ),
    unmatched="nothing but rearrangements lies between the layer and the target; name an earlier layer",
)


class Contrast:
    """The table of excitation backprop, with the contrast of a dual unit in the topmost linear operator.

    There the excitation of the unit with negated weights is taken away (Zhang et al. 2016, section 3.3). Which operator is
    topmost shows on the way back: it is the first that a gradient reaches.
    """

    strict, unmatched = True, EXCITATION.unmatched

    def __init__(self) -> None:
        self.reached = False

    def rule_for(self, name: str, address: str, first: bool = False) -> object:
        self.reached = False
        rule = EXCITATION.rule_for(name, address, first)
        return self._linear if name == "linear" or name.startswith("conv") else rule

    def _linear(self, call: Call) -> Tensor:
        call.bias = None
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        below, top, self.reached = value * gradient, not self.reached, True
        return excited(call, below) + excited(call, below, -1) if top else excited(call, below)
