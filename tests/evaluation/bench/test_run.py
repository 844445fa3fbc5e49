"""The runner of the benchmark: skill, intervals, ranks and refusals by hand; the same numbers however it is run."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.errors import SpecError, UnsupportedError, UsageError
from convoscope.core.spec import _REGISTRY, About
from convoscope.evaluation.bench import tasks
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.result import Bench, Outcome
from convoscope.evaluation.bench.run import DRAWS, FULL_LIMITS, Explained, bench, cheap, fitting, moderate, random_maps
from convoscope.evaluation.bench.store import Store
from convoscope.evaluation.statistics import adjusted, paired

SIDE = 6


class Linear(nn.Module):
    """The weights are the pixels of a fixed pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(SIDE * SIDE, 2, dtype=torch.float64)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(2, SIDE * SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(x))


NET = cs.Network(Linear().eval(), size=SIDE, categories=("a", "b"))
X = torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Weights(Task, abstract=True):
    """How alike is a map to the weights of a linear network?"""

    name = "weights"
    title, exact, measures = "Weights", "they are the weights", "correlation with the weights"
    index: Annotated[int, "which class"] = 0

    def score(self, mapper: Mapper) -> Tensor:
        maps = mapper(NET, X, cs.Logit(self.index), tuple(range(len(X)))).flatten(1)
        return torch.stack([torch.corrcoef(torch.stack([m, NET.plain.fc.weight[self.index]]))[0, 1].detach() for m in maps])

    def oracle(self) -> Mapper:
        return lambda network, x, target, places: (
            NET.plain.fc.weight[self.index].detach().view(1, SIDE, SIDE).expand(len(x), -1, -1)
        )


class Signs(Weights, abstract=True):
    """Another task on the same network."""

    name = "signs"
    title = "Signs"
    range = (0.0, 1.0)

    def score(self, mapper: Mapper) -> Tensor:
        maps = mapper(NET, X, cs.Logit(self.index), tuple(range(len(X))))
        return (maps.flatten(1).sign() == NET.plain.fc.weight[self.index].sign()).double().mean(1)


class Counting(cs.Method, abstract=True):
    """The gradient, which notes how many pictures it was asked for."""

    name = "counting"
    title, unit = "Counting", "{target} per unit of input"
    about = About("decision", "", "", "", "")
    asked: ClassVar[list[int]] = []

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return probe.grad(x)

    def evaluations(self, x: Tensor) -> int:
        return 1


class Refusing(Counting, abstract=True):
    """Explains nothing."""

    name = "refusing"
    title = "Refusing"

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        raise UnsupportedError("not this network")


class Failing(Counting, abstract=True):
    """Is wrong."""

    name = "failing"

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        raise RuntimeError("a mistake")


@pytest.fixture(scope="module")
def found() -> Bench:
    return bench(["gradient", "input-x-gradient", Refusing()], [Weights(), Signs()], quick=False, workers=1)


def test_skill_is_the_way_from_chance_to_the_right_answer(found: Bench) -> None:
    assert found.names == ("gradient", "input-x-gradient", "refusing", "oracle", "edges", "random")
    for task in (Weights(), Signs()):
        outcome = found.of(task.name)
        drawn = torch.stack([task.score(random_maps(0, k)) for k in range(2 * DRAWS)])
        assert torch.allclose(outcome.chance, drawn[:DRAWS].mean(0))
        assert torch.allclose(outcome.scores[5], drawn[DRAWS:].mean(0))
        fresh = cs.explain(NET, X, "input-x-gradient", 0).heatmap()
        score = task.score(lambda *_, fresh=fresh: fresh)
        assert torch.allclose(outcome.scores[1], score)
        by_hand = (score.mean() - drawn[:DRAWS].mean()) / (1 - drawn[:DRAWS].mean())
        assert float(outcome.skill[1]) == pytest.approx(float(by_hand))
        assert float(outcome.skill[0]) == pytest.approx(1.0)
        assert float(outcome.skill[3]) == pytest.approx(1.0)


