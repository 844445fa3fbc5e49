"""The steps of an ascent: what gradients do to parameters, each row on its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from convoscope.core.errors import UsageError

Rate = float | tuple[float, float]


class Update:
    """One of torch's optimizers, all of which work number by number, or the normalized gradient step of each row.

    "normalized": p += rate * g / mean|g| over the row (Nguyen et al. 2016; Mordvintsev et al. 2015).
    """

    def __init__(self, name: str, parameters: Sequence[Tensor], rate: Rate, steps: int) -> None:
        self.parameters, self.steps = list(parameters), steps
        self.first, self.last = rate if isinstance(rate, tuple) else (rate, rate)
        if not self.first > 0 or self.last < 0:
            raise UsageError(f"a rate is a number above 0, or (first, last); got {rate}")
        made = {
            "adam": lambda p: torch.optim.Adam(p, lr=self.first),
            "nadam": lambda p: torch.optim.NAdam(p, lr=self.first),
            "sgd": lambda p: torch.optim.SGD(p, lr=self.first),
            "momentum": lambda p: torch.optim.SGD(p, lr=self.first, momentum=0.9),
            "normalized": lambda p: None,
        }
        if name not in made:
            raise UsageError(f"no optimizer {name!r}; expected one of {', '.join(made)}")
        self.optimizer = made[name](self.parameters)

    def rate(self, step: int) -> float:
        """The rate of a step, linear from the first to the last."""
        return self.first + (self.last - self.first) * step / max(1, self.steps - 1)

    @torch.no_grad()
    def __call__(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Moves the parameters up along the gradients, in place."""
        rate = self.rate(step)
        if self.optimizer is None:
            for p, g in zip(self.parameters, gradients, strict=True):
                scale = g.flatten(1).abs().mean(1).clamp(min=torch.finfo(g.dtype).tiny)
                p += rate * g / scale.view(-1, *[1] * (g.dim() - 1))
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = -g
        self.optimizer.step()
        for p in self.parameters:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides the parameters."""
        if self.optimizer is None:
            return {}
        found = self.optimizer.state_dict()["state"]
        return {
            f"{number}.{name}": torch.as_tensor(value) for number, entry in found.items() for name, value in entry.items()
            if value is not None
        }  # fmt: skip

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        if self.optimizer is None:
            return
        whole = self.optimizer.state_dict()
        for key, value in state.items():
            number, _, name = key.partition(".")
            whole["state"].setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(whole)
