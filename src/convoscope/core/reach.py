"""Where a tensor looks: which input rows and columns each of its elements can depend on.

A reach holds, for rows and for columns, one small array over the tensor's own axes (of length 1 along every axis that
does not matter, so an ordinary feature map costs two vectors). Its last axis is what `min` can merge:

    [first, -last, first, -last, place]     the pixels read; the same without borders (the literature's); row or column

Nothing read is `inf`, everything is `-inf`. Every operator is either a rearrangement of these arrays or a minimum over
parts of them, so permutes, reshapes, slices and concatenations need no notion of which axis is the vertical one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
READ, THEORY, PLACE = slice(0, 2), slice(2, 4), 4


@dataclass(frozen=True, eq=False)
class Reach:
    """The rows and columns of an image of size `image` that the elements of a tensor of this shape can depend on."""

    shape: tuple[int, ...]
    axes: tuple[Array, Array]  # rows, columns
    steps: tuple[float, float]  # pixels between neighbors where a map of one position cannot tell
    image: tuple[int, int]
    exact: bool = True

    @classmethod
    def of_pixels(cls, shape: Sequence[int]) -> "Reach":
        """Pixel i sees [i, i]."""
        axes = []
        for dim in (-2, -1):
            i = np.arange(shape[dim], dtype=np.float64)
            column = np.stack([i, -i, i, -i, i], -1)
            axes.append(column.reshape([1] * (len(shape) - 2) + ([-1, 1] if dim == -2 else [1, -1]) + [5]))
        return cls(tuple(shape), (axes[0], axes[1]), (1.0, 1.0), (shape[-2], shape[-1]))

    def nothing(self, shape: Sequence[int]) -> "Reach":
        """Constants of this shape."""
        empty = np.full([1] * len(shape) + [5], np.inf)
        return replace(self, shape=tuple(shape), axes=(empty, empty), exact=True)

    def everything(self, shape: Sequence[int]) -> "Reach":
        """Every element reads all that any element of this tensor reads: a bound, exact only where they were all alike."""
        axes, alike = [], True
        for a in self.axes:
            b = a.reshape(-1, 5)
            alike &= bool((b[:, READ] == b[0, READ]).all())
            b = b.min(0).reshape([1] * len(shape) + [5])
            b[..., THEORY], b[..., PLACE] = -np.inf, np.inf
            axes.append(b)
        return replace(self, shape=tuple(shape), axes=(axes[0], axes[1]), exact=self.exact and alike)

    def each(self, function: Callable[[Array], Array], shape: Sequence[int]) -> "Reach":
        """A rearrangement of the arrays as they are, axes of length 1 included."""
        return replace(self, shape=tuple(shape), axes=(function(self.axes[0]), function(self.axes[1])))

    def view(self, function: Callable[[Array], Array], shape: Sequence[int]) -> "Reach":
        """A rearrangement of the arrays broadcast to the tensor's full shape; what stays constant is stored once."""

        def apply(a: Array) -> Array:
            b = function(np.broadcast_to(a, (*self.shape, 5)))
            return b[tuple(slice(0, 1) if s == 0 else slice(None) for s in b.strides[:-1])]

        return self.each(apply, shape)

    def same_as(self, other: "Reach") -> bool:
        if self is other:
            return True
        alike = all(np.array_equal(a, b) for a, b in zip(self.axes, other.axes, strict=True))
        return alike and (self.shape, self.exact) == (other.shape, other.exact)

    def at(self, dim: int) -> int:
        return dim % len(self.shape)

    def is_place(self, axis: int, dim: int) -> bool:
        """Whether moving along this axis of the tensor moves through the image (rows: axis 0, columns: axis 1)."""
        if self.shape[dim] == 1:
            return len(self.shape) == 4 and dim == 2 + axis
        place = self.axes[axis][..., PLACE]
        first = place.take([0], dim)
        return bool(place.shape[dim] > 1 and (place != first).any())

    def replaced(self, dim: int, size: int) -> tuple[int, ...]:
        return (*self.shape[:dim], size, *self.shape[dim + 1 :])

    def window(
        self,
        dim: int,
        taps: Integers,
        used: NDArray[np.bool_] | None = None,
        *,
        virtual: Integers | None = None,
        factor: float = 1.0,
    ) -> "Reach":
        """Output o along `dim` reads the inputs `taps[o]` (where `used`); those outside of the tensor are constants.

        `virtual` are the taps of the theory, where the map goes on beyond its borders; `factor` is the stride.
        """
        dim, n = self.at(dim), self.shape[dim]
        used = np.ones(taps.shape, bool) if used is None else used
        inside = used & (taps >= 0) & (taps < n)
        fed: NDArray[np.bool_] = np.any(inside, axis=1)
        axes, steps = list(self.axes), list(self.steps)
        for k, a in enumerate(self.axes):
            if self.is_place(k, dim):
                b, step = _slide(
                    np.moveaxis(a, dim, -2), taps, inside, taps if virtual is None else virtual, used, self.steps[k]
                )
                axes[k], steps[k] = np.moveaxis(b, -2, dim), step * factor
            elif a.shape[dim] > 1:
                b = np.moveaxis(a, dim, -2)[..., taps.clip(0, n - 1), :]
                axes[k] = np.moveaxis(np.where(inside[..., None], b, np.inf).min(-2), -2, dim)
            elif not fed.all():
                axes[k] = np.moveaxis(np.where(fed[:, None], np.moveaxis(a, dim, -2), np.inf), -2, dim)
        return replace(self, shape=self.replaced(dim, len(taps)), axes=(axes[0], axes[1]), steps=(steps[0], steps[1]))

    def reduce(self, dims: Sequence[int], keep: bool = True) -> "Reach":
        """Each output reads all elements along these axes; once no place is left, it is said to see the whole image."""
        dims = tuple(sorted({self.at(d) for d in dims}))
        axes = []
        for k, a in enumerate(self.axes):
            b = a.min(axis=dims, keepdims=True)
            if any(self.is_place(k, d) for d in dims):
                rest = b[..., PLACE]
                if (rest == rest.flat[0]).all():
                    b[..., THEORY], b[..., PLACE] = -np.inf, np.inf
            axes.append(b if keep else b.reshape([s for d, s in enumerate(b.shape) if d not in dims]))
        shape = [1 if d in dims else s for d, s in enumerate(self.shape) if keep or d not in dims]
        return replace(self, shape=tuple(shape), axes=(axes[0], axes[1]))

    def mix(self, dim: int, groups: int, size: int) -> "Reach":
        """Along `dim`, `size` outputs in equal groups read all inputs of their group."""
        dim = self.at(dim)

        def apply(a: Array) -> Array:
            if a.shape[dim] == 1:
                return a
            parts = a.reshape(*a.shape[:dim], groups, -1, *a.shape[dim + 1 :]).min(dim + 1)
            return parts if groups == 1 else np.repeat(parts, size // groups, dim)

        return self.each(apply, self.replaced(dim, size))

    def reshape(self, shape: Sequence[int]) -> "Reach":
        """Any reshape; only axes that are merged or split with one that matters are written out."""
        groups = _groups(self.shape, shape)

        def apply(a: Array) -> Array:
            before, after = list(a.shape[:-1]), [1] * len(shape)
            for old, new in groups:
                if any(a.shape[d] > 1 for d in old):
                    for d in old:
                        before[d] = self.shape[d]
                    for d in new:
                        after[d] = shape[d]
            return np.broadcast_to(a, (*before, 5)).reshape(*after, 5)

        return self.each(apply, shape)

    def expand(self, shape: Sequence[int]) -> "Reach":
        """Broadcasting, as of one operand of several."""
        if np.broadcast_shapes(self.shape, tuple(shape)) != tuple(shape):
            raise ValueError(f"a tensor of shape {self.shape} does not broadcast to {tuple(shape)}")
        missing = [1] * (len(shape) - len(self.shape))
        return self.each(lambda a: a.reshape(*missing, *a.shape), shape)


def hull(reaches: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """What elementwise operators of several tensors read."""
    shape = tuple(shape)
    first = reaches[0]
    if all(r is first for r in reaches) and first.shape == shape:
        return first
    parts = [r.expand(shape) for r in reaches]
    axes = [parts[0].axes[k] for k in (0, 1)]
    for p in parts[1:]:
        axes = [np.minimum(a, b) for a, b in zip(axes, p.axes, strict=True)]
    steps = [max(p.steps[k] for p in parts) for k in (0, 1)]
    return replace(first, shape=shape, axes=(axes[0], axes[1]), steps=(steps[0], steps[1]), exact=all(p.exact for p in parts))


def concatenate(reaches: Sequence[Reach], dim: int) -> Reach:
    """Tensors laid end to end along `dim`."""
    first, dim = reaches[0], reaches[0].at(dim)
    axes = []
    for k in (0, 1):
        parts = [r.axes[k] for r in reaches]
        place = any(r.is_place(k, dim) for r in reaches)
        if not place and all(p.shape[dim] == 1 and np.array_equal(p, parts[0]) for p in parts):
            axes.append(parts[0])
            continue
        rest = np.broadcast_shapes(*[p.shape[:dim] + p.shape[dim + 1 :] for p in parts])
        sized = [(*rest[:dim], r.shape[dim], *rest[dim:]) for r in reaches]
        joined = np.concatenate([np.broadcast_to(p, s) for p, s in zip(parts, sized, strict=True)], dim)
        if place:
            np.moveaxis(joined, dim, -2)[..., PLACE] = np.arange(joined.shape[dim])
        axes.append(joined)
    steps = [max(r.steps[k] for r in reaches) for k in (0, 1)]
    return replace(
        first,
        shape=first.replaced(dim, sum(r.shape[dim] for r in reaches)),
        axes=(axes[0], axes[1]),
        steps=(steps[0], steps[1]),
        exact=all(r.exact for r in reaches),
    )


def _slide(
    a: Array, taps: Integers, inside: NDArray[np.bool_], virtual: Integers, used: NDArray[np.bool_], step: float
) -> tuple[Array, float]:
    """`window` for an array (..., positions, 5); also the pixels between neighbors of the input."""
    n = a.shape[-2]
    read = np.where(inside[..., None], a[..., taps.clip(0, n - 1), READ], np.inf).min(-2)
    theory = a[..., THEORY]
    if n > 1:
        with np.errstate(invalid="ignore"):  # between two infinities there is no step
            low, high = theory[..., 1, :] - theory[..., 0, :], theory[..., -1, :] - theory[..., -2, :]
        low, high = (np.nan_to_num(s, nan=0.0, posinf=0.0, neginf=0.0)[..., None, None, :] for s in (low, high))
        step = float(low.flat[0])
    else:
        low = high = np.array([step, -step])
    nearest = virtual.clip(0, n - 1)
    beyond = np.where((virtual < 0)[..., None], low, high) * (virtual - nearest)[..., None]
    theory = np.where(used[..., None], theory[..., nearest, :] + beyond, np.inf).min(-2)
    place = np.broadcast_to(np.arange(len(taps), dtype=np.float64)[:, None], (*read.shape[:-1], 1))
    return np.concatenate([read, theory, place], -1), step


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold the same number of elements."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while True:
            if (a <= b and i < len(old)) or j == len(new):
                a *= old[i]
                left.append(i)
                i += 1
            else:
                b *= new[j]
                right.append(j)
                j += 1
            if a == b and left and right:
                break
            if i == len(old) and j == len(new):
                break
        groups.append((left, right))
    return groups
