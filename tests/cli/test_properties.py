"""`convoscope properties`: a table, files, JSON and wrong usage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convoscope.evaluation.properties_result import PROPERTIES

Cli = Callable[..., Any]


def test_marked_pictures_of_a_misled_network(cli: Cli, tmp_path: Path) -> None:
    arguments = ("properties", "scenes-watermark", "scenes:9", "--limit", "2", "--mark", "--methods", "grad-cam")
    found = cli(*arguments, "--json", "-o", "p.csv", "-o", "p.html")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["schema"] == "convoscope.properties/1"
    rows = {(r["method"], r["property"]): r for r in document["rows"]}
    assert set(rows) == {(m, p) for m in ("grad-cam", "random", "edges") for p in PROPERTIES}
    assert rows["grad-cam", "reward"]["items"] == 1  # the first one is a fish, the second is taken for one
    assert rows["grad-cam", "universality"]["items"] > 20
    assert document["missing"] == {}
    assert (tmp_path / "p.html").read_text().count("<tr>") == 16
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 16


def test_wrong_usage_is_one_line(cli: Cli) -> None:
    for arguments, words in (
        (("scenes", "scenes:2", "-o", "p.pdf"), "p.pdf"),
        (("scenes", "scenes:2", "--methods", "grad-camm"), "did you mean"),
        (("scenes", "nowhere"), "no folder"),
    ):
        found = cli("properties", *arguments)
        assert found.code == 2
        assert words in found.err
        assert len(found.err.strip().splitlines()) == 1
