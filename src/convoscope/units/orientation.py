"""How selective units are for orientation, and how symmetric what they like is: strongest patches turned and mirrored."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError
from convoscope.network import Network
from convoscope.units.altered import crop_readings, readings
from convoscope.units.neuron_feature import Window, by_image

MIRRORS = ("left-right", "up-down", "diagonal", "other-diagonal")
_MIRRORS = (((1, 0), (0, -1)), ((-1, 0), (0, 1)), ((0, 1), (1, 0)), ((0, -1), (-1, 0)))


def moved(x: Float[Tensor, "batch channels h w"], matrix: Any) -> Float[Tensor, "batch channels h w"]:
    """Pictures seen through a round window in their middle, as wide as the shorter side, their content turned or mirrored.

    `matrix` takes (row, column) from the middle of the result to those of `x`; it has to keep lengths. Cubic between pixels,
    since linear interpolation blurs what is turned and not what is not; outside of the window is the mean color of the
    picture. Quarter turns and mirrors of squares move pixels without mixing them.
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=torch.float64, device=x.device) - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64, device=x.device) - (width - 1) / 2
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    source = at @ torch.tensor(matrix, dtype=torch.float64, device=x.device).T
    grid = torch.stack([source[..., 1] / (width / 2), source[..., 0] / (height / 2)], -1).to(x.dtype)
    there = at.square().sum(-1).sqrt() <= min(height, width) / 2
    found = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), mode="bicubic", padding_mode="border", align_corners=False)
    return torch.where(there, found, x.mean((2, 3), keepdim=True))


def turn(degrees: float) -> list[list[float]]:
    """The matrix for `moved` that turns counterclockwise."""
    a = math.radians(degrees)
    return [[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]


def orientation_tuning(
    network: Network, dataset: Any, address: str, patches: Any, *, angles: Sequence[float],
    alone: bool | None = None, batch_size: int = 32,
) -> Float[Tensor, "units angles"]:  # fmt: skip
    """What each unit says to its strongest patches turned by `angles` degrees, summed; negative activations count as zero.

    Patches are cut out, turned about their middle and run `alone`, or whole pictures are turned about theirs and units read
    where they are strongest: by default the former where a receptive field is at most half as high and wide as the picture.
    Both are seen through a round window, at all angles the same. A whole picture gives a unit many places to answer at, so
    numbers of the two kinds do not compare.
    """
    return _responses(network, dataset, address, patches, [turn(a) for a in angles], alone, batch_size)


def orientation_index(
    network: Network, dataset: Any, address: str, patches: Any, *, steps: int = 8, alone: bool | None = None,
    batch_size: int = 32,
) -> tuple[Float[Tensor, " units"], Float[Tensor, "units steps"]]:  # fmt: skip
    """1 - mean over the other angles of a(angle) / a(0), and the tuning curve a(angle) / a(0) it comes from.

    Angles are `steps` equal parts of half a turn. 0 where the orientation does not matter, 1 where a unit answers to one
    alone, below 0 where it prefers its patches turned; NaN where its patches do not excite it. (After Rafegas, Vanrell,
    Alexandre and Arias 2020, who take it as a further property their framework can index.)
    """
    angles = [180 * k / steps for k in range(steps)]
    found = orientation_tuning(network, dataset, address, patches, angles=angles, alone=alone, batch_size=batch_size)
    tuning = found / torch.where(found[:, :1] > 0, found[:, :1], torch.nan)
    return 1 - tuning[:, 1:].mean(1), tuning


def symmetry_index(
    network: Network, dataset: Any, address: str, patches: Any, *, alone: bool | None = None, batch_size: int = 32
) -> Float[Tensor, "units 4"]:
    """What is left of a unit's activation when its strongest patches are mirrored, for each of the axes in `MIRRORS`.

    1 where the mirror image excites it as much, 0 where not at all, above 1 where more; NaN where its patches do not excite
    it. Patches are cut out, or whole pictures taken, as in `orientation_tuning`.
    """
    same = ((1, 0), (0, 1))
    found = _responses(network, dataset, address, patches, [same, *_MIRRORS], alone, batch_size)
    return found[:, 1:] / torch.where(found[:, :1] > 0, found[:, :1], torch.nan)


def _responses(
    network: Network, dataset: Any, address: str, patches: Any, matrices: Sequence[Any], alone: bool | None,
    batch_size: int,
) -> Float[Tensor, "units matrices"]:  # fmt: skip
    changes = [lambda x, m=m: moved(x, m) for m in matrices]
    if _alone(network, dataset, address, patches, alone):
        found = crop_readings(network, dataset, address, patches, changes, batch_size=2 * batch_size)
    else:
        found = readings(network, dataset, {address: patches}, changes, peak=True, batch_size=batch_size)[address]
    there = (patches.images >= 0) & (patches.values > 0)
    return torch.where(there, found.clamp(min=0), 0.0).sum(2).T


def _alone(network: Network, dataset: Any, address: str, patches: Any, wanted: bool | None) -> bool:
    """Whether receptive fields are to be run on their own: as wanted, else where they are small enough."""
    first = next(by_image(patches), None)
    if first is None or wanted is False:
        return False
    window = Window.of(network, network.read(dataset.picture(first.image)), address)
    if wanted and any(window.whole):
        raise UnsupportedError(f"units of {address!r} see the whole picture or are not evenly spaced: they have no patches")
    small = all(2 * s <= p for s, p in zip(window.size, window.picture, strict=True))
    return bool(wanted) or (small and not any(window.whole))
