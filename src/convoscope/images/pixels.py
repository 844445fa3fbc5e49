"""Plain pixels."""

from typing import Annotated, Literal

import torch

from convoscope.core.spec import AtLeast
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space

MARGIN = 1e-3  # pure black and white have no logit


class Pixels(Image):
    """Every pixel is a parameter, kept in 0..1 by a sigmoid; or, with `bound="clip"`, by clipping after each step.

    Clipped ones are the pixels themselves, as in gradient ascent on a picture: a step of 0.01 moves them by 0.01.
    """

    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    bound: Annotated[Literal["sigmoid", "clip"], "what keeps pixels in 0..1"] = "sigmoid"
    deviation: Annotated[float, "standard deviation of the starting noise, in logits or in pixels", AtLeast(0)] = 0.01

    def begin(self, space: Space, draws: Draws) -> Parameters:
        noise = draws.normal((space.channels, *space.size), "start") * self.deviation
        return {"pixels": (0.5 + noise).clamp(0, 1)} if self.bound == "clip" else {"logits": noise}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        return parameters["pixels"] if self.bound == "clip" else parameters["logits"].sigmoid()

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        if self.bound == "clip":
            return {"pixels": pixels.clamp(0, 1)}
        return {"logits": torch.logit(pixels.clamp(MARGIN, 1 - MARGIN))}

    def settle(self, parameters: Parameters, space: Space, step: int) -> None:
        if self.bound == "clip":
            parameters["pixels"].clamp_(0, 1)
