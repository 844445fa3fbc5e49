"""The page of judged methods: axes, numbers that line up, and the lines of groups."""

import itertools
import math

import pytest

from convoscope.show.figure import ticks
from convoscope.show.judged import Judged, Mark, fixed

NAN = math.nan


def judged(*marks: Mark, **settings: float) -> Judged:
    return Judged("m", "M", "complexity", "share", "lower", "Is it?", "no", "", marks, **settings)


@pytest.mark.parametrize(
    "values", [[0.2, 0.3], [0.0, 1.0], [-0.31, 0.7], [5.0], [0.0], [1e-9, 3e-9], [1e6, 2.5e6], [-3.0, -2.9], []]
)
def test_ticks_are_few_round_numbers_around_all_values(values: list[float]) -> None:
    found = ticks([*values, NAN])
    assert 2 <= len(found) <= 6
    assert not values or found[0] <= min(values) <= max(values) <= found[-1]
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    digits = steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-9)))
    assert min(abs(digits - n) for n in (1, 2, 5, 10)) < 1e-6
    if values and min(values) >= 0.35 * max(values) > 0 and len(values) > 1:
        assert found[-1] - found[0] <= 3 * (max(values) - min(values))


def test_numbers_of_a_metric_have_the_digits_of_its_largest() -> None:
    metric = judged(Mark("a", 0.3123), Mark("b", -0.0984), Mark("c", NAN), Mark("d", -0.00001))
    assert [metric.text(m.mean) for m in metric.marks] == ["0.312", "\N{MINUS SIGN}0.098", "\N{EN DASH}", "0.000"]
    assert fixed(123.4, 999.0) == "123"
    assert fixed(2e-7, 2e-7) == "2.00e\N{MINUS SIGN}07"
    assert fixed(0.0, 0.0) == "0.00"


def test_lines_join_the_first_and_the_last_of_a_group() -> None:
    groups = {"a": (0,), "random": (), "b": (0, 1), "c": (1,)}
    metric = judged(*(Mark(name, k + 1.0, groups=own) for k, (name, own) in enumerate(groups.items())))
    assert metric.groups == 2
    assert metric.lines(0) == [(0, False, True, True)]
    assert metric.lines(1) == [(0, True, True, False)]
    assert metric.lines(2) == [(0, True, False, True), (1, False, True, True)]
    assert metric.lines(3) == [(1, True, False, True)]
    assert judged(Mark("a", 1.0)).groups == 0
    assert [metric.at(v) for v in (metric.ticks[0], metric.ticks[-1], -99.0)] == [0, 100, 0]
