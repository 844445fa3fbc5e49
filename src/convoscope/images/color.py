"""Colors as independent numbers: the axes along which those of pictures vary, each as wide as they do."""

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.images.base import PixelRows, Space

Axes = Float[Tensor, "channels channels"]
# rgb = M x: brightness, blue against yellow, green against magenta, of ImageNet (Olah et al. 2017, "Feature Visualization").
NATURAL = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))


def color_axes(which: bool | Tensor, space: Space) -> Axes | None:
    """The matrix whose columns are the axes, the longest of length 1; None leaves channels as they are.

    True: those of natural pictures for three channels, none for any other number. Raises UsageError where a given one does
    not fit.
    """
    if isinstance(which, Tensor):
        if which.shape != (space.channels, space.channels):
            raise UsageError(
                f"axes of color are a matrix (channels, channels), here {space.channels} x {space.channels}; "
                f"got shape {tuple(which.shape)}"
            )
        return which.to(space.device, space.dtype)
    if not which or space.channels != 3:
        return None
    return unit(torch.tensor(NATURAL, dtype=torch.float64)).to(space.device, space.dtype)


def unit(axes: Axes) -> Axes:
    """The same axes at the scale where the longest has length 1."""
    return axes / axes.norm(dim=0).max().clamp(min=torch.finfo(axes.dtype).tiny)


def colored(x: PixelRows, axes: Axes | None) -> PixelRows:
    """Numbers along the axes to channels: `axes @ x` at each pixel."""
    return x if axes is None else (axes @ x.flatten(2)).view_as(x)


def uncolored(x: PixelRows, axes: Axes | None) -> PixelRows:
    """Channels to numbers along the axes; undoes `colored`."""
    return x if axes is None else (torch.linalg.inv(axes.cpu().double()).to(x) @ x.flatten(2)).view_as(x)
