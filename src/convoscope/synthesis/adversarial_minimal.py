"""The smallest change that does it: DeepFool, exact where the network is affine, also at the ends of the pixel range."""

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.record import Activations
from convoscope.core.spec import AtLeast, Paper
from convoscope.synthesis.adversarial import AttackMethod, Norm, Pixels, Trial, logits_of

NEWTON = 60  # steps at most; each fixes more pixels at the end of their range, a handful suffices


@dataclass(frozen=True, eq=False)
class Lead:
    """The logit of one class of each image minus that of another; `other` None: minus the largest of all others."""

    index: Int64[Tensor, " images"]
    other: Int64[Tensor, " images"] | None
    open: bool = False

    def addresses(self) -> tuple[str, ...]:
        return ("output",)

    def resolve(self, activations: Activations) -> "Lead":
        return self

    def __call__(self, activations: Activations) -> Float[Tensor, " rows"]:
        logits = logits_of(activations["output"])
        here = activations.rows.to(self.index.device)
        index = self.index[here].to(logits.device)[:, None]
        score = logits.gather(1, index)[:, 0]
        if self.other is None:
            return score - logits.scatter(1, index, -torch.inf).amax(1)
        return score - logits.gather(1, self.other[here].to(logits.device)[:, None])[:, 0]


class DeepFool(AttackMethod):
    """The smallest perturbation: step by step to the nearest of the boundaries that the classes would have if all were linear.

    Each step is the shortest to the nearest of `classes` boundaries (the strongest classes beside the image's own), exactly so
    also where pixels are at the end of their range; the paper ignores the range. `norm="linf"` makes the largest change of a
    value smallest instead. With a target, there is one boundary. At the end, which the paper has not, the change is made as
    small along its line as does (`refine` halvings), and `polish` times replaced by the shortest to the boundary as it is there
    where that is smaller.
    """

    title, bounded = "DeepFool", False
    paper = Paper(
        "moosavi2016deepfool", "Moosavi-Dezfooli, Seyed-Mohsen and Fawzi, Alhussein and Frossard, Pascal",
        "DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks", "CVPR", 2016, "1511.04599",
    )  # fmt: skip
    norm: Annotated[Norm, "what is made small: the Euclidean norm, or the largest change of a value"] = "l2"
    classes: Annotated[int, "how many of the strongest other classes are looked at", AtLeast(1)] = 9
    steps: Annotated[int, "how many steps at most", AtLeast(1)] = 50
    overshoot: Annotated[float, "how far beyond a boundary to go, as a share of the change", AtLeast(0)] = 0.02
    refine: Annotated[int, "how often to halve the change's line in the end", AtLeast(0)] = 8
    polish: Annotated[int, "how often to look for a shorter way to where the boundary was met", AtLeast(0)] = 2

    def perturb(self, trial: Trial) -> Pixels:
        total, delta = torch.zeros_like(trial.pixels), torch.zeros_like(trial.pixels)
        logits = trial.logits(delta)
        scores, left = self._scores(trial, logits), ~trial.reached(logits)
        for _ in range(self.steps):
            rows = left.nonzero()[:, 0]
            if not len(rows):
                break
            some = trial.some(rows)
            step = nearest(some, delta[rows], scores, self.norm)
            total[rows] += step
            delta[rows] = some.within((1 + self.overshoot) * total[rows], torch.inf, "linf")
            left[rows] = ~some.reached(some.logits(delta[rows]))
        delta = shortened(trial, delta, self.refine)
        for _ in range(self.polish):
            delta = self._polished(trial, delta)
        return delta

    def _polished(self, trial: Trial, delta: Pixels) -> Pixels:
        """The changes, or shorter ones that do as well: to the nearest point of the boundary's plane where it was met."""
        logits = trial.logits(delta)
        rows = (trial.reached(logits) & (delta != 0).flatten(1).any(1)).nonzero()[:, 0]
        if not len(rows):
            return delta
        some, goal, before = trial.some(rows), trial.goal, delta[rows]
        now = goal.classes.clone()
        if not goal.targeted:
            now[some.probe.rows] = logits[rows].argmax(1).cpu()
        gradient, score, _ = some.slopes(before, [Lead(now, None if goal.targeted else goal.classes)])[0]
        gap = (gradient * before).flatten(1).sum(1) - score
        step, _ = least(gradient, gap.clamp(min=0), *some.box(), self.norm)
        tried = shortened(some, some.within((1 + self.overshoot) * step, torch.inf, "linf"), self.refine)
        better = some.reached(some.logits(tried)) & (_size(tried, self.norm) < _size(before, self.norm))
        delta = delta.clone()
        delta[rows[better]] = tried[better]
        return delta

    def _scores(self, trial: Trial, logits: Tensor) -> list[Lead]:
        goal = trial.goal
        if goal.targeted:
            return [Lead(goal.classes, None)]
        own = goal.classes[trial.probe.rows]
        ranked = logits.cpu().scatter(1, own[:, None], -torch.inf).topk(min(self.classes, logits.shape[1] - 1), 1).indices
        others = torch.zeros(len(goal.classes), ranked.shape[1], dtype=torch.long)
        others[trial.probe.rows] = ranked
        return [Lead(o, goal.classes) for o in others.unbind(1)]

    def evaluations(self) -> int:
        return 2 + 2 * self.steps + self.refine + self.polish * (self.refine + 4)


