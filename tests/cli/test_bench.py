"""`convoscope bench`: tables, files, JSON and wrong usage, with few methods."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from convoscope.evaluation.bench import tasks

Cli = Callable[..., Any]
FEW = ("--methods", "gradient,cam,occlusion:window=48,stride=48", "--tasks", "parts:pictures=3,zero-influence:pictures=2")
NAMES = ["gradient", "cam", "occlusion:window=48,stride=48", "oracle", "edges", "random"]


def test_methods_are_ranked_and_written(cli: Cli, tmp_path: Path) -> None:
    found = cli("bench", *FEW, "-o", "r.html", "-o", "r.json", "-o", "r.csv", "-o", "r.png")
    assert found.code == 0, found.err
    assert "Skill: 0 is what random maps reach" in found.out
    assert "cam has no score on zero-influence: CAM needs" in found.err
    document = json.loads((tmp_path / "r.json").read_text())
    assert [t["name"] for t in document["tasks"]] == ["parts", "zero-influence"]
    assert list(document["scores"]["parts"]) == NAMES
    assert document["scores"]["zero-influence"]["cam"] == [None, None]
    assert document["scores"]["zero-influence"]["oracle"] == [1.0, 1.0]
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [(r["task"], r["method"]) for r in rows] == [(t, n) for t in ("parts", "zero-influence") for n in NAMES]
    page = (tmp_path / "r.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('<th scope="row">Gradient</th>') == 1
    assert "<strong>cam</strong> on <em>Zero influence</em>: CAM needs" in page
    assert Image.open(tmp_path / "r.png").width > 800


def test_json_is_one_document(cli: Cli) -> None:
    found = cli("bench", "--methods", "gradient", "--tasks", "zero-influence:pictures=2", "--json")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["schema"] == "convoscope.bench/1"
    assert document["quick"] is True
    assert [r["method"] for r in document["ranking"]][-1] != "oracle"
    assert document["ranking"][0]["skill"] == 1.0


def test_a_store_goes_on(cli: Cli, tmp_path: Path) -> None:
    asked = ("bench", "--methods", "gradient", "--tasks", "zero-influence:pictures=2", "--store", "kept", "--json")
    documents = [json.loads(cli(*asked).out) for _ in range(2)]
    assert len(list((tmp_path / "kept").iterdir())) == 1
    for document in documents:
        document.pop("seconds")
    assert documents[0]["rows"][0].items() >= {"method": "gradient", "mean": 1.0}.items()
    assert documents[0]["rows"][0] == documents[1]["rows"][0], "seconds too: they are those of the first"


def test_wrong_usage_is_one_line(cli: Cli, tmp_path: Path) -> None:
    for arguments, words in (
        (("--tasks", "part"), "did you mean"),
        (("--methods", "gradiant"), "did you mean"),
        (("-o", "r.pdf"), "saved as .html, .png, .csv or .json"),
        (("--methods", "gradient,gradient"), "two methods are called 'gradient'"),
    ):
        found = cli("bench", *arguments)
        assert found.code == 2, (arguments, found.err)
        assert words in found.err
        assert len(found.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_every_task_is_listed_with_why_it_is_exact(cli: Cli) -> None:
    found = cli("bench", "--list")
    assert found.code == 0, found.err
    document = json.loads(cli("bench", "--list", "--json").out)
    assert [t["name"] for t in document["tasks"]] == list(tasks())
    for task in document["tasks"]:
        assert task["name"] in found.out
        assert all(task[k] for k in ("title", "exact", "measures", "about")), task["name"]
