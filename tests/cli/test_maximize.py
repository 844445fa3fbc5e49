"""`convoscope maximize`: its words, its files, Ctrl-C and going on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import convoscope as cs
from convoscope.cli.synthesis import Making
from convoscope.targets.text import read_target

CLI = [sys.executable, "-m", "convoscope"]
QUICK = ("--image", "pixels:size=32", "--transform", "none")


def test_a_picture_a_page_and_values(cli: Callable, tmp_path: Path) -> None:
    files = ("a.png", "a.html", "a.safetensors")
    outs = [word for f in files for word in ("--out", f)]
    done = cli("maximize", "scenes", "layer2:3", "tree", *QUICK, "--steps", 3, *outs, "--strip", "s.png", "--preview", "p.png")
    assert done.code == 0, done.err
    assert "layer2:3" in done.out
    assert "tree" in done.out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*files, "s.png", "p.png"])
    assert all(Image.open(tmp_path / f).size[0] >= 32 for f in ("a.png", "s.png", "p.png"))
    assert "steps: 3" in (tmp_path / "a.html").read_text()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.get_tensor("pixels").shape == (2, 3, 32, 32)
        assert json.loads(file.metadata()["convoscope"])["settings"]["steps"] == 3


def test_json_is_one_document_and_nothing_is_written(cli: Callable, tmp_path: Path) -> None:
    done = cli("maximize", "scenes", "layer2:3", *QUICK, "--steps", 2, "--copies", 2, "--json", "--seed", 5)
    found = json.loads(done.out)
    assert found["schema"] == "convoscope.maximize/1"
    assert [p["name"] for p in found["pictures"]] == ["layer2:3"] * 2
    assert (found["settings"]["seed"], found["files"]) == (5, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scenes", "layer9:3"], "layer9"),
        (["scenes", "layer2:3000"], "there are 32"),
        (["scenes", "tre"], "did you mean 'tree'"),
        (["scenes", "layer2:3@99,0"], "counted from 0"),
        (["scenes", "layer2:3", "--image", "pixls"], "pixels"),
        (["scenes", "layer2:3", "--size", "big"], "neither a number of pixels"),
        (["scenes", "layer2:3", "--rate", "fast"], "neither a number"),
        (["scenes", "layer2:3", "--penalty", "nothing-like-it"], "no penalty"),
        (["scenes", "layer2:3", "--out", "a.gif"], "expected a file that ends in .png"),
        (["scenes", "layer2:3", "--preview", "a.html"], "expected a file that ends in .png"),
        (["scenes", "layer2:3", "--out", "nowhere/a.png"], "no folder"),
    ],
)
def test_wrong_words_are_one_line(cli: Callable, tmp_path: Path, words: list[str], said: str) -> None:
    done = cli("maximize", *words, "--steps", 1)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_state_and_the_same_command_goes_on(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["maximize", "scenes", "layer3:5", "layer2:1", *QUICK, "--steps", 20, "--out"]
    told = Making.told

    def stop(self: Making, done: int, total: int) -> None:
        told(self, done, total)
        if done == 27:
            raise KeyboardInterrupt

    monkeypatch.setattr(Making, "told", stop)
    done = cli(*words, "a.safetensors")
    assert done.code == 130
    assert done.err.splitlines() == ["stopped at 67 %; the same command goes on from there (a.state)", "stopped"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli(*words, "a.safetensors").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # the state is gone
    assert cli(*words, "b.safetensors", "--store", "kept").code == 0
    assert len(list((tmp_path / "kept").iterdir())) == 2
    with safe_open(tmp_path / "a.safetensors", "pt") as a, safe_open(tmp_path / "b.safetensors", "pt") as b:
        assert torch.equal(a.get_tensor("pixels"), b.get_tensor("pixels"))
        assert json.loads(a.metadata()["convoscope"])["diagnostics"]["continued from step"] == 7


def test_ctrl_c_reaches_a_process(tmp_path: Path) -> None:
    words = ["maximize", "scenes", "layer3:5", *QUICK, "--steps", "1000000", "--preview", "p.png", "--out", "a.png"]
    process = subprocess.Popen([*CLI, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline, seen = time.monotonic() + 120, set()
    while len(seen) < 2:  # a second preview is there only after many steps
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
        seen |= {p.stat().st_mtime_ns for p in tmp_path.glob("p.png")}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == ["stopped at 0 %; the same command goes on from there (a.state)", "stopped"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.state", "p.png"]
    assert len(list((tmp_path / "a.state").iterdir())) == 1


LAYERS = {"layer4", "layer3.0", "head"}
NAMES = ("tabby, tabby cat", "German short-haired pointer", "layer4")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("layer4:42", cs.Channel("layer4", 42)),
        ("layer4:42@max", cs.Channel("layer4", 42, over="max")),
        ("layer3.0:1@3,5", cs.Neuron("layer3.0", 1, 3, 5)),
        ("layer3.0:1@center", cs.Neuron("layer3.0", 1)),
        ("layer3.0", cs.Layer("layer3.0")),
        ("tabby", cs.Logit(0)),
        ("class:2", cs.Logit(2)),
        ("1", cs.Logit(1)),
        ("class:layer4", cs.Logit(2)),
        ("probability:tabby", cs.Probability(0)),
        ("margin:index=tabby,other=1", cs.Margin(0, 1)),
        ("German short-haired pointer", cs.Logit(1)),
        ("-layer4:1", -1 * cs.Channel("layer4", 1)),
        ("layer4:1 - 0.5*tabby", cs.Channel("layer4", 1) - 0.5 * cs.Logit(0)),
        ("layer4:1*2 + tabby - German short-haired pointer", 2 * cs.Channel("layer4", 1) + cs.Logit(0) - cs.Logit(1)),
    ],
)
def test_targets_in_words(text: str, target: cs.Target) -> None:
    assert read_target(text, NAMES, LAYERS) == target


@pytest.mark.parametrize("text", ["", "layer5", "tabbi", "tabby - ", "class:3x", "probability:nobody"])
def test_words_that_name_nothing(text: str) -> None:
    with pytest.raises(cs.UsageError):
        read_target(text, NAMES, LAYERS)
