"""The unit book: its index answers as a plain filter would, its files are what they say, other folders are refused."""

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convoscope as cs
from convoscope.show.book import Histogram, histogram
from convoscope.units import book_files as files
from convoscope.units.book import Book, open_book
from convoscope.units.book_files import Column, LayerEntry
from convoscope.units.book_index import Exemplar, Label, LayerRows, connect, parse_condition, select, write_index

COLUMNS = [
    Column("label", "text", "label"), Column("category", "text", "category"), Column("iou", "real", "IoU"),
    Column("class_selectivity", "real", "class selectivity"), Column("dead", "integer", "dead"),
]  # fmt: skip
WORDS = ["dog", "Dog house", "grass", "sky*", "it's", 'a "b"', "ÉCLAIR", None]


def entry(k: int, address: str, units: int) -> LayerEntry:
    return LayerEntry(address, files.stem_of(k, address), units, (4, 4), (9, 9), (4, 4))


def layer(k: int, address: str, units: int, seed: int = 0) -> LayerRows:
    chance = random.Random(f"{seed} {address}")

    def number() -> float | None:
        return chance.choice([None, 0.0, 0.25, round(chance.random(), 3)])

    values = {
        "label": [chance.choice(WORDS) for _ in range(units)],
        "category": [chance.choice(["object", "color", None]) for _ in range(units)],
        "iou": [number() for _ in range(units)],
        "class_selectivity": [chance.choice([number(), float("nan"), float("inf")]) for _ in range(units)],
        "dead": [chance.choice([0, 1, False, True]) for _ in range(units)],
    }
    box = (0, 1, 9, 10)
    exemplars = [[Exemplar("top", r, 9.0 - r, 5 - r, 1, 2, box, (4.5, 5.5)) for r in range(2)] for _ in range(units)]
    labels = [[Label("dog", "object", 0.5, 0.4, 0.01), Label("grass", "texture", 0.1, None, None)] for _ in range(units)]
    return LayerRows(entry(k, address, units), values, exemplars, labels, [[("cat", 0.75)] for _ in range(units)])


