"""Masks found by gradient descent: the smallest deletion that ruins the score, the area of given size that keeps it."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.attribution.regions import Fill, filled
from convoscope.core.errors import SpecError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

Masks = Float[Tensor, "rows height width"]


def minimized(
    start: Masks, steps: int, rate: float, energy: Callable[[float, int, Masks], Tensor], alike: bool = False
) -> Masks:  # fmt: skip
    """Masks within 0..1 after `steps` of Adam on the sum of their energies; what is done to one depends on no other.

    `energy` is given the time 0..1 and the number of the step. After `_HELD` of the time, steps shrink to a tenth. With
    `alike`, all cells of a mask share one second moment, so that those that matter more move faster.
    """
    masks, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
    for step in range(steps):
        time = step / steps
        with torch.enable_grad():
            leaf = masks.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(time, step, leaf), leaf)
        second = (slope**2).mean((1, 2), keepdim=True) if alike else slope**2
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * second
        moved = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        masks = (masks - rate * (1 - 0.9 * _late(time)) * moved).clamp(0, 1)
    return masks


_HELD = 0.6


def _late(time: float) -> float:
    """0 until `_HELD`, then rising to 1."""
    return max(0.0, (time - _HELD) / (1 - _HELD))


def enlarged(masks: Masks, x: Images) -> Tensor:
    """Masks of any size at that of the images `(rows, 1, H, W)`, bilinearly."""
    return F.interpolate(masks[:, None], tuple(x.shape[2:]), mode="bilinear", align_corners=False)


class Scores:
    """The target of images in units of its change when all is hidden, so that weights hold for logits as for probabilities.

    What is better than the image itself, or worse than nothing at all, counts no more: a probability would be at its end, a
    logit would not.
    """

    def __init__(self, probe: Probe, x: Images, hidden: Images, copies: int = 1) -> None:
        self.probe = probe.repeat(range(copies)) if copies > 1 else probe
        ends = torch.stack([probe.score(x), probe.score(hidden)]).repeat_interleave(copies, 1)
        self.low, self.high = ends.amin(0), ends.amax(0)
        self.unit = torch.maximum(self.high - self.low, 1e-3 * ends[0].abs()).clamp(min=1e-12)

    def linearized(self, pictures: Tensor, upward: bool) -> Tensor:
        """A sum that has the gradient of the scores' sum with respect to what the pictures are made of."""
        gradient, score = self.probe.grad_and_score(pictures.detach())
        open_ = score < self.high if upward else score > self.low
        return (pictures * (gradient * (open_ / self.unit).view(-1, 1, 1, 1))).sum()


def _check(method: Method, x: Images) -> None:
    if x.dim() != 4:
        raise UsageError(f"{method.title} masks (images, channels, rows, columns); got shape {tuple(x.shape)}")


