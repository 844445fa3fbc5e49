"""Every way a picture is stored comes out as the right pixels, or as one clear line."""

import io
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoscope.core.errors import ConvoscopeError, ImageError, UsageError
from convoscope.data.pictures import read_picture

rng = np.random.default_rng(0)
GRAY = rng.integers(0, 256, (6, 9), dtype=np.uint8)
COLOR = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(source, **options):
    return np.asarray(read_picture(source, **options))


def three(gray):
    return np.repeat(np.asarray(gray)[..., None], 3, axis=2)


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def png16(values: np.ndarray, color_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG; Pillow writes gray ones only."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# sources


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.tga", "a.gif", "a.webp", "a.qoi"])
def test_lossless_color_files_are_exact(tmp_path, name):
    if name == "a.qoi" and "QOI" not in Image.SAVE:
        pytest.skip("this Pillow writes no QOI")
    picture = Image.fromarray(COLOR)
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    path = saved(picture, tmp_path / name, **options)
    if name == "a.gif":
        with Image.open(path) as indexed:
            assert np.array_equal(pixels(path), np.asarray(indexed.convert("RGB")))
    else:
        assert np.array_equal(pixels(path), COLOR)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    path = saved(Image.fromarray(COLOR), tmp_path / "a.png")
    content = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as lazy:
        sources = [path, str(path), content, io.BytesIO(content), file, lazy, COLOR]
        for source in sources:
            picture = read_picture(source)
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), COLOR)


def test_jpeg_is_close():
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(three(smooth)).save(buffer, "JPEG", quality=95)
    assert np.abs(pixels(buffer.getvalue()).astype(int) - three(smooth)).max() <= 4


def test_gray_mode_and_gray_files(tmp_path):
    path = saved(Image.fromarray(GRAY), tmp_path / "a.png")
    assert np.array_equal(pixels(path), three(GRAY))
    assert np.array_equal(pixels(path, mode="L"), GRAY)
    assert np.array_equal(pixels(COLOR, mode="L"), np.asarray(Image.fromarray(COLOR).convert("L")))
    with pytest.raises(UsageError, match="expected 'RGB' or 'L'"):
        read_picture(path, mode="BGR")  # type: ignore[arg-type]


def test_the_users_picture_is_left_alone():
    picture = Image.fromarray(COLOR)
    out = read_picture(picture)
    out.paste((0, 0, 0), (0, 0, 9, 6))
    assert np.array_equal(np.asarray(picture), COLOR)


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_orientation(tmp_path, orientation, name):
    # What a viewer shows for each EXIF value, from the standard's table of "row 0 is" and "column 0 is".
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(stored), tmp_path / name, exif=exif)
    assert np.abs(pixels(path).astype(int) - upright(stored)).max() <= (60 if name == "a.jpg" else 0)


def test_orientation_of_16_bit_gray(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.fromarray(GRAY.astype(np.uint16) * 257), tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(path, mode="L"), np.rot90(GRAY, -1))


def test_what_was_read_is_read_again_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_picture(saved(Image.fromarray(COLOR), tmp_path / "a.png", exif=exif))
    assert np.array_equal(pixels(upright), np.asarray(upright))
    key = read_picture(saved(Image.fromarray(GRAY), tmp_path / "b.png", transparency=int(GRAY[0, 0])), mode="L")
    assert np.array_equal(pixels(key, mode="L"), np.asarray(key))


# transparency and palettes


def test_alpha_is_laid_over_white_or_the_stated_background(tmp_path):
    rgba = np.dstack([COLOR, GRAY])
    path = saved(Image.fromarray(rgba), tmp_path / "a.png")
    alpha = GRAY[..., None] / 255
    assert np.abs(pixels(path) - (COLOR * alpha + 255 * (1 - alpha))).max() <= 1
    over = np.array([10, 200, 30])
    assert np.abs(pixels(path, background=(10, 200, 30)) - (COLOR * alpha + over * (1 - alpha))).max() <= 1
    assert np.array_equal(pixels(rgba), pixels(path))


