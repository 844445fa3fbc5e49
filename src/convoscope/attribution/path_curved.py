"""Gradients along paths that are not straight lines: through the pixels that matter least first, and out of a blur."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.attribution.path import Baseline, note_gap, target_change
from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


class GuidedIG(Method):
    """Integrated gradients on a path that moves those values first to which the target is least sensitive.

    Kapishnikov et al. 2021, with a bound on the distance from the straight line, as in the authors' code: on each step the L1
    distance to the image falls by an equal part, by moving the `fraction` of the values with the smallest gradients, then
    the next ones where that is not enough. No value runs further than `distance` ahead of or behind the straight line, as a
    fraction of its way; distance 0 is integrated gradients. Each step counts with the mean gradient of its
    two ends, where the authors take the first, for a smaller gap at no cost. Complete up to the reported gap. Units: those of
    the target. Images run side by side, steps one after the other.
    """

    steps: Annotated[int, "steps from the baseline to the image", AtLeast(1)] = 64
    baseline: Annotated[Baseline, "where the path starts: a name, a number or a tensor in input space"] = "black"
    fraction: Annotated[float, "part of the values moved at once, 0..1", AtLeast(0)] = 0.25
    distance: Annotated[float, "how far a value may be from the straight line, as a fraction of its way", AtLeast(0)] = 0.02

    title = "Guided integrated gradients"
    complete = True
    paper = Paper(
        "kapishnikov2021guided", "Kapishnikov, Andrei and Venugopalan, Subhashini and Avci, Besim and Wedin, Ben and Terry, "
        "Michael and Bolukbasi, Tolga",
        "Guided Integrated Gradients: An Adaptive Path Method for Removing Noise", "CVPR", 2021, "2106.09788",
    )  # fmt: skip
    about = About(
        "decision", "integrated gradients with less noise from pixels that do not matter", "steps x (1 forward + 1 backward)",
        "any differentiable network", "the path depends on the network's own gradients; steps cannot run side by side",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        start = probe.baseline(self.baseline, x)
        end, first = x.flatten(1).double(), start.flatten(1).double()
        place, maps = first, torch.zeros_like(end)
        gradient, at_start = self._asked(probe, x, place)
        for step in range(1, self.steps + 1):
            moved = self._moved(place, gradient, first, end, step)
            arrived, score = self._asked(probe, x, moved)
            maps += (moved - place) * (gradient + arrived) / 2
            place, gradient = moved, arrived
        note_gap(probe, maps, score - at_start)
        return maps.to(x).view_as(x)

    def _asked(self, probe: Probe, x: Images, place: Tensor) -> tuple[Tensor, Tensor]:
        gradient, score = probe.grad_and_score(place.to(x).view_as(x))
        return gradient.flatten(1).double(), score.double()

    def _moved(self, place: Tensor, gradient: Tensor, first: Tensor, end: Tensor, step: int) -> Tensor:
        """Where a step leads, given the gradients where it starts."""
        if step == self.steps:
            return end.clone()
        reached, way = step / self.steps, end - first
        ahead, behind = (first + way * min(max(reached + d, 0.0), 1.0) for d in (self.distance, -self.distance))
        goal = way.abs().sum(1, keepdim=True) * (1 - reached)
        place = torch.where((place - first) * way.sign() < (behind - first) * way.sign(), behind, place)
        size, rank = gradient.abs(), int(self.fraction * (place.shape[1] - 1))
        while True:
            left = (end - place).abs().sum(1, keepdim=True) - goal
            size = size.masked_fill(place == ahead, torch.inf)
            movable = size.isfinite() & (left > 1e-9 * goal.clamp(min=1e-9))
            if not movable.any():
                return place
            chosen = movable & (size <= size.kthvalue(rank + 1, 1, keepdim=True).values)
            gain = ((ahead - place).abs() * chosen).sum(1, keepdim=True)
            share = (left / gain.clamp(min=1e-300)).clamp(max=1.0)
            place = torch.where(chosen, torch.where(share < 1, place + share * (ahead - place), ahead), place)
            size = size.masked_fill(share < 1, torch.inf)  # this row has arrived

    def evaluations(self, x: Images) -> int:
        return self.steps + 1


class BlurIG(Method):
    """The gradient integrated while the image comes out of a Gaussian blur.

    Xu et al. 2020, eq. 5: the target's gradient along images of falling blur, times what each step of unblurring changes. The
    exact difference of the blurred images is taken for each step, and the gradient at the middle of its range of blurs, so
    unequal steps count for what they are. A map sums to target(x) - target(blurred x) up to the reported gap. No baseline color
    is needed. Units: those of the target.
    """

    steps: Annotated[int, "steps from the full blur to the image", AtLeast(1)] = 32
    sigma: Annotated[float, "deviation of the full blur, in pixels", AtLeast(0)] = 50.0
    spacing: Annotated[Literal["quadratic", "linear"], "of the blurs: dense near the image, or equal"] = "quadratic"
    border: Annotated[Literal["reflect", "zero"], "what lies outside: the image mirrored, or zero in input space"] = "reflect"

    title = "Blur integrated gradients"
    paper = Paper(
        "xu2020attribution", "Xu, Shawn and Venugopalan, Subhashini and Sundararajan, Mukund",
        "Attribution in Scale and Space", "CVPR", 2020, "2004.03383",
    )  # fmt: skip
    about = About(
        "decision", "which details, at which place, change the score when they appear", "steps x (1 forward + 1 backward)",
        "any differentiable network", "sees details only: a color that survives the blur gets nothing",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        if x.dim() != 4:
            raise UsageError(f"blurring needs (images, channels, rows, columns); got shape {tuple(x.shape)}")
        maps, start = torch.zeros_like(x, dtype=torch.float64), blurred_by(x, self._sigma(self.steps), self.border)
        before = start
        for block in probe.blocks(self.steps):
            order = [self.steps - k for k in block]
            middles = torch.stack([blurred_by(x, self._sigma(k - 0.5), self.border) for k in order], 1)
            gradients = probe.repeat(block).grad(middles.flatten(0, 1)).unflatten(0, (len(x), len(block)))
            for i, k in enumerate(order):
                after = blurred_by(x, self._sigma(k - 1), self.border)
                maps += gradients[:, i].double() * (after - before).double()
                before = after
        maps = maps.to(x)
        note_gap(probe, maps, target_change(probe, x, start), "completeness gap to the blurred image")
        return maps

    def _sigma(self, step: float) -> float:
        """The deviation at step 0 (none) .. steps (the full blur)."""
        done = step / self.steps
        return self.sigma * (done**2 if self.spacing == "quadratic" else done)

    def evaluations(self, x: Images) -> int:
        return self.steps + 2


def blurred_by(x: Images, sigma: float, border: Literal["reflect", "zero"]) -> Images:
    """Images under a Gaussian of deviation `sigma` pixels, cut at four deviations, by one matrix for each axis."""
    if sigma <= 0:
        return x
    rows, columns = (_blur_matrix(n, sigma, border).to(x) for n in x.shape[2:])
    return rows @ x @ columns.T


def _blur_matrix(length: int, sigma: float, border: str) -> Tensor:
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device="cpu")
    weights = torch.exp(-0.5 * (offsets.double() / sigma).square())
    weights /= weights.sum()
    places = torch.arange(length, device="cpu")[:, None] + offsets
    inside = (places >= 0) & (places < length)
    folded = places % (2 * length)
    folded = torch.where(folded < length, folded, 2 * length - 1 - folded)
    every = weights.expand(length, -1) * (inside if border == "zero" else torch.ones_like(inside))
    return torch.zeros(length, length, dtype=torch.float64, device="cpu").scatter_add_(1, folded, every)
