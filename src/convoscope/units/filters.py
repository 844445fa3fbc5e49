"""Weights as pictures: kernels of the first layer in color, deeper ones channel by channel, and what several layers make."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convoscope.core.errors import AddressError, UnsupportedError, UsageError, did_you_mean
from convoscope.core.operators import ACTIVATIONS, Call, Rewriter
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.network import Network
from convoscope.show import overlay, strip
from convoscope.show.figure import Scale

ScaleOf = Literal["each", "shared"]
DUST = 1e-5
CONVOLUTIONS = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class Kernels:
    """The weights of a layer as a convolution's: `weight[o, j]` is what output `o` does with input channel `inputs[o, j]`.

    `units` are the numbers of the outputs. Groups have fewer than all input channels each. `source` is the layer that is read;
    `color`: it is the network's input of three channels.
    """

    address: str
    units: tuple[int, ...]
    weight: Float[Tensor, "outputs channels height width"]
    inputs: Int[Tensor, "outputs channels"]
    color: bool
    source: str = ""

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, which: slice | Sequence[int]) -> "Kernels":
        """Some of them, by place: a slice or numbers."""
        places = list(range(len(self)))[which] if isinstance(which, slice) else list(which)
        units = tuple(self.units[p] for p in places)
        return replace(self, units=units, weight=self.weight[places], inputs=self.inputs[places])

    @property
    def norms(self) -> Float[Tensor, "outputs channels"]:
        """The Euclidean norm of each kernel: how strongly an output reads each of its input channels."""
        return self.weight.flatten(2).norm(dim=2)

    def limit(self, scale: ScaleOf = "each") -> Float[Tensor, " outputs"]:
        """The magnitude that gets the strongest color: the largest weight of each output, or of all of them."""
        _one_of(scale)
        each = self.weight.abs().flatten(1).amax(1)
        return each if scale == "each" else each.max().expand_as(each)

    def pictures(self, scale: ScaleOf = "each") -> Float[Tensor, "outputs channels height width"]:
        """Kernels as pixels 0..1: gray (0.5) is a weight of zero, 0 and 1 are minus and plus `limit(scale)`, exactly.

        With "each" the contrast of every kernel is its own, with "shared" they compare. One factor for all channels of a
        kernel, so that hues are true: weights as they act on normalized inputs. Kernels without a weight of `DUST` times the
        layer's largest are gray: what is left of units that training gave up.
        """
        limit = self.limit(scale).view(-1, 1, 1, 1)
        seen = limit > DUST * limit.max()
        return torch.where(seen, 0.5 + self.weight / (2 * torch.where(seen, limit, 1)), 0.5)


def kernels(network: Network, layer: str | None = None, units: Sequence[int] | None = None) -> Kernels:
    """The kernels of some units (default: all) of a convolution, also a grouped or transposed one, or of a linear layer.

    `layer` defaults to the first layer that has weights. A linear layer that reads the whole input, as that of a perceptron,
    has kernels of the input's size, any other those of one position. Raises AddressError for a layer that is not there,
    UnsupportedError for one without such weights.
    """
    address = first_layer(network) if layer is None else layer
    known = dict(network.plain.named_modules())
    module = known.get(address)
    if module is None:
        raise AddressError(
            f"layer {address!r} does not exist{did_you_mean(address, list(known))} (net.layers() lists them all)"
        )
    if not isinstance(module, CONVOLUTIONS | nn.Linear):
        inside = [name for name, m in module.named_modules(prefix=address) if isinstance(m, CONVOLUTIONS | nn.Linear)]
        hint = f"; the layers inside of it that do: {', '.join(inside[:4])}" if inside else ""
        raise UnsupportedError(f"{address!r} is a {type(module).__name__}, which has no kernels{hint}")
    weight, inputs = _weights(network, module)
    color = network.channels == 3 and weight.shape[1] == 3 and address == first_layer(network)
    found = Kernels(address, tuple(range(len(weight))), weight, inputs, color)
    return found if units is None else found[_checked(address, units, len(weight))]


def _checked(address: str, units: Sequence[int], count: int) -> list[int]:
    for u in units:
        if not 0 <= u < count:
            raise UsageError(f"{address!r} has {count} units, numbered from 0; there is no {u}")
    return [int(u) for u in units]


def first_layer(network: Network) -> str:
    """The first convolution, or linear layer where there is none."""
    names = [(name, m) for name, m in network.plain.named_modules() if isinstance(m, CONVOLUTIONS | nn.Linear)]
    if not names:
        raise UnsupportedError(f"{network.name} has no convolution and no linear layer")
    return next((n for n, m in names if isinstance(m, CONVOLUTIONS)), names[0][0])


def _weights(network: Network, module: Any) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach()
    groups = getattr(module, "groups", 1)
    if isinstance(module, nn.Linear):
        size = (network.channels, *(network.size or (0, 0)))
        reads_input = module.in_features == size[0] * size[1] * size[2]
        weight = weight.reshape(len(weight), *size) if reads_input else weight[:, :, None, None]
    elif isinstance(module, nn.ConvTranspose2d):  # (inputs, outputs / groups, ...)
        parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
        weight = parts.transpose(1, 2).reshape(-1, parts.shape[1], *weight.shape[2:])
    outputs, channels = weight.shape[:2]
    group = torch.arange(outputs) // (outputs // groups)
    return weight, group[:, None] * channels + torch.arange(channels)


def _one_of(scale: str) -> None:
    if scale not in ("each", "shared"):
        raise UsageError(f"no scale {scale!r}; expected 'each' or 'shared'")


# ---- several layers at once


class _Linear:
    """A table of rules under which a network is linear: activations pass gradients, maxima are averages, gates constants."""

    strict = False

    def rule_for(self, name: str, address: str, first: bool = False) -> Any:
        if name in ("sigmoid", "hardsigmoid", "softmax"):
            return Call.value
        if name in ACTIVATIONS or name == "clamp":
            return lambda call: call.redirect(lambda call, value, gradient: gradient)
        return (lambda call: call.redirect(_averaged)) if name == "max_pool2d" else None


def _averaged(call: Call, value: Tensor, gradient: Tensor) -> Tensor:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    kernel = given["kernel_size"]
    if given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
        raise UnsupportedError(f"a dilated max pool at {call.address!r} has no average that replaces it")
    with torch.enable_grad():
        x = call.x.detach().requires_grad_()
        stride = given.get("stride") or kernel
        pooled = nn.functional.avg_pool2d(x, kernel, stride, given.get("padding", 0), bool(given.get("ceil_mode", False)))
        return torch.autograd.grad(pooled, x, gradient)[0]


def expanded(
    network: Network, to: str, units: Sequence[int] | None = None, *, source: str = "input", pictures: Tensor | None = None,
    batch_size: int = 32,
) -> Float[Tensor, "units channels height width"]:  # fmt: skip
    """Expanded weights: what each unit of layer `to`, at the middle of its map, does with each channel of an earlier layer.

    The linear path between the two: rectifiers and other activations taken as identities, max pools as averages, gates as
    constants, which is the product of the weights on the way. With `pictures` (inputs of the network) the mean over them of
    the true gradient instead: every activation has the slope it has on them, on average. The window is the smallest that
    holds all that is not zero for any unit. (Voss, Goh, Cammarata, Petrov, Schubert and Olah, "Visualizing Weights", Distill
    2021, doi 10.23915/distill.00024.007.)
    """
    if pictures is None:
        size = network.size or (224, 224)
        x, table = torch.zeros(1, network.channels, *size, device=network.device, dtype=network.dtype), _Linear()
    else:
        x, table = network.check(pictures), None
    total: list[Tensor] = []
    with undisturbed(network.plain), torch.no_grad():
        shape = record(network.plain, x[:1].clone(), (to,), head=network.head)[to].shape
    chosen = list(range(shape[1])) if units is None else _checked(to, units, shape[1])
    for start in range(0, len(chosen), batch_size):
        some = chosen[start : start + batch_size]
        rows = [_gradient(network, image[None].expand(len(some), -1, -1, -1), to, some, source, table) for image in x]
        total.append(torch.stack(rows).mean(0))
    found = torch.cat(total)
    return found if found.dim() != 4 else _window(found)


def _gradient(network: Network, x: Tensor, to: str, units: list[int], source: str, table: Any) -> Tensor:
    rewriter = None if table is None else Rewriter(table)
    with undisturbed(network.plain), torch.enable_grad():
        both = record(network.plain, x.clone(), (to, source), graph=(source,), rewriter=rewriter, head=network.head)
        middle = tuple(n // 2 for n in both[to].shape[2:])
        picked = both[to][(torch.arange(len(units)), torch.tensor(units), *middle)].sum()
        if not picked.requires_grad:
            raise UsageError(f"{to!r} does not depend on {source!r}; name an earlier layer as source")
        (found,) = torch.autograd.grad(picked, both[source], allow_unused=True)
    if found is None:
        raise UsageError(f"{to!r} does not depend on {source!r}; name an earlier layer as source")
    return found.detach()


def _window(found: Tensor) -> Tensor:
    used = (found != 0).flatten(0, 1).any(0)
    rows, columns = used.any(1).nonzero()[:, 0], used.any(0).nonzero()[:, 0]
    if not len(rows):
        return found[:, :, :1, :1]
    return found[:, :, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def path(network: Network, to: str, source: str = "input", units: Sequence[int] | None = None, **settings: Any) -> Kernels:
    """Expanded weights as kernels, to be drawn like those of one layer; settings are those of `expanded`."""
    weight = expanded(network, to, units, source=source, **settings)
    if weight.dim() != 4:
        weight = weight[:, :, None, None]
    chosen = tuple(range(len(weight))) if units is None else tuple(units)
    inputs = torch.arange(weight.shape[1]).expand(len(weight), -1)
    return Kernels(to, chosen, weight, inputs, source == "input" and weight.shape[1] == 3, source)


# ---- pictures


def strip_of(found: Kernels, *, scale: ScaleOf = "each", channels: int = 8) -> strip.Strip:
    """The kernels as a strip: in color or gray where they read the input, else the `channels` strongest inputs of each."""
    outputs, inputs, height, width = found.weight.shape
    limits = found.limit(scale)
    what = (
        f"{outputs} kernel{'s' if outputs > 1 else ''} of {height} x {width} over {inputs} channel{'s' if inputs > 1 else ''}"
    )
    how = "each to its own largest weight" if scale == "each" else f"all to the largest weight, {float(limits.max()):.3g}"
    title = f"Kernels of {found.address}" if not found.source else f"Expanded weights from {found.source} to {found.address}"
    if found.color or (inputs == 1 and outputs > 1):
        pictures = found.pictures(scale).permute(0, 2, 3, 1).cpu().float().numpy()
        tiles = [strip.Tile(p if found.color else p[..., 0], str(u)) for u, p in zip(found.units, pictures, strict=True)]
        about = [f"{what}. Gray is a weight of zero; scaled {how}."]
        grid = strip.Grid(tiles, min(len(tiles), 12 if len(tiles) > 40 else 8))
        return strip.Strip(title, [strip.Group("", [grid])], about, side=52 if max(height, width) < 24 else 104)
    groups = [_row(found, i, float(limits[i]), channels) for i in range(outputs)]
    unit = "weight" if scale == "shared" else "of the unit's largest weight"
    top = Scale.of(float(limits.max()) if scale == "shared" else 1.0, True, unit)
    about = [f"{what}: of each unit the input channels it reads most strongly, with their norms; scaled {how}."]
    return strip.Strip(title, groups, about, top, across=2 if outputs > 1 else 1, side=44)


def _row(found: Kernels, place: int, limit: float, channels: int) -> strip.Group:
    tiles = []
    for j in _strongest(found, place, channels):
        picture = overlay.colorize(found.weight[place, j].cpu().double().numpy(), limit=limit, signed=True)
        tiles.append(strip.Tile(picture, f"{int(found.inputs[place, j])}: {float(found.norms[place, j]):.2g}"))
    return strip.Group(f"{found.address}:{found.units[place]}", [strip.Grid(tiles, len(tiles))])


def _strongest(found: Kernels, place: int, count: int) -> list[int]:
    return found.norms[place].argsort(descending=True, stable=True)[:count].tolist()


def rows_of(found: Kernels, top: int = 5) -> list[dict[str, Any]]:
    """For each output its norm, largest weight, and the input channels it reads most strongly, as JSON values."""
    norms, rows = found.norms.cpu(), []
    for place, unit in enumerate(found.units):
        best = [{"channel": int(found.inputs[place, j]), "norm": float(norms[place, j])} for j in _strongest(found, place, top)]
        largest = float(found.weight[place].abs().max())
        rows.append({"unit": unit, "norm": float(norms[place].norm()), "largest": largest, "strongest": best})
    return rows
