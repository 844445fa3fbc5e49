"""Many maps of one picture on one sheet, in groups, all tiles of one size: as PNG for a slide and as a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show import html
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
from convoscope.show.overlay import as_bytes, limit, overlay

WIDTH, GAP, ROW_GAP = 150, 14, 22  # points: a tile, between two, between rows
HEADING, NAME, SMALL = 13.5, 12, 10.5
LEGEND = "Each map has a color scale of its own; its strongest color stands for the number given below it."


@dataclass(frozen=True)
class Tile:
    """One map (h, w) of the sheet's picture, with what it cost and whether it adds up."""

    title: str
    values: Any
    signed: bool
    group: str
    unit: str = ""
    cost: str = ""
    check: str = ""
    mark: html.Mark = ""
    about: Sequence[str] = ()

    @property
    def scale(self) -> str:
        """What the strongest color stands for."""
        top = limit(self.values)
        return f"{'±' if self.signed else ''}{number(top)} {self.unit}" if top else "zero everywhere"


@dataclass(frozen=True)
class Sheet:
    """One picture (H, W, 3), what is explained of it, and the maps; `left_out` names what has no map, with the reason."""

    title: str
    picture: Any
    tiles: Sequence[Tile]
    facts: Sequence[str] = ()
    left_out: Sequence[tuple[str, str]] = ()


# ---- PNG


def figure(sheet: Sheet, columns: int | None = None, zoom: int = 2) -> Image.Image:
    """The sheet as one picture, `columns` tiles wide; one point is `zoom` pixels."""
    columns = columns or max(5, min(10, round((2.4 * len(sheet.tiles)) ** 0.5)))
    across = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    rows = [list(row) for row in _rows(sheet.tiles, columns)]
    tall = WIDTH * np.shape(sheet.picture)[0] / np.shape(sheet.picture)[1]
    parts = [_row_heights(row, tall, zoom) for row in rows]
    head = _head(None, sheet, across, zoom)
    missing = _left_out(sheet)
    foot = ROW_GAP + text_height(missing, SMALL, across - 2 * MARGIN, zoom) if missing else 0
    down = 2 * MARGIN + head + sum(ROW_GAP + sum(p) for p in parts) + foot
    page = Image.new("RGB", (across * zoom, round(down * zoom)), PAPER)
    _head(page, sheet, across, zoom)
    y = MARGIN + head
    for row, heights in zip(rows, parts, strict=True):
        y += ROW_GAP
        _draw_row(page, sheet, row, y, heights, tall, zoom)
        y += sum(heights)
    if missing:
        write_text(ImageDraw.Draw(page), missing, MARGIN, y + ROW_GAP, SMALL, across - 2 * MARGIN, SOFT, zoom)
    return page


Cell = tuple[int, str, Tile]  # column, heading that starts here (or nothing), tile


def _rows(tiles: Sequence[Tile], columns: int) -> Iterator[list[Cell]]:
    """Groups one after the other: small ones share a row, and one is torn only if no row could hold it."""
    row: list[Cell] = []
    for group, members in groupby(tiles, lambda t: t.group):
        found = list(members)
        if row and len(row) + len(found) > columns and (len(found) <= columns or len(row) + 1 >= columns):
            yield row
            row = []
        for i, tile in enumerate(found):
            if len(row) == columns:
                yield row
                row = []
            row.append((len(row), group if i == 0 else f"{group}, continued" if not row else "", tile))
    if row:
        yield row


def _span(row: list[Cell], column: int) -> int:
    """How many tiles the heading at a column has to itself."""
    rest = [heading for c, heading, _ in row if c > column]
    return 1 + next((i for i, heading in enumerate(rest) if heading), len(rest))


def _row_heights(row: list[Cell], tall: float, zoom: int) -> tuple[float, float, float, float]:
    """Heights in points of headings, names, pictures and captions."""
    headings = [text_height(h, HEADING, _wide(_span(row, c)), zoom) for c, h, _ in row if h]
    names = max(text_height(t.title, NAME, WIDTH, zoom) for _, _, t in row)
    below = max(sum(text_height(line, SMALL, WIDTH, zoom) for line in _captions(t)) for _, _, t in row)
    return (max(headings) + 8 if headings else 0), names + 4, tall, below + 5


def _wide(tiles: int) -> float:
    return tiles * WIDTH + (tiles - 1) * GAP


def _captions(tile: Tile) -> list[str]:
    return [text for text in (tile.cost, tile.check, tile.scale) if text]


