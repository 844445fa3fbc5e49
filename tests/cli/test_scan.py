"""The unit book from the command line: scanned, killed and resumed, asked, shown, reported."""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convoscope as cs
from convoscope.units.book import Book, open_book
from convoscope.units.book_scan import scan
from convoscope.units.book_strips import Cut, cut_out, window, write_strips

Cli = Callable[..., Any]
LAYERS = ["stem", "layer3"]
SETTINGS: dict[str, Any] = {"exemplars": 3, "crop": 16, "draws": 120, "shard_size": 8, "batch_size": 8}
KILLS = int(os.environ.get("CONVOSCOPE_KILLS", "3"))


def hashes(folder: Path) -> dict[str, str]:
    """What is in each file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def net() -> cs.Network:
    return cs.load("scenes")


@pytest.fixture(scope="module")
def book(net: cs.Network, tmp_path_factory: pytest.TempPathFactory) -> Book:
    made = scan(net, "scenes:24", LAYERS, tmp_path_factory.mktemp("scan") / "book", **SETTINGS)
    assert made is not None
    return made


def test_what_is_in_a_book(book: Book) -> None:
    names = set(hashes(book.folder))
    strips = {f"strips/00-stem/{u:05d}.webp" for u in range(16)} | {f"strips/01-layer3/{u:05d}.webp" for u in range(64)}
    assert names == strips | {"manifest.json", "index.sqlite", "numbers/00-stem.safetensors", "numbers/01-layer3.safetensors"}
    manifest = json.loads((book.folder / "manifest.json").read_text())
    assert manifest["schema"] == "convoscope.book/1"
    assert manifest["data"]["images"] == 24
    assert [(e.address, e.units, e.grid, e.field) for e in book.layers] == [
        ("stem", 16, (48, 48), (3, 3)), ("layer3", 64, (12, 12), (47, 47)),
    ]  # fmt: skip
    with sqlite3.connect(f"file:{book.folder / 'index.sqlite'}?mode=ro", uri=True) as index:
        assert index.execute("SELECT count(*) FROM units").fetchone() == (80,)
        assert index.execute("SELECT count(*) FROM exemplars").fetchone() == (80 * 4 * 3,)


@pytest.mark.parametrize("name", ["stem:3", "layer3:10", "layer3:63"])
def test_exemplars_are_what_one_pass_by_hand_finds(net: cs.Network, book: Book, name: str) -> None:
    data = cs.open_dataset("scenes:24")
    unit = book.unit(name)
    x = torch.cat([net.read(data.picture(i)) for i in range(24)])
    with torch.no_grad():
        maps = net.module.stem(x) if unit.layer.address == "stem" else _layer3(net, x)
    mine = maps[:, unit.unit].double()
    peaks = mine.flatten(1).amax(1)
    best = peaks.argsort(descending=True, stable=True)[:3]
    assert [e.image for e in unit.exemplars["top"]] == best.tolist()
    for e in (e for several in unit.exemplars.values() for e in several):
        assert e.value == pytest.approx(float(mine[e.image, e.row, e.column]), rel=1e-4, abs=1e-5)
        top, left, bottom, right = e.box
        assert 0 <= top < bottom <= 96
        assert 0 <= left < right <= 96
    assert sum(unit.counts) == mine.numel()
    assert unit.values["maximum"] == pytest.approx(float(mine.max()), rel=1e-5)
    assert unit.values["mean"] == pytest.approx(float(mine.mean()), rel=1e-4, abs=1e-7)


def _layer3(net: cs.Network, x: torch.Tensor) -> torch.Tensor:
    m = net.module
    return m.layer3(m.layer2(m.layer1(m.stem(x))))


def test_strips_show_the_boxes_of_the_index(net: cs.Network, book: Book) -> None:
    data = cs.open_dataset("scenes:24")
    unit = book.unit("layer3:10")
    for sort in book.sorts:
        strip = np.asarray(unit.strip(sort).convert("RGBA"), np.float64)
        assert strip.shape == (16, 48, 4)
        for k, e in enumerate(unit.exemplars[sort]):
            pixels = net.picture(net.read(data.picture(e.image)))[0].permute(1, 2, 0)
            picture = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
            wanted = np.frombuffer(cut_out(picture, e.box, 16), np.uint8).reshape(16, 16, 4).astype(np.float64)
            seen = wanted[..., 3] > 0
            assert np.abs(strip[:, 16 * k : 16 * k + 16] - wanted)[seen].mean() < 12  # what the encoding loses


def test_a_whole_picture_with_the_field_in_it(net: cs.Network, book: Book) -> None:
    unit = book.unit("layer3:10")
    e = unit.exemplars["top"][0]
    drawn = unit.picture(e, net, "scenes:24")
    zoom = drawn.height / 96
    assert zoom == 5
    assert drawn.getpixel((round(e.box[1] * zoom) + 1, round(e.box[0] * zoom) + 30)) == (255, 255, 255)
    other = cs.Network(torch.nn.Conv2d(3, 2, 1), size=96)
    with pytest.raises(cs.UsageError, match="is about a network with weights"):
        unit.picture(e, other, "scenes:24")


def test_boxes_are_cut_out_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)

    def cut(*box: int, size: int = 8) -> np.ndarray:
        return np.frombuffer(cut_out(picture, box, size), np.uint8).reshape(size, size, 4)

    assert np.array_equal(cut(3, 4, 11, 12)[..., :3], pixels[3:11, 4:12])
    edge = cut(0, 0, 4, 8)  # the square around it is moved into the picture, and faint outside of the box
    assert np.array_equal(edge[:4, :, :3], pixels[:4, :8])
    assert np.abs(edge[4:, :, :3].astype(float) - (0.45 * pixels[4:8, :8] + 0.55 * 128)).max() <= 1
    assert (edge[..., 3] == 255).all()
    assert window((0, 0, 4, 8), 20, 30) == (0, 0, 8)
    assert window((16, 22, 20, 30), 20, 30) == (12, 22, 8)
    wide = cut(0, 0, 20, 30, size=30)  # larger than the picture is high: nothing above and below it
    assert np.array_equal(wide[5:25, :, :3], pixels)
    assert not wide[:5, :, 3].any()
    assert not wide[25:, :, 3].any()
    assert not cut(5, 5, 5, 5).any()
    assert np.array_equal(cut(0, 0, 2, 2)[::4, ::4, :3], pixels[:2, :2])


def test_each_picture_is_read_once_and_crops_wait_on_disk(tmp_path: Path, book: Book) -> None:
    entry = book.layers[0]
    images = np.random.default_rng(0).integers(-1, 5, (16, 1, 4))
    boxes = np.tile(np.array([0, 0, 16, 16]), (16, 1, 4, 1))
    read: list[int] = []

    def pixels(i: int) -> np.ndarray:
        read.append(i)
        return np.full((16, 16, 3), 40 * i, np.uint8)

    write_strips(tmp_path, [Cut(entry, images, boxes)], pixels, 16, tmp_path / "scratch")
    assert read == sorted(set(images[images >= 0].tolist()))
    first = hashes(tmp_path)
    assert len(first) == 16
    for name in list(first)[:5]:
        (tmp_path / name).unlink()
    write_strips(tmp_path, [Cut(entry, images, boxes)], pixels, 16, tmp_path / "scratch", scratch_bytes=9000)
    assert hashes(tmp_path) == first


# ---- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_scan_killed_at_any_moment_ends_in_the_same_book(net: cs.Network, book: Book, tmp_path: Path) -> None:
    expected, folder, count = hashes(book.folder), tmp_path / "book", tmp_path / "count"
    assert _end(_start(net, folder, count=count)) == 0
    assert hashes(folder) == expected
    shutil.rmtree(folder)
    chance, whole = random.Random(0), int(count.read_text())
    assert whole > 100  # there are 80 strips
    ends = [_end(_start(net, folder, 1 + int(2 * whole / KILLS * chance.random()))) for _ in range(KILLS)]
    assert ends[0] == -signal.SIGKILL
    assert set(ends) <= {0, -signal.SIGKILL}  # each goes on where the one before was killed: the last may come to its end
    assert _end(_start(net, folder)) == 0
    assert hashes(folder) == expected


def _end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _start(net: cs.Network, folder: Path, moment: int = -1, count: Path | None = None) -> int:
    """Scan in a process of its own, killed where it opens, lists, renames or removes a file of the book for the n-th time."""
    child = os.fork()
    if child == 0:
        code, touched = 1, itertools.count()

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            if arguments and str(arguments[0]).startswith(str(folder)) and next(touched) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(look)
            scan(net, "scenes:24", LAYERS, folder, **SETTINGS)
            if count is not None:
                count.write_text(str(next(touched)))
            code = 0
        finally:
            os._exit(code)
    return child


def test_parts_of_the_images_make_the_same_book(net: cs.Network, book: Book, tmp_path: Path) -> None:
    for part in ("0/2", "1/2"):
        assert scan(net, "scenes:24", LAYERS, tmp_path / "book", shard=part, **SETTINGS) is None
        with pytest.raises(cs.UsageError, match="is not finished; run the same scan again"):
            open_book(tmp_path / "book")
    scan(net, "scenes:24", LAYERS, tmp_path / "book", **SETTINGS)
    assert hashes(tmp_path / "book") == hashes(book.folder)


def test_a_folder_holds_one_book(net: cs.Network, book: Book, tmp_path: Path) -> None:
    before = hashes(book.folder)
    again = scan(net, "scenes:24", LAYERS, book.folder, **SETTINGS)
    assert again is not None
    assert hashes(book.folder) == before
    for data, layers in (("scenes:25", LAYERS), ("scenes:24", ["stem"])):
        with pytest.raises(cs.UsageError, match="holds a finished book of another network, data, layers or settings"):
            scan(net, data, layers, book.folder, **SETTINGS)
    assert hashes(book.folder) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with pytest.raises(cs.UsageError, match="is not empty and holds no book"):
        scan(net, "scenes:24", LAYERS, tmp_path / "letters", **SETTINGS)
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"
    for wrong in ({"exemplars": 0}, {"crop": 8}, {"exemplars": True}):
        with pytest.raises(cs.UsageError, match="expected a whole number of at least"):
            scan(net, "scenes:24", LAYERS, tmp_path / "new", **wrong)


def test_what_is_lost_is_made_again(net: cs.Network, book: Book, tmp_path: Path) -> None:
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / ".manifest.json.1.partial").write_text("{")  # what a scan leaves that is killed in its first moment
    scan(net, "scenes:24", LAYERS, folder, **SETTINGS)
    assert hashes(folder) == hashes(book.folder)
    for name in ("strips/01-layer3/00007.webp", "index.sqlite", "numbers/00-stem.safetensors"):
        (folder / name).unlink()
        scan(net, "scenes:24", LAYERS, folder, **SETTINGS)
        assert hashes(folder) == hashes(book.folder)


def test_one_channel_layers_without_places_and_no_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [torch.nn.Conv2d(1, 4, 5, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)]
    own = cs.Network(torch.nn.Sequential(*parts).eval(), size=16)
    pictures = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = scan(own, pictures, ["0", "3"], tmp_path / "book", exemplars=9, crop=16)
    assert made is not None
    assert [e.grid for e in made.layers] == [(6, 6), (1, 1)]
    unit = made.unit("3:2")
    assert [len(unit.exemplars[s]) for s in ("top", "bottom", "random")] == [7, 7, 7]
    assert {e.box for e in unit.exemplars["top"]} == {(0, 0, 16, 16)}
    assert "label" not in unit.values
    assert "class" not in unit.values
    assert "no dense labels" in made.report()
    assert unit.to_html()


def test_pictures_that_cannot_be_read_are_named(net: cs.Network, tmp_path: Path) -> None:
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    made = scan(net, [tmp_path / f"{k}.png" for k in range(4)], "layer1", tmp_path / "book", exemplars=4, crop=16)
    assert made is not None
    assert [f["image"] for f in made.manifest["failed"]] == [2]
    shown = {e.image for several in made.unit("layer1:0").exemplars.values() for e in several}
    assert shown == {0, 1, 3}
    assert "1 unreadable" in made.report()
    assert made.image_name(3).endswith("3.png")


def test_one_picture_is_enough(net: cs.Network, tmp_path: Path) -> None:
    made = scan(net, torch.rand(1, 3, 96, 96), ["input", "layer4", "head"], tmp_path / "book", exemplars=2, crop=16)
    assert made is not None
    assert [e.units for e in made.layers] == [3, 96, 10]
    assert made.layers[0].field == (1, 1)
    assert len(made.unit("head:3").exemplars["top"]) == 1
    assert made.report()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_scans_of_one_folder_at_once_write_one_book(net: cs.Network, book: Book, tmp_path: Path) -> None:
    children = [_start(net, tmp_path / "book") for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert hashes(tmp_path / "book") == hashes(book.folder)


# ---- commands


@pytest.fixture
def folder(book: Book, tmp_path: Path) -> Path:
    os.symlink(book.folder, tmp_path / "book")
    return tmp_path / "book"


def keys(document: Any) -> set[str]:
    return set(document)


def test_scan_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    words = ("--layers", "stem", "--exemplars", 2, "--crop", 16, "--out", "b")
    result = cli("scan", "scenes", "scenes:6", *words, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert keys(document) == {"schema", "book", "shard", "complete", "network", "data", "layers", "columns"}
    assert document["layers"] == [{"address": "stem", "units": 16}]
    assert {"iou", "p_value", "label", "class_selectivity", "color_index", "nearest_unit", "dead"} <= set(document["columns"])
    again = cli("scan", "scenes", "scenes:6", *words)
    assert again.out.startswith("Book(scenes: 16 units of 1 layers over 6 images of scenes:6)")


def test_units_from_the_command_line(cli: Cli, folder: Path, book: Book) -> None:
    where = ("--where", "layer=layer3", "--where", "class-selectivity>0.2")
    document = json.loads(cli("units", folder, *where, "--sort", "class-selectivity", "--json").out)
    assert keys(document) == {"schema", "book", "units"}
    rows = [r for r in book.units() if r["layer"] == "layer3" and (r["class_selectivity"] or 0) > 0.2]
    rows.sort(key=lambda r: -r["class_selectivity"])
    assert [u["name"] for u in document["units"]] == [f"{r['layer']}:{r['unit']}" for r in rows]
    assert len(rows) > 3
    table = cli("units", folder, *where, "--sort", "maximum", "--limit", 3)
    assert len(table.out.splitlines()) == 4
    listed = json.loads(cli("units", folder, "--columns", "--json").out)
    assert {"layer", "unit", "iou"} <= {c["name"] for c in listed["columns"]}
    assert all(c["help"] for c in listed["columns"])
    assert "the first 20 of 80" in cli("units", folder).out


def test_a_unit_from_the_command_line(cli: Cli, folder: Path, tmp_path: Path) -> None:
    document = json.loads(cli("unit", folder, "layer3:10", "--json").out)
    expected = {
        "schema", "book", "name", "layer", "unit", "values", "labels", "classes", "histogram", "exemplars", "strip", "wrote",
    }  # fmt: skip
    assert keys(document) == expected
    assert document["wrote"] == []
    assert (folder / document["strip"]).is_file()
    assert keys(document["exemplars"]) == {"top", "quantile", "random", "bottom"}
    assert keys(document["exemplars"]["top"][0]) == {
        "sort", "rank", "value", "image", "row", "column", "box", "peak", "image_name",
    }  # fmt: skip
    told = cli("unit", folder, "layer3:10")
    assert all(word in told.out for word in ("layer3:10", "class-selectivity", "top", "IoU"))
    for name in ("u.html", "u.png"):
        assert cli("unit", folder, "layer3:10", "--out", name).code == 0
    page = (tmp_path / "u.html").read_text()
    assert page.count("data:image/webp") == 12
    assert "http" not in page.replace("http-equiv", "")


def test_a_report_from_the_command_line(cli: Cli, folder: Path, tmp_path: Path) -> None:
    document = json.loads(cli("report", folder, "--out", "r.html", "--json").out)
    assert keys(document) == {"schema", "book", "layers", "wrote"}
    for layer in document["layers"]:
        found = [r for r in open_book(folder).units({"layer": layer["address"]}) if r["detector"]]
        assert sum(layer["detectors"].values()) == len(found)
    page = (tmp_path / "r.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert all(word in page for word in ("Layer by layer", "stem", "layer3", "Color-selective", "Dead"))
    assert cli("report", folder, "--site", "site").code == 0
    site = hashes(tmp_path / "site")
    assert len(site) == 81
    links = (tmp_path / "site" / "index.html").read_text()
    assert 'href="units/layer3-' in links


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("unit", "none", "layer3:1"), 2, "there is no book at 'none'"),
        (("units", "."), 2, "is no book: it has no manifest.json"),
        (("unit", "book", "layer3:64"), 2, "layer3 has units 0 to 63; got 64"),
        (("unit", "book", "layer2:1"), 2, "no layer 'layer2'; did you mean 'layer3'"),
        (("units", "book", "--sort", "selectivity"), 2, "no column 'selectivity'; did you mean"),
        (("units", "book", "--where", "lable=dog"), 2, "no column 'lable'; did you mean 'label'"),
        (("units", "book", "--where", "iou>much"), 2, "iou is a number; 'much' is none"),
        (("unit", "book", "layer3:1", "--out", "u.gif"), 2, "saved as .html or .png; got 'u.gif'"),
        (("unit", "book", "layer3:1", "--out", "no/u.png"), 2, "there is no folder 'no'"),
        (("report", "book", "--out", "no/r.html"), 2, "there is no folder 'no'"),
        (("scan", "scenes", "scenes:6", "--layers", "layer9", "--out", "b"), 2, "layer 'layer9' does not exist"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line(
    cli: Cli, folder: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (code, "")
    assert reason in result.err
    assert len(result.err.splitlines()) == 1
