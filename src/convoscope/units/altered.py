"""What units say to their strongest pictures when these are changed: made gray, turned, mirrored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.record import record
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.network import Network
from convoscope.units.neuron_feature import Window, by_image, cut

Change = Callable[[Tensor], Tensor]  # inputs (B, C, H, W) to inputs of the same shape


def run(network: Network, x: Tensor, addresses: Sequence[str]) -> Mapping[str, Tensor]:
    """The activations at `addresses`, for inputs of any size the network takes up to there."""
    with undisturbed(network.plain), torch.no_grad():
        return record(network.plain, x.contiguous(), tuple(addresses), head=network.head)


def readings(
    network: Network, dataset: Any, patches: Mapping[str, Any], changes: Sequence[Change], *,
    peak: bool = False, batch_size: int | Literal["auto"] = "auto",
) -> dict[str, Float[Tensor, "changes units patches"]]:  # fmt: skip
    """What each unit says at the place of each of its patches, or at its strongest (`peak`), to the whole picture changed.

    `patches` are those of each layer; a picture is run once for all layers. What lies outside of a unit's receptive field
    does not reach it: for changes that leave every pixel in its place, this is what changing the patch alone and putting it
    back gives. NaN where there is no patch.
    """
    found = {a: torch.full((len(changes), *p.images.shape), torch.nan, dtype=torch.float64) for a, p in patches.items()}
    groups = {a: {g.image: g for g in by_image(p)} for a, p in patches.items()}
    for images, x in _batches(network, dataset, sorted({i for g in groups.values() for i in g}), batch_size):
        here = [(a, group, k) for k, i in enumerate(images) for a, g in groups.items() if (group := g.get(i)) is not None]
        for number, change in enumerate(changes):
            maps = run(network, change(x), list(dict.fromkeys(a for a, _, _ in here)))
            for address, group, k in here:
                said = _at(maps[address][k], group.units, group.rows, group.columns, peak)
                found[address][number][group.units, group.ranks] = said.double().cpu()
    return found


def crop_readings(
    network: Network, dataset: Any, address: str, patches: Any, changes: Sequence[Change], *, batch_size: int = 64
) -> Float[Tensor, "changes units patches"]:
    """What each unit says to its patches alone, changed: receptive fields, run as small inputs of their own.

    Around and outside of a picture is zero in input space, the mean color of most networks. Patches that several units share
    are run once. Takes a layer whose units are evenly spaced (`Window.whole` is no axis).
    """
    found = torch.full((len(changes), *patches.images.shape), torch.nan, dtype=torch.float64)
    window: Window | None = None
    for group in by_image(patches):
        x = network.read(dataset.picture(group.image))
        if window is None or window.picture != tuple(x.shape[2:]):
            window = Window.of(network, x, address)
        first = [-(o // s) for o, s in zip(window.offset, window.stride, strict=True)]  # the first unit that sees no edge
        edge = [o + r * s for o, r, s in zip(window.offset, first, window.stride, strict=True)]
        corners, which = window.corners(group.rows, group.columns).unique(dim=0, return_inverse=True)
        for part in torch.arange(len(corners)).split(batch_size):
            crops = cut(x[0], corners[part], window.size)
            canvas = crops.new_zeros(*crops.shape[:2], *(e + s for e, s in zip(edge, window.size, strict=True)))
            mine = (which >= part[0]) & (which <= part[-1])
            units, ranks, rows = group.units[mine], group.ranks[mine], which[mine] - part[0]
            for number, change in enumerate(changes):
                canvas[:, :, edge[0] :, edge[1] :] = change(crops)
                maps = run(network, canvas, (address,))[address]
                here = maps[rows.to(maps.device), units.to(maps.device), first[0], first[1]]
                found[number][units, ranks] = here.double().cpu()
    return found


def _at(one: Tensor, units: Tensor, rows: Tensor, columns: Tensor, peak: bool) -> Tensor:
    """Readings of the activations (C,) or (C, h, w) of one image."""
    units, rows, columns = (t.to(one.device) for t in (units, rows, columns))
    if one.dim() == 1:
        return one[units]
    return one.amax((1, 2))[units] if peak else one[units, rows, columns]


def _batches(
    network: Network, dataset: Any, images: Sequence[int], most: int | Literal["auto"]
) -> Iterator[tuple[list[int], Tensor]]:
    """Images with their inputs: neighbors of one shape, at most as many as said."""
    places: list[int] = []
    inputs: list[Tensor] = []
    for i in images:
        x = network.read(dataset.picture(i))
        size = rows_at_once(x) if most == "auto" else most
        if inputs and (len(inputs) == size or inputs[0].shape != x.shape):
            yield places, torch.cat(inputs)
            places, inputs = [], []
        places.append(i)
        inputs.append(x)
    if inputs:
        yield places, torch.cat(inputs)