def _size(delta: Pixels, norm: Norm) -> Float[Tensor, " rows"]:
    return delta.flatten(1).norm(dim=1) if norm == "l2" else delta.abs().flatten(1).amax(1)


def nearest(trial: Trial, delta: Pixels, scores: list[Lead], norm: Norm) -> Pixels:
    """The smallest further change that brings one of the scores to zero if all were linear."""
    low, high = (end - delta for end in trial.box())
    best = torch.zeros_like(delta)
    shortest = torch.full((len(delta),), torch.nan, dtype=delta.dtype, device=delta.device)
    for gradient, score, logits in trial.slopes(delta, scores):
        gap = (-score).clamp(min=0) + 1e-6 * (1 + logits.abs().amax(1)).to(score)  # on a boundary is not beyond it
        step, size = least(gradient, gap, low, high, norm)
        better = (size < shortest) | shortest.isnan()
        best[better], shortest[better] = step[better], size[better]
    return best


def least(w: Pixels, gap: Tensor, low: Pixels, high: Pixels, norm: Norm) -> tuple[Pixels, Float[Tensor, " rows"]]:
    """The smallest `r` with `low <= r <= high` and `w . r = gap` for each row, and its norm; infinite where there is none.

    `r = sign(w) min(t |w|, bound)` (l2) or `sign(w) min(t, bound)` (linf), where `t` is the root of a concave, piecewise
    linear function: Newton's steps from zero come from below and end.
    """
    weight, bound = w.abs().flatten(1), torch.where(w > 0, high, -low).clamp(min=0).flatten(1)
    rate = weight if norm == "l2" else torch.ones_like(weight)
    t = torch.zeros_like(gap)
    slack = 16 * torch.finfo(gap.dtype).eps * gap
    for _ in range(NEWTON):
        moved = torch.minimum(t[:, None] * rate, bound)
        missing = gap - (weight * moved).sum(1)
        slope = (weight * rate * (moved < bound)).sum(1)
        wanting = (missing > slack) & (slope > 0)
        if not bool(wanting.any()):
            break
        t = torch.where(wanting, t + missing / torch.where(slope > 0, slope, 1), t)
    moved = torch.minimum(t[:, None] * rate, bound)
    there = gap - (weight * moved).sum(1) <= 1e-3 * gap
    moved = torch.where(there[:, None], moved, bound * (weight > 0))  # as far as it goes
    size = moved.norm(dim=1) if norm == "l2" else moved.amax(1)
    return (w.sign().flatten(1) * moved).view_as(w), torch.where(there, size, torch.inf)


def shortened(trial: Trial, delta: Pixels, halvings: int) -> Pixels:
    """The change made as small along its line as does, between nothing and itself; of images that reached the goal."""
    if not halvings:
        return delta
    rows = trial.reached(trial.logits(delta)).nonzero()[:, 0]
    if not len(rows):
        return delta
    some, full = trial.some(rows), delta[rows]
    enough, short = torch.ones(len(rows)).to(full), torch.zeros(len(rows)).to(full)
    for _ in range(halvings):
        middle = (enough + short) / 2
        there = some.reached(some.logits(middle.view(-1, 1, 1, 1) * full))
        enough, short = torch.where(there, middle, enough), torch.where(there, short, middle)
    delta = delta.clone()
    delta[rows] = enough.view(-1, 1, 1, 1) * full
    return delta
