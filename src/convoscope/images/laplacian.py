"""Pictures as sums of levels, each half as fine as the one before."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.spec import AtLeast, Paper
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space
from convoscope.images.color import color_axes, colored, uncolored
from convoscope.images.pixels import MARGIN


class Laplacian(Image):
    """The levels of a Laplacian pyramid are parameters: each is enlarged to the size of the one before and added to it.

    Like waves, levels let gradients move a picture at all scales alike, but each only where it is. Colors as for Fourier.
    """

    paper: ClassVar[Paper | None] = Paper(
        "burt1983laplacian", "Burt, Peter J. and Adelson, Edward H.",
        "The Laplacian pyramid as a compact image code", "IEEE Transactions on Communications", 1983,
    )  # fmt: skip
    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    decorrelate: Annotated[
        bool | Tensor, "optimize along axes of color: those of natural pictures (for three channels), none, or a matrix"
    ] = True
    levels: Annotated[int, "at most so many, fewer where the coarsest would be under 4 pixels", AtLeast(1)] = 6
    deviation: Annotated[float, "standard deviation of the parameters of the starting noise", AtLeast(0)] = 0.01

    def begin(self, space: Space, draws: Draws) -> Parameters:
        return {
            f"level{k}": draws.normal((space.channels, *size), ("start", k)) * self.deviation
            for k, size in enumerate(self._sizes(space.size))
        }

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        levels = [parameters[f"level{k}"] for k in range(len(self._sizes(space.size)))]
        found = levels[-1]
        for level in levels[-2::-1]:
            found = level + _enlarged(found, tuple(level.shape[2:]))
        return colored(found, color_axes(self.decorrelate, space)).sigmoid()

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        rest = uncolored(torch.logit(pixels.clamp(MARGIN, 1 - MARGIN)), color_axes(self.decorrelate, space))
        found, sizes = {}, self._sizes(space.size)
        for k, size in enumerate(sizes[1:]):
            coarse = F.interpolate(rest, size=size, mode="area")
            found[f"level{k}"] = rest - _enlarged(coarse, tuple(rest.shape[2:]))
            rest = coarse
        return {**found, f"level{len(sizes) - 1}": rest}

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        found = [size]
        while len(found) < self.levels and min(found[-1]) >= 8:
            found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
        return found


def _enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear enlargement, as a product along each axis: the gradient of torch's depends on the order of threads on a GPU."""
    down, across = (
        F.interpolate(torch.eye(old, dtype=x.dtype, device=x.device)[None], size=new, mode="linear", align_corners=False)[0]
        for old, new in zip(x.shape[2:], size, strict=True)
    )
    return down.T @ x @ across
