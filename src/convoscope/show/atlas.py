"""Atlases: pictures on a grid, as large as they count, framed by an effect; as PNG and as a page to explore."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show import html
from convoscope.show.colormap import diverging
from convoscope.show.figure import (
    INK,
    LINE,
    MARGIN,
    PAPER,
    SOFT,
    Scale,
    bar_colors,
    number,
    text_height,
    text_width,
    write_text,
)
from convoscope.show.overlay import as_bytes, indices, limit

CELL, FRAME = 44, 2.5  # points: a cell, the frame of an effect
LEAST = 0.66  # side of the picture of a cell with hardly anything in it, as a share of the cell
NARROWEST = 560  # points


@dataclass(frozen=True)
class Tile:
    """One cell: its icon (H, W, 3), exemplars of one size, how many activations, and what is known of them.

    `name` is the commonest class with its `share`; `effect` colors the frame.
    """

    row: int
    column: int
    icon: Any
    exemplars: Sequence[Any]
    count: int
    name: str = ""
    share: float = 0.0
    effect: float | None = None


@dataclass(frozen=True)
class Sheet:
    """An atlas: `target` is what the effects are on, in `unit`."""

    title: str
    facts: Sequence[str]
    tiles: Sequence[Tile]
    target: str = ""
    unit: str = ""


def draw(sheet: Sheet, zoom: int = 2) -> Image.Image:
    """The atlas on white paper; one point is `zoom` pixels."""
    rows, columns = _extent(sheet.tiles)
    across = max(NARROWEST, columns * CELL + 2 * MARGIN)
    scale = _scale(sheet)
    head = text_height(sheet.title, 20, across - 2 * MARGIN, zoom) + 6
    head += sum(text_height(f, 12.5, across - 2 * MARGIN, zoom) for f in sheet.facts) + 14
    foot = 62 if scale else 0
    page = Image.new("RGB", (round(across * zoom), round((2 * MARGIN + head + rows * CELL + foot) * zoom)), PAPER)
    pen = ImageDraw.Draw(page)
    y = float(MARGIN)
    for text, size, color in ((sheet.title, 20, INK), *((f, 12.5, SOFT) for f in sheet.facts)):
        write_text(pen, text, MARGIN, y, size, across - 2 * MARGIN, color, zoom)
        y += text_height(text, size, across - 2 * MARGIN, zoom) + (6 if size == 20 else 0)
    left, top = (across - columns * CELL) / 2, MARGIN + head
    first = min(t.row for t in sheet.tiles), min(t.column for t in sheet.tiles)
    for tile, share, color in zip(sheet.tiles, _sizes(sheet.tiles), _colors(sheet), strict=True):
        side = CELL * share
        x = left + (tile.column - first[1] + 0.5) * CELL - side / 2
        _paste(page, pen, tile.icon, x, top + (tile.row - first[0] + 0.5) * CELL - side / 2, side, color, zoom)
    if scale:
        _legend(page, pen, scale, sheet.target, MARGIN, top + rows * CELL + 14, zoom)
    return page


def _paste(page: Image.Image, pen: Any, icon: Any, x: float, y: float, side: float, color: Any, zoom: int) -> None:
    place, size = (round(x * zoom), round(y * zoom)), max(1, round(side * zoom))
    page.paste(Image.fromarray(as_bytes(icon)).resize((size, size), Image.Resampling.LANCZOS), place)
    if color is not None:
        box = (*place, place[0] + size - 1, place[1] + size - 1)
        pen.rectangle(box, outline=tuple(color), width=max(1, round(FRAME * zoom)))


def _legend(page: Image.Image, pen: Any, scale: Scale, target: str, x: float, y: float, zoom: int) -> None:
    wide = 220
    colors = bar_colors(scale)
    colors = colors[np.rint(np.linspace(0, len(colors) - 1, wide * zoom)).astype(int)]
    place = (round(x * zoom), round(y * zoom))
    page.paste(Image.fromarray(np.repeat(colors[None], 9 * zoom, axis=0)), place)
    pen.rectangle((*place, place[0] + wide * zoom - 1, place[1] + 9 * zoom - 1), outline=LINE, width=1)
    for at, text in scale.ticks():
        write_text(pen, text, x + at * (wide - text_width(text, 11.5, zoom)), y + 12, 11.5, wide, INK, zoom)
    text = f"what one position of such activations adds to {target}" + (f", in units of the {scale.unit}" if scale.unit else "")
    write_text(pen, text, x, y + 28, 11.5, NARROWEST - 2 * MARGIN, SOFT, zoom)


def _extent(tiles: Sequence[Tile]) -> tuple[int, int]:
    """Rows and columns from the first to the last cell."""
    if not tiles:
        raise ValueError("an atlas of no cells")
    rows, columns = [t.row for t in tiles], [t.column for t in tiles]
    return max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


def _sizes(tiles: Sequence[Tile]) -> list[float]:
    """The side of each picture as a share of its cell: its area grows with the number of activations."""
    most = max(t.count for t in tiles)
    return [0.97 * (LEAST + (1 - LEAST) * (t.count / most) ** 0.5) for t in tiles]


def _scale(sheet: Sheet) -> Scale | None:
    effects = [t.effect for t in sheet.tiles if t.effect is not None]
    return Scale.of(limit(np.array([effects])), True, sheet.unit) if effects else None


def _colors(sheet: Sheet) -> list[Any]:
    scale = _scale(sheet)
    if scale is None:
        return [None] * len(sheet.tiles)
    values = np.array([[t.effect or 0.0 for t in sheet.tiles]])
    return list(diverging()[indices(values, limit=scale.high, signed=True)[0]])


# ---- page


def page(sheet: Sheet) -> str:
    """One HTML document that needs no other file: the map, and for the chosen cell its exemplars and what is known of it."""
    rows, columns = _extent(sheet.tiles)
    first = min(t.row for t in sheet.tiles), min(t.column for t in sheet.tiles)
    parts = zip(sheet.tiles, _sizes(sheet.tiles), _colors(sheet), strict=True)
    scale = _scale(sheet)
    return html.render(
        "atlas.html",
        sheet=sheet,
        rows=rows,
        columns=columns,
        tiles=[_tile(t, share, color, first, sheet.target) for t, share, color in parts],
        ramp=html.gradient(scale) if scale else "",
        ticks=[text.replace("-", "\N{MINUS SIGN}") for _, text in scale.ticks()] if scale else [],
        style=html.style("page.css", "atlas.css"),
        script=html.style("atlas.js"),
    )


def _tile(tile: Tile, share: float, color: Any, first: tuple[int, int], target: str) -> dict[str, Any]:
    strip = [as_bytes(e) for e in tile.exemplars]
    icon = as_bytes(tile.icon)
    own = not any(icon is e or np.array_equal(icon, e) for e in strip[:1])
    text = f"{tile.count:,} activation{'' if tile.count == 1 else 's'}"
    text += f"; {tile.share:.0%} from {tile.name}" if tile.name else ""
    text += f"; {number(tile.effect)} to {target}".replace("-", "\N{MINUS SIGN}", 1) if tile.effect is not None else ""
    return {
        "row": tile.row - first[0] + 1,
        "column": tile.column - first[1] + 1,
        "strip": html.webp(np.concatenate(strip, 1), 80),
        "count": len(strip),
        "icon": html.webp(icon, 80) if own else "",
        "side": f"{100 * share:.0f}",
        "color": "" if color is None else "#{:02x}{:02x}{:02x}".format(*color),
        "text": text,
    }
