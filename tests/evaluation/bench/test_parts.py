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
from convoscope.evaluation.bench.parts_influence import ZeroInfluence, montage
from convoscope.evaluation.bench.parts_interventions import Interventions, intervened, interventions_of
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
    """The score of a map is the correlation of its means over parts with their Shapley values per pixel; area says nothing."""
    game = games[0]
    values = torch.randn(game.picture.shape[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    means = [float(values[m].mean()) for m in game.masks]
    worth = [float(w) / int(m.sum()) for w, m in zip(game.worth, game.masks, strict=True)]
    expected = float(torch.corrcoef(torch.tensor([means, worth], dtype=torch.float64))[0, 1])
    assert float(agreement(values, game)) == pytest.approx(expected, abs=1e-9)
    assert float(agreement(torch.ones_like(values), game)) == 0.0
    assert float(agreement(spread(game), game)) == pytest.approx(1.0)
    assert float(agreement(-spread(game), game)) == pytest.approx(-1.0)


# ---------------------------------------------------------------- interventions
def test_interventions_change_one_factor() -> None:
    for index in range(12):
        factors = Scenes(20, seed=8).factors(index)
        found = interventions_of(factors)
        assert len(found) == 4 + len(factors.distractors)
        for name, changed in found.items():
            for new in changed:
                different = {k for k, v in new.to_dict().items() if v != factors.to_dict()[k]}
                assert different == ({"distractors"} if "distractor" in name else {name})
            if "distractor" in name:
                kind, number = name.split(" of distractor ")
                before = factors.distractors[int(number) - 1].__dict__
                for new in changed if kind != "presence" else ():
                    after = new.distractors[int(number) - 1].__dict__
                    assert {k for k in before if before[k] != after[k]} == {kind}
                if kind == "presence":
                    assert [len(n.distractors) for n in changed] == [len(factors.distractors) - 1]


def test_effects_against_the_slow_plain_way(network: cs.Network, games: tuple[Game, ...]) -> None:
    """Each picture is drawn and scored on its own; pixels of an intervention are those that it changes and no other does."""
    game, known = games[0], intervened("scenes", PICTURES, 1000)[0]
    assert known is not None

    def show(factors: Factors) -> tuple[Tensor, float]:
        picture = torch.from_numpy(render(factors).picture.copy()).permute(2, 0, 1) / 255
        with torch.no_grad():
            return picture, float(network.plain(network.normalize(picture[None]))[0, game.label])

    clean, before = show(game.factors)
    changes = {name: [show(new) for new in changed] for name, changed in interventions_of(game.factors).items()}
    touched = {n: torch.stack([(p != clean).any(0) for p, _ in shown]).any(0) for n, shown in changes.items()}
    for k, name in enumerate(known.names):
        effect = sum(abs(after - before) for _, after in changes[name]) / len(changes[name])
        assert float(known.effects[k]) == pytest.approx(effect, abs=1e-4)
        others = torch.stack([t for n, t in touched.items() if n != name]).any(0)
        assert torch.equal(known.masks[k], touched[name] & ~others)
        assert int(known.area[k]) >= 8


def test_the_oracle_of_interventions_is_right_and_chance_knows_nothing() -> None:
    task = Interventions(pictures=PICTURES)
    assert float(task.score(task.oracle()).nanmean()) >= 0.99
    drawn = torch.stack([task.score(random_maps(0, k)) for k in range(200)])
    assert abs(float(drawn.nanmean())) < 0.1


# ---------------------------------------------------------------- zero influence
def test_pixels_without_a_path_have_no_influence_and_the_others_may() -> None:
    truth = montage(4, 1000)
    module = truth.network.plain
    noise = torch.randn(truth.x.shape, generator=torch.Generator().manual_seed(0))
    outside = torch.where(truth.reached[:, None], truth.x, truth.x + 3 * noise)
    inside = torch.where(truth.reached[:, None], truth.x + 3 * noise, truth.x)
    rows, labels = torch.arange(4), torch.tensor(truth.target.index)
    with torch.no_grad():
        clean, same, other = (module(z)[rows, labels] for z in (truth.x, outside, inside))
    assert torch.equal(clean, same)
    assert bool((clean != other).all())
    z = truth.x.clone().requires_grad_(True)
    module(z)[rows, labels].sum().backward()
    assert not z.grad.abs().sum(1)[~truth.reached].any()  # type: ignore[union-attr]
    assert [sorted(set(torch.where(r.any(0))[0].tolist())) for r in truth.reached[:2]] == [
        list(range(64)), list(range(65, 128))]  # fmt: skip


def test_a_half_says_what_the_shipped_network_says_of_what_it_reads() -> None:
    truth = montage(4, 1000)
    module = truth.network.plain
    scenes = cs.load("scenes").plain
    with torch.no_grad():
        features = module.features(truth.x)
        for side, columns in enumerate(module.columns):
            expected = scenes.head(features[..., list(columns)].mean((2, 3)))
            assert torch.allclose(module(truth.x).unflatten(1, (2, -1))[:, side], expected, atol=1e-5)


def test_the_oracle_of_zero_influence_is_right_and_zero_maps_have_no_score() -> None:
    task = ZeroInfluence(pictures=4)
    assert torch.equal(task.score(task.oracle()), torch.ones(4, dtype=torch.float64))
    assert task.score(lambda n, x, t, p: torch.zeros(len(x), *x.shape[2:]).double()).isnan().all()
    half = task.score(lambda n, x, t, p: -torch.ones(len(x), *x.shape[2:]).double())
    assert torch.allclose(half, montage(4, 1000).reached.double().mean((1, 2)))
