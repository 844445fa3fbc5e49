"""The closed forms of the hand-set networks, against plain enumeration of all coalitions."""

import itertools
import math

import pytest
import torch

from convoscope.evaluation.bench import analytic, analytic_networks, tasks
from convoscope.evaluation.bench.analytic import Analytic, scene, shares
from convoscope.evaluation.bench.analytic_networks import KINDS, network_of
from convoscope.evaluation.nulls import noise

SMALL = Analytic(norms="mixed", pictures=3)


def enumerated(worth: torch.Tensor, players: int) -> torch.Tensor:
    """Shapley values from the worth of every coalition, the players being the bits of its number."""
    found = torch.zeros(players, dtype=torch.float64)
    for coalition in range(2**players):
        size = coalition.bit_count()
        for player in range(players):
            if not coalition >> player & 1:
                weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
                found[player] += weight * (worth[coalition | 1 << player] - worth[coalition])
    return found


def test_counting_games_are_those_of_all_coalitions() -> None:
    g = torch.Generator().manual_seed(1)
    for first, second in ((1, 0), (4, 0), (2, 3), (5, 4)):
        value = torch.randn(first + 1, second + 1, generator=g, dtype=torch.float64)
        counts = [(c & (1 << first) - 1, c >> first) for c in range(2 ** (first + second))]
        worth = torch.stack([value[a.bit_count(), b.bit_count()] for a, b in counts])
        expected = enumerated(worth, first + second)
        a, b = shares(value)
        assert (expected[:first] - a).abs().max() < 1e-12
        assert (second == 0 and b == 0) or (expected[first:] - b).abs().max() < 1e-12


@pytest.fixture
def tiny(monkeypatch):
    """Templates of four pixels in pictures of 8 x 8: few enough to try every coalition."""
    for module in (analytic, analytic_networks):
        for name, value in {"PATCH": 2, "AREA": 4, "SIDE": 8, "CHANCE": 1}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    analytic._cell.cache_clear()
    yield
    analytic._cell.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_has_the_shapley_value_of_the_network_itself(tiny, kind) -> None:
    for cell in Analytic(network=kind, norms="both", pictures=1 if kind == "additive" else 2, seed=3).cells():
        for number, x in enumerate(cell.x):
            things = scene(kind, 3, number)[1]
            players = [
                (t.row + i, t.column + j) for t in things if t.template < 2 for i, j in itertools.product((0, 1), repeat=2)
            ]
            other = next(t for t in things if t.template == 2)
            players += [(other.row, other.column)]  # of the other class's object,
            players += [p for p in itertools.product(range(8), repeat=2) if p not in players][-1:]  # and one more
            mask = torch.ones(2 ** len(players), 8, 8, dtype=torch.float64)
            bits = torch.arange(len(mask))[:, None] >> torch.arange(len(players)) & 1
            for player, (row, column) in enumerate(players):
                mask[:, row, column] = bits[:, player].double()
            worth = cell.network.module(x * mask[:, None])[:, 1]
            exact = torch.stack([cell.exact[number][p] for p in players])
            fast = torch.zeros(len(players), dtype=torch.float64)
            sizes = bits.sum(1)
            for player in range(len(players)):
                without = (bits[:, player] == 0).nonzero()[:, 0]
                of_size = [1 / (len(players) * math.comb(len(players) - 1, s)) for s in range(len(players))]
                weights = torch.tensor(of_size, dtype=torch.float64)[sizes[without]]
                fast[player] = (weights * (worth[without + 2**player] - worth[without])).sum()
            assert (fast - exact).abs().max() < 1e-9
            assert kind == "linear" or (fast[-2:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_influence_is_exactly_zero_and_the_rest_sums_to_the_change(kind) -> None:
    for cell in Analytic(network=kind, pictures=4).cells():
        with torch.no_grad():
            score, black = cell.network.module(cell.x)[:, 1], cell.network.module(torch.zeros_like(cell.x))[:, 1]
            assert torch.allclose(cell.exact.sum((1, 2)), score - black, atol=1e-9)
            assert (score - black).abs().min() > 0.05, "a picture to which the network does not answer"
            if kind == "linear":
                continue
            silent = (cell.exact == 0)[:, None]
            assert silent.double().mean() > 0.5
            g = torch.Generator().manual_seed(2)
            for _ in range(20):  # whatever else is removed
                kept = (torch.rand(cell.exact.shape, generator=g) < 0.9)[:, None] | (torch.rand(1, generator=g) < 0.3)
                with_them = cell.network.module(cell.x * (kept | silent))[:, 1]
                assert torch.equal(cell.network.module(cell.x * (kept & ~silent))[:, 1], with_them)


def test_a_batch_norm_changes_the_numbers_inside_and_not_the_network() -> None:
    before = torch.get_rng_state()
    for kind in KINDS:
        plain, norm = network_of(kind, 4), network_of(kind, 4, norm=True)
        x = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        assert not torch.allclose(plain.features[0].weight, norm.features[0].weight)
        assert torch.allclose(plain(x), norm(x), atol=1e-9)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_oracle_is_perfect_and_noise_knows_nothing() -> None:
    task = tasks()["analytic"].make({"pictures": 3, "norms": "mixed"})
    assert task == SMALL
    assert task.score(task.oracle()).min() > 0.99
    assert task.score(lambda n, x, t, p: -task.oracle()(n, x, t, p)).max() < -0.99
    random = torch.stack([task.score(lambda n, x, t, p, k=k: noise(x, p, 0, k)) for k in range(20)])
    assert random.mean().abs() < 0.02
    assert (task.score(lambda n, x, t, p: torch.ones(len(x), 24, 24, dtype=torch.float64)) == 0).all()


def test_quick_has_every_network_once() -> None:
    cells = Analytic().quick().cells()
    assert [c.kind for c in cells] == list(KINDS)
    assert [len(c.network.module.features) for c in cells] == [2, 4, 3, 4, 3]
