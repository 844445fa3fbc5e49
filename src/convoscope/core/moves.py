"""Operators that only move elements: slices, reshapes, permutes, concatenations. They join the table of `reads`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from convoscope.core.reach import Array, Reach, concatenate
from convoscope.core.reads import Call, axes_of, column, operator, tensors_in


@operator("flatten ravel reshape view view_as reshape_as unflatten squeeze unsqueeze atleast_2d atleast_3d")
def _reshape(call: Call) -> Reach:
    x = call.x
    return x if x.shape == call.shape else x.reshape(call.shape)


def _permuted(x: Reach, order: Sequence[int]) -> Reach:
    order = [x.at(d) for d in order]
    return x.each(lambda a: a.transpose(*order, a.ndim - 1), [x.shape[d] for d in order])


@operator("permute")
def _permute(call: Call) -> Reach:
    x, dims = call.x, call.get(1, "dims")
    return _permuted(x, dims if isinstance(dims, tuple | list) else call.args[1:])


@operator("transpose swapaxes swapdims t T mT H mH adjoint")
def _transpose(call: Call) -> Reach:
    x = call.x
    order = list(range(len(x.shape)))
    if call.name in ("transpose", "swapaxes", "swapdims"):
        names = {"swapaxes": ("axis0", "axis1")}.get(call.name, ("dim0", "dim1"))
        a, b = (x.at(int(call.get(i + 1, name))) for i, name in enumerate(names))
    elif len(order) == 2 or call.name in ("mT", "mH", "adjoint"):
        a, b = order[-2], order[-1]
    else:
        raise ValueError(call.name)
    order[a], order[b] = b, a
    return _permuted(x, order)


@operator("movedim moveaxis")
def _movedim(call: Call) -> Reach:
    x, source, destination = call.x, call.get(1, "source"), call.get(2, "destination")
    marks = np.moveaxis(np.empty([d + 2 for d in range(len(x.shape))]), source, destination).shape
    return _permuted(x, [m - 2 for m in marks])


@operator("getitem")
def _getitem(call: Call) -> Reach:
    x, index = call.x, _index(call.args[1])
    if any(t in call.reaches for t in tensors_in(call.args[1])):
        raise TypeError("an index that the input decides")
    return x.view(lambda a: a[index], call.shape)


def _index(index: Any) -> tuple[Any, ...]:
    """An index of the tensor as one of an array with one more axis at its end."""
    items = index if isinstance(index, tuple) else (index,)
    plain = tuple(i.detach().cpu().numpy() if isinstance(i, Tensor) else i for i in items)
    return (*plain, slice(None)) if any(i is Ellipsis for i in plain) else plain


def written(call: Call) -> Reach:
    """The reach of `x` after `x[index] = value`."""
    target, index, value = call.args
    x, shape = call.of(target), tuple(target.shape)
    if any(t in call.reaches for t in tensors_in(index)):
        return replace(x.everything(shape), exact=False)
    new = call.of(value) if isinstance(value, Tensor) else x.nothing(())
    full: list[Array] = []
    for old, a in zip(x.axes, new.axes, strict=True):
        array = np.array(np.broadcast_to(old, (*shape, 5)))
        array[_index(index)] = a
        for d in range(len(shape)):
            first = array.take([0], d)
            if shape[d] and (array == first).all():
                array = first
        full.append(array)
    return replace(x, axes=(full[0], full[1]), exact=x.exact and new.exact)


@operator("select")
def _select(call: Call) -> Reach:
    x = call.x
    where = (slice(None),) * x.at(int(call.get(1, "dim"))) + (int(call.get(2, "index")),)
    return x.view(lambda a: a[where], call.shape)


@operator("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split")
def _split(call: Call) -> list[Reach]:
    x, parts, start = call.x, [], 0
    dim = x.at(int(call.get(2, "dim", 0)))
    for t in call.outputs:
        parts.append(_taken(x, dim, np.arange(start, start + t.shape[dim])))
        start += t.shape[dim]
    return parts


@operator("unbind")
def _unbind(call: Call) -> list[Reach]:
    x = call.x
    before = (slice(None),) * x.at(int(call.get(1, "dim", 0)))
    return [x.view(lambda a, i=i: a[(*before, i)], t.shape) for i, t in enumerate(call.outputs)]


def _taken(x: Reach, dim: int, positions: Any) -> Reach:
    return x.window(dim, column(positions))


@operator("narrow")
def _narrow(call: Call) -> Reach:
    start, length = int(call.get(2, "start")), int(call.get(3, "length"))
    x, dim = call.x, int(call.get(1, "dim"))
    return _taken(x, dim, np.arange(length) + start % max(x.shape[dim], 1))


@operator("index_select")
def _index_select(call: Call) -> Reach:
    return _taken(call.x, int(call.get(1, "dim")), call.get(2, "index").cpu().numpy())


@operator("flip")
def _flip(call: Call) -> Reach:
    x = call.x
    dims = call.get(1, "dims")
    for d in axes_of(x, dims if isinstance(dims, tuple | list) else call.args[1:]):
        x = _taken(x, d, np.arange(x.shape[d])[::-1])
    return x


@operator("roll")
def _roll(call: Call) -> Reach:
    x, shifts, dims = call.x, call.get(1, "shifts"), call.get(2, "dims")
    if dims is None or dims == ():
        raise TypeError("a roll of the flattened tensor")
    pairs = zip(shifts, dims, strict=True) if isinstance(dims, tuple | list) else [(shifts, dims)]
    for shift, d in pairs:
        x = _taken(x, d, (np.arange(x.shape[d]) - shift) % x.shape[d])
    return x


@operator("expand expand_as broadcast_to")
def _expand(call: Call) -> Reach:
    if call.name == "expand_as":
        call.of(call.args[1])
    return call.x.expand(call.shape)


@operator("repeat tile")
def _repeat(call: Call) -> Reach:
    x, shape = call.x, call.shape
    x = x.reshape([1] * (len(shape) - len(x.shape)) + list(x.shape))
    for d, size in enumerate(shape):
        if size != x.shape[d]:
            x = _taken(x, d, np.arange(size) % x.shape[d])
    return x


@operator("repeat_interleave")
def _repeat_interleave(call: Call) -> Reach:
    x, repeats, dim = call.x, call.get(1, "repeats"), call.get(2, "dim")
    if not isinstance(repeats, int) or dim is None:
        raise TypeError("repeats that differ")
    return _taken(x, dim, np.arange(x.shape[dim] * repeats) // repeats)


@operator("cat")
def _cat(call: Call) -> Reach:
    tensors: Sequence[Tensor] = call.get(0, "tensors")
    return concatenate([call.of(t) for t in tensors if t.numel()], int(call.get(1, "dim", 0)))


@operator("stack")
def _stack(call: Call) -> Reach:
    tensors: Sequence[Tensor] = call.get(0, "tensors")
    dim = int(call.get(1, "dim", 0)) % len(call.shape)
    one = (*call.shape[:dim], 1, *call.shape[dim + 1 :])
    return concatenate([call.of(t).reshape(one) for t in tensors], dim)


@operator("unfold")
def _unfold(call: Call) -> Reach:
    if len(call.shape) != len(call.x.shape) + 1:
        return _patches(call)
    x, dim = call.x, call.x.at(int(call.get(1, "dimension")))
    size, step = int(call.get(2, "size")), int(call.get(3, "step"))
    taps = column(np.arange(call.shape[dim]) * step) + np.arange(size)

    def apply(a: Array) -> Array:
        if a.shape[dim] == 1:
            return a[..., None, :]
        return np.moveaxis(np.moveaxis(a, dim, -2)[..., taps, :], -3, dim)

    return x.each(apply, call.shape)


def _patches(call: Call) -> Reach:
    """`F.unfold`: a column per position; its entries are bounded by what the whole window reads."""
    x, shape = call.x, call.shape
    settings = [call.get(1, "kernel_size"), call.get(4, "stride", 1), call.get(3, "padding", 0), call.get(2, "dilation", 1)]
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (v if isinstance(v, tuple | list) else (v, v) for v in settings)
    grid = []
    for dim, k, s, p, d in ((2, kh, sh, ph, dh), (3, kw, sw, pw, dw)):
        grid.append((x.shape[dim] + 2 * p - d * (k - 1) - 1) // s + 1)
        x = x.window(dim, column(np.arange(grid[-1]) * s - p) + np.arange(k) * d, factor=s)
    x = x.mix(1, 1, shape[1]).reshape((x.shape[0], shape[1], *grid)).reshape(shape)
    return replace(x, exact=x.exact and kh * kw == 1)


@operator("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Reach:
    x, r = call.x, int(call.get(1, "upscale_factor"))
    *batch, c, h, w = x.shape
    n = len(batch)
    parts = x.reshape((*batch, c // r**2, r, r, h, w))
    return _permuted(parts, [*range(n), n, n + 3, n + 1, n + 4, n + 2]).reshape(call.shape)


@operator("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Reach:
    x, r = call.x, int(call.get(1, "downscale_factor"))
    *batch, c, h, w = x.shape
    n = len(batch)
    parts = x.reshape((*batch, c, h // r, r, w // r, r))
    return _permuted(parts, [*range(n), n, n + 2, n + 4, n + 1, n + 3]).reshape(call.shape)


@operator("channel_shuffle native_channel_shuffle")
def _channel_shuffle(call: Call) -> Reach:
    x, g = call.x, int(call.get(1, "groups"))
    b, c, *rest = x.shape
    parts = x.reshape((b, g, c // g, *rest))
    return _permuted(parts, [0, 2, 1, *range(3, len(parts.shape))]).reshape(call.shape)
