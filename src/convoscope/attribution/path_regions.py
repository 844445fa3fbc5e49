"""Integrated gradients gathered in regions of the image."""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convoscope.attribution.path import IntegratedGradients
from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

SIDE, SMALLEST, WIDENED, LEAST_NEW = 224, 150, 5, 50  # pixels of the authors' pictures: others are measured by theirs
SCALES = (50.0, 100.0, 150.0, 250.0, 500.0, 1200.0)


class XRAI(Method):
    """Regions of the image in the order of how densely they hold attribution.

    Kapishnikov et al. 2019: regions of six segmentations of different coarseness (Felzenszwalb and Huttenlocher 2004), a
    little widened, are added one by one, the next always that whose pixels that are not yet in have the highest mean
    integrated gradient (mean over a black and a white baseline, largest over channels). A pixel's value is the mean of the
    region that brought it in. Values `(B, 1, H, W)` in units of the target per pixel. Segments are found once for all targets.
    """

    steps: Annotated[int, "points on each of the two lines", AtLeast(1)] = 32

    title = "XRAI"
    paper = Paper(
        "kapishnikov2019xrai", "Kapishnikov, Andrei and Bolukbasi, Tolga and Viegas, Fernanda and Terry, Michael",
        "XRAI: Better Attributions Through Regions", "ICCV", 2019, "1906.02825",
    )  # fmt: skip
    about = About(
        "decision", "which regions matter, with their outlines", "2 x steps x (1 forward + 1 backward) + segmentation",
        "any differentiable network", "regions come from color, whatever the network sees",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        if x.dim() != 4:
            raise UsageError(f"regions are of (images, channels, rows, columns); got shape {tuple(x.shape)}")
        regions = probe.once(x, "regions of xrai", lambda: _regions(probe, x), target=False)
        density = torch.zeros_like(x, dtype=torch.float64)
        for color in ("black", "white"):
            start = probe.baseline(color, x)
            line = IntegratedGradients(steps=self.steps, baseline=color)
            density += (x - start).double() * line.mean_gradient(probe, x, start) / 2
        return torch.stack([gathered(d, r) for d, r in zip(density.amax(1), regions, strict=True)])[:, None].to(x)

    def evaluations(self, x: Images) -> int:
        return 2 * self.steps


def gathered(density: Tensor, regions: Tensor) -> Tensor:
    """Of each pixel of `density` `(H, W)`, the mean over the new pixels of the region that brings it in.

    `regions` `(N, H, W)` are boolean. The next is always the one with the highest mean over pixels that are not yet in; those
    that bring too few of them are passed over, and what is in no region counts as one.
    """
    values, masks = density.flatten(), regions.flatten(1).to(density)
    least = max(1, round(LEAST_NEW * values.numel() / SIDE**2))
    left, out = torch.ones_like(values), torch.zeros_like(values)
    gain, count = masks @ values, masks.sum(1)
    while True:
        mean = torch.where(count >= least, gain / count.clamp(min=1), -torch.inf)
        best = int(mean.argmax())
        if mean[best] == -torch.inf:
            break
        new = ((masks[best] * left) > 0).nonzero()[:, 0]
        out[new] = mean[best]
        left[new] = 0
        gain, count = gain - masks[:, new] @ values[new], count - masks[:, new].sum(1)
    rest = left > 0
    if rest.any():
        out[rest] = values[rest].mean()
    return out.view_as(density)


def _regions(probe: Probe, x: Images) -> list[Tensor]:
    """The regions of each image `(N, H, W)`, at the size of `x`."""
    found = []
    for picture in probe.picture(x).permute(0, 2, 3, 1).double().cpu().numpy():
        masks = torch.from_numpy(_masks(picture))
        if masks.shape[1:] != x.shape[2:]:
            masks = F.interpolate(masks[None].float(), tuple(x.shape[2:]), mode="nearest-exact")[0] > 0
        found.append(masks.to(x.device))
    return found


def _masks(picture: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The regions of a picture `(H, W, 3)`; sizes follow its side, and so does the threshold, like contrast between pixels."""
    from skimage.segmentation import felzenszwalb

    span, side = picture.max() - picture.min(), (picture.shape[0] * picture.shape[1]) ** 0.5 / SIDE
    scaled = 2 * (picture - picture.min()) / (span if span > 0 else 1.0) - 1
    masks: list[NDArray[np.bool_]] = []
    seen: list[NDArray[np.int64]] = []
    for scale in SCALES:
        labels = felzenszwalb(scaled, scale=scale * side, sigma=0.8, min_size=max(6, round(SMALLEST * side**2)))
        if not any(np.array_equal(labels, known) for known in seen):
            masks += _widened(labels, round(WIDENED * side))
        seen.append(labels)
    return np.stack(masks)


def _widened(labels: NDArray[np.int64], radius: int) -> list[NDArray[np.bool_]]:
    """The mask of each label and all within `radius` pixels of it."""
    from scipy.ndimage import binary_dilation, find_objects

    reach, out = np.arange(-radius, radius + 1), []
    disk = reach[:, None] ** 2 + reach**2 <= radius**2
    for k, box in enumerate(find_objects(labels + 1)):
        mask = np.zeros(labels.shape, dtype=bool)
        near = tuple(slice(max(0, s.start - radius), s.stop + radius) for s in box)
        mask[near] = binary_dilation(labels[near] == k, disk) if radius else labels[near] == k
        out.append(mask)
    return out
