"""MAP-Elites: evolution for all classes at once, which keeps the best picture of each.

Mouret and Clune, "Illuminating search spaces by mapping elites", 2015; as in Nguyen, Yosinski and Clune, "Deep Neural Networks
are Easily Fooled", 2015. A generation is one batch: children of random elites, each of which may become the elite of any
class.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from convoscope.synthesis.fool_state import Live, State
from convoscope.synthesis.genetic import polynomial_mutation, simulated_binary_crossover

Genomes = dict[str, Tensor]
Judge = Callable[[Genomes], Float[Tensor, "rows classes"]]
BLOCK = 32  # individuals varied at once: memory stays bounded, and random numbers do not depend on the batch size


class Encoding(Protocol):
    """How genomes stand for pictures; genomes are tensors by name, one row for each individual."""

    def begin(self, rows: int, generator: Generator) -> Genomes:
        """Random individuals."""
        ...

    def vary(self, parents: Genomes, mates: Genomes, generation: int, generator: Generator) -> Genomes:
        """A child of each parent, which may take something of its mate."""
        ...

    def pixels(self, genomes: Genomes) -> UInt8[Tensor, "rows channels height width"]:
        """The pictures of individuals."""
        ...


@dataclass(frozen=True)
class Direct:
    """Every pixel value, 0..255, is a gene.

    Genes mutate at `rate`, halved every 1,000 generations, by a polynomial step (`eta`); a share `crossover` of the children
    have two parents, by simulated binary crossover (`crossover_eta`).
    """

    channels: int
    size: tuple[int, int]
    rate: float = 0.1
    eta: float = 15.0
    crossover: float = 0.5
    crossover_eta: float = 10.0

    def begin(self, rows: int, generator: Generator) -> Genomes:
        """Uniform noise."""
        return {"pixels": torch.randint(256, (rows, self.channels, *self.size), generator=generator, dtype=torch.uint8)}

    def vary(self, parents: Genomes, mates: Genomes, generation: int, generator: Generator) -> Genomes:
        """A child of each parent, crossed with its mate or not, and mutated."""
        genes, others = (g["pixels"].float() / 255 for g in (parents, mates))
        crossed = (torch.rand(len(genes), generator=generator) < self.crossover).nonzero()[:, 0]
        genes[crossed] = simulated_binary_crossover(genes[crossed], others[crossed], self.crossover_eta, generator)[0]
        moved = polynomial_mutation(genes.clamp(0, 1), self.rate * 0.5 ** (generation // 1000), self.eta, generator)
        return {"pixels": (moved * 255).round().to(torch.uint8)}

    def pixels(self, genomes: Genomes) -> UInt8[Tensor, "rows channels height width"]:
        """The genes themselves."""
        return genomes["pixels"]


def map_elites(
    judge: Judge, encoding: Encoding, classes: int, live: Live, *, population: int, seed: int = 0,
    key: Mapping[str, Any] | None = None,
) -> State:  # fmt: skip
    """Evolves a picture for each of the classes at once; the state's tensors are the genomes of the elites, one for each class.

    `judge` gives the confidence 0..1 of each genome in each class. Each generation makes `population` children of elites drawn
    at random, judges all, and lets every class take its best. The random numbers of a generation depend on `seed` and its
    number only. `key` is what the judgement depends on: a run that is taken up again must have the same.
    """
    said = {"encoding": repr(encoding), "classes": classes, "population": population, "seed": seed, **(key or {})}

    def advance(state: State) -> State:
        children = _children(state, encoding, population, seed)
        return taken(state, children, judge(children).detach().cpu().double())

    def draw(state: State, most: int) -> Tensor:
        return encoding.pixels({name: genes[:most] for name, genes in state.tensors.items()})

    return live.run(said, State, advance, draw)


def taken(state: State, children: Genomes, scores: Float[Tensor, "rows classes"]) -> State:
    """The state after a generation: each class takes its best child if that is better than what it has."""
    best = state.history[-1] if state.history else torch.full_like(scores[0], -1.0)
    found = scores.max(0)
    better = found.values > best
    rows = found.indices[better]
    elites = {}
    for name, genes in children.items():
        elites[name] = state.tensors[name].clone() if state.history else genes.new_zeros(len(best), *genes.shape[1:])
        elites[name][better] = genes[rows]
    return State(elites, [*state.history, torch.where(better, found.values, best)], state.frames)


def _children(state: State, encoding: Encoding, population: int, seed: int) -> Genomes:
    number = state.step + 1
    digest = hashlib.blake2b(repr((seed, "generation", number)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    count = len(state.history[-1]) if state.history else 1
    pairs = torch.randint(count, (2, population), generator=generator)
    parts = []
    for some in pairs.split(BLOCK, 1):
        if number == 0:
            parts.append(encoding.begin(some.shape[1], generator))
        else:
            parents, mates = ({n: genes[who] for n, genes in state.tensors.items()} for who in some)
            parts.append(encoding.vary(parents, mates, number, generator))
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
