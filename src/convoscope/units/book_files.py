"""What is where in a book: a plain folder that other programs can read too (docs/book-format.md)."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.data.sealed import read_sealed, write_sealed
from convoscope.files import make_folder, write_text

SCHEMA = "convoscope.book/1"
MANIFEST, INDEX, STORE, SCRATCH = "manifest.json", "index.sqlite", "store", "scratch"
NUMBERS, STRIPS = "numbers", "strips"


@dataclass(frozen=True)
class Column:
    """One number or word that a book has for every unit; `kind` is real, integer or text."""

    name: str
    kind: str
    title: str
    help: str = ""


@dataclass(frozen=True)
class LayerEntry:
    """One layer of a book: its address, the name of its files, units, and receptive field in input pixels.

    `grid` is rows and columns of each unit's map; `field` is None where a unit sees the whole image.
    """

    address: str
    stem: str
    units: int
    grid: tuple[int, int]
    field: tuple[int, int] | None
    stride: tuple[int, int] | None

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "LayerEntry":
        """From the manifest. Raises UsageError where the name of its files leads out of the book."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", str(found["stem"])):
            raise UsageError(f"the manifest of this book is damaged: {found['stem']!r} is no name of files")
        pairs = {k: None if found[k] is None else (found[k][0], found[k][1]) for k in ("grid", "field", "stride")}
        return cls(found["address"], found["stem"], found["units"], **pairs)  # type: ignore[arg-type]


def stem_of(number: int, address: str) -> str:
    """The name of a layer's files: `03-layer4.1.relu`."""
    return f"{number:02d}-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", address).strip("-") or "x")


def strip_path(folder: Path, stem: str, unit: int) -> Path:
    """The strip of a unit."""
    return folder / STRIPS / stem / f"{unit:05d}.webp"


def numbers_path(folder: Path, stem: str) -> Path:
    """The numbers of a layer."""
    return folder / NUMBERS / f"{stem}.safetensors"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a book, finished or not. Raises UsageError with what is wrong with the folder."""
    if not folder.exists():
        raise UsageError(f"there is no book at {str(folder)!r}; 'convoscope scan MODEL DATA --out {folder}' writes one")
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{str(folder)!r} is no book: it has no {MANIFEST}; 'convoscope scan MODEL DATA --out DIR' writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema = str(found["schema"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{str(path)!r} cannot be read: it is damaged; scan again into a new folder") from None
    name, _, version = schema.partition("/")
    if name != SCHEMA.partition("/")[0]:
        raise UsageError(f"{str(folder)!r} is no book but holds a {schema!r}")
    if schema != SCHEMA:
        ours = SCHEMA.partition("/")[2]
        raise UsageError(f"{str(folder)!r} is a book of version {version}; this convoscope reads version {ours}; scan it again")
    return found


def columns_of(manifest: Mapping[str, Any]) -> list[Column]:
    """The columns of a book."""
    return [Column(**c) for c in manifest["columns"]]


def as_dict(record: Any) -> dict[str, Any]:
    """A record for the manifest."""
    return asdict(record)


def save_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors by name with a checksum and nothing else: the same numbers are the same bytes."""
    make_folder(path.parent)
    write_sealed(path, {name: tensors[name] for name in sorted(tensors)})


def load_numbers(path: Path) -> dict[str, Tensor]:
    """The tensors of a layer. Raises UsageError where the file is missing or damaged."""
    if (found := read_sealed(path)) is None:
        raise UsageError(f"{str(path)!r} is missing or damaged; remove it and run the same scan again")
    return found[0]
