"""Damaged pictures for `benchmarks.fuzz`: the corpus mutated in a dozen ways, and files made to cost much.

Case `n` of a seed is always the same bytes.
"""

import functools
import io
import random
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz_corpus import COLOR, chunk, samples, saved
from convoscope.data.pictures import read_picture

EXTREMES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 16383, 16384, 32767, 32768, 65535, 65536)
EXTREMES += (2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
ENDINGS = (".png", ".jpg", ".gif", ".tif", ".webp", ".ico", ".txt", "")
MAGIC = (
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"\xff\xd8\xff\xe0",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"RIFF",
    b"P6 ",
    b"8BPS",
    b"qoif",
    b"\0\0\1\0",
)

Draw = random.Random


def cut(draw: Draw, data: bytes) -> bytes:
    """Truncated anywhere, most often near its ends."""
    return data[
        : draw.choice((draw.randrange(len(data)), draw.randrange(min(64, len(data))), len(data) - draw.randrange(1, 9)))
    ]


def flip(draw: Draw, data: bytes) -> bytes:
    """One to sixteen bits turned."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        out[_place(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(out)


def overwrite(draw: Draw, data: bytes) -> bytes:
    """A run of bytes replaced by noise, zeros or ones."""
    start, length = _place(draw, data), draw.choice((1, 2, 4, 16, 64, 256))
    filling = draw.choice((b"\0" * length, b"\xff" * length, draw.randbytes(length)))
    return (data[:start] + filling + data[start + length :])[: len(data)]


def extreme(draw: Draw, data: bytes) -> bytes:
    """Fields of the header set to values at the edges of what they can hold."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        start, width = _place(draw, data), draw.choice((1, 2, 4, 8))
        number = draw.choice(EXTREMES) % 256**width
        out[start : start + width] = number.to_bytes(width, draw.choice(("little", "big")))
    return bytes(out)


def splice(draw: Draw, data: bytes) -> bytes:
    """The head of one file on the tail of another."""
    other = draw.choice(samples()).data
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def repeat(draw: Draw, data: bytes) -> bytes:
    """A part that comes several times."""
    a, b = sorted((_place(draw, data), _place(draw, data)))
    return data[:b] + data[a:b] * draw.choice((1, 2, 10, 100)) + data[b:]


def drop(draw: Draw, data: bytes) -> bytes:
    """A part that is missing."""
    a, b = sorted((_place(draw, data), _place(draw, data)))
    return data[:a] + data[b:]


def insert(draw: Draw, data: bytes) -> bytes:
    """Noise in the middle."""
    at = _place(draw, data)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 100))) + data[at:]


def polyglot(draw: Draw, data: bytes) -> bytes:
    """Two files in one, or a file under the first bytes of another kind."""
    other = draw.choice(samples()).data
    return draw.choice(
        (data + other, draw.choice(MAGIC) + data, other[: draw.randrange(40)] + data, data + b"PK\x03\x04" + other)
    )


def archive(draw: Draw, data: bytes) -> bytes:
    """No picture at all: a compressed, a script's or a page's start before the file."""
    head = draw.choice(
        (b"PK\x03\x04", b"\x1f\x8b\x08", b"<svg onload=alert(1)>", b"%!PS\n", b"<html>", b"#!/bin/sh\n", b"SIMPLE  =")
    )
    return head + data


def several(draw: Draw, data: bytes) -> bytes:
    """Two or three of the others, one after another."""
    for _ in range(draw.choice((2, 3))):
        data = draw.choice(SINGLE)(draw, data) or b"\0"
    return data


def _place(draw: Draw, data: bytes) -> int:
    """Most often within the header."""
    return draw.randrange(min(len(data), draw.choice((16, 64, 200, len(data)))))


SINGLE = (cut, flip, overwrite, extreme, splice, repeat, drop, insert, polyglot, archive)
MUTATIONS: dict[str, Callable[[Draw, bytes], bytes]] = {m.__name__: m for m in (*SINGLE, several)}


def sums_mended(data: bytes) -> bytes:
    """A PNG with right checksums, so that what was changed is not refused for them."""
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        out.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join([*out, data[at:]])


