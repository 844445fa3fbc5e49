"""Genetic algorithms: populations of genes under roulette selection, crossover and mutation.

Holland, "Adaptation in Natural and Artificial Systems", 1975; for real genes simulated binary crossover (Deb and Agrawal,
"Simulated Binary Crossover for Continuous Search Space", 1995) and polynomial mutation (Deb and Goyal, "A Combined Genetic
Adaptive Search for Engineering Design", 1996). Every operator works on all individuals at once and takes its random numbers
from a CPU generator, so that a seed gives the same population on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from convoscope.core.errors import UsageError

Fitness = Callable[[Tensor], Float[Tensor, " individuals"]]


def roulette(fitness: Float[Tensor, " individuals"], count: int, generator: Generator) -> Int64[Tensor, " count"]:
    """`count` individuals, each drawn with a probability proportional to its fitness; evenly where all fitness is zero."""
    shares = fitness.detach().cpu().double()
    if not bool(shares.isfinite().all()) or bool((shares < 0).any()):
        raise UsageError(f"roulette selection needs finite fitness of at least 0; got {float(shares.min()):g}")
    shares = shares if bool(shares.any()) else torch.ones_like(shares)
    edges = (shares / shares.max()).cumsum(0)
    spins = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
    # `right`: a spin on the edge belongs to the next slice, so that nothing of zero width is ever hit.
    return torch.searchsorted(edges, spins, right=True).clamp(max=len(edges) - 1)


def one_point(pairs: int, genes: int, generator: Generator) -> Bool[Tensor, "pairs genes"]:
    """Which genes two partners swap: all from a random cut on, which leaves at least one gene on each side."""
    cuts = torch.randint(1, max(genes, 2), (pairs, 1), generator=generator)
    return torch.arange(genes) >= cuts


def uniform(pairs: int, genes: int, generator: Generator) -> Bool[Tensor, "pairs genes"]:
    """Which genes two partners swap: each with probability 1/2."""
    return torch.rand(pairs, genes, generator=generator) < 0.5


def polynomial_mutation(
    values: Float[Tensor, "..."], rate: float, eta: float, generator: Generator, low: float = 0.0, high: float = 1.0
) -> Float[Tensor, "..."]:
    """Moves each value with probability `rate` by a step of density `(eta + 1) / 2 (1 - |d|)^eta`, d in -1..1 of the range.

    What leaves the range is put on its border. Large `eta`: small steps, of mean magnitude 1 / (eta + 2).
    """
    draw = torch.rand(2, *values.shape, generator=generator)
    power = 1 / (eta + 1)
    step = torch.where(draw[1] < 0.5, (2 * draw[1]) ** power - 1, 1 - (2 - 2 * draw[1]) ** power)
    moved = (values + (high - low) * step.to(values)).clamp(low, high)
    return torch.where((draw[0] < rate).to(values.device), moved, values)


def simulated_binary_crossover(
    a: Float[Tensor, "pairs ..."], b: Float[Tensor, "pairs ..."], eta: float, generator: Generator
) -> tuple[Float[Tensor, "pairs ..."], Float[Tensor, "pairs ..."]]:
    """Two children of each pair with the mean of their parents, gene by gene, spread like those of one-point crossover on bits.

    Their distance is that of the parents times a factor of density `(eta + 1) / 2 s^eta` below 1, `(eta + 1) / 2 s^-(eta + 2)`
    above.
    """
    draw = torch.rand(a.shape, generator=generator)
    power = 1 / (eta + 1)
    spread = torch.where(draw < 0.5, (2 * draw) ** power, (2 - 2 * draw) ** -power).to(a)
    middle, half = (a + b) / 2, (a - b) / 2
    return middle + spread * half, middle - spread * half


@dataclass(frozen=True)
class Evolved:
    """The fittest individual ever seen, the last population with its fitness, and best and mean fitness of each generation."""

    best: Tensor
    fitness: float
    population: Tensor
    scores: Float[Tensor, " individuals"]
    curve: Float[Tensor, "generations 2"]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the population, as JSON values."""
        return {"best": self.best.tolist(), "fitness": self.fitness, "curve": self.curve.tolist()}


