"""Two color maps, built in OKLab: one for strengths, one for signed values with zero exactly in its middle.

Both are tables of 256 colors. Equal steps of value are equal steps of lightness, so that no value looks special
that is not, and they read the same to people who confuse red and green.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Theme = Literal["light", "dark"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

ZERO = 128  # the index of zero in a diverging table; 1 and 255 are the ends, 0 repeats 1

# OKLab: B. Ottosson, A perceptual color space for image processing, 2020.
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

# Anchors: position, lightness, chroma, hue in degrees. Lightness is on a straight line through each map.
_STRENGTH = {
    "light": [(0.0, 0.975, 0.0, 95), (0.33, 0.775, 0.125, 72), (0.67, 0.57, 0.18, 36), (1.0, 0.37, 0.14, 18)],
    "dark": [
        (0.0, 0.16, 0.03, 285),
        (0.5, 0.565, 0.19, 365),
        (0.75, 0.7675, 0.15, 415),
        (1.0, 0.97, 0.055, 465),
    ],
}
_WARM = {
    "light": [(0.0, 0.975, 0.0, 70), (0.5, 0.7725, 0.11, 52), (1.0, 0.57, 0.19, 36)],
    "dark": [(0.0, 0.2, 0.0, 30), (0.5, 0.48, 0.135, 38), (1.0, 0.76, 0.16, 60)],
}
_COOL = {
    "light": [(0.0, 0.975, 0.0, 235), (0.5, 0.7725, 0.095, 246), (1.0, 0.57, 0.17, 258)],
    "dark": [(0.0, 0.2, 0.0, 262), (0.5, 0.48, 0.125, 257), (1.0, 0.76, 0.125, 240)],
}


def oklab(color: ArrayLike) -> Floats:
    """Lightness 0..1 and the two opponent axes of sRGB colors (..., 3) in 0..1."""
    c = np.asarray(color, np.float64)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LMS.T) @ _LAB.T


def srgb(lab: ArrayLike) -> Floats:
    """The inverse of `oklab`; colors that a screen cannot show are clipped to 0..1."""
    linear = np.clip((np.asarray(lab, np.float64) @ np.linalg.inv(_LAB).T) ** 3 @ np.linalg.inv(_LMS).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _path(anchors: Sequence[tuple[float, float, float, float]], at: Floats) -> Floats:
    """Colors (N, 3) through the anchors: a polynomial in chroma and hue, a straight line in lightness."""
    position, lightness, chroma, hue = (np.array(column, float) for column in zip(*anchors, strict=True))
    degree = len(anchors) - 1
    radius = np.clip(np.polyval(np.polyfit(position, chroma, degree), at), 0, None)
    angle = np.radians(np.polyval(np.polyfit(position, hue, degree), at))
    return srgb(np.stack([np.interp(at, position, lightness), radius * np.cos(angle), radius * np.sin(angle)], -1))


@cache
def sequential(theme: Theme = "light") -> Bytes:
    """256 colors (256, 3) for strengths: white, amber, red, wine ("light") or black, red, orange, cream."""
    return _frozen(_path(_STRENGTH[theme], np.linspace(0, 1, 256)))


@cache
def diverging(theme: Theme = "light") -> Bytes:
    """256 colors (256, 3), blue below zero and orange above; zero is white ("light") or near black ("dark")."""
    distance = np.arange(128) / 127
    cool, warm = _path(_COOL[theme], distance), _path(_WARM[theme], distance)
    return _frozen(np.concatenate([cool[:0:-1][:1], cool[:0:-1], warm]))


def _frozen(colors: Floats) -> Bytes:
    table = np.rint(colors * 255).astype(np.uint8)
    table.setflags(write=False)
    return table
