"""Maps of a layer's units at input size, each unit at the center of what it sees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from convoscope.core.geometry import Field


def placed(maps: Tensor, field: Field | None, size: Sequence[int]) -> Tensor:
    """Maps `(B, C, h, w)` at `size`, bilinear between the centers of their units' receptive fields, the edges repeated.

    Where a unit sees the whole image or its field is not evenly spaced, between the centers of equal tiles.
    """
    known = field is not None and not field.whole and None not in field.stride and field.grid == tuple(maps.shape[2:])
    for axis, pixels in enumerate(size):
        units = maps.shape[2 + axis]
        if field is not None and known:
            first, step = field.offset[axis] + (field.size[axis] - 1) / 2, field.stride[axis]  # type: ignore[operator]
        else:
            first, step = (pixels / units - 1) / 2, pixels / units
        maps = _between(maps, 2 + axis, (torch.arange(pixels, device=maps.device) - first) / step)  # type: ignore[operator]
    return maps


def _between(maps: Tensor, axis: int, places: Tensor) -> Tensor:
    """Linear interpolation along an axis at fractional places, the ends repeated."""
    units = maps.shape[axis]
    places = places.clamp(0, units - 1).to(maps.dtype)
    low = places.floor().long().clamp(max=max(units - 2, 0))
    weight = (places - low).view(-1, *[1] * (maps.dim() - 1 - axis))
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, (low + 1).clamp(max=units - 1)), weight)
