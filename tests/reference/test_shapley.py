"""Shapley and Owen values against their definitions, by enumeration of every coalition, and against captum."""

from itertools import combinations
from math import comb, factorial

import numpy as np
import pytest
import torch
from networks import network_of, normal, randomized, values
from torch import Tensor, nn

import convoscope as cs
from convoscope.attribution.regions import Division
from convoscope.attribution.surrogate import shapley_kernel

X = normal(2, 3, 6, 6, seed=1)
FILL = normal(1, 3, 6, 6, seed=2)
STRIPS = (torch.arange(6)[:, None] // 3 * 4 + torch.tensor([0, 0, 1, 2, 2, 3]))[None]  # 8 regions of different sizes
QUARTERS = STRIPS // 2
MODULE = randomized(
    nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(),
                  nn.Linear(6, 4)), normal(8, 3, 6, 6, seed=3)
)  # fmt: skip


def worth(image: Tensor, labels: Tensor, shown: tuple[int, ...]) -> float:
    mask = torch.isin(labels[0], torch.tensor(shown, dtype=torch.int64))
    with torch.no_grad():
        return float(MODULE(torch.where(mask, image, FILL[0])[None])[0, 3])


def shapley(image: Tensor, labels: Tensor) -> list[float]:
    """The definition: the mean of what a region adds over all coalitions of the others, sizes weighing the same."""
    players = range(int(labels.max()) + 1)
    known = {c: worth(image, labels, c) for s in range(len(players) + 1) for c in combinations(players, s)}
    found = []
    for i in players:
        others = [p for p in players if p != i]
        found.append(sum(
            (known[tuple(sorted((*c, i)))] - known[c]) / comb(len(others), s) / len(players)
            for s in range(len(others) + 1) for c in combinations(others, s)
        ))  # fmt: skip
    return found


def painted(per_image: list[list[float]], labels: Tensor) -> Tensor:
    """Values divided among the positions of their regions, as a map."""
    sizes = labels.flatten().bincount()
    return torch.stack([(torch.tensor(v, dtype=torch.float64) / sizes)[labels[0]] for v in per_image])[:, None]


def test_kernel_shap_is_exact_where_it_can_see_every_coalition() -> None:
    exact = painted([shapley(image, STRIPS) for image in X], STRIPS)
    method = cs.KernelSHAP(samples=2**8 - 2, regions=STRIPS, baseline=FILL)
    assert torch.allclose(values(MODULE, X, method), exact, atol=1e-10)
    more = cs.KernelSHAP(samples=5000, regions=STRIPS, baseline=FILL)
    found = cs.explain(network_of(MODULE), X, more, 3)
    assert torch.allclose(found.values, exact, atol=1e-10)
    assert found.diagnostics["evaluations"] == 2 * 2**8


def test_the_shapley_kernel() -> None:
    """Weights of all coalitions of four players: 3 / (binomial s (4 - s))."""
    assert np.allclose(shapley_kernel(4, np.array([1, 2, 3])), [3 / (4 * 3), 3 / (6 * 4), 3 / (4 * 3)])


@pytest.mark.parametrize("sampling", ["paired", "uniform"])
@pytest.mark.parametrize("samples", [2, 9, 40, 121])
def test_kernel_shap_is_complete_and_converges(sampling: str, samples: int) -> None:
    exact = torch.tensor([shapley(image, STRIPS) for image in X])
    method = cs.KernelSHAP(samples=samples, regions=STRIPS, baseline=FILL, sampling=sampling)  # type: ignore[arg-type]
    found = values(MODULE, X, method)
    assert torch.allclose(found.sum((1, 2, 3)), exact.double().sum(1), atol=1e-6)
    if samples == 121:
        far = (found - painted(exact.tolist(), STRIPS)).abs().max() / painted(exact.tolist(), STRIPS).abs().max()
        assert far < (0.2 if sampling == "paired" else 0.5)


def test_more_samples_than_regions_need_fewer_where_some_sizes_are_enumerated() -> None:
    """16 pictures hold all coalitions of one and of seven regions; none is drawn twice."""
    found = cs.explain(network_of(MODULE), X, cs.KernelSHAP(samples=16, regions=STRIPS, baseline=FILL), 3)
    assert found.diagnostics["evaluations"] == 2 * (16 + 2)


def test_shapley_sampling_with_all_orders_is_exact_and_with_few_complete() -> None:
    exact = painted([shapley(image, QUARTERS) for image in X], QUARTERS)
    method = cs.ShapleySampling(permutations=factorial(4), regions=QUARTERS, baseline=FILL)
    found = cs.explain(network_of(MODULE), X, method, 3)
    assert torch.allclose(found.values, exact, atol=1e-12)
    assert found.diagnostics["evaluations"] == 2 * 2**4  # each coalition once
    few = values(MODULE, X, cs.ShapleySampling(permutations=3, regions=STRIPS, baseline=FILL))
    assert torch.allclose(few.sum((1, 2, 3)), exact.sum((1, 2, 3)), atol=1e-12)


