"""The Gaussian-Bernoulli restricted Boltzmann machine, trained by contrastive divergence."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.synthesis.experts import Expert, Rows


@dataclass(eq=False, repr=False, kw_only=True)
class RBMExpert(Expert):
    """`log p(v) = -F(v) + constant`, `F(v) = ||v - b||^2 / (2 s^2) - sum_j log(1 + exp(c_j + w_j . v / s^2))`.

    Given the hidden units `h`, pixels are Gaussian around `b + sum_j h_j w_j` with deviation `s`, so the density is a mixture
    of as many Gaussians as there are states of the hidden units. The constant, its partition function, is not known: compare
    log densities of one machine with each other only.
    """

    kind: ClassVar[str] = "rbm"
    normalized: ClassVar[bool] = False
    weight: Float[Tensor, "hidden values"]
    visible: Float[Tensor, " values"]
    hidden: Float[Tensor, " hidden"]
    deviation: float

    def density(self, rows: Rows) -> Float[Tensor, " rows"]:
        return -free_energy(rows, self.weight.to(rows), self.visible.to(rows), self.hidden.to(rows), self.deviation)

    def sample(self, rows: Rows, steps: int, seed: int = 0) -> Rows:
        """Windows after `steps` of Gibbs sampling from `rows`; the last is the mean of the pixels given the hidden units."""
        draw = torch.Generator().manual_seed(seed)
        weight, visible, hidden = (t.to(rows) for t in (self.weight, self.visible, self.hidden))
        mean = rows
        for _ in range(steps):
            mean, rows = gibbs(rows, weight, visible, hidden, self.deviation, draw)
        return mean

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "visible": self.visible, "hidden": self.hidden}

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        return ("deviation",)


def free_energy(v: Rows, weight: Tensor, visible: Tensor, hidden: Tensor, deviation: float) -> Float[Tensor, " rows"]:
    """`-log sum_h exp(-E(v, h))` in closed form."""
    distance = (v - visible).square().sum(1) / (2 * deviation**2)
    return distance - F.softplus(F.linear(v / deviation**2, weight, hidden)).sum(1)


def gibbs(
    v: Rows, weight: Tensor, visible: Tensor, hidden: Tensor, deviation: float, draw: torch.Generator
) -> tuple[Rows, Rows]:
    """One step up and down: the mean of the new pixels, and the pixels drawn."""
    chance = F.linear(v / deviation**2, weight, hidden).sigmoid()
    states = (torch.rand(chance.shape, generator=draw).to(chance) < chance).to(v)
    mean = visible + states @ weight
    return mean, mean + deviation * torch.randn(mean.shape, generator=draw).to(mean)
