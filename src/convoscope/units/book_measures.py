"""What a book knows of a layer, as tensors over its units: from the statistics of a sweep to numbers, from those to rows.

Names in the numbers of a layer: `column/NAME` (units,), `histogram_counts` (units, bins), `histogram_edges` (bins + 1,); for
each sort of exemplars `SORT/values`, `/images`, `/rows`, `/columns` (units, k), `/boxes` (units, k, 4), `/peaks` (units, k, 2);
`label/index`, `/iou`, `/held_out_iou`, `/p_value` and `class/index`, `/share` (units, few), best first, index -1 for none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convoscope.core.geometry import Field
from convoscope.core.reach import Reach
from convoscope.core.record import canonical
from convoscope.core.statistic import Statistic
from convoscope.data.dataset import Dataset
from convoscope.network import Network
from convoscope.units.book_files import Column, LayerEntry
from convoscope.units.book_index import Exemplar, Label, LayerRows
from convoscope.units.color import AXES, HIGH
from convoscope.units.counting import Settings
from convoscope.units.detectors import LayerLabels
from convoscope.units.duplicates import UnitCorrelation
from convoscope.units.exemplars import BottomPatches, Patches, QuantilePatches, RandomPatches, TopPatches
from convoscope.units.histograms import ActivationHistogram, UnitActivity, edges
from convoscope.units.selectivity import ClassActivity, class_shares, classes_of
from convoscope.units.table import unit_table
from convoscope.units.tail import Tail

SORTS = ("top", "quantile", "random", "bottom")
MOST = 5  # labels and classes kept for each unit
FRACTION, LIMIT = 0.005, 0.04  # a unit is active in the top fraction, and detects what it has a larger IoU with
CHANCE = 0.01  # a unit whose IoU chance reaches more often than this is no detector
CLASS_SELECTIVE = 0.5  # the mean for the preferred class is three times that for the others


def labeling(draws: int, seed: int) -> Settings:
    """How units are labeled."""
    return Settings(FRACTION, LIMIT, "category", "centers", ("shifted", "permuted") if draws else (), draws, seed)


def statistics(k: int, seed: int, data: Dataset) -> dict[str, Statistic]:
    """Everything that one pass over the data has to gather."""
    found: dict[str, Statistic] = {"top": TopPatches(k=k), "quantile": QuantilePatches(k=k, seed=seed)}
    found |= {"random": RandomPatches(k=k, seed=seed), "bottom": BottomPatches(k=k)}
    found |= {"histogram": ActivationHistogram(), "activity": UnitActivity(), "correlation": UnitCorrelation()}
    found |= {"classes": ClassActivity()} if data.classes else {}
    return found | ({"tail": Tail(fraction=FRACTION)} if data.concepts else {})


def measure(
    network: Network, data: Dataset, x: Tensor, address: str, found: Mapping[str, Any], labels: LayerLabels | None
) -> dict[str, Tensor]:
    """All numbers of a layer, from its statistics by name; `x` is an input of the size that was swept."""
    numbers = {"histogram_counts": found["histogram"].value(), "histogram_edges": edges()}
    for sort in SORTS:
        numbers |= {f"{sort}/{k}": v for k, v in patches_of(network, x, address, found[sort].value()).items()}
    table = unit_table(network, data, address, found, altered=("color",) if network.channels == 3 else ())
    if "color-index" in table:
        table["color-selective"] = (table["color-index"] >= HIGH).to(torch.int64)
    if "class-selectivity" in table:
        table["class-selective"] = (table["class-selectivity"] > CLASS_SELECTIVE).to(torch.int64)
    if data.classes:
        top = found["top"].value()
        share, which = class_shares(top.values, classes_of(data, top.images))
        numbers |= {"class/index": which[:, :MOST].contiguous(), "class/share": share[:, :MOST].contiguous()}
    numbers |= {f"column/{k.replace('-', '_')}": v for k, v in table.items() if k != "top-class"}
    return numbers | ({} if labels is None else labels_of(data, labels))


def labels_of(data: Dataset, layer: LayerLabels) -> dict[str, Tensor]:
    """The concepts that the units of a layer fit best."""
    numbers = {(c.name, c.category): k for k, c in enumerate(data.concepts)}
    index = torch.full((len(layer.units), MOST), -1)
    iou, held_out, p = (torch.full((len(layer.units), MOST), torch.nan, dtype=torch.float64) for _ in range(3))
    for u in layer.units:
        for rank, match in enumerate(u.top[:MOST]):
            index[u.unit, rank], iou[u.unit, rank] = numbers[match.label, match.category], match.iou
        if u.top:
            held_out[u.unit, 0] = u.held_out
            p[u.unit, 0] = torch.nan if u.chance is None else u.chance
    found = (iou[:, 0] > layer.iou) & ~(p[:, 0] >= CHANCE)
    return {
        "label/index": index, "label/iou": iou, "label/held_out_iou": held_out, "label/p_value": p,
        "label/by_chance": torch.tensor(list(layer.by_chance.values())[:1], dtype=torch.float64),
        "column/detector": found.to(torch.int64),
        "column/threshold": torch.tensor([u.threshold for u in layer.units], dtype=torch.float64),
    }  # fmt: skip


def field_of(network: Network, x: Tensor, address: str) -> Field | None:
    """The receptive field of a layer, under any of its names; a pixel of the input sees itself."""
    if address == "input":
        return Field.of(Reach.of_pixels(tuple(x.shape)))
    return network.trace(x).field_of(canonical(network.plain, address))


def patches_of(network: Network, x: Tensor, address: str, patches: Patches) -> dict[str, Tensor]:
    """Patches with their clipped boxes and the middle of their fields, in input pixels."""
    field = field_of(network, x, address)
    height, width = x.shape[2:]
    places = torch.stack([patches.rows, patches.columns], -1)
    boxes = torch.zeros(*places.shape[:2], 4, dtype=torch.int64)
    peaks = torch.zeros(*places.shape[:2], 2, dtype=torch.float64)
    for row, column in places[patches.images >= 0].unique(dim=0).tolist():
        here = (patches.rows == row) & (patches.columns == column) & (patches.images >= 0)
        box = (0, 0, height, width) if field is None or field.whole else field.box(row, column)
        boxes[here] = torch.tensor(box)
        peaks[here] = torch.tensor(_middle(field, row, column, box), dtype=torch.float64)
    return {
        "values": patches.values.double(), "images": patches.images, "rows": patches.rows, "columns": patches.columns,
        "boxes": boxes, "peaks": peaks,
    }  # fmt: skip


def _middle(field: Any, row: int, column: int, box: Sequence[int]) -> tuple[float, float]:
    middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    if field is not None and not field.whole:
        for axis, place in enumerate((row, column)):
            if field.stride[axis] is not None and field.offset[axis] is not None:
                middle[axis] = field.offset[axis] + place * field.stride[axis] + field.size[axis] / 2
    return middle[0], middle[1]


# ---- columns

ABOUT = {
    "class_selectivity": ("class selectivity", "(a - b) / (a + b), a the mean for its best class, b that for the others"),
    "class_selective": ("class-selective", "1 where the class selectivity is above 0.5"),
    "preferred_class": ("preferred class", "the class with the highest mean"),
    "class_index": ("class index", "1 where its strongest pictures are of one class, 0 where all are of different ones"),
    "class_entropy": ("class entropy", "of its strongest pictures, in bits: 0 where they are of one class"),
    "top_class_share": ("share of its class", "what share of its strongest activations is from pictures of one class"),
    "color_index": ("color index", "the share of its activation it loses when its strongest pictures are made gray"),
    "color_selective": ("color-selective", "1 where the color index is at least 0.25"),
    "color_axis": ("color axis", "the opponent colors nearest to those of its strongest patches"),
    "hue": ("hue", "of the mean of its strongest patches, in degrees: red 0, green 120, blue 240"),
    "hue_strength": ("hue strength", "0 where the mean of its patches has all hues, 1 where it has one"),
    "opponent_strength": ("opponent strength", "1 where the colors of that mean lie along one axis"),
    "dead": ("dead", "1 where it never is above zero"),
    "maximum": ("highest", "the highest activation anywhere"),
    "minimum": ("lowest", "the lowest activation anywhere"),
    "mean": ("mean", "the mean over all images and places"),
    "deviation": ("deviation", "the standard deviation over all images and places"),
    "threshold": ("threshold", "its strongest 0.5 % of activations are above this"),
    "responding": ("responding", "the share of images in which it is above zero anywhere"),
    "zero_share": ("zeros", "the share of its activations that are zero"),
    "near_zero_share": ("near zero", "the share of its activations under 1 % of its largest"),
    "lifetime_sparseness": ("lifetime sparseness", "0 where it answers alike to all images, 1 where to one alone"),
    "hoyer_sparseness": ("Hoyer sparseness", "the same by another measure"),
    "nearest_correlation": ("nearest correlation", "with the unit of its layer that says most nearly the same"),
    "nearest_unit": ("nearest unit", "the number of that unit"),
}
DENSE = (
    Column("label", "text", "label", "the concept it fits best"),
    Column("category", "text", "category", "the category of that concept"),
    Column("iou", "real", "IoU", "intersection over union of its strongest places with that concept"),
    Column("held_out_iou", "real", "IoU held out", "the same on images that did not choose the concept"),
    Column("p_value", "real", "p", "how often chance gives as high an IoU"),
    Column("detector", "integer", "detector", "1 where the IoU is above 0.04 and p below 0.01"),
)
CLASS = (Column("class", "text", "class", "the class most of what it gives to its strongest pictures comes from"),)


def columns_for(numbers: Mapping[str, Tensor]) -> list[Column]:
    """The columns that a layer's numbers give."""
    found = list(DENSE) if "label/index" in numbers else []
    found += CLASS if "class/index" in numbers else ()
    declared = {c.name for c in found}
    order = [f"column/{name}" for name in ABOUT]
    for key in sorted(numbers, key=lambda k: (order.index(k) if k in order else len(order), k)):
        name = key.removeprefix("column/")
        if name != key and name not in declared:
            title, about = ABOUT.get(name, (name.replace("_", " "), ""))
            kind = "text" if name in ("color_axis", "preferred_class") else "integer"
            found.append(Column(name, "real" if numbers[key].is_floating_point() else kind, title, about))
    return found


