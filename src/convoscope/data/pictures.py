"""Read one picture from anywhere: right pixels, or one clear line that says why not."""

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops

from convoscope.core.errors import ConvoscopeError, ImageError, UsageError, did_you_mean
from convoscope.data.bounded import Bounded, check_after, check_before

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
SMALLEST = 2  # pixels on the shorter side

# Not EPS and WMF, which start other programs to be drawn, nor FITS and HDF5, which state no range to show, nor JPEG 2000
# (and ICNS, which holds it), where 177 bytes can ask for half a minute and 6 GB. Who trusts such a file opens it with Pillow
# and passes the picture.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF")
FORMATS += ("TGA", "ICO", "PCX", "SGI", "QOI", "DDS", "PSD", "MSP", "XBM")
BLOCK = 2**18  # pixels that are converted at a time where that needs wide numbers

_quiet = threading.Lock()


def read_picture(
    source: Any,
    *,
    max_megapixels: float = 25.0,
    mode: Literal["RGB", "L"] = "RGB",
    background: Color = WHITE,
) -> Image.Image:
    """Read `source` as an 8-bit picture, upright, without transparency.

    `source` is a path, bytes, an open binary file, a PIL picture, or an array: HW or HWC with 1, 3 or 4
    channels, of uint8, uint16 (white is 65535), bool, or float in 0..1. Of an animation, the first frame
    is read.

    - EXIF rotation is applied; transparency is laid over `background`.
    - 16-bit gray is scaled by 65535 (or by the bit depth a TIFF states), float files in 0..1 by 1 and in
      0..255 by 255. A file whose range is unclear raises.
    - Color profiles are ignored, as the training pipelines of the common networks do.

    The size is checked before anything is decoded. Raises `UsageError` where there is no such file and
    `ImageError` for everything that is not a usable picture.
    """
    if mode not in ("RGB", "L"):
        raise UsageError(f"mode {mode!r}; expected 'RGB' or 'L'")
    if isinstance(source, np.ndarray):
        picture = _from_array(source, max_megapixels)
    else:
        with _silence(), _opened(source) as (picture, name):
            _check_size(picture.size, name, max_megapixels)
            _load(picture, name)
            turn = _turn(picture)
            picture = _plain(picture, name)  # from here on a picture goes when the next one is there: two at a time, not four
            picture = picture if turn is None else picture.transpose(turn)
    if "A" in picture.getbands():
        picture = _flattened(picture, background)
    picture = picture if picture.mode == mode else picture.convert(mode)
    pixels = picture.im.copy() if picture is source else picture.im
    return Image.Image()._new(pixels)  # without what its file says of rotation and transparency: that is done


# sources


class _Silence:
    """Warnings are one setting for the process: the first reader turns them off, the last one restores them."""

    holders = 0
    before: Any = None


@contextmanager
def _silence() -> Iterator[None]:
    with _quiet:
        if _Silence.holders == 0:
            _Silence.before = warnings.catch_warnings()
            _Silence.before.__enter__()
            warnings.simplefilter("ignore")
        _Silence.holders += 1
    try:
        yield
    finally:
        with _quiet:
            _Silence.holders -= 1
            if _Silence.holders == 0:
                _Silence.before.__exit__(None, None, None)


@contextmanager
def _opened(source: Any) -> Iterator[tuple[Image.Image, str]]:
    """The picture with its header read and its pixels not, and how to call it in messages."""
    if isinstance(source, Image.Image):
        yield source, "the picture"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = repr(str(path))
        with _open_path(path, name) as file:
            yield _open_header(file, name), name
    elif isinstance(source, bytes | bytearray | memoryview):
        yield _open_header(io.BytesIO(source), "the bytes given"), "the bytes given"
    elif hasattr(source, "read"):
        name = repr(str(getattr(source, "name", "the file given")))
        content = source.read()
        if not isinstance(content, bytes):
            raise ImageError(f"{name} is open as text; open it with mode 'rb'")
        yield _open_header(io.BytesIO(content), name), name
    else:
        kind = type(source).__name__
        expected = "a path, bytes, an open file, a PIL picture or an array"
        raise ImageError(f"cannot read a picture from {kind}; expected {expected}")


