"""Pictures of every format and pixel layout, each with the pixels that are right for it.

The right pixels come from the array a file was made of and the rules of its format, never from the file read back.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from PIL import Image

HEIGHT, WIDTH = 22, 17


@dataclass(frozen=True)
class Sample:
    """One file: its bytes, and its right pixels (H, W, 3) in 0..255 up to `tolerance`, or None where only an error is right."""

    name: str
    data: bytes
    right: np.ndarray | None
    tolerance: float = 0.0
    mean_only: bool = False  # formats that keep a few colors for each block: the tolerance is that of the mean


def _color() -> np.ndarray:
    """Smooth, of many hues, and unlike any of its rotations and reflections."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([10 * y + 5, 14 * x + 3, 230 - 5 * y - 6 * x], axis=2).clip(0, 255).astype(np.uint8)


COLOR = _color()
GRAY = COLOR[..., 1] // 2 + COLOR[..., 0] // 2
ALPHA = (COLOR[..., 0].astype(int) * 2 % 256).astype(np.uint8)
DEEP = (GRAY.astype(np.uint16) << 8) + COLOR[..., 2]
BITS = (COLOR[..., 0] > 100) ^ (COLOR[..., 1] > 120)
INDEX = (np.arange(HEIGHT)[:, None] // 5 + np.arange(WIDTH)[None] // 6).astype(np.uint8)
PALETTE = np.array(
    [[250, 0, 0], [0, 250, 10], [10, 20, 240], [90, 90, 90], [255, 255, 0], [0, 255, 255], [7, 7, 7], [200, 1, 99]]
)


def three(gray: np.ndarray) -> np.ndarray:
    """A gray picture in three channels."""
    return np.repeat(np.asarray(gray, float)[..., None], 3, axis=2)


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A transparent picture on white paper."""
    a = alpha[..., None] / 255.0
    return color * a + 255 * (1 - a)


def saved(picture: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file; nothing where this Pillow does not write the format."""
    Image.init()
    out = io.BytesIO()
    if kind not in Image.SAVE:
        return b""
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, bits: int, color_type: int, extra: bytes = b"") -> bytes:
    """A PNG by hand: rows of `values` (H, W, samples) with 16 bits, or of packed bytes."""
    height, width = values.shape[:2]
    rows = [row.astype(">u2").tobytes() if bits == 16 else row.astype(np.uint8).tobytes() for row in values]
    header = struct.pack(">IIBBBBB", width if bits >= 8 else WIDTH, height, bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows for each EXIF value, by the standard's table of "row 0 is" and "column 0 is"."""
    return {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation](stored)  # fmt: skip


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _rgb() -> Iterator[Sample]:
    picture = Image.fromarray(COLOR)
    plain: dict[str, tuple[str, dict[str, Any]]] = {
        "png": ("PNG", {}),
        "png optimized": ("PNG", {"optimize": True}),
        "bmp": ("BMP", {}),
        "dib": ("DIB", {}),
        "tiff": ("TIFF", {}),
        "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
        "tiff packbits": ("TIFF", {"compression": "packbits"}),
        "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "bigtiff": ("TIFF", {"big_tiff": True}),
        "ppm": ("PPM", {}),
        "tga": ("TGA", {}),
        "tga rle": ("TGA", {"compression": "tga_rle"}),
        "pcx": ("PCX", {}),
        "sgi": ("SGI", {}),
        "qoi": ("QOI", {}),
        "dds": ("DDS", {}),
        "webp lossless": ("WEBP", {"lossless": True, "exact": True}),
    }
    for name, (kind, options) in plain.items():
        yield Sample(name, saved(picture, kind, **options), COLOR)
    lossy: dict[str, tuple[str, dict[str, Any], float]] = {
        "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        "jpeg progressive": ("JPEG", {"quality": 95, "progressive": True}, 30),
        "jpeg subsampled": ("JPEG", {"quality": 90, "subsampling": 2}, 40),
        "jpeg of colors": ("JPEG", {"quality": 95, "keep_rgb": True}, 8),
        "jpeg with a profile": ("JPEG", {"quality": 95, "subsampling": 0, "icc_profile": _profile()}, 8),
        "jpeg with restarts": ("JPEG", {"quality": 95, "subsampling": 0, "restart_marker_blocks": 1}, 8),
        "webp": ("WEBP", {"quality": 95}, 40),
        "avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4", "speed": 8}, 12),
        "tiff jpeg": ("TIFF", {"compression": "jpeg", "quality": 95}, 45),
    }
    for name, (kind, options, tolerance) in lossy.items():
        yield Sample(name, saved(picture, kind, **options), COLOR, tolerance)
    yield Sample("dds of blocks", saved(picture, "DDS", pixel_format="DXT1"), COLOR, 12, mean_only=True)
    yield Sample(
        "ppm in words", b"P3\n# words\n%d %d\n255\n" % (WIDTH, HEIGHT) + " ".join(map(str, COLOR.ravel())).encode(), COLOR
    )
    yield Sample("ppm of 10 levels", b"P6 %d %d 9\n" % (WIDTH, HEIGHT) + (COLOR // 28).tobytes(), COLOR // 28 * (255 / 9), 1)
    yield Sample("png with a profile", saved(picture, "PNG", icc_profile=_profile()), COLOR)


@functools.cache
def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _gray() -> Iterator[Sample]:
    right = three(GRAY)
    for kind in ("PNG", "TIFF", "BMP", "PPM", "TGA", "PCX", "SGI"):
        yield Sample(f"gray {kind.lower()}", saved(GRAY, kind), right)
    yield Sample("gray jpeg", saved(GRAY, "JPEG", quality=95), right, 8)
    for kind in ("PNG", "TIFF", "BMP", "PPM", "PCX", "MSP", "XBM"):
        yield Sample(f"one bit {kind.lower()}", saved(Image.fromarray(BITS), kind), three(BITS * 255))
    yield Sample("one bit tiff group 4", saved(Image.fromarray(BITS), "TIFF", compression="group4"), three(BITS * 255))
    for kind in ("PNG", "TIFF", "PPM"):
        yield Sample(f"16 bit gray {kind.lower()}", saved(DEEP, kind), three(DEEP / 257), 0.51)
    for bits in (2, 4):
        levels, count = GRAY >> (8 - bits), 8 // bits
        padded = np.pad(levels, ((0, 0), (0, -WIDTH % count))).reshape(HEIGHT, -1, count)
        packed = sum(padded[..., k].astype(int) << (8 - bits * (k + 1)) for k in range(count))
        yield Sample(f"{bits} bit gray png", png(packed, bits, 0), three(levels * (255 / (2**bits - 1))), 0.51)
    yield Sample("tiff that counts from white", _from_white(saved(GRAY, "TIFF")), three(255.0 - GRAY))
    yield Sample("16 bit tiff that counts from white", _from_white(saved(DEEP, "TIFF")), three(255 - DEEP / 257), 0.51)


def _from_white(data: bytes) -> bytes:
    return data.replace(struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0))


def _deep() -> Iterator[Sample]:
    colors = (COLOR.astype(np.uint16) << 8) + 77
    alpha = (ALPHA.astype(np.uint16) << 8) + 99
    yield Sample("16 bit png", png(colors, 16, 2), colors / 257, 1)
    both = np.concatenate([colors, alpha[..., None]], 2)
    yield Sample("16 bit png with alpha", png(both, 16, 6), over_white(colors / 257, alpha / 257), 2)
    gray = np.stack([DEEP, alpha], 2)
    yield Sample("16 bit gray png with alpha", png(gray, 16, 4), over_white(three(DEEP / 257), alpha / 257), 2)
    unit = GRAY.astype(np.float32) / 255
    for name, values, right in (
        ("float tiff to 1", unit, three(GRAY)), ("float tiff to 255", unit * 255, three(GRAY)),
        ("float tiff to 400", unit * 400, None), ("float tiff below 0", unit - 0.5, None),
        ("float tiff with nan", np.where(BITS, np.nan, unit).astype(np.float32), None),
    ):  # fmt: skip
        yield Sample(name, saved(Image.fromarray(values), "TIFF"), right, 0.51)
    yield Sample("float pfm", b"Pf %d %d -1.0\n" % (WIDTH, HEIGHT) + unit[::-1].astype("<f4").tobytes(), three(GRAY), 0.51)
    yield Sample("32 bit integers", saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), None)
    yield Sample("lab tiff", saved(Image.frombytes("LAB", (WIDTH, HEIGHT), COLOR.tobytes()), "TIFF"), None)


