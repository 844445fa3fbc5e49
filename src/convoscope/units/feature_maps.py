"""Feature maps: what every channel of a layer makes of a picture, in a grid or over the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.geometry import Field
from convoscope.core.placing import placed
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.network import Network
from convoscope.show import overlay, strip
from convoscope.show.figure import Scale, number
from convoscope.units.fields import field_at

Sort = Literal["strength", "index"]
ScaleOf = Literal["shared", "each"]
UNITS = {"shared": "activation, the same for all maps (99.5th percentile)", "each": "of each map's largest activation"}


@dataclass(frozen=True)
class FeatureMaps:
    """The activations `(channels, h, w)` of a layer for one picture, and the picture as it was read, pixels 0..1."""

    network: str
    address: str
    values: Float[Tensor, "channels h w"]
    picture: Float[Tensor, "3 H W"]
    field: Field | None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def signed(self) -> bool:
        """Whether any activation is negative: then zero is in the middle of the colors."""
        return bool((self.values < 0).any())

    @property
    def strength(self) -> Float[Tensor, " channels"]:
        """The largest magnitude of each map."""
        return self.values.abs().flatten(1).amax(1)

    def order(self, sort: Sort = "strength") -> Int[Tensor, " channels"]:
        """The numbers of the channels, strongest first or as they are; equal ones in the order of their numbers."""
        if sort not in ("strength", "index"):
            raise UsageError(f"no order {sort!r}; expected 'strength' or 'index'")
        return self.strength.argsort(descending=True, stable=True) if sort == "strength" else torch.arange(len(self))

    def limit(self, units: Sequence[int] | None = None, scale: ScaleOf = "shared") -> Float[Tensor, " channels"]:
        """The magnitude that gets the strongest color in each of these maps.

        "shared": the 99.5th percentile of the magnitudes that are not zero in all maps shown; "each": each map's largest.
        """
        if scale not in ("shared", "each"):
            raise UsageError(f"no scale {scale!r}; expected 'shared' or 'each'")
        chosen = self.values if units is None else self.values[torch.as_tensor(units)]
        if scale == "each":
            return chosen.abs().flatten(1).amax(1)
        sizes = chosen.abs().flatten()
        return chosen.new_full((len(chosen),), overlay.limit(sizes[sizes > 0].double().numpy()[None]))

    def over(self, unit: int, limit: float) -> np.ndarray:
        """One map over the picture, each activation at the center of what it sees: (H, W, 3) bytes."""
        size = self.picture.shape[1:]
        map_ = placed(self.values[unit][None, None].double(), self.field, size)[0, 0].numpy()
        return overlay.overlay(map_, self.picture.permute(1, 2, 0).numpy(), limit=limit, signed=self.signed)


def feature_maps(network: Network, x: Any, layer: str) -> list[FeatureMaps]:
    """The feature maps of a layer for each picture. `x` is an input tensor `(B, C, H, W)` or anything `network.read` takes.

    Raises AddressError for a layer that is not there, UnsupportedError for one without rows and columns.
    """
    x = network.check(x if isinstance(x, Tensor) else network.read(x))
    field_of = field_at(network, layer, x) if layer != "output" else None
    with undisturbed(network.plain), torch.no_grad():
        found = record(network.plain, x.clone(), (layer,), head=network.head)[layer]
    if found.dim() != 4:
        raise UnsupportedError(
            f"{layer!r} has shape {tuple(found.shape[1:])}, no rows and columns: there are no maps to draw (net.layers() lists "
            "the shapes)"
        )
    pictures = network.picture(x)
    maps = found.detach().float().cpu()
    return [FeatureMaps(network.name, layer, m, p, field_of) for m, p in zip(maps, pictures, strict=True)]


def strip_of(
    found: FeatureMaps, *, name: str = "", sort: Sort = "strength", count: int | None = 64, over: bool = False,
    scale: ScaleOf = "shared", units: Sequence[int] | None = None,
) -> strip.Strip:  # fmt: skip
    """The maps of a picture as a strip: the `count` first of them in the order of `sort`, or `units`; `over` the picture."""
    order = _chosen(found, sort, count) if units is None else [int(u) for u in units]
    for u in order:
        if not 0 <= u < len(found):
            raise UsageError(f"{found.address!r} has {len(found)} channels, numbered from 0; there is no {u}")
    limits, strengths = found.limit(order, scale).tolist(), found.strength.tolist()
    tiles = []
    for u, limit in zip(order, limits, strict=True):
        alone = overlay.colorize(found.values[u].numpy(), limit=limit, signed=found.signed) if not over else None
        picture = found.over(u, limit) if alone is None else alone
        tiles.append(strip.Tile(picture, f"{u}: {number(strengths[u])}", smooth=over))
    photo = strip.Tile(found.picture.permute(1, 2, 0).numpy(), name, smooth=True)
    grid = strip.Grid(tiles, min(len(tiles), 6 if over else 8))
    about = _about(found, order, sort if units is None else "as asked")
    colors = Scale.of(limits[0] if scale == "shared" else 1.0, found.signed, UNITS[scale])
    title = f"Feature maps of {found.address}"
    return strip.Strip(title, [strip.Group("", [grid])], [about], colors, side=104 if over else 72, gap=4, picture=photo)


def together(strips: Sequence[strip.Strip]) -> strip.Strip:
    """Several layers of one picture in one strip, each with its own scale."""
    if len(strips) == 1:
        return strips[0]
    groups = [replace(s.groups[0], title=s.title, note=s.about[0], scale=s.scale) for s in strips]
    return replace(strips[0], title="Feature maps", groups=groups, about=(), scale=None)


def _chosen(found: FeatureMaps, sort: Sort, count: int | None) -> list[int]:
    if count is not None and count < 1:
        raise UsageError(f"count is {count}; expected at least 1")
    return found.order(sort)[:count].tolist()


def _about(found: FeatureMaps, order: Sequence[int], sort: str) -> str:
    channels, height, width = found.values.shape
    silent = int((found.strength == 0).sum())
    how = {"strength": "strongest first", "index": "in the order of their numbers"}.get(sort, sort)
    shown = f"all {channels} channels" if len(order) == channels else f"{len(order)} of {channels} channels"
    text = f"{found.network}: {shown} of {height} x {width}, {how}; below each its number and largest magnitude."
    return text + (f" {silent} are zero everywhere in this picture." if silent else "")


def rows_of(found: FeatureMaps, units: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """For each channel its strongest activation with its place and its mean, as JSON values."""
    flat, width = found.values.flatten(1), found.values.shape[2]
    rows = []
    for u in range(len(found)) if units is None else units:
        best = int(flat[u].argmax())
        rows.append(
            {"unit": int(u), "largest": float(flat[u, best]), "row": best // width, "column": best % width,
             "smallest": float(flat[u].min()), "mean": float(flat[u].mean())}
        )  # fmt: skip
    return rows
