"""The page of the benchmark with exact truth: whole tables, and the numbers that stand beside a task's own."""

from itertools import pairwise

import pytest

from convoscope.evaluation.bench.ranking import rank_metrics
from convoscope.evaluation.bench.run import bench
from convoscope.evaluation.bench.shortcut_networks import ODDS

exact_truth = pytest.importorskip("benchmarks.exact_truth", reason="the benchmarks are not part of this installation")
METHODS = ["gradient", "cam", "guided-backprop", "integrated-gradients:baseline=mean,steps=4"]
TASKS = ["parts:pictures=4", "birds-correctness:pictures=4", "shortcut:networks=4,pictures=1"]


def test_tables_are_whole_and_tell_what_stands_beside() -> None:
    found = bench(METHODS, TASKS, quick=False)
    page = exact_truth.page(found, rank_metrics(found, ["gini", "rank-accuracy", "pointing-game"], pictures=2), "the command")
    assert "    the command\n" in page
    lines = page.splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|"), below
    assert "| Integrated gradients, baseline=mean,steps=4 |" in page
    shortcut, birds = found.of("shortcut"), found.of("birds-correctness")
    beside = exact_truth.beside(found, shortcut)
    assert [len(column) for column in beside.values()] == [len(found.names)] * len(ODDS)
    means = [sum(column[k] for column in beside.values()) / len(ODDS) for k in range(len(found.names))]
    assert means == pytest.approx(shortcut.scores.mean(1).tolist())
    published = dict(zip(found.names, exact_truth.beside(found, birds)["as published"], strict=True))
    assert published["oracle"] == pytest.approx(1.0)
    assert published["random"] > 0.6, "size explains much of what is published"
    assert exact_truth.beside(found, found.of("parts")) == {}
