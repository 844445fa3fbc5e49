"""The Broden layout of Network Dissection: several label layers per picture, listed in `index.csv`.

Bau, Zhou, Khosla, Oliva and Torralba, "Network Dissection" (2017), section 2.1.
"""

import csv
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from convoscope.core.errors import ImageError, UsageError, did_you_mean
from convoscope.data.aligned import nearest
from convoscope.data.dataset import Concept, Dataset
from convoscope.data.folders import Files, stamp
from convoscope.data.masks import check_there, read_numbers

OTHER = ("image", "split", "ih", "iw", "sh", "sw")  # columns of index.csv that are no category
UNNAMED = "unnamed"


class Broden(Files):
    """Rows of `index.csv`. The number of a label in `label.csv` is the number of its concept here.

    A label has one category, the one in which it covers most, whichever layers it is found in, as the authors count. A cell of
    the index names PNGs whose pixels are red + 256 green, or labels of the whole picture by number. Label maps smaller than
    their picture are enlarged, nearest neighbor; a label that two layers have at one pixel is kept in the first.
    """

    def __init__(
        self,
        root: str,
        places: Sequence[str],
        cells: Sequence[tuple[str, ...]],
        sizes: Sequence[tuple[int, int]],
        concepts: Sequence[Concept],
        name: str,
    ) -> None:
        Files.__init__(self, root, places, name=name)
        self.cells, self.sizes, self.concepts = list(cells), list(sizes), tuple(concepts)

    def key(self, i: int) -> str:
        """The stamps of the picture and of its label maps, and a checksum of its line."""
        i = self.row(i)
        files = [stamp(self.root, f"images/{c}") for c in self.cells[i] if not c.isdecimal()]
        return "|".join([Files.key(self, i), *files, f"{zlib.crc32(repr(self.cells[i]).encode()):08x}"])

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        from convoscope.data.pictures import read_size

        i = self.row(i)
        (width, height), _ = read_size(self.picture(i))
        layers = [found for cell in self.cells[i] if (found := self._layer(cell, self.sizes[i], self.places[i])).any()]
        for k, layer in enumerate(layers):
            for earlier in layers[:k]:
                layer[layer == earlier] = 0
        if not layers:
            return torch.zeros(0, height, width, dtype=torch.int32)
        rows, columns = (nearest(n, m) for n, m in zip(self.sizes[i], (height, width), strict=True))
        return torch.from_numpy(np.stack(layers)).index_select(1, rows).index_select(2, columns)

    def _layer(self, cell: str, size: tuple[int, int], place: str) -> Int[np.ndarray, "height width"]:
        if cell.isdecimal():
            found = np.full(size, int(cell), np.int32)
        else:
            found = read_numbers(os.path.join(self.root, "images", cell)) & 0xFFFF
        if found.shape != size:
            raise ImageError(
                f"the label map {cell!r} of {place!r} has {found.shape[1]} x {found.shape[0]} pixels; index.csv says "
                f"{size[1]} x {size[0]}"
            )
        if found.max() > len(self.concepts):
            raise ImageError(f"the labels of {place!r} have number {found.max()}; label.csv ends at {len(self.concepts)}")
        return found


# ---- opening
def open_broden(path: Path, split: str = "", categories: Iterable[str] | None = None, name: str = "") -> Dataset:
    """A folder in the Broden layout. `split` ("train", "val", ...) and `categories` choose rows and layers (default: all).

    Raises UsageError for lists that do not fit together, naming the first file that is not there.
    """
    index = _read(path / "index.csv")
    if not index:
        raise UsageError(f"{str(path / 'index.csv')!r} lists no pictures")
    missing = [n for n in ("image", "sh", "sw") if n not in index[0]]
    if missing:
        raise UsageError(f"{str(path / 'index.csv')!r} has no column {missing[0]!r}; it has {', '.join(index[0])}")
    known = [n for n in index[0] if n not in OTHER]
    wanted = known if categories is None else list(categories)
    for n in wanted:
        if n not in known:
            raise UsageError(f"no category {n!r} in index.csv{did_you_mean(n, known)} (known: {', '.join(known)})")
    if split:
        splits = {r.get("split") or "" for r in index}
        index = [r for r in index if r.get("split") == split]
        if not index:
            raise UsageError(f"no rows of split {split!r} in index.csv (known: {', '.join(sorted(splits))})")
    places = [f"images/{r['image']}" for r in index]
    cells = [tuple(c for n in wanted for c in (r[n] or "").split(";") if c and c != "0") for r in index]
    root = str(path)
    check_there(root, places, "index.csv")
    check_there(root, (f"images/{c}" for row in cells for c in row if not c.isdecimal()), "index.csv")
    sizes = [(int(r["sh"]), int(r["sw"])) for r in index]
    return Broden(root, places, cells, sizes, _concepts(path, known), name or os.path.basename(os.path.abspath(root)))


def _concepts(path: Path, categories: Sequence[str]) -> list[Concept]:
    rows = {int(r["number"]): r for r in _read(path / "label.csv")}
    covers = {
        c: {int(r["number"]): float(r.get("coverage") or 0) for r in _read(path / f"c_{c}.csv")}
        for c in categories
        if (path / f"c_{c}.csv").is_file()
    }
    last = max(rows, default=0)
    return [_concept(rows.get(n), {c: t[n] for c, t in covers.items() if n in t}, n) for n in range(1, last + 1)]


def _concept(row: Mapping[str, str] | None, cover: Mapping[str, float], number: int) -> Concept:
    if row is None:
        return Concept(f"label {number}", UNNAMED)
    if not cover:  # "object(1200);part(31)" counts pictures
        counts = re.findall(r"([^;()]+)(?:\((\d+)\))?", row.get("category") or "")
        cover = {c.strip(): float(n or 0) for c, n in counts if c.strip()}
    best = max(cover, key=lambda c: cover[c]) if cover else UNNAMED
    return Concept(row["name"], best)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None
