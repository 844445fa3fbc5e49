"""Zeiler's pictures: a unit's strongest patches beside what a deconvolutional network projects back from each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.data.dataset import open_dataset
from convoscope.files import check_writable, replaced, write_text
from convoscope.method import explain, method_of
from convoscope.network import Network
from convoscope.show import overlay, strip
from convoscope.show.figure import number
from convoscope.targets import Neuron
from convoscope.units.exemplars import Patches
from convoscope.units.fields import Box, ImageBox, box_in, by_image, cropped, field_at


@dataclass(frozen=True)
class Projected:
    """One exemplar: the pixels 0..1 of its patch `(3, h, w)`, the projection `(C, h, w)` in the same box, and where it is.

    The box is the full receptive field, gray where it leaves the picture, or, where that is larger than the picture, clipped.
    """

    patch: Float[Tensor, "3 h w"]
    projection: Float[Tensor, "channels h w"]
    value: float
    image: int
    row: int
    column: int
    box: Box


@dataclass(frozen=True)
class Projections:
    """The projected exemplars of some units of a layer, each unit's strongest first."""

    network: str
    address: str
    method: str
    units: tuple[int, ...]
    exemplars: tuple[tuple[Projected, ...], ...]

    def __getitem__(self, unit: int) -> tuple[Projected, ...]:
        """Those of one unit, by its number."""
        if unit not in self.units:
            raise UsageError(f"unit {unit} was not projected; there are {', '.join(map(str, self.units))}")
        return self.exemplars[self.units.index(unit)]

    def strip(self, across: int = 2, side: int = 72) -> strip.Strip:
        """Units in rows: on the left the projections, on the right the patches, in the same places."""
        groups = [_group(self.address, u, found) for u, found in zip(self.units, self.exemplars, strict=True)]
        about = [
            f"{self.network}: of each unit its strongest patches in the data, on the right, and on the left what {self.method} "
            "projects back to the pixels from that one activation. A tile is the receptive field, gray where it leaves the "
            "picture. Gray of a projection is zero, and each has a contrast of its own."
        ]
        return strip.Strip(f"What excites {self.address}", groups, about, None, min(across, len(groups)), side, gap=2)

    def save(self, path: str | Path) -> Path:
        """Writes a picture (`.png`) or a page (`.html`). The file is whole or absent."""
        path = Path(path)
        if path.suffix.lower() not in (".png", ".html", ".htm"):
            raise UsageError(f"cannot write {str(path)!r}: expected .png or .html")
        check_writable(path)
        if path.suffix.lower() == ".png":
            with replaced(path) as partial:
                strip.figure(self.strip()).save(partial, format="PNG")
        else:
            write_text(path, strip.page(self.strip()))
        return path


def project(
    network: Network, dataset: Any, address: str, patches: Patches | Any, units: Sequence[int] | None = None, *,
    method: Any = "deconvnet", batch_size: int = 32, progress: Any = None,
) -> Projections:  # fmt: skip
    """The strongest patches of units, each projected back to the pixels from its one activation, all others set to zero.

    `patches` is what TopPatches came to over `dataset` (the statistic of a sweep, or its value); `units` default to the first
    twelve. `method` is any whose map has the resolution of the input ("guided-backprop", "gradient"). Every picture is read
    once; `batch_size` activations, of any units, go back together. (Zeiler and Fergus 2014, "Visualizing and Understanding
    Convolutional Networks", section 2.1 and figure 2.)
    """
    data, how = open_dataset(dataset), method_of(method)
    found = patches if isinstance(patches, Patches) else patches.value()
    chosen = tuple(range(min(len(found), 12))) if units is None else tuple(int(u) for u in units)
    for u in chosen:
        if not 0 <= u < len(found):
            raise UsageError(f"{address!r} has {len(found)} units, numbered from 0; there is no {u}")
    jobs = [(image, *job) for image, group in by_image(found, chosen) for job in group]
    done: dict[tuple[int, int], Projected] = {}
    read: dict[int, Tensor] = {}
    for start in range(0, len(jobs), batch_size):
        some = jobs[start : start + batch_size]
        read = {i: read[i] if i in read else network.read(data.picture(i)) for i in dict.fromkeys(j[0] for j in some)}
        for batch in _of_one_size(some, read):
            x = torch.cat([read[j[0]] for j in batch])
            maps = explain(network, x, how, _target(network, address, x, batch), batch_size=batch_size).values
            for job, pixels, projection in zip(batch, network.picture(x), maps.detach().cpu(), strict=True):
                done[job[1], job[2]] = _projected(network, address, job, found, pixels, projection, x)
        if progress is not None:
            progress(min(start + batch_size, len(jobs)), len(jobs))
    ranks = range(found.images.shape[1])
    exemplars = tuple(tuple(done[u, r] for r in ranks if (u, r) in done) for u in chosen)
    return Projections(network.name, address, how.name, chosen, exemplars)


