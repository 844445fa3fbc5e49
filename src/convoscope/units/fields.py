"""Where units look: the box of the picture behind an activation, and its pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import AddressError, UsageError, did_you_mean
from convoscope.core.geometry import Field, Geometry
from convoscope.core.record import canonical
from convoscope.core.trace import Entry
from convoscope.network import Network

GRAY = 0.5
Box = tuple[int, int, int, int]  # top, left, bottom, right: x[..., top:bottom, left:right]


@dataclass(frozen=True)
class ImageBox:
    """The receptive field of one unit in input pixels: (top, left, bottom, right), the last two exclusive.

    `clipped` lies in the picture and holds every pixel the unit can depend on. `full` is that of the theory, which reaches
    beyond the picture's border by what the padding of the layers adds; where units are not evenly spaced or see the whole
    picture it is the same. `exact` is False where an operator's reach could only be bounded: boxes may then be too large.
    """

    clipped: Box
    full: Box
    exact: bool


def unit_name(name: str, network: Network | None = None, x: Tensor | None = None) -> tuple[str, int]:
    """Layer and number of a unit from its name, `layer4:42`.

    With a network both are looked up, for inputs like `x` (default: of the network's size). Raises UsageError for what is no
    such name, AddressError for a layer that is not there, with the closest ones, UsageError for a number out of range.
    """
    address, colon, number = str(name).rpartition(":")
    if not (colon and address.strip() and number.strip().isdecimal()):
        raise UsageError(f"{name!r} is no unit; give its layer and its number from 0, such as layer4:42")
    address, channel = address.strip(), int(number)
    if network is not None:
        shape = _entry(network, address, x).shape
        if not shape or channel >= shape[0]:
            raise UsageError(f"{address!r} has {shape[0] if shape else 0} units, numbered from 0; there is no {channel}")
    return address, channel


def field_at(network: Network, address: str, x: Tensor | None = None) -> Field | None:
    """The receptive fields of a layer's units for inputs like `x` (default: of the network's size); None where unknown."""
    return _entry(network, address, x).field


def image_box(network: Network, address: str, row: int, column: int, x: Tensor | None = None) -> ImageBox:
    """The box of the picture behind the activation at a place of a layer's map, exact through any graph.

    In a chain of layers of kernel k, stride s and padding p, row i sees `size` rows from `offset + i * stride` on, where
    `size += (k - 1) * stride`, `offset -= p * stride`, `stride *= s` layer by layer; at joins the hull of the branches.
    Raises UsageError for a place that is not there, AddressError for a layer that is not.
    """
    entry, size = _entry(network, address, x), _size(network, x)
    return box_in(entry.field, entry.address, row, column, size)


def box_in(field: Field | None, address: str, row: int, column: int, size: Sequence[int]) -> ImageBox:
    """As `image_box`, of fields that are known, in a picture of `size`."""
    whole = (0, 0, int(size[0]), int(size[1]))
    if field is None:
        return ImageBox(whole, whole, exact=False)
    rows, columns = field.grid
    if not (0 <= row < rows and 0 <= column < columns) and not (field.whole and row >= 0 and column >= 0):
        raise UsageError(f"{address!r} is {rows} x {columns}, numbered from 0; there is no place ({row}, {column})")
    if field.whole:
        return ImageBox(whole, whole, field.exact)
    clipped = field.box(row, column)
    full = list(clipped)
    for axis, place in enumerate((row, column)):
        stride, offset = field.stride[axis], field.offset[axis]
        if stride is not None and offset is not None:
            full[axis], full[axis + 2] = offset + place * stride, offset + place * stride + field.size[axis]
    return ImageBox(clipped, (full[0], full[1], full[2], full[3]), field.exact)


def cropped(pixels: Float[Tensor, "channels H W"], box: Box, fill: float = GRAY) -> Float[Tensor, "channels h w"]:
    """The pixels in a box; `fill` where it lies outside of the picture."""
    top, left, bottom, right = box
    height, width = pixels.shape[1:]
    found = pixels.new_full((len(pixels), bottom - top, right - left), fill)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    if y1 > y0 and x1 > x0:
        found[:, y0 - top : y1 - top, x0 - left : x1 - left] = pixels[:, y0:y1, x0:x1]
    return found


def patch(
    network: Network, dataset: Any, address: str, image: int, row: int, column: int, *, pad: bool = False
) -> Float[Tensor, "3 height width"]:
    """The part of a data set's picture that is behind an activation, in pixels 0..1, as the network reads pictures.

    The box is clipped to the picture; with `pad` it is full, gray (0.5) outside of the picture, with its center in the middle.
    """
    x = network.read(dataset.picture(image))
    box = image_box(network, address, row, column, x)
    return cropped(network.picture(x)[0], box.full if pad else box.clipped)


def patches(
    network: Network, dataset: Any, address: str, places: Any, units: Sequence[int] | None = None, *, pad: bool = False
) -> list[list[Tensor]]:
    """For each unit the pictures behind its exemplars, strongest first: `patch` of each, every image read once.

    `places` is what the value of a TopPatches is; `units` default to all.
    """
    chosen = _units(places, units)
    found: dict[tuple[int, int], Tensor] = {}
    for image, group in by_image(places, chosen):
        x = network.read(dataset.picture(image))
        pixels, field = network.picture(x)[0], field_at(network, address, x)
        for unit, rank, row, column in group:
            box = box_in(field, address, row, column, x.shape[2:])
            found[unit, rank] = cropped(pixels, box.full if pad else box.clipped)
    return [[found[u, r] for r in range(places.images.shape[1]) if (u, r) in found] for u in chosen]


def by_image(places: Any, units: Sequence[int]) -> Iterator[tuple[int, list[tuple[int, int, int, int]]]]:
    """Each image with its exemplars (unit, rank, row, column), in the order of the images."""
    images = places.images[torch.as_tensor(units, dtype=torch.int64)]
    for image in images[images >= 0].unique().tolist():
        group = []
        for i, rank in (images == image).nonzero().tolist():
            unit = units[i]
            group.append((unit, rank, int(places.rows[unit, rank]), int(places.columns[unit, rank])))
        yield image, group


def _units(places: Any, units: Sequence[int] | None) -> list[int]:
    count = len(places.images)
    chosen = list(range(count)) if units is None else [int(u) for u in units]
    for u in chosen:
        if not 0 <= u < count:
            raise UsageError(f"there are {count} units, numbered from 0; there is no {u}")
    return chosen


def _size(network: Network, x: Tensor | None) -> tuple[int, int]:
    if x is None and network.size is None:
        raise UsageError("this network takes any size; give an input, x=net.read(picture)")
    return network.size if x is None else (int(x.shape[2]), int(x.shape[3]))  # type: ignore[return-value]


def _entry(network: Network, address: str, x: Tensor | None) -> Entry:
    size = _size(network, x)
    if x is None:
        x = torch.zeros(1, network.channels, *size, device=network.device, dtype=network.dtype)
    if address == "input":
        return Entry("input", "", tuple(x.shape[1:]), Geometry(x).field(x), 0, 0)
    entries = network.trace(x).entries
    wanted = canonical(network.plain, address)
    found = next((e for e in entries if e.address == wanted), None)
    if found is None:
        hint = did_you_mean(address, [e.address for e in entries])
        raise AddressError(f"layer {address!r} does not exist{hint} (net.layers() lists them all)")
    return found
