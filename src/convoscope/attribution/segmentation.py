"""The object behind a saliency map: GrabCut, seeded where the map is strong and where it is weak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced
from convoscope.results import Attribution
from convoscope.show import overlay as ov
from convoscope.show.figure import Panel, Scale, figure

Strength = Literal["max-abs", "l2", "positive"]


@dataclass(frozen=True)
class Segmentation:
    """Masks `(B, H, W)` of the objects, the strengths `(B, H, W)` of the maps, and why a mask is empty (else "")."""

    attribution: Attribution
    mask: Bool[Tensor, "batch height width"]
    saliency: Float[Tensor, "batch height width"]
    empty: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mask)

    def cutout(self, index: int = 0) -> Image.Image:
        """The object of one image, transparent around it, at input size."""
        opaque = 255 * self.mask[index].cpu().numpy().astype(np.uint8)
        return Image.fromarray(np.dstack([self._photograph(index), opaque]))

    def image(self, index: int | None = None, title: str = "") -> Image.Image:
        """Image, saliency, mask and cut-out side by side, for one image or, in rows, for all."""
        rows = range(len(self)) if index is None else [index]
        return figure([panel for i in rows for panel in self._panels(i)], 4, title=title)

    def save(self, path: str | Path, index: int | None = None, title: str = "") -> Path:
        """Writes the picture of `image` as PNG; the file is whole or absent."""
        path = Path(path)
        if path.suffix != ".png":
            raise UsageError(f"cannot tell from {path.name!r} what to write; name it .png")
        check_writable(path)
        with replaced(path) as partial:
            self.image(index, title).save(partial, format="PNG")
        return path

    def _repr_png_(self) -> bytes:
        return self.image()._repr_png_()

    def _photograph(self, index: int) -> np.ndarray:
        return _photograph(self.attribution, index)

    def _panels(self, index: int) -> list[Panel]:
        method: Any = self.attribution.method
        photograph, mask = self._photograph(index), self.mask[index].cpu().numpy()
        strength = self.saliency[index].double().cpu().numpy()
        top = ov.limit(strength)
        scale = Scale.of(top, False, method.unit.format(target=getattr(self.attribution.target, "unit", "target")))
        faded = 255 - (255 - photograph.astype(int)) // 8
        return [
            Panel("Image", photograph),
            Panel(f"Saliency: {method.title}", ov.colorize(strength, limit=top, signed=False), "", scale),
            Panel("Mask", mask.astype(float), self.empty[index] or f"{mask.mean():.0%} of the picture"),
            Panel("Cut-out", np.where(mask[..., None], photograph, faded).astype(np.uint8)),
        ]


def segment(
    attribution: Attribution, *, by: Strength | None = None, foreground: float = 0.95, background: float = 0.30,
    smooth: float = 0.013, iterations: int = 5, largest: bool = True,
) -> Segmentation:  # fmt: skip
    """The object that a map points at, cut out of each image (Simonyan et al. 2014, section 3.2).

    Pixels above the quantile `foreground` of the map's strength are taken as object, those below the quantile `background`
    as background; GrabCut (Rother et al. 2004) learns the colors of both, decides about the rest in `iterations` rounds, and
    the largest connected piece is the mask (`largest=False`: all of them).

    `by` is the strength: the largest magnitude over channels (as in the paper), the norm, or the positive part of the sum
    (the default for maps that say how much of the target a pixel brings: what speaks against it is no object). `smooth` is
    the deviation of a Gaussian over it, as a fraction of the shorter side; the paper averages over ten crops instead.

    A constant map has no quantiles to start from: its mask is empty and says so in `empty`, as one on which GrabCut fails.
    Raises UsageError where OpenCV is not installed: `pip install 'convoscope[segmentation]'`.
    """
    cv2 = _opencv()
    if not 0 <= background < foreground <= 1:
        raise UsageError(f"background {background} and foreground {foreground}; expected 0 <= background < foreground <= 1")
    if iterations < 1 or smooth < 0:
        raise UsageError(f"iterations {iterations} and smooth {smooth}; expected at least 1 and 0")
    saliency = _strength(attribution, by)
    masks, empty = [], []
    for i, strength in enumerate(saliency.double().cpu().numpy()):
        if smooth:
            strength = cv2.GaussianBlur(strength, (0, 0), smooth * min(strength.shape))
        mask, why = _cut(cv2, _photograph(attribution, i), strength, (background, foreground), iterations, attribution.seed)
        masks.append(_largest(cv2, mask) if largest else mask)
        empty.append(why)
    return Segmentation(attribution, torch.from_numpy(np.stack(masks)).to(saliency.device), saliency, tuple(empty))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UsageError("segmentation needs OpenCV; pip install 'convoscope[segmentation]'") from error
    return cv2


def _strength(attribution: Attribution, by: Strength | None) -> Tensor:
    unit = getattr(attribution.method, "unit", "")
    evidence = unit.startswith("{target}") and "unit of input" not in unit
    by = by or ("positive" if evidence else "max-abs")
    return attribution.heatmap("sum").clamp(min=0) if by == "positive" else attribution.heatmap(by)


def _photograph(attribution: Attribution, index: int) -> np.ndarray:
    picture = attribution.network.picture(attribution.inputs[index : index + 1])[0]
    return ov.as_bytes(picture.permute(1, 2, 0).cpu().numpy())


def _cut(
    cv2: Any, photograph: np.ndarray, strength: np.ndarray, quantiles: tuple[float, float], iterations: int, seed: int
) -> tuple[np.ndarray, str]:
    low, high = np.quantile(strength, quantiles)
    nothing = np.zeros(strength.shape, bool)
    if strength.max() - strength.min() <= 1e-9 * np.abs(strength).max():
        return nothing, "the map is constant: nothing tells object from background"
    labels = np.full(strength.shape, cv2.GC_PR_BGD, np.uint8)
    labels[strength <= low] = cv2.GC_BGD  # of a sparse map, all zeros
    labels[strength > high if (strength > high).any() else strength == high] = cv2.GC_FGD
    cv2.setRNGSeed(seed % 2**31)
    try:
        pixels, models = np.ascontiguousarray(photograph[..., ::-1]), (np.zeros((1, 65)), np.zeros((1, 65)))
        cv2.grabCut(pixels, labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error as error:
        return nothing, f"GrabCut failed: {' '.join(str(error).split())}"
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)), ""


def _largest(cv2: Any, mask: np.ndarray) -> np.ndarray:
    count, pieces, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return pieces == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax() if count > 1 else mask