def _draw_row(
    page: Image.Image, sheet: Sheet, row: list[Cell], y: float, heights: Sequence[float], tall: float, zoom: int
) -> None:
    draw = ImageDraw.Draw(page)
    for column, heading, tile in row:
        x = MARGIN + column * (WIDTH + GAP)
        if heading:
            wide = _wide(_span(row, column))
            draw.line((x * zoom, (y - 6) * zoom, (x + wide) * zoom, (y - 6) * zoom), fill=LINE, width=zoom)
            write_text(draw, heading, x, y, HEADING, wide, SOFT, zoom)
        top = y + heights[0] + heights[1]
        write_text(draw, tile.title, x, top - 4 - text_height(tile.title, NAME, WIDTH, zoom), NAME, WIDTH, INK, zoom)
        _paste(page, _laid(sheet, tile), x, top, tall, zoom)
        below = top + heights[2] + 5
        for line in _captions(tile):
            write_text(draw, line, x, below, SMALL, WIDTH, SOFT, zoom)
            below += text_height(line, SMALL, WIDTH, zoom)


def _paste(page: Image.Image, pixels: Any, x: float, y: float, tall: float, zoom: int) -> None:
    size = (WIDTH * zoom, round(tall * zoom))
    place = (round(x * zoom), round(y * zoom))
    page.paste(Image.fromarray(as_bytes(pixels)).resize(size, Image.Resampling.LANCZOS), place)
    ImageDraw.Draw(page).rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), outline=LINE, width=1)


def _laid(sheet: Sheet, tile: Tile) -> np.ndarray:
    return overlay(tile.values, sheet.picture, limit=limit(tile.values), signed=tile.signed)


def _head(page: Image.Image | None, sheet: Sheet, across: float, zoom: int) -> float:
    """Draws the picture, the title, the facts and the legend, where there is a page; their height in points."""
    tall = WIDTH * np.shape(sheet.picture)[0] / np.shape(sheet.picture)[1]
    x, wide, y = MARGIN + WIDTH + 2 * GAP, across - 2 * MARGIN - WIDTH - 2 * GAP, float(MARGIN)
    draw = None if page is None else ImageDraw.Draw(page)
    for text, size, color in ((sheet.title, 22, INK), *((f, NAME, SOFT) for f in sheet.facts)):
        if draw is not None:
            write_text(draw, text, x, y, size, wide, color, zoom)
        y += text_height(text, size, wide, zoom) + (6 if size == 22 else 2)
    y += 12
    if page is not None and draw is not None:
        _paste(page, sheet.picture, MARGIN, MARGIN, tall, zoom)
        for i, (signed, ends) in enumerate(((True, ("negative", "0", "positive")), (False, ("0", "", "strongest")))):
            _legend(page, draw, x + i * 230, y, signed, ends, zoom)
        write_text(draw, LEGEND, x, y + 28, SMALL, wide, SOFT, zoom)
    return max(tall, y + 28 + text_height(LEGEND, SMALL, wide, zoom) - MARGIN)


def _legend(page: Image.Image, draw: Any, x: float, y: float, signed: bool, ends: Sequence[str], zoom: int) -> None:
    colors = bar_colors(Scale.of(1.0, signed))
    size = (200 * zoom, 9 * zoom)
    bar = np.repeat(colors[np.rint(np.linspace(0, len(colors) - 1, size[0])).astype(int)][None], size[1], axis=0)
    place = (round(x * zoom), round(y * zoom))
    page.paste(Image.fromarray(bar), place)
    draw.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), outline=LINE, width=1)
    for at, text in zip((0.0, 0.5, 1.0), ends, strict=True):
        left = x + 200 * at - at * text_width(text, SMALL, zoom)
        write_text(draw, text, left, y + 10, SMALL, 200, INK, zoom)


def _left_out(sheet: Sheet) -> str:
    return "Not shown: " + "; ".join(f"{name}: {reason}" for name, reason in sheet.left_out) if sheet.left_out else ""


# ---- page


def page(report: html.Report, sheets: Sequence[Sheet]) -> str:
    """One HTML document with all sheets under the head of the report; it needs no network and no other file."""
    return html.render(
        "sheet.html",
        report=report,
        sheets=[_sheet(sheet, f"s{i}") for i, sheet in enumerate(sheets, 1)],
        legend=LEGEND,
        ramps=[html.gradient(Scale.of(1.0, signed)) for signed in (True, False)],
        style=html.style("page.css", "sheet.css"),
    )


def _sheet(sheet: Sheet, anchor: str) -> dict[str, Any]:
    return {
        "anchor": anchor,
        "title": sheet.title,
        "facts": sheet.facts,
        "picture": html.webp(html.fitted(as_bytes(sheet.picture), 480, 300), 88),
        "groups": [
            {"title": group, "tiles": [_tile(sheet, t) for t in tiles]}
            for group, tiles in groupby(sheet.tiles, lambda t: t.group)
        ],
        "left_out": sheet.left_out,
    }


def _tile(sheet: Sheet, tile: Tile) -> dict[str, Any]:
    return {
        "title": tile.title,
        "source": html.webp(html.fitted(_laid(sheet, tile), 320, 300), 84),
        "alt": f"{tile.title}. {html.where(np.asarray(tile.values, np.float64), tile.signed)}",
        "cost": tile.cost,
        "check": tile.check,
        "mark": tile.mark,
        "scale": tile.scale,
        "about": tile.about,
    }
