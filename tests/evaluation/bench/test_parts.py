"""Tasks on the parts of scenes: Shapley values are exact, the oracle knows the answer, chance knows nothing."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.errors import UsageError
from convoscope.data.scenes import Factors, Scenes, render
from convoscope.evaluation.bench.parts import Parts, agreement, played, spread
from convoscope.evaluation.bench.parts_game import Game, players_of, shapley, showing
from convoscope.evaluation.bench.run import random_maps

PICTURES = 3


def random_game(players: int, seed: int = 0) -> Tensor:
    return torch.randn(2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("players", [1, 2, 5, 8])
def test_shapley_values_are_efficient(players: int) -> None:
    values = random_game(players)
    assert torch.allclose(shapley(values).sum(), values[-1] - values[0], atol=1e-12)


def test_shapley_values_are_means_over_orders() -> None:
    values, players = random_game(4), 4
    found = torch.zeros(players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        present = 0
        for k in order:
            found[k] += values[present | 1 << k] - values[present]
            present |= 1 << k
    assert torch.allclose(shapley(values), found / len(orders), atol=1e-12)


def test_shapley_values_of_known_games() -> None:
    """Two left gloves and a right one; a player who adds nothing; an additive game."""
    gloves = torch.tensor([float(bool(s & 4) and bool(s & 3)) for s in range(8)], dtype=torch.float64)
    assert torch.allclose(shapley(gloves), torch.tensor([1 / 6, 1 / 6, 4 / 6], dtype=torch.float64))
    assert shapley(random_game(2).repeat(2))[2] == 0
    additive = torch.tensor([sum((s >> k & 1) * (k + 1.5) for k in range(3)) for s in range(8)], dtype=torch.float64)
    assert torch.allclose(shapley(additive), torch.tensor([1.5, 2.5, 3.5], dtype=torch.float64))
    with pytest.raises(UsageError, match="2\\^n"):
        shapley(torch.zeros(3))


@pytest.fixture(scope="module")
def network() -> cs.Network:
    return played("scenes", PICTURES, 1000).network


@pytest.fixture(scope="module")
def games() -> tuple[Game, ...]:
    return played("scenes", PICTURES, 1000).games


def test_games_of_scenes(network: cs.Network, games: tuple[Game, ...]) -> None:
    """The values of the full picture and the sum of the Shapley values are the network's own."""
    for game in games:
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
    names = tuple(players_of(factors))
    full, empty = render(factors), render(showing(factors, names, 0))
    assert {"object", "distractor 1"} <= set(full.instances)
    assert not any(empty.where(**labels).any() for labels in players_of(factors).values())
    everyone = showing(factors, names, 2 ** len(names) - 1)
    assert everyone == factors
    last = len(names) - 1  # a distractor
    without = render(showing(factors, names, (2 ** len(names) - 1) ^ (1 << last)))
    changed = (without.picture != full.picture).any(-1)
    share = full.share(instance=names[last])
    assert changed.any()
    assert not changed[share == 0].any()


def test_the_oracle_of_parts_is_right_and_chance_knows_nothing() -> None:
    task = Parts(pictures=PICTURES)
    assert float(task.score(task.oracle()).mean()) >= 0.99
    drawn = torch.stack([task.score(random_maps(0, k)) for k in range(200)])
    assert abs(float(drawn.mean())) < 0.1


def test_agreement_by_hand(games: tuple[Game, ...]) -> None:
    """The score of a map is what ranking its sums and the Shapley values by hand gives; area alone says nothing."""
    game = games[0]
    values = torch.randn(game.picture.shape[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    areas = [int(m.sum()) for m in game.masks]
    sums = [abs(float(values[m].sum())) / a for m, a in zip(game.masks, areas, strict=True)]
    worth = [abs(float(w)) / a for w, a in zip(game.worth, areas, strict=True)]
    a, b = ([sorted(v).index(x) for x in v] for v in (sums, worth))
    n = len(a)
    expected = 1 - 6 * sum((i - j) ** 2 for i, j in zip(a, b, strict=True)) / (n * (n**2 - 1))
    assert float(agreement(values, game)) == pytest.approx(expected, abs=1e-12)
    assert float(agreement(torch.ones_like(values), game)) == 0.0
    assert float(agreement(-spread(game), game)) == pytest.approx(1.0)
