"""The neuron feature: what a unit's strongest patches have in common, as one small picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.record import canonical
from convoscope.network import Network

RESOLUTION = 128  # pixels that a receptive field is drawn with at most
AT_ONCE = 64  # crops held at a time


@dataclass(frozen=True)
class Window:
    """Where the units of a layer look, in input pixels: the one in row i sees `size` rows from `offset + i * stride` on.

    Not clipped to the picture. `whole` axes have a stride of 0 and are seen from end to end by every unit.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]
    picture: tuple[int, int]
    whole: tuple[bool, bool]

    @classmethod
    def of(cls, network: Network, x: Tensor, address: str) -> "Window":
        """The window of the units at `address` for inputs like `x`. Units that are not evenly spaced see the whole picture."""
        height, width = x.shape[2:]
        if address == "input":  # a pixel sees itself
            return cls((1, 1), (1, 1), (0, 0), (height, width), (False, False))
        field = network.trace(x).field_of(canonical(network.plain, address))
        found = []
        for axis, extent in enumerate((height, width)):
            stride, offset = (None, None) if field is None or field.whole else (field.stride[axis], field.offset[axis])
            known = field is not None and stride is not None and offset is not None
            found.append((field.size[axis], stride, offset, extent, False) if known else (extent, 0, 0, extent, True))
        size, stride, offset, picture, whole = zip(*found, strict=True)
        return cls(size, stride, offset, picture, whole)

    def corners(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Int[Tensor, "n 2"]:
        """Top and left of the boxes of units at these places."""
        return torch.stack([rows * self.stride[0] + self.offset[0], columns * self.stride[1] + self.offset[1]], 1)


def cut(x: Float[Tensor, "channels H W"], corners: Int[Tensor, "n 2"], size: Sequence[int]) -> Float[Tensor, "n channels h w"]:
    """Crops of `size` with these upper left corners; zero outside of the picture."""
    if len(corners) == 0:
        return x.new_zeros(0, len(x), *size)
    low, high = corners.amin(0).tolist(), corners.amax(0).tolist()
    before = [max(0, -v) for v in low]
    after = [max(0, v + s - n) for v, s, n in zip(high, size, x.shape[1:], strict=True)]
    padded = F.pad(x, (before[1], after[1], before[0], after[0]))
    places = (corners + torch.tensor(before)).tolist()
    return torch.stack([padded[:, top : top + size[0], left : left + size[1]] for top, left in places])


@dataclass(frozen=True)
class ImagePatches:
    """The patches that are from one image: units, ranks among a unit's patches, rows and columns, each (n,)."""

    image: int
    units: Int[Tensor, " n"]
    ranks: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


def by_image(patches: Any, units: Sequence[int] | None = None) -> Iterator[ImagePatches]:
    """The patches of some units (default: all) image by image, in order: each picture is decoded once."""
    chosen = torch.arange(len(patches.images)) if units is None else torch.as_tensor(units)
    images = patches.images[chosen]
    order = images.flatten().argsort(stable=True)
    order = order[images.flatten()[order] >= 0]
    k = images.shape[1]
    counts = images.flatten()[order].unique_consecutive(return_counts=True)[1].tolist()
    for places in order.split(counts) if counts else ():
        which, ranks = chosen[places // k], places % k
        rows, columns = patches.rows[which, ranks], patches.columns[which, ranks]
        yield ImagePatches(int(patches.images[which[0], ranks[0]]), which, ranks, rows, columns)


def weights_of(patches: Any) -> Float[Tensor, "units patches"]:
    """Activations as shares of each unit's largest, 0 to 1; 0 where there is no patch or an activation is not positive."""
    values = torch.where((patches.images >= 0) & (patches.values > 0), patches.values.double(), 0.0)
    return values / values.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def neuron_features(
    network: Network, dataset: Any, address: str, patches: Any, *, units: Sequence[int] | None = None,
    resolution: int = RESOLUTION,
) -> Float[Tensor, "units 3 h w"]:  # fmt: skip
    """The weighted mean of the strongest patches of each unit, in pixels 0..1: sum w_i patch_i / sum w_i, w_i = a_i / a_max.

    Patches are receptive fields in the pictures as the network reads them. Of a field larger than the picture the middle is
    taken, as large as the picture; what of a patch lies outside of its picture is left out of the mean, and pixels that no
    patch has are gray (0.5), as is all of a unit without positive activations. Fields of more than `resolution` pixels are
    drawn smaller. (Rafegas, Vanrell, Alexandre and Arias, "Understanding trained CNNs by indexing neuron selectivity",
    Pattern Recognition Letters 2020, section 2.)
    """
    chosen = list(range(len(patches.images))) if units is None else [int(u) for u in units]
    weights, place = weights_of(patches), {u: k for k, u in enumerate(chosen)}
    total: Tensor | None = None
    window: Window | None = None
    for group in by_image(patches, chosen):
        x = network.read(dataset.picture(group.image))
        if window is None or window.picture != tuple(x.shape[2:]):
            window = Window.of(network, x, address)
        size = tuple(min(s, p) for s, p in zip(window.size, window.picture, strict=True))
        middle = torch.tensor([(s - n) // 2 for s, n in zip(window.size, size, strict=True)])
        corners, which = (window.corners(group.rows, group.columns) + middle).unique(dim=0, return_inverse=True)
        pixels = network.picture(x)[0]
        pixels = torch.cat([pixels, torch.ones_like(pixels[:1])])
        crops = torch.cat([_smaller(cut(pixels, c, size), resolution) for c in corners.split(AT_ONCE)])
        if total is None:
            total = crops.new_zeros(len(chosen), *crops.shape[1:])
        crops = crops if crops.shape[2:] == total.shape[2:] else _resized(crops, total.shape[2:])
        rows = torch.tensor([place[u] for u in group.units.tolist()])
        w = weights[group.units, group.ranks].to(crops)
        for part in torch.arange(len(rows)).split(AT_ONCE):
            total.index_add_(0, rows[part], crops[which[part]] * w[part].view(-1, 1, 1, 1))
    if total is None:
        return torch.full((len(chosen), 3, 1, 1), 0.5)
    return torch.where(total[:, 3:] > 1e-6, total[:, :3] / total[:, 3:].clamp(min=1e-6), 0.5).clamp(0, 1)


def _smaller(crops: Tensor, resolution: int) -> Tensor:
    factor = resolution / max(crops.shape[2:])
    return crops if factor >= 1 else _resized(crops, [max(1, round(n * factor)) for n in crops.shape[2:]])


def _resized(crops: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(crops, tuple(size), mode="bilinear", antialias=True, align_corners=False)
