"""Pictures encoded by small networks that evolve: compositional pattern-producing networks (CPPNs).

Stanley, "Compositional Pattern Producing Networks: A Novel Abstraction of Development", 2007; as in Nguyen et al. 2015, nodes
and connections are added, changed and removed by mutation. A genome computes the color of a pixel from its place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Generator, Tensor

from convoscope.synthesis.genetic import polynomial_mutation

Genomes = dict[str, Tensor]
INPUTS = 4  # x, y, distance from the middle, bias
FUNCTIONS = 4  # sine, sigmoid, gaussian, linear
LIMIT = 1 << 24  # numbers held at once while pictures are drawn


@dataclass(frozen=True)
class Compositional:
    """Genomes of one size each, so that a population is a few tensors; what is not there is masked.

    Nodes are the inputs, up to `hidden` hidden ones, and one output for each channel, in the order they are computed: a node
    reads those before it. `weight[r, i, j]` is the weight from node j to node i where `link[r, i, j]`, `function[r, i]` the
    activation, `count[r]` how many hidden nodes there are. Weights lie in -`span` .. `span`.

    Each child has one parent. Probabilities are those of the authors' code: add, remove and move a connection, add and remove
    a node; each weight takes a polynomial step (`eta`) and each node another function at `rate`.
    """

    channels: int
    size: tuple[int, int]
    hidden: int = 24
    span: float = 10.0
    rate: float = 0.1
    eta: float = 15.0
    add_connection: float = 0.5
    remove_connection: float = 0.3
    move_connection: float = 0.5
    add_node: float = 0.5
    remove_node: float = 0.2

    @property
    def nodes(self) -> int:
        """Inputs, hidden nodes and outputs."""
        return INPUTS + self.hidden + self.channels

    # ---- pictures
    def pixels(self, genomes: Genomes) -> UInt8[Tensor, "rows channels height width"]:
        """The pictures of genomes, drawn where these tensors are."""
        used = int(genomes["count"].max())
        outputs = range(INPUTS + self.hidden, self.nodes)
        index = torch.tensor([*range(INPUTS + used), *outputs], device=genomes["weight"].device)
        weight = (genomes["weight"] * genomes["link"])[:, index][:, :, index]
        function = genomes["function"][:, index]
        places = self._places(weight)
        at_once = max(1, LIMIT // (len(weight) * len(index)))
        drawn = [_drawn(weight, function, part, self.channels) for part in places.split(at_once, 1)]
        return torch.cat(drawn, 2).view(len(weight), self.channels, *self.size)

    def _places(self, like: Tensor) -> Tensor:
        """Inputs of every pixel: x and y in -1..1 (the longer side), distance from the middle, 1."""
        height, width = self.size
        longest = max(height, width)
        y, x = (((torch.arange(n) + 0.5) * 2 - n) / longest for n in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([x, y, (x.square() + y.square()).sqrt(), torch.ones_like(x)]).flatten(1).to(like)

    # ---- a first population
    def begin(self, rows: int, generator: Generator) -> Genomes:
        """Genomes without hidden nodes: every output reads every input."""
        n = self.nodes
        link = torch.zeros(rows, n, n, dtype=torch.bool)
        link[:, INPUTS + self.hidden :, :INPUTS] = True
        weight = (torch.rand(rows, n, n, generator=generator) * 2 - 1) * self.span
        function = torch.randint(FUNCTIONS, (rows, n), generator=generator)
        return {"weight": weight * link, "link": link, "function": function, "count": torch.zeros(rows, dtype=torch.long)}

    # ---- mutation
    def vary(self, parents: Genomes, mates: Genomes, generation: int, generator: Generator) -> Genomes:
        """A mutated child of each parent; there is no crossover, so mates do not matter."""
        g = {name: tensor.clone() for name, tensor in parents.items()}
        rows = len(g["count"])
        for share, change in (
            (self.remove_node, self._remove_node), (self.remove_connection, self._remove_connection),
            (self.move_connection, self._move_connection), (self.add_connection, self._add_connection),
            (self.add_node, self._add_node),
        ):  # fmt: skip
            change(g, torch.rand(rows, generator=generator) < share, generator)
        moved = polynomial_mutation(g["weight"], self.rate, self.eta, generator, -self.span, self.span)
        g["weight"] = moved * g["link"]
        redrawn = torch.rand(rows, self.nodes, generator=generator) < self.rate
        functions = torch.randint(FUNCTIONS, (rows, self.nodes), generator=generator)
        g["function"] = torch.where(redrawn, functions, g["function"])
        return g

    def free(self, g: Genomes) -> Bool[Tensor, "rows nodes nodes"]:
        """Where a connection could be and is not."""
        number = torch.arange(self.nodes)
        there = (number < INPUTS + g["count"][:, None]) | (number >= INPUTS + self.hidden)
        reads = (number >= INPUTS)[:, None] & (number < INPUTS + self.hidden) & (number[:, None] > number)
        return reads & there[:, :, None] & there[:, None, :] & ~g["link"]

    def _remove_connection(self, g: Genomes, chosen: Tensor, generator: Generator) -> None:
        r, i, j = self._pick(g["link"], chosen, generator)
        g["link"][r, i, j] = False

    def _add_connection(self, g: Genomes, chosen: Tensor, generator: Generator) -> None:
        weights = (torch.rand(len(chosen), generator=generator) * 2 - 1) * self.span
        r, i, j = self._pick(self.free(g), chosen, generator)
        g["link"][r, i, j] = True
        g["weight"][r, i, j] = weights[r]

    def _move_connection(self, g: Genomes, chosen: Tensor, generator: Generator) -> None:
        free = self.free(g)
        chosen = chosen & free.flatten(1).any(1)
        r, i, j = self._pick(g["link"], chosen, generator)
        weights = torch.zeros(len(chosen))
        weights[r] = g["weight"][r, i, j]
        g["link"][r, i, j] = False
        moved = torch.zeros_like(chosen).index_fill(0, r, True)
        r, i, j = self._pick(free, moved, generator)
        g["link"][r, i, j] = True
        g["weight"][r, i, j] = weights[r]

    def _add_node(self, g: Genomes, chosen: Tensor, generator: Generator) -> None:
        """A node in the middle of a connection: it reads with weight 1, and is read with that of the connection."""
        functions = torch.randint(FUNCTIONS, (len(chosen),), generator=generator)
        r, i, j = self._pick(g["link"], chosen & (g["count"] < self.hidden), generator)
        new = INPUTS + g["count"][r]
        key = self._keys(g)
        key[r, new] = (j.clamp(min=INPUTS - 1) + torch.minimum(i, new)) / 2
        g["link"][r, i, j] = False
        g["link"][r, i, new] = g["link"][r, new, j] = True
        g["weight"][r, i, new], g["weight"][r, new, j] = g["weight"][r, i, j], 1.0
        g["function"][r, new] = functions[r]
        g["count"][r] += 1
        self._reorder(g, key)

    def _remove_node(self, g: Genomes, chosen: Tensor, generator: Generator) -> None:
        spin = torch.rand(len(chosen), generator=generator)
        r = (chosen & (g["count"] > 0)).nonzero()[:, 0]
        gone = INPUTS + (spin[r] * g["count"][r]).long()
        key = self._keys(g)
        key[r, gone] = torch.inf
        g["link"][r, gone] = False
        g["link"][r, :, gone] = False
        g["count"][r] -= 1
        self._reorder(g, key)

    def _keys(self, g: Genomes) -> Tensor:
        """The place of each hidden node in the order, infinite for those that are not there."""
        number = torch.arange(self.nodes).expand(len(g["count"]), -1)
        absent = (number >= INPUTS + g["count"][:, None]) & (number < INPUTS + self.hidden)
        return number.float().masked_fill(absent, torch.inf)

    def _reorder(self, g: Genomes, key: Tensor) -> None:
        hidden = slice(INPUTS, INPUTS + self.hidden)
        order = torch.arange(self.nodes).repeat(len(key), 1)
        order[:, hidden] = INPUTS + key[:, hidden].argsort(dim=1, stable=True)
        row = torch.arange(len(key))[:, None]
        g["function"] = g["function"][row, order]
        for name in ("weight", "link"):
            g[name] = g[name][row[:, :, None], order[:, :, None], order[:, None, :]]

    def _pick(self, where: Tensor, chosen: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One place (i, j) of each chosen row that has any, all alike."""
        flat = where.flatten(1)
        spin = torch.rand(flat.shape, generator=generator).masked_fill(~flat, -1.0)
        r = (chosen & flat.any(1)).nonzero()[:, 0]
        place = spin.argmax(1)[r]
        return r, place // self.nodes, place % self.nodes


def _drawn(weight: Tensor, function: Tensor, places: Tensor, channels: int) -> Tensor:
    """Node after node, for all genomes and pixels at once."""
    rows, nodes = function.shape
    values = places.new_empty(rows, nodes, places.shape[1])
    values[:, :INPUTS] = places
    for node in range(INPUTS, nodes):
        total = torch.bmm(weight[:, node : node + 1, :node], values[:, :node])[:, 0]
        values[:, node] = _activated(total, function[:, node])
    return ((values[:, nodes - channels :] + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def _activated(total: Tensor, function: Tensor) -> Tensor:
    """Each row through its function, all of range -1..1 but the linear one."""
    found = torch.empty_like(total)
    for code, apply in enumerate((torch.sin, _sigmoid, _gaussian, lambda v: v)):
        rows = (function == code).nonzero()[:, 0]
        found[rows] = apply(total[rows])
    return found


def _sigmoid(v: Tensor) -> Tensor:
    return 2 * v.sigmoid() - 1


def _gaussian(v: Tensor) -> Tensor:
    return 2 * (-v.square()).exp() - 1