def test_gray_with_alpha(tmp_path):
    path = saved(Image.fromarray(np.dstack([GRAY, GRAY[::-1]]), "LA"), tmp_path / "a.png")
    alpha = GRAY[::-1] / 255
    assert np.abs(pixels(path, mode="L") - (GRAY * alpha + 255 * (1 - alpha))).max() <= 1
    assert np.array_equal(pixels(path), three(pixels(path, mode="L")))


@pytest.mark.parametrize(
    ("transparency", "first"),
    [(None, (250, 0, 0)), (0, (255, 255, 255)), (b"\x80\xff", (252, 127, 127))],
)
def test_palettes(tmp_path, transparency, first):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([250, 0, 0, 0, 0, 250])
    picture.paste(1, (2, 0, 4, 4))
    options = {} if transparency is None else {"transparency": transparency}
    out = pixels(saved(picture, tmp_path / "a.png", **options))
    assert np.abs(out[0, 0].astype(int) - first).max() <= 1
    assert tuple(out[0, 3]) == (0, 0, 250)


def test_one_gray_or_one_color_declared_transparent(tmp_path):
    gray = Image.new("L", (4, 4), 7)
    gray.putpixel((0, 0), 9)
    out = pixels(saved(gray, tmp_path / "g.png", transparency=7), mode="L")
    assert out[0, 0] == 9
    assert out[1, 1] == 255
    color = Image.new("RGB", (4, 4), (7, 8, 9))
    assert (pixels(saved(color, tmp_path / "c.png", transparency=(7, 8, 9))) == 255).all()
    deep = np.full((4, 4), 1000, np.uint16)
    deep[0, 0] = 0
    out = pixels(png16(deep, 0, chunk(b"tRNS", struct.pack(">H", 1000))), mode="L")
    assert out[0, 0] == 0
    assert out[1, 1] == 255


def test_one_bit(tmp_path):
    for name in ("a.png", "a.tif", "a.bmp"):
        path = saved(Image.fromarray(GRAY > 127), tmp_path / name)
        assert np.array_equal(pixels(path), three(np.where(GRAY > 127, 255, 0)))


# CMYK


def test_cmyk_jpeg_holds_255_minus_ink_with_and_without_the_marker(tmp_path):
    path = saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / "a.jpg", quality=100)
    content = path.read_bytes()
    assert np.abs(pixels(content).astype(int) - (0, 255, 255)).max() <= 2
    start = content.index(b"\xff\xee\x00\x0eAdobe")
    assert np.array_equal(pixels(content[:start] + content[start + 16 :]), pixels(content))  # as browsers do


def test_cmyk_tiff(tmp_path):
    path = saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.tif")
    assert (pixels(path) == (255, 0, 0)).all()


# more than 8 bits


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    right = np.rint(deep / 257)
    for name in ("a.png", "a.tif"):
        assert np.array_equal(pixels(saved(Image.fromarray(deep), tmp_path / name), mode="L"), right)
    assert np.array_equal(pixels(saved(Image.fromarray(deep), tmp_path / "a.ppm"), mode="L"), right)
    assert np.array_equal(pixels(Image.fromarray(deep), mode="L"), right)
    assert np.array_equal(pixels(deep, mode="L"), right)
    assert np.array_equal(pixels(np.dstack([deep] * 3)), three(right))


def test_16_bit_color_png():
    deep = rng.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    assert np.abs(pixels(png16(deep, 2)) - deep / 257).max() <= 1
    alpha = rng.integers(0, 65536, (5, 7, 1), dtype=np.uint16)
    right = deep / 257 * (alpha / 65535) + 255 * (1 - alpha / 65535)
    assert np.abs(pixels(png16(np.concatenate([deep, alpha], 2), 6)) - right).max() <= 2
    gray = deep[..., :1] / 257 * (alpha / 65535) + 255 * (1 - alpha / 65535)
    assert np.abs(pixels(png16(np.concatenate([deep[..., :1], alpha], 2), 4), mode="L") - gray[..., 0]).max() <= 2


def test_tiff_that_counts_from_white(tmp_path):
    deep = GRAY.astype(np.uint16) * 257
    path = saved(Image.fromarray(deep), tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(path) as raw:
        stated = raw.tag_v2[262]
    if stated != 0:
        content = path.read_bytes()
        path.write_bytes(content.replace(struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0)))
    assert np.array_equal(pixels(path, mode="L"), 255 - GRAY)


