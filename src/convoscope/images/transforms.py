"""How pictures are moved before a network sees them, so that what it likes cannot hang on single pixels.

Each row is moved on its own, by numbers that depend on its key and the step. Where a picture ends, it is mirrored: there are
no black borders.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast
from convoscope.images.base import Draws, PixelRows, Transform, image_size


class Jitter(Transform):
    """Shifts each picture by whole pixels, down and right, each from -pixels to pixels."""

    pixels: Annotated[int, "largest shift along each axis", AtLeast(0)] = 8
    border: Annotated[Literal["reflect", "wrap"], "what comes in: the picture mirrored, or its other end"] = "reflect"

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        most, (height, width) = self.pixels, pixels.shape[2:]
        if most == 0:
            return pixels
        if most >= min(height, width):
            raise UsageError(f"jitter by {most} pixels takes a larger picture; got {height} x {width}")
        shifts = _whole(draws.uniform((2,), ("jitter", most, step)), 2 * most + 1) - most
        if self.border == "wrap":
            moved = [torch.roll(row, shift, (1, 2)) for row, shift in zip(pixels, shifts.tolist(), strict=True)]
            return torch.stack(moved)
        wide = mirrored(pixels, most)
        moved = [
            row[:, most - down : most - down + height, most - right : most - right + width]
            for row, (down, right) in zip(wide, shifts.tolist(), strict=True)
        ]
        return torch.stack(moved)


class Spin(Transform):
    """Turns and scales each picture about its middle, in one bilinear resampling."""

    degrees: Annotated[float, "turned by up to so much either way", AtLeast(0)] = 10.0
    scale: Annotated[float, "scaled by 1 - scale to 1 + scale", AtLeast(0)] = 0.1

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        if self.scale >= 1:
            raise UsageError(f"a picture scaled by 1 - {self.scale:g} is gone; expected a scale under 1")
        if self.degrees == self.scale == 0:
            return pixels
        drawn = 2 * draws.uniform((2,), ("spin", self.degrees, self.scale, step)) - 1
        angle, zoom = drawn[:, 0] * math.radians(self.degrees), 1 + self.scale * drawn[:, 1]
        return resampled(pixels, _turn(angle, zoom, pixels.shape[2] / pixels.shape[3]), tuple(pixels.shape[2:]))


class Crops(Transform):
    """A box of each picture, resized: what a network sees must be in a part of the picture too (Fel et al. 2023).

    The sides of a box are a share of the picture's, drawn around `share`, its middle around the middle of the picture; boxes
    that reach over the border are moved in.
    """

    share: Annotated[float, "mean of a box's side over the picture's", AtLeast(0)] = 0.25
    spread: Annotated[float, "standard deviation of that", AtLeast(0)] = 0.1
    around: Annotated[float, "standard deviation of its middle from the picture's, in sides of the picture", AtLeast(0)] = 0.15
    size: Annotated[int | tuple | None, "side in pixels or (height, width) of what is seen; None: that of the picture"] = None

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        drawn = draws.normal((3,), ("crops", self.share, self.spread, self.around, step))
        side = (self.share + self.spread * drawn[:, 0]).clamp(0.05, 1)
        free = 1 - side  # of -1..1, how far a box may be from the middle
        down, right = (torch.minimum(torch.maximum(2 * self.around * drawn[:, k], -free), free) for k in (1, 2))
        zero = torch.zeros_like(side)
        theta = torch.stack([side, zero, right, zero, side, down], 1).view(-1, 2, 3)
        return resampled(pixels, theta, image_size(self.size, (pixels.shape[2], pixels.shape[3])))


class RandomCrop(Transform):
    """A window of each picture, of `size` pixels, anywhere in it, without resampling."""

    size: Annotated[int | tuple, "side in pixels or (height, width)"]

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        height, width = image_size(self.size, None)
        if height > pixels.shape[2] or width > pixels.shape[3]:
            raise UsageError(
                f"a window of {height} x {width} takes a larger picture; got {pixels.shape[2]} x {pixels.shape[3]}"
            )
        drawn = draws.uniform((2,), ("window", height, width, step))
        top, left = (_whole(drawn[:, k], pixels.shape[2 + k] - n + 1).tolist() for k, n in enumerate((height, width)))
        return torch.stack([row[:, y : y + height, x : x + width] for row, y, x in zip(pixels, top, left, strict=True)])


class Noise(Transform):
    """Adds noise to each pixel, afresh at each step."""

    amount: Annotated[float, "standard deviation, or half the range of uniform noise, in pixels 0..1", AtLeast(0)] = 0.1
    distribution: Annotated[Literal["normal", "uniform"], "how it is distributed"] = "normal"

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        if self.amount == 0:
            return pixels
        shape, draw = tuple(pixels.shape[1:]), ("noise", self.distribution, self.amount, step)
        drawn = draws.normal(shape, draw) if self.distribution == "normal" else 2 * draws.uniform(shape, draw) - 1
        return pixels + self.amount * drawn


def standard(size: int | tuple[int, int]) -> tuple[Transform, ...]:
    """The transforms that suit pictures of a size: shifts, turns and scales in proportion, small ones for small pictures."""
    side = size if isinstance(size, int) else min(size)
    if side < 48:
        return Jitter(min(4, side // 8)), Spin(5.0, 0.05)
    return Jitter(min(16, side // 12)), Spin(10.0, 0.1)


def mirrored(pixels: PixelRows, margin: int) -> PixelRows:
    """Pictures with a margin in which they are mirrored about their outermost pixels.

    As torch's reflection padding, whose gradient depends on the order of threads on a GPU.
    """
    for axis in (2, 3):
        size = pixels.shape[axis]
        before = pixels.narrow(axis, 1, margin).flip(axis)
        after = pixels.narrow(axis, size - margin - 1, margin).flip(axis)
        pixels = torch.cat([before, pixels, after], axis)
    return pixels


def resampled(pixels: PixelRows, theta: Float[Tensor, "rows 2 3"], size: tuple[int, int]) -> PixelRows:
    """Pictures of `size` seen through affine maps, from places in the new one to places in the old, both -1..1.

    Bilinear, and mirrored about the edges of the picture.
    """
    grid = F.affine_grid(theta, [len(pixels), pixels.shape[1], *size], align_corners=False)
    if pixels.device.type == "cpu":
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return gathered(pixels, grid)


def gathered(pixels: PixelRows, grid: Float[Tensor, "rows height width 2"]) -> PixelRows:
    """What grid_sample gives, whose gradient depends on the order of threads on a GPU; that of indexing does not."""
    (rows, channels), (height, width) = pixels.shape[:2], pixels.shape[2:]
    (left, right, b), (top, bottom, a) = _between(grid[..., 0], width), _between(grid[..., 1], height)
    places = pixels.flatten(2).mT  # (rows, places, channels)
    row = torch.arange(rows, device=pixels.device)[:, None]
    found = torch.zeros((), dtype=pixels.dtype, device=pixels.device)
    for y, down in ((top, 1 - a), (bottom, a)):
        for x, across in ((left, 1 - b), (right, b)):
            found = found + places[row, (y * width + x).flatten(1)] * (down * across).flatten(1)[..., None]
    return found.mT.reshape(rows, channels, *grid.shape[1:3])


def _between(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels around places -1..1 along an axis, and how far on the way from the first to the second they are."""
    at = ((places + 1) * size / 2).abs() % (2 * size)
    at = (torch.where(at > size, 2 * size - at, at) - 0.5).clamp(0, size - 1)
    first = at.floor()
    return first.long(), (first.long() + 1).clamp(max=size - 1), at - first


def _turn(angle: Tensor, zoom: Tensor, aspect: float) -> Float[Tensor, "rows 2 3"]:
    """The map of a turn and a zoom about the middle, of pictures with this height over width."""
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(angle)
    return torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1).view(-1, 2, 3)


def _whole(uniform: Tensor, count: int) -> Tensor:
    """Numbers uniform in 0..1 to whole ones from 0 to count - 1."""
    return (uniform * count).long().clamp(max=count - 1)
