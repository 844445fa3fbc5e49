"""COCO's panoptic labels, and plain lists of pictures and masks.

Kirillov et al., "Panoptic Segmentation" (2019); Caesar, Uijlings and Ferrari, "COCO-Stuff" (2018).
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from convoscope.core.errors import UsageError
from convoscope.data.dataset import Concept, Dataset
from convoscope.data.masks import Masked, absent, check_there, entries, table

MATERIAL_GROUPS = {"raw-material"}  # supercategories of COCO's stuff that are materials
MATERIALS = {"brick", "cardboard", "concrete", "marble", "metal", "paper", "plastic", "stone", "tile", "wood"}
SKIP = "; open with skip_missing=True to leave out pictures that are not there"


class Listed(Masked):
    """Pictures and masks named in an `index.json`; the numbers in the masks are those of its `mask_classes`."""


class Panoptic(Masked):
    """COCO's panoptic layout: a mask gives each pixel the number of its segment, the JSON gives each segment its category.

    Layer 1 is the category, as an object, or as a material where COCO counts it among the raw materials; layer 2 is the
    material of surfaces that are named by it (`floor-wood`).
    """

    def __init__(self, segments: tuple[np.ndarray, np.ndarray, np.ndarray], stamps: Sequence[int], **given: Any) -> None:
        Masked.__init__(self, **given)
        self.starts, self.ids, self.columns = segments
        self.stamps = list(stamps)

    def key(self, i: int) -> str:
        """The stamps of the picture and its mask, and a checksum of what its segments are."""
        return f"{Masked.key(self, i)}|{self.stamps[self.row(i)]:08x}"

    def values(self, i: int, mask: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
        part = slice(self.starts[i], self.starts[i + 1])
        ids, columns = self.ids[part], self.columns[part]
        if not len(ids):
            return np.zeros_like(mask)
        places = np.searchsorted(ids, mask)
        np.minimum(places, len(ids) - 1, out=places)
        return np.where(ids[places] == mask, columns[places], 0)


def concepts_of_names(
    names: Sequence[str], groups: Sequence[str], categories: Mapping[str, str]
) -> tuple[list[Concept], list[list[int]]]:
    """Concepts of COCO categories with their supercategories ("" unknown), and for each category its number in either layer.

    `-merged`, `-other` and `-stuff` go from names where that leaves them distinct.
    """
    plain = [n.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff") for n in names]
    shown = [short if plain.count(short) == 1 else n for n, short in zip(names, plain, strict=True)]
    concepts: list[Concept] = []
    first, second = [0], [0]
    for name, group in zip(shown, groups, strict=True):
        raw = group in MATERIAL_GROUPS or name in MATERIALS
        concepts.append(Concept(name, categories.get(group, "material" if raw else "object")))
        first.append(len(concepts))
    known = {c.name: k + 1 for k, c in enumerate(concepts) if c.category == "material"}
    for name in shown:
        surface, _, material = name.rpartition("-")
        if surface and material in MATERIALS and material not in known:
            concepts.append(Concept(material, "material"))
            known[material] = len(concepts)
        second.append(known[material] if surface and material in MATERIALS else 0)
    return concepts, [first, second] if any(second) else [first]


# ---- opening
def read_json(path: Path) -> Any:
    """What is in a JSON file. Raises UsageError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} is no JSON file that can be read: {str(error).splitlines()[0]}") from None


def panoptic_file(folder: Path, split: str = "") -> Path | None:
    """The panoptic JSON of a folder, None where there is none. Raises UsageError where there are several."""
    found = [p for below in (folder, folder / "annotations") for p in sorted(below.glob("panoptic_*.json"))]
    wanted = [p for p in found if p.stem == f"panoptic_{split}"] if split else found
    if len(wanted) == 1:
        return wanted[0]
    if not found:
        return None
    known = ", ".join(repr(p.stem.removeprefix("panoptic_")) for p in found)
    raise UsageError(f"{str(folder)!r} has panoptic labels of {known}; choose one with split=")