def test_32_bit_integers_have_no_white(tmp_path):
    path = saved(Image.fromarray(GRAY.astype(np.int32)), tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"32-bit integer pixels from \d+ to \d+.*8 or 16 bits"):
        read_picture(path)


def test_float_files(tmp_path):
    unit = GRAY.astype(np.float32) / 255
    assert np.array_equal(pixels(saved(Image.fromarray(unit), tmp_path / "a.tif"), mode="L"), GRAY)
    assert np.array_equal(pixels(saved(Image.fromarray(unit * 255), tmp_path / "b.tif"), mode="L"), GRAY)
    with pytest.raises(ImageError, match=r"float pixels from -1 to .*expected 0\.\.1 or 0\.\.255"):
        read_picture(saved(Image.fromarray(np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)), tmp_path / "c.tif"))
    broken = unit.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        read_picture(saved(Image.fromarray(broken), tmp_path / "d.tif"))


# arrays


def test_arrays():
    assert np.array_equal(pixels(COLOR / 255), COLOR)
    assert np.array_equal(pixels((COLOR / 255).astype(np.float32)), COLOR)
    assert np.array_equal(pixels(GRAY[..., None]), three(GRAY))
    assert np.array_equal(pixels(GRAY > 9), three((GRAY > 9) * 255))
    assert np.array_equal(pixels(COLOR[::-1, ::2]), COLOR[::-1, ::2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOR / 255 * 4 - 2, "network's input space needs no reading"),
        (np.full((4, 4), np.inf), "NaN or infinite"),
        (COLOR.astype(np.int64), "array of int64; expected uint8"),
        (COLOR.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (COLOR[None], "one by one"),
        (COLOR[..., :2], r"expected \(H, W\) or"),
        (np.zeros((0, 5), np.uint8), "nothing to explain"),
        (np.zeros(5, np.uint8), "expected"),
        (np.zeros((6000, 6000), np.uint8), "megapixels"),
    ],
)
def test_arrays_that_are_not_pictures(array, message):
    with pytest.raises(ImageError, match=message):
        read_picture(array)


# animations


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(tmp_path, kind):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    path = tmp_path / "a"
    first.save(path, kind, save_all=True, append_images=[second])
    assert np.abs(pixels(path).astype(int) - (255, 0, 0)).max() <= 2
    with Image.open(path) as picture:
        assert picture.n_frames == 2


# what is not a usable picture


