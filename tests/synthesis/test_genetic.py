"""The genetic algorithm: its operators against their distributions, and the ten-bit strings whose optimum is known."""

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.synthesis.genetic import one_point, polynomial_mutation, roulette, simulated_binary_crossover, uniform

MANY = 200_000


def ones(strings: Tensor) -> Tensor:
    return strings.flatten(1).double().sum(1)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_roulette_draws_in_proportion_to_fitness() -> None:
    fitness = torch.tensor([3.0, 0.0, 1.0, 6.0, 0.0])
    counts = torch.bincount(roulette(fitness, MANY, draws()), minlength=5)
    expected = fitness.double() / fitness.sum()
    spread = (expected * (1 - expected) / MANY).sqrt()
    assert bool(((counts / MANY - expected).abs() <= 5 * spread).all())  # what has no fitness is never drawn
    even = torch.bincount(roulette(torch.zeros(4), MANY, draws()), minlength=4) / MANY
    assert bool(((even - 0.25).abs() < 5 * (0.25 * 0.75 / MANY) ** 0.5).all())


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_roulette_refuses_fitness_that_makes_no_slice(bad: float) -> None:
    with pytest.raises(cs.UsageError, match="fitness of at least 0"):
        roulette(torch.tensor([1.0, bad]), 3, draws())


def test_one_point_swaps_tails_of_every_length_alike() -> None:
    swap = one_point(MANY, 5, draws())
    assert not bool(swap[:, 0].any())
    assert bool(swap[:, -1].all())
    assert bool((swap[:, 1:] >= swap[:, :-1]).all())
    lengths = torch.bincount(swap.sum(1), minlength=5)[1:] / MANY
    assert bool(((lengths - 0.25).abs() < 5 * (0.25 * 0.75 / MANY) ** 0.5).all())
    assert bool((uniform(MANY, 3, draws()).double().mean(0) - 0.5).abs().max() < 5 * 0.5 / MANY**0.5)


def test_polynomial_mutation_has_its_density() -> None:
    """P(|d| < x) = 1 - (1 - x)^(eta + 1), symmetric, for the share of genes that move."""
    values = torch.full((MANY,), 5.0, dtype=torch.float64)
    moved = polynomial_mutation(values, 0.25, 15.0, draws(), -5.0, 15.0)
    step = (moved - values)[moved != values] / 20
    assert abs(len(step) / MANY - 0.25) < 5 * (0.25 * 0.75 / MANY) ** 0.5
    for x in (0.02, 0.05, 0.2):
        assert abs(float((step.abs() < x).double().mean()) - (1 - (1 - x) ** 16)) < 5 * 0.5 / len(step) ** 0.5
    assert abs(float((step > 0).double().mean()) - 0.5) < 5 * 0.5 / len(step) ** 0.5
    edge = polynomial_mutation(torch.ones(1000), 1.0, 2.0, draws())
    assert float(edge.max()) == 1.0
    assert float(edge.min()) < 0.9


def test_simulated_binary_crossover_keeps_the_mean_and_has_its_spread() -> None:
    a, b = torch.full((MANY,), 3.0, dtype=torch.float64), torch.full((MANY,), 1.0, dtype=torch.float64)
    first, second = simulated_binary_crossover(a, b, 10.0, draws())
    assert torch.allclose(first + second, a + b)
    spread = (first - second) / (a - b)
    for x in (0.8, 0.95):
        assert abs(float((spread < x).double().mean()) - 0.5 * x**11) < 5 * 0.5 / MANY**0.5
    for x in (1.05, 1.3):
        assert abs(float((spread > x).double().mean()) - 0.5 * x**-11) < 5 * 0.5 / MANY**0.5


@pytest.mark.parametrize("crossover", ["one-point", "uniform"])
def test_ten_bit_strings_become_all_ones(crossover: str) -> None:
    made = cs.GeneticAlgorithm(population=6, crossover=crossover, mutation=0.05, elite=1)
    found = made.run(ones, 10, 2000, goal=10)
    assert bool(found.best.all())
    assert found.fitness == 10
    best = found.curve[:, 0]
    assert bool((best[1:] >= best[:-1]).all())  # what the elite guarantees
    assert float(best[-1]) == 10
    assert bool((best[:-1] < 10).all())


def test_without_crossover_and_mutation_only_what_was_there_survives() -> None:
    made = cs.GeneticAlgorithm(population=20, crossover_rate=0, mutation=0)
    found = made.run(ones, 10, 60)
    first = torch.rand(20, 10, generator=draws()) < 0.5
    assert {tuple(p) for p in found.population.tolist()} <= {tuple(p) for p in first.tolist()}
    assert float(found.curve[-1, 1]) > float(found.curve[0, 1])


def test_crossover_keeps_the_number_of_ones_at_each_place() -> None:
    people = torch.rand(8, 3, 5, generator=draws()) < 0.5
    for crossover in ("one-point", "uniform"):
        crossed = cs.GeneticAlgorithm(8, crossover, 1.0)._crossed(people, draws(1))
        assert torch.equal(crossed.sum(0), people.sum(0))
        assert not torch.equal(crossed, people)


def test_real_genes_of_any_shape_reach_a_known_picture() -> None:
    target = torch.linspace(0, 1, 12).view(1, 3, 4)

    def near(pictures: Tensor) -> Tensor:
        return 1 / (1e-4 + (pictures - target).square().mean((1, 2, 3)))

    start = torch.rand(60, 1, 3, 4, generator=draws(3))
    found = cs.GeneticAlgorithm(60, "simulated-binary", 0.9, 0.1, elite=2).run(near, start, 300)
    assert found.best.shape == (1, 3, 4)
    assert float((found.best - target).abs().max()) < 0.05
    assert float((start - target).abs().amax((1, 2, 3)).min()) > 0.3


def test_a_seed_repeats_a_run_and_another_does_not() -> None:
    made = cs.GeneticAlgorithm(population=9, elite=2)
    a, b, c = (made.run(ones, 30, 20, seed=s) for s in (4, 4, 5))
    assert torch.equal(a.population, b.population)
    assert torch.equal(a.curve, b.curve)
    assert not torch.equal(a.population, c.population)
    assert a.population.shape == (9, 30)
    assert a.to_dict()["fitness"] == max(row[0] for row in a.to_dict()["curve"])


@pytest.mark.parametrize(
    ("settings", "start", "said"),
    [
        ({"population": 1}, 10, "2 or more"),
        ({"elite": 100}, 10, "elite smaller"),
        ({"mutation": 1.5}, 10, "probability"),
        ({"crossover": "two-point"}, 10, "one-point, uniform"),
        ({}, 0, "at least 1"),
        ({}, torch.zeros(3, 4), "100 individuals"),
        ({}, torch.full((100, 4), 2.0), "0..1"),
        ({"crossover": "simulated-binary"}, torch.zeros(100, 4, dtype=torch.bool), "blends real genes"),
    ],
)
def test_wrong_settings_are_told(settings: dict, start: object, said: str) -> None:
    with pytest.raises(cs.UsageError, match=said):
        cs.GeneticAlgorithm(**settings).run(ones, start)  # type: ignore[arg-type]


def test_fitness_of_the_wrong_shape_is_told() -> None:
    with pytest.raises(cs.UsageError, match="one number for each of 100"):
        cs.GeneticAlgorithm().run(lambda p: p.double(), 10)
