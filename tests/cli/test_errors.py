"""Every mistake gets one clear line on stderr, its exit code, and never a traceback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import convoscope as cs
from convoscope.files import replaced

Cli = Callable[..., Any]


def failed(result: Any, code: int, *words: str) -> None:
    assert result.code == code, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


def test_missing_picture(cli: Cli) -> None:
    failed(cli("explain", "nowhere.jpg", "-m", "scenes"), 2, "nowhere.jpg")


def test_text_that_calls_itself_a_picture(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("this is no picture")
    failed(cli("explain", "a.jpg", "-m", "scenes"), 1, "a.jpg")


def test_truncated_png(cli: Cli, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:400])
    failed(cli("explain", "cut.png", "-m", "scenes"), 1, "cut.png")


def test_one_pixel(cli: Cli, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    failed(cli("explain", "dot.png", "-m", "scenes"), 1, "dot.png")


def test_a_folder_instead_of_a_picture(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = cli("explain", "folder", "-m", "scenes")
    failed(result, result.code, "folder")
    assert result.code in (1, 2)


def test_no_picture_but_settings(cli: Cli) -> None:
    failed(cli("explain", "--steps", "3", "-m", "scenes"), 2, "no picture")


@pytest.mark.parametrize(
    ("model", "word"),
    [("torchvision:resnet19", "resnet18"), ("scene", "scenes"), ("x.safetensors", "x.safetensors")],
)
def test_unknown_model(cli: Cli, picture: Path, model: str, word: str) -> None:
    failed(cli("explain", picture, "-m", model), 2, word)


def test_unknown_layer(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--method", "grad-cam:layer=nowhere"), 2, "nowhere")


def test_unknown_address(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--method", "gradient", "--at", "nowhere"), 2, "nowhere")


def test_unknown_class(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--target", "unicorn"), 2, "unicorn")


def test_class_number_out_of_range(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--target", "9999"), 2, "9999")


def test_unknown_method(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--method", "grad-kam"), 2, "grad-cam")


def test_unknown_setting_of_a_method(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--method", "integrated-gradients:stepz=3"), 2, "steps")


def test_setting_of_the_wrong_type(cli: Cli, picture: Path) -> None:
    failed(
        cli("explain", picture, "-m", "scenes", "--method", "integrated-gradients:steps=many"),
        2,
        "whole number",
    )


def test_unknown_option(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--stepz", "3"), 2, "--stepz", "--steps")


def test_setting_that_no_chosen_method_has(cli: Cli, picture: Path) -> None:
    result = cli("explain", picture, "-m", "scenes", "--method", "gradient", "--steps", "3")
    failed(result, 2, "steps", "integrated-gradients")


def test_setting_without_a_value(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--steps"), 2, "--steps", "value")


def test_out_in_a_folder_that_is_not_there(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--out", "no/where/r.html"), 2, "no/where")


def test_out_is_a_folder(cli: Cli, picture: Path, tmp_path: Path) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--out", tmp_path), 2, "folder")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
def test_what_is_no_file_is_not_put_in_its_place(cli: Cli, picture: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.html")
    failed(cli("explain", picture, "-m", "scenes", "--method", "gradient", "--out", "pipe.html"), 2, "pipe.html", "a pipe")
    with pytest.raises(cs.ConvoscopeError, match="no file"), replaced(tmp_path / "pipe.html") as partial:
        partial.write_text("a page")
    assert (tmp_path / "pipe.html").is_fifo()


def test_png_is_a_file(cli: Cli, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    failed(cli("explain", picture, "-m", "scenes", "--method", "gradient", "--png", "taken"), 1, "taken")


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "-m", "scenes", "--method", "gradient", "--out"),
        ("compare-methods", "-m", "scenes", "--method", "gradient", "--png"),
        ("dream", "scenes", "--steps", 1, "-o"),
        ("invert", "scenes", "--steps", 1, "--preview"),
    ],
)
def test_a_picture_that_is_read_is_never_written_over(cli: Cli, picture: Path, words: tuple[object, ...]) -> None:
    before = picture.read_bytes()
    again = Path("..", picture.parent.name, picture.name)
    failed(cli(words[0], picture, *words[1:], again), 2, picture.name, "overwritten")
    failed(cli(words[0], picture, *words[1:-1], f"{words[-1]}={again}"), 2, picture.name, "overwritten")
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [(("explain", "--out", "a.pdf"), "a page, .html"), (("compare-methods", "--png", "a.html"), "a picture, .png")],
)
def test_files_of_another_kind(cli: Cli, picture: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    failed(cli(words[0], picture, "-m", "scenes", "--method", "gradient", *words[1:]), 2, words[-1], said)
    assert not (tmp_path / words[-1]).exists()


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_bad_device(cli: Cli, picture: Path, device: str) -> None:
    failed(cli("explain", picture, "-m", "scenes", "--device", device), 2, device, "cpu")


def test_missing_model(cli: Cli, picture: Path) -> None:
    failed(cli("explain", picture), 2, "--model")


def test_unknown_command(cli: Cli) -> None:
    failed(cli("explian"), 2, "explain")


def test_unknown_method_to_list(cli: Cli) -> None:
    failed(cli("methods", "lrq"), 2, "lrp")


def test_unexpected_errors_are_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something\nodd")

    monkeypatch.setattr("convoscope.cli.lists._as_dict", broken)
    failed(cli("methods", "--json"), 1, "RuntimeError: something odd", "--debug")
    shown = cli("--debug", "methods", "--json")
    assert shown.code == 1
    assert "Traceback" in shown.err