def test_rows_have_intervals_ranks_and_p(found: Bench) -> None:
    rows = {(r["task"], r["method"]): r for r in found.rows()}
    assert len(rows) == 12
    outcome = found.of("weights")
    for name, row in ((n, rows["weights", n]) for n in found.names if n != "refusing"):
        assert row["low"] <= row["mean"] <= row["high"], name
        assert row["skill_low"] <= row["skill"] <= row["skill_high"], name
    assert [rows["weights", n]["rank"] for n in found.names] == [1, 2, None, None, None, None]
    own = [0, 1, 2, 3, 4]
    raw = torch.tensor([paired(outcome.scores[i], outcome.chance) for i in own], dtype=torch.float64)
    assert rows["weights", "gradient"]["p"] == pytest.approx(float(adjusted(raw)[0]))


def test_a_refusal_has_its_reason_and_counts_as_chance(found: Bench) -> None:
    row = next(r for r in found.rows() if r["method"] == "refusing")
    assert row["reason"] == "not this network"
    assert row["mean"] != row["mean"]
    assert row["items"] == 0
    half = bench([Refusing(), "gradient"], [Weights()], quick=False)
    assert [r["method"] for r in half.ranking()][-1] == "refusing"
    assert half.ranking()[-1]["rank"] is None


def by_hand() -> tuple[Outcome, Outcome]:
    """Two tasks of two items: on the first, chance is 0 between -1 and 1, on the second 1/2 between 0 and 1."""
    names = ("good", "bad", "half", "oracle")
    nan = float("nan")
    scores = torch.tensor([[0.5, 0.7], [-0.5, -0.3], [0.6, 0.6], [1.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[0.75, 0.85], [0.1, 0.3], [nan, nan], [1.0, 1.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    return Outcome(Weights(), names, scores, zero), Outcome(Signs(), names, other, zero + 0.5, {"half": "no"})


def test_skill_below_chance_is_the_way_to_the_worst_score() -> None:
    first, second = by_hand()
    assert first.skill.tolist() == pytest.approx([0.6, -0.4, 0.6, 1.0])
    assert second.skill.tolist() == pytest.approx([0.6, -0.6, float("nan"), 1.0], nan_ok=True)


def test_ranking_is_the_mean_over_tasks_where_refusing_counts_as_chance() -> None:
    outcomes = by_hand()
    made = Bench(outcomes, outcomes[0].names, outcomes[0].names, ())
    ranking = {r["method"]: r for r in made.ranking()}
    names = made.names
    assert [ranking[n]["skill"] for n in names] == pytest.approx([0.6, -0.5, 0.3, 1.0])
    assert [ranking[n]["rank"] for n in names] == [1, 3, 2, None]
    assert [ranking[n]["tasks"] for n in names] == [2, 2, 1, 2]
    assert ranking["good"]["low"] == pytest.approx(0.5)
    assert ranking["good"]["high"] == pytest.approx(0.7)


def test_how_sure_an_order_is_concerns_methods_alone() -> None:
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    names = ("a", "b", "c", "d", "oracle", "random")
    outcome = Outcome(Weights(), names, scores, torch.zeros(9, dtype=torch.float64))
    other = Outcome(Weights(), names, torch.cat([scores[:4], -scores[4:]]), outcome.chance)
    assert outcome.reliability() == other.reliability()


def test_maps_asked_for_before_are_not_made_again() -> None:
    method = Counting()
    method.asked.clear()
    mapper = Explained(method)
    first = mapper(NET, X, cs.Logit((0, 1, 0, 1, 0)), (0, 1, 2, 3, 4))
    again = mapper(NET, X[[4, 1]], cs.Logit((0, 1)), (0, 1))
    assert method.asked == [5]
    assert torch.equal(again, first[[4, 1]])
    other = mapper(NET, X[[4, 1]], cs.Logit((1, 1)), (0, 1))
    assert method.asked == [5, 1]
    assert torch.equal(other[1], first[1])
    assert torch.allclose(other[0], NET.plain.fc.weight[1].view(SIDE, SIDE))
    twin = cs.Network(Linear().eval(), size=SIDE, categories=("a", "b"))
    mapper(twin, X[:1], cs.Logit(0), (0,))
    assert method.asked == [5, 1, 1]


def test_numbers_depend_on_the_seed_alone(found: Bench) -> None:
    again = bench(["gradient", "input-x-gradient", Refusing()], [Weights(), Signs()], quick=False, workers=3)
    other = bench(["gradient"], [Weights()], quick=False, seed=1)
    for a, b in zip(found.outcomes, again.outcomes, strict=True):
        assert torch.allclose(a.scores, b.scores, equal_nan=True)
        assert torch.equal(a.chance, b.chance)
    assert [r["rank"] for r in found.ranking()] == [r["rank"] for r in again.ranking()]
    assert not torch.equal(found.outcomes[0].chance, other.outcomes[0].chance)


def test_threads_are_as_before(found: Bench) -> None:
    before = torch.get_num_threads()
    bench(["gradient"], [Weights()], workers=2)
    with pytest.raises(RuntimeError, match="a mistake"):
        bench([Failing()], [Weights()], workers=2)
    assert torch.get_num_threads() == before


def test_progress_counts_methods() -> None:
    seen: list[tuple[int, int]] = []
    bench(["gradient", "input-x-gradient"], [Weights()], workers=1, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 2), (2, 2)]


def test_a_store_goes_on_from_what_is_done(found: Bench, tmp_path: Path) -> None:
    """The same numbers, refusals too; only what is missing or damaged is made again."""
    asked, who = [Weights(), Signs()], ["input-x-gradient", Counting(), Refusing()]

    def again() -> Bench:
        return bench(who, asked, quick=False, workers=1, store=tmp_path)

    Counting.asked.clear()
    first, asked_for = again(), list(Counting.asked)
    assert asked_for
    assert len(list(tmp_path.iterdir())) == len(who) * len(asked)
    second = again()
    assert Counting.asked == asked_for
    for one, two in zip(first.outcomes, second.outcomes, strict=True):
        assert torch.equal(one.scores.nan_to_num(9), two.scores.nan_to_num(9))
        assert one.reasons == two.reasons == {"refusing": "not this network"}
    assert torch.equal(second.of("weights").scores[0], found.of("weights").scores[1])
    path = Store(tmp_path).path(Signs(), Counting(), 0)
    path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(again().of("signs").scores[1], first.of("signs").scores[1])
    assert len(Counting.asked) == len(asked_for) + 1
    bench([Counting()], [Weights(index=1)], quick=False, workers=1, store=tmp_path)
    assert len(Counting.asked) == len(asked_for) + 2, "another task is another score"


def test_maps_for_the_ranking_of_metrics_are_stored(tmp_path: Path) -> None:
    runs = [bench(["gradient"], ["parts:pictures=2"], quick=False, store=tmp_path) for _ in range(2)]
    assert runs[0].kept["parts"].names == runs[1].kept["parts"].names == ("gradient", "oracle", "edges", "random")
    assert torch.equal(runs[0].kept["parts"].maps, runs[1].kept["parts"].maps)


def test_the_full_size_keeps_settings_that_were_chosen() -> None:
    assert moderate(cs.RISE(masks=4000)) == cs.RISE(masks=FULL_LIMITS["masks"])
    found = bench(["integrated-gradients", "integrated-gradients:steps=40"], [Weights()], quick=False)
    assert [m.steps for m in found.methods] == [FULL_LIMITS["steps"], 40]  # type: ignore[attr-defined]
    own = bench([cs.IntegratedGradients(steps=41)], [Weights()], quick=False)
    assert own.methods == (cs.IntegratedGradients(steps=41),)


def test_cheap_is_less_of_the_same() -> None:
    assert cheap(cs.IntegratedGradients(steps=500)) == cs.IntegratedGradients(steps=8)
    assert cheap(cs.IntegratedGradients(steps=3, baseline="white")) == cs.IntegratedGradients(steps=3, baseline="white")
    inside = cheap(cs.SmoothGrad(of=cs.IntegratedGradients(steps=64), samples=2))
    assert inside == cs.SmoothGrad(of=cs.IntegratedGradients(steps=8), samples=2)
    x = torch.zeros(1, 3, 96, 96)
    for name, method in ((n, m()) for n, m in cs.methods().items()):
        assert type(cheap(method)) is type(method), name
        assert cheap(method).evaluations(x) <= method.evaluations(x), name
        assert cheap(cheap(method)) == cheap(method), name


def test_windows_fit_small_pictures() -> None:
    assert fitting(cs.Occlusion(window=32, stride=16), 96) == cs.Occlusion(window=32, stride=16)
    assert fitting(cs.Occlusion(window=32, stride=16), 24) == cs.Occlusion(window=8, stride=4)
    assert fitting(cs.Occlusion(window=32, stride=16), 2) == cs.Occlusion(window=1, stride=1)
    assert fitting(cs.SmoothGrad(), 8) == cs.SmoothGrad()


def test_wrong_usage_is_told() -> None:
    with pytest.raises(UsageError, match="two methods are called 'gradient'"):
        bench(["gradient", cs.Gradient()], [Weights()])
    with pytest.raises(UsageError, match="nothing to do"):
        bench([], [Weights()])
    with pytest.raises(SpecError, match="did you mean"):
        bench(["gradient"], ["part"])
    with pytest.raises(UsageError, match="workers is 0"):
        bench(["gradient"], [Weights()], workers=0)
    with pytest.raises(UsageError, match="a task is its name or a Task"):
        bench(["gradient"], [3])  # type: ignore[list-item]


def test_it_is_written_whole(found: Bench, tmp_path: Path) -> None:
    document = json.loads(found.save(tmp_path / "r.json").read_text())
    assert document["scores"]["weights"]["refusing"] == [None] * 5
    assert document["tasks"][0]["chance"] == pytest.approx(float(found.of("weights").chance.mean()))
    assert len(found.save(tmp_path / "r.csv").read_text().splitlines()) == 13
    with pytest.raises(UsageError, match="cannot save"):
        found.save(tmp_path / "r.txt")
    with pytest.raises(UsageError, match="no task 'wights' here"):
        found.of("wights")
    assert len(found.table()) == 12


def test_a_task_of_your_own_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "bench.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    space: dict[str, Any] = {"__name__": "bench_of_your_own"}
    try:
        exec(compile(block, "bench.md", "exec"), space)
    finally:
        _REGISTRY["task"].pop("brightest", None)
    assert "'rank': 1" in capsys.readouterr().out
    skill = dict(zip(space["found"].names, space["found"].outcomes[0].skill.tolist(), strict=True))
    assert skill["gradient"] == pytest.approx(1.0)
    assert skill["oracle"] == pytest.approx(1.0)
    assert abs(skill["random"]) < 0.05


def test_the_quick_tasks_on_parts_know_the_answer_from_chance() -> None:
    """The oracle is right, random maps have no skill, and the maps of the pictures stay for the ranking of metrics."""
    known = tasks()
    found = bench(["gradient"], [known[n]() for n in ("parts", "interventions", "zero-influence")])
    for outcome in found.outcomes:
        skill = dict(zip(outcome.names, outcome.skill.tolist(), strict=True))
        assert skill["oracle"] >= 0.99
        assert abs(skill["random"]) <= 0.05
    assert found.kept["parts"].names == found.names
    assert found.kept["parts"].maps.shape == (4, 16, 96, 96)
