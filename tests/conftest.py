"""What all tests share: one thread, the same draws in any order, real networks and photographs where the machine has them."""

import math
import os
import random
import signal
import zlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # UMAP and shap compile for half a minute what runs for seconds

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell, where Ctrl-C would reach no test
    signal.signal(signal.SIGINT, signal.default_int_handler)


def seed(name: str) -> None:
    """What is drawn without a seed is the same each time, whichever tests ran before in this process."""
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, pytest.Module):  # which draws when it is imported
        seed(collector.path.name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    torch.set_num_threads(1)  # some libraries raise it where they run


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    seed(getattr(item, "originalname", item.name))


@pytest.fixture(autouse=True)
def what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a file, though pytest-xdist tells its workers of 80 columns; no line comes of a slow machine."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("convoscope.cli.terminal.EVERY", math.inf)


@pytest.fixture(autouse=True)
def what_is_registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test finds the methods, metrics and targets of the package and of its own file, not those of other tests."""
    from convoscope.core.spec import _REGISTRY

    def taken(own: str) -> dict[tuple[str, str], type]:
        found = {(k, n): c for k, table in _REGISTRY.items() for n, c in table.items() if _of_a_test(c, own)}
        for kind, name in found:
            del _REGISTRY[kind][name]
        return found

    before = {(k, n): c for k, table in _REGISTRY.items() for n, c in table.items() if _of_a_test(c, "")}
    taken(request.module.__name__)
    yield
    taken("")
    for (kind, name), cls in before.items():
        _REGISTRY[kind][name] = cls


def _of_a_test(cls: type, own: str) -> bool:
    return cls.__module__.rpartition(".")[2].startswith("test_") and cls.__module__ != own


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
