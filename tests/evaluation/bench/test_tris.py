"""The generator of tetrominoes does what it says, and so does the score of maps."""

import pytest
import torch

from convoscope.evaluation.base import seeded
from convoscope.evaluation.bench import tasks, tris
from convoscope.evaluation.bench.tris import Tris, accuracy, fit, precision, train, weighted
from convoscope.evaluation.bench.tris_pictures import (
    NOISES,
    SCENARIOS,
    SIGNAL,
    background,
    blurring,
    covariance,
    draw,
    placed,
)  # fmt: skip
from convoscope.evaluation.nulls import noise

CASES = list(SIGNAL)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_the_covariance_it_is_said_to_have(kind) -> None:
    drawn = background(kind, 40_000, seeded(3, "covariance")).flatten(1)
    found = drawn.T @ drawn / len(drawn)
    assert (found - covariance(kind)).abs().max() < 0.05
    assert abs(float(covariance(kind).diag().mean()) - 1) < 1e-12
    assert drawn.mean().abs() < 0.02


def test_blurring_is_that_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.gaussian_filter1d(torch.eye(8, dtype=torch.float64).numpy(), 3.0, axis=0, mode="reflect", truncate=4.0)
    assert torch.allclose(blurring(), torch.from_numpy(expected), atol=1e-9)


@pytest.mark.parametrize(("scenario", "kind"), CASES)
def test_the_truth_is_where_the_classes_differ_and_nowhere_else(scenario, kind) -> None:
    drawn = draw(scenario, kind, 20_000, seeded(5, scenario, kind))
    assert drawn.x.shape == (20_000, 1, 8, 8)
    assert drawn.truth.shape == (20_000, 8, 8)
    assert abs(float(drawn.labels.double().mean()) - 0.5) < 0.03
    assert (drawn.truth.flatten(1).sum(1) == (4 if scenario == "rigid" else 8)).all()
    x, side = drawn.x[:, 0], 1 - 2 * drawn.labels.double()
    if scenario == "rigid":
        assert drawn.truth.double().mean(0).min() > 0, "a tetromino can be anywhere"
        return
    t, el = placed()
    if scenario == "linear":  # a mean
        tells = (x * side[:, None, None]).mean(0) / x.std(0)
    elif scenario == "multiplicative":  # a variance
        tells = (x.square() * side[:, None, None]).mean(0) / x.square().mean(0)
    else:  # a product of two places: with the mean over the one, the class shows on the other
        bright = (x * t).sum((1, 2)).sign() * side
        tells = (x * el * bright[:, None, None]).mean(0) / x.std(0)
        tells = tells + (x * t * ((x * el).sum((1, 2)).sign() * side)[:, None, None]).mean(0) / x.std(0)
        assert ((x * side[:, None, None]).mean(0) / x.std(0)).abs().max() < 0.06, "no pixel alone tells the class"
    where = t | el
    if kind == "white" or scenario != "linear":
        assert tells[where].abs().min() > 0.06
    assert tells[~where].abs().max() < 0.06


def test_suppressors_come_with_correlated_noise_alone() -> None:
    """The best linear classifier of the linear scenario weighs pixels that know nothing, if noise is correlated."""
    t, el = placed()
    difference = (t.double() - el.double()).flatten()
    beside = ~(t | el).flatten()
    for kind, expected in (("white", 0.0), ("correlated", 0.1)):
        weights = torch.linalg.solve(covariance(kind) + 1e-3 * torch.eye(64, dtype=torch.float64), difference).abs()
        share = float(weights[beside].max() / weights.max())
        assert share == expected if kind == "white" else share > expected


def test_precision_counts_what_a_plain_loop_counts() -> None:
    g = torch.Generator().manual_seed(4)
    maps, truth = torch.randn(20, 8, 8, generator=g, dtype=torch.float64), torch.rand(20, 8, 8, generator=g) < 0.2
    for found, values, true in zip(precision(maps, truth).tolist(), maps, truth, strict=True):
        k = int(true.sum())
        best = sorted(range(64), key=lambda i, values=values: -abs(float(values.flatten()[i])))[:k]
        assert abs(found - sum(bool(true.flatten()[i]) for i in best) / k) < 1e-12
    ties = precision(torch.ones(20, 8, 8, dtype=torch.float64), truth)
    assert torch.allclose(ties, truth.double().mean((1, 2)))
    some = torch.zeros(1, 8, 8, dtype=torch.float64)
    some[0, 0, :4], true = 1, torch.zeros(1, 8, 8, dtype=torch.bool)
    true[0, 0, 1:3] = True  # two of four equal ones, two wanted
    assert precision(some, true).item() == 0.5


@pytest.mark.parametrize(("scenario", "kind"), CASES)
def test_the_networks_that_ship_tell_the_classes_apart(scenario, kind) -> None:
    assert accuracy(weighted(scenario, kind), scenario, kind) > 0.94


def test_training_gives_the_same_again_and_is_written(tmp_path, monkeypatch) -> None:
    before = torch.get_rng_state()
    one, two = fit("xor", "correlated", 3), fit("xor", "correlated", 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert accuracy(fit("xor", "correlated", 120), "xor", "correlated") > 0.8
    found = train(tmp_path / "tris.safetensors", steps=2)
    assert set(found) == set(CASES)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(tris, "WEIGHTS", tmp_path / "tris.safetensors")
    expected = fit("rigid", "white", 2).state_dict()
    assert all(torch.equal(expected[k].half().float(), v) for k, v in weighted("rigid", "white").state_dict().items())


def test_the_oracle_is_perfect_and_noise_gets_what_chance_gives() -> None:
    task = tasks()["tris"].make({"pictures": 8})
    assert [(c.scenario, c.noise) for c in task.cells()] == [(s, n) for s in SCENARIOS for n in NOISES]
    for cell in task.cells():
        with torch.no_grad():
            assert tuple(cell.network.module(cell.x).argmax(1).tolist()) == cell.target.index
    assert (task.score(task.oracle()) == 1).all()
    assert torch.equal(task.score(lambda n, x, t, p: -task.oracle()(n, x, t, p)), torch.ones(64, dtype=torch.float64))
    assert (task.score(lambda n, x, t, p: 1 - task.oracle()(n, x, t, p)) == 0).all()
    random = torch.stack([task.score(lambda n, x, t, p, k=k: noise(x, p, 0, k)) for k in range(20)]).mean()
    chance = torch.cat([cell.truth.double().mean((1, 2)) for cell in task.cells()]).mean()
    assert abs(float(random - chance)) / (1 - float(chance)) < 0.02
    assert Tris().quick() == Tris(noise="correlated", pictures=16)
