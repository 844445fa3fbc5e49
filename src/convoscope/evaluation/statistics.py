"""How sure a mean is, and whether two methods differ: over images, by resampling, with a seed."""

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.evaluation.base import seeded

RESAMPLES = 2000
AT_ONCE = 256  # rows that are resampled, or flips that are made, together


def mean_of(values: Float[Tensor, "... images"]) -> Float[Tensor, "..."]:
    """The mean over the images where the metric is defined; NaN where it is nowhere."""
    return values.nanmean(-1)


def interval(
    values: Float[Tensor, "... images"], seed: int = 0, level: float = 0.95
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Percentile bootstrap interval of the mean over images (Efron and Tibshirani 1993, section 13.3); NaN for one image.

    All rows are resampled alike, so that intervals of several methods belong to the same draws.
    """
    images = values.shape[-1]
    if images < 2 or not values.numel():
        nothing = torch.full(values.shape[:-1], torch.nan, dtype=values.dtype)
        return nothing, nothing
    chosen = torch.randint(images, (RESAMPLES, images), generator=seeded(seed, "bootstrap"))
    times = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    times.scatter_add_(1, chosen, torch.ones_like(times))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    found = []
    for rows in values.reshape(-1, images).double().split(AT_ONCE):
        means = (rows.nan_to_num(0) @ times.T) / ((~rows.isnan()).double() @ times.T)
        found.append(means.nanquantile(edges, dim=-1))
    low, high = torch.cat(found, -1).to(values.dtype).view(2, *values.shape[:-1])
    return low, high


def told_apart(
    differences: Float[Tensor, "pairs images"], seed: int = 0
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Two-sided p-values that the mean differences of pairs of methods are zero: of each alone, and of all together.

    A paired permutation test: the signs of an image's differences are flipped, those of all pairs at once (Fisher 1935). All
    2^n flips where there are at most 12 images, which is exact, else as many at random as the bootstrap draws, the observed one
    counted (Phipson and Smyth 2010). For all together, Holm's steps with the largest of the flipped means in the place of the
    number of pairs (Westfall and Young 1993, algorithm 2.8; Romano and Wolf 2005), each in units of its own spread: that the
    differences of many pairs depend on one another is made use of, so that twelve methods can be told apart where 66 times the
    least p-value of few images would be above any limit. Whoever calls pairs with p <= 0.05 different is wrong about any of
    them in at most one evaluation of twenty. Ties are differences of zero; NaN for pairs with fewer than two images.
    """
    known = ~differences.isnan()
    tested = (known.sum(1) > 1).nonzero()[:, 0]
    each = torch.full((len(differences),), torch.nan, dtype=torch.float64)
    together = each.clone()
    if not len(tested):
        return each, together
    rows = differences[tested][:, known[tested].any(0)].double().nan_to_num(0)
    rows = rows / rows.square().sum(1, keepdim=True).sqrt().clamp(min=1e-300)
    order = rows.sum(1).abs().argsort(descending=True, stable=True)
    rows, tested = rows[order], tested[order]
    least = rows.sum(1).abs() * (1 - 1e-12)
    signs, alone, largest = _signs(rows.shape[1], seed), torch.zeros(len(rows)), torch.zeros(len(rows))
    for some in signs.split(AT_ONCE):
        reached = (some @ rows.T).abs()
        alone += (reached >= least).sum(0)
        largest += (reached.flip(1).cummax(1).values.flip(1) >= least).sum(0)
    each[tested] = alone.double() / len(signs)
    together[tested] = (largest.double() / len(signs)).cummax(0).values
    return each, together


def paired(a: Float[Tensor, " images"], b: Float[Tensor, " images"], seed: int = 0) -> float:
    """Two-sided p-value that two methods have the same mean, by `told_apart`. NaN where fewer than two images have both."""
    return float(told_apart((a - b)[None], seed)[0])


def _signs(count: int, seed: int) -> Float[Tensor, "flips images"]:
    """Ways to flip signs, the first of which flips none."""
    if count <= 12:
        return 1.0 - 2.0 * (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).double()
    drawn = torch.randint(2, (RESAMPLES - 1, count), generator=seeded(seed, "signs")).double()
    return torch.cat([torch.ones(1, count, dtype=torch.float64), 1 - 2 * drawn])


def adjusted(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """Holm's correction for several tests; NaN stay NaN."""
    known = ~p.isnan()
    found, some = p.clone(), p[known]
    order = some.argsort()
    factors = torch.arange(len(some), 0, -1, dtype=p.dtype)
    steps = (some[order] * factors).cummax(0).values.clamp(max=1)
    found[known] = torch.empty_like(some).scatter_(0, order, steps)
    return found
