"""Pictures as sums of waves, which gradients move at all scales alike."""

import functools
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space
from convoscope.images.color import color_axes, colored, uncolored
from convoscope.images.pixels import MARGIN

CONTRAST = 0.25  # of the published code: with it a rate of 0.05 suits


class Fourier(Image):
    """The real and imaginary part of every wave is a parameter, those of long waves worth more: 1 / frequency^decay.

    Spectra of natural pictures fall off so; a step of the optimizer then changes all scales alike, and pictures come out
    smooth. Colors are optimized along the axes along which they vary in pictures, and kept in 0..1 by a sigmoid.
    """

    paper: ClassVar[Paper | None] = Paper(
        "olah2017feature", "Olah, Chris and Mordvintsev, Alexander and Schubert, Ludwig",
        "Feature visualization", "Distill", 2017,
    )  # fmt: skip
    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    decorrelate: Annotated[
        bool | Tensor, "optimize along axes of color: those of natural pictures (for three channels), none, or a matrix"
    ] = True
    decay: Annotated[float, "waves count as 1 / frequency^decay; 0 is all alike", AtLeast(0)] = 1.0
    deviation: Annotated[float, "standard deviation of the parameters of the starting noise", AtLeast(0)] = 0.01

    def begin(self, space: Space, draws: Draws) -> Parameters:
        height, width = space.size
        return {"spectrum": draws.normal((space.channels, height, width // 2 + 1, 2), "start") * self.deviation}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        spectrum = torch.view_as_complex(parameters["spectrum"] * self._scale(space)[..., None])
        waves = torch.fft.irfft2(spectrum, s=space.size, norm="ortho")
        return colored(waves, color_axes(self.decorrelate, space)).sigmoid()

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        logits = torch.logit(pixels.clamp(MARGIN, 1 - MARGIN))
        waves = uncolored(logits, color_axes(self.decorrelate, space))
        spectrum = torch.view_as_real(torch.fft.rfft2(waves, norm="ortho"))
        return {"spectrum": spectrum / self._scale(space)[..., None]}

    def _scale(self, space: Space) -> Float[Tensor, "height half"]:
        return CONTRAST * frequencies(space.size, space.device, space.dtype) ** -self.decay


@functools.lru_cache(maxsize=16)
def frequencies(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Float[Tensor, "height half"]:
    """The frequency of each entry of an rfft2, in waves per pixel; the constant counts as one wave over the longer side."""
    height, width = size
    with torch.inference_mode(False):  # what is kept may be needed for gradients later
        vertical = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        horizontal = torch.fft.rfftfreq(width, dtype=torch.float64)
        found = (vertical.square() + horizontal.square()).sqrt().clamp(min=1 / max(height, width))
        return found.to(device, dtype)
