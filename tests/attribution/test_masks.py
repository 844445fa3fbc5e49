"""Regions of images, what methods over them refuse, and the pictures that they share."""

import pytest
import torch
from torch import nn

import convoscope as cs

OVER_REGIONS = (cs.LIME, cs.KernelSHAP, cs.ShapleySampling, cs.FeatureAblation, cs.Sobol, cs.HSIC)


def network(channels: int = 3) -> cs.Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(6, 5),
        )  # fmt: skip
    return cs.Network(module.double(), 24, channels=channels, mean=0.4, std=0.3)


def pictures(channels: int = 3, count: int = 2) -> torch.Tensor:
    """Four flat quarters of different color with a little noise."""
    generator = torch.Generator().manual_seed(1)
    shades = torch.tensor([0.05, 0.35, 0.65, 0.95], dtype=torch.float64)
    quarters = torch.stack([shades.roll(c).view(2, 2) for c in range(channels)]).expand(count, -1, -1, -1)
    quarters = quarters.repeat_interleave(12, 2)
    noise = 0.01 * torch.randn(count, channels, 24, 24, generator=generator, dtype=torch.float64)
    return (quarters.repeat_interleave(12, 3) + noise - 0.4) / 0.3


NET, X = network(), pictures()


def regions_shown(regions: object, x: torch.Tensor = X, net: cs.Network = NET) -> torch.Tensor:
    """The regions as feature ablation paints them, numbered by their values."""
    found = cs.explain(net, x, cs.FeatureAblation(regions=regions), 1).values[:, 0]  # type: ignore[arg-type]
    return torch.stack([one.unique(return_inverse=True)[1] for one in found])


DIVISIONS = (cs.Grid(2), cs.Superpixels(segments=4), cs.Quickshift(kernel=2.0, distance=8.0, ratio=1.0))


@pytest.mark.parametrize("regions", DIVISIONS, ids=lambda r: r.name)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_regions_follow_what_is_in_the_picture(regions: object, channels: int) -> None:
    """Where the picture has four flat quarters, so has any division: no region lies in two of them."""
    found = regions_shown(regions, pictures(channels), network(channels))
    for one in found:
        quarters = [set(q.flatten().tolist()) for half in one.split(12, 0) for q in half.split(12, 1)]
        assert sum(map(len, quarters)) == len(set().union(*quarters))


def test_a_grid_has_equal_cells() -> None:
    found = regions_shown(cs.Grid(3))
    assert all(torch.equal(one[:8, :8], one[:1, :1].expand(8, 8)) for one in found)
    assert [int(one.max()) + 1 for one in found] == [9, 9]
    wide = cs.explain(NET, X, cs.FeatureAblation(regions=cs.Grid(100)), 1)  # no more cells than pixels
    assert wide.diagnostics["evaluations"] == 2 * (24 * 24 + 1)


