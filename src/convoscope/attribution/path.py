"""Gradients along the straight line from a baseline to the image."""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from convoscope.core.errors import SpecError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

Baseline = Literal["black", "white", "mean", "blur", "uniform"] | float | Tensor
Rule = Literal["graded", "midpoint", "gauss-legendre", "trapezoid"]


def quadrature(rule: Rule, points: int) -> tuple[list[float], list[float]]:
    """Nodes in 0..1 and weights, which sum to 1.

    "graded" are midpoints after the substitution t = s^2, dense near 0. The trapezoid rule has both ends among its nodes.
    """
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(points)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "graded":
        middles = [(k + 0.5) / points for k in range(points)]
        return [s * s for s in middles], [2 * s / points for s in middles]
    if rule == "midpoint":
        return [(k + 0.5) / points for k in range(points)], [1 / points] * points
    if points < 2:
        raise SpecError(f"the trapezoid rule needs both ends, so at least 2 points; got {points}")
    inner = 1 / (points - 1)
    return [k * inner for k in range(points)], [inner / 2, *[inner] * (points - 2), inner / 2]


def on_line(x: Tensor, start: Tensor, nodes: list[float]) -> Tensor:
    """The points `start + t (x - start)` of each row for each t, rows first."""
    t = torch.tensor(nodes, dtype=torch.float64, device=x.device).to(x.dtype).view(1, -1, *[1] * (x.dim() - 1))
    return (start[:, None] + t * (x - start)[:, None]).flatten(0, 1)


def target_change(probe: Probe, x: Images, start: Images) -> Tensor:
    """target(x) - target(start) of each row, with one evaluation for a start that all share."""
    one = bool((start[:1] == start).all())
    return (probe.score(x) - (probe.shared_score(start[:1]) if one else probe.score(start))).double()


def note_gap(probe: Probe, maps: Maps, change: Tensor, name: str = "completeness gap") -> None:
    """Notes by how much the maps miss a change of the target, and that as a fraction of the change."""
    gap = maps.flatten(1).sum(1, dtype=torch.float64) - change
    probe.note(name, gap)
    probe.note(f"{name} relative", gap.abs() / change.abs().clamp(min=torch.finfo(maps.dtype).tiny))