LAYERS = [layer(0, "layer1", 40), layer(1, "layer1.0.relu()", 30), layer(2, "layer2", 50)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    write_index(path, COLUMNS, iter(LAYERS), [(5, "b.jpg", "cat"), (4, "a.jpg", None)])
    return connect(path)


def rows() -> list[dict[str, Any]]:
    """What stands in the index, in the order of the network; what is no number is None."""
    found = []
    for part in LAYERS:
        for u in range(part.entry.units):
            cells = {name: values[u] for name, values in part.values.items()}
            bad = [k for k, v in cells.items() if isinstance(v, float) and not np.isfinite(v)]
            found.append({"layer": part.entry.address, "unit": u, **cells, **dict.fromkeys(bad)})
    return found


def holds(row: dict[str, Any], text: str) -> bool:
    """One condition, by the words of the documentation."""
    column, sign, value = parse_condition(text)
    cell = row[column.replace("-", "_")]
    if cell is None:
        return False
    if isinstance(cell, str):
        cell, value = cell.casefold(), value.casefold()
        if sign == "~":
            return value in cell
        if "*" in value:
            first, _, last = value.partition("*")
            fits = len(cell) >= len(first + last) and cell.startswith(first) and cell.endswith(last)
            return fits == (sign == "=")
        return (cell == value) == (sign == "=")
    one, two = float(cell), float(value)
    return {"=": one == two, "!=": one != two, "<": one < two, "<=": one <= two, ">": one > two, ">=": one >= two}[sign]


CONDITIONS = [
    "label=dog", "label=DOG", "label!=dog", "label~dog", "label=d*", "label!=d*", "label=*house", "label=it's", 'label=a "b"',
    "label=éclair", "category=object", "iou>0.25", "iou>=0.25", "iou<0.25", "iou<=.25", "iou=0.25", "iou!=0.25", "iou==0",
    "class-selectivity>0.5", "class_selectivity<5e-1", "dead=1", "dead=0", "unit<7", "unit=3", "layer=layer1", "layer=layer1*",
    "layer~relu", "layer=layer1.0.relu()", "layer != layer2", "iou > -1", "label=nothing", "label=[ab]*", "label=?og",
]  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_keeps_what_a_plain_filter_keeps(index: sqlite3.Connection, condition: str) -> None:
    assert select(index, COLUMNS, condition) == [r for r in rows() if holds(r, condition)]


def test_some_conditions_keep_some_and_drop_some(index: sqlite3.Connection) -> None:
    kept = [len(select(index, COLUMNS, c)) for c in CONDITIONS]
    assert sum(0 < n < len(rows()) for n in kept) > 24


@pytest.mark.parametrize("sort", [None, "iou", "class-selectivity", "label", "unit", "layer", "dead"])
@pytest.mark.parametrize("reverse", [False, True])
def test_several_conditions_sorted_and_limited(index: sqlite3.Connection, sort: str | None, reverse: bool) -> None:
    where = ["iou>=0", "layer=layer*"]
    expected = [r for r in rows() if all(holds(r, w) for w in where)]
    if sort:
        name = sort.replace("-", "_")
        place = {part.entry.address: k for k, part in enumerate(LAYERS)}
        key = (lambda r: place[r["layer"]]) if sort == "layer" else (lambda r: r[name])
        having = [r for r in expected if r[name] is not None]
        upwards = (sort in ("label", "unit", "layer")) != reverse
        order = sorted({key(r) for r in having}, reverse=not upwards)  # and among equals the order of the network
        expected = [*(r for v in order for r in having if key(r) == v), *(r for r in expected if r[name] is None)]
    assert select(index, COLUMNS, where, sort, reverse) == expected
    assert select(index, COLUMNS, where, sort, reverse, 7) == expected[:7]
    assert select(index, COLUMNS, where, sort, reverse, 0) == []
    assert select(index, COLUMNS, {"layer": "layer1", "dead": 1}) == [
        r for r in rows() if r["layer"] == "layer1" and r["dead"] == 1
    ]


@pytest.mark.parametrize(
    ("where", "sort", "reason"),
    [
        ("lable=dog", None, "no column 'lable'; did you mean 'label'"),
        ("color=dog", None, r"no column 'color'; it has layer, unit, label, category, iou, class-selectivity, dead"),
        (None, "class-selectivty", "did you mean 'class-selectivity'"),
        ("label", None, "is no condition; expected a column"),
        ("iou>", None, "is no condition"),
        ("iou>high", None, "iou is a number; 'high' is none"),
        ("iou=nan", None, "iou is a number; 'nan' is none"),
        ("label>dog", None, "label is a text: compare it by =, != or ~"),
        ("iou~1", None, "iou is a number: compare it by"),
        ("label; DROP TABLE units=1", None, "is no condition"),
        ("iou=1; DROP TABLE units", None, "is a number"),
    ],
)
def test_questions_that_make_no_sense(index: sqlite3.Connection, where: str | None, sort: str | None, reason: str) -> None:
    with pytest.raises(cs.UsageError, match=reason):
        select(index, COLUMNS, where, sort)


def test_what_is_typed_never_becomes_sql(index: sqlite3.Connection) -> None:
    assert select(index, COLUMNS, ["label=x' OR '1'='1"]) == []
    with pytest.raises(cs.UsageError, match="no column"):
        select(index, COLUMNS, None, "iou; DROP TABLE units")
    with pytest.raises(cs.UsageError, match="a column is named by small letters"):
        write_index(Path("never"), [Column('x" real); --', "real", "")], [], [])
    with pytest.raises(cs.UsageError, match="limit is -1"):
        select(index, COLUMNS, limit=-1)
    assert len(select(index, COLUMNS)) == 120


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    images = [(5, "b.jpg", "cat"), (4, "a.jpg", None)]
    for name, order in (("a", images), ("b", images[::-1])):
        write_index(tmp_path / name, COLUMNS, iter(LAYERS), order)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", "b"]


# ---- a book by hand

MANIFEST: dict[str, Any] = {
    "schema": files.SCHEMA, "key": "k", "complete": True, "made_by": "convoscope test",
    "network": {"name": "net", "hash": "ab", "channels": 3, "size": [32, 32], "mean": [0], "std": [1], "categories": []},
    "data": {"name": "data", "images": 6, "classes": ["cat"], "concepts": [{"name": "dog", "category": "object"}]},
    "settings": {"fraction": 0.005, "iou": 0.04, "chance": 0.01, "draws": 200},
    "columns": [files.as_dict(c) for c in COLUMNS], "sorts": ["top"], "crop": 16, "failed": [],
}  # fmt: skip


def write_book(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    parts = [layer(0, "layer1", 3), layer(1, "fc", 2)]
    files.write_manifest(folder, MANIFEST | {"layers": [files.as_dict(p.entry) for p in parts]} | changes)
    write_index(folder / files.INDEX, COLUMNS, parts, [(5, "b.jpg", "cat"), (4, "a.jpg", None)])
    for p in parts:
        tensors = {"histogram_edges": torch.tensor([0.0, 1.0, 2.0]), "histogram_counts": torch.ones(p.entry.units, 2).long()}
        files.save_numbers(files.numbers_path(folder, p.entry.stem), tensors)
        for u in range(p.entry.units):
            path = files.strip_path(folder, p.entry.stem, u)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 32, 3), 40 * u, np.uint8)).save(path, "WEBP", lossless=True)
    return folder


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return open_book(write_book(tmp_path / "book"))


