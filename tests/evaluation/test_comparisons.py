"""Which methods are told apart: against published definitions, by simulation, and the groups that are drawn."""

import itertools
import math

import pytest
import torch

from convoscope.evaluation import Deletion, Insertion
from convoscope.evaluation.comparisons import Pairs, cover, letters
from convoscope.evaluation.result import Evaluation
from convoscope.evaluation.statistics import interval, told_apart

NAN = math.nan


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64).log().neg()


def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.triu_indices(count, count, 1)
    return first, second


@pytest.mark.parametrize("images", [2, 7, 11])
def test_one_pair_is_the_paired_permutation_test(images: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for seed in range(4):
        a, b = normal(images, seed=seed), normal(images, seed=seed + 99).round() / 2
        expected = stats.permutation_test((a.numpy(), b.numpy()), lambda x, y, axis: (x - y).mean(axis),
                                          permutation_type="samples", vectorized=True, n_resamples=math.inf).pvalue  # fmt: skip
        each, together = told_apart((a - b)[None])
        assert float(each) == pytest.approx(expected, abs=1e-12)
        assert float(together) == float(each)


def test_of_signed_ranks_it_is_wilcoxons_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    gap = normal(10) + 0.4
    ranks = (gap.abs().argsort().argsort() + 1) * gap.sign()  # the mean of signed ranks is his statistic
    assert float(told_apart(ranks[None])[0]) == pytest.approx(stats.wilcoxon(gap.numpy(), mode="exact").pvalue, abs=1e-12)


def test_flips_at_random_come_close_to_all_of_them() -> None:
    gap = normal(3, 13) + torch.tensor([[0.0], [0.3], [0.8]]).double()
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=13)), dtype=torch.float64)
    exact = ((signs @ gap.T).abs() >= gap.sum(1).abs() * (1 - 1e-12)).double().mean(0)
    found = told_apart(gap, seed=5)[0]
    assert ((found - exact).abs() <= 4 * (exact * (1 - exact) / 2000).sqrt() + 1 / 2000).all()
    assert torch.equal(found, told_apart(gap, seed=5)[0])
    assert not torch.equal(found, told_apart(gap, seed=6)[0])


def test_all_together_is_the_step_down_of_the_largest() -> None:
    """Westfall and Young's algorithm, written out."""
    gap = normal(4, 8) + torch.tensor([0.0, 0.5, 1.0, 2.0]).double()[:, None]
    gap[1, 2:4] = NAN
    clean = gap.nan_to_num(0)
    z = [float(row.sum() / row.square().sum().sqrt()) for row in clean]
    order, expected, before = sorted(range(4), key=lambda i: -abs(z[i])), {}, 0.0
    for k, i in enumerate(order):
        reached = 0
        for signs in itertools.product((1.0, -1.0), repeat=8):
            flipped = clean * torch.tensor(signs, dtype=torch.float64)
            largest = max(abs(float(flipped[j].sum() / flipped[j].square().sum().sqrt())) for j in order[k:])
            reached += largest >= abs(z[i]) - 1e-12
        expected[i] = before = max(before, reached / 2**8)
    each, together = told_apart(gap)
    assert together.tolist() == pytest.approx([expected[i] for i in range(4)], abs=1e-12)
    assert (together >= each).all()


