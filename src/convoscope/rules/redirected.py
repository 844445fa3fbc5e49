"""The rule that wakes units up: rectifiers that pass nothing let through what would open them."""

import torch
from torch import Tensor

from convoscope.core.operators import Call
from convoscope.rules.composites import Composite, Entry
from convoscope.rules.rules import Rule


class Redirected(Rule):
    """The ordinary gradient of a rectifier; of an image to which it would pass nothing, what pushes closed units up.

    Decided image by image, so that no image starves another. The gradient is that of a score to be raised.
    """

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(self._pull)

    def _pull(self, call: Call, value: Tensor, gradient: Tensor) -> Tensor:
        ordinary = torch.where(call.x > 0, gradient, 0)
        dead = (ordinary.flatten(1) == 0).all(1).view(-1, *[1] * (gradient.dim() - 1))
        return torch.where(dead & (call.x <= 0) & (gradient > 0), gradient, ordinary)


REDIRECTED = Composite((Entry("relu", Redirected()),), strict=False)