@dataclass(frozen=True)
class GeneticAlgorithm:
    """Selection by roulette, crossover of the selected, mutation, and the new population takes the place of the old one.

    `crossover` swaps all genes from a random point on, or each with probability 1/2, in a share `crossover_rate` of the
    pairs; real genes may be blended instead ("simulated-binary", by `eta`). Each gene mutates with probability `mutation`:
    bits flip, real genes in 0..1 take a polynomial step (`eta`). The `elite` fittest stay as they are, so that the best
    fitness never falls; without elite it may. There is no rule of convergence and no guarantee.
    """

    population: int = 100
    crossover: Literal["one-point", "uniform", "simulated-binary"] = "one-point"
    crossover_rate: float = 0.6
    mutation: float = 0.01
    elite: int = 0
    eta: float = 15.0

    def __post_init__(self) -> None:
        for name in ("crossover_rate", "mutation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a probability, 0 to 1")
        if self.population < 2 or not 0 <= self.elite < self.population or self.eta < 0:
            raise UsageError(f"expected a population of 2 or more, an elite smaller than it and eta of 0 or more; got {self}")
        if self.crossover not in ("one-point", "uniform", "simulated-binary"):
            raise UsageError(f"no crossover {self.crossover!r}; expected one-point, uniform or simulated-binary")

    def run(
        self, fitness: Fitness, start: int | Tensor, generations: int = 100, *, goal: float | None = None, seed: int = 0,
        progress: Any = None,
    ) -> Evolved:  # fmt: skip
        """Evolves a population for a number of generations, or until the best fitness reaches `goal`.

        `fitness` takes all individuals `(population, ...)` at once and gives each a number of at least 0. `start` is the
        length of random bit strings or a first population: bool, or floats 0..1; genes may have any shape.
        """
        generator = torch.Generator().manual_seed(seed)
        people, scores = self._first(start, generator), torch.empty(0)
        best, highest, curve = people[0], -float("inf"), []
        for generation in range(generations + 1):
            people = self._next(people, scores, generator) if generation else people
            scores = _checked(fitness(people), len(people))
            curve.append(torch.stack([scores.max(), scores.mean()]))
            if float(scores.max()) > highest:
                highest, best = float(scores.max()), people[int(scores.argmax())].clone()
            if progress is not None:
                progress(generation, generations)
            if goal is not None and highest >= goal:
                break
        return Evolved(best, highest, people, scores, torch.stack(curve))

    def _first(self, start: int | Tensor, generator: Generator) -> Tensor:
        if isinstance(start, int):
            if start < 1:
                raise UsageError(f"individuals of {start} genes; expected at least 1")
            return torch.rand(self.population, start, generator=generator) < 0.5
        real = start.is_floating_point()
        if start.dim() < 2 or len(start) != self.population or not (real or start.dtype == torch.bool):
            raise UsageError(
                f"a first population is {self.population} individuals, bool or floats 0..1, (individuals, genes); "
                f"got {start.dtype} {tuple(start.shape)}"
            )
        if real and not bool(((start >= 0) & (start <= 1)).all()):
            raise UsageError("real genes are 0..1")
        if self.crossover == "simulated-binary" and not real:
            raise UsageError("simulated-binary crossover blends real genes; bits take one-point or uniform")
        return start.clone()

    def _next(self, people: Tensor, scores: Tensor, generator: Generator) -> Tensor:
        count = self.population - self.elite
        chosen = people[roulette(scores, count + count % 2, generator).to(people.device)]
        children = self._mutated(self._crossed(chosen, generator), generator)[:count]
        elite = scores.argsort(descending=True, stable=True)[: self.elite].to(people.device)
        return torch.cat([people[elite], children])

    def _crossed(self, parents: Tensor, generator: Generator) -> Tensor:
        a, b = parents.flatten(1).chunk(2)
        taken = torch.rand(len(a), 1, generator=generator) < self.crossover_rate
        if self.crossover == "simulated-binary":
            crossed, taken = simulated_binary_crossover(a, b, self.eta, generator), taken.to(a.device)
            both = [torch.where(taken, new.clamp(0, 1), old) for new, old in zip(crossed, (a, b), strict=True)]
        else:
            swap = (one_point if self.crossover == "one-point" else uniform)(len(a), a.shape[1], generator)
            swapped = (swap & taken).to(a.device)
            both = [torch.where(swapped, b, a), torch.where(swapped, a, b)]
        return torch.cat(both).view_as(parents)

    def _mutated(self, people: Tensor, generator: Generator) -> Tensor:
        if people.dtype == torch.bool:
            return people ^ (torch.rand(people.shape, generator=generator) < self.mutation).to(people.device)
        return polynomial_mutation(people, self.mutation, self.eta, generator)


def _checked(scores: Any, count: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UsageError(f"fitness gives a tensor with one number for each of {count} individuals; got {got}")
    return scores.detach().cpu().double()