class MeaningfulPerturbation(Method):
    """How much of each place is deleted by the smallest smooth mask that brings the score down.

    Fong and Vedaldi 2017, eq. 3 and 4: Adam on `f + sparsity * sum(1 - m) + smoothness * sum |grad m|^power`, over a coarse
    mask that is enlarged bilinearly, the image shifted at random in every step. Here `f` is the target in units of its change
    when everything is hidden, and what is below that counts no more, so that the weights hold for logits as for
    probabilities. Values are 0 (kept) to 1 (deleted).
    """

    steps: Annotated[int, "steps of gradient descent", AtLeast(1)] = 200
    cells: Annotated[int, "cells of the mask along each side", AtLeast(1)] = 28
    sparsity: Annotated[float, "weight of what is deleted, in cells", AtLeast(0)] = 2e-3
    smoothness: Annotated[float, "weight of differences between neighbors", AtLeast(0)] = 1e-2
    power: Annotated[float, "exponent of these differences", AtLeast(1)] = 3.0
    jitter: Annotated[int, "largest shift of the image in pixels, at most an eighth of its side", AtLeast(0)] = 4
    rate: Annotated[float, "size of a step", AtLeast(0)] = 0.1
    fill: Annotated[Fill, "what stands for deleted: a name, a number or a tensor in input space"] = "blur"

    title, unit = "Meaningful perturbation", "fraction deleted"
    stochastic, signed = True, False
    paper = Paper(
        "fong2017interpretable", "Fong, Ruth C. and Vedaldi, Andrea",
        "Interpretable Explanations of Black Boxes by Meaningful Perturbation", "ICCV", 2017, "1704.03296",
    )  # fmt: skip
    about = About(
        "decision", "the smallest region without which the score falls", "steps x (1 forward + 1 backward)",
        "any differentiable network", "slow; depends on its weights and on what stands for deleted",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        _check(self, x)
        hidden = filled(probe, x, self.fill)
        scores = Scores(probe, x, hidden)

        def energy(time: float, step: int, masks: Masks) -> Tensor:
            places = self._shifted(probe, x, step)
            pictures = torch.lerp(hidden[places], x[places], enlarged(masks, x))
            rough = sum((masks.diff(dim=d).abs() ** self.power).sum() for d in (1, 2))
            return scores.linearized(pictures, False) + self.sparsity * (1 - masks).sum() + self.smoothness * rough

        sides = [min(self.cells, n) for n in x.shape[2:]]
        masks = enlarged(minimized(x.new_full((len(x), *sides), 0.5), self.steps, self.rate, energy), x)
        probe.note("area", 1 - masks.flatten(1).mean(1))
        probe.note("target when deleted", probe.score(torch.lerp(hidden, x, masks)))
        return 1 - masks

    def _shifted(self, probe: Probe, x: Images, step: int) -> tuple[Tensor, ...]:
        """Where in `x` the pixels of the shifted images come from, edges repeated."""
        drawn = probe.uniform(x.new_empty(len(x), 2, dtype=torch.float32), draw=step)
        where = []
        for axis, length in enumerate(x.shape[2:]):
            reach = min(self.jitter, length // 8)
            shift = (drawn[:, axis] * (2 * reach + 1)).long().clamp(max=2 * reach) - reach
            where.append((torch.arange(length, device=x.device) + shift[:, None]).clamp(0, length - 1))
        rows, channels = (torch.arange(n, device=x.device) for n in x.shape[:2])
        return rows[:, None, None, None], channels[:, None, None], where[0][:, None, :, None], where[1][:, None, None, :]

    def evaluations(self, x: Images) -> int:
        return self.steps + 3


def spread_out(seeds: Masks, width: float, temperature: float = 0.05) -> Masks:
    """Smooth masks: at each cell the smooth maximum of the seeds around it, each times a Gaussian of its distance.

    Fong et al. 2019, section 3.3, with a Gaussian kernel of `width` cells; divided by what a mask of ones gives, so that ones
    stay ones.
    """
    reach = max(1, math.ceil(2.5 * width))
    offsets = torch.arange(-reach, reach + 1, device=seeds.device, dtype=seeds.dtype)
    near = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * width**2)).flatten()
    padded = F.pad(seeds[:, None], (reach,) * 4, mode="replicate")
    around = F.unfold(padded, 2 * reach + 1).view(len(seeds), -1, *seeds.shape[1:])
    weighted = around * near[:, None, None]
    ones = (torch.softmax(near / temperature, 0) * near).sum()
    return ((torch.softmax(weighted / temperature, 1) * weighted).sum(1) / ones).clamp(max=1)


def area_reference(masks: Masks, area: Tensor) -> Masks:
    """Ones in the largest fraction `area` of each mask and zeros elsewhere: the nearest mask that keeps to the area.

    Values that are equal but for rounding share what is left for them.
    """
    values, asked = masks.detach().flatten(1), area * masks[0].numel()
    order = values.sort(1, descending=True).values
    bound = order.gather(1, (asked.ceil().long() - 1).clamp(0, order.shape[1] - 1)[:, None])
    above, level = values > bound + 1e-6, (values - bound).abs() <= 1e-6
    part = (asked[:, None] - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
    return (above + level * part.clamp(0, 1)).view_as(masks)


class Blurs:
    """Each image at increasing blur, up to a deviation of `most` pixels."""

    def __init__(self, x: Images, most: float, levels: int = 8) -> None:
        self.levels = torch.stack([x, *(_blurred(x, most * k / (levels - 1)) for k in range(1, levels))], 1)

    @property
    def last(self) -> Images:
        return self.levels[:, -1]

    def __call__(self, masks: Tensor) -> Images:
        """Images `(rows, C, H, W)` in which places are blurred the more the smaller the mask `(rows, 1, H, W)` is there."""
        copies = len(masks) // len(self.levels)
        levels = self.levels if copies == 1 else self.levels.repeat_interleave(copies, 0)
        depth = (1 - masks) * (levels.shape[1] - 1)
        index = depth.detach().floor().long().clamp(0, levels.shape[1] - 2)
        near, far = (levels.gather(1, (index + k)[:, None].expand(-1, -1, levels.shape[2], -1, -1))[:, 0] for k in (0, 1))
        return near + (depth - index) * (far - near)


def _blurred(x: Images, sigma: float) -> Images:
    """Gaussian blur; at the borders the mean is of what is inside."""
    for axis in (2, 3):
        places = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
        weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))
        weights = weights / weights.sum(1, keepdim=True)
        x = weights @ x if axis == 2 else x @ weights.T
    return x


