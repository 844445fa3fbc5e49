"""Concepts as rows of pictures: what shows them most, and where they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show.figure import INK, LINE, MARGIN, PAPER, SOFT, text_height, write_text
from convoscope.show.overlay import as_bytes, limit, overlay

SIDE, GAP, ROW_GAP, NAMES = 84, 6, 18, 160  # points: a picture, between two, between rows, the column of names


@dataclass(frozen=True)
class Row:
    """One concept: its title, a line about it, crops (H, W, 3), and pairs of a picture and the map (h, w) over it."""

    title: str
    note: str
    crops: Sequence[Any]
    maps: Sequence[tuple[Any, Any]] = ()


def draw(title: str, facts: Sequence[str], rows: Sequence[Row], zoom: int = 2) -> Image.Image:
    """All rows on white paper; one point is `zoom` pixels. A concept's maps share one scale."""
    if not rows:
        raise ValueError("a figure of no concepts")
    crops, maps = (max(len(getattr(r, name)) for r in rows) for name in ("crops", "maps"))
    across = 2 * MARGIN + NAMES + (crops + maps) * (SIDE + GAP) + (2 * GAP if maps else 0)
    lines = [(title, 20, INK), *((f, 12.5, SOFT) for f in facts)]
    head = sum(text_height(t, s, across - 2 * MARGIN, zoom) for t, s, _ in lines) + 34
    down = 2 * MARGIN + head + len(rows) * (SIDE + ROW_GAP) - ROW_GAP
    page = Image.new("RGB", (round(across * zoom), round(down * zoom)), PAPER)
    pen = ImageDraw.Draw(page)
    y = float(MARGIN)
    for text, size, color in lines:
        write_text(pen, text, MARGIN, y, size, across - 2 * MARGIN, color, zoom)
        y += text_height(text, size, across - 2 * MARGIN, zoom) + (4 if size == 20 else 0)
    second = MARGIN + NAMES + crops * (SIDE + GAP) + 2 * GAP
    write_text(pen, "parts of pictures with most of it", MARGIN + NAMES, y + 8, 11.5, 400, SOFT, zoom)
    if maps:
        write_text(pen, "where it is in whole pictures", second, y + 8, 11.5, 400, SOFT, zoom)
    y = MARGIN + head
    for row in rows:
        _row(page, pen, row, y, second, zoom)
        y += SIDE + ROW_GAP
    return page


def _row(page: Image.Image, pen: Any, row: Row, y: float, second: float, zoom: int) -> None:
    write_text(pen, row.title, MARGIN, y + 4, 15, NAMES - 12, INK, zoom)
    write_text(pen, row.note, MARGIN, y + 26, 12, NAMES - 12, SOFT, zoom)
    for k, crop in enumerate(row.crops):
        _paste(page, pen, as_bytes(crop), MARGIN + NAMES + k * (SIDE + GAP), y, zoom)
    top = limit(np.concatenate([m for _, m in row.maps])) if row.maps else 0.0
    for k, (picture, values) in enumerate(row.maps):
        laid = overlay(values, picture, limit=top, signed=False)
        _paste(page, pen, laid, second + k * (SIDE + GAP), y, zoom)


def _paste(page: Image.Image, pen: Any, pixels: np.ndarray, x: float, y: float, zoom: int) -> None:
    height, width = pixels.shape[:2]
    scale = SIDE * zoom / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    place = (round(x * zoom), round(y * zoom))
    page.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), place)
    pen.rectangle((*place, place[0] + size[0] - 1, place[1] + size[1] - 1), outline=LINE, width=1)
