"""Histograms, moments, sparseness and correlations of units: closed forms, a slow count, any split equals one pass."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.statistic import Statistic
from convoscope.units.duplicates import UnitCorrelation, duplicates, nearest
from convoscope.units.histograms import (
    BINS,
    SIDE,
    ActivationHistogram,
    UnitActivity,
    edges,
    hoyer_sparseness,
    lifetime_sparseness,
)

WIDE = torch.randn(12, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-4, 1.0, 1e4]).view(3, 1, 1)


def over(statistic: Statistic, *batches: Tensor) -> Statistic:
    for batch in batches:
        statistic.update(batch)
    return statistic


def same(a: Statistic, b: Statistic) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_bins_are_four_to_an_octave_with_zero_alone() -> None:
    found = edges()
    assert len(found) == BINS + 1
    assert (found[1:] >= found[:-1]).all()
    assert found[SIDE : SIDE + 2].tolist() == [0, 0]
    assert torch.equal(found, -found.flip(0))
    above = found[SIDE + 2 : -1]
    assert above[0] == 2**-12
    assert above[-1] == 2**12
    assert torch.equal(above[4:], above[:-4] * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_histograms_are_what_a_slow_count_finds(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.25, 2**-12, -(2**-12), 4096.0, -4096.0, 65504.0, math.inf, -math.inf])
    batch = torch.cat([(WIDE * (WIDE.abs() < 6e4)).transpose(0, 1).flatten(1), special.expand(3, -1)], 1).to(dtype)
    found = over(ActivationHistogram(), batch.T).value()
    ends = edges().numpy()
    for unit, values in enumerate(batch.float().double().numpy()):
        slow = np.zeros(BINS, dtype=int)
        for v in values:
            if v == 0:
                slow[SIDE] += 1
            elif v > 0:
                slow[min(np.searchsorted(ends[SIDE + 1 :], v, side="right") + SIDE, BINS - 1)] += 1
            else:
                slow[SIDE - 1 - min(np.searchsorted(ends[SIDE + 1 :], -v, side="right") - 1, SIDE - 1)] += 1
        assert found[unit].tolist() == slow.tolist()


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(0, 13, 2), 2)))
def test_any_split_of_histograms_is_one_pass_bit_for_bit(cuts: tuple[int, int]) -> None:
    one = over(ActivationHistogram(), WIDE)
    parts = WIDE[: cuts[0]], WIDE[cuts[0] : cuts[1]], WIDE[cuts[1] :]
    first, second, third = (over(ActivationHistogram(), *([p] if len(p) else [])) for p in parts)
    assert same(first.merge(second).merge(third), one)
    assert same(over(ActivationHistogram(), *WIDE.split(5)), one)
    assert int(one.value().sum()) == WIDE.numel()


def test_what_histograms_say() -> None:
    batch = torch.tensor([[0.0, -1.0, 1.0], [0.0, -2.0, 100.0], [0.0, 0.0, 0.01], [0.0, -4.0, 0.0]])
    found = over(ActivationHistogram(), batch)
    assert found.dead().tolist() == [True, True, False]
    assert found.zero_share().tolist() == [1, 0.25, 0.25]
    # of the last unit, 0 and 0.01 are under a hundredth of 96, where the bin of 100 begins; 1 is not
    assert found.near_zero_share(0.01).tolist() == [1, 0.25, 0.5]
    low, high = found.quantile(0.75)[2].tolist()
    assert low <= 1 < high
    assert found.quantile(1.0)[2].tolist() == [96, 112]
    assert found.quantile(0.0)[1].tolist() == [-5, -4]
    with pytest.raises(cs.UsageError, match="between 0 and 1"):
        found.quantile(2)


@pytest.mark.parametrize("statistic", [ActivationHistogram, UnitActivity, UnitCorrelation])
def test_other_shapes_and_nothing_are_refused(statistic: type[Statistic]) -> None:
    with pytest.raises(cs.UsageError, match="nothing was seen"):
        statistic().value()
    with pytest.raises(cs.UsageError, match=r"\(B, C\) or \(B, C, h, w\); got shape \(2, 3, 4\)"):
        statistic().update(torch.zeros(2, 3, 4))
    with pytest.raises(cs.UsageError, match=r"\(B, 3\) or"):
        over(statistic(), torch.ones(2, 3)).update(torch.ones(2, 4))


def test_activity_is_that_of_a_slow_count() -> None:
    batch = torch.relu(WIDE.double())
    found = over(UnitActivity(), *batch.split(5)).value()
    rows = batch.transpose(0, 1).flatten(1)
    responses = batch.amax((2, 3))
    assert torch.equal(found["minimum"], rows.amin(1))
    assert torch.equal(found["maximum"], rows.amax(1))
    torch.testing.assert_close(found["mean"], rows.mean(1))
    torch.testing.assert_close(found["deviation"], rows.std(1, correction=0))
    assert found["responding"].tolist() == (responses > 0).double().mean(0).tolist()
    n = len(batch)
    breadth = responses.mean(0) ** 2 / responses.square().mean(0)
    torch.testing.assert_close(found["lifetime-sparseness"], (1 - breadth) / (1 - 1 / n))
    hoyer = (n**0.5 - responses.sum(0) / responses.norm(dim=0)) / (n**0.5 - 1)
    torch.testing.assert_close(found["hoyer-sparseness"], hoyer)


@pytest.mark.parametrize("statistic", [UnitActivity, UnitCorrelation])
def test_splits_of_sums_agree(statistic: type[Statistic]) -> None:
    one = over(statistic(), WIDE.double())
    merged = over(statistic(), WIDE[:5].double()).merge(over(statistic(), WIDE[5:].double()))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-12, atol=1e-9)
    for name in ("images", "positions", "count", "low", "high", "responding"):
        assert name not in one.state or torch.equal(merged.state_dict()[name], one.state_dict()[name])


def test_sparseness_of_one_image_of_all_and_of_none() -> None:
    responses = torch.tensor([[3.0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]], dtype=torch.float64)
    for measure in (lifetime_sparseness, hoyer_sparseness):
        found = measure(responses.sum(1), responses.square().sum(1), 4)
        assert found[:2].tolist() == [1, 0]
        assert found[2].isnan()
        assert measure(torch.ones(1), torch.ones(1), 1).isnan().all()


def test_correlations_are_numpys_and_duplicates_are_found() -> None:
    units = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = torch.stack([units[:, 0], units[:, 1], 3 * units[:, 0] + 7, -units[:, 0], torch.full((6, 3, 3), 5.0)], 1)
    found = over(UnitCorrelation(), *batch.split(4)).value()
    slow = np.corrcoef(batch[:, :4].transpose(0, 1).flatten(1).numpy())
    np.testing.assert_allclose(found[:4, :4], slow, atol=1e-12)
    assert found[4].isnan().all()
    assert duplicates(found) == [[0, 2]]
    assert duplicates(found, -1.0) == [[0, 1, 2, 3]]
    value, which = nearest(found)
    assert which[[0, 2, 4]].tolist() == [2, 0, -1]
    assert value[0] == pytest.approx(1)
    assert value[4].isnan()


def test_of_large_maps_a_grid_is_taken() -> None:
    batch = torch.rand(3, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = over(UnitCorrelation(positions=30), *batch.split(2))
    assert int(found.count) == 3 * 4 * 5  # every second row and column, from the second on
    grid = batch[:, :, 1::2, 1::2].transpose(0, 1).flatten(1)
    np.testing.assert_allclose(found.value(), np.corrcoef(grid.numpy()), atol=1e-12)
    with pytest.raises(cs.UsageError, match="1 or more"):
        UnitCorrelation(positions=0)


def test_single_precision_tells_duplicates_apart() -> None:
    a = torch.rand(8, 1, 20, 20, generator=torch.Generator().manual_seed(2)) + 10
    near = a + 0.2 * torch.rand(a.shape, generator=torch.Generator().manual_seed(3))
    found = over(UnitCorrelation(), *torch.cat([a, a * 2, near], 1).split(3)).value()
    assert found[0, 1] == pytest.approx(1, abs=1e-3)
    assert found[0, 2] == pytest.approx(1 / math.sqrt(1.04), abs=5e-3)
