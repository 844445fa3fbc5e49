"""Pictures that a small network paints: what color is at each place?"""

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space


class CPPN(Image):
    """The weights of a network from a place to its color are parameters, a network of its own for each row.

    Compositional pattern-producing networks paint smooth, regular pictures, and the same one at any size. Places run from
    -sqrt(3) to sqrt(3) along the longer side. Each layer is followed by (atan, atan^2), scaled to unit variance.
    """

    paper: ClassVar[Paper | None] = Paper(
        "mordvintsev2018differentiable",
        "Mordvintsev, Alexander and Pezzotti, Nicola and Schubert, Ludwig and Olah, Chris",
        "Differentiable image parameterizations", "Distill", 2018,
    )  # fmt: skip
    rate: ClassVar[float] = 0.005
    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    hidden: Annotated[int, "units of each layer", AtLeast(1)] = 24
    layers: Annotated[int, "layers before the last one", AtLeast(1)] = 8

    def begin(self, space: Space, draws: Draws) -> Parameters:
        found, inputs = {}, 2
        for k in range(self.layers):
            found[f"weight{k}"] = draws.normal((self.hidden, inputs), ("start", k)) * math.sqrt(2 / inputs)
            found[f"bias{k}"] = torch.zeros_like(found[f"weight{k}"][:, :, :1])
            inputs = 2 * self.hidden
        last = draws.uniform((space.channels, inputs + 1), "last") * 0  # a gray picture
        return {**found, "weight": last[:, :, 1:], "bias": last[:, :, :1]}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        rows = len(parameters["weight"])
        x = _places(space).expand(rows, -1, -1)
        for k in range(self.layers):
            x = _bent(torch.baddbmm(parameters[f"bias{k}"], parameters[f"weight{k}"], x))
        return torch.baddbmm(parameters["bias"], parameters["weight"], x).sigmoid().view(rows, space.channels, *space.size)


def _places(space: Space) -> Tensor:
    """Rows and columns of all pixels, (2, height * width)."""
    height, width = space.size
    step = 2 * math.sqrt(3) / max(height, width)
    axes = [(torch.arange(n, device=space.device, dtype=space.dtype) - (n - 1) / 2) * step for n in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def _bent(x: Tensor) -> Tensor:
    bent = x.atan()
    return torch.cat([bent / 0.67, (bent.square() - 0.45) / 0.396], 1)
