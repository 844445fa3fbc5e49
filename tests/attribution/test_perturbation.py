"""Occlusion: the windows it lays, what it measures, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.attribution.perturbation import window_starts
from convoscope.core.record import record
from convoscope.testing.zoo import zoo

NET = cs.Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 4)), channels=3)
X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 3, 2), (10, 4, 4), (7, 7, 3), (11, 2, 1)])
def test_every_position_is_covered(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    assert {i for s in starts for i in range(s, s + window)} == set(range(length))
    assert starts == sorted(set(starts))


def test_the_usual_stride_is_half_the_window() -> None:
    usual, half = (cs.explain(NET, X, cs.Occlusion(window=4, stride=s), 1).values for s in (None, 2))
    assert torch.equal(usual, half)
    assert cs.explain(NET, X, cs.Occlusion(window=1), 1).values.isfinite().all()
    assert torch.equal(usual, cs.explain(NET, X, cs.Occlusion(window=(4, 4), stride=(2, 2)), 1).values)


def by_hand(x: Tensor, fill: Any, window: tuple[int, int], stride: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Drops of logit 1 of the linear network, window by window, and their means over the pixels that they cover."""
    weights, fill = NET.module[1].weight[1].detach().view(3, 10, 10), torch.as_tensor(fill).expand_as(x)
    total, covered = torch.zeros(len(x), 10, 10), torch.zeros(10, 10)
    places = [[(i, i + min(w, 10)) for i in window_starts(10, min(w, 10), s)] for w, s in zip(window, stride, strict=True)]
    drops = torch.zeros(len(x), len(places[0]), len(places[1]))
    for r, (top, bottom) in enumerate(places[0]):
        for c, (left, right) in enumerate(places[1]):
            part = (slice(None), slice(None), slice(top, bottom), slice(left, right))
            drops[:, r, c] = ((x - fill)[part] * weights[part[1:]]).sum((1, 2, 3))
            total[:, top:bottom, left:right] += drops[:, r, c, None, None]
            covered[top:bottom, left:right] += 1
    return drops[:, None], (total / covered)[:, None]


@pytest.mark.parametrize(("window", "stride"), [((3, 5), (2, 3)), ((4, 1), (4, 1)), ((99, 2), (1, 2)), ((7, 7), (5, 6))])
@pytest.mark.parametrize("fill", [0.25, torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(1))])
def test_windows_of_any_shape(window: tuple[int, int], stride: tuple[int, int], fill: Any) -> None:
    drops, means = by_hand(X, fill, window, stride)
    method = cs.Occlusion(window=window, stride=stride, fill=fill)
    assert torch.allclose(cs.explain(NET, X, method, 1).values, means, atol=1e-6)
    single = cs.Occlusion(window=window, stride=stride, fill=fill, average=False)
    assert torch.allclose(cs.explain(NET, X, single, 1).values, drops, atol=1e-6)


@pytest.mark.parametrize("fill", ["black", "white", "mean", "blur", "uniform"])
def test_what_fills_has_a_name(fill: str) -> None:
    shown = cs.explain(NET, X, cs.Occlusion(window=10, stride=1, fill=fill, average=False), 1, seed=3).values.flatten()
    expected = NET.module(X)[:, 1]
    if fill != "uniform":
        assert torch.allclose(shown, expected - NET.module(NET.baseline(fill, X))[:, 1], atol=1e-6)
    assert shown.isfinite().all()


def test_the_effect_on_units_and_layers_position_by_position() -> None:
    hostile = zoo()["functional-relu"]
    net, x = hostile.network(), hostile.images(2)
    targets = [cs.Channel("layers.two", 2, over="max"), cs.Channel("layers.two", 2), cs.Layer("layers.one", "max")]
    method = cs.Occlusion(window=(3, 4), stride=2, fill=0.0, average=False)
    found = cs.explain(net, x, method, targets)
    hidden = x.clone()
    hidden[:, :, 2:5, 4:8] = 0
    for a, target in zip(found, targets, strict=True):
        assert a.values.shape == (2, 1, 4, 3)  # rows 0, 2, 4 and 5 at the edge; columns 0, 2, 4
        with torch.no_grad():
            before, after = (target(record(hostile.module().eval(), t, target.addresses())) for t in (x, hidden))
        assert torch.allclose(a.values[:, 0, 1, 2], before - after, rtol=1e-10)
        assert a.heatmap().shape == (2, 8, 8)


def test_windows_of_a_layer() -> None:
    hostile = zoo()["skip"]
    net, x, module = hostile.network(), hostile.images(2), hostile.module().eval()
    found = cs.explain(net, x, cs.Occlusion(window=(2, 8), stride=2, fill=0.0, average=False), 1, at="relu").values
    with torch.no_grad():
        there = record(module, x, ("relu",))["relu"]
        for k in range(4):
            hidden = there.clone()
            hidden[:, :, 2 * k : 2 * k + 2] = 0
            out = record(module, x, ("output",), {"relu": lambda _, h=hidden: h})["output"]
            assert torch.allclose(found[:, 0, k, 0], (module(x.clone()) - out)[:, 1], rtol=1e-10)


def test_a_stride_that_leaves_pixels_out_is_refused() -> None:
    with pytest.raises(cs.SpecError, match="leaves pixels between windows"):
        cs.Occlusion(window=2, stride=4)
    with pytest.raises(cs.SpecError, match="stride 3 leaves pixels between windows of 2; expected at most the window"):
        cs.Occlusion(window=(4, 2), stride=3)
    assert cs.explain(NET, X, cs.Occlusion(window=2, stride=4, average=False), 1).values.shape == (2, 1, 3, 3)


@pytest.mark.parametrize("window", [(3,), (3, 0), (1, 2, 3), (2.5, 3), 0])
def test_windows_that_are_none_are_refused(window: Any) -> None:
    with pytest.raises(cs.SpecError, match="expected"):
        cs.Occlusion(window=window)


def test_maps_without_rows_and_columns_are_refused() -> None:
    with pytest.raises(cs.UsageError, match="occlusion hides windows of"):
        cs.explain(NET, X, cs.Occlusion(window=2), 1, at="0")
