"""The ranking on the scenes: its Shapley values are exact, its pictures what they claim, its scores what the page says."""

import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.data.scenes import Factors, Scenes, render

sys.path.append(str(Path(__file__).resolve().parents[2]))
scenes_shapley = pytest.importorskip("benchmarks.scenes_shapley", reason="the benchmarks are not part of this installation")
ranking = pytest.importorskip("benchmarks.scenes_ranking")

GAMES = 3


def random_game(players: int, seed: int = 0) -> Tensor:
    return torch.randn(2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("players", [1, 2, 5, 8])
def test_shapley_values_are_efficient(players: int) -> None:
    values = random_game(players)
    assert torch.allclose(scenes_shapley.shapley(values).sum(), values[-1] - values[0], atol=1e-12)


def test_shapley_values_are_means_over_orders() -> None:
    values, players = random_game(4), 4
    found = torch.zeros(players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        present = 0
        for k in order:
            found[k] += values[present | 1 << k] - values[present]
            present |= 1 << k
    assert torch.allclose(scenes_shapley.shapley(values), found / len(orders), atol=1e-12)


def test_shapley_values_of_known_games() -> None:
    """Two left gloves and a right one; a player who adds nothing; an additive game."""
    gloves = torch.tensor([float(bool(s & 4) and bool(s & 3)) for s in range(8)], dtype=torch.float64)
    assert torch.allclose(scenes_shapley.shapley(gloves), torch.tensor([1 / 6, 1 / 6, 4 / 6], dtype=torch.float64))
    assert scenes_shapley.shapley(random_game(2).repeat(2))[2] == 0
    additive = torch.tensor([sum((s >> k & 1) * (k + 1.5) for k in range(3)) for s in range(8)], dtype=torch.float64)
    assert torch.allclose(scenes_shapley.shapley(additive), torch.tensor([1.5, 2.5, 3.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="2\\^n"):
        scenes_shapley.shapley(torch.zeros(3))


@pytest.fixture(scope="module")
def network() -> cs.Network:
    return cs.load("scenes")


@pytest.fixture(scope="module")
def played(network: cs.Network) -> list:
    return scenes_shapley.games(network, GAMES, seed=1000)


def test_games_of_scenes(network: cs.Network, played: list) -> None:
    """The values of the full picture and the sum of the Shapley values are the network's own."""
    for game in played:
        with torch.no_grad():
            score = network.plain(network.normalize(game.picture[None]))[0, game.label].double()
        assert torch.allclose(game.values[-1], score, atol=1e-4)
        assert torch.allclose(game.worth.sum(), game.values[-1] - game.values[0], atol=1e-9)
        assert int(game.masks.sum(0).max()) == 1  # a pixel shows one player
        assert len(game.values) == 2 ** len(game.names)
        assert float(game.worth.abs().max()) > 0.1


def test_a_part_that_does_not_play_is_not_drawn() -> None:
    """The picture changes where the part was and, for shadows, nowhere else; the empty picture has none of the parts."""
    factors: Factors = next(f for k in range(50) if len((f := Scenes(50, seed=3).factors(k)).parts) > 3 and f.distractors)
    names = tuple(scenes_shapley.players_of(factors))
    full, empty = render(factors), render(scenes_shapley.showing(factors, names, 0))
    assert {"object", "distractor 1"} <= set(full.instances)
    assert not any(empty.where(**labels).any() for labels in scenes_shapley.players_of(factors).values())
    everyone = scenes_shapley.showing(factors, names, 2 ** len(names) - 1)
    assert everyone == factors
    last = len(names) - 1  # a distractor
    without = render(scenes_shapley.showing(factors, names, (2 ** len(names) - 1) ^ (1 << last)))
    changed = (without.picture != full.picture).any(-1)
    share = full.share(instance=names[last])
    assert changed.any()
    assert not changed[share == 0].any()


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
