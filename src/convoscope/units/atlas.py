"""Activation atlases: what a layer distinguishes, as a map of pictures.

Carter et al., "Exploring Neural Networks with Activation Atlases", Distill 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.data.dataset import open_dataset
from convoscope.engine import sweep
from convoscope.files import replaced, write_text
from convoscope.method import explain
from convoscope.network import Network
from convoscope.targets import Direction
from convoscope.units.crops import crops
from convoscope.units.embedding import binned, laid_out, nearest, principal, umap
from convoscope.units.reservoir import Reservoir, Sample

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.show.atlas import Sheet

Icons = Callable[[Float[Tensor, "cells channels"]], Any]
LONGEST = 4  # exemplars kept of a cell


@dataclass
class Atlas:
    """The occupied cells of a grid over a layer's activations, in reading order.

    `directions` are the cells' mean activations, `members` the samples whose direction is nearest to them (-1: fewer),
    `crops` what those saw. `effects` says how much of the target one position of such activations carries on average,
    activation times gradient, in the target's unit; None where no target was asked for. `classes` are the commonest class of
    each cell's pictures with its share, where the data set has classes.
    """

    network: str
    network_hash: str
    dataset: str
    layer: str
    embedding: str
    grid: int
    sample: Sample
    points: Float[Tensor, "samples 2"]
    row: Int[Tensor, " cells"]
    column: Int[Tensor, " cells"]
    count: Int[Tensor, " cells"]
    directions: Float[Tensor, "cells channels"]
    members: Int[Tensor, "cells exemplars"]
    crops: UInt8[Tensor, "cells exemplars pixels pixels 3"]
    classes: list[tuple[str, float]] = field(default_factory=list)
    effects: Float[Tensor, " cells"] | None = None
    target: str = ""
    unit: str = ""
    variance: float | None = None

    def __len__(self) -> int:
        return len(self.row)

    def __repr__(self) -> str:
        return f"Atlas({self.network} {self.layer}: {len(self.sample):,} activations in {len(self)} cells, by {self.embedding})"

    def direction(self, cell: int) -> Direction:
        """A cell's mean activation, of length 1, as a Direction: a target for every tool."""
        mean = self.directions[cell]
        return Direction(self.layer, mean / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny))

    def sheet(self, icons: Icons | None = None) -> "Sheet":
        """What is drawn; `icons` makes a picture (H, W, 3) of each direction, instead of the nearest crop."""
        from convoscope.show.atlas import Sheet, Tile

        pictures = None if icons is None else icons(self.directions)
        tiles = []
        for k in range(len(self)):
            exemplars = [c.numpy() for c, m in zip(self.crops[k], self.members[k].tolist(), strict=True) if m >= 0]
            name, share = self.classes[k] if self.classes else ("", 0.0)
            effect = None if self.effects is None else float(self.effects[k])
            icon = exemplars[0] if pictures is None else pictures[k]
            tiles.append(Tile(int(self.row[k]), int(self.column[k]), icon, exemplars, int(self.count[k]), name, share, effect))
        return Sheet(f"What {self.layer} tells apart", self.facts(), tiles, self.target, self.unit)

    def facts(self) -> list[str]:
        """What the map is made of, in words."""
        held = "" if self.variance is None else f", which hold {self.variance:.0%} of the variance"
        way = f"the first two principal components{held}" if self.embedding == "pca" else "UMAP by the angle between them"
        inside = int(self.count.sum())
        return [
            f"{self.network}, {self.directions.shape[1]} channels, over {self.dataset}",
            f"{len(self.sample):,} of {self.sample.seen:,} activations, laid out by {way}",
            f"{len(self)} cells of a {self.grid} x {self.grid} grid with {inside:,} of them; each shows the crop whose "
            "activation is nearest in direction to the cell's mean, larger where there are more",
        ]  # fmt: skip

    def image(self, icons: Icons | None = None) -> "Image.Image":
        """The atlas as a picture."""
        from convoscope.show.atlas import draw

        return draw(self.sheet(icons))

    def save(self, path: str | Path, icons: Icons | None = None) -> Path:
        """Writes the atlas as a picture (`.png`) or as a page to explore (`.html`); the file is whole or absent."""
        path = Path(path)
        if path.suffix == ".html":
            from convoscope.show.atlas import page

            write_text(path, page(self.sheet(icons)))
        elif path.suffix == ".png":
            with replaced(path) as partial:
                self.image(icons).save(partial, format="PNG")
        else:
            raise UsageError(f"cannot write {path.name!r}: an atlas is a .png or .html file")
        return path

    def _repr_png_(self) -> bytes:
        return self.image()._repr_png_()  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The cells as JSON values, without pictures."""
        made = {"network": self.network, "network_hash": self.network_hash, "dataset": self.dataset, "layer": self.layer}
        made |= {"embedding": self.embedding, "grid": self.grid, "samples": len(self.sample), "seen": self.sample.seen}
        cells = []
        for k in range(len(self)):
            images = self.sample.image[self.members[k][self.members[k] >= 0]].tolist()
            cell = {"row": int(self.row[k]), "column": int(self.column[k]), "count": int(self.count[k]), "images": images}
            cell |= {"class": self.classes[k][0], "share": self.classes[k][1]} if self.classes else {}
            cells.append(cell if self.effects is None else cell | {"effect": float(self.effects[k])})
        return {**made, "target": self.target, "cells": cells}


def atlas(
    network: Network | nn.Module, dataset: Any, layer: str, *, samples: int = 10_000, per_image: int = 4, grid: int = 20,
    least: int | None = None, embedding: Literal["pca", "umap"] = "pca", target: Any = None, crop: int | None = None,
    pixels: int = 64, batch_size: int | Literal["auto"] = "auto", seed: int = 0, **sweeping: Any,
) -> Atlas:  # fmt: skip
    """The activation atlas of a layer over a data set (Carter et al. 2019).

    `samples` activations are drawn, at most `per_image` of an image (0: any number), and laid out in the plane by principal
    components or UMAP (of convoscope[concepts]); the plane is cut into `grid` x `grid` cells, of which those with at least
    `least` (default: a quarter of the mean) are kept. `target` colors them by what their activations add to it. `crop` is the
    side of a crop in pixels of the input (default: the receptive field, or the part of it that matters), drawn at `pixels`.
    What else `sweep` takes (`store`, `engine`, `workers`, `progress`) is handed on. The same seed gives the same atlas.
    """
    network = network if isinstance(network, Network) else Network(network)
    dataset = open_dataset(dataset)
    if grid < 1 or embedding not in ("pca", "umap"):
        raise UsageError(f"expected a grid of 1 or more and 'pca' or 'umap'; got {grid}, {embedding!r}")
    drawn = Reservoir(count=samples, per_image=per_image, seed=seed)
    swept = sweep(network, dataset, drawn, [layer], batch_size=batch_size, **sweeping)
    sample: Sample = swept[layer, "reservoir"].value()
    values = sample.values.double()
    if not bool(values.isfinite().all()):
        raise UsageError(f"{layer!r} has activations that are not finite")
    points, variance = principal(values) if embedding == "pca" else (umap(values, seed), None)
    points = laid_out(points)
    cells = binned(points, values, grid, least if least is not None else max(1, len(sample) // (4 * grid * grid)))
    if not len(cells):
        raise UsageError(f"no cell of the grid has {least} of {len(sample)} activations; use a smaller least or grid")
    members = nearest(values, cells, LONGEST)
    shown = members.flatten()
    drawn_crops = crops(network, dataset, layer, sample, shown.clamp(min=0).tolist(), crop, pixels)
    made = Atlas(
        network.name, network.hash, dataset.name, layer, embedding, grid, sample, points, cells.row, cells.column, cells.count,
        cells.mean, members, drawn_crops.view(*members.shape, *drawn_crops.shape[1:]), _classes(dataset, sample, cells),
        variance=variance,
    )  # fmt: skip
    if target is not None:
        _color(made, network, dataset, target, cells.member, batch_size)
    return made


def _classes(dataset: Any, sample: Sample, cells: Any) -> list[tuple[str, float]]:
    known = (cells.member >= 0) & (sample.category >= 0)
    if not bool(known.any()):
        return []
    classes = int(sample.category.max()) + 1
    counts = torch.bincount(cells.member[known] * classes + sample.category[known], minlength=len(cells) * classes)
    best = counts.view(len(cells), classes).max(1)
    shares = best.values / cells.count
    names = [*dataset.classes, *(f"class {i}" for i in range(len(dataset.classes), classes))]
    return [(names[i], share) for i, share in zip(best.indices.tolist(), shares.tolist(), strict=True)]


def _color(made: Atlas, network: Network, dataset: Any, target: Any, member: Tensor, batch_size: int | Literal["auto"]) -> None:
    """What the sampled activations add to a target: activation times gradient, at their position."""
    sample = made.sample
    aim = network.target(target)
    effect = torch.zeros(len(sample), dtype=torch.float64)
    for images in sample.image.unique().split(32 if batch_size == "auto" else batch_size):
        x = network.read([dataset.picture(int(i)) for i in images])
        gradient = explain(network, x, "gradient", aim, at=made.layer, batch_size=batch_size).values.cpu().double()
        which = torch.isin(sample.image, images).nonzero()[:, 0]
        slot = torch.searchsorted(images, sample.image[which])
        found = gradient[slot, :, sample.row[which], sample.column[which]] if gradient.dim() == 4 else gradient[slot]
        effect[which] = (found * sample.values[which].double()).sum(1)
    inside = member >= 0
    made.effects = torch.zeros(len(made), dtype=torch.float64).index_add_(0, member[inside], effect[inside]) / made.count
    index = getattr(aim, "index", None)
    made.target = network.category(index) if isinstance(index, int) else str(aim)
    made.unit = aim.unit
