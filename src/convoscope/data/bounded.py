"""What reading one picture may cost: a file of some bytes can ask Pillow for minutes and gigabytes.

The limits are far beyond what cameras and programs write. Measured by `python -m benchmarks.fuzz pictures`.
"""

import io
import os
import struct
from typing import Any

from PIL import Image

from convoscope.core.errors import ImageError

HEADER_READS = 8_000  # Pillow reads each part of a header by itself, some of them byte by byte
READS = 200_000  # and the pixels in parts that programs make of 8 kB or more
WHOLE = 256 * 2**20  # bytes of a file that its format reads at once
SLOW = 1.0  # megapixels where the decoder is written in Python: a second for each
SCANS = 1000  # passes over one megapixel of a JPEG: a second
STRIPS = 100_000  # of a TIFF: each becomes an object
ICON = 1024  # pixels on a side of an icon: the size that counts is that of the picture inside
MPIXELS = 1e6


class Bounded(io.RawIOBase):
    """A file that raises ImageError once more has been asked of it than any picture needs."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self._called, self._left = file, name, HEADER_READS
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """At most `size` bytes; never more than there are."""
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"{self._called} is damaged: it is cut into more parts than a picture has")
        if size is None or size < 0:
            size = self.size
            if size > WHOLE:
                raise ImageError(f"{self._called} has {size / 2**20:.0f} MB, more than a picture needs; convert it to PNG")
        return self.file.read(min(size, self.size))

    def readline(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        """One line."""
        self._left -= 1
        return self.file.readline(size)

    def seek(self, place: int, whence: int = 0) -> int:
        """As files do."""
        return self.file.seek(place, whence)

    def tell(self) -> int:
        """As files do."""
        return self.file.tell()

    def fileno(self) -> int:
        """As files do."""
        return self.file.fileno()

    def allow(self, picture: Image.Image) -> None:
        """The header is read: allow the reads that its pixels take."""
        self._left = READS + (4 * picture.width * picture.height if _in_python(picture) else 0)


def check_before(file: Any, name: str) -> None:
    """Raise ImageError where opening alone would cost too much. `file` is at its start then and afterwards."""
    head = file.read(4)
    if head[:2] in (b"II", b"MM") and (42 in head[2:] or 43 in head[2:]):
        _check_tiff(file, "<" if head[:1] == b"I" else ">", 43 in head[2:], name)
    elif head == b"\0\0\1\0":
        _check_icon(file, name)
    file.seek(0)


def _check_tiff(file: Any, order: str, big: bool, name: str) -> None:
    """The numbers of strips and tiles, and the size of tiles, in a TIFF's first directory."""
    offset, entry = (order + "Q", order + "HHQ8s") if big else (order + "I", order + "HHI4s")
    file.seek(8 if big else 4)
    file.seek(min(_number(file.read(struct.calcsize(offset)), offset), 2**62))
    count = _number(file.read(8 if big else 2), order + ("Q" if big else "H"))
    size, sides, tiles = struct.calcsize(entry), [512], [0]
    for _ in range(min(count, HEADER_READS)):
        data = file.read(size)
        if len(data) < size:
            break
        tag, kind, length, value = struct.unpack(entry, data)
        number = _number(value[:2], order + "H") if kind == 3 else _number(value[:4], order + "I")
        if tag in (273, 279, 324, 325) and length > STRIPS:
            raise ImageError(f"{name} is cut into {length} parts, more than a picture has; convert it to PNG")
        (sides if tag in (256, 257) else tiles if tag in (322, 323) else []).append(number)
    if max(tiles) > 2 * max(sides):
        raise ImageError(f"{name} is damaged: its tiles of {max(tiles)} pixels are larger than the picture")


def _check_icon(file: Any, name: str) -> None:
    """The pictures inside an icon, whose sizes its own header does not tell."""
    count = _number(file.read(2), "<H")
    entries = file.read(16 * count)
    for at in range(0, len(entries) - 15, 16):
        file.seek(_number(entries[at + 12 : at + 16], "<I"))
        inner = file.read(24)
        png = inner[:4] == b"\x89PNG"
        width, height = (abs(_number(inner[a : a + 4], ">i" if png else "<i")) for a in ((16, 20) if png else (4, 8)))
        if width > ICON or height > (1 if png else 2) * ICON:  # bitmaps hold their mask below
            raise ImageError(
                f"{name} is an icon of {width} x {height} pixels, at most {ICON} x {ICON} are read; save it as PNG"
            )


def _number(data: bytes, form: str) -> int:
    return struct.unpack(form, data)[0] if len(data) == struct.calcsize(form) else 0


def check_after(picture: Image.Image, file: Any, name: str) -> None:
    """Raise ImageError where the pixels of an opened picture would take too long for their number."""
    megapixels = picture.width * picture.height / MPIXELS
    if megapixels > SLOW and _in_python(picture):
        raise ImageError(
            f"{name} has {megapixels:.1f} megapixels; of this kind of {picture.format} at most {SLOW:g} are read, "
            "since they are read slowly; convert it to PNG"
        )
    if picture.format in ("JPEG", "MPO"):
        scans = _count(file, b"\xff\xda")
        if scans * megapixels > SCANS:
            raise ImageError(f"{name} is drawn in {scans} passes, more than a picture needs; save it again as JPEG or PNG")


def _in_python(picture: Image.Image) -> bool:
    return any(tile[0] in Image.DECODERS for tile in getattr(picture, "tile", ()))


def _count(file: Any, word: bytes) -> int:
    """How often a word is in a file, which is left where it was."""
    here, found, last = file.tell(), 0, b""
    file.seek(0)
    while block := file.read(2**20):
        found += (last + block).count(word)
        last = block[-(len(word) - 1) :]
    file.seek(here)
    return found