class IntegratedGradients(Method):
    """The gradient averaged on the straight line from a baseline to the image, times their difference.

    Complete: a map sums to target(x) - target(baseline), up to the reported gap of the quadrature. Units: those of the
    target. Sundararajan et al. 2017, eq. 1. The default lays points the denser the nearer to the baseline, where the score of
    photographs changes most: midpoints in s for t = s^2. "midpoint" and "trapezoid" are equally spaced, Gauss-Legendre points
    lie denser towards both ends. Sums are taken in double precision.

    With a `tolerance`, each image gets more points, three times as many intervals at a time for midpoints and twice for
    trapezoids, all earlier ones used again, until its relative gap is below it. `share_gap` adds what is missing in
    proportion to (x - baseline)^2, which costs nothing and makes the sum exact for any number of points: the mean gradient
    is projected on those that are complete, among which the true one is, so it cannot come to lie farther from that (in
    least squares), nor much closer. It is no part of the paper; the gap before that is reported as well.
    """

    steps: Annotated[int, "points on the line; with a tolerance, those to start with", AtLeast(1)] = 32
    baseline: Annotated[Baseline, "where the line starts: a name, a number or a tensor in input space"] = "black"
    rule: Annotated[Rule, "where points lie and what they weigh"] = "graded"
    tolerance: Annotated[float | None, "relative completeness gap at which points suffice; none: as many as steps"] = None
    most: Annotated[int, "with a tolerance, at most so many points", AtLeast(1)] = 512
    share_gap: Annotated[bool, "add what is missing, in proportion to (x - baseline)^2"] = False

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
        change = target_change(probe, x, start)
        maps = ((x - start).double() * self.mean_gradient(probe, x, start, change)).to(x)
        if self.share_gap:
            note_gap(probe, maps, change, "completeness gap of the quadrature")
            way = (x - start).double().square()
            missing = change - maps.flatten(1).sum(1, dtype=torch.float64)
            maps = (maps.double() + missing.view(-1, *[1] * (x.dim() - 1)) * _fraction(way)).to(x)
        note_gap(probe, maps, change)
        return maps

    def mean_gradient(self, probe: Probe, x: Images, start: Images, change: Tensor | None = None) -> Tensor:
        """The mean gradient on the line, in double precision; `change` of the target is needed for a tolerance."""
        if self.tolerance is None and self.rule == "trapezoid" and self.steps > 1:
            return line_sums(probe, x, start, self.baseline, self.steps - 1)[0]
        if self.tolerance is None or change is None:
            return probe.once(
                x, replace(self, share_gap=False), lambda: _weighted(probe, x, start, *quadrature(self.rule, self.steps))
            )
        return self._refined(probe, x, start, change)

    def _refined(self, probe: Probe, x: Images, start: Images, change: Tensor) -> Tensor:
        if self.rule == "gauss-legendre":
            raise SpecError("Gauss-Legendre points are of no use to a finer rule; with a tolerance, use graded or midpoint")
        times = 2 if self.rule == "trapezoid" else 3
        nodes, weights = quadrature(self.rule, self.steps)
        intervals, used = (self.steps, self.steps) if times == 3 else (self.steps - 1, self.steps)
        mean, points = torch.zeros_like(x, dtype=torch.float64), torch.zeros(len(x), device="cpu")
        unfinished = torch.arange(len(x), device="cpu")
        while True:
            some = replace(probe, rows=probe.rows[unfinished], keys=tuple(probe.keys[i] for i in unfinished))
            here = unfinished.to(x.device)
            mean[here] += _weighted(some, x[here], start[here], nodes, weights)
            points[unfinished] = used
            gap = ((x - start)[here].double() * mean[here]).flatten(1).sum(1) - change[here]
            unfinished = unfinished[(gap.abs() > float(self.tolerance or 0) * change[here].abs()).cpu()]
            if not len(unfinished) or times * intervals + (times == 2) > self.most:
                break
            finer = intervals * times if times == 3 else intervals
            nodes = [(k + 0.5) / finer for k in range(finer) if times == 2 or k % 3 != 1]
            intervals *= times
            used += len(nodes)
            mean[unfinished.to(x.device)] /= times
            weights = [1 / intervals] * len(nodes)
            if self.rule == "graded":
                nodes, weights = [s * s for s in nodes], [2 * s / intervals for s in nodes]
        probe.note("points", points)
        return mean

    def evaluations(self, x: Images) -> int:
        return (self.steps if self.tolerance is None else max(self.steps, self.most)) + 2


def _weighted(probe: Probe, x: Images, start: Images, nodes: list[float], weights: list[float]) -> Tensor:
    """The weighted sum of the gradients at some nodes of the line, in double precision."""
    total = torch.zeros_like(x, dtype=torch.float64)
    for block in probe.blocks(len(nodes)):
        points = on_line(x, start, [nodes[k] for k in block])
        gradients = probe.repeat(block).grad(points).unflatten(0, (len(x), len(block))).double()
        weight = torch.tensor([weights[k] for k in block], dtype=torch.float64, device=x.device)
        total += torch.einsum("k,bk...->b...", weight, gradients)
    return total


def line_sums(probe: Probe, x: Images, start: Images, baseline: Baseline, intervals: int) -> tuple[Tensor, Tensor, Tensor]:
    """One sweep over the ends of equal intervals of the line.

    The mean gradient by the trapezoid rule; the sum over intervals of the target's change times the squared gradient at the
    interval's start as a fraction of its sum; the target at every end `(rows, intervals + 1)`. In double precision.
    """

    def make() -> tuple[Tensor, Tensor, Tensor]:
        nodes, weights = quadrature("trapezoid", intervals + 1)
        mean, shares = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
        direction, scores = None, torch.zeros(len(x), 0, dtype=torch.float64, device=x.device)
        for block in probe.blocks(len(nodes)):
            found = probe.repeat(block).grad_and_score(on_line(x, start, [nodes[k] for k in block]))
            gradients, values = (t.unflatten(0, (len(x), len(block))).double() for t in found)
            scores = torch.cat([scores, values], 1)
            for i, k in enumerate(block):
                if direction is not None:
                    shares += direction * (scores[:, k] - scores[:, k - 1]).view(-1, *[1] * (x.dim() - 1))
                mean += weights[k] * gradients[:, i]
                direction = _fraction(gradients[:, i].square())
        return mean, shares, scores

    key = IntegratedGradients(steps=intervals + 1, baseline=baseline, rule="trapezoid")
    return probe.once(x, ("line sums", key), make)


