"""Networks of your own as those of the zoo, for the laws."""

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from convoscope.core.errors import UsageError
from convoscope.core.run import undisturbed
from convoscope.network import Network
from convoscope.testing.zoo import Hostile


def own(network: Network | nn.Module | Callable[[], Network | nn.Module]) -> Hostile:
    """A network of your own, or a function that builds one, as those of the zoo: a copy for each law, in its precision.

    Raises UsageError where the network takes no images of its size, or gives fewer than two classes.
    """
    source, made = "", network
    if not isinstance(network, Network | nn.Module):
        source, made = f"{network.__module__}:{network.__qualname__}", network()
    known = made if isinstance(made, Network) else Network(made)  # type: ignore[arg-type]
    settings = {"mean": known.mean, "std": known.std, "output": known.output}
    found = Hostile(
        known.name, "a network of your own", lambda: copy.deepcopy(known.module), channels=known.channels, settings=settings,
        side=known.size or 32, own=True, source="" if "<" in source or "__main__" in source else source,
    )  # fmt: skip
    name = known.name
    with torch.no_grad(), undisturbed(known.plain):
        output = known.head(known.plain(found.images(1, known.dtype).to(known.device)))
    if output.dim() != 2 or output.shape[1] < 2:
        raise UsageError(f"the laws need a network with at least two classes; {name} gives an output of {tuple(output.shape)}")
    return dataclasses.replace(found, classes=output.shape[1])
