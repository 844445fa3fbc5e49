"""Pictures with masks beside them: pictures of numbers that say what each pixel is."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from convoscope.core.errors import ImageError, UsageError
from convoscope.data.dataset import Concept
from convoscope.data.folders import Files, stamp

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "PPM", "TGA", "WEBP")  # that keep numbers as they are


class Masked(Files):
    """Files with one mask each ("" for none); subclasses say what the numbers in a mask mean.

    `meanings[layer, n]` is the concept's number for value n of what `values` gives.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        places: Sequence[str],
        masks: Sequence[str],
        concepts: Sequence[Concept],
        meanings: Int[np.ndarray, "layers values"],
        name: str = "",
    ) -> None:
        Files.__init__(self, root, places, name=name)
        self.masks, self.concepts, self.meanings = list(masks), tuple(concepts), meanings

    def key(self, i: int) -> str:
        """The stamps of the picture and of its mask."""
        mask = self.masks[self.row(i)]
        return f"{stamp(self.root, self.places[self.row(i)])}|{stamp(self.root, mask) if mask else ''}"

    def values(self, i: int, mask: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
        """The columns of `meanings` for the numbers in a mask."""
        return mask

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        from convoscope.data.pictures import read_size

        i = self.row(i)
        (width, height), turn = read_size(self.picture(i))
        if not self.masks[i]:
            return torch.zeros(0, height, width, dtype=torch.int32)
        mask = read_numbers(os.path.join(self.root, self.masks[i]), turn)
        if mask.shape != (height, width):
            raise ImageError(
                f"the mask {self.masks[i]!r} has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {self.places[i]!r} "
                f"{width} x {height}; they have to be of one size"
            )
        columns = self.values(i, mask)
        return torch.from_numpy(np.stack([row.take(columns, mode="clip") for row in self.meanings]))


def read_numbers(path: str, turn: Image.Transpose | None = None) -> Int[np.ndarray, "height width"]:
    """The numbers in a mask, int32: of gray and palette pictures their value, of color red + 256 green + 65536 blue.

    `turn` is how the stored pixels of its picture are turned upright: masks are drawn over those. Raises UsageError for a
    missing file, ImageError for one that is no mask.
    """
    try:
        with Image.open(path, formats=FORMATS) as mask:
            if mask.mode in ("RGBA", "LA", "F", "CMYK", "YCbCr"):
                raise ImageError(f"the mask {path!r} has pixels of mode {mask.mode}; expected gray, palette or RGB")
            found = np.asarray(mask)
    except FileNotFoundError:
        raise UsageError(f"no mask {path!r}; the list of labels names it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"the mask {path!r} is damaged or no picture: {str(error).splitlines()[0]}") from None
    if found.ndim == 3:
        found = found.astype(np.int32)
        found = found[..., 0] + (found[..., 1] << 8) + (found[..., 2] << 16)
    if turn is not None:
        found = np.asarray(Image.fromarray(np.ascontiguousarray(found, np.int32)).transpose(turn))
    return found.astype(np.int32, copy=False)


def table(numbers: Iterable[Sequence[int]]) -> Int[np.ndarray, "layers values"]:
    """Rows of concept numbers as one array, int32."""
    return np.array([list(row) for row in numbers], np.int32)


def check_there(root: str, places: Iterable[str], by: str, hint: str = "") -> None:
    """Raises UsageError naming the first file that is not there; each folder is listed once."""
    for place in absent(root, places):
        raise UsageError(f"{by} names {place!r}, which is not in {root!r}{hint}")


def absent(root: str, places: Iterable[str]) -> Iterable[str]:
    """Those of the places below `root` that are not there."""
    listed: dict[str, set[str]] = {}
    for place in places:
        folder, _, file = place.rpartition("/")
        if folder not in listed:
            where = Path(root, folder)
            listed[folder] = set(os.listdir(where)) if where.is_dir() else set()
        if file not in listed[folder]:
            yield place


def entries(found: Any, path: Path, *names: str) -> list[Any]:
    """Entries of a mapping read from JSON. Raises UsageError where one is not there."""
    missing = [n for n in names if not isinstance(found, dict) or n not in found]
    if missing:
        raise UsageError(f"{str(path)!r} has no {' and no '.join(repr(n) for n in missing)}")
    return [found[n] for n in names]
