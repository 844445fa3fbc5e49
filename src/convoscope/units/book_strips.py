"""The pictures of a book: receptive fields cut out of what the network sees, one strip for each unit."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from convoscope.files import make_folder, replaced, writing
from convoscope.units.book_files import LayerEntry, strip_path

SCRATCH_BYTES = 4 << 30  # of disk; units whose pictures take more are drawn in several rounds
PIXELATED = 12  # a field of fewer pixels is shown pixel by pixel, a larger one smoothly
QUALITY = 80
FAINT = 0.45  # how much of its contrast a picture keeps outside of the field


@dataclass(frozen=True)
class Cut:
    """What to cut out for the units of one layer: images (-1: none) and boxes (top, left, bottom, right) in input pixels."""

    entry: LayerEntry
    images: Int[np.ndarray, "units sorts ranks"]
    boxes: Int[np.ndarray, "units sorts ranks 4"]


@dataclass
class _Round:
    """The units of one round: scratch holds their crops one after the other."""

    cuts: Sequence[Cut]
    units: list[tuple[int, int]]  # cut, unit
    size: int

    @property
    def per_unit(self) -> int:
        return int(np.prod(self.cuts[0].images.shape[1:])) if self.cuts else 0

    def by_image(self) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """For each image that is needed, in order: places in scratch, and boxes."""
        images = np.concatenate([self.cuts[c].images[u].reshape(-1) for c, u in self.units])
        boxes = np.concatenate([self.cuts[c].boxes[u].reshape(-1, 4) for c, u in self.units])
        order = np.argsort(images, kind="stable")
        order = order[images[order] >= 0]
        for place in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
            if len(place):
                yield int(images[place[0]]), [(int(p), boxes[p]) for p in place]


def write_strips(
    folder: Path, cuts: Sequence[Cut], pixels: Callable[[int], NDArray[np.uint8]], size: int, scratch: Path,
    progress: Callable[[int, int], None] | None = None, scratch_bytes: int = SCRATCH_BYTES,
) -> None:  # fmt: skip
    """Write the strips that are not there yet; `pixels(i)` is image i (H, W, 3) as the network sees it.

    Each image is read once for every `scratch_bytes` of crops: they wait on the disk, so that memory stays flat.
    """
    missing = [(c, u) for c, cut in enumerate(cuts) for u in range(cut.entry.units)]
    missing = [(c, u) for c, u in missing if not strip_path(folder, cuts[c].entry.stem, u).exists()]
    for cut in cuts:
        make_folder(strip_path(folder, cut.entry.stem, 0).parent)
    if not missing:
        return
    each = int(np.prod(cuts[0].images.shape[1:])) * size * size * 4
    at_once = max(1, scratch_bytes // max(each, 1))
    for start in range(0, len(missing), at_once):
        units = missing[start : start + at_once]
        tell = None if progress is None else lambda done, before=start: progress(before + done, len(missing))
        _write_round(folder, _Round(cuts, units, size), pixels, scratch, tell)


def _write_round(
    folder: Path, job: _Round, pixels: Callable[[int], NDArray[np.uint8]], scratch: Path, tell: Callable[[int], None] | None
) -> None:
    from PIL import Image

    crop_bytes = job.size * job.size * 4
    try:
        with writing(scratch), open(scratch, "wb+") as file:
            file.truncate(len(job.units) * job.per_unit * crop_bytes)
            for image, places in job.by_image():
                picture = Image.fromarray(pixels(image))
                for place, box in places:
                    crop, at = cut_out(picture, box, job.size), place * crop_bytes
                    written = os.pwrite(file.fileno(), crop, at)
                    if written < crop_bytes:  # the disk is full, which the rest is told
                        os.pwrite(file.fileno(), crop[written:], at + written)
            for k, (c, u) in enumerate(job.units):
                raw = os.pread(file.fileno(), job.per_unit * crop_bytes, k * job.per_unit * crop_bytes)
                sorts, ranks = job.cuts[c].images.shape[1:]
                sheet = np.frombuffer(raw, np.uint8).reshape(sorts, ranks, job.size, job.size, 4).transpose(0, 2, 1, 3, 4)
                _save(sheet.reshape(sorts * job.size, ranks * job.size, 4), strip_path(folder, job.cuts[c].entry.stem, u))
                if tell is not None:
                    tell(k + 1)
    finally:
        scratch.unlink(missing_ok=True)


def window(box: Any, height: int, width: int) -> tuple[float, float, float]:
    """The square that shows a box: top, left and side. It lies within the image wherever it can."""
    top, left, bottom, right = (float(n) for n in box)
    side = max(bottom - top, right - left)
    found = []
    for low, high, extent in ((top, bottom, height), (left, right, width)):
        start = (low + high - side) / 2
        found.append((extent - side) / 2 if side > extent else min(max(start, 0.0), extent - side))
    return found[0], found[1], side


def cut_out(picture: Any, box: Any, size: int) -> bytes:
    """The square around a box of a PIL picture as `size` x `size` RGBA: faint outside of the box, transparent beyond the
    picture."""
    from PIL import Image

    height, width = picture.height, picture.width
    top, left, side = window(box, height, width)
    if side <= 0:
        return bytes(size * size * 4)
    coarse = side < PIXELATED
    how = Image.Resampling.NEAREST if coarse else Image.Resampling.BICUBIC
    part = [max(top, 0.0), max(left, 0.0), min(top + side, height), min(left + side, width)]
    at = [round((v - start) * size / side) for v, start in zip(part, (top, left, top, left), strict=True)]
    shape = max(1, at[3] - at[1]), max(1, at[2] - at[0])
    canvas = np.zeros((size, size, 4), np.uint8)
    pixels = picture.resize(shape, how, box=(part[1], part[0], part[3], part[2]))
    canvas[at[0] : at[2], at[1] : at[3], :3] = np.asarray(pixels)[: at[2] - at[0], : at[3] - at[1]]
    canvas[at[0] : at[2], at[1] : at[3], 3] = 255
    inside = [round((v - start) * size / side) for v, start in zip(box, (top, left, top, left), strict=True)]
    outside = np.ones((size, size), bool)
    outside[inside[0] : inside[2], inside[1] : inside[3]] = False
    canvas[outside, :3] = FAINT * canvas[outside, :3] + (1 - FAINT) * 128
    return canvas.tobytes()


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    found = Image.fromarray(pixels if (pixels[..., 3] < 255).any() else np.ascontiguousarray(pixels[..., :3]))
    with replaced(path) as partial:
        found.save(partial, format="WEBP", quality=QUALITY, method=2)
