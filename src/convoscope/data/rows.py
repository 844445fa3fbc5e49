"""Data sets from memory and from PyTorch: anything with a length and rows."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from convoscope.core.errors import ImageError, UsageError
from convoscope.data.aligned import repeats
from convoscope.data.dataset import Concept, Dataset, size_of

PICTURE = ("image", "picture", "pixel_values", "img")
CLASS = ("label", "class", "target", "labels", "fine_label")
KEPT = 65_536  # classes kept of rows that had to be read for them
SEGMENTS = ("segments", "segmentation", "mask", "masks", "label_map")


class Item(NamedTuple):
    """One row: its picture, the number of its class (-1: none), its dense labels or None."""

    picture: Any
    label: int
    segments: Any


class Rows(Dataset):
    """Rows of anything with `len(source)` and `source[i]`: pictures, pairs or mappings (see `open_dataset`).

    A row's key is a hash of what is in it, so listing the keys reads every row once, except where the source keeps its raw
    pictures in an array `data`, as MNIST and CIFAR do, or its files in `samples`.
    """

    def __init__(
        self, source: Any, name: str = "", classes: Sequence[str] = (), concepts: Sequence[Any] = (), labels: Sequence[int] = ()
    ) -> None:  # fmt: skip
        self.source, self.labels = source, [int(k) for k in labels]
        self.name = name or type(source).__name__
        self.classes = tuple(classes) or _classes(source)
        self.concepts = concepts_of(concepts)
        self._latest: tuple[int, Item] | None = None
        self._seen: dict[int, int] = {}  # classes of rows read, which are asked for after a whole batch of pictures

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None, "_seen": {}}

    def item(self, i: int) -> Item:
        """Row `i`; the latest is kept, since its picture, class and labels are asked for one after the other."""
        i, latest = self.row(i), self._latest
        if latest is None or latest[0] != i:
            self._latest = latest = (i, _item(self.source[i], self.name))
            if len(self._seen) >= KEPT:
                self._seen = {}
            self._seen[i] = latest[1].label
        return latest[1]

    def key(self, i: int) -> str:
        i = self.row(i)
        raw = getattr(self.source, "data", None)
        plain = getattr(self.source, "transform", None) is None and getattr(self.source, "transforms", None) is None
        label = str(self.class_of(i))
        if plain and isinstance(raw, Tensor | np.ndarray) and len(raw) == len(self):
            return digest(raw[i], label)
        item = self.item(i)
        return digest(item.picture, label, *([] if item.segments is None else [item.segments]))

    def picture(self, i: int) -> Any:
        return self.item(i).picture

    def class_of(self, i: int) -> int:
        if self.labels:
            return self.labels[self.row(i)]
        known = getattr(self.source, "targets", None)
        plain = getattr(self.source, "target_transform", None) is None and getattr(self.source, "transforms", None) is None
        if plain and isinstance(known, list | Tensor | np.ndarray) and len(known) == len(self):
            label = _label(known[self.row(i)])
            if label is not None:
                return label
        label = self._seen.get(self.row(i))
        return self.item(i).label if label is None else label

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        item = self.item(i)
        size = size_of(item.picture)
        if item.segments is None:
            return torch.zeros(0, *size, dtype=torch.int32)
        return _checked(item.segments, size, len(self.concepts), f"row {i} of {self.name}")


def digest(*parts: Any) -> str:
    """A hash of pixels, arrays, texts and files (by name, size and time of change)."""
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, Image.Image):
            found.update(f"{part.mode}{part.size}".encode())
            found.update(part.tobytes())
        elif isinstance(part, Tensor | np.ndarray):
            array = part.detach().cpu().contiguous().numpy() if isinstance(part, Tensor) else np.ascontiguousarray(part)
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.reshape(-1).view(np.uint8).data)
        elif isinstance(part, PathLike):
            from convoscope.data.folders import stamp

            found.update(stamp("", str(part)).encode())
        else:
            found.update(str(part).encode())
    return found.hexdigest()


# ---- what a row is
def _item(row: Any, name: str) -> Item:
    if isinstance(row, Mapping):
        picture = next((row[k] for k in PICTURE if k in row), None)
        if picture is None:
            raise UsageError(f"the rows of {name} are mappings with {', '.join(map(str, row))}; the picture is 'image'")
        label = next((n for k in CLASS if k in row and (n := _label(row[k])) is not None), -1)
        return Item(_picture(picture, name), label, next((row[k] for k in SEGMENTS if k in row), None))
    if not isinstance(row, tuple | list):
        return Item(_picture(row, name), -1, None)
    if not row:
        raise UsageError(f"the rows of {name} are empty; expected a picture, or (picture, class)")
    label, segments = -1, None
    for part in row[1:]:
        number = _label(part)
        if number is not None and label < 0:
            label = number
        elif number is None and segments is None and _is_map(part):
            segments = part
    return Item(_picture(row[0], name), label, segments)


def _picture(picture: Any, name: str) -> Any:
    if isinstance(picture, str):
        return Path(picture)
    if isinstance(picture, Image.Image | Tensor | np.ndarray | PathLike):
        return picture
    raise UsageError(
        f"the rows of {name} begin with {type(picture).__name__}; expected a picture (PIL, array, tensor of pixels or path), "
        "(picture, class) or a mapping with 'image'"
    )


def _label(value: Any) -> int | None:
    """The number in an int, a NumPy number or a tensor of one; None for anything else."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool | Tensor | np.ndarray) else None


def _is_map(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3))


