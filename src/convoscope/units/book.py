"""The unit book: what every unit of a network responds to, written once by `scan` and asked ever after.

book = cs.open_book("book/")
book.units(where="iou>0.04", sort="class-selectivity", limit=10)
book.unit("layer4:42")
"""

import io
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.units import book_files as files
from convoscope.units.book_files import Column, LayerEntry
from convoscope.units.book_index import Exemplar, Label, connect, select

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from convoscope.network import Network


class Share(NamedTuple):
    """One class of the pictures, and its share of what the unit gives to its strongest ones, 0 to 1."""

    name: str
    share: float


@dataclass(frozen=True)
class Unit:
    """One unit of a book.

    `values` are its numbers and words by column, None where it has none; `labels` the concepts it detects, best first;
    `classes` whose pictures drive it; `exemplars` its places in images by sort ("top", "quantile", "random", "bottom");
    `edges` (bins + 1,) and `counts` (bins,) the histogram of its activations over all images and places.
    """

    layer: LayerEntry
    unit: int
    values: dict[str, Any]
    labels: tuple[Label, ...]
    classes: tuple[Share, ...]
    exemplars: dict[str, tuple[Exemplar, ...]]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    book: "Book"

    @property
    def name(self) -> str:
        """`layer4:42`."""
        return f"{self.layer.address}:{self.unit}"

    def __repr__(self) -> str:
        label = self.values.get("label")
        return f"Unit({self.name}{f': {label}' if label else ''})"

    def strip(self, sort: str = "top") -> "Image.Image":
        """The exemplars of one sort in a row, receptive fields resized to squares."""
        return self.book.strip(self.layer, self.unit, sort)

    def picture(self, exemplar: Exemplar, network: "Network", dataset: Any) -> "Image.Image":
        """The whole picture that an exemplar is from, as the network sees it, with the receptive field and its middle.

        `network` and `dataset` are those of the scan. Raises UsageError where the weights are others.
        """
        from convoscope.data.dataset import open_dataset
        from convoscope.show.book import boxed

        wanted, data = self.book.manifest["network"]["hash"], open_dataset(dataset)
        if network.hash != wanted:
            raise UsageError(f"this book is about a network with weights {wanted}; got one with {network.hash}")
        pixels = network.picture(network.read(data.picture(exemplar.image)))[0]
        return boxed(pixels.permute(1, 2, 0).numpy(), exemplar.box, exemplar.peak)

    def image_name(self, exemplar: Exemplar) -> str:
        """The name of the image an exemplar is from."""
        return self.book.image_name(exemplar.image)

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures, as JSON values."""
        found = {sort: [e._asdict() for e in several] for sort, several in self.exemplars.items()}
        for e in (e for several in found.values() for e in several):
            e.update(box=list(e["box"]), peak=list(e["peak"]), image_name=self.book.image_name(e["image"]))
        return {
            "name": self.name,
            "layer": self.layer.address,
            "unit": self.unit,
            "values": self.values,
            "labels": [label._asdict() for label in self.labels],
            "classes": [share._asdict() for share in self.classes],
            "histogram": {"edges": list(self.edges), "counts": list(self.counts)},
            "exemplars": found,
            "strip": str(files.strip_path(Path(), self.layer.stem, self.unit).as_posix()),
        }

    def to_html(self) -> str:
        """A page of its own: pictures, histogram, labels and numbers in one file."""
        from convoscope.units.book_pages import unit_page

        return unit_page(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().save(buffer, "png")
        return buffer.getvalue()

    def figure(self) -> "Image.Image":
        """Pictures, histogram and the main numbers as one picture, for a slide."""
        from convoscope.units.book_pages import unit_figure

        return unit_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write the page (`.html`) or the figure (`.png`)."""
        from convoscope.files import check_writable, replaced, write_text

        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm", ".png"):
            raise UsageError(f"a unit is saved as .html or .png; got {path.name!r}")
        check_writable(path)
        if path.suffix.lower() == ".png":
            with replaced(path) as partial:
                self.figure().save(partial, format="PNG")
        else:
            write_text(path, self.to_html())
        return path


