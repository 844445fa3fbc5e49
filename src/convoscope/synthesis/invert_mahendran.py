"""What Mahendran and Vedaldi (2015) ask of a picture beside its code, and how they search for it.

They count in colors 0..255 less their mean, and relative to x0^2, the squared norm of a typical picture. Here x0^2 is the
number of values times the variance by which the network's own normalization divides, so that nothing has to be measured.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.images.base import Draws, Parameters, PixelRows, Rows, Space
from convoscope.network import Network

RATES = (0.004,) * 100 + (0.0004,) * 200 + (0.00004,) * 100
ALPHA, BETA, BOUNDED = 6, 2, 8e-10  # exponents of the two norms, the weight of the first


class Centered:
    """Pixels about the network's mean, free to leave 0..1, from noise with the deviation of pictures."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def begin(self, space: Space, draws: Draws) -> Parameters:
        """Noise."""
        return {"values": draws.normal((space.channels, *space.size), "start") * _deviation(self.std)}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        """Pixels, of which most are in 0..1."""
        values = parameters["values"]
        return values + torch.tensor(self.mean, dtype=values.dtype, device=values.device).view(-1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {"kind": "image", "name": "centered", "mean": list(self.mean), "std": list(self.std)}


class NaturalPrior:
    """Their two norms over x0^2: `variation / 2 sum (down^2 + right^2)^(beta/2) + 8e-10 / 2 sum |x|^6`, in colors 0..255."""

    weight = 1.0

    def __init__(self, variation: float, mean: Sequence[float], std: Sequence[float]) -> None:
        self.variation, self.mean, self.std = variation, tuple(mean), tuple(std)

    def __call__(self, pixels: PixelRows) -> Rows:
        """The two norms of each row."""
        x = 255 * (pixels - torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1))
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        down[:, :, :-1], right[..., :-1] = x.diff(dim=2), x.diff(dim=3)
        varies = (down.square() + right.square()).pow(BETA / 2).flatten(1).sum(1)
        large = x.abs().pow(ALPHA).flatten(1).sum(1)
        return (self.variation / 2 * varies + BOUNDED / 2 * large) / (x[0].numel() * (255 * _deviation(self.std)) ** 2)

    def to_dict(self) -> dict[str, Any]:
        """What it is, as JSON values."""
        return {"kind": "penalty", "name": "natural-prior", "variation": self.variation, "std": list(self.std)}


def _deviation(std: Sequence[float]) -> float:
    return float(torch.tensor(std, dtype=torch.float64).square().mean().sqrt())


def schedule(space: Space, std: Sequence[float]) -> list[float]:
    """The rate of each step, for pixels 0..1: theirs counts in x0^2."""
    scale = space.channels * space.size[0] * space.size[1] * _deviation(std) ** 2
    return [rate * scale for rate in RATES]


def strength(network: Network, space: Space, address: str) -> float:
    """The weight of the total variation: 1, 10 or 100 in the first, second and last third of the network."""
    x: Float[Tensor, "1 channels height width"] = torch.zeros(
        1, space.channels, *space.size, device=space.device, dtype=space.dtype
    )
    trace = network.trace(x)
    left = len(trace.tail(address)) / max(1, len(trace.tail("input")))
    return 1.0 if left > 2 / 3 else 10.0 if left > 1 / 3 else 100.0