def _checked(segments: Any, size: tuple[int, int], count: int, name: str) -> Int[Tensor, "layers height width"]:
    found = torch.as_tensor(np.array(segments) if isinstance(segments, Image.Image) else segments)
    found = found[None] if found.dim() == 2 else found
    if found.dim() != 3 or tuple(found.shape[1:]) != size:
        raise ImageError(f"{name} has labels of shape {tuple(found.shape)} for a picture of height and width {size}")
    if found.is_floating_point():
        raise ImageError(f"{name} has labels of {found.dtype}; expected whole numbers, 0 for nothing")
    found = found.to(torch.int32)
    return torch.where((found < 0) | (found > count), 0, found)  # 255 is "unlabeled" in many sets


def concepts_of(given: Sequence[Any]) -> tuple[Concept, ...]:
    """Concepts from names (objects), (name, category) pairs or concepts."""
    if isinstance(given, str):
        raise UsageError(f"concepts are a list of names, or of (name, category); got the text {given!r}")
    made = [c if isinstance(c, Concept) else Concept(c, "object") if isinstance(c, str) else Concept(*c) for c in given]
    return tuple(made)


def _classes(source: Any) -> tuple[str, ...]:
    known = getattr(source, "classes", None)
    if known is None and isinstance(features := getattr(source, "features", None), Mapping):
        known = next((names for k in CLASS if (names := getattr(features.get(k), "names", None))), None)
    if not isinstance(known, list | tuple) or not all(isinstance(n, str | tuple | list) for n in known):
        return ()
    return tuple(n if isinstance(n, str) else ", ".join(map(str, n)) for n in known)


# ---- opening
def open_rows(source: Any, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Who opens what is no path, with the settings and what it is given. Raises UsageError for what has no rows."""
    from torch.utils import data

    from convoscope.data.scenes import Scenes

    if isinstance(source, Scenes):
        from convoscope.data.scenes.labeled import LabeledScenes

        return (lambda: LabeledScenes(source)), settings
    if isinstance(source, data.DataLoader):
        source = source.dataset
    if isinstance(source, data.Subset):
        from convoscope.data.dataset import open_dataset

        return _subset, {}, open_dataset(source.dataset, **settings), source.indices
    if isinstance(source, data.IterableDataset) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(
            f"a {type(source).__name__} has no rows to come back to; expected a folder, a list, a tensor of pixels, "
            "'scenes:500', or a data set with len() and [i]; what can only be read in order is opened as list(...) of it"
        )
    if len(source) == 0:
        raise UsageError(f"the {type(source).__name__} is empty; a data set has at least one row")
    files = _files_of(source)
    if files is not None:
        return files[0], settings, *files[1:]
    return open_items, settings, source


def _subset(whole: Dataset, rows: Sequence[int]) -> Dataset:
    return whole.subset(rows)


def _files_of(source: Any) -> tuple[Any, ...] | None:
    """For sources that only name files: they are opened as files, whose keys cost no reading."""
    from convoscope.data.folders import Files, open_paths

    if isinstance(source, Mapping):
        raise UsageError("a mapping has no order of rows; give a list of (picture, class)")
    if isinstance(source, list | tuple) and all(isinstance(p, str | PathLike) for p in source):
        return open_paths, source
    samples = getattr(source, "samples", None)
    changed = any(getattr(source, k, None) is not None for k in ("transform", "target_transform", "transforms"))
    pairs = isinstance(samples, list) and samples and isinstance(samples[0], tuple) and len(samples[0]) == 2
    root = getattr(source, "root", None)
    if pairs and isinstance(samples[0][0], str) and not changed and isinstance(root, str | PathLike):
        places = [os.path.relpath(p, root).replace(os.sep, "/") for p, _ in samples]
        of = [int(k) for _, k in samples]
        return ((lambda name="": Files(root, places, of, _classes(source), name)),)
    return None


def open_items(
    source: Any, classes: Sequence[str] = (), concepts: Sequence[Any] = (), labels: Sequence[int] = (), name: str = ""
) -> Dataset:
    """Rows of pictures, pairs or mappings. `classes` names the classes, `concepts` what dense labels mean: names, or (name,
    category) pairs, for the numbers from 1. `labels` is the class of each row where the rows do not have it.
    """
    if isinstance(source, Tensor | np.ndarray) and source.ndim != 4:
        raise UsageError(f"a tensor of pictures is (images, channels, height, width); got shape {tuple(source.shape)}")
    if len(labels) not in (0, len(source)):
        raise UsageError(f"{len(labels)} labels for {len(source)} pictures; give one number for each")
    named = {Tensor: "tensor", np.ndarray: "array", list: "list", tuple: "list"}.get(type(source), "")
    found = Rows(source, name or named, classes, concepts, labels)
    _check_first(found)
    return found


def _check_first(rows: Rows) -> None:
    """Row 0 has to be a picture of pixels, and the same one when it is read again."""
    first = rows.item(0)
    if isinstance(first.picture, Tensor | np.ndarray) and first.picture.ndim not in (2, 3):
        raise UsageError(f"pictures of {rows.name} have shape {tuple(first.picture.shape)}; expected (C, H, W) or (H, W, C)")
    if isinstance(first.picture, Tensor) and first.picture.is_floating_point():
        low, high = (float(v) for v in first.picture.aminmax())
        if low < 0 or high > 1:
            raise UsageError(
                f"the pictures of {rows.name} have values {low:.3g} to {high:.3g}, not pixels 0..1; leave Normalize out of its "
                "transform: the network normalizes what it reads"
            )
    if not repeats(lambda: digest(_item(rows.source[0], rows.name).picture)):
        raise UsageError(
            f"row 0 of {rows.name} is another picture each time it is read (a random transform?); a data set gives the same "
            "picture every time"
        )
    if first.segments is not None and not rows.concepts:
        raise UsageError(f"{rows.name} has dense labels; say what they mean with concepts=[...], names for the numbers from 1")
