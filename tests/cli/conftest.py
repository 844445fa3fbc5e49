"""Pictures to explain, and the command line as a function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoscope.cli.run import run


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`cli("methods", "--json")` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Result:
        code = run([str(w) for w in words])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A smooth colored picture, 96 x 96."""
    rows, columns = np.mgrid[0:96, 0:96] / 95
    pixels = np.stack([rows, columns, 1 - rows * columns], -1)
    path = tmp_path / "smooth.png"
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)
    return path