# ---- files that are small and ask for much
def _png(width: int, height: int, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(b"\0" * (width + 1)) for _ in range(min(height, 10_000))) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes many times."""
    data = saved(Image.new("L", (side, side), 9), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def _tiff(width: int, height: int, *tags: tuple[int, int, int, int]) -> bytes:
    entries = {256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 262: (262, 3, 1, 1)}
    entries |= {273: (273, 4, 1, 8), 278: (278, 4, 1, height), 279: (279, 4, 1, 100), **{t[0]: t for t in tags}}
    body = b"".join(struct.pack("<HHII", *entries[k]) for k in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4 + 200)


def _directory(count: int, size: int) -> bytes:
    """Tags that all point at the same large block."""
    tags = b"".join(struct.pack("<HHII", 1000 + k % 60_000, 1, size, 8) for k in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + tags + bytes(4 + size)


def _exif_of_many_tags(count: int = 5000, size: int = 5000) -> bytes:
    parts = b"Exif\0\0" + _directory(count, size)
    blocks = [parts[a : a + 65_000] for a in range(0, len(parts), 65_000)]
    plain = saved(COLOR, "JPEG")
    marked = [b"\xff\xe1" + struct.pack(">H", len(b) + 8) + (b if k == 0 else b"Exif\0\0" + b) for k, b in enumerate(blocks)]
    marked = [m[:2] + struct.pack(">H", len(m) - 2) + m[4:] for m in marked]
    return plain[:2] + b"".join(marked) + plain[2:]


def _icon(width: int, height: int) -> bytes:
    inner = _png(width, height)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def _icon_of_a_bitmap(width: int, height: int) -> bytes:
    inner = struct.pack("<IiiHHIIiiII", 40, width, height * 2, 1, 8, 0, 0, 0, 0, 0, 0) + bytes(2000)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 8, len(inner), 22) + inner


def _precincts(data: bytes, width: int, height: int, exponent: int) -> bytes:
    """A JPEG 2000 of another size, cut into the smallest parts that the format knows."""
    at = data.index(b"\xff\x51") + 6
    data = data[:at] + struct.pack(">IIIIII", width, height, 0, 0, width, height) + data[at + 24 :]
    at = data.index(b"\xff\x52")
    length, style = struct.unpack(">HB", data[at + 2 : at + 5])
    levels = data[at + 9]
    body = bytes([style | 1]) + data[at + 5 : at + 2 + length][:9] + bytes([exponent * 17] * (levels + 1))
    return data[:at] + b"\xff\x52" + struct.pack(">H", len(body) + 2) + body + data[at + 2 + length :]


def _blank(kind: str, width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    return saved(Image.new(mode, (width, height), 0), kind, **options)


def _sized(data: bytes, at: int, form: str, width: int, height: int) -> bytes:
    return data[:at] + struct.pack(form, width, height) + data[at + struct.calcsize(form) :]


def _plain_words(width: int, height: int) -> bytes:
    return b"P3 %d %d 255\n" % (width, height) + b"0 " * (3 * width * height)


def _text(kind: bytes, total: int) -> bytes:
    packed = zlib.compress(bytes(total))
    return chunk(kind, b"k\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 24 megapixels": lambda: _png(4900, 4900),
    "png of 81 megapixels": lambda: _png(9000, 9000),
    "png of 169 megapixels": lambda: _png(13_000, 13_000),
    "png of 4 gigapixels": lambda: _png(65_000, 65_000),
    "png of long texts": lambda: _png(9, 9, b"".join(_text(b"zTXt", 1_000_000) for _ in range(80))),
    "png of one long text": lambda: _png(9, 9, _text(b"iTXt", 200_000_000)),
    "png of a long profile": lambda: _png(9, 9, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200_000_000)))),
    "jpeg of 1000 scans": lambda: _scans(1000, 2000),
    "jpeg of 100 scans": lambda: _scans(100, 4900),
    "jpeg of 24 megapixels": lambda: _blank("JPEG", 4900, 4900),
    "progressive jpeg of 24 megapixels": lambda: _blank("JPEG", 4900, 4900, progressive=True),
    "jpeg of many exif tags": _exif_of_many_tags,
    "jpeg of an exif block of many tags": lambda: _exif_of_many_tags(300, 60_000),
    "tiff of many tags": lambda: _directory(60_000, 500_000),
    "tiff of huge tiles": lambda: _tiff(
        64, 64, (259, 3, 1, 5), (322, 4, 1, 60_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 100)
    ),
    "tiff of huge strips": lambda: _tiff(20_000, 1200, (259, 3, 1, 5), (278, 4, 1, 2**31)),
    "tiff of 24 megapixels": lambda: _blank("TIFF", 4900, 4900, compression="tiff_lzw"),
    "deflated tiff of 24 megapixels": lambda: _blank("TIFF", 4900, 4900, compression="tiff_adobe_deflate"),
    "16 bit tiff of 24 megapixels": lambda: saved(np.zeros((4900, 4900), np.uint16), "TIFF", compression="tiff_adobe_deflate"),
    "float tiff of 24 megapixels": lambda: saved(np.zeros((4900, 4900), np.float32), "TIFF", compression="tiff_adobe_deflate"),
    "rgba png of 24 megapixels": lambda: _blank("PNG", 4900, 4900, "RGBA"),
    "cmyk tiff of 24 megapixels": lambda: _blank("TIFF", 4900, 4900, "CMYK", compression="tiff_lzw"),
    "turned png of 24 megapixels": lambda: _blank(
        "PNG", 4900, 4900, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "gif of 24 megapixels": lambda: _blank("GIF", 4900, 4900, "L"),
    "gif of a canvas of 24 megapixels": lambda: _sized(_blank("GIF", 9, 9, "L"), 6, "<HH", 4900, 4900),
    "webp of 24 megapixels": lambda: _blank("WEBP", 4900, 4900),
    "lossless webp of 24 megapixels": lambda: _blank("WEBP", 4900, 4900, lossless=True),
    "avif of 16 megapixels": lambda: _blank("AVIF", 4000, 4000, speed=10),
    "jpeg2000 of 16 megapixels": lambda: _blank("JPEG2000", 4000, 4000),
    "jpeg2000 of 4 megapixels": lambda: _blank("JPEG2000", 2000, 2000),
    "jpeg2000 of tiny precincts": lambda: _precincts(_blank("JPEG2000", 64, 64, no_jp2=True), 2000, 2000, 1),
    "jpeg2000 of a lying size": lambda: _precincts(_blank("JPEG2000", 64, 64, no_jp2=True), 4900, 4900, 15),
    "jpeg2000 of narrow precincts": lambda: _precincts(_blank("JPEG2000", 64, 64, no_jp2=True), 1000, 1000, 0),
    "qoi of 24 megapixels": lambda: _sized(saved(COLOR, "QOI"), 4, ">II", 4900, 4900)[:14] + b"\xfd" * 400_000 + bytes(8),
    "qoi of 2 megapixels": lambda: (
        b"qoif" + struct.pack(">IIBB", 1400, 1400, 3, 0) + b"\xfe\1\2\3" * 1_960_000 + bytes(7) + b"\1"
    ),
    "ppm in words of 4 megapixels": lambda: _plain_words(2000, 2000),
    "ppm of 9 levels, 4 megapixels": lambda: b"P6 2000 2000 9\n" + bytes(12_000_000),
    "bmp in runs of 24 megapixels": lambda: (
        struct.pack("<2sIIIIiiHHIIIIII", b"BM", 0, 0, 1078, 40, 4900, 4900, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
        + b"\xff\1" * 98_000
        + b"\0\1"
    ),
    "sgi in runs": lambda: (
        struct.pack(">hBBHHHH", 474, 1, 2, 3, 4900, 4900, 3) + bytes(500) + struct.pack(">I", 700) * 29_400 * 2
    ),
    "tga in runs of 24 megapixels": lambda: (
        struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 4900, 4900, 24, 0) + b"\xff\1\2\3" * 190_000
    ),
    "dds of 4 megapixels": lambda: _blank("DDS", 2000, 2000),
    "psd of 24 megapixels": lambda: (
        b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4900, 4900, 8, 3) + bytes(12) + b"\0\1" + bytes(2 * 3 * 4900) + bytes(99)
    ),
    "msp of 24 megapixels": lambda: _sized(_blank("MSP", 32, 32, "1"), 4, "<HH", 4896, 4896),
    "xbm of 24 megapixels": lambda: b"#define a_width 4900\n#define a_height 4900\nstatic char a_bits[] = {\n" + b"0x00," * 999,
    "ico of 169 megapixels": lambda: _icon(13_000, 13_000),
    "ico of a bitmap of 100 megapixels": lambda: _icon_of_a_bitmap(10_000, 10_000),
    "pcx of 24 megapixels": lambda: _sized(_blank("PCX", 9, 9), 8, "<HH", 4899, 4899),
    "ppm of a long comment": lambda: b"P6 #" + b"a" * 20_000_000,
    "xbm of a long line": lambda: b"#define a_width " + b"1" * 1_000_000 + b"\n#define a_height 4\nstatic char a_bits[] = {",
    "gif of many comments": lambda: (
        _blank("GIF", 9, 9, "L")[:6] + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x21\xfe\1a\0" * 300_000
    ),
    "gif of a long comment": lambda: (
        _blank("GIF", 9, 9, "L")[:6] + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x21\xfe" + (b"\xff" + bytes(255)) * 80_000
    ),
    "jpeg of a million markers": lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 1_000_000 + saved(COLOR, "JPEG")[2:],
    "png of parts after the pixels": lambda: _png(9, 9)[:-12] + chunk(b"teXt", b"") * 300_000,
    "png of pixels in many parts": lambda: _png(900, 900)[:-12] + chunk(b"IDAT", b"") * 300_000,
    "tiff of a million strips": lambda: _tiff(64, 64, (273, 4, 1_000_000, 200), (279, 4, 1_000_000, 200)) + bytes(4_000_000),
    "psd of many blocks": lambda: (
        b"8BPS"
        + struct.pack(">H6xHIIHH", 1, 3, 9, 9, 8, 3)
        + bytes(4)
        + struct.pack(">I", 3_600_000)
        + b"8BIM\0\1\0\0\0\0\0\0" * 300_000
    ),
    "jpeg of much exif": lambda: (
        b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)) * 300 + saved(COLOR, "JPEG")[2:]
    ),
    "png of a million chunks": lambda: _png(9, 9, chunk(b"teXt", b"") * 300_000),
}
BOMB_EVERY = 1000
EXPECTED = ("ImageError", "UsageError")


@functools.cache
def _bomb(name: str) -> bytes:
    return BOMBS[name]()


def case(seed: int, number: int) -> tuple[str, bytes, str]:
    """What is done, to which bytes, and the ending of the file's name, or "-" where the bytes are given themselves."""
    draw = Draw(f"{seed}/{number}")
    if number % BOMB_EVERY == 0:
        name = sorted(BOMBS)[number // BOMB_EVERY % len(BOMBS)]
        return f"made to cost: {name}", _bomb(name), "-"
    sample, how = draw.choice(samples()), draw.choice(list(MUTATIONS))
    data = MUTATIONS[how](draw, sample.data)
    if data[:4] == b"\x89PNG" and draw.random() < 0.6:
        data = sums_mended(data)
    return f"{how}: {sample.name}", data, draw.choice(("-", *ENDINGS)) if draw.random() < 0.1 else "-"


def attempt(data: bytes, ending: str) -> None:
    """Read the picture; raises what reading raises, and AssertionError for pixels that are none."""
    if ending == "-":
        picture = read_picture(data)
    else:
        with tempfile.NamedTemporaryFile(suffix=ending) as file:
            Path(file.name).write_bytes(data)
            picture = read_picture(file.name)
    assert picture.mode == "RGB"
    assert min(picture.size) >= 2
    assert len(picture.tobytes()) == 3 * picture.width * picture.height


def decoded_bytes(data: bytes) -> int:
    """What the pixels take that the header promises, as Pillow holds them; 0 where it promises none or too many."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            count = picture.width * picture.height
    except Exception:
        return 0
    return 4 * count if count <= 25e6 else 0


def prepare() -> None:
    """Nothing: each case stands for itself."""


def finish() -> None:
    """Nothing to look at afterwards."""