def test_shapley_sampling_converges() -> None:
    exact = painted([shapley(image, STRIPS) for image in X], STRIPS)
    found = values(MODULE, X, cs.ShapleySampling(permutations=400, regions=STRIPS, baseline=FILL))
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


def owen(image: Tensor, whole: tuple[int, int, int, int]) -> Tensor:
    """Owen values by the definition: the mean over the orders in which halves, halves of halves, and so on, can appear."""
    pixels = torch.arange(36).view(1, 6, 6)

    def orders(box: tuple[int, int, int, int]) -> list[list[int]]:
        top, bottom, left, right = box
        if (bottom - top) * (right - left) == 1:
            return [[int(pixels[0, top, left])]]
        if bottom - top >= right - left:
            middle = top + (bottom - top) // 2
            halves = [(top, middle, left, right), (middle, bottom, left, right)]
        else:
            middle = left + (right - left) // 2
            halves = [(top, bottom, left, middle), (top, bottom, middle, right)]
        first, second = (orders(h) for h in halves)
        return [x + y for a, c in ((first, second), (second, first)) for x in a for y in c]

    total = torch.zeros(36, dtype=torch.float64)
    known: dict[tuple[int, ...], float] = {}
    every = orders(whole)
    for order in every:
        before, shown = None, []
        for pixel in [-1, *order]:
            shown += [pixel] if pixel >= 0 else []
            key = tuple(sorted(shown))
            known[key] = known.get(key) or worth(image, pixels, key)
            if before is not None:
                total[pixel] += known[key] - before
            before = known[key]
    return total.view(6, 6) / len(every)


def test_partition_shap_is_owens_value() -> None:
    """On an image that shows two by three pixels, and the fill elsewhere, which is worth nothing."""
    image = FILL[0].clone()
    image[:, :2, :3] = X[0, :, :2, :3]
    small = nn.Sequential(nn.ReplicationPad2d(0), Padded(), MODULE)
    found = values(small, image[None, :, :2, :3], cs.PartitionSHAP(samples=10_000, baseline=FILL[:, :, :2, :3]))
    assert torch.allclose(found[0, 0], owen(image, (0, 2, 0, 3))[:2, :3], atol=1e-12)


class Padded(nn.Module):
    """The fill around a picture of two by three pixels."""

    def forward(self, x: Tensor) -> Tensor:
        whole = FILL.expand(len(x), -1, -1, -1).clone()
        whole[:, :, :2, :3] = x
        return whole


@pytest.mark.parametrize("samples", [2, 3, 17, 100])
def test_partition_shap_is_complete_for_any_number_of_samples(samples: int) -> None:
    change = torch.tensor([worth(i, STRIPS, tuple(range(8))) - worth(i, STRIPS, ()) for i in X])
    found = cs.explain(network_of(MODULE), X, cs.PartitionSHAP(samples=samples, baseline=FILL), 3)
    assert torch.allclose(found.values.sum((1, 2, 3)), change.double(), atol=1e-6)
    assert found.diagnostics["evaluations"] <= 2 * (samples + 2)


@pytest.mark.parametrize("regions", [QUARTERS, torch.cat([QUARTERS, 3 - QUARTERS])], ids=["one division", "one for each image"])
def test_shapley_values_equal_captums(regions: Tensor) -> None:
    """Its exact Shapley values and its feature ablation, on regions of all channels; their numbers do not matter."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    labels = QUARTERS[:, None]
    theirs = attr.ShapleyValues(MODULE).attribute(X.clone(), FILL.expand_as(X), 3, feature_mask=labels)
    ours = values(MODULE, X, cs.ShapleySampling(permutations=24, regions=regions, baseline=FILL))
    sizes = QUARTERS.flatten().bincount()[QUARTERS][:, None]
    assert torch.allclose(ours * sizes, theirs[:, :1].double(), atol=1e-5)  # it sums in single precision
    kernel = values(MODULE, X, cs.KernelSHAP(samples=14, regions=regions, baseline=FILL))
    assert torch.allclose(kernel, ours, atol=1e-10)
    theirs = attr.FeatureAblation(MODULE).attribute(X.clone(), FILL.expand_as(X), 3, feature_mask=labels)
    ours = values(MODULE, X, cs.FeatureAblation(regions=regions, fill=FILL))
    assert torch.allclose(ours, theirs[:, :1].double(), atol=1e-5)


@pytest.mark.parametrize("regions", [torch.zeros(1, 6, 6, dtype=torch.int64), (torch.arange(36) % 2).view(1, 6, 6)])
@pytest.mark.parametrize("kind", [cs.KernelSHAP, cs.ShapleySampling])
def test_one_region_and_two(kind: type, regions: Division) -> None:
    change = torch.tensor([worth(i, STRIPS, tuple(range(8))) - worth(i, STRIPS, ()) for i in X])
    found = values(MODULE, X, kind(regions=regions, baseline=FILL))
    assert torch.allclose(found.sum((1, 2, 3)), change.double(), atol=1e-6)
