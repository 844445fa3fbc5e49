"""Dense labels where a network has the pixels of a picture."""

import random
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from convoscope.core.errors import UnsupportedError

if TYPE_CHECKING:
    from convoscope.data.dataset import Dataset
    from convoscope.network import Network

KEPT = 128 * 2**20  # bytes of aligned labels that are kept: those of the batch that all layers look at
_kept: OrderedDict[tuple[Any, ...], tuple[Any, Any, Tensor]] = OrderedDict()
_found: "weakref.WeakKeyDictionary[Network, dict[Any, tuple[Any, Places]]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Places(NamedTuple):
    """Where the pixels of an input come from: their rows and columns in the picture, -1 outside of it.

    `(H,)` and `(W,)` where each row and column comes from one, else `(H, W)` both.
    """

    rows: Int[Tensor, "..."]
    columns: Int[Tensor, "..."]


def aligned(network: "Network", dataset: "Dataset", i: int) -> Int[Tensor, "layers H W"]:
    """See `segments_for`."""
    i = dataset.row(i)
    key = (id(network), id(dataset), i, id(network.transform), network.size)
    with _lock:
        known = _kept.get(key)
        if known is not None and known[0]() is network and known[1]() is dataset:
            _kept.move_to_end(key)
            return known[2]
    labels = dataset.segments(i)
    size = (int(labels.shape[1]), int(labels.shape[2]))
    as_it_is = network.transform is not None and size == network.size and isinstance(dataset.picture(i), Tensor)
    found = taken(labels, fit_places(size, size) if as_it_is else places(network, size))
    with _lock:
        _kept[key] = weakref.ref(network), weakref.ref(dataset), found
        held = sum(v[2].nbytes for v in _kept.values())
        while held > KEPT and len(_kept) > 1:
            held -= _kept.popitem(last=False)[1][2].nbytes
    return found


def taken(labels: Int[Tensor, "layers height width"], at: Places) -> Int[Tensor, "layers H W"]:
    """The labels at these places, 0 outside."""
    if at.rows.dim() == 1:
        found = labels.index_select(1, at.rows.clamp(min=0)).index_select(2, at.columns.clamp(min=0))
        outside = (at.rows < 0)[:, None] | (at.columns < 0)
    else:
        found = labels[:, at.rows.clamp(min=0), at.columns.clamp(min=0)]
        outside = (at.rows < 0) | (at.columns < 0)
    return found.masked_fill(outside, 0) if outside.any() else found


def places(network: "Network", size: tuple[int, int]) -> Places:
    """Where `network.read` takes the pixels of a picture of this height and width from.

    Of a network with a transform of its own this is measured, by sending pictures of coordinates through it. Raises
    UnsupportedError where that does more than resize, crop, pad, mirror or turn.
    """
    if network.transform is None or network.channels not in (1, 3):  # others are read as tensors, without it
        return fit_places(size, network.size or size)
    known = _found.setdefault(network, {})
    key = (size, network.channels)
    if key not in known or known[key][0] is not network.transform:
        known[key] = network.transform, measured(network.transform, size, "L" if network.channels == 1 else "RGB")
    return known[key][1]


# ---- the network's own reading
def nearest(size: int, to: int, whole: int | None = None, start: int = 0) -> Int[Tensor, " to"]:
    """The pixel of `size` at the center of each of `to`, cut from `start` of all `whole` that the picture is resized to."""
    whole = to if whole is None else whole
    # floor((r + start + 1/2) * size / whole), in whole numbers
    found = torch.div((2 * (torch.arange(to) + start) + 1) * size, 2 * whole, rounding_mode="floor")
    return torch.where((found < 0) | (found >= size), -1, found)