@pytest.mark.parametrize("method", OVER_REGIONS)
def test_labels_may_be_given(method: type[cs.Method]) -> None:
    """One division for all images, or one for each; any numbers."""
    labels = (torch.arange(24)[:, None] // 8 * 10 - torch.arange(24) // 8)[None]
    for given in (labels, torch.cat([labels, labels + 7])):
        found = cs.explain(NET, X, method(regions=given), 1, batch_size=3).values  # type: ignore[call-arg]
        assert all(torch.equal(found[..., i, j], found[..., 0, 0]) for i, j in ((1, 1), (7, 7)))
    for wrong in (labels[0], labels[:, :20], labels.expand(3, -1, -1)):
        with pytest.raises(cs.UsageError, match="labels of regions are"):
            cs.explain(NET, X, method(regions=wrong), 1)  # type: ignore[call-arg]


def test_layers_are_divided_by_grids() -> None:
    for method in (cs.KernelSHAP(regions=cs.Grid(3)), cs.RISE(masks=20, cells=3), cs.PartitionSHAP(samples=30), cs.Sobol(2)):
        found = cs.explain(NET, X, method, 1, at="1").values
        assert found.shape == (2, 1, 12, 12)
        assert found.abs().max() > 0
    with pytest.raises(cs.UsageError, match=r"use regions=Grid\(cells\)"):
        cs.explain(NET, X, cs.LIME(), 1, at="1")
    with pytest.raises(cs.UsageError, match="images, channels, rows, columns"):
        cs.explain(NET, X, cs.LIME(regions=cs.Grid(2)), 1, at="5")
    with pytest.raises(cs.UsageError, match="probability above 0"):
        cs.explain(NET, X, cs.RISE(p=0.0), 1)


def evaluations(methods: list[cs.Method]) -> list[int]:
    return [a.diagnostics["evaluations"] for a in cs.explain(NET, X, methods, 1)]


def test_methods_share_their_pictures() -> None:
    """LIME, KernelSHAP with coins and RISE of regions toss the same ones; ablation is among what KernelSHAP enumerates."""
    grid = cs.Grid(4)
    coins = [
        cs.LIME(samples=40, regions=grid, fill=0.0), cs.KernelSHAP(samples=40, regions=grid, baseline=0.0, sampling="uniform"),
        cs.RISE(masks=40, regions=grid, fill=0.0),
    ]  # fmt: skip
    assert evaluations(coins) == [2 * 41, 1, 0]  # the second adds the picture in which all regions are hidden
    sizes = [cs.KernelSHAP(samples=120, regions=grid), cs.FeatureAblation(regions=grid), cs.ShapleySampling(1, grid)]
    first, second, third = evaluations(sizes)
    assert (first, second) == (2 * 122, 0)
    assert third < 2 * 15
    assert evaluations([cs.Sobol(samples=8, regions=grid), cs.HSIC(samples=16, regions=grid, binary=False)]) == [2 * 8 * 18, 0]


def test_shared_pictures_change_no_map() -> None:
    grid, labels = cs.Grid(3), [cs.Logit(1), cs.Logit(2)]
    methods = [cs.LIME(samples=20, regions=grid), cs.RISE(masks=20, cells=3), cs.Sobol(4, grid), cs.PartitionSHAP(samples=20)]
    together = cs.explain(NET, X, methods, labels)
    for found, (method, target) in zip(together, [(m, t) for m in methods for t in labels], strict=True):
        alone = cs.explain(NET, X, method, target, batch_size=5).values
        assert torch.allclose(found.values, alone, atol=1e-12 * float(alone.abs().max()))


@pytest.mark.parametrize("method", [m(regions=cs.Grid(3)) for m in OVER_REGIONS] + [cs.RISE(masks=30)], ids=lambda m: m.name)  # type: ignore[call-arg]
def test_all_classes_from_the_same_pictures(method: cs.Method) -> None:
    found = cs.explain(NET, X, method, [cs.Logit(0), cs.Logit(3)])
    assert [a.diagnostics["evaluations"] > 0 for a in found] == [True, False]
    assert not torch.equal(found[0].values, found[1].values)


def test_more_draws_begin_with_the_fewer() -> None:
    """Doubling the number of pictures makes only the new ones."""
    grid = cs.Grid(4)
    assert evaluations([cs.LIME(samples=30, regions=grid), cs.LIME(samples=60, regions=grid)]) == [2 * 31, 2 * 30]
    assert evaluations([cs.RISE(masks=30), cs.RISE(masks=50)]) == [60, 40]
    assert evaluations([cs.HSIC(samples=30, regions=grid, binary=False)])[0] == 60


def test_maps_are_in_units_of_the_target() -> None:
    """Twice the target, twice the map; but for shares of a variance and dependence."""
    for method in (cs.LIME(samples=20), cs.RISE(masks=20), cs.PartitionSHAP(samples=20), cs.ShapleySampling(2)):
        once, twice = cs.explain(NET, X, method, [cs.Logit(1), 2 * cs.Logit(1)])
        assert torch.allclose(twice.values, 2 * once.values, atol=1e-9)
    once, twice = cs.explain(NET, X, cs.Sobol(4, cs.Grid(3)), [cs.Logit(1), 2 * cs.Logit(1)])
    assert torch.allclose(once.values, twice.values)
    assert once.values.isfinite().all()
