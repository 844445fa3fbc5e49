"""How selective units are for color, and for which: color index, hues, opponent axes.

Colors are seen in an opponent space of the pixels 0..1: intensity (R + G + B) / 3, and the plane across it with red-cyan
along R - (G + B) / 2 and blue-yellow, magenta-green 60 degrees apart. Red is at hue 0, green at 120, blue at 240 degrees.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UnsupportedError
from convoscope.network import Network
from convoscope.units.altered import readings

LOW, HIGH = 0.10, 0.25  # a color index under LOW is that of a unit not selective for color; from HIGH on it is selective
AXES = ("red-cyan", "blue-yellow", "magenta-green")
HUES = ("red", "orange", "yellow", "lime", "green", "mint", "cyan", "azure", "blue", "violet", "magenta", "rose")
_AXIS_HUES = (0.0, 60.0, 120.0)  # modulo 180 degrees


def gray(network: Network, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
    """Inputs with every pixel replaced by its intensity (R + G + B) / 3: mean and contrast of the intensity stay."""
    if x.shape[1] != 3:
        raise UnsupportedError(f"color needs a network of three channels; {network.name} takes {x.shape[1]}")
    std, mean = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (network.std, network.mean))
    return network.normalize((x * std + mean).mean(1, keepdim=True).expand_as(x))


def color_index(
    network: Network, dataset: Any, address: str, patches: Any, *, batch_size: int | Literal["auto"] = "auto"
) -> Float[Tensor, " units"]:
    """1 - sum_i a_i(gray) / sum_i a_i over a unit's strongest patches i, with the patch in color and made gray.

    0 where color does not matter, 1 where the unit is silent without it, below 0 where it prefers gray; NaN where no patch
    excites it. Activations count where they are positive. Each picture is made gray as a whole: what lies outside of a
    unit's receptive field does not reach it, so this equals pasting the gray patch into the picture, and one run of a
    picture serves all units whose patch it has. (Rafegas and Vanrell, "Color encoding in biologically-inspired
    convolutional neural networks", Vision Research 2018. Intensity here, not a principal axis with stretched contrast.)
    """
    return color_indexes(network, dataset, {address: patches}, batch_size=batch_size)[address]


def color_indexes(
    network: Network, dataset: Any, patches: Mapping[str, Any], *, batch_size: int = 32
) -> dict[str, Float[Tensor, " units"]]:
    """The color index of the units of several layers, from the strongest patches of each; a picture is run once for all."""
    found = readings(network, dataset, patches, [lambda x: gray(network, x)], batch_size=batch_size)
    return {address: lost(patches[address], changed) for address, (changed,) in found.items()}


def lost(patches: Any, changed: Float[Tensor, "units patches"]) -> Float[Tensor, " units"]:
    """The share of the activation of its patches that a unit loses by a change, 1 - sum changed / sum before."""
    there = (patches.images >= 0) & (patches.values > 0)
    before = torch.where(there, patches.values.double(), 0.0).sum(1)
    after = torch.where(there, changed.clamp(min=0), 0.0).sum(1)
    return torch.where(before > 0, 1 - after / before, torch.nan)


def opponent(pixels: Float[Tensor, "*n 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
    """Intensity 0..1, chroma (1 for pure red, green, blue, cyan, ...) and hue in degrees 0..360 of pixels 0..1."""
    red, green, blue = pixels.unbind(-3)
    across, along = red - (green + blue) / 2, (green - blue) * (math.sqrt(3) / 2)
    return (red + green + blue) / 3, torch.hypot(across, along), torch.rad2deg(torch.atan2(along, across)) % 360


def hue_histogram(pictures: Float[Tensor, "units 3 h w"], bins: int = 12) -> Float[Tensor, "units bins"]:
    """The mean chroma that each picture has in each of `bins` ranges of hue; the first is centered on red.

    The sum over bins is the mean chroma of the picture, 0 for a gray one.
    """
    _, chroma, hue = opponent(pictures.double())
    place = torch.round(hue * (bins / 360)).long() % bins
    found = chroma.new_zeros(len(pictures), bins)
    return found.scatter_add_(1, place.flatten(1), chroma.flatten(1)) / max(1, place[0].numel() if len(place) else 1)


def hue_of(pictures: Float[Tensor, "units 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
    """The hue of each picture in degrees 0..360, how far it has one, and how far it has two that are opposite.

    Over pixels of hue h weighted by chroma c, the first is the direction of sum c exp(ih); the others are
    |sum c exp(ih)| / sum c and |sum c exp(2ih)| / sum c, 0 to 1: a picture of one color has 1 and 1, one of two opponent
    colors in equal parts 0 and 1, one of all hues 0 and 0. Gray pictures have NaN.
    """
    _, chroma, hue = opponent(pictures.double())
    chroma, angle = chroma.flatten(1), torch.deg2rad(hue.flatten(1))
    total = chroma.sum(1)
    some = total > 1e-9 * chroma.shape[1]
    x, y = (chroma * angle.cos()).sum(1), (chroma * angle.sin()).sum(1)
    one = torch.hypot(x, y) / total
    two = torch.hypot((chroma * (2 * angle).cos()).sum(1), (chroma * (2 * angle).sin()).sum(1)) / total
    found = torch.rad2deg(torch.atan2(y, x)) % 360, one, two
    return tuple(torch.where(some, v, torch.nan) for v in found)  # type: ignore[return-value]


def axis_of(pictures: Float[Tensor, "units 3 h w"]) -> Int[Tensor, " units"]:
    """The opponent axis, a number in `AXES`, nearest to the axis along which the colors of each picture lie; -1 for gray.

    The axis is that of sum c exp(2ih), which takes opposite hues as the same.
    """
    _, chroma, hue = opponent(pictures.double())
    chroma, angle = chroma.flatten(1), torch.deg2rad(2 * hue.flatten(1))
    x, y = (chroma * angle.cos()).sum(1), (chroma * angle.sin()).sum(1)
    axis = torch.rad2deg(torch.atan2(y, x)) / 2 % 180
    distance = (axis[:, None] - torch.tensor(_AXIS_HUES, dtype=axis.dtype)).abs()
    nearest = torch.minimum(distance, 180 - distance).argmin(1)
    return torch.where(chroma.sum(1) > 1e-9 * chroma.shape[1], nearest, -1)


def hue_name(degrees: float) -> str:
    """The nearest of twelve hues, `HUES`, 30 degrees apart from red on."""
    return HUES[round(degrees / 30) % 12]
