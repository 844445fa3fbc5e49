"""How sure an order of methods is: whether other pictures would give the same one."""

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.evaluation.base import mean_ranks, pearson, seeded

HALVINGS = 200
LEAST = 4  # methods, or there is no order to speak of


def reliability(scores: Float[Tensor, "methods items"], seed: int = 0) -> float:
    """How well the methods' mean scores on some items tell their order on as many others: 1 the same, 0 nothing.

    Spearman's correlation between the means of two halves of the items, averaged over 200 random halvings, and stepped up to
    the whole number of items, 2 r / (1 + r) (Spearman 1910, Brown 1910). Methods without a score are left out; NaN where fewer
    than four methods or four items remain. What is compared with such scores cannot be expected to agree with them by more
    than the square root.
    """
    own = scores[~scores.isnan().all(-1)]
    own = own[:, ~own.isnan().all(0)]
    items = own.shape[-1]
    if len(own) < LEAST or items < 4:
        return float("nan")
    g = seeded(seed, "halvings")
    halves = torch.stack([torch.randperm(items, generator=g)[: items // 2 * 2] for _ in range(HALVINGS)]).unflatten(1, (2, -1))
    means = own[:, halves].nanmean(-1).movedim(0, -1)  # halvings, 2, methods
    means = torch.where(means.isnan(), own.nanmean(-1), means)
    half = float(pearson(mean_ranks(means[:, 0].contiguous()), mean_ranks(means[:, 1].contiguous())).nanmean())
    return max(0.0, 2 * half / (1 + half)) if half > -1 else 0.0
