"""Figures for papers and slides: pictures and maps in a row or grid, with titles, captions and color scales, as PNG."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convoscope.show.colormap import ZERO, diverging, sequential
from convoscope.show.overlay import as_bytes

INK, SOFT, PAPER, LINE = "#1b1f24", "#5f6875", "#ffffff", "#c9ced6"
TITLE, TEXT, TICK = 15, 12.5, 11.5  # points; one point is `zoom` pixels
MARGIN, GAP, BAR = 20, 24, 9


@dataclass(frozen=True)
class Scale:
    """What the colors of a map stand for: `low` and `high` have the end colors of its table, in `unit`."""

    low: float
    high: float
    signed: bool
    unit: str = ""

    @classmethod
    def of(cls, limit: float, signed: bool, unit: str = "") -> "Scale":
        """The scale of `colorize(values, limit=limit, signed=signed)`."""
        return cls(-limit if signed else 0.0, limit, signed, unit)

    def ticks(self) -> list[tuple[float, str]]:
        """Places along the scale, 0 to 1, and the numbers that belong there."""
        if self.high <= self.low:
            return [(0.5 if self.signed else 0.0, "0 everywhere")]
        ends = [(0.0, number(self.low)), (1.0, number(self.high))]
        return [ends[0], (0.5, "0"), ends[1]] if self.signed else ends


@dataclass(frozen=True)
class Panel:
    """One picture (H, W, 3) or (H, W), uint8 or float in 0..1, of a figure, with what is written around it."""

    title: str
    image: Any
    caption: str = ""
    scale: Scale | None = None


def number(value: float) -> str:
    """Three digits, short: 0.0123, 4.56, 1.2e-05."""
    if value == 0:
        return "0"
    text = f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, three to six, the first and the last around all values."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if 0 <= low < 0.35 * high:
        low = 0.0
    wide = high - low or abs(high) or 1.0
    step = next(s for k in (-2, -1, 0) for n in (1, 2, 5) if (s := n * 10.0 ** (math.floor(math.log10(wide)) + k)) * 4 >= wide)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)]


def figure(
    panels: Sequence[Panel], columns: int | None = None, *, width: int = 240, title: str = "", zoom: int = 2
) -> Image.Image:
    """Lay `panels` out on white paper, in one row of up to five or in a grid of `columns`.

    Each panel is `width` points wide and has the aspect ratio of its picture; one point is `zoom` pixels.
    """
    if not panels:
        raise ValueError("a figure of no panels")
    columns = columns or min(len(panels), 5 if len(panels) <= 5 else -(-len(panels) // -(-len(panels) // 5)))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [[_measure(panel, width, zoom) for panel in row] for row in rows]
    tops = [[max(parts[k] for parts in row) for k in range(3)] for row in heights]
    across = MARGIN * 2 + columns * width + (columns - 1) * GAP
    head = text_height(title, TITLE + 3, across - 2 * MARGIN, zoom) + 12 if title else 0
    down = MARGIN * 2 + head + sum(sum(row) for row in tops) + (len(rows) - 1) * GAP
    page = Image.new("RGB", (across * zoom, round(down * zoom)), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        write_text(draw, title, MARGIN, MARGIN, TITLE + 3, across - 2 * MARGIN, INK, zoom)
    y = MARGIN + head
    for row, top in zip(rows, tops, strict=True):
        for i, panel in enumerate(row):
            _draw(page, draw, panel, MARGIN + i * (width + GAP), y, width, top, zoom)
        y += sum(top) + GAP
    return page


def _measure(panel: Panel, width: int, zoom: int) -> tuple[float, float, float]:
    """Heights in points of the title, the picture, and what is below it."""
    shape = np.shape(panel.image)
    above = text_height(panel.title, TITLE, width, zoom) + 6 if panel.title else 0
    below = _scale_height(panel.scale) if panel.scale else 0
    below += 6 + text_height(panel.caption, TEXT, width, zoom) if panel.caption else 0
    return above, width * shape[0] / shape[1], below


def _scale_height(scale: Scale) -> float:
    return 8 + BAR + 4 + 1.3 * TICK * (2 if scale.unit else 1)


def _draw(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    x: float,
    y: float,
    width: int,
    top: list[float],
    zoom: int,
) -> None:
    y += top[0]
    if panel.title:
        write_text(draw, panel.title, x, y - 6 - text_height(panel.title, TITLE, width, zoom), TITLE, width, INK, zoom)
    pixels = as_bytes(panel.image)
    size = (width * zoom, round(width * zoom * pixels.shape[0] / pixels.shape[1]))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    place = (round(x * zoom), round(y * zoom))
    page.paste(picture, place)
    draw.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), outline=LINE, width=1)
    y += size[1] / zoom
    if panel.scale:
        _draw_scale(page, draw, panel.scale, x, y + 8, width, zoom)
        y += _scale_height(panel.scale)
    write_text(draw, panel.caption, x, y + 6, TEXT, width, SOFT, zoom)


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, x: float, y: float, width: int, zoom: int) -> None:
    colors = bar_colors(scale)
    colors = colors[np.rint(np.linspace(0, len(colors) - 1, width * zoom)).astype(int)]
    bar = Image.fromarray(np.repeat(colors[None], BAR * zoom, axis=0))
    place = (round(x * zoom), round(y * zoom))
    page.paste(bar, place)
    draw.rectangle((*place, place[0] + bar.width - 1, place[1] + bar.height - 1), outline=LINE, width=1)
    font = _font(TICK * zoom)
    below = (y + BAR + 4) * zoom
    for at, label in scale.ticks():
        text = _plain(label)
        left = (x + at * width) * zoom - at * font.getlength(text)
        draw.text((left, below), text, INK, font)
    unit = _plain(scale.unit)
    middle = (x + width / 2) * zoom - font.getlength(unit) / 2
    draw.text((middle, below + 1.3 * TICK * zoom), unit, SOFT, font)


def bar_colors(scale: Scale) -> np.ndarray:
    """The colors (N, 3) of a scale from its low to its high end; one color where everything is zero."""
    table = diverging()[1:] if scale.signed else sequential()
    zero = ZERO - 1 if scale.signed else 0
    return table if scale.high > scale.low else np.repeat(table[zero : zero + 1], 2, axis=0)


# text


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size)


@cache
def _missing() -> bytes:
    return bytes(_font(20).getmask("\uffff"))


@cache
def _known(character: str) -> bool:
    return character.isspace() or bytes(_font(20).getmask(character)) != _missing()


def _plain(text: str) -> str:
    """`text` in the few letters that Pillow's own font has: accents are dropped, other alphabets become '?'."""
    swaps = {"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "x", "ß": "ss", "≈": "~", "≥": ">=", "≤": "<="}
    out = []
    for character in " ".join(text.split()):
        if _known(character):
            out.append(character)
            continue
        base = swaps.get(character) or unicodedata.normalize("NFKD", character)
        kept = "".join(c for c in base if not unicodedata.combining(c))
        out.append(kept if kept and all(map(_known, kept)) else "?")
    return "".join(out)


def _lines(text: str, size: float, width: float, zoom: int) -> list[str]:
    font, lines = _font(size * zoom), [""]
    for word in _plain(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width * zoom:
            longer = word
            lines.append("")
        while font.getlength(longer) > width * zoom and len(longer) > 1:
            cut = len(longer) - 1
            while cut > 1 and font.getlength(longer[:cut]) > width * zoom:
                cut -= 1
            lines[-1], longer = longer[:cut], longer[cut:]
            lines.append("")
        lines[-1] = longer
    return lines


def text_width(text: str, size: float, zoom: int) -> float:
    """Points that a line of text takes."""
    return _font(size * zoom).getlength(_plain(text)) / zoom


def text_height(text: str, size: float, width: float, zoom: int) -> float:
    """Points that a text takes, broken into lines of at most `width`."""
    return 1.3 * size * len(_lines(text, size, width, zoom))


def write_text(
    draw: ImageDraw.ImageDraw, text: str, x: float, y: float, size: float, width: float, color: str, zoom: int
) -> None:
    """Writes a text with its upper left corner at (x, y) points, broken into lines of at most `width`."""
    for i, line in enumerate(_lines(text, size, width, zoom)):
        draw.text((x * zoom, (y + 1.3 * size * i) * zoom), line, color, _font(size * zoom))