@pytest.mark.parametrize(("images", "methods"), [(7, 5), (10, 8), (20, 4)])
def test_methods_that_are_alike_are_called_different_in_one_evaluation_of_twenty(images: int, methods: int) -> None:
    """Skewed scores, half of the methods truly better: no more errors than promised, and the difference is found."""
    g = torch.Generator().manual_seed(1)
    first, second = pairs(methods)
    alike = (first < methods // 2) == (second < methods // 2)
    errors, found, runs = 0, 0.0, 300
    for seed in range(runs):
        scores = skewed(g, methods, images) + 2.0 * (torch.arange(methods) >= methods // 2)[:, None]
        shown = told_apart(scores[first] - scores[second], seed)[1] <= 0.05
        errors += bool(shown[alike].any())
        found += float(shown[~alike].double().mean()) / runs
    assert errors <= runs * 0.05 + 3 * math.sqrt(runs * 0.05 * 0.95)
    assert found > (0.4 if images < 10 else 0.7)


def test_where_nothing_differs_p_values_of_a_pair_are_uniform() -> None:
    each = told_apart(skewed(torch.Generator().manual_seed(2), 2, 600, 9).diff(dim=0)[0])[0]
    for level in (0.05, 0.25, 0.5, 0.75):
        share = float((each <= level).double().mean())
        assert abs(share - level) <= 4 * math.sqrt(level * (1 - level) / 600) + 1 / 2**8, level


def test_missing_scores_and_ties() -> None:
    gap = torch.tensor([[1.0, NAN, NAN], [0.0, 0.0, 0.0], [NAN] * 3, [1.0, 2.0, NAN]]).double()
    each, together = told_apart(gap)
    assert each.isnan().tolist() == together.isnan().tolist() == [True, False, True, False]
    assert (float(each[1]), float(together[1]), float(each[3])) == (1.0, 1.0, 0.5)
    assert told_apart(torch.zeros(0, 5))[0].shape == (0,)
    scores = torch.tensor([[1.0, 2, 3, 4, NAN], [1.0, 1, 1, 5, 9]]).double()
    (row,) = Pairs("m", ("a", "b"), scores).rows
    assert (row.images, row.superiority, row.difference) == (4, (2 + 0.5) / 4, (0 + 1 + 2 - 1) / 4)
    low, high = interval((scores[0] - scores[1])[None])
    assert (row.low, row.high) == (float(low), float(high))


def test_groups_say_of_every_pair_whether_it_is_told_apart() -> None:
    g = torch.Generator().manual_seed(3)
    for count, share in itertools.product((1, 2, 5, 12, 40), (0.0, 0.3, 0.8, 1.0)):
        half = (torch.rand(count, count, generator=g) < share).triu(1)
        groups = cover(half | half.T)
        assert {i for group in groups for i in group} == set(range(count))
        for i, j in zip(*(p.tolist() for p in pairs(count)), strict=True):
            assert any(i in group and j in group for group in groups) == (not half[i, j])
        assert not any(set(a) < set(b) for a, b in itertools.permutations(groups, 2))
    line = torch.tensor([[abs(i - j) > 2 for j in range(6)] for i in range(6)])
    assert cover(line) == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert letters([["x", "y"], ["y", "z"]]) == {"x": "a", "y": "ab", "z": "b"}
    many = letters([[str(k)] for k in range(60)])
    assert len(set(many.values())) == 60
    assert (many["25"], many["26"], many["52"]) == ("z", "a2", "a3")


def test_an_evaluation_compares_its_methods_but_not_maps_that_know_nothing() -> None:
    """Two fills of a metric have names of their own; what is better depends on the direction; a method without scores."""
    noise = normal(4, 12) / 50
    scores = torch.stack([noise - torch.tensor([2.0, 1.0, 1.0, 0.0]).double()[:, None], noise, -noise])
    scores[:, 1] = NAN
    metrics = (Deletion(), Deletion(fill="blur"), Insertion())
    found = Evaluation(metrics, ("a", "gone", "b", "random"), ("random",), scores, ("probability",) * 3)
    assert found.labels[1:] == ["deletion:fill=blur", "insertion"]
    first = found.labels[0]
    assert first.startswith("deletion:fill=")
    assert found.groups(first) == [["a"], ["b"]]
    assert found.best(first) == ["a"]
    assert [(c.a, c.b) for c in found.comparisons(first)] == [("a", "gone"), ("a", "b"), ("gone", "b")]
    one = found.comparisons(first)[1]
    assert one.difference == pytest.approx(1.0, abs=0.05)
    assert one.low < one.difference < one.high
    assert (one.superiority, one.p_all, one.images) == (1.0, 2 / 2**12, 12)
    assert math.isnan(found.comparisons(first)[0].p)
    assert len(found.comparisons()) == 9
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    assert len(rows) == 12
    assert [rows[first, n]["group"] for n in found.names] == ["a", "", "b", ""]
    alone = Evaluation(metrics, found.names, found.nulls, scores[..., :1], found.units)
    assert alone.groups(first) == alone.best(first) == []
    assert {r["group"] for r in alone.rows()} == {""}
