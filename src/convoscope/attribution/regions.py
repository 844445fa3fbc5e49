"""Images divided into regions that are shown or hidden together, and what the target makes of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import AtLeast, Spec
from convoscope.method import Maps
from convoscope.network import Images

Fill = Literal["black", "white", "mean", "blur", "uniform"] | float | Tensor
Labels = Int64[Tensor, "batch height width"]
Numbers = NDArray[np.float64]


class Regions(Spec, kind="regions", abstract=True):
    """How an image is divided into regions."""

    def labels(self, probe: Probe, x: Images) -> Labels:
        """The region of each position, any whole numbers."""
        raise NotImplementedError

    def most(self, height: int, width: int) -> int:
        """No image of this size has more regions."""
        raise NotImplementedError


class Grid(Regions):
    """Equal rectangles, numbered row by row."""

    cells: Annotated[int, "rectangles along each side", AtLeast(1)] = 8

    def labels(self, probe: Probe, x: Images) -> Labels:
        rows, columns = (torch.arange(n, device=x.device) * min(self.cells, n) // n for n in x.shape[2:])
        return (rows[:, None] * self.cells + columns).expand(len(x), -1, -1)

    def most(self, height: int, width: int) -> int:
        return min(self.cells, height) * min(self.cells, width)


class Superpixels(Regions):
    """About `segments` compact regions of similar color (SLIC, Achanta et al. 2012), whatever the size of the picture."""

    segments: Annotated[int, "about how many", AtLeast(1)] = 50
    compactness: Annotated[float, "weight of distance in the picture against distance in color", AtLeast(0)] = 10.0

    def labels(self, probe: Probe, x: Images) -> Labels:
        from skimage.segmentation import slic

        return _segmented(
            probe, x, lambda p: slic(p, n_segments=self.segments, compactness=self.compactness, start_label=0, channel_axis=-1)
        )

    def most(self, height: int, width: int) -> int:
        return min(height * width, 4 * self.segments + 4)  # a segment has at least half the mean size of those it starts from


class Quickshift(Regions):
    """Regions around the modes of color and position (Vedaldi and Soatto 2008), as many as there are.

    The defaults are those of the authors of LIME, for pictures of a few hundred pixels; one of 32 pixels is a single region.
    """

    kernel: Annotated[float, "width of the density's kernel, in pixels", AtLeast(0.1)] = 4.0
    distance: Annotated[float, "largest distance between points of a region", AtLeast(0)] = 200.0
    ratio: Annotated[float, "weight of color against position, 0 to 1", AtLeast(0)] = 0.2

    def labels(self, probe: Probe, x: Images) -> Labels:
        from skimage.segmentation import quickshift

        return _segmented(
            probe, x, lambda p: quickshift(p, ratio=self.ratio, kernel_size=self.kernel, max_dist=self.distance, rng=42)
        )

    def most(self, height: int, width: int) -> int:
        return height * width


Division = Regions | Tensor


def _segmented(probe: Probe, x: Images, segment: Any) -> Labels:
    pictures = probe.picture(x).permute(0, 2, 3, 1).double().cpu().numpy()
    if pictures.shape[1:3] != tuple(x.shape[2:]):
        raise UsageError(
            f"superpixels are found in pictures {tuple(pictures.shape[1:3])}, not in layers {tuple(x.shape[2:])}; "
            "use regions=Grid(cells), or a tensor of labels"
        )
    return torch.stack([torch.as_tensor(segment(p), dtype=torch.int64, device="cpu") for p in pictures]).to(x.device)


def labels_of(probe: Probe, x: Images, regions: Division) -> Labels:
    """The region of each position of each image, numbered from 0 without gaps. A tensor `(1, H, W)` or `(B, H, W)` is taken
    as it is, but for the numbers."""
    if x.dim() != 4:
        raise UsageError(f"regions divide (images, channels, rows, columns); got shape {tuple(x.shape)}")
    return probe.once(x, ("labels", regions), lambda: _labels(probe, x, regions), target=False)


def _labels(probe: Probe, x: Images, regions: Division) -> Labels:
    if isinstance(regions, Tensor):
        images = len(probe.session.images)
        if regions.dim() != 3 or len(regions) not in (1, images) or tuple(regions.shape[1:]) != tuple(x.shape[2:]):
            raise UsageError(
                f"labels of regions are (1 or {images}, {x.shape[2]}, {x.shape[3]}); got {tuple(regions.shape)}"
            )
        found = regions if len(regions) == 1 else regions[probe.rows.cpu()]
        found = found.to(x.device).expand(len(x), -1, -1)
    else:
        found = regions.labels(probe, x)
    return torch.stack([torch.unique(one, return_inverse=True)[1] for one in found])


def most_regions(regions: Division, x: Images) -> int:
    """No image of `x` has more regions."""
    if isinstance(regions, Tensor):
        return max(len(one.unique()) for one in regions)
    return regions.most(x.shape[2], x.shape[3])


@dataclass(frozen=True)
class Game:
    """One image as a cooperative game: regions play, and what they earn is the target of a picture that shows only them."""

    probe: Probe
    x: Float[Tensor, "1 channel height width"]
    fill: Float[Tensor, "1 channel height width"]
    labels: Int64[Tensor, "height width"]

    @cached_property
    def count(self) -> int:
        """How many regions there are."""
        return int(self.labels.max()) + 1

    def worth(self, shown: Numbers) -> Numbers:
        """The target for each row of `shown` `(rows, regions)`: 1 shows a region, 0 what fills it, between them a mixture.

        Equal rows are evaluated once.
        """
        rows, back = np.unique(shown, axis=0, return_inverse=True)
        given = torch.as_tensor(rows, device="cpu")
        found = self.scores(len(rows), lambda k: given[k.start : k.stop].to(self.x)[:, self.labels])
        return found[back.reshape(-1)]

    def scores(self, total: int, masks: Callable[[range], Tensor]) -> Numbers:
        """The target under `total` masks; `masks` makes some of them `(n, H, W)`, 1 where the image is shown."""
        parts = [torch.zeros(0, dtype=torch.float64, device="cpu")]
        for block in self.probe.blocks(total):
            weights = masks(block).to(self.x)[:, None]
            pictures = torch.lerp(self.fill, self.x, weights)  # exact at 0 and 1: equal masks, equal pictures
            parts.append(self.probe.repeat(block).score(pictures).cpu().double())
        return torch.cat(parts).numpy()

    def ends(self) -> tuple[float, float]:
        """The target where nothing is shown, and of the image."""
        nothing, everything = self.worth(np.stack([np.zeros(self.count), np.ones(self.count)]))
        return float(nothing), float(everything)

    def draws(self, rows: range, columns: int) -> Numbers:
        """Numbers uniform in 0..1 `(rows, columns)`: row k is the same for every method."""
        like = self.x.new_empty(1, columns, dtype=torch.float32)
        return np.stack([self.probe.uniform(like, draw=k)[0].cpu().double().numpy() for k in rows])

    def painted(self, values: Numbers) -> Maps:
        """A map `(1, 1, H, W)` with each region's value at all its positions."""
        return torch.as_tensor(values, device="cpu").to(self.x)[self.labels][None, None]

    def spread(self, values: Numbers) -> Maps:
        """A map `(1, 1, H, W)` with each region's value divided among its positions."""
        return self.painted(values / np.bincount(self.labels.reshape(-1).cpu().numpy()))


def filled(probe: Probe, x: Images, fill: Any) -> Images:
    """What hides each image."""
    return probe.once(x, ("fill", fill), lambda: probe.baseline(fill, x), target=False)


def games(probe: Probe, x: Images, regions: Division, fill: Any) -> Iterator[Game]:
    """The game of each image."""
    labels, hidden = labels_of(probe, x, regions), filled(probe, x, fill)
    for i in range(len(x)):
        one = replace(probe, rows=probe.rows[i : i + 1], keys=probe.keys[i : i + 1])
        yield Game(one, x[i : i + 1], hidden[i : i + 1], labels[i])
