"""How much an evaluation holds at once, from the bytes it may take."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.run import rows_at_once
from convoscope.evaluation.base import Metric
from convoscope.network import Network

IMAGES = 8  # whose maps are held at once
MASKS = 1 << 28  # bytes of the random masks of a metric
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True)
class Budget:
    """Images whose maps are held at once, rows that the network is run on at once, bytes of the random masks of a metric."""

    images: int
    rows: int
    masks: int


def bytes_of(memory: int | str) -> int:
    """A number of bytes, or a text such as `"2 GB"` or `"500MiB"`. Raises UsageError."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", str(memory).lower())
    try:
        count = int(float(found[1]) * UNITS[found[2]]) if found and not isinstance(memory, bool) else 0
    except (ValueError, KeyError):
        count = 0
    if count < 1:
        raise UsageError(f"memory is {memory!r}; expected a number of bytes, or a text such as '2 GB'")
    return count


def budget(
    memory: int | str | None, network: Network, x: Tensor, metrics: Sequence[Metric], maps: int, batch_size: int | str
) -> Budget:
    """What fits into `memory` bytes beside the network itself, for images like `x` and that many maps of each.

    Copies of its weights in other orders are taken off first. Of the rest an eighth goes to random masks, and of what is left
    a half to activations, the other to maps. Raises UsageError, with the least that is needed, where not one image fits.
    """
    rows = rows_at_once(x) if batch_size == "auto" else int(batch_size)
    if memory is None:
        return Budget(IMAGES, rows, MASKS)
    fixed, row, image = bytes_of_weights(network), bytes_of_row(network, x), bytes_of_image(x, metrics, maps)
    given = bytes_of(memory) - fixed
    masks = given // 8
    half = (given - masks) // 2
    if half < max(row, image) or masks < 18 * x[0, 0].numel():
        least = fixed + max(2 * max(row, image) * 8 // 7 + 16, 144 * x[0, 0].numel())
        raise UsageError(
            f"memory={memory!r} does not suffice for one image of {' x '.join(map(str, x.shape[1:]))} with {maps} maps; give "
            f"at least {-(-least // 10**6)} MB, or fewer methods"
        )
    return Budget(min(IMAGES, half // image), max(1, min(rows, half // row)), masks)


def bytes_of_weights(network: Network) -> int:
    """What copies of the weights take: with batch norms folded, and in the orders in which convolutions run there and back."""
    return 5 * sum(p.numel() * p.element_size() for p in network.plain.parameters()) // 2


def bytes_of_row(network: Network, x: Tensor) -> int:
    """All that the network computes of one image, and as much again for what comes back: what rules of relevance hold."""
    found = network.trace(x[:1]).entries
    return 2 * x.element_size() * (sum(prod(e.shape) for e in found) + x[0].numel())


def bytes_of_image(x: Tensor, metrics: Sequence[Metric], maps: int) -> int:
    """What is held of one image: its maps in float64, their ranks, and what metrics make of them."""
    channels, pixels = x.shape[1], x[0, 0].numel()
    located = any("truth" in m.needs for m in metrics)
    again = max((int(getattr(m, "count", 1)) for m in metrics if "methods" in m.needs), default=0)
    pictures = x.element_size() * channels * (6 + 3 * again)
    return pixels * (maps * (8 + 8 + (64 if located else 0)) + pictures + 32 * again + 64)


def device_of(x: Tensor) -> str:
    """What kind of device and numbers, for keys of stored results."""
    return f"{x.device.type} {x.dtype} torch {torch.__version__}"