def open_panoptic(
    path: Path,
    split: str = "",
    images: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    categories: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    name: str = "",
) -> Dataset:
    """COCO panoptic labels: the JSON itself, or a folder with it in it or in its `annotations`.

    `images` and `masks` are the folders of pictures and of PNGs where they do not lie as COCO's archives do; `categories` gives
    supercategories another category of concepts (`{"sky": "scene"}`); `skip_missing` leaves out pictures that are not there.
    """
    file = path if path.is_file() else panoptic_file(path, split)
    if file is None:
        raise UsageError(f"no panoptic_*.json in {str(path)!r}")
    found = read_json(file)
    pictures, annotations, kinds = entries(found, file, "images", "annotations", "categories")
    split = file.stem.removeprefix("panoptic_")
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    labeled = {a["image_id"]: a for a in annotations}
    at = _folder(images, [base / split, base / "images" / split, base / "images", base], [p["file_name"] for p in pictures])
    mask_names = [a["file_name"] for a in annotations]
    nearby = [file.with_suffix(""), base / file.stem, base / "annotations" / file.stem, base / "masks", base]
    masks_at = _folder(masks, nearby, mask_names)
    if skip_missing:
        gone = set(absent(str(at), [p["file_name"] for p in pictures]))
        pictures = [p for p in pictures if p["file_name"] not in gone]
    check_there(str(at), [p["file_name"] for p in pictures], file.name, SKIP)
    check_there(str(masks_at), [labeled[p["id"]]["file_name"] for p in pictures if p["id"] in labeled], file.name)
    concepts, meanings = concepts_of_names(
        [k["name"] for k in kinds], [k.get("supercategory", "") for k in kinds], categories or {}
    )
    root = os.path.commonpath([os.path.abspath(at), os.path.abspath(masks_at)])
    rows = [labeled.get(p["id"]) for p in pictures]
    return Panoptic(
        *_segments(rows, {k["id"]: n + 1 for n, k in enumerate(kinds)}),
        root=root,
        places=[_below(root, at, p["file_name"]) for p in pictures],
        masks=["" if a is None else _below(root, masks_at, a["file_name"]) for a in rows],
        concepts=concepts,
        meanings=table(meanings),
        name=name or split,
    )


def _folder(given: Any, candidates: Sequence[Path], names: Sequence[str]) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise UsageError(f"no folder {str(given)!r}")
        return Path(given)
    some = names[:100]
    for folder in candidates:
        if any((folder / n).is_file() for n in some):
            return folder
    looked = ", ".join(repr(str(c)) for c in dict.fromkeys(candidates))
    raise UsageError(f"no {some[0] if some else 'pictures'!r} in {looked}; say where they are with images= and masks=")


def _below(root: str, folder: Path, name: str) -> str:
    place = os.path.relpath(os.path.abspath(folder), root).replace(os.sep, "/")
    return name if place == "." else f"{place}/{name}"


def _segments(
    rows: Sequence[Any], columns: Mapping[int, int]
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], list[int]]:  # fmt: skip
    """Sorted numbers of all segments with the columns of their categories, row after row; a checksum for each row."""
    starts, ids, kinds, sums = [0], [], [], []
    for row in rows:
        info = sorted((s["id"], columns.get(s["category_id"], 0)) for s in (row["segments_info"] if row else ()))
        ids += [k for k, _ in info]
        kinds += [c for _, c in info]
        starts.append(len(ids))
        sums.append(zlib.crc32(repr(info).encode()))
    return (np.array(starts), np.array(ids, np.int32), np.array(kinds, np.int32)), sums


def open_listed(path: Path, name: str = "", skip_missing: bool = False) -> Dataset:
    """An `index.json`: `images`, a list of `{"file": ..., "mask": ... or null}`, and `mask_classes`, the names of the numbers
    in masks; places are relative to it. 0, and what is called "unlabeled" or "void", is nothing.
    """
    file = path if path.is_file() else path / "index.json"
    rows, kinds = entries(read_json(file), file, "images", "mask_classes")
    root = str(file.parent)
    if skip_missing:
        gone = set(absent(root, [r["file"] for r in rows]))
        rows = [r for r in rows if r["file"] not in gone]
    check_there(root, [r["file"] for r in rows], file.name, SKIP)
    check_there(root, [r["mask"] for r in rows if r.get("mask")], file.name)
    named = {int(n): str(text) for n, text in kinds.items() if int(n) > 0 and text not in ("unlabeled", "void")}
    concepts, meanings = concepts_of_names(list(named.values()), [""] * len(named), {})
    numbers = np.zeros((len(meanings), max(named, default=0) + 2), np.int32)  # the last one stands for all numbers above
    for layer, row in enumerate(meanings):
        numbers[layer, list(named)] = row[1:]
    masks = [r.get("mask") or "" for r in rows]
    return Listed(root, [r["file"] for r in rows], masks, concepts, numbers, name or os.path.basename(os.path.abspath(root)))