def test_a_unit_knows_its_parts(book: Book) -> None:
    unit = book.unit("layer1:2")
    assert unit.name == "layer1:2"
    assert unit.labels[0] == Label("dog", "object", 0.5, 0.4, 0.01)
    assert [tuple(s) for s in unit.classes] == [("cat", 0.75)]
    assert (unit.edges, unit.counts) == ((0, 1, 2), (1, 1))
    assert [(e.rank, e.image, e.box, e.peak) for e in unit.exemplars["top"]] == [
        (0, 5, (0, 1, 9, 10), (4.5, 5.5)), (1, 4, (0, 1, 9, 10), (4.5, 5.5)),
    ]  # fmt: skip
    assert unit.strip("top").size == (32, 16)
    assert unit.strip("top").convert("RGB").getpixel((3, 3)) == (80, 80, 80)
    assert json.loads(json.dumps(unit.to_dict()))["exemplars"]["top"][0]["image_name"] == "b.jpg"
    assert repr(book) == "Book(net: 5 units of 2 layers over 6 images of data)"
    assert len(book.units(limit=4)) == 4


def test_units_that_are_not_there(book: Book) -> None:
    for name, reason in [
        ("layer1:3", "layer1 has units 0 to 2; got 3"),
        ("layer7:0", "no layer 'layer7'; did you mean 'layer1'"),
        ("zzz:0", "no layer 'zzz'; it has layer1, fc"),
        ("layer1", "named by layer and number, such as fc:0; got 'layer1'"),
        ("layer1:-1", "named by layer and number"),
        ("layer1:x", "named by layer and number"),
    ]:
        with pytest.raises(cs.UsageError, match=reason):
            book.unit(name)
    with pytest.raises(cs.UsageError, match="no 'best' exemplars; it has top"):
        book.unit("fc:0").strip("best")