def fit_places(size: tuple[int, int], to: tuple[int, int]) -> Places:
    """Those of `fit`: resized to cover, the center cropped."""
    scale = max(to[0] / size[0], to[1] / size[1])
    whole = [max(part, round(n * scale)) for n, part in zip(size, to, strict=True)]
    return Places(*(nearest(n, part, new, (new - part) // 2) for n, part, new in zip(size, to, whole, strict=True)))


# ---- transforms of any make
def measured(transform: Callable[[Any], Tensor], size: tuple[int, int], mode: str) -> Places:
    """Where a transform takes its pixels from.

    Resampling keeps linear functions, so the picture of the coordinate x becomes the places that pixels come from, but for the
    borders, where kernels are cut off: a line fitted to the inner pixels is exact. A tensor of floats says it in four
    passes; where a transform takes pictures of bytes only, ramps of 32 pixels each are sent through and added.
    """
    some = Image.fromarray(np.arange(size[0] * size[1]).astype(np.uint8).reshape(size)).convert(mode)
    if not repeats(lambda: _values(transform, some).tobytes()):
        raise UnsupportedError("the network's transform is random: labels cannot follow it. Give the network a plain one")
    looks = (_tensors, _bytes)
    for look in looks:
        try:
            maps = look(transform, size, mode)
        except Exception:  # a transform may raise anything at floats; pictures of bytes are what it is for
            if look is looks[-1]:
                raise
            continue
        found = _from_maps(maps, size)
        if found is not None:
            return found
    raise UnsupportedError(
        "the network's transform does more than resize, crop, pad, mirror and turn: labels cannot follow it. "
        "Give the network a plain one, or size, mean and std instead"
    )


def repeats(made: Callable[[], Any]) -> bool:
    """Whether the same comes out each time: tried twice, and often where random numbers were drawn."""
    before = _random_states()
    first = made()
    tries = 1 if _random_states() == before else 16
    return all(first == made() for _ in range(tries))


def _random_states() -> list[Any]:
    drawn: Any = np.random.get_state()
    return [random.getstate(), drawn[1].tobytes(), drawn[2:], torch.get_rng_state().numpy().tobytes()]


Maps = tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"], np.ndarray]  # y, x, inside


def _values(transform: Callable[[Any], Tensor], picture: Any) -> Float[np.ndarray, "channels H W"]:
    return transform(picture).detach().cpu().double().numpy()


def _tensors(transform: Callable[[Any], Tensor], size: tuple[int, int], mode: str) -> Maps:
    down, across = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32) + np.float32(0.5)
    sent = (np.zeros(size, np.float32), np.ones(size, np.float32), down, across)
    black, white, y, x = (_values(transform, torch.from_numpy(p).repeat(len(mode), 1, 1)) for p in sent)
    return _positions([y], black, white), _positions([x], black, white), _inside(black, white)


def _bytes(transform: Callable[[Any], Tensor], size: tuple[int, int], mode: str) -> Maps:
    def passed(levels: np.ndarray) -> np.ndarray:
        gray = Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, size), np.uint8))
        return _values(transform, gray.convert(mode))

    black, white = passed(np.zeros(size)), passed(np.full(size, 255))
    found = []
    for n, shape in zip(size, ((-1, 1), (1, -1)), strict=True):
        steps = (8 * np.arange(n) + 4).reshape(shape)  # eight levels a pixel
        ramps = [passed(np.clip(steps - 255 * k, 0, 255)) for k in range(-(-8 * n // 255))]
        found.append(_positions(ramps, black, white) * 255 / 8)
    return found[0], found[1], _inside(black, white)


def _inside(black: np.ndarray, white: np.ndarray) -> np.ndarray:
    return np.abs((white - black).sum(0)) > 1e-6


def _positions(parts: list[np.ndarray], black: np.ndarray, white: np.ndarray) -> Float[np.ndarray, "H W"]:
    """The sum of what was sent, free of the normalization."""
    span = (white - black).sum(0)
    return sum((p - black).sum(0) for p in parts) / np.where(np.abs(span) > 1e-6, span, np.inf)


def _from_maps(maps: Maps, size: tuple[int, int]) -> Places | None:
    """Places of measured positions, None where they lie on no plane."""
    *positions, inside = maps
    planes = [_plane(p, inside, n) for p, n in zip(positions, size, strict=True)]
    if None in planes:
        return None
    height, width = inside.shape
    (y_down, y_across, y0), (x_down, x_across, x0) = (p for p in planes if p is not None)
    r, c = np.mgrid[0:height, 0:width]
    if abs(y_across) * width < 0.1 and abs(x_down) * height < 0.1:
        return Places(_line(y_down, y0, size[0], height), _line(x_across, x0, size[1], width))
    y, x = np.floor(y_down * r + y_across * c + y0), np.floor(x_down * r + x_across * c + x0)
    lost = (y < 0) | (y >= size[0]) | (x < 0) | (x >= size[1])
    return Places(*(torch.from_numpy(np.where(lost, -1, v).astype(np.int64)) for v in (y, x)))


def _plane(position: np.ndarray, inside: np.ndarray, n: int) -> tuple[float, float, float] | None:
    """Slopes down and across, and the value at (0, 0), of the plane through positions away from the picture's border."""
    if inside.sum() < 4:
        return None
    down, across = (np.median(np.diff(position, axis=k)[_both(inside, k)]) for k in (0, 1))
    margin = min(2.5 * max(abs(down) + abs(across), 1.0) + 1, 0.35 * n)  # bicubic kernels reach two pixels of the coarser grid
    fair = inside & (position > margin) & (position < n - margin)
    r, c = np.nonzero(fair)
    if len(r) < 4 or not np.isfinite(position[fair]).all():
        return None
    system = np.stack([r, c, np.ones_like(r)], 1).astype(np.float64)
    plane = np.linalg.lstsq(system, position[fair], rcond=None)[0]
    error = np.abs(system @ plane - position[fair]).max()
    flat = abs(plane[0]) + abs(plane[1]) < 1e-3
    return None if error > 0.5 or flat else (float(plane[0]), float(plane[1]), float(plane[2]))


def _both(inside: np.ndarray, axis: int) -> np.ndarray:
    return inside[1:] & inside[:-1] if axis == 0 else inside[:, 1:] & inside[:, :-1]


def _line(slope: float, first: float, size: int, to: int) -> Int[Tensor, " to"]:
    """The pixels along one axis; of a picture resized to a whole number of pixels and cut at one, they are exact."""
    whole = round(size / slope) if slope > 1e-3 else 0
    if whole > 0:
        shift = first * whole / size - 0.5
        ends = [abs((r + round(shift) + 0.5) * size / whole - (slope * r + first)) for r in (0, to - 1)]
        if max(ends) < 0.1 * max(slope, 1):
            return nearest(size, to, whole, round(shift))
    found = torch.from_numpy(np.floor(slope * np.arange(to) + first).astype(np.int64))
    return torch.where((found < 0) | (found >= size), -1, found)
