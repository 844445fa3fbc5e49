"""`convoscope dissect`: the table, the files, JSON and wrong usage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from convoscope.units.dissection import Dissection

Cli = Callable[..., Any]


def test_a_run_tells_what_units_detect_and_writes_all_files(cli: Cli, tmp_path: Path) -> None:
    found = cli("dissect", "scenes", "scenes:24", "--layers", "layer4", "--layers", "stem", "--draws", 19, "-o", "r.html",
                "-o", "r.json", "-o", "r.png")  # fmt: skip
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == "scenes on 24 images of scenes:24"
    assert lines[2].split()[:6] == ["layer", "units", "detectors", "if", "shifted", "unique"]
    assert lines[2].split()[6:] == ["object", "part", "scene", "material", "texture", "color"]
    assert lines[3].split()[:2] == ["layer4", "96"]
    assert "r.html (" in found.out
    d = Dissection.load(tmp_path / "r.json")
    assert list(d.layers) == ["layer4", "stem"]
    page = (tmp_path / "r.html").read_text()
    best = max(d["layer4"].units, key=lambda u: u.iou)
    assert f"layer4:{best.unit} {best.label}" in page
    assert page.count("<img") > 20
    assert "http" not in page.replace("http-equiv", "")
    assert Image.open(tmp_path / "r.png").width > 500


def test_json_is_the_dissection_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    found = cli("dissect", "scenes", "scenes:12", "--json", "--draws", 0, "--rule", "per-category")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["schema"] == "convoscope.dissection/1"
    assert [la["address"] for la in document["layers"]] == ["layer4"]
    assert not (tmp_path / "convoscope-dissection.html").exists()
    (tmp_path / "before.json").write_text(found.out)
    compared = cli("dissect", "scenes", "scenes:12", "--draws", 0, "--compare", "before.json", "-o", "now.json")
    assert compared.code == 0, compared.err
    rows = [line.split()[:2] for line in compared.out.splitlines() if line.startswith("layer4 ")]
    assert ["layer4", "before"] in rows
    assert ["layer4", "now"] in rows


def test_wrong_usage_is_one_line(cli: Cli, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for words, line in (
        (("scenes", str(tmp_path)), "has no dense labels"),
        (("scenes", "scenes:4", "--layers", "layer9"), "layer 'layer9' does not exist"),
        (("scenes", "scenes:4", "--fraction", "2"), "a fraction between 0 and 1"),
        (("scenes", "scenes:4", "-o", "nowhere/r.html"), "there is no folder"),
        (("scenes", "scenes:4", "-o", "r.txt"), "saved as .json, .html or .png"),
        (("scenes", "scenes:4", "--compare", "none.json"), "is no dissection"),
    ):
        found = cli("dissect", *words)
        assert found.code in (1, 2)
        assert found.out == ""
        assert line in found.err
        assert len(found.err.strip().splitlines()) == 1
