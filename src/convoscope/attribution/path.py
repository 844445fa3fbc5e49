"""Gradients along a path from a baseline to the image."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

Baseline = Literal["black", "white", "mean", "blur", "uniform"] | float | Tensor


def note_completeness(probe: Probe, maps: Maps, x: Images, start: Images) -> None:
    """Notes by how much the maps miss the target's change from `start` to `x`, and that as a fraction of the change."""
    one = bool((start[:1] == start).all())
    change = probe.score(x) - (probe.shared_score(start[:1]) if one else probe.score(start))
    gap = maps.flatten(1).sum(1) - change
    probe.note("completeness gap", gap)
    probe.note("completeness gap relative", gap.abs() / change.abs().clamp(min=torch.finfo(change.dtype).tiny))


class IntegratedGradients(Method):
    """The gradient averaged on the straight line from a baseline to the image, times their difference.

    Complete: a map sums to target(x) - target(baseline), up to the reported gap of the quadrature. Units: those of the
    target. Sundararajan et al. 2017, eq. 1. Points lie at the middle of equal intervals, which on piecewise linear networks
    needs about a quarter of the steps of a left or right sum for the same gap.
    """

    steps: Annotated[int, "points on the line", AtLeast(1)] = 32
    baseline: Annotated[Baseline, "where the line starts: a name, a number or a tensor in input space"] = "black"

    title = "Integrated gradients"
    complete = True
    default = True
    paper = Paper(
        "sundararajan2017axiomatic", "Sundararajan, Mukund and Taly, Ankur and Yan, Qiqi",
        "Axiomatic Attribution for Deep Networks", "ICML", 2017, "1703.01365",
    )  # fmt: skip
    about = About(
        "decision", "how much each pixel changed the score from the baseline's", "steps x (1 forward + 1 backward)",
        "any differentiable network", "depends on the baseline: what looks like it gets nothing",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        start = probe.baseline(self.baseline, x)
        total = torch.zeros_like(x)
        for block in probe.blocks(self.steps):
            t = (torch.tensor(block, dtype=x.dtype, device=x.device) + 0.5).div(self.steps).view(1, -1, *[1] * (x.dim() - 1))
            points = (start[:, None] + t * (x - start)[:, None]).flatten(0, 1)
            total += probe.repeat(block).grad(points).unflatten(0, (len(x), len(block))).sum(1)
        maps = (x - start) * (total / self.steps)
        note_completeness(probe, maps, x, start)
        return maps

    def evaluations(self, x: Images) -> int:
        return self.steps + 2
