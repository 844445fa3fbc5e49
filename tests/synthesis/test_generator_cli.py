"""`convoscope generator`: trained, interrupted, sampled; wrong usage in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convoscope.cli.generator_strip import Strip
from convoscope.cli.run import run
from convoscope.images.generator import Upconvolution, load_generator

SMALL = ["--steps", "2", "--batch-size", "4", "--width", "2"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(6):
        Image.fromarray(np.full((16, 16, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


def test_a_gan_is_trained_and_sampled(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = pictures.parent / "g.safetensors", pictures.parent / "sheet.png"
    words = ["generator", "train", str(pictures), "--kind", "dcgan", "--size", "16", "--code", "3", "--half", "--json"]
    assert run([*words, *SMALL, "-o", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["code"] == [3, 1, 1]
    assert told["made"]["steps"] == 2
    assert not out.with_suffix(".state").exists()
    assert load_generator(out).hash == told["hash"]
    assert run(["generator", "sample", "-g", str(out), "--count", "4", "-o", str(sheet)]) == 0
    assert Image.open(sheet).size == (34, 34)


def test_the_inverse_of_a_layer_is_trained(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pictures.parent / "g.safetensors"
    words = ["generator", "train", str(pictures), "--model", "scenes", "--layer", "layer3", "-o", str(out)]
    assert run([*words, *SMALL]) == 0
    made = load_generator(out)
    assert isinstance(made.module, Upconvolution)
    assert (made.code, made.prior) == ((64, 12, 12), "features")
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kind", "dgn-am"], "--layer"),
        (["--kind", "gan", "--layer", "layer4"], "for dgn-am"),
        (["--kind", "gan", "-o", "g.png"], ".safetensors"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    pictures: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(["generator", "train", str(pictures), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_strip_shows_how_it_learned(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, way = pictures.parent / "g.safetensors", pictures.parent / "way.png"
    words = ["generator", "train", str(pictures), "--kind", "gan", "--size", "8", "--code", "3", "--width", "2"]
    assert run([*words, "--batch-size", "4", "--steps", "100", "-o", str(out), "--strip", str(way)]) == 0
    assert Image.open(way).width > 300
    assert not out.with_suffix(".steps").exists()
    assert run([*words, "-o", str(out), "--strip", "way.jpg"]) == 2


def test_a_strip_goes_on_and_stays_short(tmp_path: Path) -> None:
    def shown(step: int) -> torch.Tensor:
        return torch.full((2, 3, 4, 4), step / 1000)

    first = Strip(tmp_path / "way.png", tmp_path / "g.steps", resumed=False)
    for step in range(50, 1000, 50):
        first(step, shown(step))
    assert len(first.frames) <= 16
    assert 50 in first.frames
    again = Strip(tmp_path / "way.png", tmp_path / "g.steps", resumed=True)
    again(900, shown(900))  # a run that had lost what came after step 850
    assert max(again.frames) == 900
    assert int(again.frames[50].amax()) == round(0.05 * 255)
    assert Strip(tmp_path / "way.png", tmp_path / "g.steps", resumed=False).frames == {}
