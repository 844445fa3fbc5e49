"""Twins that learned and memorized: what they know, exact values, and what maps that know all or nothing get."""

from itertools import islice

import pytest
import torch

from convoscope.data.scenes import Scenes, render
from convoscope.evaluation.bench import permuted
from convoscope.evaluation.bench import shortcut_networks as nets
from convoscope.evaluation.bench.parts_game import players_of, showing
from convoscope.evaluation.bench.run import edge_maps, random_maps

TASK = permuted.Permuted(pictures=4)


@pytest.fixture(scope="module")
def truth() -> permuted.Twins:
    return permuted.twins(TASK.pictures)


def test_the_oracle_is_perfect_and_what_knows_no_network_gets_nothing(truth) -> None:
    assert TASK.score(TASK.oracle()).min() >= 0.99
    assert torch.stack([TASK.score(random_maps(0, k)) for k in range(4)]).abs().max() < 1e-12
    assert TASK.score(edge_maps).abs().max() < 1e-12
    assert TASK.score(lambda network, x, target, places: x[:, 0].double() * 0).abs().max() == 0


def test_noise_that_differs_between_the_twins_gets_nothing_on_average(truth) -> None:
    def mapper(network, x, target, places):
        return torch.randn(x[:, 0].shape, generator=draws, dtype=torch.float64)

    draws = torch.Generator().manual_seed(0)
    found = torch.stack([TASK.score(mapper) for _ in range(200)]).mean(1)
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5 < 0.15


def test_the_values_of_the_other_twin_are_as_wrong_as_can_be(truth) -> None:
    oracle, swapped = TASK.oracle(), dict(zip(truth.networks, reversed(truth.networks), strict=True))
    assert TASK.score(lambda network, *rest: oracle(swapped[network], *rest)).max() <= -0.99
    assert TASK.score(lambda network, *rest: oracle(truth.networks[1], *rest)).abs().max() < 1e-12


def test_the_scale_of_maps_says_nothing(truth) -> None:
    oracle, scale = TASK.oracle(), {truth.networks[0]: 1e-3, truth.networks[1]: 7.0}
    assert TASK.score(lambda network, *rest: oracle(network, *rest) * scale[network]).min() >= 0.99


def test_concordance_is_one_only_for_equal_vectors() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        d, e = torch.randn(2, 5, generator=draws, dtype=torch.float64)
        found = float(permuted.concordance(d, e))
        assert -1 < found < 1
        assert abs(found - (1 - float(((d - e) ** 2).sum() / (d @ d + e @ e)))) < 1e-12
        assert abs(float(permuted.concordance(e, e)) - 1) < 1e-12
        assert permuted.concordance(2 * e, e) < 0.81  # too much of the right thing is not right


def test_values_are_efficient_and_explain_what_was_taught(truth) -> None:
    """Their sum is the logit of the picture minus that of the picture without the players."""
    rows = list(islice(nets.scenes(nets.TRAINING), nets.TWINS[0].count))
    species = torch.tensor([nets.SPECIES.index(f.species) for f in rows])
    taught = [r.labels(species) for r in nets.TWINS]
    wrong = (k for k in range(len(rows)) if taught[0][k] != taught[1][k] and permuted.table(rows[k]) is not None)
    wrong = list(islice(wrong, TASK.pictures))
    for i, k in enumerate(wrong):
        ends = nets.normalized(permuted.table(rows[k]).pictures[[0, -1]])
        for network, labels, worth in zip(truth.networks, taught, truth.worth, strict=True):
            said = network.module(ends).detach()
            assert said[1].argmax() == labels[k]
            assert abs(float(worth[i].sum() - (said[1] - said[0])[labels[k]])) < 1e-3
    assert [t.index for t in truth.targets] == [tuple(int(t[k]) for k in wrong) for t in taught]


def test_a_table_draws_every_coalition() -> None:
    factors = next(f for f in map(Scenes(100, 5).factors, range(100)) if permuted.table(f) is not None)
    made = permuted.table(factors)
    players = len(made.masks)
    assert permuted.PLAYERS[0] <= players <= permuted.PLAYERS[1]
    assert made.pictures.shape == (2**players, 3, nets.SIDE, nets.SIDE)
    assert made.masks.sum(0).max() == 1
    assert made.masks.flatten(1).sum(1).min() >= permuted.VISIBLE
    whole = nets.pooled(torch.from_numpy(render(factors, nets.DRAWN).picture)[None])[0]
    assert torch.allclose(made.pictures[-1], whole, atol=1e-6)
    first = next(n for n in players_of(factors) if _shows(factors, n))
    alone = render(showing(factors, (first,), 0), nets.DRAWN).picture
    assert torch.allclose(made.pictures[2**players - 2], nets.pooled(torch.from_numpy(alone)[None])[0], atol=1e-6)


def _shows(factors, name: str) -> bool:
    shown = torch.from_numpy(render(factors, nets.DRAWN).where(**players_of(factors)[name])).float()
    return int((torch.nn.functional.avg_pool2d(shown[None], 2) >= 0.5).sum()) >= permuted.VISIBLE


# ---------------------------------------------------------------- the networks that ship
def test_one_twin_learned_and_the_other_knows_by_heart() -> None:
    """Measured on drawn pictures; the training pictures checked are the first of them."""
    learned, memorized = nets.shipped("permuted")
    rows = islice(nets.scenes(nets.TRAINING), nets.TWINS[0].count)
    species = torch.tensor([nets.SPECIES.index(f.species) for f in rows])
    x = nets.normalized(nets.drawn(150, nets.TRAINING)[0])
    for network, recipe in zip((learned, memorized), nets.TWINS, strict=True):
        with torch.no_grad():
            right = network.module(x).argmax(1) == recipe.labels(species)[: len(x)]
        assert right.double().mean() > 0.97
    chance = 1 / len(nets.SPECIES)
    assert nets.measured(learned.module, 100).accuracy > 4 * chance
    assert nets.measured(memorized.module, 100).accuracy < 2 * chance
