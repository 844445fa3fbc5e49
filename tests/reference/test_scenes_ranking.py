"""The ranking on the scenes: its Shapley values are exact, its pictures what they claim, its scores what the page says."""

import sys
from pathlib import Path

import pytest
import torch

import convoscope as cs
from convoscope.evaluation.bench.parts_game import games

sys.path.append(str(Path(__file__).resolve().parents[2]))
ranking = pytest.importorskip("benchmarks.scenes_ranking", reason="the benchmarks are not part of this installation")

GAMES = 3


@pytest.fixture(scope="module")
def network() -> cs.Network:
    return cs.load("scenes")


@pytest.fixture(scope="module")
def played(network: cs.Network) -> list:
    return games(network, GAMES, seed=1000)


def test_scores(played: list) -> None:
    """Shapley values spread over the pixels of their parts score 1, their negatives -1, a constant nothing but area."""
    truth = torch.stack([(g.masks * (g.worth / g.masks.flatten(1).sum(1))[:, None, None]).sum(0) for g in played])
    for maps, expected in ((truth, 1.0), (-truth, -1.0)):
        row = ranking.row("x", "X", maps, played)
        for scores in (row.spearman, row.pearson, row.density):
            assert torch.allclose(scores, torch.full((GAMES,), expected, dtype=scores.dtype), atol=1e-6)
    assert torch.allclose(ranking.row("x", "X", truth, played).share, torch.ones(GAMES), atol=1e-6)
    area = ranking.row("x", "X", torch.ones_like(truth), played)
    assert float(area.density.abs().max()) == 0
    assert float(area.spearman.mean()) > 0


def test_ranks_and_correlation() -> None:
    assert ranking.ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ranking.pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert ranking.pearson(torch.ones(3), torch.tensor([1.0, 2.0, 4.0])) == 0.0
    low, high = ranking.interval(torch.tensor([0.0, 1.0] * 50))
    assert low == pytest.approx(0.4, abs=0.03)
    assert high == pytest.approx(0.6, abs=0.03)


def test_page(network: cs.Network, played: list) -> None:
    x = network.normalize(torch.stack([g.picture for g in played]))
    rows = [*ranking.controls(played), ranking.scored("gradient", network, played, x)]
    rows += [ranking.scored("occlusion:window=32", network, played, x), ranking.Row("none", "None", reason="no way back")]
    page = ranking.page(rows, GAMES, "a command")
    assert [line.count("|") for line in page.splitlines() if line.startswith("|")] == [9] * 8
    assert "`occlusion:window=32`" in page
    assert "- None (`none`): no way back" in page
    assert float(rows[-3].spearman.mean()) > -1
