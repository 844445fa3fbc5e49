"""A figure of colors in layers: shares as a bar, hues as a rose, and small pictures of the most selective units."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show.figure import INK, LINE, MARGIN, PAPER, SOFT, TEXT, TICK, TITLE, text_height, write_text
from convoscope.show.overlay import as_bytes

NAMES, ROSE, TILE, GAP, SHARE = 204, 84, 62, 6, 10  # points: text, rose, a small picture, between two, height of the bar
STEPS = ("#d4d8de", "#e9c27d", "#c8452e")  # not selective, a little, selective
LEGEND = ("not selective, index under 0.1", "a little", "selective, from 0.25 on")
SHARP = 4  # pixels that a rose is drawn with for one that is shown


@dataclass(frozen=True)
class HueRow:
    """One layer: facts in words, shares of three classes of units, shares of hues (the first red, evenly around), pictures.

    `before` are the hues to compare with.
    """

    title: str
    facts: Sequence[str]
    shares: tuple[float, float, float]
    hues: Sequence[float]
    pictures: Sequence[Any] = ()
    names: Sequence[str] = ()
    before: Sequence[float] = ()


def hue_figure(rows: Sequence[HueRow], title: str, about: str = "", zoom: int = 2) -> Image.Image:
    """The layers below each other on white paper; one point is `zoom` pixels. Areas in a rose are shares of hues."""
    if not rows:
        raise ValueError("a figure of no layers")
    tiles = max(len(r.pictures) for r in rows)
    across = 2 * MARGIN + NAMES + 18 + ROSE + 18 + max(tiles, 6) * (TILE + GAP) - GAP
    inner = across - 2 * MARGIN
    heights = [_height(r) for r in rows]
    top = text_height(title, TITLE + 3, inner, zoom) + 6 + text_height(about, TEXT, inner, zoom) + 10 + 1.3 * TICK + 18
    page = Image.new("RGB", (round(across * zoom), round((2 * MARGIN + top + sum(heights)) * zoom)), PAPER)
    draw = ImageDraw.Draw(page)
    y = float(MARGIN)
    write_text(draw, title, MARGIN, y, TITLE + 3, inner, INK, zoom)
    y += text_height(title, TITLE + 3, inner, zoom) + 6
    write_text(draw, about, MARGIN, y, TEXT, inner, SOFT, zoom)
    y += text_height(about, TEXT, inner, zoom) + 10
    _legend(draw, y, zoom)
    y = MARGIN + top
    for row, height in zip(rows, heights, strict=True):
        draw.line((MARGIN * zoom, (y - 12) * zoom, (across - MARGIN) * zoom, (y - 12) * zoom), LINE, 1)
        _row(page, draw, row, y, zoom)
        y += height
    return page


def _height(row: HueRow) -> float:
    words = 1.3 * TITLE + SHARE + 14 + sum(text_height(f, TICK, NAMES, 2) for f in row.facts)
    return max(ROSE, words, TILE + 1.3 * TICK + 4) + 28


def _legend(draw: ImageDraw.ImageDraw, y: float, zoom: int) -> None:
    x = float(MARGIN)
    for color, text in zip(STEPS, LEGEND, strict=True):
        draw.rectangle((x * zoom, (y + 2) * zoom, (x + 12) * zoom, (y + 12) * zoom), color)
        write_text(draw, text, x + 17, y, TICK, 200, SOFT, zoom)
        x += 34 + _width(text, zoom)
    write_text(
        draw,
        "rose: hues of the selective units, red to the right; black arcs: of those not selective",
        x,
        y,
        TICK,
        600,
        SOFT,
        zoom,
    )


def _width(text: str, zoom: int) -> float:
    from convoscope.show.figure import text_width

    return text_width(text, TICK, zoom)


def _row(page: Image.Image, draw: ImageDraw.ImageDraw, row: HueRow, y: float, zoom: int) -> None:
    write_text(draw, row.title, MARGIN, y, TITLE, NAMES, INK, zoom)
    below = y + 1.3 * TITLE + 4
    x = float(MARGIN)
    for share, color in zip(row.shares, STEPS, strict=True):
        if share > 0:
            draw.rectangle((round(x * zoom), round(below * zoom), round((x + share * NAMES) * zoom) - 1,
                            round((below + SHARE) * zoom)), color)  # fmt: skip
        x += share * NAMES
    below += SHARE + 6
    for fact in (f"{100 * row.shares[2]:.0f} % selective for color", *row.facts):
        write_text(draw, fact, MARGIN, below, TICK, NAMES, SOFT, zoom)
        below += text_height(fact, TICK, NAMES, zoom)
    left = MARGIN + NAMES + 18
    page.paste(rose(row.hues, ROSE * zoom, row.before), (round(left * zoom), round(y * zoom)))
    left += ROSE + 18
    for picture, name in zip(row.pictures, row.names, strict=True):
        _tile(page, draw, picture, name, left, y, zoom)
        left += TILE + GAP


def _tile(page: Image.Image, draw: ImageDraw.ImageDraw, picture: Any, name: str, x: float, y: float, zoom: int) -> None:
    pixels = as_bytes(picture)
    scale = TILE * zoom / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    how = Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC
    place = (round(x * zoom) + (TILE * zoom - size[0]) // 2, round(y * zoom) + (TILE * zoom - size[1]) // 2)
    page.paste(Image.fromarray(pixels).resize(size, how), place)
    draw.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), outline=LINE, width=1)
    write_text(draw, name, x, y + TILE + 3, TICK - 1, TILE + GAP, SOFT, zoom)


def rose(hues: Sequence[float], side: int, before: Sequence[float] = ()) -> Image.Image:
    """Shares of hues as sectors around a circle, red to the right and then against the clock; areas are shares.

    Those to compare with are outlines. The largest reaches the rim.
    """
    wide = side * SHARP
    picture = Image.new("RGB", (wide, wide), PAPER)
    draw = ImageDraw.Draw(picture)
    top = max([*hues, *before], default=0.0) if any(hues) else 0.0
    draw.ellipse((0, 0, wide - 1, wide - 1), outline=LINE, width=SHARP)
    if not top:
        draw.line((wide * 0.3, wide / 2, wide * 0.7, wide / 2), LINE, SHARP)
    for shares, outlined in ((hues, False), (before, True)):
        for k, share in enumerate(shares if top else ()):
            radius, step = wide / 2 * math.sqrt(share / top), 360 / len(shares)
            box = (wide / 2 - radius, wide / 2 - radius, wide / 2 + radius, wide / 2 + radius)
            ends = -(k + 0.5) * step, -(k - 0.5) * step
            if outlined and radius > 1:
                draw.arc(box, *ends, INK, SHARP + 2)
            elif radius > 1:
                draw.pieslice(box, *ends, _color(k / len(shares)), PAPER, SHARP)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _color(hue: float) -> tuple[int, int, int]:
    """A color of this hue, 0..1 from red on, of medium lightness and chroma."""
    red, green, blue = np.rint(255 * np.array(colorsys.hls_to_rgb(hue, 0.5, 0.72))).astype(int).tolist()
    return red, green, blue
