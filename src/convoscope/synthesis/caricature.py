"""Caricatures and accents: a picture as a layer sees it, exaggerated, and what of it speaks for a target, brought out."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.images import of
from convoscope.images.base import Image, Transform, image_size
from convoscope.images.transforms import standard
from convoscope.network import Network
from convoscope.synthesis.ascent import ascend
from convoscope.synthesis.dream_picture import codes, full_size
from convoscope.synthesis.dream_state import digest
from convoscope.synthesis.result import Synthesis
from convoscope.targets import Target
from convoscope.targets.features import DotCosine


def caricature(
    network: Network | nn.Module, picture: Any, layer: str | Sequence[str], *, power: float = 1.0, start: Any = "noise",
    image: Image | str = "fourier", size: int | tuple[int, int] | None = None,
    transforms: Sequence[Transform] | None = None, **settings: Any,
) -> Synthesis:  # fmt: skip
    """A picture from noise that has more and more of the features that `picture` has, one for each layer.

    Raises the dot product with the picture's features, times their cosine to a `power` that keeps the direction (Carter et al.
    2019; Olah et al. 2018): what the layer has seen comes back exaggerated. `start="picture"` begins with the picture itself.
    All other settings are those of `ascend`.
    """
    network = network if isinstance(network, Network) else Network(network)
    layers = [layer] if isinstance(layer, str) else list(layer)
    pixels, chosen = _begun(network, picture, image, size)
    found = codes(network, network.normalize(pixels), layers)
    targets = [DotCosine(a, found[a][0], power) for a in layers]
    moved = standard(tuple(pixels.shape[2:])) if transforms is None else transforms
    first = pixels if isinstance(start, str) and start == "picture" else start
    return ascend(network, targets, chosen, start=first, transforms=moved, **settings)


def accentuate(
    network: Network | nn.Module, picture: Any, targets: Any, *, near: str | None = None, weight: float = 10.0,
    image: Image | str = "fourier", size: int | tuple[int, int] | None = None,
    transforms: Sequence[Transform] | None = None, **settings: Any,
) -> Synthesis:  # fmt: skip
    """The picture with what it has for a target brought out, and else as it is (Hamblin et al. 2024).

    Begins with the picture as waves and raises the target, less `weight` times the relative squared distance of its features at
    the earlier layer `near` from those it had (default: the first layer that halves the picture twice). `targets` are as for
    `maximize`, one picture for each; all other settings are those of `ascend`.
    """
    network = network if isinstance(network, Network) else Network(network)
    pixels, chosen = _begun(network, picture, image, size)
    kept = Near(network, near or _early(network, pixels), network.normalize(pixels))
    asked = list(targets) if isinstance(targets, list | tuple) else [targets]
    wanted = [_target(network, t, pixels) for t in asked]
    moved = standard(tuple(pixels.shape[2:])) if transforms is None else transforms
    rest = {"rate": 0.03, "steps": 96} | settings
    return ascend(network, wanted, chosen, start=pixels, transforms=moved, expert=kept, expert_weight=weight, **rest)


class Near:
    """Minus the relative squared distance of features at a layer from those of a given input: `-|a - c|^2 / |c|^2`."""

    def __init__(self, network: Network, layer: str, x: Float[Tensor, "1 channels height width"]) -> None:
        self.network, self.layer = network, layer
        self.code = codes(network, x, [layer])[layer].detach()
        self.hash = f"{layer} {digest(self.code)}"

    def __call__(self, pixels: Float[Tensor, "rows channels height width"]) -> Float[Tensor, " rows"]:
        """For pixels 0..1, differentiable."""
        network = self.network
        with undisturbed(network.plain):
            found = record(network.plain, network.normalize(pixels), (self.layer,), head=network.head)[self.layer]
            scale = self.code.square().sum().clamp(min=torch.finfo(self.code.dtype).tiny)
            return -(found - self.code).flatten(1).square().sum(1) / scale

    def __repr__(self) -> str:
        return f"features of {self.layer} near the picture's"


def _begun(network: Network, picture: Any, image: Image | str, size: Any) -> tuple[Tensor, Image]:
    """The picture at the size of the image, and the image."""
    from dataclasses import replace

    from convoscope.data.tensors import fit

    chosen = of("image", image)
    if size is not None:
        chosen = replace(chosen, size=size)
    pixels = full_size(network, picture)
    side = getattr(chosen, "size", None) or network.size
    if side is None:
        chosen = replace(chosen, size=tuple(pixels.shape[2:]))
    else:
        pixels = fit(pixels, image_size(side, None))
    return pixels, chosen


def _early(network: Network, pixels: Tensor) -> str:
    """The last address whose maps are at least a quarter as high as the picture."""
    maps = [e for e in network.trace(network.normalize(pixels)).entries if len(e.shape) == 3]
    large = [e for e in maps if e.shape[1] * 4 >= pixels.shape[2]]
    if not large:
        raise UsageError(f"{network.name} has no early layer with rows and columns; name one with near=")
    return min((e for e in large if e.step == large[-1].step), key=lambda e: len(e.address)).address


def _target(network: Network, which: Any, pixels: Tensor) -> Target:
    from convoscope.core.record import Activations
    from convoscope.targets.text import read_target

    if isinstance(which, str):
        found = read_target(which, network.categories, {name for name, _ in network.plain.named_modules() if name})
    else:
        found = network.target(which)
    if found.open:
        seen = codes(network, network.normalize(pixels), found.addresses())
        found = found.resolve(Activations.of(seen, torch.zeros(1, dtype=torch.long)))
    return found
