"""A picture as pixels at its own size, whatever size the network takes, and the codes it has in a network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import ImageError
from convoscope.core.record import record
from convoscope.core.run import AT_ONCE, rows_at_once, undisturbed
from convoscope.data.tensors import pixels_of_tensor
from convoscope.network import Network


def full_size(network: Network, source: Any, size: int | None = None) -> Float[Tensor, "1 channels height width"]:
    """The pixels 0..1 of one picture, uncropped, on the network's device; `size` is the longer side to make of it.

    `source` is what `Network.read` takes; where the network's channels are those of no picture file, a tensor.
    """
    if isinstance(source, Tensor):
        pixels = pixels_of_tensor(source, network.channels)
        if len(pixels) != 1:
            raise ImageError(f"expected one picture; got {len(pixels)}")
    else:
        pixels = _of_file(network, source)
    pixels = pixels.to(network.device, network.dtype)
    if size is not None:
        scale = size / max(pixels.shape[2:])
        new = [max(1, round(n * scale)) for n in pixels.shape[2:]]
        pixels = F.interpolate(pixels, new, mode="bicubic", antialias=True).clamp(0, 1)
    return pixels


def _of_file(network: Network, source: Any) -> Tensor:
    from convoscope.data.pictures import read_picture

    if network.channels not in (1, 3):
        raise ImageError(
            f"the network takes {network.channels} channels, which no picture file has; give a tensor "
            f"({network.channels}, height, width) of pixels 0..1"
        )
    picture = np.array(read_picture(source, mode="L" if network.channels == 1 else "RGB"))
    raw = torch.from_numpy(picture)
    raw = raw[:, :, None] if raw.dim() == 2 else raw
    return raw.permute(2, 0, 1)[None].to(torch.float32).div_(255)


def at_once(network: Network, size: tuple[int, int]) -> int:
    """How many pictures of a size are worked on at once where nobody says, each with a gradient and some memory of steps."""
    return max(1, (1 if network.device.type == "cpu" else 16) * AT_ONCE // (size[0] * size[1]))


def codes(network: Network, x: Float[Tensor, "rows channels height width"], layers: Sequence[str]) -> dict[str, Tensor]:
    """The activations of inputs at some addresses, `(rows, ...)` each; a run stops at the last of them."""
    asked, parts = tuple(dict.fromkeys(layers)), []
    with undisturbed(network.plain), torch.no_grad():
        for part in x.split(rows_at_once(x)):
            parts.append(record(network.plain, part, asked, head=network.head))
    return {layer: torch.cat([found[layer] for found in parts]) for layer in asked}
