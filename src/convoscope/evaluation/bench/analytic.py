"""Networks set by hand, and the exact Shapley value of every pixel in closed form."""

from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.spec import AtLeast
from convoscope.evaluation.base import pearson, seeded
from convoscope.evaluation.bench.analytic_networks import (
    AREA,
    GAIN,
    KINDS,
    PATCH,
    SIDE,
    Kind,
    Settings,
    kernels,
    network_of,
    one_hot,
    templates,
)
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.network import Network
from convoscope.targets import Logit, Target

Value = Float[Tensor, "first second"]


class Analytic(Task):
    """How well maps agree with the exact Shapley values of the pixels of networks that were set by hand.

    Five networks of convolutions, rectifiers, pools and linear layers look for colored templates on gray ground: linear (a
    weighted sum of the pixels), additive (all objects of two templates summed, the second with a negative weight), and (both
    templates must be there), xor (the difference of their answers, positive either way), max (the strongest of two objects).
    Each exists plain and with a batch norm. All have non-zero biases, and a second class that answers to another object, which
    the explained class ignores.

    The players are the pixels, absent ones are black (0). The objects' pixels of one template are alike, so what a coalition
    is worth depends on how many pixels of each object it has, and the Shapley value is a sum over two counts; wherever no
    detector can answer, whatever is removed, it is exactly zero. The number is Pearson's correlation of a map with these
    values: sign matters, scale does not, and a map without structure has 0.
    """

    title: ClassVar[str] = "Networks set by hand"
    exact: ClassVar[str] = "closed-form Shapley values of the pixels of hand-set networks"
    measures: ClassVar[str] = "correlation with the exact map"

    network: Annotated[Literal["all", "linear", "additive", "and", "xor", "max"], "which networks"] = "all"
    norms: Annotated[Literal["both", "mixed"], "each network with and without batch norm, or one in turn"] = "both"
    pictures: Annotated[int, "pictures for each network", AtLeast(1)] = 8
    seed: Annotated[int, "of the pictures, the templates and the biases"] = 0

    def quick(self) -> "Analytic":
        """Each network once, with four pictures."""
        return Analytic(network=self.network, norms="mixed", pictures=min(self.pictures, 4), seed=self.seed)

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        """The correlation of each picture's map with the exact one."""
        scores = []
        for number, cell in enumerate(self.cells()):
            maps = mapper(cell.network, cell.x, cell.target, self._places(number))
            scores.append(torch.nan_to_num(pearson(maps.double().flatten(1), cell.exact.flatten(1))))
        return torch.cat(scores)

    def oracle(self) -> Mapper:
        """The exact maps themselves."""
        exact = torch.cat([cell.exact for cell in self.cells()])
        return lambda network, x, target, places: exact[list(places)]

    def cells(self) -> "tuple[Cell, ...]":
        """The networks with their pictures and exact maps, in the order of the items."""
        kinds = KINDS if self.network == "all" else (self.network,)
        both = [(kind, norm) for kind in kinds for norm in (False, True)]
        chosen = both if self.norms == "both" else [(kind, number % 2 == 1) for number, kind in enumerate(kinds)]
        return tuple(_cell(kind, norm, self.pictures, self.seed) for kind, norm in chosen)

    def _places(self, number: int) -> tuple[int, ...]:
        return tuple(range(number * self.pictures, (number + 1) * self.pictures))


@dataclass(frozen=True)
class Cell:
    """A network, pictures of it, and the exact map of its target for each."""

    kind: Kind
    network: Network
    target: Target
    x: Float[Tensor, "pictures 3 height width"]
    exact: Float[Tensor, "pictures height width"]


@dataclass(frozen=True)
class Thing:
    """An object: which template, its upper left pixel, how bright it is."""

    template: int
    row: int
    column: int
    strength: float

    @property
    def place(self) -> tuple[slice, slice]:
        """Its pixels."""
        return slice(self.row, self.row + PATCH), slice(self.column, self.column + PATCH)


@lru_cache(maxsize=64)
def _cell(kind: Kind, norm: bool, pictures: int, seed: int) -> Cell:
    scenes = [scene(kind, seed, number) for number in range(pictures)]
    x = torch.stack([picture for picture, _ in scenes])
    module = network_of(kind, seed, norm)
    settings = Settings(kind, seed)
    exact = _linear(module, x) if kind == "linear" else torch.stack([_shares(kind, settings, things) for _, things in scenes])
    name = f"{kind}{' behind batch norm' if norm else ''}"
    return Cell(kind, Network(module, size=SIDE, categories=("other", kind), name=name), Logit(1), x, exact)


# ---------------------------------------------------------------- pictures
WANTED: dict[Kind, tuple[tuple[int, ...], ...]] = {  # the templates of the objects, picture by picture; 2 is the other class's
    "linear": ((0, 1, 2),),
    "additive": ((0, 0, 1, 2), (0, 1, 1, 2)),
    "and": ((0, 1, 2),),
    "xor": ((0, 1, 2), (0, 2), (1, 0, 2), (1, 2)),
    "max": ((0, 0, 1, 2), (0, 0, 2)),
}