def _transparent() -> Iterator[Sample]:
    rgba = np.dstack([COLOR, ALPHA])
    right = over_white(COLOR, ALPHA)
    for kind, options in (
        ("PNG", {}), ("TIFF", {}), ("TGA", {}), ("WEBP", {"lossless": True, "exact": True}), ("QOI", {}), ("DDS", {}),
        ("SGI", {}),
    ):  # fmt: skip
        yield Sample(f"rgba {kind.lower()}", saved(rgba, kind, **options), right, 1)
    yield Sample("rgba avif", saved(rgba, "AVIF", quality=95, subsampling="4:4:4", speed=8), right, 14)
    square = np.zeros((16, 16, 4), np.uint8)
    square[..., :3], square[..., 3] = COLOR[:16, :16], ALPHA[:16, :16]
    icon = saved(square, "ICO", sizes=[(16, 16)])
    yield Sample("ico", icon, right[:16, :16], 1)
    yield Sample("ico of a bitmap", saved(square, "ICO", sizes=[(16, 16)], bitmap_format="bmp"), right[:16, :16], 1)
    la = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
    for kind in ("PNG", "TIFF", "TGA"):
        yield Sample(f"gray with alpha {kind.lower()}", saved(la, kind), over_white(three(GRAY), ALPHA), 1)
    yield Sample(
        "png with one color clear", saved(COLOR, "PNG", transparency=tuple(map(int, COLOR[3, 4]))), _clear(COLOR, COLOR[3, 4])
    )
    yield Sample("png with one gray clear", saved(GRAY, "PNG", transparency=int(GRAY[3, 4])), _clear(three(GRAY), GRAY[3, 4]))
    rare = chunk(b"tRNS", struct.pack(">H", int(DEEP[3, 4])))
    yield Sample(
        "16 bit png with one gray clear",
        png(DEEP, 16, 0, rare),
        np.where((DEEP[3, 4] == DEEP)[..., None], 255, three(DEEP / 257)),
        0.51,
    )