class Book:
    """A finished book in a folder. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.columns: list[Column] = files.columns_of(manifest)
        self.layers: list[LayerEntry] = [LayerEntry.from_dict(found) for found in manifest["layers"]]
        self.sorts: tuple[str, ...] = tuple(manifest["sorts"])
        self._held: tuple[str, dict[str, Tensor]] = "", {}

    def __repr__(self) -> str:
        units = sum(e.units for e in self.layers)
        images, data = self.manifest["data"]["images"], self.manifest["data"]["name"]
        name = self.manifest["network"]["name"]
        return f"Book({name}: {units:,} units of {len(self.layers)} layers over {images:,} images of {data})"

    def __len__(self) -> int:
        return sum(e.units for e in self.layers)

    @cached_property
    def index(self) -> sqlite3.Connection:
        """The SQLite index, read only."""
        return connect(self.folder / files.INDEX)

    def units(
        self, where: Any = None, sort: str | None = None, *, reverse: bool = False, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The columns of the units that all conditions hold for.

        `where` is `"iou>0.04"`, `["label=dog", "layer=layer4*"]` or `{"label": "dog"}`; `sort` a column, numbers largest first.
        """
        return select(self.index, self.columns, where, sort, reverse, limit)

    def unit(self, name: str) -> Unit:
        """One unit, `layer4:42`. Raises UsageError for a layer or number that the book does not have."""
        entry, unit = self._place(name)
        number = self.layers.index(entry)
        row = [r for r in self.units([f"layer={entry.address}", f"unit={unit}"]) if r["layer"] == entry.address]
        if not row:
            raise UsageError(f"the index of {str(self.folder)!r} misses {name}: it is damaged; remove it and scan again")
        values = {k: v for k, v in row[0].items() if k not in ("layer", "unit")}
        numbers = self.numbers(entry.address)
        edges, counts = numbers["histogram_edges"], numbers["histogram_counts"][unit]
        return Unit(
            entry, unit, values, self._labels(number, unit), self._classes(number, unit), self._exemplars(number, unit),
            tuple(edges.tolist()), tuple(counts.tolist()), self,
        )  # fmt: skip

    def numbers(self, address: str) -> dict[str, "Tensor"]:
        """Everything counted in one layer, as tensors over its units."""
        if self._held[0] != address:  # one layer is kept: its units are asked for one after the other
            self._held = address, files.load_numbers(files.numbers_path(self.folder, self._layer(address).stem))
        return dict(self._held[1])

    def strip(self, layer: LayerEntry, unit: int, sort: str = "top") -> "Image.Image":
        """One row of a unit's strip."""
        from PIL import Image, UnidentifiedImageError

        if sort not in self.sorts:
            raise UsageError(f"the book has no {sort!r} exemplars; it has {', '.join(self.sorts)}")
        path = files.strip_path(self.folder, layer.stem, unit)
        try:
            with Image.open(path, formats=["WEBP"]) as opened:
                whole = opened.convert("RGBA")
        except (OSError, UnidentifiedImageError):
            raise UsageError(f"{str(path)!r} is missing or damaged; remove it and run the same scan again") from None
        row, size = self.sorts.index(sort), self.manifest["crop"]
        return whole.crop((0, row * size, whole.width, (row + 1) * size))

    def image_name(self, image: int) -> str:
        """The name of an image that some exemplar is from."""
        row = self.index.execute("SELECT name FROM images WHERE image = ?", (image,)).fetchone()
        return row[0] if row else f"image {image}"

    def image_class(self, image: int) -> str | None:
        """The class of such an image, where the data has classes."""
        row = self.index.execute("SELECT class FROM images WHERE image = ?", (image,)).fetchone()
        return row[0] if row else None

    def report(self, units_per_layer: int = 6) -> str:
        """The summary as one page: detectors by category and layer, dead units, color, the best units of each layer."""
        from convoscope.units.book_pages import report_page

        return report_page(self, units_per_layer)

    # ---- parts of a unit
    def _layer(self, address: str) -> LayerEntry:
        for entry in self.layers:
            if entry.address == address:
                return entry
        names = [e.address for e in self.layers]
        raise UsageError(
            f"the book has no layer {address!r}{did_you_mean(address, names) or '; it has ' + ', '.join(names[:12])}"
        )

    def _place(self, name: str) -> tuple[LayerEntry, int]:
        address, colon, number = name.rpartition(":")
        if not colon or not number.isdecimal():
            raise UsageError(f"a unit is named by layer and number, such as {self.layers[-1].address}:0; got {name!r}")
        entry = self._layer(address)
        if int(number) >= entry.units:
            raise UsageError(f"{address} has units 0 to {entry.units - 1}; got {number}")
        return entry, int(number)

    def _labels(self, layer: int, unit: int) -> tuple[Label, ...]:
        text = "SELECT concept, category, iou, held_out_iou, p_value FROM labels WHERE layer = ? AND unit = ? ORDER BY rank"
        return tuple(Label(*row) for row in self.index.execute(text, (layer, unit)))

    def _classes(self, layer: int, unit: int) -> tuple[Share, ...]:
        text = "SELECT class, share FROM classes WHERE layer = ? AND unit = ? ORDER BY rank"
        return tuple(Share(*row) for row in self.index.execute(text, (layer, unit)))

    def _exemplars(self, layer: int, unit: int) -> dict[str, tuple[Exemplar, ...]]:
        text = (
            'SELECT sort, rank, value, image, grid_row, grid_column, "top", "left", "bottom", "right", peak_y, peak_x '
            "FROM exemplars WHERE layer = ? AND unit = ? ORDER BY sort, rank"
        )
        found: dict[str, tuple[Exemplar, ...]] = dict.fromkeys(self.sorts, ())
        for s, rank, value, image, row, column, *rest in self.index.execute(text, (layer, unit)):
            box, peak = (rest[0], rest[1], rest[2], rest[3]), (rest[4], rest[5])
            found[s] = (*found[s], Exemplar(s, rank, value, image, row, column, box, peak))
        return found


def open_book(path: str | Path) -> Book:
    """The book in a folder. Raises UsageError where there is none, or an unfinished, damaged or older one."""
    folder = Path(path)
    manifest = files.read_manifest(folder)
    if not manifest.get("complete"):
        raise UsageError(f"the book {str(folder)!r} is not finished; run the same scan again, it goes on where it stopped")
    try:
        return Book(folder, manifest)
    except (KeyError, TypeError, IndexError):
        raise UsageError(f"{str(folder / files.MANIFEST)!r} is damaged; scan again into a new folder") from None


def best(units: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The units worth showing first: no two of the same label while there are others, by IoU, else by selectivity."""

    def worth(u: dict[str, Any]) -> tuple[float, float]:
        detects = u.get("iou") or 0.0 if u.get("detector") else 0.0
        return detects, u.get("class_selectivity") or u.get("lifetime_sparseness") or 0.0

    ordered = sorted((u for u in units if not u.get("dead")), key=worth, reverse=True)
    first, seen = [], set()
    for u in ordered:
        if u.get("label") is None or u["label"] not in seen:
            seen.add(u.get("label"))
            first.append(u)
    rest = [u for u in ordered if all(u is not f for f in first)]
    return [*first, *rest][:count]
