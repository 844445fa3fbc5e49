"""What all tests share: one thread per worker; real networks and photographs where the machine has them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a file: pytest-xdist tells its workers of 80 columns."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real photographs and networks that `CONVOSCOPE_TESTDATA` names."""
    folder = os.environ.get("CONVOSCOPE_TESTDATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CONVOSCOPE_TESTDATA names no folder of real photographs and networks")
    return Path(folder)


@pytest.fixture(scope="session")
def torch_home(testdata: Path) -> Path:
    """The folder of torchvision weights that `TORCH_HOME` names; tests that use it download nothing."""
    folder = Path(os.environ.get("TORCH_HOME", ""), "hub", "checkpoints")
    if not os.environ.get("TORCH_HOME") or not any(folder.glob("resnet18-*.pth")):
        pytest.skip("TORCH_HOME holds no weights of resnet18")
    return Path(os.environ["TORCH_HOME"])


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not fit the installed PyTorch."""
    from convoscope.loading import import_torchvision

    return import_torchvision()
