"""Commands on a file system that is full, out of inodes, or read-only: one line, and nothing half done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("full_disk.py")


@pytest.fixture
def unshare(tmp_path: Path) -> list[str]:
    """A command that runs another one where it may mount file systems, which nobody else sees and which end with it."""
    folder = tmp_path / "try"
    folder.mkdir()
    said = "there is no unshare"
    for words in (["unshare", "-rm"], ["unshare", "-m"]) if shutil.which("unshare") and shutil.which("mount") else ():
        done = subprocess.run([*words, "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, text=True)
        if done.returncode == 0:
            return words
        said = done.stderr.strip()
    pytest.skip(f"no file system may be mounted here: {said}")


def test_a_disk_without_room_is_one_line_and_the_command_goes_on(unshare: list[str], tmp_path: Path) -> None:
    """One command on three disks; `python -m benchmarks.faults_files disks` takes all that write, and any share of the room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    child = [*unshare, sys.executable, str(CHILD), str(disk), "0", "maximize"]
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["maximize", {"0 pages": "", "0 files": "", "read-only": ""}]
    assert not os.path.ismount(disk)
    assert not list(disk.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "convoscope", "--version"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write the output: no space left on device\n"
