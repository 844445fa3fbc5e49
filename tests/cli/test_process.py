"""What only a real process shows: what `--help` imports, Ctrl-C, pipes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convoscope.files import replaced

CLI = [sys.executable, "-m", "convoscope"]


@pytest.mark.parametrize("words", [["--help"], ["explain", "--help"]])
def test_help_imports_nothing_that_takes_long(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *CLI[1:], *words], capture_output=True, text=True, check=True)
    assert "explain" in done.stdout
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in modules
    assert not modules & {"torch", "numpy", "PIL", "torchvision", "safetensors", "jaxtyping", "jinja2", "skimage"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_nothing(number: signal.Signals, code: int, picture: Path, tmp_path: Path) -> None:
    words = ["explain", str(picture), "-m", "scenes", "--method", "integrated-gradients:steps=10000000"]
    process = subprocess.Popen(
        [*CLI, *words, "--out", "r.html"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the predictions: the work has begun
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == "stopped"
    assert [p.name for p in tmp_path.iterdir()] == [picture.name]


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m convoscope methods --json | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "r.html"
    path.write_text("before")

    def write_half() -> None:
        with replaced(path) as partial:
            partial.write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with replaced(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
