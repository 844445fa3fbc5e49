"""`convoscope invert`: its words, its files, Ctrl-C and going on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from convoscope.cli.synthesis import Making


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(values).resize((90, 70), Image.Resampling.BICUBIC).save(tmp_path / "in.png")
    return tmp_path / "in.png"


QUICK = ("--layers", "layer1,layer2", "--layer", "log-probabilities", "--size", 32, "--steps", 4)


def test_a_picture_a_page_and_values(cli: Callable, picture: Path, tmp_path: Path) -> None:
    files = ("a.png", "a.html", "a.safetensors")
    outs = [word for f in files for word in ("--out", f)]
    done = cli("invert", "scenes", picture, picture, *QUICK, *outs, "--strip", "s.png", "--preview", "p.png")
    assert done.code == 0, done.err
    assert done.out.count("in.png") == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*files, "s.png", "p.png", "in.png"])
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.get_tensor("pixels").shape == (3, 2, 3, 32, 32)
        told = json.loads(file.metadata()["convoscope"])
    assert [entry["layer"] for entry in told["layers"]] == ["layer1", "layer2", "log-probabilities"]
    assert told["settings"]["steps"] == 4
    assert "steps: 4" in (tmp_path / "a.html").read_text()


def test_json_is_one_document_and_nothing_is_written(cli: Callable, picture: Path, tmp_path: Path) -> None:
    found = json.loads(cli("invert", "scenes", picture, *QUICK, "--json", "--seed", 5).out)
    assert found["schema"] == "convoscope.invert/1"
    assert (found["pictures"], found["settings"]["seed"], found["files"]) == (1, 5, [])
    assert all(len(entry["errors"]) == 1 for entry in found["layers"])
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(
    cli: Callable, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, seen = Making.told, []

    def stop(self: Making, done: int, total: int) -> None:
        told(self, done, total)
        seen.append(done)
        if len(seen) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Making, "told", stop)
    words = ("invert", "scenes", picture, *QUICK, "--out", "a.png")
    first = cli(*words)
    assert first.code == 130
    assert "stopped at 50 %; the same command goes on from there" in first.err
    assert cli(*words).code == 0
    assert seen == list(range(1, 13))
    assert not (tmp_path / "a.state").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.png", "--layer", "layer1"], "no file"),
        (["in.png"], "layer"),
        (["in.png", "--layer", "layer9"], "layer9"),
        (["in.png", "--layer", "layer1", "--by", "generator"], "needs --generator"),
        (["in.png", "--layer", "layer1", "--by", "mahendran-vedaldi", "--steps", "5"], "of the paper"),
        (["in.png", "--layer", "layer1", "--out", "a.gif"], "expected a file that ends in"),
    ],
)
def test_wrong_words_are_one_line(cli: Callable, picture: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = cli("invert", "scenes", *words)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["in.png"]
