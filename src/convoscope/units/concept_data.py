"""Pictures of concepts, and what a layer makes of them."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError, did_you_mean
from convoscope.core.record import record
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.data.dataset import Dataset, open_dataset, segments_for
from convoscope.network import Images, Network

BatchSize = int | Literal["auto"]  # auto: as many as run fast


def inputs_of(network: Network, source: Any, limit: int = 500) -> Images:
    """Pictures in input space: an input tensor `(B, C, H, W)` as it is, a list that `network.read` takes, a folder or a data
    set (of which at most `limit` are read, evenly spread)."""
    if isinstance(source, Tensor) and source.dim() == 4 and source.is_floating_point():
        return network.check(source)
    if isinstance(source, list | tuple):
        return network.read(list(source))
    dataset = source if isinstance(source, Dataset) else open_dataset(source)
    count = min(limit, len(dataset))
    return network.read([dataset.picture(k * len(dataset) // count) for k in range(count)])


def activations_of(
    network: Network, x: Images, layer: str, batch_size: BatchSize = "auto"
) -> Float[Tensor, "images channels ..."]:
    """The tensor `(B, C)` or `(B, C, h, w)` at a layer, one row for each image."""
    size = rows_at_once(x) if batch_size == "auto" else batch_size
    with torch.no_grad(), undisturbed(network.plain):
        parts = [record(network.plain, b, (layer,), head=network.head)[layer].detach() for b in x.split(size)]
    found = torch.cat(parts)
    if found.dim() not in (2, 4) or len(found) != len(x):
        raise UnsupportedError(
            f"{layer!r} has shape {tuple(parts[0].shape)} for {min(len(x), size)} images; concepts need a layer "
            "(B, C) or (B, C, h, w)"
        )
    return found


def of_class(dataset: Dataset, which: str | int, limit: int = 0) -> list[int]:
    """The rows whose pictures are of a class, by its name or number; the first `limit`, or all."""
    known = list(dataset.classes)
    if isinstance(which, str) and not which.isdecimal():
        if which not in known:
            raise UsageError(f"no class {which!r} in {dataset.name}{did_you_mean(which, known)}")
        which = known.index(which)
    rows = [i for i in range(len(dataset)) if dataset.class_of(i) == int(which)]
    return rows[:limit] if limit else rows


def rows_showing(network: Network, dataset: Dataset, names: list[str], least: float = 0.02) -> dict[str, list[int]]:
    """For each concept of the dense labels, by name or "category:name", the rows that show it.

    A row shows it where the label covers a share of at least `least` of the picture as the network reads it. Raises
    UsageError for names that the labels do not have.
    """
    numbers = {name: _number(dataset, name) for name in names}
    found: dict[str, list[int]] = {name: [] for name in names}
    for i in range(len(dataset)) if names else ():
        labels = segments_for(network, dataset, i)
        area = max(1, labels.shape[1] * labels.shape[2])
        for name, number in numbers.items():
            covered = int((labels == number).any(0).sum())
            if covered and covered >= least * area:
                found[name].append(i)
    return found


def _number(dataset: Dataset, name: str) -> int:
    full = [f"{c.category}:{c.name}" for c in dataset.concepts]
    plain = [c.name for c in dataset.concepts]
    places = [k for k, f in enumerate(full) if f == name] or [k for k, n in enumerate(plain) if n == name]
    if not places:
        known = f"{len(plain)} concepts" if plain else "no dense labels"
        raise UsageError(f"no concept {name!r} in the labels of {dataset.name}, which has {known}{did_you_mean(name, plain)}")
    if len(places) > 1:
        raise UsageError(f"several concepts are called {name!r}: {', '.join(full[k] for k in places)}; give one of these")
    return places[0] + 1
