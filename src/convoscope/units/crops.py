"""The part of a picture that stands for a unit, drawn: where large fields see everything, the middle of what it sees."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.geometry import Field
from convoscope.core.record import canonical
from convoscope.network import Network
from convoscope.units.reservoir import Sample

PART = 0.4  # of the picture's shorter side: how much a crop shows at least, where the field is as large


def window(field: Field | None, row: int, column: int, size: tuple[int, int], side: int | None = None) -> tuple[int, int, int]:
    """Top, left and side in pixels of a square inside a picture of `size`, as near to the middle of the unit's field as can be.

    The side is that of the receptive field, but at most three strides or 0.4 of the picture, whichever is more: fields of
    deep layers reach far beyond what moves them.
    """
    known = field is not None and not field.whole and None not in field.stride
    short = min(size)
    if field is None or row < 0 or (field.whole and field.grid == (1, 1)):
        return (size[0] - short) // 2, (size[1] - short) // 2, short
    if side is None:
        step = max(field.stride) if known else 0  # type: ignore[type-var]
        side = min(max(field.size), max(3 * step, round(PART * short)), short)
    side = max(1, min(side, short))
    middles = []
    for axis, place in enumerate((row, column)):
        if known:
            middles.append(field.offset[axis] + place * field.stride[axis] + field.size[axis] / 2)  # type: ignore[operator]
        else:
            middles.append((place + 0.5) * size[axis] / field.grid[axis])
    top, left = (min(max(round(m - side / 2), 0), n - side) for m, n in zip(middles, size, strict=True))
    return top, left, side


def crops(
    network: Network, dataset: Any, layer: str, sample: Sample, which: Sequence[int], side: int | None = None, pixels: int = 64
) -> UInt8[Tensor, "crops pixels pixels 3"]:
    """What some activations of a sample saw, each enlarged or reduced to `pixels`; every picture is read once."""
    out = torch.zeros(len(which), pixels, pixels, 3, dtype=torch.uint8)
    by_image: dict[int, list[int]] = {}
    for k, i in enumerate(which):
        by_image.setdefault(int(sample.image[i]), []).append(k)
    for image, places in by_image.items():
        x = network.read(dataset.picture(image))
        field = network.trace(x).field_of(canonical(network.plain, layer))
        picture = network.picture(x)
        for k in places:
            i = which[k]
            top, left, size = window(field, int(sample.row[i]), int(sample.column[i]), tuple(x.shape[2:]), side)  # type: ignore[arg-type]
            out[k] = as_bytes(picture[..., top : top + size, left : left + size], pixels)[0]
    return out


def as_bytes(pictures: Float[Tensor, "pictures 3 height width"], pixels: int) -> UInt8[Tensor, "pictures pixels pixels 3"]:
    """Pictures 0..1 at another size, as bytes."""
    found = F.interpolate(pictures.float(), (pixels, pixels), mode="bicubic", antialias=True, align_corners=False)
    return found.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
