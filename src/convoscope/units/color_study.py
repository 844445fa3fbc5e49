"""How color is represented in a network: the share of color-selective units in each layer, and their hues."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.data.dataset import open_dataset
from convoscope.engine.run import sweep
from convoscope.files import check_writable, replaced
from convoscope.network import Network
from convoscope.units import color
from convoscope.units.exemplars import TopPatches
from convoscope.units.neuron_feature import neuron_features

if TYPE_CHECKING:
    from PIL import Image

BINS = 12
FEW = 5  # units that are too few to compare their hues
SHOWN = 10  # neuron features of each layer in the picture
DRAWN = 96  # pixels of a neuron feature at most


@dataclass(frozen=True)
class LayerColors:
    """The units of one layer: color index, neuron feature, hue histogram of that, hue, how single or opponent it is, axis.

    See units/color.py for each. Units that nothing excites have an index of NaN.
    """

    address: str
    index: Float[Tensor, " units"]
    features: Float[Tensor, "units 3 h w"]
    hues: Float[Tensor, "units bins"]
    hue: Float[Tensor, " units"]
    one: Float[Tensor, " units"]
    two: Float[Tensor, " units"]
    axis: Int[Tensor, " units"]

    @property
    def alive(self) -> int:
        """Units that something excites."""
        return int((~self.index.isnan()).sum())

    @property
    def selective(self) -> Tensor:
        """(units,) whether a unit is selective for color: an index of at least 0.25."""
        return self.index >= color.HIGH

    def shares(self) -> tuple[float, float, float]:
        """Shares of the units alive that are not selective (under 0.1), a little, and selective (from 0.25 on)."""
        high, low = int(self.selective.sum()), int((self.index < color.LOW).sum())
        return tuple(n / max(1, self.alive) for n in (low, self.alive - low - high, high))  # type: ignore[return-value]

    def hue_shares(self, selective: bool = True) -> Float[Tensor, " bins"]:
        """Hues of the units that are selective for color, or of those that are not; the first bin is centered on red.

        Each unit counts the same. All zero where there are no such units.
        """
        rows = self.hues[self.selective if selective else self.index < color.LOW]
        total = rows.sum(1, keepdim=True)
        rows = (rows / total)[total[:, 0] > 0]
        return rows.mean(0) if len(rows) else rows.new_zeros(self.hues.shape[1])

    def off(self) -> float | None:
        """How far the hues of the selective units are off those of the others, 0 to 1: half the sum of differences.

        The mean of any patches has the hues of the data; only what differs from it speaks of the units. None where fewer
        than `FEW` units are on either side.
        """
        if min(int(self.selective.sum()), int((self.index < color.LOW).sum())) < FEW:
            return None
        return float((self.hue_shares() - self.hue_shares(False)).abs().sum() / 2)

    def axis_shares(self) -> dict[str, float]:
        """The share of the color-selective units along each opponent axis."""
        axes = self.axis[self.selective]
        return {name: int((axes == k).sum()) / max(1, len(axes)) for k, name in enumerate(color.AXES)}

    def opponent_share(self) -> float:
        """The share of the color-selective units whose feature has two opponent colors rather than one."""
        chosen = self.selective
        return int((self.two[chosen] > self.one[chosen]).sum()) / max(1, int(chosen.sum()))

    def strongest(self, count: int = SHOWN) -> list[int]:
        """The units of the highest color index."""
        order = torch.nan_to_num(self.index, nan=-torch.inf).argsort(descending=True, stable=True)
        return order[: min(count, self.alive)].tolist()


@dataclass(frozen=True)
class ColorStudy:
    """What `color_study` found: one entry for each layer, in order."""

    network_name: str
    network_hash: str
    dataset_name: str
    images: int
    patches: int
    layers: tuple[LayerColors, ...]

    header = (
        "layer", "units", "excited", "index", "not selective", "a little", "selective", "opponent", *color.AXES, "hue",
        "off the others",
    )  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text; shares of the units excited or, from "opponent" on, of the selective ones."""
        found = []
        for layer in self.layers:
            some = bool(layer.selective.any())
            shares = [*layer.shares(), layer.opponent_share(), *layer.axis_shares().values()]
            off = layer.off()
            percent = [f"{100 * s:.0f} %" if some or k < 3 else "" for k, s in enumerate(shares)]
            middle = f"{float(layer.index.nanmedian()):.2f}" if layer.alive else ""
            hue = color.hue_name(360 / BINS * int(layer.hue_shares().argmax())) if some else ""
            found.append(
                (
                    layer.address,
                    str(len(layer.index)),
                    str(layer.alive),
                    middle,
                    *percent,
                    hue,
                    "" if off is None else f"{100 * off:.0f} %",
                )
            )
        return found

    def __str__(self) -> str:
        rows = [self.header, *self.rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(len(self.header))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON values; None where a unit has no such number."""
        return {
            "network": {"name": self.network_name, "hash": self.network_hash},
            "data": {"name": self.dataset_name, "images": self.images},
            "patches": self.patches,
            "layers": [_as_dict(layer) for layer in self.layers],
        }

    def image(self) -> "Image.Image":
        """The layers as a picture: shares, hues, and the neuron features of the most color-selective units."""
        from convoscope.show.hues import HueRow, hue_figure

        rows = [_row(layer, HueRow) for layer in self.layers]
        title = f"How {self.network_name} represents color"
        about = (
            f"The {self.patches} strongest patches of each unit among {self.images:,} pictures of {self.dataset_name}. "
            "Color index: the share of its activation that a unit loses when they are made gray."
        )
        return hue_figure(rows, title, about)

    def save(self, path: str | Path) -> Path:
        """Write the picture as PNG."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UsageError(f"a color study is saved as .png; got {path.name!r}")
        check_writable(path)
        with replaced(path) as partial:
            self.image().save(partial, format="PNG")
        return path


def color_study(
    network: Network | nn.Module, dataset: Any, layers: Any, *, patches: int = 9, store: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto", progress: Callable[[str, int, int], None] | None = None,
) -> ColorStudy:  # fmt: skip
    """How color is represented in `layers`: color index and neuron feature of every unit, from its `patches` strongest patches.

    One sweep over the data, then the pictures that patches are from are run once more, in gray. (Rafegas and
    Vanrell, "Color encoding in biologically-inspired convolutional neural networks", Vision Research 2018.) Raises
    UnsupportedError for a network that takes no color.
    """
    network = network if isinstance(network, Network) else Network(network)
    if network.channels != 3:
        raise UnsupportedError(f"color needs a network of three channels; {network.name} takes {network.channels}")
    data = open_dataset(dataset)

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress else None

    found = sweep(network, data, TopPatches(k=patches), layers, store=store, batch_size=batch_size, progress=tell("pictures"))
    top = {address: found[address, TopPatches.label()].value() for address in found.layers}
    indexes = color.color_indexes(network, data, top, batch_size=batch_size)
    entries = []
    for number, (address, index) in enumerate(indexes.items()):
        features = neuron_features(network, data, address, top[address], resolution=DRAWN)
        hues, axis = color.hue_histogram(features, BINS), color.axis_of(features)
        entries.append(LayerColors(address, index, features, hues, *color.hue_of(features), axis))
        tell("layers")(number + 1, len(found.layers))
    return ColorStudy(network.name, network.hash, data.name, len(data), patches, tuple(entries))


def _as_dict(layer: LayerColors) -> dict[str, Any]:
    def known(values: Tensor) -> list[float | None]:
        return [None if v != v else v for v in values.tolist()]

    names = [color.AXES[k] if k >= 0 else None for k in layer.axis.tolist()]
    numbers = {"color_index": layer.index, "hue": layer.hue, "hue_strength": layer.one, "opponent_strength": layer.two}
    columns = {name: known(values) for name, values in numbers.items()} | {"axis": names}
    units = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    none, little, selective = layer.shares()
    return {
        "layer": layer.address,
        "units": len(layer.index),
        "excited": layer.alive,
        "not_selective": none,
        "a_little": little,
        "selective": selective,
        "opponent": layer.opponent_share(),
        "axes": layer.axis_shares(),
        "hues": layer.hue_shares().tolist(),
        "hues_of_others": layer.hue_shares(False).tolist(),
        "off_the_others": layer.off(),
        "each": units,
    }


def _row(layer: LayerColors, make: Any) -> Any:
    none, little, selective = layer.shares()
    excited = "all excited" if layer.alive == len(layer.index) else f"{layer.alive} of them excited"
    facts = [f"{len(layer.index)} units, {excited}"]
    if selective:
        axes = [f"{100 * s:.0f} % {name}" for name, s in layer.axis_shares().items()]
        facts += [", ".join(axes[:2]), f"{axes[2]}, {100 * layer.opponent_share():.0f} % opponent"]
    others = [] if layer.off() is None else layer.hue_shares(False).tolist()
    units = layer.strongest()
    pictures = [layer.features[u].permute(1, 2, 0).numpy() for u in units]
    names = [f"{u}: {layer.index[u]:.2f}" for u in units]
    return make(
        layer.address,
        facts,
        (none, little, selective),
        layer.hue_shares().tolist(),
        pictures,
        names,
        others,
    )
