"""Attacks by gradient: one step, many steps."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.synthesis.adversarial import AttackMethod, Norm, Pixels, Trial, epsilon_of

EPSILON = "largest change of a value (linf) or norm of the change (l2), in pixels 0..1; none: 8/255, or 2/255 per value"
NORM = "how a change is measured: its largest value, or its Euclidean norm"


def direction(gradient: Pixels, norm: Norm) -> Pixels:
    """The change of size 1 along which a linear score rises most; nothing where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    size = gradient.abs().flatten(1).amax(1).view(-1, 1, 1, 1)  # scaled first: squares of tiny numbers are zero
    scaled = gradient / torch.where(size > 0, size, 1)
    length = scaled.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return scaled / torch.where(length > 0, length, 1)


class FGSM(AttackMethod, name="fgsm"):
    """Fast gradient sign: one step of size epsilon along the sign of the gradient of the cross-entropy.

    With norm l2, along the gradient itself. Of all attacks the cheapest, and the weakest: the loss is taken to be linear.
    """

    title = "Fast gradient sign method"
    paper = Paper(
        "goodfellow2015explaining", "Goodfellow, Ian J. and Shlens, Jonathon and Szegedy, Christian",
        "Explaining and Harnessing Adversarial Examples", "ICLR", 2015, "1412.6572",
    )  # fmt: skip
    epsilon: Annotated[float | None, EPSILON, AtLeast(0)] = None
    norm: Annotated[Norm, NORM] = "linf"

    def perturb(self, trial: Trial) -> Pixels:
        epsilon = epsilon_of(self.epsilon, self.norm, trial.pixels[0].numel())
        gradient, _, _ = trial.slope(torch.zeros_like(trial.pixels))
        return trial.within(epsilon * direction(gradient, self.norm), epsilon, self.norm)

    def evaluations(self) -> int:
        return 1

    def settled(self, values: int) -> "FGSM":
        return replace(self, epsilon=epsilon_of(self.epsilon, self.norm, values))


class PGD(AttackMethod, name="pgd"):
    """Projected gradient descent: many small steps, each projected back to the epsilon ball and the valid pixels.

    Starts at a random change (`restarts` of them, the next only for images that no earlier one did), steps along the sign of
    the gradient of the cross-entropy (l2: along the gradient). Of all images on the way the one is kept that reached the goal
    with the largest odds; `keep="last"` is the paper's.
    """

    title = "Projected gradient descent"
    paper = Paper(
        "madry2018towards", "Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, "
        "Adrian", "Towards Deep Learning Models Resistant to Adversarial Attacks", "ICLR", 2018, "1706.06083",
    )  # fmt: skip
    epsilon: Annotated[float | None, EPSILON, AtLeast(0)] = None
    norm: Annotated[Norm, NORM] = "linf"
    steps: Annotated[int, "how many steps", AtLeast(1)] = 20
    step_size: Annotated[float | None, "size of a step in pixels 0..1; none: 2.5 epsilon / steps", AtLeast(0)] = None
    restarts: Annotated[int, "how many random starts at most", AtLeast(1)] = 1
    random_start: Annotated[bool, "start at a random change, not at the image"] = True
    keep: Annotated[Literal["best", "last"], "which of the images on the way"] = "best"

    def perturb(self, trial: Trial) -> Pixels:
        epsilon = epsilon_of(self.epsilon, self.norm, trial.pixels[0].numel())
        best = Best(trial)
        for restart in range(self.restarts):
            left = (~best.reached).nonzero()[:, 0]
            if not len(left):
                break
            self._climb(trial.some(left), best, left, epsilon, restart)
        return best.delta

    def _climb(self, trial: Trial, best: "Best", rows: Tensor, epsilon: float, restart: int) -> None:
        size = 2.5 * epsilon / self.steps if self.step_size is None else self.step_size
        delta = self._start(trial, epsilon, restart)
        for _ in range(self.steps):
            gradient, odds, logits = trial.slope(delta)
            if self.keep == "best":
                best.offer(rows, delta, odds, trial.reached(logits))
            delta = trial.within(delta + size * direction(gradient, self.norm), epsilon, self.norm)
        odds, reached = trial.judged(delta)
        if self.keep == "last":
            best.forget(rows)
        best.offer(rows, delta, odds, reached)

    def _start(self, trial: Trial, epsilon: float, restart: int) -> Pixels:
        if not self.random_start:
            return torch.zeros_like(trial.pixels)
        if self.norm == "linf":
            drawn = trial.probe.uniform(trial.pixels, restart) * 2 - 1
        else:  # any direction, any length
            lengths = trial.probe.uniform(trial.pixels[:, :1, :1, :1], restart)
            drawn = direction(trial.probe.normal(trial.pixels, restart), "l2") * lengths
        return trial.within(epsilon * drawn, epsilon, self.norm)

    def evaluations(self) -> int:
        return self.restarts * (self.steps + 1)

    def settled(self, values: int) -> "PGD":
        return replace(self, epsilon=epsilon_of(self.epsilon, self.norm, values))


class Best:
    """The best change of each image so far: one that reached the goal before one that did not, then by the odds."""

    def __init__(self, trial: Trial) -> None:
        device = trial.pixels.device
        self.delta = torch.zeros_like(trial.pixels)
        self.odds = torch.full((len(trial.pixels),), -torch.inf, device=device, dtype=trial.pixels.dtype)
        self.reached = torch.zeros(len(trial.pixels), dtype=torch.bool, device=device)

    def forget(self, rows: Tensor) -> None:
        """Whatever is offered next for these rows is better."""
        self.odds[rows], self.reached[rows] = -torch.inf, False

    def offer(self, rows: Tensor, delta: Pixels, odds: Float[Tensor, " rows"], reached: Tensor) -> None:
        before, there = self.odds[rows], self.reached[rows]
        better = (reached & ~there) | ((reached == there) & (odds > before)) | (before == -torch.inf)
        chosen = rows[better]
        self.delta[chosen], self.odds[chosen], self.reached[chosen] = delta[better], odds[better], reached[better]
