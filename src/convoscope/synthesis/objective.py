"""Several targets in one batch: each row is scored by its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.record import Activations, record
from convoscope.images.base import Space
from convoscope.network import Network
from convoscope.targets import Neuron, Sum, Target


@dataclass(frozen=True)
class Objective:
    """Scores row i by target number `numbers[activations.rows[i]]`; the targets know nothing of each other.

    Rows of one target stand side by side.
    """

    targets: tuple[Target, ...]
    numbers: Int64[Tensor, " rows"]

    open = False

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a for number in self.numbers.unique().tolist() for a in self.targets[number].addresses()))

    def resolve(self, activations: Activations) -> "Objective":
        return self

    def __call__(self, activations: Activations) -> Float[Tensor, " rows"]:
        rows = activations.rows
        present, counts = self.numbers[rows.cpu()].unique_consecutive(return_counts=True)
        # Split once: the gradient of a slice is as large as all rows.
        parts = {a: activations[a].split(counts.tolist()) for a in self.addresses()}
        pictures, found = rows.split(counts.tolist()), []
        for k, (number, count) in enumerate(zip(present.tolist(), counts.tolist(), strict=True)):
            target = self.targets[number]
            own = {a: parts[a][k] for a in target.addresses()}
            shown = Activations.of(own, torch.zeros(count, dtype=torch.int64, device=rows.device))
            shown.pictures = pictures[k]
            found.append(target(shown))
        return torch.cat(found)


def settled(targets: Sequence[Target], network: Network, space: Space) -> list[Target]:
    """The targets with nothing left open: a neuron without a position is the one in the middle of its map.

    Raises UsageError for what no picture can be made for: a class that is not named, one target for several images.
    """
    for target in targets:
        target.check(1)
    unplaced = [t for target in targets for t in _terms(target) if isinstance(t, Neuron) and t.open]
    layers = tuple(dict.fromkeys(t.layer for t in unplaced))
    if not layers:
        found = list(targets)
    else:
        gray = torch.full((1, space.channels, *space.size), 0.5, device=space.device, dtype=space.dtype)
        with torch.no_grad():
            maps = record(network.plain, network.normalize(gray).to(network.dtype), layers, head=network.head)
        found = [_placed(t, maps) for t in targets]
    for target in found:
        if target.open:
            raise UsageError(
                f"{target} is fixed by looking at an image, and here there is none yet; name the class, the unit or the place"
            )
    return found


def _terms(target: Target) -> tuple[Target, ...]:
    return tuple(t for term in target.terms for t in _terms(term)) if isinstance(target, Sum) else (target,)


def _placed(target: Target, maps: Activations) -> Target:
    if isinstance(target, Sum):
        return Sum(tuple(_placed(t, maps) for t in target.terms), target.weights)
    if not isinstance(target, Neuron) or not target.open or maps[target.layer].dim() != 4:
        return target
    height, width = maps[target.layer].shape[2:]
    row = height // 2 if target.row is None else target.row
    return replace(target, row=row, column=width // 2 if target.column is None else target.column)