def _open_path(path: Path, name: str) -> io.BufferedReader:
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        why = f": the link leads to {os.readlink(path)!r}, which is not there" if path.is_symlink() else _similar(path)
        raise UsageError(f"no file {name}{why}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"no file {name}: {_reason(error)}") from None
    if stat.S_ISDIR(kind):
        raise ImageError(f"{name} is a directory; name the pictures in it")
    if not stat.S_ISREG(kind):
        raise ImageError(f"{name} is not a regular file")
    try:
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"cannot open {name}: {_reason(error)}") from None


def _similar(path: Path) -> str:
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        return "; addresses are not downloaded, save the picture first"
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(1000), strict=False)]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _open_header(file: Any, name: str) -> Image.Image:
    Image.init()
    try:
        check_before(file, name)
        return Image.open(Bounded(file, name), formats=[f for f in FORMATS if f in Image.OPEN])
    except ConvoscopeError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(f"{name} has more than {most:.0f} megapixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} {_what_it_is(file)}") from None
    except Exception as error:  # Pillow's readers raise anything on damaged headers
        raise ImageError(f"{name} is damaged or cut off: {_reason(error)}") from None


def _what_it_is(file: Any) -> str:
    file.seek(0)
    head = file.read(64)
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the picture itself; run `git lfs pull`"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "is a HEIC picture; convert it to JPEG or PNG"
    if head[4:8] == b"jP  " or head.startswith(b"\xff\x4f\xff\x51"):
        return "is a JPEG 2000 picture, which is not read; convert it to PNG, or open it with Pillow and pass the picture"
    if head.startswith((b"\xff\xd8", b"\x89PNG")):
        return "is damaged or cut off: nothing after its first bytes can be read"
    if head.startswith((b"%!PS", b"%PDF")):
        return "is a PostScript or PDF document; convert it to PNG"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "is a text file, not a picture"
    return "is not a picture in a known format; convert it to PNG or JPEG"


# pixels


def _check_size(size: tuple[int, int], name: str, max_megapixels: float) -> None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"at most {max_megapixels:g} are read; make it smaller or raise max_megapixels"
        )
    if min(width, height) < SMALLEST:
        raise ImageError(
            f"{name}: a picture of {width} x {height} pixels has nothing to explain; "
            f"at least {SMALLEST} x {SMALLEST} are needed"
        )


class _Once:
    """A decoder that is used once and gone then: those of WebP and AVIF hold two more pictures beside the one they give."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = [decoder]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder.pop(), name)

    def reset(self) -> None:
        """There is nothing to go back to."""


def _load(picture: Image.Image, name: str) -> None:
    bounded = getattr(picture, "fp", None)
    try:
        if isinstance(bounded, Bounded):
            check_after(picture, bounded.file, name)
            bounded.allow(picture)
            if hasattr(picture, "_decoder"):
                picture._decoder = _Once(picture._decoder)
        picture.load()
    except ConvoscopeError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged data
        raise ImageError(f"{name} is damaged or cut off: {_reason(error)}") from None


def _turn(picture: Image.Image) -> Image.Transpose | None:
    turn = Image.Transpose
    turns = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM)
    turns += (turn.TRANSPOSE, turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90)
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None
    return turns[orientation - 2] if isinstance(orientation, int) and 2 <= orientation <= 8 else None


def _plain(picture: Image.Image, name: str) -> Image.Image:
    """The same pixels in one of the modes L, LA, RGB, RGBA."""
    mode = picture.mode
    if mode == "I" or mode.startswith("I;"):
        return _from_integers(picture, name)
    if mode == "F":
        values = _bytes_from_floats(_Rows(picture), name, file=True)
        return Image.fromarray(255 - values if _counts_from_white(picture) else values)
    if mode == "La":
        return picture.convert("LA")
    if "transparency" in picture.info or mode in ("PA", "RGBa"):
        return picture.convert("RGBA").convert("LA") if mode in ("L", "1") else picture.convert("RGBA")
    if mode in ("L", "LA", "RGB", "RGBA"):
        return picture
    if mode == "1":
        return picture.convert("L")
    if mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX"):
        return picture.convert("RGB")
    raise ImageError(f"{name} has pixels of mode {mode!r}, which cannot be shown; convert it to RGB")


class _Rows:
    """The values of a picture, some rows at a time: NumPy's array of a whole picture takes three times its room."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture, self.shape = picture, (picture.height, picture.width)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return np.asarray(self.picture.crop((0, start, self.shape[1], stop)))


