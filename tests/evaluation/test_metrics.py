"""Metrics on cases of which the answer is known."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import convoscope as cs
from convoscope.core.errors import UsageError
from convoscope.evaluation import Deletion, FaithfulnessCorrelation, Infidelity, Insertion, LeRF, MoRF, SensitivityN, metrics
from convoscope.evaluation.base import mean_ranks, pearson, ranks, spearman
from convoscope.evaluation.evaluate import evaluate
from convoscope.evaluation.nulls import permutations
from convoscope.evaluation.statistics import adjusted, interval, paired
from convoscope.evaluation.sweeps import removed_after
from convoscope.testing.metrics import METRIC_LAWS, check_metric, oracle


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_knows_the_answer(name: str) -> None:
    check_metric(name)


def test_the_laws_can_be_broken() -> None:
    class ByTheMean(cs.Metric, name="by-the-mean-of-the-batch"):
        """Looks at the neighbors."""

        title, family, unit, use, drawback = "Mean", "complexity", "activation", "none", "all"

        def score(self, case):
            return case.maps.mean((2, 3)) / case.maps.amax((1, 2, 3))[:, None]

        def passes(self, case):
            return 0

    case, exact = oracle()
    with pytest.raises(AssertionError, match="another image's map was scaled"):
        METRIC_LAWS["batch mates do not matter"](ByTheMean(), case, exact)
    with pytest.raises(AssertionError, match="shuffled maps"):
        METRIC_LAWS["knows the truth"](ByTheMean(), case, exact)

    class Remembers(cs.Metric, name="remembers-the-first-map"):
        """Likes the maps that the case came with, whatever they are."""

        title, family, unit, use, drawback = "Memory", "faithfulness", "share", "none", "all"

        def score(self, case):
            first = case.kept.setdefault("first", case.maps)
            return -(case.maps - first[: len(case.maps)].repeat(len(case.maps) // len(first), 1, 1, 1)).abs().mean((2, 3))

        def passes(self, case):
            return 0

    METRIC_LAWS["permutations find the truth"](Remembers(), case, exact)
    with pytest.raises(AssertionError, match=r"100% of random maps have p <= 0\.1"):
        METRIC_LAWS["permutations find nothing in noise"](Remembers(), case, exact)
    with pytest.raises(AssertionError, match="the exact map has p ="):
        METRIC_LAWS["permutations find the truth"](Backwards(), case, exact)
    with pytest.raises(AssertionError, match="does not look at places"):
        METRIC_LAWS["permutations find the truth"](Sighted(), case, exact)


class Backwards(cs.Metric, name="backwards"):
    """The energy that is not on the object."""

    title, family, unit, use, drawback = "Backwards", "localization", "share", "none", "all"
    needs: ClassVar = ("truth",)

    def score(self, case):
        return (case.maps.abs() * ~case.truth).mean((2, 3))

    def passes(self, case):
        return 0


class Sighted(Backwards, name="sighted"):
    """Says that it is blind, and is not."""

    blind: ClassVar = True

    def score(self, case):
        return -super().score(case)


def test_deletion_of_a_linear_network_is_a_sum() -> None:
    """f(x) falls by the relevance of what is removed, so that the area is that of the ordered sums."""
    case, exact = oracle(3)
    steps = 9
    pixels = exact[0].numel()
    gone = removed_after(steps, pixels)
    for metric, descending in ((Deletion(steps, fill=0.0, of="target"), True), (MoRF(steps, of="target"), True),
                               (LeRF(steps, of="target"), False)):  # fmt: skip
        ordered = exact.flatten(1).sort(1, descending=descending).values
        total = torch.cat([torch.zeros(len(exact), 1, dtype=torch.float64), ordered.cumsum(1)], 1)
        curve = exact.flatten(1).sum(1, keepdim=True) - total[:, gone]
        area = ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1)
        expected = area if isinstance(metric, Deletion) else curve[:, 0] - curve.mean(1)
        assert torch.allclose(metric.score(case)[0], expected, rtol=0, atol=1e-12)


def test_the_area_does_not_depend_on_the_number_of_steps() -> None:
    case, _ = oracle()
    fine, coarse = (Deletion(s, fill=0.0, of="target").score(case) for s in (144, 24))
    assert (fine - coarse).abs().max() < 0.02 * case.clean().abs().max()


def test_insertion_is_deletion_of_the_least_relevant_read_backwards() -> None:
    case, exact = oracle()
    steps, base = 10, torch.zeros_like(case.x)
    shown = removed_after(steps, exact[0].numel())
    place = ranks(case.maps)[0].view(exact.shape)
    curve = torch.stack([case.scores(torch.where(place[:, None] < k, case.x, base), torch.arange(3)) for k in shown], 1)
    assert torch.allclose(Insertion(steps, 0.0, "target").score(case)[0], torch.trapezoid(curve) / steps, atol=1e-12)


@pytest.mark.parametrize(("steps", "pixels"), list(itertools.product((1, 2, 3, 7, 12), (12, 13, 50))))
def test_shares_are_the_same_from_both_ends(steps: int, pixels: int) -> None:
    gone = removed_after(steps, pixels)
    assert gone[0] == 0
    assert gone[-1] == pixels
    assert torch.equal(gone, pixels - gone.flip(0)) or steps % 2 == 0
    assert (gone.diff() - pixels / steps).abs().max() <= 1


def test_an_exact_map_of_a_linear_network_is_perfect() -> None:
    case, _ = oracle(3)
    ones = torch.ones(1, 3, dtype=torch.float64)
    assert torch.allclose(FaithfulnessCorrelation(fill=0.0).score(case), ones, atol=1e-12)
    assert torch.allclose(SensitivityN(fill=0.0).score(case), ones, atol=1e-12)
    for scale, shape in itertools.product(("optimal", "none"), ("square", "pixels")):
        assert Infidelity(fill=0.0, scale=scale, shape=shape).score(case).abs().max() < 1e-12


def test_infidelity_without_scaling_is_its_definition() -> None:
    case, exact = oracle()
    wrong = cs.Case(case.network, case.x, case.target, 1.5 * exact[None], ("wrong",), batch_size=5)
    from convoscope.evaluation.subsets import subsets

    metric = Infidelity(count=20, fill=0.0, scale="none")
    masks = subsets(wrong, round(0.05 * 144), 20, "square").view(20, 12, 12)
    expected = torch.stack([((0.5 * exact * m).flatten(1).sum(1)).square() for m in masks]).mean(0)
    assert torch.allclose(metric.score(wrong)[0], expected, atol=1e-12)


def test_correlations() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 30, generator=g, dtype=torch.float64), torch.randn(4, 30, generator=g, dtype=torch.float64).round()
    expected = torch.stack([torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a, b, strict=True)])
    assert torch.allclose(pearson(a, b), expected)
    stats = pytest.importorskip("scipy.stats")
    for x, y, r in zip(a, b, spearman(a, b), strict=True):
        assert abs(stats.spearmanr(x, y).statistic - float(r)) < 1e-12
    assert mean_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    assert pearson(torch.ones(5), torch.arange(5.0)).isnan()


def test_intervals_cover_and_p_values_are_exact_for_few() -> None:
    values = torch.randn(400, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = interval(values)
    assert 0.9 < float(((low < 0) & (high > 0)).double().mean()) < 0.98
    assert interval(values[:, :1])[0].isnan().all()
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert paired(a, a - 1) == 2 / 8  # all signs equal, either way
    assert paired(a, a) == 1.0
    assert adjusted(torch.tensor([0.01, 0.04, 0.03, float("nan")]))[:3].tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_evaluate_ranks_the_exact_map_first_and_random_last() -> None:
    case, exact = oracle(images=3)
    found = evaluate(
        case.network, case.x, ["input-x-gradient"], ["deletion:fill=0.0,of=target", "insertion:fill=0.0,of=target"], 1,
        maps={"negative": -exact},
    )  # fmt: skip
    assert found.scores.shape == (2, 4, 3)
    assert found.units == ("logit", "logit")
    for metric in ("deletion", "insertion"):
        assert found.ranking(metric)[0] == "input-x-gradient"
        assert found.ranking(metric)[-1] == "negative"
        apart = found.compare(metric, "input-x-gradient", "random")
        assert apart.difference > 0
        assert apart.p == 0.25  # the least that three images can give
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    assert rows["deletion", "input-x-gradient"]["skill"] > 0 > rows["deletion", "negative"]["skill"]
    whole = found.joined(found)
    assert whole.scores.shape[-1] == 6
    other = evaluate(case.network, case.x, [], ["deletion:fill=0.0", "insertion:fill=0.0"], 1, maps={"negative": -exact})
    with pytest.raises(UsageError, match="no common mean"):
        found.joined(other)


def test_maps_beside_their_own_values_at_other_places(tmp_path: Path) -> None:
    """The exact map surpasses every shuffled version of itself; a map that knows nothing does not; resumed to the bit."""
    case, exact = oracle(images=3)
    count = 19

    def run(**settings):
        metrics = ["deletion:fill=0.0,of=target", "faithfulness-correlation:fill=0.0", "random-logit", "gini"]
        return evaluate(case.network, case.x, [], metrics, 1, maps={"exact": exact}, **settings)

    found = run(permutations=count, store=tmp_path)
    assert found.shuffled is not None
    assert found.shuffled.shape == (4, count, 3, 3)
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    for k, metric in enumerate(found.metrics[:2]):
        shuffled = permutations(metric, replace(case, maps=exact[None], names=("exact",)), count).shuffled[:, 0]
        assert torch.allclose(found.shuffled[k, :, 0], shuffled, rtol=0, atol=1e-12)
        row, means = rows[metric.name, "exact"], shuffled.mean(1) * metric.direction
        assert row["p_shuffled"] == 1 / (1 + count)
        assert row["skill_shuffled"] == pytest.approx(row["mean"] * metric.direction - float(means.mean()))
        assert row["z"] == pytest.approx(row["skill_shuffled"] / float(means.std()))
        assert rows[metric.name, "random"]["p_shuffled"] > 1 / (1 + count)  # noise is no better than noise
        edges = (found.scores[k, 0] - found.scores[k, 2]).mean() * metric.direction
        assert row["skill_edges"] == pytest.approx(float(edges))
    for name in ("random-logit", "gini"):  # makes maps anew; does not look at places
        assert math.isnan(rows[name, "exact"]["skill_shuffled"])
        assert math.isnan(rows[name, "exact"]["p_shuffled"])
    again = run(permutations=count, store=tmp_path)
    assert torch.equal(again.shuffled.nan_to_num(9), found.shuffled.nan_to_num(9))
    assert run().shuffled is None


def test_many_images_are_the_same_as_each_alone() -> None:
    case, exact = oracle(images=11)
    whole = evaluate(case.network, case.x, [], ["deletion", "faithfulness-correlation"], 1, maps={"exact": exact})
    few = evaluate(case.network, case.x[:3], [], ["deletion", "faithfulness-correlation"], 1, maps={"exact": exact[:3]})
    assert torch.allclose(whole.scores[..., :3], few.scores, atol=1e-12)


def test_a_metric_that_cannot_be_had_leaves_the_others_their_scores() -> None:
    class Refuses(Backwards, name="refuses"):
        """It cannot."""

        def score(self, case):
            raise cs.UnsupportedError("not for this target")

    case, exact = oracle()
    found = evaluate(case.network, case.x, [], ["gini", Refuses()], 1, maps={"exact": exact}, truth=case.truth, permutations=2)
    assert found.scores[1].isnan().all()
    assert not found.scores[0].isnan().any()
    assert found.left_out == {("refuses", name): "not for this target" for name in ("exact", "random", "edges")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metrics": []}, "no metrics"),
        ({"metrics": ["deletionn"]}, "did you mean"),
        ({"maps": {}}, "no methods"),
        ({"maps": {"a": torch.zeros(3, 5, 5)}}, "one for each image at its size"),
        ({"nulls": ["noise"]}, "no null 'noise'"),
        ({"maps": {"random": torch.zeros(3, 12, 12)}}, "two maps are called"),
        ({"maps": {"a": torch.full((3, 12, 12), float("nan"))}}, "not finite"),
    ],
)
def test_wrong_use_says_what_to_do(settings, words) -> None:
    case, exact = oracle()
    given = {"metrics": ["deletion"], "maps": {"exact": exact}, **settings}
    with pytest.raises(cs.ConvoscopeError, match=words):
        evaluate(case.network, case.x, [], target=1, **given)