def scene(kind: Kind, seed: int, number: int) -> tuple[Float[Tensor, "3 height width"], list[Thing]]:
    """A picture and its objects: places are drawn until no detector can answer anywhere else, whatever is removed."""
    g, colors, threshold = seeded(seed, "scene", kind, number), templates(seed), Settings(kind, seed).threshold
    wanted = WANTED[kind][number % len(WANTED[kind])]
    while True:
        ground = 0.1 + 0.3 * torch.rand(SIDE, SIDE, generator=g, dtype=torch.float64)
        x, things = ground.expand(3, -1, -1).clone(), []
        for order, template in enumerate(wanted):
            row, column = torch.randint(SIDE - PATCH + 1, (2,), generator=g).tolist()
            strength = 1 - 0.12 * float(torch.rand(1, generator=g)) - 0.1 * (order > 0 and kind in ("xor", "max"))
            things.append(Thing(template, row, column, strength))
            x[:, *things[-1].place] = strength * one_hot(colors)[template]
        if _apart(things) and (kind == "linear" or alone(x, things, kernels(colors, seed), threshold)):
            return x, things


def _apart(things: list[Thing]) -> bool:
    return all(
        max(abs(a.row - b.row), abs(a.column - b.column)) >= PATCH for i, a in enumerate(things) for b in things[:i]
    )  # fmt: skip


def alone(x: Tensor, things: list[Thing], weights: Tensor, threshold: float) -> bool:
    """Whether each detector stays silent away from its own objects, however pixels are removed.

    The most that any coalition can bring a detector to is the sum of the pixels that speak for it.
    """
    windows = F.unfold(F.pad(x, (PATCH // 2,) * 4)[None], PATCH)[0].unflatten(0, (3, AREA))
    most = torch.einsum("cpl,tcp->tpl", windows, weights.flatten(2)).clamp(min=0).sum(1)
    across = round(most.shape[1] ** 0.5)
    for thing in things:
        most[thing.template, (thing.row + PATCH // 2) * across + thing.column + PATCH // 2] = 0
    return bool((most <= threshold).all())


# ---------------------------------------------------------------- exact values
def _linear(module: torch.nn.Module, x: Tensor) -> Float[Tensor, "pictures height width"]:
    """Weight times input: a network whose rectifiers are open for every picture has one gradient everywhere."""
    with torch.enable_grad():
        zeros = torch.zeros_like(x[:1]).requires_grad_()
        (weight,) = torch.autograd.grad(module(zeros)[0, 1], zeros)
    return (weight * x).sum(1)


def _shares(kind: Kind, settings: Settings, things: list[Thing]) -> Float[Tensor, "height width"]:
    """The Shapley value of each pixel of a picture."""
    exact = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    for thing, share in _games(kind, settings, [t for t in things if t.template < 2]):
        exact[thing.place] = share
    return exact


def _games(kind: Kind, s: Settings, things: list[Thing]) -> list[tuple[Thing, float]]:
    """Each object's share per pixel: the game is a sum of games of one or two objects."""
    weight = {0: s.first, 1: s.second}
    answers = [weight[t.template] * answer(t.strength, s.threshold) for t in things]
    if kind == "additive":
        return [(t, shares(a[:, None])[0]) for t, a in zip(things, answers, strict=True)]
    if kind == "max":
        pair = shares(torch.maximum(answers[0][:, None], answers[1]))
        rest = [(t, shares(a[:, None])[0]) for t, a in zip(things[2:], answers[2:], strict=True)]
        return [(things[0], pair[0]), (things[1], pair[1]), *rest]
    second = answers[1] if len(things) == 2 else torch.zeros(1, dtype=torch.float64)
    joined = answers[0][:, None] + second - s.joint if kind == "and" else (answers[0][:, None] - second)
    return list(zip(things, shares(joined.clamp(min=0) if kind == "and" else joined.abs()), strict=False))


def answer(strength: float, threshold: float) -> Float[Tensor, " counts"]:
    """What a detector says to 0, 1, .. all pixels of its object."""
    return GAIN * (strength * torch.arange(AREA + 1, dtype=torch.float64) - threshold).clamp(min=0)


def shares(value: Value) -> tuple[float, float]:
    """The Shapley values of one pixel of either group in a game that only counts: `value[s, t]` is what s pixels of the first
    and t of the second group are worth together (Shapley 1953; coalitions of equal counts have equal worth and are as many
    as the products of binomials say). A group without pixels has 0.
    """
    return _share(value), _share(value.T)


def _share(value: Value) -> float:
    own, others = value.shape[0] - 1, value.shape[1] - 1
    if own == 0:
        return 0.0
    players = own + others
    weights = torch.tensor(
        [
            [comb(own - 1, s) * comb(others, t) / (players * comb(players - 1, s + t)) for t in range(others + 1)]
            for s in range(own)
        ],
        dtype=torch.float64,
    )
    return float((weights * value.diff(dim=0)).sum())