def _from_integers(picture: Image.Image, name: str) -> Image.Image:
    """16-bit gray. Pillow's own conversion to 8 bit clips at 255: it makes nearly all of it white."""
    values = _Rows(picture)
    white = 65535
    bits = _tiff_tag(picture, 258)
    if bits is not None and bits < 16:
        white = 2**bits - 1
    # Pillow reads 16-bit PPM (and PNG, in some versions) as mode I; elsewhere I is 32 bits without a white.
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        low, high = picture.getextrema()
        raise ImageError(
            f"{name} has 32-bit integer pixels from {low} to {high}, "
            "and nothing says which value is white; convert it to 8 or 16 bits"
        )
    gray = Image.fromarray(_by_blocks(values, lambda v: (v.astype(np.int64).clip(0, white) * 510 + white) // (2 * white)))
    if _counts_from_white(picture):
        gray = ImageChops.invert(gray)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        gray.putalpha(Image.fromarray(_by_blocks(values, lambda v: np.where(v == key, 0, 255))))
    return gray


def _counts_from_white(picture: Image.Image) -> bool:
    """TIFFs may say that zero is white; Pillow undoes that for 8 bits only."""
    return _tiff_tag(picture, 262) == 0


def _tiff_tag(picture: Image.Image, tag: int) -> Any:
    value = getattr(picture, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def _bytes_from_floats(values: Any, name: str, file: bool) -> np.ndarray:
    low, high = np.inf, -np.inf
    for block in _blocks(values):
        part = values[block]
        if not np.isfinite(part).all():
            raise ImageError(f"{name} contains NaN or infinite pixels")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low < 0 or high > (255 if file else 1):
        tensor = "0..1; a tensor that is already in the network's input space needs no reading"
        expected = "0..1 or 0..255" if file else tensor
        raise ImageError(f"{name} has float pixels from {low:.4g} to {high:.4g}; expected {expected}")
    return _by_blocks(values, lambda v: np.rint(v.astype(np.float64) * (255 if high <= 1 else 1)))


def _blocks(values: Any) -> Iterator[slice]:
    """A few rows at a time: wide numbers of a whole picture would take eight times its room."""
    rows = max(1, BLOCK // max(1, math.prod(values.shape[1:])))
    return (slice(start, start + rows) for start in range(0, values.shape[0], rows))


def _by_blocks(values: Any, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Bytes of values."""
    out = np.empty(values.shape, np.uint8)
    for block in _blocks(values):
        out[block] = convert(values[block])
    return out


def _from_array(array: np.ndarray, max_megapixels: float) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last, so array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; pass the pictures one by one, as a list"
        raise ImageError(f"an array of shape {array.shape}; expected (H, W) or (H, W, 1 or 3 or 4){hint}")
    _check_size((array.shape[1], array.shape[0]), "the array", max_megapixels)
    if channels == 1:
        array = array.reshape(array.shape[:2])
    if array.dtype == np.uint8:
        pixels = array
    elif array.dtype == np.bool_:
        pixels = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        pixels = _by_blocks(array, lambda v: (v.astype(np.uint32) * 510 + 65535) // 131070)
    elif array.dtype.kind == "f":
        pixels = _bytes_from_floats(array, "the array", file=False)
    else:
        raise ImageError(f"an array of {array.dtype}; expected uint8, uint16, bool, or float in 0..1")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _flattened(picture: Image.Image, background: Color) -> Image.Image:
    gray = picture.mode == "LA" and background[0] == background[1] == background[2]
    ground = Image.new("L" if gray else "RGB", picture.size, background[0] if gray else background)
    ground.paste(picture.convert("L") if gray else picture, mask=picture.getchannel("A"))
    return ground


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_size(source: Any) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Width and height of a picture as `read_picture` gives it, and how the stored pixels are turned for that.

    Only the header is read. Raises as `read_picture` does.
    """
    with _silence(), _opened(source) as (picture, _):
        turn = _turn(picture)
        width, height = picture.size
    across = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
    return ((height, width) if turn in across else (width, height)), turn
