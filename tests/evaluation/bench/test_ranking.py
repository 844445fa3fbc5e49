"""The ranking of metrics, against plain definitions, with metrics of which it is known how they rank."""

import math
from pathlib import Path

import pytest
import torch

import convoscope as cs
from convoscope.evaluation.base import Case, Metric, seeded
from convoscope.evaluation.bench.parts import Parts, played
from convoscope.evaluation.bench.ranking import RESAMPLES, agreement, asked_for, rank, rank_metrics
from convoscope.evaluation.bench.reliability import reliability
from convoscope.evaluation.bench.run import bench
from convoscope.testing.metrics import oracle

METHODS, IMAGES = 9, 5


def plain_spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of mean ranks, by counting."""
    ranks = [[sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values] for values in (a, b)]
    centered = [[r - sum(own) / len(own) for r in own] for own in ranks]
    scale = math.prod(math.sqrt(sum(r * r for r in own)) for own in centered)
    return sum(x * y for x, y in zip(*centered, strict=True)) / scale if scale else math.nan


class _Known(Metric, abstract=True):
    """Judges a map by what its first pixel says."""

    name, title, family = "known", "Known", "faithfulness"

    def passes(self, case: Case) -> int:
        return 0

    def score(self, case: Case) -> torch.Tensor:
        return case.maps[:, :, 0, 0]


class _Lower(_Known, abstract=True):
    name, direction = "lower", -1

    def score(self, case: Case) -> torch.Tensor:
        return -case.maps[:, :, 0, 0]


class _Negated(_Known, abstract=True):
    name = "negated"

    def score(self, case: Case) -> torch.Tensor:
        return -case.maps[:, :, 0, 0]


class _Blind(_Known, abstract=True):
    name = "blind"

    def score(self, case: Case) -> torch.Tensor:
        draws = [[torch.rand(1, generator=seeded(7, m, place)).item() for place in case.places] for m in range(len(case.maps))]
        return torch.tensor(draws, dtype=torch.float64)


@pytest.fixture
def known() -> tuple[Case, torch.Tensor]:
    """Maps whose first pixel is their exact score."""
    case, exact = oracle(3, images=IMAGES)
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(METHODS)[:, None] / METHODS + 0.3 * torch.rand(METHODS, IMAGES, generator=g, dtype=torch.float64)
    maps = exact.expand(METHODS, -1, -1, -1).clone()
    maps[:, :, 0, 0] = truth
    names = (*(f"method {m}" for m in range(METHODS - 2)), "oracle", "random")
    maps[-1, :, 0, 0], maps[-2, :, 0, 0] = 0, 2
    return Case(case.network, case.x, case.target, maps, names, truth=case.truth), truth


def test_a_metric_that_knows_the_truth_is_first_and_its_negative_last(known) -> None:
    case, truth = known
    found = rank(case, truth, [_Negated(), _Blind(), _Lower(), _Known()])
    rows = {row["metric"]: row for row in found.rows()}
    assert found.rows()[-1]["metric"] == "negated"
    assert {row["metric"] for row in found.rows()[:2]} == {"known", "lower"}
    for name, sign in (("known", 1), ("lower", 1), ("negated", -1)):
        for of in ("agreement", "image", "low", "high", "image_low", "image_high"):
            assert rows[name][of] == pytest.approx(sign)
    assert rows["known"]["oracle"] == 1
    assert rows["known"]["random"] == 0
    assert rows["negated"]["oracle"] == 0
    assert rows["negated"]["random"] == 1
    assert rows["blind"]["low"] < rows["blind"]["agreement"] < rows["blind"]["high"] < 1
    assert all(row["methods"] == METHODS - 2 for row in rows.values()), "controls are no methods"


def test_agreement_is_that_of_a_plain_loop() -> None:
    g = torch.Generator().manual_seed(3)
    truth = torch.randn(METHODS, IMAGES + 3, generator=g, dtype=torch.float64)
    scores = truth[:, :IMAGES] + torch.randn(METHODS, IMAGES, generator=g, dtype=torch.float64).round()
    scores[2, 1] = scores[5] = torch.nan  # one image, one method
    truth[4] = torch.nan
    own = [m for m in range(METHODS) if m not in (4, 5)]

    def mean(values: torch.Tensor, m: int, images: list[int]) -> float:
        there = [float(values[m, i]) for i in images if not math.isnan(values[m, i])]
        return sum(there) / len(there) if there else mean(values, m, list(range(values.shape[1])))

    everything = list(range(IMAGES)), list(range(IMAGES + 3))
    over = plain_spearman([mean(scores, m, everything[0]) for m in own], [mean(truth, m, everything[1]) for m in own])
    each = []
    for i in range(IMAGES):
        both = [m for m in own if not math.isnan(scores[m, i])]
        each.append(plain_spearman([float(scores[m, i]) for m in both], [float(truth[m, i]) for m in both]))
    drawn = [
        torch.randint(n, (RESAMPLES, n), generator=seeded(11, "agreement", w))
        for n, w in ((IMAGES, "images"), (IMAGES + 3, "items"))
    ]
    draws, alone = [], []
    for images, items in zip(drawn[0].tolist(), drawn[1].tolist(), strict=True):
        draws.append(plain_spearman([mean(scores, m, images) for m in own], [mean(truth, m, items) for m in own]))
        alone.append(sum(each[i] for i in images) / IMAGES)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(ends).tolist()
    image_low, image_high = torch.tensor(alone, dtype=torch.float64).quantile(ends).tolist()
    assert agreement(scores, truth, 11) == pytest.approx(
        (over, low, high, sum(each) / IMAGES, image_low, image_high), abs=1e-12
    )


def test_few_methods_or_equal_ones_have_no_order() -> None:
    values = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert all(math.isnan(v) for v in agreement(values[:3], values[:3]))
    assert math.isnan(agreement(torch.ones(6, 4, dtype=torch.float64), values)[0])
    assert math.isnan(agreement(values[:, :1], values[:, :1])[1]), "one image has no interval"


def test_reliability_is_how_well_halves_predict_each_other() -> None:
    g = torch.Generator().manual_seed(5)
    order, noise = torch.arange(12.0, dtype=torch.float64)[:, None], torch.randn(12, 20, generator=g, dtype=torch.float64)
    assert reliability(order.expand(-1, 20)) == pytest.approx(1)
    assert 0 <= reliability(noise) < 0.6
    found = [reliability(order + s * noise) for s in (2, 8, 40)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9 > found[1] > 0.4
    lacking = order + 2 * noise
    lacking[3] = torch.nan
    assert reliability(lacking) == pytest.approx(reliability(lacking[[i for i in range(12) if i != 3]]))
    halves = [torch.randperm(20, generator=g) for g in [seeded(0, "halvings")] for _ in range(200)]
    plain = [plain_spearman(lacking[4:, h[:10]].mean(1).tolist(), lacking[4:, h[10:]].mean(1).tolist()) for h in halves]
    r = sum(plain) / len(plain)
    assert reliability(lacking[4:]) == pytest.approx(2 * r / (1 + r))
    assert math.isnan(reliability(noise[:3]))
    assert math.isnan(reliability(noise[:, :3]))


def test_threads_do_not_matter_and_what_is_wrong_is_said(known) -> None:
    case, truth = known
    steps: list[tuple[int, int]] = []
    chosen = ["deletion:steps=3", "faithfulness-correlation:count=8", "rank-accuracy"]
    one = rank(case, truth, chosen, workers=1, progress=lambda *s: steps.append(s))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert torch.allclose(one.scores, rank(case, truth, chosen, workers=3).scores, atol=1e-12)
    direct = cs.metrics()["deletion"].make({"steps": 3}).score(case)
    assert torch.allclose(one.scores[0], direct, atol=1e-12)
    with pytest.raises(cs.UsageError, match="random-logit makes maps anew, and the case has maps alone"):
        rank(case, truth, ["random-logit"])
    with pytest.raises(cs.UsageError, match="the truth is a score of each map"):
        rank(case, truth[:, :2], chosen)
    with pytest.raises(cs.UsageError, match="compares maps with a mask"):
        rank(Case(case.network, case.x, case.target, case.maps, case.names), truth, ["rank-accuracy"])


def test_all_metrics_are_asked_or_it_is_said_why_not() -> None:
    for quick in (True, False):
        asked, left_out = asked_for(None, quick)
        assert {m.name for m in asked} | set(left_out) == set(cs.metrics())
        assert not {m.name for m in asked} & set(left_out)
        assert all(left_out.values())
    assert {m.name for m in asked} >= {"road", "aic", "gini"}


def test_information_curves_are_defined_on_drawn_pictures(tmp_path: Path) -> None:
    """Flat pictures need fewer bytes whole than partly filled in, so these fill with the mean. Stored scores are the same."""
    run = bench(["gradient", "grad-cam", "lrp", "guided-backprop"], ["parts:pictures=2"], quick=True)
    asked = [m for m in asked_for(None, False)[0] if m.name in ("aic", "sic")]
    found, again = (rank_metrics(run, asked, pictures=2, store=tmp_path) for _ in range(2))
    assert (~found.scores.isnan()).any(-1).all()
    assert torch.equal(found.scores.nan_to_num(9), again.scores.nan_to_num(9))
    assert len(list(tmp_path.iterdir())) >= 2


def test_ranked_on_the_maps_that_a_benchmark_kept() -> None:
    methods = ["gradient", "grad-cam", "input-x-gradient", "guided-backprop", "lrp"]
    run = bench(methods, [Parts(pictures=4), "tris:pictures=2,scenario=rigid"], quick=True)
    found = rank_metrics(run, ["rank-accuracy", "gini", "infidelity:count=10"], pictures=3)
    assert found.scores.shape == (3, 8, 3)
    assert found.truth.shape == (8, 4)
    assert found.names == (*methods, "oracle", "edges", "random")
    assert torch.equal(found.truth[1], run.of("parts").scores[run.of("parts").names.index("grad-cam")])
    rows = {row["metric"]: row for row in found.rows()}
    assert rows["rank-accuracy"]["oracle"] == 1
    assert rows["rank-accuracy"]["passes"] == 0
    assert all(-1 <= row[n] <= 1 for row in rows.values() for n in ("agreement", "overall", "image"))
    game, values = played("scenes", 4, Parts().seed).games[0], run.kept["parts"].by_name["lrp"][0].double()
    where = torch.zeros(values.shape, dtype=torch.bool)
    for mask, worth in zip(game.masks, game.worth, strict=True):
        where |= mask.bool() & bool(worth > 0)
    best = values.flatten().argsort(descending=True)[: int(where.sum())]
    assert float(found.scores[0, methods.index("lrp"), 0]) == pytest.approx(
        float(where.flatten()[best].double().mean()), abs=0.01
    )
    again = rank_metrics(run, ["gini", "max-sensitivity:count=2"], pictures=3)
    assert again.metrics[1].name == "max-sensitivity"
    assert again.scores[1, len(methods) :].isnan().all(), "controls make no maps"
    assert rank_metrics(run, ["max-sensitivity:count=2"], pictures=3).scores.shape == (1, 8, 3)
    with pytest.raises(cs.UsageError, match="no metrics to rank"):
        rank_metrics(run, [])
    x, target = run.kept["parts"].x[:3], cs.Logit(run.kept["parts"].target.index[:3])
    maps = cs.explain(run.kept["parts"].network, x, "lrp", target).heatmap().double()
    case = Case(run.kept["parts"].network, x, target, maps[None], ("lrp",), (cs.methods()["lrp"](),))
    expected = cs.metrics()["max-sensitivity"].make({"count": 2}).score(case)[0]
    assert torch.allclose(again.scores[1, methods.index("lrp")], expected, rtol=1e-3)
    assert set(found.to_dict()) >= {"rows", "scores", "exact", "reliability", "metrics", "names"}
    with pytest.raises(cs.UsageError, match="ranked on the task 'parts'"):
        rank_metrics(bench(["gradient"], ["tris:pictures=2,scenario=rigid"], quick=True))
