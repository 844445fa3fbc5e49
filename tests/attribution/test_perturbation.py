"""Occlusion: the windows it lays, and what it refuses."""

import pytest
import torch

import convoscope as cs
from convoscope.attribution.perturbation import window_starts

NET = cs.Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 4)), channels=3)
X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 3, 2), (10, 4, 4), (7, 7, 3), (11, 2, 1)])
def test_every_position_is_covered(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    assert {i for s in starts for i in range(s, s + window)} == set(range(length))
    assert starts == sorted(set(starts))


def test_a_stride_that_leaves_pixels_out_is_refused() -> None:
    with pytest.raises(cs.SpecError, match="leaves pixels between windows"):
        cs.explain(NET, X, cs.Occlusion(window=2, stride=4), 1)


def test_the_usual_stride_is_half_the_window() -> None:
    usual, half = (cs.explain(NET, X, cs.Occlusion(window=4, stride=s), 1).values for s in (None, 2))
    assert torch.equal(usual, half)
    assert cs.explain(NET, X, cs.Occlusion(window=1), 1).values.isfinite().all()