def _of_one_size(jobs: list[Any], read: dict[int, Tensor]) -> list[list[Any]]:
    sizes: dict[Any, list[Any]] = {}
    for job in jobs:
        sizes.setdefault(tuple(read[job[0]].shape[2:]), []).append(job)
    return list(sizes.values())


def _target(network: Network, address: str, x: Tensor, jobs: list[Any]) -> Any:
    """The activation of each row's own channel at its own place."""
    field = field_at(network, address, x)
    channels, rows, columns = (tuple(j[k] for j in jobs) for k in (1, 3, 4))
    entry = next((e for e in network.trace(x).entries if e.address == address), None)
    if entry is not None and len(entry.shape) == 3 and field is not None:
        return Neuron(address, channels, rows, columns)
    raise UsageError(f"{address!r} has no rows and columns; projections start from one place of a map")


def _projected(
    network: Network, address: str, job: Any, found: Patches, pixels: Tensor, projection: Tensor, x: Tensor
) -> Projected:
    image, unit, rank, row, column = job
    box = _shown(box_in(field_at(network, address, x), address, row, column, x.shape[2:]), x.shape[2:])
    value = float(found.values[unit, rank])
    return Projected(cropped(pixels, box), cropped(projection, box, 0.0), value, image, row, column, box)


def _shown(box: ImageBox, size: Sequence[int]) -> Box:
    """The full field, its center in the middle, unless it is larger than the picture."""
    top, left, bottom, right = box.full
    return box.full if bottom - top <= size[0] and right - left <= size[1] else box.clipped


def pixels_of(projection: Float[Tensor, "channels h w"]) -> np.ndarray:
    """A projection as a picture: gray is zero, the 99.5th percentile of the rest black or white; three channels in color."""
    values = projection.double()
    values = values if len(values) == 3 else values.sum(0, keepdim=True).expand(3, -1, -1)
    sizes = values[values != 0].numpy()[None]
    limit = overlay.limit(sizes, 99.5) if sizes.size else 0.0
    return (0.5 + values / (2 * limit) if limit > 0 else torch.full_like(values, 0.5)).clamp(0, 1).permute(1, 2, 0).numpy()


def _group(address: str, unit: int, found: Sequence[Projected]) -> strip.Group:
    if not found:
        return strip.Group(f"{address}:{unit}", [strip.Grid([strip.Tile(np.full((1, 1), 0.5))], 3)], "no patches")
    columns = max(1, min(len(found), round(len(found) ** 0.5)))
    back = [strip.Tile(pixels_of(p.projection), smooth=True) for p in found]
    front = [strip.Tile(p.patch.permute(1, 2, 0).numpy(), smooth=True) for p in found]
    note = " to ".join(dict.fromkeys(number(p.value) for p in (found[-1], found[0])))
    return strip.Group(f"{address}:{unit}", [strip.Grid(back, columns), strip.Grid(front, columns)], f"activations {note}")