def test_folders_that_are_no_finished_book(tmp_path: Path) -> None:
    def refuses(path: Path, reason: str) -> None:
        with pytest.raises(cs.UsageError, match=reason):
            open_book(path)

    refuses(tmp_path / "none", "there is no book at .*; 'convoscope scan MODEL DATA --out")
    refuses(tmp_path, "is no book: it has no manifest.json")
    refuses(write_book(tmp_path / "a", complete=False), "not finished; run the same scan again")
    refuses(write_book(tmp_path / "b", schema="convoscope.book/0"), "a book of version 0; this convoscope reads version 1")
    refuses(write_book(tmp_path / "c", schema="other/1"), "is no book but holds a 'other/1'")
    refuses(write_book(tmp_path / "d", columns=[{"x": 1}]), "is damaged; scan again into a new folder")
    refuses(write_book(tmp_path / "e", layers=[{"address": "x"}]), "is damaged")
    (tmp_path / "a" / files.MANIFEST).write_text('{"schema": ')
    refuses(tmp_path / "a", "cannot be read: it is damaged")


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    folder = write_book(tmp_path / "book")
    files.strip_path(folder, "00-layer1", 0).write_bytes(b"no picture")
    files.numbers_path(folder, "01-fc").write_bytes(b"\x00" * 20)
    book = open_book(folder)
    with pytest.raises(cs.UsageError, match=r"00000.webp' is missing or damaged; remove it and run the same scan again"):
        book.unit("layer1:0").strip()
    with pytest.raises(cs.UsageError, match=r"01-fc.safetensors' is missing or damaged; remove it and run the same scan again"):
        book.unit("fc:0")
    (folder / files.INDEX).write_bytes(b"SQLite format 3\x00 and no more")
    with pytest.raises(cs.UsageError, match=r"index.sqlite' is missing or damaged; remove it and run the same scan again"):
        open_book(folder).units()
    (folder / files.INDEX).unlink()
    with pytest.raises(cs.UsageError, match=r"index.sqlite' is missing or damaged"):
        open_book(folder).units()


def test_pages_of_a_book_that_has_little(book: Book, tmp_path: Path) -> None:
    unit = book.unit("layer1:1")
    page = unit.save(tmp_path / "unit.html").read_text()
    assert "layer1:1" in page
    assert "http" not in page.replace("http-equiv", "")
    with Image.open(unit.save(tmp_path / "unit.png")) as drawn:
        assert drawn.width > 300
    with pytest.raises(cs.UsageError, match=r"saved as .html or .png; got 'unit.txt'"):
        unit.save(tmp_path / "unit.txt")
    report = book.report()
    assert all(f"layer1:{k}" in report for k in range(3) if not book.unit(f"layer1:{k}").values["dead"])
    assert "http" not in report.replace("http-equiv", "")


# ---- histograms


def test_a_histogram_is_drawn_from_its_first_to_its_last_bin() -> None:
    chart = histogram(Histogram([0, 1, 2, 3, 4], [0, 100, 0, 1], [(1.5, "here"), (9, "nowhere")]))
    assert chart is not None
    assert [b["text"] for b in chart["bars"]] == ["1 to 2: 100", "3 to 4: 1"]
    assert [float(b["x"]) for b in chart["bars"]] == pytest.approx([0.4, 640 * 2 / 3 + 0.4], abs=0.01)
    heights = [float(b["height"]) for b in chart["bars"]]
    assert heights == pytest.approx([190, 190 * 0.15 / 2.15], abs=0.01)
    assert [(float(m["x"]), m["text"]) for m in chart["marks"]] == [(pytest.approx(640 / 6, abs=0.1), "here")]
    assert "101 activations from 1 to 4" in chart["label"]


def test_bins_next_to_zero_are_one_and_endless_ones_end() -> None:
    edges = [-float("inf"), -1000, -0.5, -1e-9, 0, 0, 1e-9, 0.5, 1000, float("inf")]
    chart = histogram(Histogram(edges, [1, 1, 1, 1, 5, 1, 1, 1, 1]))
    assert chart is not None
    expected = ["-2e3 to -1e3: 1", "-1e3 to -0.5: 1", "-0.5 to 0.5: 9", "0.5 to 1e3: 1", "1e3 to 2e3: 1"]
    assert [b["text"] for b in chart["bars"]] == expected
    assert histogram(Histogram([0, 1, 2], [0, 0])) is None
    alone = histogram(Histogram([-1, 0, 0, 1], [0, 7, 0]))
    assert alone is not None
    assert [b["text"] for b in alone["bars"]] == ["0 to 0: 7"]
