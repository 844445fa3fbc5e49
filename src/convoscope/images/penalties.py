"""What counts against a picture, in its pixels 0..1: each a number per row, larger is worse, without its weight.

L1 and L2 are sums over pixels, as published, so they grow with the picture; all others are means over positions.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.images.base import Penalty, PixelRows, Rows

Middle = Annotated[float | Tensor, "what costs nothing: a number 0..1, or pixels (1, channels, height or 1, width or 1)"]
_NATURAL = Paper(
    "mahendran2016visualizing", "Mahendran, Aravindh and Vedaldi, Andrea",
    "Visualizing deep convolutional neural networks using natural pre-images", "IJCV", 2016, "1512.02017",
)  # fmt: skip


class L1(Penalty):
    """Distance from the middle, summed over channels and pixels: `sum |p - middle|`."""

    middle: Middle = 0.5

    def __call__(self, pixels: PixelRows) -> Rows:
        return _apart(pixels, self.middle).abs().flatten(1).sum(1)


class L2(Penalty):
    """Squared distance from the middle, summed over channels and pixels: `sum (p - middle)^2` (Simonyan et al. 2014, eq. 1).

    The paper has it in pixels 0..255 about the mean picture of the data: its weight counts 65025 times as much here.
    """

    paper: ClassVar[Paper | None] = Paper(
        "simonyan2014deep", "Simonyan, Karen and Vedaldi, Andrea and Zisserman, Andrew",
        "Deep inside convolutional networks: visualising image classification models and saliency maps",
        "ICLR workshop", 2014, "1312.6034",
    )  # fmt: skip
    middle: Middle = 0.5

    def __call__(self, pixels: PixelRows) -> Rows:
        return _apart(pixels, self.middle).square().flatten(1).sum(1)


class AlphaNorm(Penalty):
    """The mean over positions of |color|^alpha, which keeps pixels away from the ends (Mahendran and Vedaldi 2016).

    A color is the vector over channels of `2 (p - middle)`: 0 in the middle, 1 where one channel is all black or white.
    """

    paper: ClassVar[Paper | None] = _NATURAL
    alpha: Annotated[float, "exponent", AtLeast(1)] = 6.0
    middle: Middle = 0.5

    def __call__(self, pixels: PixelRows) -> Rows:
        length = (2 * _apart(pixels, self.middle)).square().sum(1)
        return _power(length, self.alpha / 2).flatten(1).mean(1)


class TotalVariation(Penalty):
    """The mean over positions of `(down^2 + right^2)^(beta / 2)`, summed over channels (Mahendran and Vedaldi 2016).

    `down` and `right` are the differences to the next pixel, 0 at the last one. beta = 1 is the classical total variation, 2
    punishes edges more than slopes.
    """

    paper: ClassVar[Paper | None] = _NATURAL
    beta: Annotated[float, "exponent", AtLeast(1)] = 2.0

    def __call__(self, pixels: PixelRows) -> Rows:
        down = F.pad(pixels.diff(dim=2), (0, 0, 0, 1))
        right = F.pad(pixels.diff(dim=3), (0, 1))
        return _power(down.square() + right.square(), self.beta / 2).sum(1).flatten(1).mean(1)


class Blur(Penalty):
    """Half the squared distance to the picture's own blur, a mean over positions summed over channels.

    The blur counts as fixed, so a gradient step moves each pixel some of the way to it: the blur prior of Yosinski et al. 2015,
    as published in code by Olah et al. 2017. Its gradient is `(p - blur(p)) / positions`, not that of the value.
    """

    paper: ClassVar[Paper | None] = Paper(
        "yosinski2015understanding", "Yosinski, Jason and Clune, Jeff and Nguyen, Anh and Fuchs, Thomas and Lipson, Hod",
        "Understanding neural networks through deep visualization", "ICML workshop on deep learning", 2015, "1506.06579",
    )  # fmt: skip
    sigma: Annotated[float, "standard deviation of the blur in pixels", AtLeast(1e-3)] = 1.0

    def __call__(self, pixels: PixelRows) -> Rows:
        apart = pixels - blurred(pixels.detach(), self.sigma)
        return apart.square().sum(1).flatten(1).mean(1) / 2


class Border(Penalty):
    """What is not gray in a frame around the picture: the mean over the frame of `(p - 0.5)^2`, summed over channels.

    Convolutions see the padding there, and a channel's mean can hang on edges that a picture makes with it. Suits icons.
    """

    width: Annotated[int, "of the frame, in pixels", AtLeast(1)] = 8

    def __call__(self, pixels: PixelRows) -> Rows:
        height, width = pixels.shape[2:]
        frame = torch.ones(height, width, dtype=pixels.dtype, device=pixels.device)
        frame[self.width : height - self.width, self.width : width - self.width] = 0
        return ((pixels - 0.5).square().sum(1) * frame).flatten(1).sum(1) / frame.sum()


def blurred(pixels: PixelRows, sigma: float) -> PixelRows:
    """Pictures under a Gaussian of four deviations either way; outside, the outermost pixels go on."""
    reach = max(1, round(4 * sigma))
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    bell = torch.exp(-places.square() / (2 * sigma**2))
    bell = (bell / bell.sum()).to(pixels)
    channels = pixels.shape[1]
    for shape, margin in (((-1, 1), (0, 0, reach, reach)), ((1, -1), (reach, reach, 0, 0))):
        kernel = bell.view(1, 1, *shape).expand(channels, -1, -1, -1)
        pixels = F.conv2d(F.pad(pixels, margin, mode="replicate"), kernel, groups=channels)
    return pixels


def _apart(pixels: PixelRows, middle: float | Tensor) -> Float[Tensor, "rows channels height width"]:
    if isinstance(middle, Tensor):
        shape = (1, *middle.shape) if middle.dim() == 3 else tuple(middle.shape)
        fits = len(shape) == 4 and all(n in (1, m) for n, m in zip(shape[1:], pixels.shape[1:], strict=True)) and shape[0] == 1
        if not fits:
            raise UsageError(f"the middle is pixels (1, {', '.join(map(str, pixels.shape[1:]))}); got {tuple(middle.shape)}")
        middle = middle.view(shape).to(pixels)
    return pixels - middle


def _power(squares: Tensor, exponent: float) -> Tensor:
    """Squares to a power; where they are 0, with the gradient 0 of the limit and not NaN."""
    if exponent >= 1:
        return squares if exponent == 1 else squares**exponent
    some = squares > 0
    return torch.where(some, torch.where(some, squares, 1.0) ** exponent, 0.0)
