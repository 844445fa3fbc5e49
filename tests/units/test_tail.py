"""The tail: exact thresholds, however the data are split, and every value that interpolation above them needs."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.units.tail import Tail


def noise(*shape: int, seed: int = 0, kind: str = "normal") -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"normal": values, "relu": (values - 1).clamp(min=0), "ties": (values * 3).round() / 3}[kind]


def taken(maps: Tensor, index: Sequence[int], total: int, tail: Tail) -> Tail:
    inputs = torch.zeros(len(index), 1, 1, 1)
    tail.update(maps[list(index)], Samples(torch.tensor(index), inputs, torch.full((len(index),), -1), total))
    return tail


def merged(maps: Tensor, parts: Sequence[Sequence[int]], batch: int = 3, hints: bool = False, fraction: float = 0.05) -> Tail:
    whole, shards = Tail(fraction=fraction), []
    for part in parts:
        shard = Tail(fraction=fraction)
        if hints:
            shard.hint(whole)
        for k in range(0, len(part), batch):
            taken(maps, part[k : k + batch], len(maps), shard)
        whole.merge(shard)
        shards.append(shard)
    whole.shards = shards  # type: ignore[attr-defined]
    return whole


@pytest.mark.parametrize("kind", ["normal", "relu", "ties"])
@pytest.mark.parametrize("fraction", [0.005, 0.05, 0.3])
def test_the_threshold_is_the_smallest_with_at_most_the_fraction_above(kind: str, fraction: float) -> None:
    maps = noise(40, 3, 5, 4, kind=kind)
    tail = merged(maps, [range(40)], 7, fraction=fraction)
    found, count = tail.value(), 40 * 5 * 4
    for unit in range(3):
        values = maps[:, unit].flatten()
        assert found.exceedance[unit] == (values > found.value[unit]).double().mean()
        assert float(found.exceedance[unit]) <= fraction
        lower = values[values < found.value[unit]]
        if len(lower):  # the next smaller value would let more than the fraction through
            assert (values > lower.max()).sum() > fraction * count
    assert found.values == count


def test_counts_are_those_of_the_fraction_as_written() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    maps = torch.arange(100.0).view(100, 1)
    assert merged(maps, [range(100)], 100, fraction=0.29).value().value.tolist() == [70.0]


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize("kind", ["normal", "relu", "ties"])
def test_any_split_merged_is_one_pass_bit_for_bit(kind: str, hints: bool) -> None:
    maps = noise(12, 3, 4, 5, kind=kind)
    one = merged(maps, [range(12)], 12)
    for first, second in itertools.combinations(range(13), 2):
        split = merged(maps, [range(first), range(first, second), range(second, 12)], 2, hints)
        assert torch.equal(split.largest.view(torch.int64), one.largest.view(torch.int64))
        assert all(torch.equal(getattr(split, n), getattr(one, n)) for n in ("smallest", "images", "total", "grid"))
        assert torch.equal(split.value().value, one.value().value)
    backwards = merged(maps, [range(8, 12), range(3, 8), range(3)], 3, hints)
    assert torch.equal(backwards.largest, one.largest)


@pytest.mark.parametrize("hints", [False, True])
def test_spilled_cells_hold_all_that_interpolation_above_the_threshold_needs(hints: bool) -> None:
    maps = noise(30, 4, 6, 5, kind="normal").float()
    whole = merged(maps, [range(10), range(10, 17), range(17, 30)], 4, hints)
    thresholds = whole.value().value
    needed = torch.nn.functional.max_pool2d((maps > thresholds[:, None, None]).float(), 3, 1, 1) > 0
    found = torch.full_like(maps, torch.nan)
    for shard in whole.shards:  # type: ignore[attr-defined]
        found.view(-1)[shard.cells] = shard.levels
    assert torch.equal(found[needed], maps[needed])
    kept = found.isfinite()
    assert torch.equal(found[kept], maps[kept])
    assert torch.cat([s.rows for s in whole.shards]).tolist() == list(range(30))  # type: ignore[attr-defined]


def test_hints_save_most_of_what_is_spilled() -> None:
    maps = noise(200, 2, 7, 7)
    parts = [range(k, k + 20) for k in range(0, 200, 20)]
    with_hints, without = (merged(maps, parts, 10, h, 0.005) for h in (True, False))
    spilled = [sum(len(s.cells) for s in w.shards) for w in (with_hints, without)]  # type: ignore[attr-defined]
    assert spilled[0] < spilled[1] / 2
    assert torch.equal(with_hints.value().value, without.value().value)


def test_what_is_sent_of_a_tail_is_a_bound_and_hints_as_much() -> None:
    maps = noise(60, 2, 7, 7)
    whole = merged(maps, [range(20), range(20, 40)], 10, hints=True)
    brief = whole.brief()
    assert sum(t.numel() for t in brief.state_dict().values()) < 10
    found = []
    for earlier in (whole, brief, Tail(fraction=0.05).load_state_dict(brief.state_dict())):
        last = Tail(fraction=0.05)
        last.hint(earlier)
        found.append(taken(maps, range(40, 60), 60, last).state_dict())
    assert all(torch.equal(f[k], found[0][k]) for f in found for k in found[0])
    assert len(found[0]["cells"]) < 20 * 2 * 49 / 2


def test_a_shard_whose_hints_are_missing_says_so() -> None:
    maps = noise(40, 2, 7, 7)
    maps[:20] += 1
    whole = merged(maps, [range(20), range(20, 40)], 10, hints=True)
    second = whole.shards[1]  # type: ignore[attr-defined]
    with pytest.raises(cs.ConvoscopeError, match="knowing others that are missing or have changed"):
        second.value()


def test_state_goes_on_where_it_stopped() -> None:
    maps = noise(12, 3, 4, 5)
    first = taken(maps, range(7), 12, Tail(fraction=0.05))
    second = taken(maps, range(7, 12), 12, Tail(fraction=0.05).load_state_dict(first.state_dict()))
    one = merged(maps, [range(12)], 12)
    assert torch.equal(second.largest, one.largest)
    assert second.rows.tolist() == list(range(12))


def test_dead_and_sparse_units_are_flagged() -> None:
    maps = noise(50, 4, 2, 2).abs()
    maps[:, 1] = 0
    maps[:, 2] = 0
    maps[3, 2, 0, 1] = 5.0
    maps[:, 3] = -0.0
    found = merged(maps, [range(20), range(20, 50)], 10).value()
    assert found.dead.tolist() == [False, True, False, True]
    assert found.sparse.tolist() == [False, False, True, False]
    assert found.value[1:].tolist() == [0, 0, 0]
    assert found.exceedance[1:].tolist() == [0, 1 / 200, 0]
    assert math.copysign(1, float(found.value[3])) == 1


def test_layers_without_places_and_half_precision() -> None:
    maps = noise(40, 3)
    found = merged(maps, [range(13), range(13, 40)], fraction=0.1).value()
    assert found.value.tolist() == maps.sort(0, descending=True).values[4].tolist()
    half = merged(maps.half(), [range(40)], fraction=0.1)
    assert half.largest.dtype == torch.float32


def test_what_cannot_be_measured_is_refused_in_a_line() -> None:
    maps = noise(4, 3, 4, 4)
    tail = taken(maps, range(4), 9, Tail())
    with pytest.raises(cs.UsageError, match=r"maps of 4 x 4 units before and 4 x 5 now"):
        taken(noise(2, 3, 4, 5), range(2), 9, tail)
    with pytest.raises(cs.UsageError, match=r"expected a batch of channels \(B, 3, ...\); got shape \(2, 4, 4, 4\)"):
        taken(noise(2, 4, 4, 4), range(2), 9, tail)
    with pytest.raises(cs.UsageError, match="9 images before and of 10 now"):
        taken(maps, range(4), 10, tail)
    with pytest.raises(cs.UsageError, match=r"tails of maps of \[4, 4\] units here and maps of \[2, 2\] units there"):
        tail.merge(taken(noise(4, 3, 2, 2), range(4), 9, Tail()))
    with pytest.raises(cs.UnsupportedError, match="has no rows and columns"):
        taken(noise(2, 3, 4), range(2), 9, Tail())
    with pytest.raises(cs.UnsupportedError, match="unit 1 is not a number"):
        taken(torch.tensor([[0.0, torch.nan]]), range(1), 1, Tail())
    with pytest.raises(cs.UsageError, match="needs to know how many images"):
        Tail().update(maps)
    with pytest.raises(cs.UsageError, match="nothing was seen"):
        Tail().value()
    with pytest.raises(cs.UsageError, match="fraction between 0 and 1"):
        Tail(fraction=0.0)
    assert not Tail().begun
    assert Tail().settings == {"fraction": 0.005}