class ExtremalPerturbation(Method):
    """The smooth mask of a given area that keeps the score highest when all else is blurred; or whose blurring ruins it.

    Fong et al. 2019, eq. 3 and 4: masks are smooth maxima over coarse seeds; they pay for deviating from a mask that is one in
    the largest `area` of their values and zero elsewhere. From the image as it is, the area kept shrinks (or the area blurred
    grows) to the one asked for, then its cost rises to `weight`. Scores count in units of their change when all is blurred,
    between that of the image and that of the blur.
    Of several areas, the mean of the masks; for each, the area and the target reached are reported.
    """

    area: Annotated[float | tuple, "fraction of the image, or several of them"] = 0.1
    mode: Annotated[Literal["preserve", "delete"], "the mask is what is kept, or what is blurred"] = "preserve"
    steps: Annotated[int, "steps of gradient descent", AtLeast(1)] = 200
    cells: Annotated[int, "seeds along each side", AtLeast(1)] = 32
    width: Annotated[float, "width of a seed's mask, as a fraction of the side", AtLeast(0.001)] = 0.06
    blur: Annotated[float, "deviation of the strongest blur, as a fraction of the shorter side", AtLeast(0.001)] = 0.09
    weight: Annotated[float, "cost of another area, at the end", AtLeast(0)] = 300.0
    rate: Annotated[float, "size of a step", AtLeast(0)] = 0.1

    title, unit = "Extremal perturbation", "fraction of the masks"
    signed = False
    paper = Paper(
        "fong2019understanding", "Fong, Ruth and Patrick, Mandela and Vedaldi, Andrea",
        "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", "ICCV", 2019, "1910.08485",
    )  # fmt: skip
    about = About(
        "decision", "the region of given size that matters most", "steps x (1 forward + 1 backward)",
        "any differentiable network", "slow; shows where, not how much; the area is a choice",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        _check(self, x)
        areas = self._areas()
        blurs = Blurs(x, self.blur * min(x.shape[2:]))
        scores, area = Scores(probe, x, blurs.last, len(areas)), x.new_tensor(areas).repeat(len(x))
        width, keep = self.width * self.cells, self.mode == "preserve"

        def energy(time: float, step: int, seeds: Masks) -> Tensor:
            masks = spread_out(seeds, width)
            shown = enlarged(masks if keep else 1 - masks, x)
            part = min(1.0, time / _HELD)
            goal = area_reference(masks, area**part if keep else area * part)
            off = ((masks - goal) ** 2).flatten(1).mean(1).sum()
            return (-1 if keep else 1) * scores.linearized(blurs(shown), keep) + self.weight / 20 ** (1 - _late(time)) * off

        start = x.new_full((len(area), self.cells, self.cells), 0.9 if keep else 0.1)
        masks = enlarged(spread_out(minimized(start, self.steps, self.rate, energy, alike=True), width), x)
        reached = scores.probe.score(blurs(masks if keep else 1 - masks))
        for k, a in enumerate(areas):
            probe.note(f"area {a:g} reached", masks[k :: len(areas)].flatten(1).mean(1))
            probe.note(f"area {a:g} target", reached[k :: len(areas)])
        return masks.unflatten(0, (len(x), len(areas))).mean(1)

    def _areas(self) -> tuple[float, ...]:
        areas = self.area if isinstance(self.area, tuple) else (self.area,)
        if not areas or not all(isinstance(a, int | float) and 0 < a < 1 for a in areas):
            raise SpecError(f"extremal-perturbation: area is {self.area}; expected fractions between 0 and 1")
        return areas

    def evaluations(self, x: Images) -> int:
        return 2 + len(self._areas()) * (self.steps + 1)
