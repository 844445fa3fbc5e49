"""Pictures with the spectrum of real ones: only the phases are optimized."""

import math
from typing import Annotated, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.images.base import Draws, Image, Parameters, PixelRows, Space, Transform
from convoscope.images.color import color_axes, colored, uncolored
from convoscope.images.fourier import frequencies
from convoscope.images.measured import Spectrum, measure, natural_axes
from convoscope.images.pixels import MARGIN
from convoscope.images.transforms import Crops, Noise

Magnitude = Float[Tensor, "channels height half"]


class MACO(Image):
    """The phase of every wave is a parameter; how strong each is comes from data, and stays (Fel et al. 2023).

    Without the freedom to add strong fine waves, pictures of deep units keep to shapes. `MACO.measured(network, dataset)`
    takes the magnitudes of your data, the mean of |rfft2| over it; without, they are 1 / frequency^1.2, the mean slope of
    natural pictures (Tolhurst et al. 1992). Pictures of other sizes than measured have the magnitudes of the same waves per
    pixel. Each picture is brought to mean 0 and deviation 1 along the axes of color, and to 0..1 by a sigmoid. Phases start
    uniform on the circle, as in the paper; published code draws them from a normal distribution, which puts a bright spot
    into a corner.
    """

    paper: ClassVar[Paper | None] = Paper(
        "fel2023unlocking",
        "Fel, Thomas and Boissin, Thibaut and Boutin, Victor and Picard, Agustin and Novello, Paul and Colin, Julien and "
        "Linsley, Drew and Rousseau, Tom and Cadène, Rémi and Goetschalckx, Lore and Gardes, Laurent and Serre, Thomas",
        "Unlocking feature visualization for deeper networks with magnitude constrained optimization",
        "NeurIPS", 2023, "2306.06805",
    )  # fmt: skip
    rate: ClassVar[float] = 0.1  # the paper's 1 goes with its 32 views: with four, pictures follow the last of them
    optimizer: ClassVar[str] = "nadam"
    views: ClassVar[int] = 4
    size: Annotated[int | tuple | None, "side in pixels, (height, width), or None for the network's own"] = None
    decorrelate: Annotated[
        bool | Tensor, "magnitudes are along axes of color: of natural pictures (for three channels), none, or a matrix"
    ] = True
    magnitude: Annotated[Tensor | None, "(channels, height, width // 2 + 1), or None for 1 / frequency^decay"] = None
    decay: Annotated[float, "without magnitudes: how fast they fall off", AtLeast(0)] = 1.2

    @classmethod
    def measured(cls, network: Any, dataset: Any, *, size: int | tuple[int, int] | None = None, **settings: Any) -> Self:
        """With the magnitudes of a data set, and with its axes of color for other than three channels.

        `dataset` and the further settings (`store`, `workers`, ...) are those of `cs.sweep`.
        """
        axes = natural_axes(network, dataset, **settings)
        found = measure(network, dataset, Spectrum(axes=tuple(map(tuple, axes.tolist()))), **settings)
        return cls(size=size, decorrelate=axes if len(axes) != 3 else True, magnitude=found.value().half())

    def transforms(self, size: tuple[int, int], seen: tuple[int, int]) -> tuple[Transform, ...]:
        """Boxes of the picture with noise, as in the paper, at the size that a network is to see."""
        share = min(0.9, max(0.25, 0.5 * max(seen) / max(size)))
        return Crops(share=share, size=seen), Noise(0.1), Noise(0.1, distribution="uniform")

    def begin(self, space: Space, draws: Draws) -> Parameters:
        height, width = space.size
        circle = draws.uniform((space.channels, height, width // 2 + 1), "start")
        return {"phase": (2 * circle - 1) * math.pi}

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        phase, strength = parameters["phase"], self._magnitude(space)
        waves = torch.fft.irfft2(torch.complex(strength * phase.cos(), strength * phase.sin()), s=space.size, norm="ortho")
        rows = waves.flatten(1)
        centered = rows - rows.mean(1, keepdim=True)
        deviation = centered.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
        return colored((centered / deviation).view_as(waves), color_axes(self.decorrelate, space)).sigmoid()

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        """The phases of given pixels; how strong their waves are is lost. Raises UsageError for a picture without any."""
        logits = torch.logit(pixels.clamp(MARGIN, 1 - MARGIN))
        if (logits.flatten(2).std(2) < 1e-6).all(1).any():
            raise UsageError("a picture of one color has no phases to start from; leave the start out, or give pixels")
        return {"phase": torch.fft.rfft2(uncolored(logits, color_axes(self.decorrelate, space))).angle()}

    def _magnitude(self, space: Space) -> Magnitude:
        if self.magnitude is None:
            return (frequencies(space.size, space.device, space.dtype) ** -self.decay).expand(space.channels, -1, -1)
        if self.magnitude.dim() != 3 or len(self.magnitude) != space.channels:
            raise UsageError(
                f"magnitudes are ({space.channels}, height, width // 2 + 1) for this network; got {tuple(self.magnitude.shape)}"
            )
        height, width = space.size
        given = self.magnitude.to(space.device, space.dtype)
        return given if given.shape[1:] == (height, width // 2 + 1) else resized(given, space.size)


def resized(magnitude: Magnitude, size: tuple[int, int]) -> Magnitude:
    """The magnitudes of pictures of another size, at the same waves per pixel; their width was even, as far as is known.

    What is interpolated, linearly, is magnitude times frequency, which hardly changes over the spectrum of pictures.
    """
    height, half = magnitude.shape[1:]
    width = max(1, 2 * (half - 1))
    flat = magnitude * frequencies((height, width), magnitude.device, magnitude.dtype)[:, :half]
    row = torch.fft.fftfreq(size[0], dtype=torch.float64) * height
    column = (torch.fft.rfftfreq(size[1], dtype=torch.float64) * width).clamp(max=half - 1)
    top, left = row.floor(), column.floor()
    a, b = (row - top)[:, None].to(magnitude), (column - left).to(magnitude)
    upper, lower = (top.long() % height).to(flat.device), ((top.long() + 1) % height).to(flat.device)
    near, far = left.long().to(flat.device), (left.long() + 1).clamp(max=half - 1).to(flat.device)
    above = flat[:, upper][:, :, near] * (1 - b) + flat[:, upper][:, :, far] * b
    below = flat[:, lower][:, :, near] * (1 - b) + flat[:, lower][:, :, far] * b
    return (above * (1 - a) + below * a) / frequencies(size, magnitude.device, magnitude.dtype)