def _fraction(squares: Tensor) -> Tensor:
    """Each value as a fraction of its row's sum; zero where that is zero."""
    total = squares.flatten(1).sum(1).view(-1, *[1] * (squares.dim() - 1))
    return squares / torch.where(total > 0, total, torch.ones_like(total))


class IDGI(Method):
    """The target's change on each step from a baseline to the image, shared among pixels by their squared gradient.

    Yang et al. 2023, algorithm 1, on the straight line. Only the part of a step that runs along the gradient counts, which
    removes what integrated gradients pick up from gradients across it. Complete for any number of steps, except where the
    gradient vanishes at the start of a step on which the target changes: that change is the reported gap. Units: those of
    the target. Unlike integrated gradients it gives something to pixels that equal the baseline.
    """

    steps: Annotated[int, "steps from the baseline to the image", AtLeast(1)] = 32
    baseline: Annotated[Baseline, "where the line starts: a name, a number or a tensor in input space"] = "black"

    title = "IDGI"
    complete = True
    paper = Paper(
        "yang2023idgi", "Yang, Ruo and Wang, Binghui and Bilgic, Mustafa",
        "IDGI: A Framework to Eliminate Explanation Noise from Integrated Gradients", "CVPR", 2023, "2303.14242",
    )  # fmt: skip
    about = About(
        "decision", "where the change of the score from the baseline's happens, with less noise",
        "steps x (1 forward + 1 backward)", "any differentiable network",
        "one sign for all pixels of a step; follows gradients, not what the pixels changed",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        start = probe.baseline(self.baseline, x)
        _, shares, scores = line_sums(probe, x, start, self.baseline, self.steps)
        note_gap(probe, shares, scores[:, -1] - scores[:, 0])
        return shares.to(x)

    def evaluations(self, x: Images) -> int:
        return self.steps + 1


class ExpectedGradients(Method):
    """The gradient times the way from a baseline, averaged over baselines drawn from data and places drawn on the way.

    Erion et al. 2021, eq. 3; known as GradientSHAP as well. Baseline and place are drawn together for each sample. Complete in
    expectation: a map sums to target(x) - the mean target of the baselines, up to the reported standard error of its sum.
    Units: those of the target.
    """

    baseline: Annotated[Baseline, "what is drawn from: a tensor (N, C, H, W) in input space, or uniform for noise"] = "uniform"
    samples: Annotated[int, "draws for each image", AtLeast(2)] = 64

    title = "Expected gradients"
    stochastic = True
    paper = Paper(
        "erion2021improving",
        "Erion, Gabriel and Janizek, Joseph D. and Sturmfels, Pascal and Lundberg, Scott M. and Lee, Su-In",
        "Improving performance of deep learning models with axiomatic attribution priors and expected gradients",
        "Nature Machine Intelligence 3", 2021, "1906.10670",
    )  # fmt: skip
    about = About(
        "decision", "how much each pixel changed the score from that of typical images", "samples x (1 forward + 1 backward)",
        "any differentiable network", "needs data to compare with; noisy with few samples",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        total, sums = torch.zeros_like(x, dtype=torch.float64), []
        for block in probe.blocks(self.samples):
            copies, repeated = probe.repeat(block), x.repeat_interleave(len(block), 0)
            start = self._drawn(copies, repeated)
            place = copies.uniform(x.new_zeros(len(repeated), 1), draw=1).view(-1, *[1] * (x.dim() - 1))
            parts = (repeated - start) * copies.grad(torch.lerp(start, repeated, place))
            parts = parts.double().unflatten(0, (len(x), len(block)))
            total += parts.sum(1)
            sums.append(parts.flatten(2).sum(2))
        probe.note("standard error of the sum", torch.cat(sums, 1).std(1) / self.samples**0.5)
        return (total / self.samples).to(x)

    def _drawn(self, copies: Probe, repeated: Tensor) -> Tensor:
        data = self.baseline
        if not isinstance(data, Tensor) or len(data) == 1:
            return copies.baseline(data, repeated)
        if data.shape[1:] != repeated.shape[1:] or not len(data):
            raise UsageError(f"baselines are (N, {', '.join(map(str, repeated.shape[1:]))}); got {tuple(data.shape)}")
        drawn = copies.uniform(repeated.new_zeros(len(repeated), 1, dtype=torch.float32), draw=2)[:, 0]
        return data.to(repeated)[(drawn * len(data)).long().clamp(max=len(data) - 1)]

    def evaluations(self, x: Images) -> int:
        return self.samples
