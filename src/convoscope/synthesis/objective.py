"""Several targets in one batch: each row is scored by its own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.record import Activations
from convoscope.targets import Target


@dataclass(frozen=True)
class Objective:
    """Scores row i by target number `numbers[activations.rows[i]]`; the targets know nothing of each other."""

    targets: tuple[Target, ...]
    numbers: Int64[Tensor, " rows"]

    open = False

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a for t in self.targets for a in t.addresses()))

    def resolve(self, activations: Activations) -> "Objective":
        return self

    def __call__(self, activations: Activations) -> Float[Tensor, " rows"]:
        which = self.numbers[activations.rows.cpu()]
        found = []
        for number in (present := which.unique().tolist()):
            rows = (which == number).nonzero()[:, 0]
            target = self.targets[number]
            part = {a: activations[a] if len(present) == 1 else activations[a][rows.to(activations[a].device)]
                    for a in target.addresses()}  # fmt: skip
            found.append((rows, target(Activations.of(part, torch.zeros_like(rows)))))
        if len(found) == 1:
            return found[0][1]
        order = torch.cat([rows for rows, _ in found]).argsort()
        scores = torch.cat([s for _, s in found])
        return scores[order.to(scores.device)]