def test_missing_file_and_directory(tmp_path):
    saved(Image.fromarray(COLOR), tmp_path / "kitten.png")
    with pytest.raises(UsageError, match=r"^no file '.*kittn\.png'; did you mean 'kitten\.png'\?$"):
        read_picture(tmp_path / "kittn.png")
    with pytest.raises(UsageError, match="no file"):
        read_picture(tmp_path / "nowhere" / "x.png")
    with pytest.raises(UsageError, match="no file"):
        read_picture("a\0b.png")
    (tmp_path / "old.png").symlink_to("moved.png")
    with pytest.raises(UsageError, match=r"the link leads to 'moved\.png', which is not there$"):
        read_picture(tmp_path / "old.png")
    with pytest.raises(UsageError, match="save the picture first"):
        read_picture("https://example.org/cat.jpg")
    with pytest.raises(ImageError, match="is a directory"):
        read_picture(tmp_path)
    with pytest.raises(ImageError, match="not a regular file"):
        read_picture("/dev/null")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"I am not a cat.\n" * 40, "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (bytes(range(200, 256)) * 9, "not a picture in a known format"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut off"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000 picture, which is not read"),
    ],
)
def test_other_files_named_jpg(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ImageError, match=message):
            read_picture(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_cut_and_damaged_files_raise_only_our_errors(kind):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, kind)
    content = buffer.getvalue()
    with pytest.raises(ImageError, match=r"damaged or cut off|known format"):
        read_picture(content[: len(content) // 2])
    for at in range(0, len(content), max(1, len(content) // 60)):
        damaged = bytearray(content)
        damaged[at : at + 6] = b"\xff" * len(damaged[at : at + 6])
        for bad in (content[:at], bytes(damaged)):
            with suppress(ConvoscopeError):  # damage in the pixels themselves may go unnoticed
                assert read_picture(bad).mode == "RGB"


def test_size_is_checked_before_decoding(tmp_path):
    def header(width, height):
        size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")

    with pytest.raises(ImageError, match=r"6000 x 5000 = 30\.0 megapixels, at most 25 are read"):
        read_picture(header(6000, 5000))
    with pytest.raises(ImageError, match="megapixels"):  # Pillow would warn here
        read_picture(header(12000, 9000))
    with pytest.raises(ImageError, match="megapixels"):  # and refuse here
        read_picture(header(60000, 60000))
    path = saved(Image.new("RGB", (200, 100)), tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"at most 0\.01 are read"):
        read_picture(path, max_megapixels=0.01)


LARGE = np.random.default_rng(1).integers(0, 256, (2000, 1500, 3), dtype=np.uint8)
HUGE: dict = {  # each as it is stored, for 4 times what its three channels take
    "a.png": lambda: np.dstack([LARGE, LARGE[..., 0]]),
    "b.png": lambda: np.dstack([LARGE[..., 0], LARGE[..., 1]]),
    "c.tif": lambda: LARGE[..., 0].astype(np.float32),
    "d.tif": lambda: LARGE[..., 0].astype(np.uint16) * 257,
    "e.ppm": lambda: LARGE[..., 0].astype(np.uint16) * 257,
    "f.webp": lambda: np.full_like(LARGE, 9),
}


ROOM = """
import ctypes, json, sys
from pathlib import Path
from convoscope.data.pictures import read_picture

def memory(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))

found = {}
for path in sys.argv[1:]:
    read_picture(path)
    getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)(0)  # else what was freed is taken again, unseen
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    read_picture(path)
    found[Path(path).name] = memory("VmHWM") - before
print(json.dumps(found))
"""


def test_reading_takes_at_most_four_times_the_room_of_the_picture(tmp_path):
    """In a process that did nothing before, and that asks the system for each large block and gives it back."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell how much memory a process took")
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [
        saved(Image.fromarray(pixels()), tmp_path / name, **({} if name == "e.ppm" else {"exif": exif}))
        for name, pixels in HUGE.items()
    ]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    done = subprocess.run([sys.executable, "-c", ROOM, *paths], capture_output=True, text=True, check=True, env=environment)
    taken = json.loads(done.stdout)
    assert taken.keys() == HUGE.keys()
    for name, room in taken.items():
        assert LARGE.nbytes / 4 < room <= 4.2 * LARGE.nbytes, name  # 0.2: blocks, and what Python itself takes


def test_threads_read_side_by_side_and_leave_warnings_as_they_were():
    both = threading.Barrier(2, timeout=120)

    class Meeting(io.BytesIO):
        met = False

        def read(self, *count):
            if not self.met:
                self.met = True
                both.wait()  # passes only while another thread is reading too
            return super().read(*count)

    def work():
        data = io.BytesIO()
        Image.fromarray(COLOR).save(data, "PNG")
        found.append(pixels(Meeting(data.getvalue())))

    found, before = [], list(warnings.filters)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2
    assert all(np.array_equal(f, COLOR) for f in found)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_too_small(tmp_path, size):
    path = saved(Image.new("RGB", size), tmp_path / "a.png")
    with pytest.raises(ImageError, match=rf"a picture of {size[0]} x {size[1]} pixels has nothing to explain"):
        read_picture(path)
    assert read_picture(Image.new("RGB", (2, 2))).size == (2, 2)


def test_what_is_no_source_at_all(tmp_path):
    for source in (None, 7, [COLOR]):
        with pytest.raises(ImageError, match="cannot read a picture from"):
            read_picture(source)
    (tmp_path / "a.txt").write_text("hello")
    with (tmp_path / "a.txt").open() as file, pytest.raises(ImageError, match="mode 'rb'"):
        read_picture(file)
    with pytest.raises(ImageError, match="'LAB'"):
        read_picture(Image.new("LAB", (4, 4)))
