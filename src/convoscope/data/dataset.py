"""A data set: rows of pictures, with a class and dense labels where there are any; opened from whatever holds them."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from convoscope.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from convoscope.network import Network


@dataclass(frozen=True)
class Concept:
    """What dense labels can say: a name and its category (scene, object, part, material, texture, color or any word)."""

    name: str
    category: str

    def __str__(self) -> str:
        return f"{self.name} ({self.category})"


class Dataset:
    """Pictures by row, with what is known about each. Subclasses say how many there are, and give `key` and `picture`.

    `classes` names the classes of whole pictures, `concepts` what dense labels mean: number 0 is nothing, `concepts[k]` is
    number k + 1. Rows are read in any order, in other processes too, and row i is the same picture every time.
    """

    name: str = "data"
    classes: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, i: int) -> str:
        """Which row this is, without reading it where that can be: it changes when the row's file does."""
        raise NotImplementedError

    def picture(self, i: int) -> Any:
        """What `Network.read` takes: a path, a PIL picture, an array or a tensor of pixels."""
        raise NotImplementedError

    def class_of(self, i: int) -> int:
        """The number of the picture's class, -1 where it has none."""
        return -1

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        """Dense labels, int32, at the size of the picture; pixels may have one label in each layer. No layers: no labels."""
        height, width = size_of(self.picture(i))
        return torch.zeros(0, height, width, dtype=torch.int32)

    def subset(self, rows: slice | Iterable[int]) -> "Dataset":
        """The data set of these rows alone, in this order. Raises UsageError for rows that are not there."""
        return Subset(self, chosen(rows, len(self)))

    def row(self, i: int) -> int:
        """`i` as a place from 0, counted from the end where negative. Raises UsageError where there is no such row."""
        if not -len(self) <= i < len(self):
            raise UsageError(f"{self.name} has rows 0 to {len(self) - 1}; got {i}")
        return int(i) % len(self)

    def __repr__(self) -> str:
        parts = [f"{len(self):,} pictures"]
        parts += [f"{len(self.classes):,} classes"] if self.classes else []
        parts += [f"{len(self.concepts):,} concepts"] if self.concepts else []
        return f"{type(self).__name__}({self.name}: {', '.join(parts)})"


class Subset(Dataset):
    """Some rows of another data set, in any order."""

    def __init__(self, whole: Dataset, rows: Sequence[int]) -> None:
        self.whole, self.rows = whole, rows
        self.name, self.classes, self.concepts = whole.name, whole.classes, whole.concepts

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, i: int) -> str:
        return self.whole.key(self.rows[self.row(i)])

    def picture(self, i: int) -> Any:
        return self.whole.picture(self.rows[self.row(i)])

    def class_of(self, i: int) -> int:
        return self.whole.class_of(self.rows[self.row(i)])

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        return self.whole.segments(self.rows[self.row(i)])

    def subset(self, rows: slice | Iterable[int]) -> Dataset:
        return Subset(self.whole, [self.rows[r] for r in chosen(rows, len(self))])


def chosen(rows: slice | Iterable[int] | Tensor, count: int) -> Sequence[int]:
    """Places from 0 of a slice, of numbers, or of `count` yes and no. Raises UsageError for places that are not there."""
    if isinstance(rows, slice):
        return range(count)[rows]
    if isinstance(rows, range) and (len(rows) == 0 or (min(rows) >= 0 and max(rows) < count)):
        return rows
    found: list[Any] = rows.tolist() if isinstance(rows, Tensor) or hasattr(rows, "tolist") else list(rows)
    if found and all(isinstance(r, bool) for r in found):
        if len(found) != count:
            raise UsageError(f"{len(found)} times yes or no for {count} rows; give one for each row, or the numbers of rows")
        return [k for k, wanted in enumerate(found) if wanted]
    for r in found:
        if isinstance(r, bool) or not hasattr(r, "__index__") or not -count <= r < count:
            raise UsageError(f"rows are numbers 0 to {count - 1}; got {r!r}")
    return [int(r) % count for r in found]


def size_of(picture: Any) -> tuple[int, int]:
    """Height and width of what a row's picture is, upright; of files only the header is read."""
    if isinstance(picture, Tensor):
        return int(picture.shape[-2]), int(picture.shape[-1])
    if hasattr(picture, "shape"):
        return int(picture.shape[0]), int(picture.shape[1])
    from convoscope.data.pictures import read_size

    width, height = read_size(picture)[0]
    return height, width


# ---- opening
def open_dataset(source: Any, **settings: Any) -> Dataset:
    """The data set in `source`:

    - a folder: one sub folder per class, pictures without classes, COCO panoptic (`panoptic_*.json`), pictures and masks
      listed in `index.json`, the Broden layout (`index.csv` and `label.csv`), FunnyBirds, or a folder of `convoscope scenes`;
    - `"scenes:500"`: that many pictures of the scenes, drawn when asked for (settings: `seed`, `size`, the planted faults);
    - a list of paths or pictures, or a tensor `(N, C, H, W)` of pixels;
    - a PyTorch data set of pictures, of `(picture, class)`, of `(picture, dense labels)`, or of mappings with "image", "label"
      and "segments"; a `DataLoader` (its data set, whole and in order);
    - a `Dataset`, as it is.

    `docs/how-to/data-sets.md` has each layout with its settings. Raises UsageError for what is none of these, ImageError for
    pictures that cannot be read.
    """
    if isinstance(source, Dataset):
        return _with(lambda: source, settings)
    if isinstance(source, str) and source.partition(":")[0] == "scenes" and not Path(source).is_dir():
        from convoscope.data.scenes.labeled import open_scenes

        return _with(open_scenes, settings, source)
    if isinstance(source, str | os.PathLike):
        from convoscope.data.folders import open_path

        return _with(*open_path(Path(source).expanduser(), settings))
    from convoscope.data.rows import open_rows

    return _with(*open_rows(source, settings))


def _with(opener: Callable[..., Dataset], settings: dict[str, Any], *given: Any) -> Dataset:
    known = [p.name for p in inspect.signature(opener).parameters.values()][len(given) :]
    for name in settings:
        if name not in known:
            taken = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"no setting {name!r} for this data set{did_you_mean(name, known)}; {taken}")
    return opener(*given, **settings)


def segments_for(network: "Network", dataset: Dataset, i: int) -> Int[Tensor, "layers H W"]:
    """The dense labels of row `i` where `network.read(dataset.picture(i))` has the pixels, `(layers, H, W)` int32.

    Resized and cropped as the network reads pictures; each pixel has the label at its center's place in the picture, 0 where
    that lies outside. The latest are kept: asking again, for another layer, costs nothing. Do not change them in place.
    """
    from convoscope.data.aligned import aligned

    return aligned(network, dataset, i)
