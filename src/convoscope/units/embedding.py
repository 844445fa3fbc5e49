"""Many vectors as points of a plane, and the plane as a grid."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError


def principal(values: Float[Tensor, "samples channels"], components: int = 2) -> tuple[Float[Tensor, "samples parts"], float]:
    """Coordinates along the directions of largest variance, in double precision, and the share of variance they hold.

    A direction's sign is such that its largest component is positive, so that the same values give the same map everywhere.
    Directions that do not exist (fewer channels or samples) are zero.
    """
    x = values.cpu().double()
    x = x - x.mean(0)
    wide = x.shape[1] > len(x)
    square = x @ x.T if wide else x.T @ x
    sizes, vectors = torch.linalg.eigh(square)
    sizes, vectors = sizes.flip(0).clamp(min=0)[:components], vectors.flip(1)[:, :components]
    axes = x.T @ vectors if wide else vectors
    axes = axes / axes.norm(dim=0).clamp(min=1e-300)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0) * (sizes > 1e-12 * sizes[:1])
    points = torch.nn.functional.pad(x @ axes, (0, components - axes.shape[1]))
    total = float(x.square().sum())
    return points, float(sizes.sum()) / total if total else 0.0


def umap(values: Float[Tensor, "samples channels"], seed: int, neighbors: int = 50, distance: float = 0.05) -> Tensor:
    """UMAP (McInnes et al. 2018) by the angle between vectors, with the settings of activation atlases.

    The same seed gives the same map on one machine. Raises UnsupportedError where umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise UnsupportedError(
            "the embedding 'umap' needs umap-learn, which is not installed: pip install 'convoscope[concepts]'; 'pca' needs "
            "nothing"
        ) from error
    if len(values) < 8:
        raise UsageError(f"UMAP of {len(values)} activations; give at least 8, better thousands")
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = min(neighbors, len(values) - 1)
        settings = {"n_neighbors": near, "min_dist": distance, "metric": "cosine", "random_state": seed, "n_jobs": 1}
        found = UMAP(n_components=2, **settings).fit_transform(values.cpu().float().numpy())
    torch.set_num_threads(threads)  # numba has set that of all who use OpenMP
    return torch.from_numpy(found).double()


def laid_out(points: Float[Tensor, "samples 2"], percentile: float = 1.0, margin: float = 0.1) -> Float[Tensor, "samples 2"]:
    """Points in 0..1 along each axis: the middle percentiles fill it but for a margin, what lies beyond that is at its edge."""
    points = points.double()
    ends = torch.tensor([percentile / 100, 1 - percentile / 100], dtype=points.dtype)
    low, high = torch.quantile(points, ends, dim=0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return ((points - low) / (high - low).clamp(min=1e-300)).clamp(0, 1).where(high > low, torch.tensor(0.5).to(points))


@dataclass(frozen=True)
class Cells:
    """The occupied cells of a grid, in reading order: row, column, how many points, the mean of their values.

    `member` is the number of the cell that a sample is in, -1 where that has too few.
    """

    row: Int[Tensor, " cells"]
    column: Int[Tensor, " cells"]
    count: Int[Tensor, " cells"]
    mean: Float[Tensor, "cells channels"]
    member: Int[Tensor, " samples"]

    def __len__(self) -> int:
        return len(self.row)


def binned(points: Float[Tensor, "samples 2"], values: Float[Tensor, "samples channels"], grid: int, least: int) -> Cells:
    """The cells of a `grid` x `grid` that hold at least `least` points (x, y) in 0..1, y downwards, with their mean values."""
    column, row = (points * grid).long().clamp(0, grid - 1).unbind(1)
    place = row * grid + column
    count = torch.bincount(place, minlength=grid * grid)
    kept = count >= max(1, least)
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    member = number[place]
    inside = member >= 0
    total = torch.zeros(int(kept.sum()), values.shape[1], dtype=torch.float64)
    total.index_add_(0, member[inside], values[inside].cpu().double())
    places = kept.nonzero()[:, 0]
    return Cells(places // grid, places % grid, count[kept], total / count[kept][:, None], member)


def nearest(values: Float[Tensor, "samples channels"], cells: Cells, count: int) -> Int[Tensor, "cells count"]:
    """For each cell its samples whose direction is nearest to that of the mean, nearest first; -1 where there are fewer."""
    inside = (cells.member >= 0).nonzero()[:, 0]
    own = cells.member[inside]
    cosine = torch.cosine_similarity(values[inside].cpu().double(), cells.mean[own], dim=1)
    order = cosine.argsort(descending=True, stable=True)
    order = order[own[order].argsort(stable=True)]  # by cell, nearest first
    first = torch.nn.functional.pad(cells.count.cumsum(0), (1, 0))[:-1]
    rank = torch.arange(len(order)) - first[own[order]]
    kept = rank < count
    found = torch.full((len(cells), count), -1)
    found[own[order][kept], rank[kept]] = inside[order][kept]
    return found
