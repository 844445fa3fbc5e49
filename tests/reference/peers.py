"""What the tests of the peers' defects share."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # shap's loops take seconds to compile, and no time on small pictures


def seen_in(library: str, release: str) -> pytest.MarkDecorator:
    """The defect was seen in this release; with another one, or without the library, the test is skipped."""
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = "not installed"
    return pytest.mark.skipif(installed != release, reason=f"seen in {library} {release}; here: {installed}")


def method(name: str, **settings: object) -> cs.Method:
    """A method by its public name."""
    return getattr(cs, name)(**settings)


def change(module: nn.Module, x: Tensor, start: Tensor, target: int) -> Tensor:
    """By how much the target rises from `start` to `x`."""
    with torch.no_grad():
        return module(x.clone())[:, target] - module(start.expand_as(x).clone())[:, target]


def total(maps: Tensor) -> Tensor:
    return maps.detach().flatten(1).sum(1)


def gap(maps: Tensor, expected: Tensor) -> float:
    """The largest error of the maps' sums, relative to the largest expected sum."""
    return float((total(maps) - expected).detach().abs().max() / expected.detach().abs().max())
