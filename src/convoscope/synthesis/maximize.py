"""Activation maximization: what would this unit, class or direction like to see?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from convoscope.core.errors import UsageError
from convoscope.images import of
from convoscope.images.base import Image, Transform, image_size
from convoscope.images.transforms import standard
from convoscope.network import Network
from convoscope.synthesis.ascent import ascend
from convoscope.synthesis.result import Synthesis
from convoscope.targets import Target
from convoscope.targets.text import read_target


def maximize(
    network: Network | nn.Module, targets: Target | int | str | Sequence[Any], image: Image | str | None = None, *,
    size: int | tuple[int, int] | None = None, transforms: Sequence[Transform | str] | None = None, **settings: Any,
) -> Synthesis:  # fmt: skip
    """Pictures that raise targets: one for each, or `copies=` of them (Erhan et al. 2009; Simonyan et al. 2014, eq. 1).

    `targets` is a Target, a class number, words such as "tabby", "layer4:42" or "layer4:7 - 0.2*layer3:5"
    (`targets/text.py`), or a list of these; `image` a parametrization or its name (default: Fourier), `size` its side or
    (height, width), `transforms` how pictures are moved before the network sees them (default: what suits the image and its
    size; `()`: not at all). All other settings are those of `ascend`.

    Units whose rectifier is behind them show more: `layer3.1.bn2:12` is what `layer3.1` adds before it is cut off at zero.
    Simonyan's class model is `maximize(net, 281, "pixels", start="black", transforms=(), penalties=[L2])`.
    """
    network = network if isinstance(network, Network) else Network(network)
    chosen = targets if isinstance(targets, list | tuple) else [targets]
    image = image_of(image, size)
    if transforms is None:
        own = image_size(getattr(image, "size", None), network.size)
        transforms = image.transforms(own, network.size or own) or standard(own)
    if transforms:
        settings = {"views": image.views, **settings}
    return ascend(network, [target_of(network, t) for t in chosen], image, transforms=transforms, **settings)


def target_of(network: Network, which: Any) -> Target:
    """A target as it is, of a class number, or in words. Raises UsageError."""
    if not isinstance(which, str):
        if which is None:
            raise UsageError("name what the picture is to raise: a class, a unit such as 'layer4:42', or a Target")
        return network.target(which)
    return read_target(which, network.categories, {n for n, _ in network.plain.named_modules() if n})


def image_of(image: Image | str | None, size: int | tuple[int, int] | None = None) -> Image:
    """The parametrization that a name stands for, of that size; None is the one to begin with."""
    chosen = of("image", "fourier" if image is None else image)
    if size is None:
        return chosen
    if not hasattr(chosen, "size"):
        raise UsageError(f"{chosen.name} pictures have no size of their own; leave the size out")
    return replace(chosen, size=size)
