"""Many small pictures in grids, in groups with headings: kernels, feature maps, patches. As PNG and as a page."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show import html
from convoscope.show.figure import (
    BAR,
    INK,
    MARGIN,
    PAPER,
    SOFT,
    Scale,
    bar_colors,
    text_height,
    text_width,
    write_text,
)
from convoscope.show.overlay import as_bytes

HEADING, NAME, TEXT, SMALL = 18, 13.5, 11.5, 9.5
BETWEEN, ROW = 14, 22  # points between two grids of a group, between rows of groups
SCALE, PICTURE = BAR + 3 + 1.3 * SMALL, 112  # points: a scale with its numbers, the picture beside the title
GROUND = "#eef0f2"  # behind pictures that do not fill their tile


@dataclass(frozen=True)
class Tile:
    """One picture (H, W, 3) or (H, W), uint8 or float in 0..1. `smooth` ones are enlarged smoothly, others pixel by pixel."""

    image: Any
    caption: str = ""
    smooth: bool = False


@dataclass(frozen=True)
class Grid:
    """Tiles in rows of `columns`, with a word above them."""

    tiles: Sequence[Tile]
    columns: int
    title: str = ""


@dataclass(frozen=True)
class Group:
    """Grids side by side under a heading."""

    title: str
    grids: Sequence[Grid]
    note: str = ""
    scale: Scale | None = None


@dataclass(frozen=True)
class Strip:
    """The groups, `across` of them in a row; tiles are `side` points wide and high. `picture` stands beside the title, `chart`,
    at two pixels to a point, below the groups."""

    title: str
    groups: Sequence[Group]
    about: Sequence[str] = ()
    scale: Scale | None = None
    across: int = 1
    side: int = 64
    gap: int = 3
    picture: Tile | None = None
    chart: Image.Image | None = None


# ---- PNG


def figure(strip: Strip, zoom: int = 2) -> Image.Image:
    """The strip as one picture; one point is `zoom` pixels."""
    if not strip.groups:
        raise ValueError("a strip of no pictures")
    wide = max(max(_width(g, strip) for g in strip.groups), 150.0)
    across = max(2 * MARGIN + strip.across * wide + (strip.across - 1) * 2 * BETWEEN, 480.0)
    rows = [strip.groups[i : i + strip.across] for i in range(0, len(strip.groups), strip.across)]
    heads = [max(_head(None, g, 0, 0, wide, zoom) for g in row) for row in rows]
    bodies = [max(_height(grid, strip) for g in row for grid in g.grids) for row in rows]
    top = _top(None, strip, across, zoom)
    down = 2 * MARGIN + top + sum(heads) + sum(bodies) + ROW * (len(rows) - 1)
    if strip.chart is not None:
        across, down = max(across, strip.chart.width / 2 + 2 * MARGIN), down + ROW + strip.chart.height / 2
    page = Image.new("RGB", (round(across * zoom), round(down * zoom)), PAPER)
    _top(page, strip, across, zoom)
    y = MARGIN + top
    for row, head, body in zip(rows, heads, bodies, strict=True):
        for i, group in enumerate(row):
            x = MARGIN + i * (wide + 2 * BETWEEN)
            _head(page, group, x, y, wide, zoom)
            for grid in group.grids:
                _grid(page, grid, strip, x, y + head, zoom)
                x += _across(grid, strip) + BETWEEN
        y += head + body + ROW
    if strip.chart is not None:
        shape = (strip.chart.width * zoom // 2, strip.chart.height * zoom // 2)
        page.paste(strip.chart.resize(shape), (MARGIN * zoom, round(y * zoom)))
    return page


def _across(grid: Grid, strip: Strip) -> float:
    return grid.columns * strip.side + (grid.columns - 1) * strip.gap


def _width(group: Group, strip: Strip) -> float:
    return sum(_across(g, strip) for g in group.grids) + (len(group.grids) - 1) * BETWEEN


def _lines(grid: Grid) -> int:
    return -(-len(grid.tiles) // grid.columns)


def _below(grid: Grid) -> float:
    return 1.3 * SMALL + 3 if any(t.caption for t in grid.tiles) else 0.0


def _height(grid: Grid, strip: Strip) -> float:
    title = 1.3 * TEXT + 3 if grid.title else 0.0
    return title + _lines(grid) * (strip.side + _below(grid)) + max(_lines(grid) - 1, 0) * strip.gap


def _top(page: Image.Image | None, strip: Strip, across: float, zoom: int) -> float:
    """Draws title, remarks, scale and picture; returns their height."""
    beside = PICTURE + BETWEEN if strip.picture is not None else 0
    wide, y = across - 2 * MARGIN - beside, 0.0
    draw = None if page is None else ImageDraw.Draw(page)
    parts = [(strip.title, HEADING, INK, 6)] if strip.title else []
    for text, size, ink, space in [*parts, *((line, TEXT, SOFT, 2) for line in strip.about)]:
        if draw is not None:
            write_text(draw, text, MARGIN, MARGIN + y, size, wide, ink, zoom)
        y += text_height(text, size, wide, zoom) + space
    if strip.scale is not None:
        if page is not None:
            _scale(page, strip.scale, MARGIN, MARGIN + y + 8, wide, zoom)
        y += 8 + SCALE
    if strip.picture is not None:
        if page is not None:
            _tile(page, strip.picture, across - MARGIN - PICTURE, MARGIN, PICTURE, zoom)
        y = max(y, PICTURE)
    return y + 14 if y else 0.0


def _scale(page: Image.Image, scale: Scale, x: float, y: float, across: float, zoom: int, wide: int = 200) -> None:
    draw, colors = ImageDraw.Draw(page), bar_colors(scale)
    colors = colors[np.rint(np.linspace(0, len(colors) - 1, wide * zoom)).astype(int)]
    page.paste(Image.fromarray(np.repeat(colors[None], BAR * zoom, axis=0)), (round(x * zoom), round(y * zoom)))
    for at, label in scale.ticks():
        left = x + at * (wide - text_width(label, SMALL, zoom))
        write_text(draw, label, left, y + BAR + 3, SMALL, wide, INK, zoom)
    write_text(draw, scale.unit, x + wide + 12, y - 2, SMALL, across - wide - 12, SOFT, zoom)


def _head(page: Image.Image | None, group: Group, x: float, y: float, wide: float, zoom: int) -> float:
    """Draws heading, remark and scale of a group; returns their height."""
    down, draw = 0.0, None if page is None else ImageDraw.Draw(page)
    for text, size, ink in ((group.title, NAME, INK), (group.note, SMALL + 1, SOFT)):
        if text:
            if draw is not None:
                write_text(draw, text, x, y + down, size, wide, ink, zoom)
            down += text_height(text, size, wide, zoom)
    if group.scale is not None:
        if page is not None:
            _scale(page, group.scale, x, y + down + 5, wide, zoom)
        down += 5 + SCALE
    return down + 5 if down else 0.0


def _grid(page: Image.Image, grid: Grid, strip: Strip, x: float, y: float, zoom: int) -> None:
    draw = ImageDraw.Draw(page)
    if grid.title:
        write_text(draw, grid.title, x, y, TEXT, _across(grid, strip), SOFT, zoom)
        y += 1.3 * TEXT + 3
    step = strip.side + strip.gap
    for i, tile in enumerate(grid.tiles):
        left, top = x + i % grid.columns * step, y + i // grid.columns * (step + _below(grid))
        _tile(page, tile, left, top, strip.side, zoom)
        text = _short(tile.caption, strip.side, zoom)
        write_text(draw, text, left, top + strip.side + 1, SMALL, 4 * strip.side, SOFT, zoom)


def _tile(page: Image.Image, tile: Tile, x: float, y: float, side: int, zoom: int) -> None:
    place, size = (round(x * zoom), round(y * zoom)), side * zoom
    pixels = as_bytes(tile.image)
    factor = size / max(pixels.shape[:2])
    shape = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    how = Image.Resampling.BICUBIC if tile.smooth or factor < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(pixels).resize(shape, how)
    if shape != (size, size):
        ImageDraw.Draw(page).rectangle((*place, place[0] + size - 1, place[1] + size - 1), fill=GROUND)
    page.paste(picture, (place[0] + (size - shape[0]) // 2, place[1] + (size - shape[1]) // 2))


def _short(text: str, wide: float, zoom: int) -> str:
    while text and text_width(text, SMALL, zoom) > wide + 1:
        text = text[:-1]
    return text


# ---- page


def page(strip: Strip, lede: str = "", command: str = "", least: int = 96, before: int | None = None) -> str:
    """The strip as a page that is complete in one file; `before` groups stand before the chart (default: all)."""
    picture = None if strip.picture is None else _source(strip.picture, 256)
    return html.render(
        "strip.html", title=strip.title, lede=lede, about=strip.about, groups=[_group(g, least) for g in strip.groups],
        scale=_legend(strip.scale), command=command, side=strip.side, gap=strip.gap, picture=picture,
        chart=None if strip.chart is None else _png(strip.chart),
        before=len(strip.groups) if before is None else before, style=html.style("page.css", "strip.css"),
    )  # fmt: skip


def _legend(scale: Scale | None) -> dict[str, Any] | None:
    if scale is None:
        return None
    return {"ramp": html.gradient(scale), "ticks": [label for _, label in scale.ticks()], "unit": scale.unit}


def _group(group: Group, least: int) -> dict[str, Any]:
    grids = [{"title": g.title, "columns": g.columns, "tiles": list(_tiles(g, least))} for g in group.grids]
    return {"title": group.title, "note": group.note, "grids": grids, "scale": _legend(group.scale)}


def _source(tile: Tile, least: int) -> str:
    pixels = as_bytes(tile.image)
    return html.webp(html.fitted(pixels, 256, least), 85) if tile.smooth else _png(pixels)


def _tiles(grid: Grid, least: int) -> Iterator[dict[str, Any]]:
    for tile in grid.tiles:
        yield {"source": _source(tile, least), "caption": tile.caption, "smooth": tile.smooth}


def _png(pixels: Any) -> str:
    """Without loss."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
