"""A map of numbers as a picture, alone or over the photograph it explains."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from convoscope.show.colormap import ZERO, Bytes, Floats, Theme, diverging, oklab, sequential, srgb

PERCENTILE = 99.5

# The photograph keeps its light and gives up its color, the map brings the color: both are seen at every point.
_DARKEST, _RANGE = 0.46, 0.50  # lightness of black and white of the photograph under the map
_PULL = 0.45  # how far the strongest values pull the light toward that of their own color
_CHROMA = 1.1


def limit(values: ArrayLike, percentile: float = PERCENTILE) -> float:
    """The magnitude that gets the strongest color: a percentile of |values|, 0 for a map of zeros.

    Symmetric, so that zero stays where it is and the sign is never lost, and robust: one extreme pixel does not
    wash out the rest. Of a map so sparse that the percentile is zero, only the pixels that are not zero count.
    """
    size = np.abs(_finite(values))
    robust = float(np.percentile(size, percentile)) if size.size else 0.0
    if robust > 0 or not size.any():
        return robust
    return float(np.percentile(size[size > 0], percentile))


def resample(values: ArrayLike, height: int, width: int) -> Floats:
    """`values` (h, w) bilinearly at (height, width); sample i stands for the middle of pixel i.

    The convention of `align_corners=False`: the four corners of the map are the corners of the picture.
    """
    v = _finite(values)
    return _along(_along(v, height).T, width).T


def colorize(values: ArrayLike, *, limit: float, signed: bool, theme: Theme = "light") -> Bytes:
    """Colors (H, W, 3) of a map (H, W): -limit..limit on the diverging or 0..limit on the sequential table.

    Values beyond the limit get its color. With a limit of 0 everything is drawn as zero.
    """
    table = diverging(theme) if signed else sequential(theme)
    return table[indices(values, limit=limit, signed=signed)]


def indices(values: ArrayLike, *, limit: float, signed: bool) -> Bytes:
    """The place (H, W) of each value in the table of `colorize`; zero is exactly 128, or 0 if unsigned."""
    share = _share(values, limit)
    if signed:
        return np.rint(ZERO + 127 * share).astype(np.uint8)
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


def overlay(values: ArrayLike, over: ArrayLike, *, limit: float, signed: bool) -> Bytes:
    """A map (h, w) over a photograph (H, W, 3) or (H, W), uint8 or float in 0..1: (H, W, 3).

    The map is resampled to the photograph. Lightness comes from the photograph, evened out so that dark ones
    can be read; hue and chroma come from the map and are zero where it is zero.
    """
    light = _light(over)
    share = _share(resample(values, *light.shape), limit)
    if signed:
        # A root of the strength, since single pixels of full strength are too small to be seen at less.
        strength = np.abs(share) ** 0.7
        color = diverging()[np.rint(ZERO + 127 * np.sign(share) * strength).astype(np.uint8)]
    else:
        strength = np.clip(share, 0, 1)
        color = sequential()[np.rint(255 * strength).astype(np.uint8)]
    lab = oklab(color / 255)
    pull = _PULL * strength
    lightness = (_DARKEST + _RANGE * light) * (1 - pull) + lab[..., 0] * pull
    chroma = np.where(strength > 0, _CHROMA, 0.0)[..., None] * lab[..., 1:]
    return np.rint(255 * srgb(np.concatenate([lightness[..., None], chroma], -1))).astype(np.uint8)


def backdrop(over: ArrayLike) -> Bytes:
    """The photograph as `overlay` draws it under a map of zeros: (H, W, 3)."""
    light = _light(over)
    return overlay(np.zeros(light.shape), over, limit=0.0, signed=True)


def enlarged(picture: Bytes, at_least: int) -> Bytes:
    """A picture (H, W, 3) enlarged by a whole factor until its shorter side has `at_least` pixels."""
    factor = -(-at_least // min(picture.shape[:2]))
    if factor <= 1:
        return picture
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def as_bytes(picture: ArrayLike) -> Bytes:
    """A picture (H, W, 3) or (H, W), uint8 or float in 0..1, as (H, W, 3) uint8."""
    p = np.asarray(picture)
    if p.ndim not in (2, 3) or (p.ndim == 3 and p.shape[2] not in (1, 3)):
        raise ValueError(f"a picture of shape {p.shape}; expected (H, W, 3) or (H, W)")
    if p.dtype != np.uint8:
        p = np.rint(255 * np.clip(p.astype(np.float64), 0, 1)).astype(np.uint8)
    p = p[..., None] if p.ndim == 2 else p
    return np.ascontiguousarray(np.broadcast_to(p, (*p.shape[:2], 3)))


def _finite(values: ArrayLike) -> Floats:
    v = np.asarray(values, np.float64)
    if v.ndim != 2:
        raise ValueError(f"a map of shape {v.shape}; expected (H, W)")
    if not np.isfinite(v).all():
        raise ValueError("a map with NaN or infinite values cannot be drawn")
    return v


def _share(values: ArrayLike, limit: float) -> Floats:
    if not limit >= 0:
        raise ValueError(f"limit {limit}; expected 0 or more")
    v = _finite(values)
    return np.clip(v / limit, -1, 1) if limit > 0 else np.zeros_like(v)


def _along(v: Floats, length: int) -> Floats:
    """Linear interpolation along the first axis at half-pixel centers."""
    at = np.clip((np.arange(length) + 0.5) * len(v) / length - 0.5, 0, len(v) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(v) - 1)
    part = (at - low)[:, None]
    return v[low] * (1 - part) + v[high] * part


def _light(over: ArrayLike) -> Floats:
    """OKLab lightness (H, W), its 1st and 99th percentiles stretched to 0 and 1, but at most fivefold."""
    lightness = oklab(as_bytes(over) / 255)[..., 0]
    low, high = np.percentile(lightness, [1, 99])
    return np.clip((lightness - low) / max(high - low, 0.2), 0, 1)