def _clear(color: np.ndarray, key: Any) -> np.ndarray:
    return np.where((color == key).all(axis=2, keepdims=True), 255, color)


def _indexed() -> Iterator[Sample]:
    picture = Image.fromarray(INDEX)
    picture.putpalette(PALETTE.astype(np.uint8).ravel().tolist())
    assert picture.mode == "P"
    right = PALETTE[INDEX]
    for kind in ("PNG", "GIF", "BMP", "TIFF", "PCX", "TGA"):
        yield Sample(f"palette {kind.lower()}", saved(picture, kind), right)
    yield Sample(
        "palette png with one clear", saved(picture, "PNG", transparency=2), np.where((INDEX == 2)[..., None], 255, right)
    )
    levels = bytes([255, 0, 128, 64, 255, 255, 255, 255])
    yield Sample(
        "palette png with levels",
        saved(picture, "PNG", transparency=levels),
        over_white(right, np.frombuffer(levels, np.uint8)[INDEX]),
        1,
    )
    yield Sample("gif with one clear", saved(picture, "GIF", transparency=1), np.where((INDEX == 1)[..., None], 255, right))
    yield Sample("interlaced gif", saved(picture, "GIF", interlace=True), right)


def _turned() -> Iterator[Sample]:
    for orientation in range(1, 9):
        data = saved(COLOR, "JPEG", quality=95, subsampling=0, exif=_exif(orientation))
        yield Sample(f"jpeg turned {orientation}", data, upright(COLOR, orientation), 8)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        yield Sample(f"{kind.lower()} turned 6", saved(COLOR, kind, exif=_exif(6), **options), upright(COLOR, 6))
    yield Sample("16 bit png turned 8", saved(DEEP, "PNG", exif=_exif(8)), upright(three(DEEP / 257), 8), 0.51)


def _animated() -> Iterator[Sample]:
    index = Image.fromarray(INDEX)
    index.putpalette(PALETTE.astype(np.uint8).ravel().tolist())
    yield Sample(
        "animated gif",
        saved(index, "GIF", save_all=True, append_images=[index.transpose(Image.Transpose.ROTATE_180)]),
        PALETTE[INDEX],
    )
    others = [Image.fromarray(COLOR[::-1].copy()), Image.fromarray(255 - COLOR)]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        yield Sample(f"animated {kind.lower()}", saved(COLOR, kind, save_all=True, append_images=others, **options), COLOR)
    if int(PIL.__version__.split(".")[0]) >= 12:  # earlier ones write files that nobody reads
        yield Sample("mpo", saved(COLOR, "MPO", save_all=True, append_images=others, quality=95, subsampling=0), COLOR, 8)


def _ink() -> Iterator[Sample]:
    ink = np.dstack([COLOR, GRAY // 3])
    picture = Image.frombytes("CMYK", (WIDTH, HEIGHT), ink.tobytes())
    right = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:]) / 255
    yield Sample("cmyk tiff", saved(picture, "TIFF"), right, 1.01)
    yield Sample("cmyk jpeg", saved(picture, "JPEG", quality=95), right, 12)
    data = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12) + b"\0\0"
    for name, plain in (("jpeg2000", False), ("jpeg2000 without a box", True)):
        yield Sample(name, saved(COLOR, "JPEG2000", irreversible=False, no_jp2=plain), None)
    yield Sample("psd", data + COLOR.transpose(2, 0, 1).tobytes(), COLOR)


GROUPS: tuple[Callable[[], Iterator[Sample]], ...] = (_rgb, _gray, _deep, _transparent, _indexed, _turned, _animated, _ink)


@functools.cache
def samples() -> tuple[Sample, ...]:
    """All samples, in an order that stays the same."""
    return tuple(sample for group in GROUPS for sample in group() if sample.data)
