"""The steps of an ascent: what gradients do to parameters, number by number, so that rows know nothing of each other.

Written out because importing torch's optimizers takes more than a second, and a step of theirs three times as long.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from convoscope.core.errors import UsageError

Rate = float | tuple[float, float]
OPTIMIZERS = ("adam", "nadam", "sgd", "momentum", "normalized")
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's decays, and what keeps it from dividing by zero


class Update:
    """Gradient ascent by Adam (Kingma and Ba, 2015), NAdam (Dozat, 2016), plain steps, steps with momentum 0.9, or
    "normalized" ones: p += rate * g / mean|g| of the row (Mordvintsev et al. 2015; Nguyen et al. 2016).

    `rate` is one for all steps, or the first and the last of a linear schedule.
    """

    def __init__(self, name: str, parameters: Sequence[Tensor], rate: Rate, steps: int) -> None:
        if name not in OPTIMIZERS:
            raise UsageError(f"no optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}")
        both = tuple(rate) if isinstance(rate, tuple | list) else (rate, rate)
        if (
            len(both) != 2
            or not all(isinstance(r, int | float) and math.isfinite(r) for r in both)
            or not both[0] > 0 <= both[1]
        ):
            raise UsageError(f"a rate is a number above 0, or (first, last); got {rate!r}")
        self.name, self.parameters, self.steps = name, list(parameters), steps
        self.first, self.last = both
        kept = {"adam": 2, "nadam": 2, "momentum": 1}.get(name, 0)
        self.moments = [[torch.zeros_like(p, requires_grad=False) for _ in range(kept)] for p in self.parameters]

    def rate(self, step: int) -> float:
        """The rate of a step, linear from the first to the last."""
        return self.first + (self.last - self.first) * step / max(1, self.steps - 1)

    @torch.no_grad()
    def __call__(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Moves the parameters up along the gradients, in place; `step` counts from 0."""
        rate = self.rate(step)
        for p, moments, g in zip(self.parameters, self.moments, gradients, strict=True):
            if self.name == "sgd":
                p.add_(g, alpha=rate)
            elif self.name == "normalized":
                scale = g.flatten(1).abs().mean(1).clamp(min=torch.finfo(g.dtype).tiny)
                p += rate * g / scale.view(-1, *[1] * (g.dim() - 1))
            elif self.name == "momentum":
                p.add_(moments[0].mul_(0.9).add_(g), alpha=rate)
            else:
                self._adaptive(p, g, *moments, rate, step + 1)

    def _adaptive(self, p: Tensor, g: Tensor, mean: Tensor, square: Tensor, rate: float, count: int) -> None:
        mean.lerp_(g, 1 - FIRST)
        square.mul_(SECOND).addcmul_(g, g, value=1 - SECOND)
        scale = square.div(1 - SECOND**count).sqrt_().add_(TINY)
        if self.name == "adam":
            p.addcdiv_(mean, scale, value=rate / (1 - FIRST**count))
            return
        weights = [FIRST * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in range(1, count + 2)]
        product = math.prod(weights[:-1])
        p.addcdiv_(g, scale, value=rate * (1 - weights[-2]) / (1 - product))
        p.addcdiv_(mean, scale, value=rate * weights[-1] / (1 - product * weights[-1]))

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides the parameters and its number."""
        return {f"{i}.{k}": m for i, moments in enumerate(self.moments) for k, m in enumerate(moments)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        for name, moment in self.state().items():
            moment.copy_(state[name])
