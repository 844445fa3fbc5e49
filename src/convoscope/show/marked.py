"""A picture with a region of it kept bright and another outlined."""

import numpy as np
from PIL import Image, ImageColor

from convoscope.show.overlay import Bytes, as_bytes

DIM = 0.3  # of the light that is left outside of the region


def marked(picture: object, bright: np.ndarray, outlined: np.ndarray, color: str, side: int = 224) -> Bytes:
    """The picture (H, W, 3) with its longer side enlarged to at least `side`: dimmed outside of `bright` (H, W), bool, and
    with the rim of `outlined` (H, W), bool, in `color`."""
    pixels = as_bytes(picture)
    height, width = pixels.shape[:2]
    factor = max(1, -(-side // max(height, width)))
    size = (width * factor, height * factor)
    large = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(np.float64)
    inside, label = (np.kron(np.asarray(m, bool), np.ones((factor, factor), bool)) for m in (bright, outlined))
    gray = large.mean(2, keepdims=True)
    dimmed = DIM * (0.5 * large + 0.5 * gray)
    made = np.where(inside[..., None], large, dimmed)
    rim = _rim(label, max(1, round(max(size) / 110)))
    made[rim] = ImageColor.getrgb(color)
    return np.rint(made).astype(np.uint8)


def _rim(mask: np.ndarray, wide: int) -> np.ndarray:
    """The pixels of a mask that are at most `wide` from its edge; the edge of the picture is none."""
    inner = mask.copy()
    for _ in range(wide):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inner