def rows_of(
    entry: LayerEntry, numbers: Mapping[str, Tensor], columns: Sequence[Column], manifest: Mapping[str, Any]
) -> LayerRows:
    """A layer as the index takes it."""
    concepts, classes = manifest["data"]["concepts"], manifest["data"]["classes"]
    labels = [[] for _ in range(entry.units)] if "label/index" not in numbers else _labels(numbers, concepts)
    shares = [[] for _ in range(entry.units)] if "class/index" not in numbers else _classes(numbers, classes)
    first = [several[0] if several else None for several in labels]
    values: dict[str, Sequence[Any]] = {c.name: [None] * entry.units for c in columns}
    values |= {k.removeprefix("column/"): v.tolist() for k, v in numbers.items() if k.startswith("column/")}
    for name, words in (("color_axis", AXES), ("preferred_class", classes)):
        values |= {name: [words[k] if 0 <= k < len(words) else None for k in values[name]]} if name in values else {}
    values["nearest_unit"] = [None if k is None or k < 0 else k for k in values["nearest_unit"]]
    values |= {
        "label": [x and x.concept for x in first],
        "category": [x and x.category for x in first],
        "iou": [x and x.iou for x in first],
        "held_out_iou": [x and x.held_out_iou for x in first],
        "p_value": [x and x.p_value for x in first],
        "class": [several[0][0] if several else None for several in shares],
    }
    return LayerRows(entry, values, _exemplars(entry, numbers, manifest["sorts"]), labels, shares)


