"""How sure a mean is, and whether two methods differ: over images, by resampling, with a seed."""

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.evaluation.base import seeded

RESAMPLES = 2000


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
    if images < 2:
        nothing = torch.full(values.shape[:-1], torch.nan, dtype=values.dtype)
        return nothing, nothing
    chosen = torch.randint(images, (RESAMPLES, images), generator=seeded(seed, "bootstrap"))
    means = torch.stack([values[..., rows].nanmean(-1) for rows in chosen], -1)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)
    low, high = means.nanquantile(edges, dim=-1)
    return low, high


def paired(a: Float[Tensor, " images"], b: Float[Tensor, " images"], seed: int = 0) -> float:
    """Two-sided p-value that two methods have the same mean: signs of the differences by images flipped at random.

    All 2^n flips where there are at most 12 images, else as many at random as the bootstrap draws, the observed one counted
    (Phipson and Smyth 2010). NaN where fewer than two images have both.
    """
    difference = (a - b)[~(a - b).isnan()].double()
    count = len(difference)
    if count < 2:
        return float("nan")
    if count <= 12:
        bits = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
        signs = 1.0 - 2.0 * bits.double()
    else:
        drawn = torch.randint(2, (RESAMPLES - 1, count), generator=seeded(seed, "signs")).double()
        signs = torch.cat([torch.ones(1, count, dtype=torch.float64), 1 - 2 * drawn])
    observed = difference.mean().abs()
    reached = (signs @ difference / count).abs() >= observed * (1 - 1e-12)
    return float(reached.double().mean())


def adjusted(p: Float[Tensor, " tests"]) -> Float[Tensor, " tests"]:
    """Holm's correction for several tests; NaN stay NaN."""
    known = ~p.isnan()
    found, some = p.clone(), p[known]
    order = some.argsort()
    factors = torch.arange(len(some), 0, -1, dtype=p.dtype)
    steps = (some[order] * factors).cummax(0).values.clamp(max=1)
    found[known] = torch.empty_like(some).scatter_(0, order, steps)
    return found
