"""Pixels as tensors: from any numbers, to a size, blurred."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import ImageError


def pixels_of_tensor(x: Tensor, channels: int) -> Tensor:
    """Pixels 0..1 `(B, C, H, W)` in float64 of integers 0..255, uint16 0..65535, bools or floats 0..1. Raises ImageError."""
    x = x.detach().cpu()
    x = x[None] if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] != channels or x.numel() == 0:
        raise ImageError(
            f"expected a tensor ({channels}, height, width) or (images, {channels}, height, width); got shape {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        pixels = x.to(torch.float64) / (65535 if x.dtype == torch.uint16 else 1 if x.dtype == torch.bool else 255)
        if pixels.min() < 0 or pixels.max() > 1:
            raise ImageError(f"integer pixels are 0..255, or 0..65535 as uint16; got {x.dtype} {int(x.min())}..{int(x.max())}")
        return pixels
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):
        raise ImageError(
            f"float pixels are 0..1; got {low:.3g}..{high:.3g}. A tensor already in the network's input space needs no reading"
        )
    return x.to(torch.float64)


def fit(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes so that the picture just covers `size`, antialiased, and crops the center."""
    height, width = pixels.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    new = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    pixels = F.interpolate(pixels, new, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]


def blurred(x: Tensor) -> Tensor:
    """Gaussian blur with a deviation of a tenth of the shorter side, edges repeated."""
    for axis in (2, 3):
        sigma = max(0.5, min(x.shape[2:]) / 10)
        reach = min(int(3 * sigma + 0.5), x.shape[axis] - 1)
        offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-offsets.square() / (2 * sigma**2))
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        kernel = (kernel / kernel.sum()).view(shape).expand(x.shape[1], 1, *shape[2:])
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        x = F.conv2d(F.pad(x, pad, mode="replicate"), kernel, groups=x.shape[1])
    return x
