"""Features of a sparse autoencoder as pictures: what the activations that have most of each saw."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from convoscope.network import Network
from convoscope.units.crops import crops
from convoscope.units.reservoir import Sample
from convoscope.units.sparse_autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from PIL import Image


def ranked_features(latents: Tensor, image: Tensor, count: int) -> Int[Tensor, " features"]:
    """The features that are there least often, but in at least eight pictures: those are particular, and not of one picture."""
    active = latents > 0
    uses, (images, slot) = active.sum(0), image.unique(return_inverse=True)
    pictures = (torch.zeros(len(images), latents.shape[1]).index_add_(0, slot, active.float()) > 0).sum(0)
    order = torch.where(pictures >= min(8, len(images)), uses, uses + len(latents)).argsort(stable=True)
    return order[uses[order] > 0][:count]


def feature_sheet(
    autoencoder: SparseAutoencoder, network: Network, dataset: Any, sample: Sample, count: int = 12, columns: int = 8
) -> "Image.Image":
    """The `count` most particular features, each with the crops of the sampled activations that have most of it."""
    from convoscope.show.concepts import Row, draw

    latents = autoencoder.encode(sample.values)
    rows = []
    for f in ranked_features(latents, sample.image, count).tolist():
        used = int((latents[:, f] > 0).sum())
        best = _distinct(latents[:, f].argsort(descending=True, stable=True)[:used], sample, columns)
        pictures = crops(network, dataset, autoencoder.layer, sample, best)
        rows.append(Row(f"feature {f}", f"in {used / len(sample):.1%} of {len(sample):,} positions", list(pictures.numpy())))
    told = autoencoder.report
    facts = [f"{network.name}, {len(autoencoder)} features of {len(autoencoder.center)} channels, over {dataset.name}"]
    if told is not None:
        facts.append(f"{told.explained:.1%} of the variance, {told.active:.1f} active at a position, {told.dead:.0%} dead")
    return draw(
        f"Sparse features of {autoencoder.layer}",
        [*facts, "those that are there least often, in eight pictures or more where there are such"],
        rows,
    )


def _distinct(order: Tensor, sample: Sample, count: int) -> list[int]:
    """The first of each picture, then the others."""
    seen: set[int] = set()
    first, rest = [], []
    for i in order.tolist():
        image = int(sample.image[i])
        (rest if image in seen else first).append(i)
        seen.add(image)
        if len(first) == count:
            break
    return [*first, *rest][:count]
