"""`convoscope dream`: its words, its files, Ctrl-C and going on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoscope.cli.synthesis import Making


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(values).resize((90, 70), Image.Resampling.BICUBIC).save(tmp_path / "in.png")
    return tmp_path / "in.png"


QUICK = ("--target", "layer2", "--octaves", 2, "--steps", 3, "--jitter", 4)


def test_a_picture_a_page_and_values(cli: Callable, picture: Path, tmp_path: Path) -> None:
    files = ("a.png", "a.jpg", "a.html", "a.safetensors")
    outs = [word for f in files for word in ("--out", f)]
    done = cli("dream", "scenes", picture, *QUICK, *outs, "--strip", "s.png", "--preview", "p.png")
    assert done.code == 0, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*files, "s.png", "p.png", "in.png"])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (90, 70)
        assert json.loads(image.info["convoscope"])["settings"]["steps"] == 3
    assert "octaves: 2" in (tmp_path / "a.html").read_text()


def test_json_is_one_document_and_nothing_is_written(cli: Callable, picture: Path, tmp_path: Path) -> None:
    done = cli("dream", "scenes", picture, *QUICK, "--guide", picture, "--json", "--seed", 5)
    found = json.loads(done.out)
    assert found["schema"] == "convoscope.dream/1"
    assert (found["size"], found["settings"]["seed"], found["files"]) == ([70, 90], 5, [])
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(
    cli: Callable, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, seen = Making.told, []

    def stop(self: Making, done: int, total: int) -> None:
        told(self, done, total)
        seen.append(done)
        if done == 4 and len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Making, "told", stop)
    words = ("dream", "scenes", picture, *QUICK, "--out", "a.png")
    first = cli(*words)
    assert first.code == 130
    assert "stopped at 66 %; the same command goes on from there" in first.err
    assert not (tmp_path / "a.png").exists()
    assert cli(*words).code == 0
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "a.state").exists()
    assert cli(*words[:-1], "b.png").code == 0
    assert (np.asarray(Image.open(tmp_path / "a.png")) == np.asarray(Image.open(tmp_path / "b.png"))).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.png"], "no file"),
        (["in.png", "--target", "layer9"], "layer"),
        (["in.png", "--scale", "0.5"], "scale is above 1"),
        (["in.png", "--out", "a.gif"], "expected a file that ends in"),
        (["in.png", "--target", "tree", "--guide", "in.png"], "a guide needs the layer"),
    ],
)
def test_wrong_words_are_one_line(cli: Callable, picture: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = cli("dream", "scenes", *words, "--steps", 1)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["in.png"]
