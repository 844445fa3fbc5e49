"""Statistics: any split of the data, merged, equals one pass."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.statistic import CONCATENATE, MAXIMUM, MINIMUM, SUM, ChannelMoments, Samples, Statistic

DATA = torch.randn(12, 3, 4, 5, generator=torch.Generator().manual_seed(0))


class Everything(Statistic):
    """State of every sort: integers, extremes, rows that are kept."""

    state = {"count": SUM, "histogram": SUM, "low": MINIMUM, "high": MAXIMUM, "rows": CONCATENATE}

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.int64)
        self.histogram = torch.zeros(8, dtype=torch.int64)
        self.low, self.high = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
        self.rows = torch.zeros(0, 3)

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        self.count += len(batch)
        self.histogram += torch.histc(batch, 8, -2, 2).long()
        self.low = torch.minimum(self.low, batch.amin((0, 2, 3)))
        self.high = torch.maximum(self.high, batch.amax((0, 2, 3)))
        self.rows = torch.cat([self.rows, batch.mean((2, 3))])

    def value(self) -> dict[str, Tensor]:
        return self.state_dict()


def over(make: Any, *batches: Tensor) -> Any:
    statistic = make()
    for batch in batches:
        statistic.update(batch)
    return statistic


def same(a: Statistic, b: Statistic) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(13), 2)))
def test_any_split_merged_is_one_pass_bit_for_bit(cuts: tuple[int, int]) -> None:
    parts = DATA[: cuts[0]], DATA[cuts[0] : cuts[1]], DATA[cuts[1] :]
    one = over(Everything, DATA)
    first, second, third = (over(Everything, p) if len(p) else Everything() for p in parts)
    assert same(first.merge(second).merge(third), one)
    first, second, third = (over(Everything, p) if len(p) else Everything() for p in parts)
    assert same(first.merge(second.merge(third)), one)
    assert same(over(Everything, *DATA.split(5)), one)


def test_merging_leaves_the_other_as_it_was() -> None:
    a, b = over(Everything, DATA[:5]), over(Everything, DATA[5:])
    before = b.state_dict()
    a.merge(b)
    a.update(DATA)
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())


def test_state_is_a_copy_that_another_continues_from() -> None:
    a = over(Everything, DATA[:5])
    state = a.state_dict()
    a.update(DATA[5:])
    b = Everything().load_state_dict(state)
    assert int(state["count"]) == 5
    b.update(DATA[5:])
    assert same(a, b)
    assert int(state["count"]) == 5


def moments(channels: int) -> ChannelMoments:
    return over(ChannelMoments, torch.ones(2, channels))


def test_what_does_not_fit_does_not_merge() -> None:
    with pytest.raises(cs.UsageError, match=r"a ChannelMoments\(\) cannot merge a Everything"):
        moments(3).merge(Everything())  # type: ignore[arg-type]
    with pytest.raises(cs.UsageError, match=r"total is torch.float64 of shape \(3,\) here and .* \(1,\) there"):
        moments(3).merge(moments(1))
    with pytest.raises(cs.UsageError, match=r"keeps \['count', 'square', 'total'\]; got \['count'\]"):
        moments(3).load_state_dict({"count": torch.zeros(())})
    with pytest.raises(cs.UsageError, match="shape"):
        moments(3).load_state_dict(moments(2).state_dict())
    half = moments(3)
    with pytest.raises(cs.UsageError, match="shape"):
        half.merge(moments(4))
    assert int(half.count) == 2


def test_one_that_has_seen_nothing_merges_as_if_it_were_not_there() -> None:
    some = moments(3)
    assert same(moments(3).merge(ChannelMoments()), some)
    new = ChannelMoments().merge(some)
    assert same(new, some)
    new.update(torch.ones(2, 3))
    assert int(some.count) == 2
    assert ChannelMoments().state_dict() == {}
    assert not ChannelMoments().load_state_dict({}).begun
    assert not some.fresh().begun
    assert ChannelMoments.label() == "channel-moments"


@dataclass(kw_only=True, eq=False)
class Rows(Statistic):
    """One with a setting, whose rows stay in their shard."""

    scale: float = 1.0
    state = {"count": SUM, "rows": CONCATENATE}
    spilled = ("rows",)

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        self.count, self.rows = torch.tensor(len(batch)), batch * self.scale


def test_settings_must_agree_and_what_is_spilled_stays() -> None:
    one = over(lambda: Rows(scale=2.0), DATA)
    assert one.settings == {"scale": 2.0}
    assert one.fresh().settings == one.settings
    with pytest.raises(cs.UsageError, match=r"Rows\(scale=2.0\) cannot merge a Rows\(scale=1.0\)"):
        one.merge(over(Rows, DATA))
    one.merge(over(lambda: Rows(scale=2.0), DATA[:5]))
    assert (int(one.count), len(one.rows)) == (17, 12)


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 5), (12, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_channel_moments_are_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)
    found = over(ChannelMoments, *batch.split(5))
    rows = batch.double().transpose(0, 1).flatten(1)
    mean, deviation = found.value()
    assert torch.allclose(mean, rows.mean(1), rtol=1e-12)
    assert torch.allclose(deviation, rows.std(1, correction=0), rtol=1e-10)
    assert mean.dtype == torch.float64
    merged = over(ChannelMoments, batch[:7]).merge(over(ChannelMoments, batch[7:]))
    assert torch.allclose(merged.value()[1], deviation, rtol=1e-10)


def test_channel_moments_of_a_constant_and_of_nothing() -> None:
    mean, deviation = over(ChannelMoments, torch.full((4, 3, 2), 7.0)).value()
    assert mean.tolist() == [7, 7, 7]
    assert deviation.tolist() == [0, 0, 0]
    with pytest.raises(cs.UsageError, match="nothing was seen"):
        ChannelMoments().value()
    with pytest.raises(cs.UsageError, match=r"channels \(B, 3, ...\); got shape \(2, 4\)"):
        moments(3).update(torch.zeros(2, 4))
    with pytest.raises(cs.UsageError, match=r"channels \(B, C, ...\); got shape \(2,\)"):
        ChannelMoments().update(torch.zeros(2))