def _exemplars(entry: LayerEntry, numbers: Mapping[str, Tensor], sorts: Sequence[str]) -> list[list[Exemplar]]:
    found: list[list[Exemplar]] = [[] for _ in range(entry.units)]
    for sort in sorts:
        parts = [numbers[f"{sort}/{k}"].tolist() for k in ("values", "images", "rows", "columns", "boxes", "peaks")]
        for unit, several in enumerate(zip(*parts, strict=True)):
            for rank, (value, image, row, column, box, peak) in enumerate(zip(*several, strict=True)):
                if image >= 0:
                    place = (box[0], box[1], box[2], box[3]), (peak[0], peak[1])
                    found[unit].append(Exemplar(sort, rank, value, image, row, column, *place))
    return found


def _labels(numbers: Mapping[str, Tensor], concepts: Sequence[Mapping[str, str]]) -> list[list[Label]]:
    parts = [numbers[f"label/{k}"].tolist() for k in ("index", "iou", "held_out_iou", "p_value")]
    return [
        [
            Label(concepts[k]["name"], concepts[k]["category"], iou, _known(held), _known(p))
            for k, iou, held, p in zip(*several, strict=True)
            if k >= 0 and iou > 0
        ]
        for several in zip(*parts, strict=True)
    ]


def _classes(numbers: Mapping[str, Tensor], classes: Sequence[str]) -> list[list[tuple[str, float]]]:
    index, share = numbers["class/index"].tolist(), numbers["class/share"].tolist()
    return [
        [(classes[k], s) for k, s in zip(ks, ss, strict=True) if k >= 0 and s > 0] for ks, ss in zip(index, share, strict=True)
    ]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def images_of(numbers: Mapping[str, Tensor], sorts: Sequence[str]) -> set[int]:
    """The images that some exemplar is from."""
    found = torch.cat([numbers[f"{s}/images"].reshape(-1) for s in sorts])
    return {i for i in found.unique().tolist() if i >= 0}
