"""Folders of pictures: an index, and a run that was stopped goes on where it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.cli import folders

Cli = Callable[..., Any]
WORDS = ("-m", "scenes", "--method", "gradient,smooth-grad", "--samples", "2", "--png", "maps")
WORDS += ("--target", "top", "--target", "fish")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures in two folders, and other things."""
    (tmp_path / "album" / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.JPG", "sub/a.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "album" / name)
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    (tmp_path / "album" / ".hidden.png").write_text("no picture")
    return tmp_path / "album"


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def maps(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_a_folder_is_explained_with_an_index(cli: Cli, album: Path, tmp_path: Path) -> None:
    result = cli("explain", album, *WORDS)
    assert result.code == 0, result.err
    assert "12 maps of 3 pictures in maps" in result.out
    found = entries(tmp_path / "maps")
    assert sorted(e["file"] for e in found) == sorted(maps(tmp_path / "maps"))
    assert len({e["key"] for e in found}) == 12
    assert {e["picture"] for e in found} == {str(album / n) for n in ("a.png", "b.JPG", "sub/a.png")}
    assert {e["method"]["name"] for e in found} == {"gradient", "smooth-grad"}
    assert {e["target"]["index"] for e in found} == {None, cs.load("scenes").categories.index("fish")}
    assert all(e["network_hash"] and e["diagnostics"]["evaluations"] <= 3 for e in found)
    assert not (tmp_path / "convoscope-report.html").exists()


def test_out_names_the_folder_of_maps_too(cli: Cli, album: Path, tmp_path: Path) -> None:
    assert cli("explain", album, *WORDS).code == 0
    words = ["more" if w == "maps" else "--out" if w == "--png" else w for w in WORDS]
    assert cli("explain", album, *words).code == 0
    assert maps(tmp_path / "more") == maps(tmp_path / "maps")


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_stopped(
    cli: Cli, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("explain", album, *WORDS)
    whole = maps(tmp_path / "maps")
    shutil.rmtree(tmp_path / "maps")
    save, saved = folders._save, []

    def stopped(*args: Any) -> None:
        if len(saved) == 5:
            raise KeyboardInterrupt
        save(*args)
        saved.append(args)

    monkeypatch.setattr(folders, "_save", stopped)
    assert cli("explain", album, *WORDS).code == 130
    assert len(entries(tmp_path / "maps")) == len(maps(tmp_path / "maps")) == 5
    with (tmp_path / "maps" / "index.jsonl").open("a") as index:  # killed while writing
        index.write('{"schema": "convoscope.maps/1", "key": "a')
    (tmp_path / "maps" / ".a.png.999999999.partial").write_text("half")
    next((tmp_path / "maps").glob("*.png")).unlink()
    monkeypatch.setattr(folders, "_save", save)
    document = json.loads(cli("explain", album, *WORDS, "--json").out)
    assert (document["made"], document["already_there"], document["pictures"]) == (8, 4, 3)
    assert maps(tmp_path / "maps") == whole
    assert len(entries(tmp_path / "maps")) == 12
    assert not list((tmp_path / "maps").glob(".*"))


def test_nothing_is_done_twice_and_changes_are_seen(cli: Cli, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (album / "b.JPG").unlink()

    def made(*more: str) -> tuple[int, int]:
        words = ("-m", "scenes", "--method", "smooth-grad", "--png", "maps", "--json")
        document = json.loads(cli("explain", album, *words, *(more or ("--samples", "2"))).out)
        return document["made"], document["already_there"]

    assert made() == (2, 0)
    with monkeypatch.context() as patch:
        patch.setattr("convoscope.method.explain", None)
        assert made() == (0, 2)
    Image.new("RGB", (64, 64), "red").save(album / "a.png")
    assert made() == (1, 1)
    assert made("--samples", "2", "--seed", "1") == (2, 0)
    assert made("--samples", "3") == (2, 0)
    assert made("--samples", "2", "--at", "layer1", "--at", "layer2") == (4, 0)
    monkeypatch.setattr("convoscope.__version__", "another")
    assert made() == (2, 0)


def test_pictures_that_cannot_be_read_do_not_stop_the_others(cli: Cli, album: Path, tmp_path: Path) -> None:
    (album / "broken.png").write_text("no picture")
    result = cli("explain", album, "-m", "scenes", "--method", "gradient", "--png", "maps")
    assert result.code == 1
    assert "1 of 4 pictures could not be explained" in result.err
    assert "broken.png" in result.err
    assert len(maps(tmp_path / "maps")) == 3


def test_methods_that_do_not_fit_are_left_out_unless_chosen(album: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    net = cs.Network(nn.Sequential(*layers), size=16)
    for chosen in (False, False, True):  # the second time nothing is left to do but what cannot be done
        found = folders.pictures_in([str(album)], tmp_path / "maps")
        methods = [cs.Gradient(), cs.GuidedBackprop()]
        batch = folders.Batch(net, found, methods, [net.target("top")], chosen, None, 32, 0, tmp_path / "maps")
        if chosen:
            with pytest.raises(cs.UnsupportedError, match=r"(?i)relu"):
                folders.run(batch, as_json=True)
        else:
            folders.run(batch, as_json=True)
            assert [name for name, _ in batch.left_out] == ["guided-backprop"]
            assert len(maps(tmp_path / "maps")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("empty", "-m", "scenes"), "no pictures in folder 'empty'"),
        (("album", "-m", "scenes", "--out", "r.html"), "--out DIR"),
        (("album", "-m", "scenes", "--batch-size", "0"), "'0' is neither 'auto' nor a whole number"),
    ],
)
def test_errors(cli: Cli, album: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    result = cli("explain", *words)
    assert result.code == 2
    assert message in result.err
