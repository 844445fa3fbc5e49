"""Activation maximization: what would this unit, class or direction like to see?"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from convoscope.images import of
from convoscope.images.base import Image
from convoscope.network import Network
from convoscope.synthesis.ascent import ascend
from convoscope.synthesis.result import Synthesis
from convoscope.targets import Target


def maximize(
    network: Network | nn.Module, targets: Target | int | str | Sequence[Any], image: Image | str = "pixels", **settings: Any
) -> Synthesis:
    """Pictures that raise targets: one for each, or `copies=` of them (Erhan et al. 2009; Simonyan et al. 2014, eq. 1).

    `targets` is a Target, a class number, a category name, or a list of these; `image` a parametrization or its name. All
    other settings are those of `ascend`.
    """
    network = network if isinstance(network, Network) else Network(network)
    chosen = targets if isinstance(targets, list | tuple) else [targets]
    return ascend(network, [network.target(t) for t in chosen], of("image", image), **settings)
