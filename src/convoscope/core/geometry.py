"""The receptive field of every tensor a network makes, exact for any graph.

`Geometry` is fed every operator call of one forward pass. An operator that is not in the tables of `reads` and `moves` is
taken to read all that its inputs have read: a bound, marked as such, never too small.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from convoscope.core import moves
from convoscope.core.reach import READ, Array, Reach, hull
from convoscope.core.reads import CONSTANT, Call, tensors_in

__all__ = ["Field", "Geometry"]


@dataclass(frozen=True)
class Field:
    """The receptive field of a tensor: what its units at (row, column) can depend on, in input pixels.

    `size`, `stride` and `offset` are (vertical, horizontal) and those of the literature, without clipping: the unit in row
    i reads `size` rows from `offset + i * stride` on. Behind operators that are not evenly spaced (upsampling, padding by
    concatenation, ...) `stride` and `offset` are None and `size` is the largest clipped box. `whole` says that nothing of
    the place is left: global pooling, squeeze-excite gates, a flattened map behind a linear layer.

    `box` is the hull per axis, taken over channels: the smallest rectangle that holds every pixel that the operators'
    definitions let a unit depend on. `exact` is False where an operator was met whose reach could only be bounded; boxes
    may then be too large, never too small.

    (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.)
    """

    size: tuple[int, int]
    stride: tuple[int | None, int | None]
    offset: tuple[int | None, int | None]
    whole: bool
    exact: bool
    grid: tuple[int, int]  # rows and columns of units
    _read: tuple[Array, Array] = field(repr=False, compare=False)

    @classmethod
    def of(cls, reach: Reach) -> "Field":
        """What is known of a tensor, unit by unit."""
        dims = [_unit_axis(reach, k) for k in (0, 1)]
        grid = tuple(1 if d is None else reach.shape[d] for d in dims)
        maps = [_per_unit(a, dims, grid) for a in reach.axes]
        lines = [maps[0].min(1), maps[1].min(0)]
        numbers = [_numbers(line, step, extent) for line, step, extent in zip(lines, reach.steps, reach.image, strict=True)]
        size, stride, offset, whole = ((a, b) for a, b in zip(*numbers, strict=True))
        return cls(size, stride, offset, all(whole), reach.exact, (grid[0], grid[1]), (maps[0][..., READ], maps[1][..., READ]))

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) such that `x[..., top:bottom, left:right]` holds all that this unit can depend on.

        All zero where it depends on no pixel. Raises IndexError outside of `grid`.
        """
        i, j = range(self.grid[0])[row], range(self.grid[1])[column]
        (top, bottom), (left, right) = (a[i, j].tolist() for a in self._read)
        if np.inf in (top, left):
            return 0, 0, 0, 0
        return int(top), int(left), int(1 - bottom), int(1 - right)

    def __str__(self) -> str:
        if self.whole:
            return "whole image" if self.exact else "at most the whole image"
        parts = [f"up to {n}" if s is None else f"{n}/{s}" for n, s in zip(self.size, self.stride, strict=True)]
        text = parts[0] if parts[0] == parts[1] else " x ".join(parts)
        return text if self.exact else f"at most {text}"


def _unit_axis(reach: Reach, axis: int) -> int | None:
    """The axis of the tensor along which rows (or columns) of units lie."""
    dims = range(len(reach.shape))
    place = [d for d in dims if reach.is_place(axis, d)]
    alone = [d for d in place if not reach.is_place(1 - axis, d)]
    if len(alone) == 1:
        return alone[0]
    return 2 + axis if not place and len(dims) == 4 else None


def _per_unit(a: Array, dims: list[int | None], grid: tuple[int, ...]) -> Array:
    """(rows, columns, 5): hull over all other axes of the tensor."""
    order = [d for d in dims if d is not None]
    units = a.min(axis=tuple(d for d in range(a.ndim - 1) if d not in order))
    units = units if order == sorted(order) else units.swapaxes(0, 1)
    for k, d in enumerate(dims):
        units = np.expand_dims(units, k) if d is None else units
    return np.broadcast_to(units, (*grid, 5))


def _numbers(line: Array, step: float, extent: int) -> tuple[int, int | None, int | None, bool]:
    """Size, stride, offset of the theory, and whether it is the whole image."""
    first, last = line[:, 2], -line[:, 3]
    if (first == -np.inf).all():
        return extent, None, None, True
    if np.isfinite(first).all():
        strides, sizes = np.diff(first), last - first + 1
        stride = strides[0] if len(strides) else step
        if stride and (strides == stride).all() and (sizes == sizes[0]).all():
            return int(sizes[0]), int(stride), int(first[0]), False
    boxes = np.where(np.isfinite(line[:, 0]), 1 - line[:, 1] - line[:, 0], 0)
    return int(boxes.max()), None, None, False


class Geometry:
    """Where every tensor derived from `x` (B, C, H, W) looks. A pixel sees itself.

    Spatial axes are followed through the graph, whatever their place in a tensor. In-place calls change the field of the
    tensor they write to, and that of all tensors that share its memory.
    """

    def __init__(self, x: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            if x.dim() != 4:
                raise ValueError(f"receptive fields need an input of shape (B, C, H, W), not {tuple(x.shape)}")
            self.reaches = WeakTensorKeyDictionary()
            self.reaches[x] = Reach.of_pixels(tuple(x.shape))

    def field(self, tensor: Tensor) -> Field | None:
        """The receptive field of a tensor, None where it was not derived from the input."""
        reach = self.reaches.get(tensor)
        return None if reach is None else Field.of(reach)

    def observe(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Takes note of one operator call, after it was made. `name` is the operator's, in-place spelling or not."""
        with torch._C.DisableTorchFunction():  # nothing done here is seen by any other function mode
            call = Call(name, args, kwargs, output, self.reaches)
            if not call.tracked or call.name in CONSTANT:
                return
            if call.name == "setitem":
                self._write(args[0], moves.written(call))
                return
            for tensor, reach in zip(call.outputs, call.results(), strict=True):
                before = self.reaches.get(tensor)
                if before is not None and before.same_as(reach):
                    continue
                if any(tensor is t for t in tensors_in((args, kwargs))):
                    self._write(tensor, reach)
                else:
                    self.reaches[tensor] = reach

    def _write(self, tensor: Tensor, reach: Reach) -> None:
        """Something new stands in the memory of this tensor, so also in that of its views."""
        memory, layout = _memory(tensor), _layout(tensor)
        others = [t for t in list(self.reaches) if t is not tensor and _memory(t) == memory]
        base = tensor._base
        if base is not None and base not in self.reaches:
            self.reaches[base] = reach.nothing(base.shape)
            others.append(base)
        for other in others:
            shape = tuple(other.shape)
            mixed = hull([self.reaches[other], reach.everything(shape)], shape)
            self.reaches[other] = reach if _layout(other) == layout else replace(mixed, exact=False)
        self.reaches[tensor] = reach


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
