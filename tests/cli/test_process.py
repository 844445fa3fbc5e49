"""What only a real process shows: the time of `--help`, Ctrl-C, pipes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoscope.files import replaced

CLI = [sys.executable, "-m", "convoscope"]


def test_help_is_fast_and_imports_no_torch() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*CLI, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "explain" in done.stdout
    assert min(seconds) < 0.5
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "convoscope", "explain", "--help"],
        capture_output=True,
        text=True,
    )
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in listed.stderr.splitlines()}
    assert not modules & {"torch", "numpy", "PIL", "torchvision"}


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
    time.sleep(0.5)
    process.send_signal(number)
    told = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert time.perf_counter() - told < 5  # 2 on a machine that has nothing else to do
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
