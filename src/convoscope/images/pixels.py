"""Plain pixels."""

from typing import Annotated

import torch

from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space


class Pixels(Image):
    """Every pixel is a parameter, kept in 0..1 by a sigmoid."""

    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    deviation: Annotated[float, "standard deviation of the starting noise, in logits"] = 0.01

    def begin(self, space: Space, draws: Draws) -> Parameters:
        return {"logits": draws.normal((space.channels, *space.size), "start") * self.deviation}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        return parameters["logits"].sigmoid()

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        margin = 1e-3  # pure black and white have no logit
        return {"logits": torch.logit(pixels.clamp(margin, 1 - margin))}
