"""Dense labels where a network has the pixels of a picture."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from convoscope.core.errors import UnsupportedError

if TYPE_CHECKING:
    from convoscope.data.dataset import Dataset
    from convoscope.network import Network


def aligned(network: "Network", dataset: "Dataset", i: int) -> Int[Tensor, "layers H W"]:
    """See `segments_for`."""
    labels = dataset.segments(i)
    size = (int(labels.shape[1]), int(labels.shape[2]))
    if network.transform is not None:
        raise UnsupportedError("labels for networks with a transform of their own")
    rows, columns = fit_places(size, network.size or size)
    return labels.index_select(1, rows).index_select(2, columns)


def fit_places(size: tuple[int, int], to: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """For each row and each column of `fit(picture, to)`, the row and column of the picture at its center; int64."""
    scale = max(to[0] / size[0], to[1] / size[1])
    places = []
    for whole, part in zip(size, to, strict=True):
        new = max(part, round(whole * scale))
        start = (new - part) // 2
        # floor((r + start + 1/2) * whole / new), in whole numbers
        places.append((2 * (torch.arange(part) + start) + 1) * whole // (2 * new))
    return places[0], places[1]
