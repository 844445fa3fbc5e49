"""Exemplars against a plain sort of everything, and the same for any split of the data."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.units.exemplars import Patches

N, C, H, W = 23, 5, 3, 4


def draws(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(*(shape or (N, C, H, W)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(seed: int = 0) -> Tensor:
    """Rectified, few distinct values, one dead unit: ties everywhere."""
    maps = (draws(seed) * 2).round().clamp(min=0)
    maps[:, 2] = 0
    return maps


def samples(index: Tensor) -> Samples:
    return Samples(index, torch.zeros(len(index), 1, 1, 1), torch.full_like(index, -1), N)


def over(make: Any, data: Tensor, parts: list[list[int]]) -> Any:
    statistic = make()
    for part in parts:
        statistic.update(data[part], samples(torch.tensor(part, dtype=torch.int64)))
    return statistic


def rows(statistic: Any) -> list[Tensor]:
    p = statistic.value()
    return [p.values, p.images, p.rows, p.columns]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(torch.nan_to_num(x.double(), nan=-7.0), torch.nan_to_num(y.double(), nan=-7.0))
               for x, y in zip(rows(a), rows(b), strict=True))  # fmt: skip


def brute_force(data: Tensor, k: int, per_image: int) -> list[list[tuple[float, int, int, int]]]:
    found = []
    for unit in range(data.shape[1]):
        every = [(-float(data[i, unit, r, c]), i, r, c) for i in range(len(data)) for r in range(H) for c in range(W)]
        kept, count = [], [0] * len(data)
        for value, i, r, c in sorted(every):
            if len(kept) < k and (not per_image or count[i] < per_image):
                kept.append((-value + 0.0, i, r, c))
                count[i] += 1
        found.append(kept)
    return found


@pytest.mark.parametrize("make", [draws, coarse])
@pytest.mark.parametrize(("k", "per_image"), [(9, 1), (1, 1), (40, 1), (9, 2), (9, 0), (400, 0)])
def test_top_patches_are_those_of_a_sort_of_everything(make: Any, k: int, per_image: int) -> None:
    data = make()
    whole = [list(range(i, min(i + 5, N))) for i in range(0, N, 5)]
    p = over(lambda: cs.TopPatches(k=k, per_image=per_image), data, whole).value()
    for unit, expected in enumerate(brute_force(data, k, per_image)):
        n = len(expected)
        got = zip(p.values[unit, :n].tolist(), p.images[unit].tolist(), p.rows[unit].tolist(), p.columns[unit].tolist(),
                  strict=False)  # fmt: skip
        assert list(got) == expected
        assert p.images[unit, n:].tolist() == [-1] * (k - n)
        assert p.values[unit, n:].isnan().all()


MAKES = [
    lambda: cs.TopPatches(k=7), lambda: cs.TopPatches(k=7, per_image=3), lambda: cs.BottomPatches(k=6),
    lambda: cs.RandomPatches(k=5, seed=3), lambda: cs.QuantilePatches(k=4), lambda: cs.QuantilePatches(k=3, sample=8),
]  # fmt: skip


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_in_any_order_merged_is_one_pass_bit_for_bit(make: Any, seed: int) -> None:
    data = coarse(seed) if seed % 2 else draws(seed)
    one = over(make, data, [list(range(N))])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed)).tolist()
    cuts = [0, *sorted(order[:3]), N]
    parts = [order[a:b] for a, b in itertools.pairwise(cuts)]
    assert same(over(make, data, [[i] for i in order]), one)
    first, *rest = (over(make, data, [p] if p else []) for p in parts)
    for other in rest:
        first.merge(other)
    assert same(first, one)
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in first.state_dict().items())
    a, b = (over(make, data, [p] if p else []) for p in (order[:9], order[9:]))
    b.load_state_dict(b.state_dict())
    assert same(b.merge(a), one)


def test_bottom_patches_are_the_lowest_of_each_image() -> None:
    data = draws()
    p = over(lambda: cs.BottomPatches(k=6), data, [list(range(N))]).value()
    lowest = data.flatten(2).amin(2)
    for unit in range(C):
        assert p.values[unit].tolist() == lowest[:, unit].sort().values[:6].tolist()
        assert p.images[unit].tolist() == lowest[:, unit].argsort()[:6].tolist()
        for v, i, r, c in zip(*(t[unit].tolist() for t in (p.values, p.images, p.rows, p.columns)), strict=True):
            assert float(data[i, unit, r, c]) == v


def test_equal_lows_are_a_sample_of_all_places() -> None:
    """Behind a ReLU most places are zero: not the upper left corners of the first images, and others for each unit."""
    p = over(lambda: cs.BottomPatches(k=6), torch.zeros(N, 40, H, W), [list(range(N))]).value()
    assert len(set(map(tuple, p.images.tolist()))) == 40
    counts = torch.bincount(p.images.flatten(), minlength=N)
    places = torch.bincount((p.rows * W + p.columns).flatten(), minlength=H * W)
    assert counts.min() >= 2  # 240 / 23, each a Bernoulli of 6/23: under 2 once in a million
    assert places.min() >= 5  # 240 / 12
    assert all(len(set(images)) == 6 for images in p.images.tolist())


def test_random_patches_are_the_same_images_for_every_unit_each_at_its_strongest_place() -> None:
    data = draws()
    p = over(lambda: cs.RandomPatches(k=5), data, [list(range(N))]).value()
    images = p.images[0]
    assert len(set(images.tolist())) == 5
    assert all(torch.equal(row, images) for row in p.images)
    assert torch.equal(p.values.T, data[images].flatten(2).amax(2))
    for unit in range(C):
        assert torch.equal(data[images, unit, p.rows[unit], p.columns[unit]], p.values[unit])
    other = over(lambda: cs.RandomPatches(k=5, seed=1), data, [list(range(N))]).value()
    assert set(other.images[0].tolist()) != set(images.tolist())


def test_every_image_is_as_likely_to_be_drawn() -> None:
    counts = torch.zeros(N)
    for seed in range(300):
        counts[over(lambda s=seed: cs.RandomPatches(k=5, seed=s), torch.zeros(N, 1), [list(range(N))]).value().images[0]] += 1
    expected = 300 * 5 / N
    assert float(((counts - expected).square() / (expected * (1 - 5 / N))).sum()) < 52  # chi-squared, 22: p = 0.0003


def test_quantiles_are_those_of_the_largest_activations() -> None:
    data = draws()
    p = over(lambda: cs.QuantilePatches(quantiles=(0, 0.25, 0.5, 1)), data, [list(range(N))]).value()
    peaks = data.flatten(2).amax(2)
    expected = torch.quantile(peaks, torch.tensor([1, 0.5, 0.25, 0]).double(), 0, interpolation="higher").T
    ranks = peaks.sort(0).values
    assert torch.equal(p.values, torch.stack([ranks[22], ranks[11], ranks[5], ranks[0]], 1))
    assert torch.equal(p.values[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    for unit in range(C):
        assert torch.equal(data[p.images[unit], unit, p.rows[unit], p.columns[unit]], p.values[unit])
    middles = over(lambda: cs.QuantilePatches(k=2), data, [list(range(N))]).value()  # 0.75, 0.25
    assert torch.equal(middles.values, torch.stack([ranks[17], ranks[5]], 1))


def test_a_sample_of_the_images_gives_their_quantiles() -> None:
    data = draws()
    statistic = over(lambda: cs.QuantilePatches(k=2, sample=8), data, [list(range(N))])
    assert len(statistic.images) == 8
    ranks = data[statistic.images].flatten(2).amax(2).sort(0).values
    assert torch.equal(statistic.value().values, torch.stack([ranks[5], ranks[1]], 1))


@pytest.mark.parametrize("make", MAKES[3:])
def test_what_others_found_saves_room_and_changes_nothing(make: Any) -> None:
    data = draws()
    one = over(make, data, [list(range(N))])
    first = over(make, data, [list(range(15))])
    second = make()
    second.hint(first)
    second.update(data[15:], samples(torch.arange(15, N)))
    plain = over(make, data, [list(range(15, N))])
    assert len(second.images) <= len(plain.images)
    assert same(first.merge(second), one)


def test_layers_without_rows_and_columns() -> None:
    data = draws(0, N, C)
    p = over(lambda: cs.TopPatches(k=3), data, [list(range(N))]).value()
    assert torch.equal(p.values, data.T.sort(1, descending=True).values[:, :3])
    assert p.rows.unique().tolist() == p.columns.unique().tolist() == [0]
    assert torch.equal(p.images, data.T.argsort(1, descending=True)[:, :3])


def test_half_precision_is_kept_in_full() -> None:
    data = draws().half()
    p = over(lambda: cs.TopPatches(k=3), data, [list(range(N))]).value()
    assert p.values.dtype == torch.float32
    assert torch.equal(p.values[:, 0], data.float().amax((0, 2, 3)))


def test_maps_of_several_sizes_and_a_negative_zero() -> None:
    statistic = cs.TopPatches(k=2)
    statistic.update(torch.full((1, 1, 2, 2), -0.0), samples(torch.tensor([3])))
    statistic.update(torch.zeros(1, 1, 5, 6), samples(torch.tensor([1])))
    p = statistic.value()
    assert p.images.tolist() == [[1, 3]]
    assert str(p.values.tolist()) == "[[0.0, 0.0]]"


def test_some_units_of_all() -> None:
    p = over(lambda: cs.TopPatches(k=3), draws(), [list(range(N))]).value()
    assert len(p) == C
    assert torch.equal(p[2].images, p.images[2:3])
    assert isinstance(p[[1, 3]], Patches)
    assert torch.equal(p[[1, 3]].rows, p.rows[[1, 3]])


def test_what_cannot_be_measured_is_refused() -> None:
    index = samples(torch.arange(2))
    with pytest.raises(cs.UnsupportedError, match=r"a layer of shape \(7, 5\) has no rows and columns of units"):
        cs.TopPatches().update(torch.zeros(2, 7, 5), index)
    with pytest.raises(cs.UsageError, match=r"which images the rows are"):
        cs.RandomPatches().update(torch.zeros(2, 7))
    bad = torch.zeros(2, 3, 2, 2)
    bad[1, 2, 0, 0] = torch.nan
    for make in MAKES:
        with pytest.raises(cs.UnsupportedError, match="unit 2 is not a number in image 1"):
            make().update(bad, index)
    begun = over(cs.TopPatches, draws(), [[0]])
    with pytest.raises(cs.UsageError, match=r"channels \(B, 5, ...\); got shape \(2, 3, 2, 2\)"):
        begun.update(torch.zeros(2, 3, 2, 2), index)
    with pytest.raises(cs.UsageError, match="cannot merge"):
        begun.merge(cs.TopPatches(k=3))
    for make in (cs.TopPatches, cs.RandomPatches, cs.QuantilePatches):
        with pytest.raises(cs.UsageError, match="nothing was seen"):
            make().value()
        with pytest.raises(cs.UsageError, match="1 or more"):
            make(k=0)
    with pytest.raises(cs.UsageError, match="shares 0 to 1"):
        cs.QuantilePatches(quantiles=(1.5,))
