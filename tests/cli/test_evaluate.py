"""`convoscope evaluate` and `convoscope metrics`: tables, files, JSON and wrong usage."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from convoscope.evaluation import metrics

Cli = Callable[..., Any]
FEW = ("--methods", "gradient,grad-cam", "--metrics", "deletion:steps=6,gini,energy-pointing")


def test_methods_are_judged_on_pictures_of_which_the_evidence_is_known(cli: Cli, tmp_path: Path) -> None:
    found = cli("evaluate", "scenes", "scenes:3", *FEW, "--concept", "car", "-o", "r.html", "-o", "r.json", "-o", "r.csv",
                "-o", "r.png")  # fmt: skip
    assert found.code == 0, found.err
    assert "Deletion (probability, lower is better)" in found.out
    for name in ("gradient", "grad-cam", "random", "edges"):
        assert found.out.count(name) >= 3
    document = json.loads((tmp_path / "r.json").read_text())
    assert len(document["scores"]) == 3
    assert [len(row) for row in document["scores"][0]] == [3] * 4
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert {(r["metric"], r["method"]) for r in rows} == {
        (m, n) for m in ("deletion", "gini", "energy-pointing") for n in ("gradient", "grad-cam", "random", "edges")
    }
    page = (tmp_path / "r.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<tr") == (1 + 4) + 3 * (1 + 4 + 1) + (1 + 12)  # at a glance, by metric, all numbers
    assert "not told apart" in found.err
    assert document["groups"].keys() == {"deletion", "gini", "energy-pointing"}
    assert {(c["a"], c["b"]) for c in document["comparisons"]} == {("gradient", "grad-cam")}
    assert Image.open(tmp_path / "r.png").width > 800


def test_json_is_one_document(cli: Cli) -> None:
    found = cli("evaluate", "scenes", "scenes:2", "--methods", "gradient", "--metrics", "gini", "--json")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["schema"] == "convoscope.evaluate/1"
    assert document["files"] == []
    assert {r["unit"] for r in document["rows"]} == {"Gini index"}


def test_wrong_usage_is_one_line(cli: Cli, tmp_path: Path, tmp_path_factory: Any) -> None:
    empty, data = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("data")
    Image.new("RGB", (96, 96)).save(data / "a.png")
    for arguments, words in (
        (("scenes:2", "--metrics", "deletoin"), "did you mean"),
        (("scenes:2", "--metrics", "energy-pointing"), "say of what: --concept NAME (here "),
        ((str(empty), "--methods", "gradient"), "no pictures"),
        ((str(data), "--metrics", "top-k"), "top-k compares maps with masks of the evidence, and"),
        (("scenes:2", "--concept", "carr"), "no concept 'carr'"),
        (("scenes:2", "-o", "r.pdf"), "saved as .html, .png, .csv or .json"),
        (("scenes:2", "--methods", "gradiant"), "did you mean"),
    ):
        found = cli("evaluate", "scenes", *arguments)
        assert found.code == 2, (arguments, found.err)
        assert words in found.err
        assert found.err.count("\n") == 1, found.err
    assert not list(tmp_path.iterdir())


def test_every_metric_is_listed_with_what_it_asks(cli: Cli) -> None:
    found = cli("metrics", "--json")
    document = json.loads(found.out)
    assert [m["name"] for m in document["metrics"]] == list(metrics())
    for m in document["metrics"]:
        assert m["use"], m["name"]
        assert m["drawback"], m["name"]
        assert m["direction"] in (1, -1), m["name"]
    table = cli("metrics").out
    assert all(name in table for name in metrics())
    one = cli("metrics", "deletion").out
    assert "steps" in one
    assert "Petsiuk" in one


def test_what_is_done_is_kept_and_found_again_within_the_memory_allowed(cli: Cli, tmp_path: Path) -> None:
    command = ("evaluate", "scenes", "scenes:3", *FEW[:3], "deletion:steps=3,gini", "--store", "kept", "--memory", "300MB")
    first = cli(*command, "-o", "a.json")
    assert first.code == 0, first.err
    assert len(list((tmp_path / "kept").iterdir())) == 2
    again = cli(*command, "-o", "b.json")
    assert again.code == 0, again.err
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a["scores"] == b["scores"]
    refused = cli(*command[:-1], "1kB")
    assert refused.code == 2
    assert "does not suffice for one image of 3 x 96 x 96 with 4 maps; give at least" in refused.err.replace("\n", " ")
