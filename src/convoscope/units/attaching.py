"""One more module behind a layer of a network, for tools that name layers to look at."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.record import canonical
from convoscope.network import Network

HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip


def attach(network: Network, layer: str, name: str, behind: nn.Module) -> Network:
    """A network that also runs `behind` on what the module at `layer` gives, at the address `name`.

    What the network computes is unchanged, and nothing of it is changed: the modules on the way to the layer are replaced by
    shallow copies, which share all weights. What runs after `behind` may overwrite the tensor it was given. Raises
    UnsupportedError where the layer is no module.
    """
    root = _shallow(network.plain)
    address = canonical(network.plain, layer)
    if hasattr(root, name) or "." in name or not name.isidentifier():
        raise UsageError(f"{name!r} is no free name for features of {network.name}; give another")
    here = root
    for step in address.split("."):
        if step not in here._modules or here._modules[step] is None:
            raise UnsupportedError(
                f"features can be attached behind modules only, and {layer!r} is an operator or does not exist; name the "
                "module that ends with it (net.layers() lists them)"
            )
        here._modules[step] = _shallow(here._modules[step])  # type: ignore[arg-type]
        here = here._modules[step]  # type: ignore[assignment]
    root._modules[name] = behind
    if isinstance(root, nn.Sequential):  # it would run what was added as its last step

        def steps(self: nn.Module) -> Iterator[nn.Module]:
            return iter([m for n, m in self._modules.items() if n != name])

        root.__class__ = type(type(root).__name__, (type(root),), {"__iter__": steps})

    def look(module: nn.Module, args: Any, output: Any) -> None:
        behind(output)

    handle = here.register_forward_hook(look)
    # Hooks of a recording, which may put another tensor in the place of this one, were registered later: go behind them.
    here.register_forward_pre_hook(lambda module, args: module._forward_hooks.move_to_end(handle.id))
    return Network(
        root, network.size, network.mean, network.std, network.categories, channels=network.channels,
        name=f"{network.name} with {name} of {layer}", transform=network.transform, output=network.output,
    )  # fmt: skip


def _shallow(module: nn.Module) -> nn.Module:
    copy = object.__new__(type(module))
    copy.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    copy.__dict__ |= {hooks: OrderedDict(getattr(module, hooks)) for hooks in HOOKS}
    return copy
