"""`convoscope scenes` and `convoscope train scenes`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from convoscope.cli.scenes import scenes, train
from convoscope.core.errors import UsageError

app = typer.Typer()
app.command("scenes")(scenes)
app.command("train")(train)


def call(*words: object) -> None:
    app(args=[str(w) for w in words], standalone_mode=False)


def test_scenes_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    call("scenes", "--out", out, "--count", 5, "--size", 64, "--seed", 4, "--random-labels", "--json")
    assert json.loads(capsys.readouterr().out)["count"] == 5
    assert len(list(out.glob("pictures/*/*.png"))) == 5
    settings = json.loads((out / "settings.json").read_text())
    assert settings["faults"]["random_labels"] is True
    with pytest.raises(UsageError, match="holds something already"):
        call("scenes", "--out", out)


def test_train_writes_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "n.safetensors"
    call("train", "scenes", "--out", out, "--count", 64, "--epochs", 1, "--held-out", 20, "--threads", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(out)
    assert out.stat().st_size < 1_000_000
    with pytest.raises(UsageError, match="did you mean 'scenes'"):
        call("train", "scene")


def test_the_commands_import_no_torch_and_no_numpy() -> None:
    code = "import sys, convoscope.cli.scenes; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
