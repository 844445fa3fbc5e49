"""Network dissection: which concepts, of those a data set has labels for, the units of a network detect."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.data.dataset import Dataset, open_dataset
from convoscope.files import check_writable, replaced, write_text
from convoscope.network import Network
from convoscope.units.chance import NULLS
from convoscope.units.counting import Settings, labeled_layers
from convoscope.units.detectors import LayerLabels, Rule, UnitLabel, place
from convoscope.units.tail import Tail
from convoscope.units.tally import AREAS, Area
from convoscope.units.upsampling import Anchor

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = "convoscope.dissection/1"


@dataclass(frozen=True)
class Dissection:
    """The labels of units by layer, and what they were measured with. Prints as a table, saves as JSON, HTML or PNG.

    `dissection["layer4"]` is one layer, `dissection["layer4:42"]` one unit. `network` and `data` are there where it was
    measured, and not where it was loaded.
    """

    network_name: str
    network_hash: str
    dataset_name: str
    images: int
    failed: int
    settings: Mapping[str, Any]
    layers: Mapping[str, LayerLabels]
    concepts: Mapping[str, int]  # how many there are of each category
    network: Network | None = field(default=None, repr=False, compare=False)
    data: Dataset | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Any:
        address, colon, unit = name.rpartition(":")
        address = address if colon and unit.isdecimal() else name
        if address not in self.layers:
            raise UsageError(f"no layer {address!r} here{did_you_mean(address, self.layers)}; it has {', '.join(self.layers)}")
        layer = self.layers[address]
        if address == name:
            return layer
        if int(unit) >= len(layer.units):
            raise UsageError(f"{address} has units 0 to {len(layer.units) - 1}; got {unit}")
        return layer.units[int(unit)]

    @property
    def categories(self) -> list[str]:
        """The categories of the data set's concepts, objects first."""
        return sorted(self.concepts, key=place)

    def rows(self, rule: Rule = "top", p: float | None = None) -> tuple[list[str], list[list[str]]]:
        """A table as text: for each layer units, detectors, those expected by chance, and unique detectors by category."""
        nulls = list(self.settings["nulls"]) if self.settings["draws"] else []
        header = ["layer", "units", "detectors", *(f"if {n}" for n in nulls[:1]), "unique", *self.categories]
        lines = []
        for address, layer in self.layers.items():
            unique, by_chance = layer.unique(rule, p), [f"{layer.by_chance[n]:.1f}" for n in nulls[:1]]
            found = [str(unique.get(c, 0)) for c in self.categories]
            total = str(sum(unique.values()))
            lines.append([address, str(len(layer.units)), str(layer.interpretable(rule, p)), *by_chance, total, *found])
        return header, lines

    def __str__(self) -> str:
        header, lines = self.rows()
        widths = [max(len(row[i]) for row in (header, *lines)) for i in range(len(header))]
        table = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
                 for row in (header, *lines)]  # fmt: skip
        return "\n".join([f"{self.network_name} on {self.images:,} images of {self.dataset_name}", *table])

    # ---- files
    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.network_name,
            "network_hash": self.network_hash,
            "dataset": self.dataset_name,
            "images": self.images,
            "failed": self.failed,
            "settings": dict(self.settings),
            "concepts": dict(self.concepts),
            "layers": [layer.to_dict() for layer in self.layers.values()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises UsageError for anything else."""
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            raise UsageError(f"this is no dissection ({SCHEMA}); `convoscope dissect --json` writes one")
        limit, layers = values["settings"]["iou"], {}
        for found in values["layers"]:
            units = tuple(UnitLabel.from_dict(u) for u in found["units"])
            layers[found["address"]] = LayerLabels(
                found["address"], tuple(found["shape"]), found["anchor"], limit, units, found["by_chance"]
            )
        return cls(
            values["network"], values["network_hash"], values["dataset"], values["images"], values["failed"],
            values["settings"], layers, values["concepts"],
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A dissection saved as JSON. Raises UsageError for what is none."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UsageError(f"{str(path)!r} is no dissection: {str(error).lower()}") from None

    def save(self, path: str | Path) -> Path:
        """Writes all of it (`.json`), the report (`.html`) or the chart of detectors (`.png`). The file is whole or absent."""
        path = Path(path)
        if path.suffix not in (".json", ".html", ".png"):
            raise UsageError(f"a dissection is saved as .json, .html or .png; got {path.name!r}")
        check_writable(path)
        if path.suffix == ".json":
            write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
        elif path.suffix == ".html":
            write_text(path, self.to_html())
        else:
            with replaced(path) as partial:
                self.image().save(partial, "png")
        return path

    def image(self, rule: Rule = "top") -> "Image.Image":
        """The chart of unique detectors by category and layer."""
        from convoscope.units.dissection_report import chart

        return chart(self, rule)

    def to_html(self, rule: Rule = "top", command: str = "") -> str:
        """The report, one self-contained page; units are shown with pictures where the network and the data are there."""
        from convoscope.units.dissection_report import page

        return page(self, rule, command)


def dissect(
    network: Network | torch.nn.Module, dataset: Any, layers: str | Sequence[str], *, fraction: float = 0.005,
    iou: float = 0.04, area: Area = "category", anchor: Anchor = "centers", nulls: Sequence[str] = ("shifted", "permuted"),
    draws: int = 200, store: str | Path | None = None, engine: str = "local", workers: int = 1,
    batch_size: int | Literal["auto"] = "auto", seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> Dissection:  # fmt: skip
    """Label each unit of `layers` with the concept its activations overlap best, over all pixels of a labeled data set.

    A unit is active where its map, interpolated bilinearly from the centers of receptive fields, is above the threshold that
    the top `fraction` of its values exceed; its label is the concept with the largest intersection over union, and it is a
    detector where that is above `iou` (Bau, Zhou, Khosla, Oliva and Torralba, "Network dissection", CVPR 2017). Thresholds and
    counts are exact. Each pixel is counted; `area` is the rule of `Tally`, `anchor` that of `Placing`.

    Beyond the paper: labels are chosen on one half of the images and measured on the other, and `draws` of null models
    (`chance`) say how good the best label of a unit that means nothing is; `draws=0` leaves that out. `seed` determines the
    halves and the draws. `store`, `engine`, `workers` and `batch_size` are those of `sweep`. Raises UsageError for a data set
    without dense labels.
    """
    from convoscope.engine import sweep

    network = network if isinstance(network, Network) else Network(network)
    data = open_dataset(dataset)
    nulls = (nulls,) if isinstance(nulls, str) else tuple(nulls)
    _check(data, iou, area, nulls, draws)
    first = None if progress is None else lambda done, total: progress(done, 2 * total)
    second = None if progress is None else lambda done, total: progress(total + done, 2 * total)
    tail = Tail(fraction=fraction)
    found = sweep(
        network, data, {"tail": tail}, layers, store=store, engine=engine, workers=workers, batch_size=batch_size,
        progress=first,
    )  # fmt: skip
    settings = Settings(fraction, iou, area, anchor, nulls if draws else (), draws, seed)
    measured = labeled_layers(network, data, found, settings, second)
    counts: dict[str, int] = {}
    for concept in data.concepts:
        counts[concept.category] = counts.get(concept.category, 0) + 1
    noted = {
        "fraction": fraction, "iou": iou, "area": area, "anchor": anchor, "nulls": list(nulls), "draws": draws, "seed": seed,
    }  # fmt: skip
    return Dissection(
        network.name, network.hash, data.name, len(data), len(found.failed), noted, measured, counts, network, data
    )


def _check(data: Dataset, iou: float, area: str, nulls: Sequence[str], draws: int) -> None:
    """Before any work is done."""
    if not data.concepts:
        raise UsageError(
            f"{data.name} has no dense labels, and dissection measures units against them; 'scenes:1000' has, as have "
            "folders in the layouts of COCO panoptic and Broden"
        )
    if not 0 <= iou < 1:
        raise UsageError(f"iou is a limit from 0 to below 1; got {iou}")
    if area not in AREAS:
        raise UsageError(f"no rule of areas {area!r}; expected one of {', '.join(AREAS)}")
    if draws < 0 or not set(nulls) <= set(NULLS):
        raise UsageError(f"null models are some of {', '.join(NULLS)}, with 0 or more draws; got {nulls} and {draws}")
