"""Scores of methods by several metrics: a point with its interval for each, one panel for each metric. As PNG and as a page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw

from convoscope.show import html
from convoscope.show.figure import INK, LINE, MARGIN, PAPER, SOFT, number, text_height, text_width, ticks, write_text

HEAD, TITLE, TEXT, SMALL = 18.0, 13.0, 11.5, 10.0
PANEL, ROW, GAP = 170.0, 21.0, 26.0  # points: the width of a panel, the height of a method, between two panels
STRONG, WEAK, FAINT = "#2f6fb7", "#9aa3af", "#eff0f2"
MOST = 5  # panels side by side


@dataclass(frozen=True)
class Point:
    """The mean of a method by a metric, its interval, and whether it differs from chance; NaN: no score."""

    mean: float
    low: float
    high: float
    sure: bool = True


@dataclass(frozen=True)
class Panel:
    """One metric: a point for each method, in their order. `null` is what random maps reach."""

    title: str
    note: str
    points: Sequence[Point]
    null: float = math.nan


@dataclass(frozen=True)
class Scores:
    """Panels over the same methods; those in `nulls` know nothing of the network."""

    title: str
    about: Sequence[str]
    methods: Sequence[str]
    panels: Sequence[Panel]
    nulls: Sequence[str] = ()


def figure(scores: Scores, zoom: int = 2) -> Image.Image:
    """The panels in rows, methods named at the left of each row; one point is `zoom` pixels."""
    names = max(text_width(m, TEXT, zoom) for m in scores.methods) + 14
    shelves = [scores.panels[i : i + MOST] for i in range(0, len(scores.panels), MOST)]
    wide = min(len(scores.panels), MOST)
    across = max(2 * MARGIN + names + wide * PANEL + (wide - 1) * GAP, 520.0)
    inside = across - 2 * MARGIN
    heads = [(scores.title, HEAD, INK, 6.0)] if scores.title else []
    heads += [(line, TEXT, SOFT, 3.0) for line in scores.about]
    tops = [max(_top(None, p, 0, 0, zoom) for p in shelf) for shelf in shelves]
    body = ROW * len(scores.methods) + 26
    down = 2 * MARGIN + sum(text_height(t, s, inside, zoom) + g for t, s, _, g in heads) + 10
    down += sum(top + body for top in tops) + 18 * (len(shelves) - 1)
    page = Image.new("RGB", (round(across * zoom), round(down * zoom)), PAPER)
    draw, y = ImageDraw.Draw(page), float(MARGIN)
    for text, size, ink, space in heads:
        write_text(draw, text, MARGIN, y, size, inside, ink, zoom)
        y += text_height(text, size, inside, zoom) + space
    y += 10
    for shelf, top in zip(shelves, tops, strict=True):
        for row, name in enumerate(scores.methods):
            ink = SOFT if name in scores.nulls else INK
            write_text(draw, name, MARGIN, y + top + row * ROW + (ROW - 1.3 * TEXT) / 2, TEXT, names, ink, zoom)
        for k, panel in enumerate(shelf):
            x = MARGIN + names + k * (PANEL + GAP)
            _top(draw, panel, x, y, zoom)
            _panel(draw, panel, [m in scores.nulls for m in scores.methods], x, y + top, zoom)
        y += top + body + 18
    return page


def _top(draw: Any, panel: Panel, x: float, y: float, zoom: int) -> float:
    down = 0.0
    for text, size, ink in ((panel.title, TITLE, INK), (panel.note, SMALL, SOFT)):
        if draw is not None:
            write_text(draw, text, x, y + down, size, PANEL, ink, zoom)
        down += text_height(text, size, PANEL, zoom) + 2
    return down + 4


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, nulls: Sequence[bool], x: float, y: float, zoom: int) -> None:
    marks = ticks([v for p in panel.points for v in (p.mean, p.low, p.high)])
    low, high = marks[0], marks[-1]

    def at(value: float) -> float:
        return (x + (min(max(value, low), high) - low) / (high - low) * PANEL) * zoom

    end = y + ROW * len(panel.points)
    draw.line((x * zoom, end * zoom, (x + PANEL) * zoom, end * zoom), fill=LINE, width=zoom)
    for value in marks:
        text = number(value)
        draw.line((at(value), y * zoom, at(value), end * zoom), fill=FAINT, width=zoom)
        write_text(draw, text, at(value) / zoom - text_width(text, SMALL, zoom) / 2, end + 4, SMALL, PANEL, SOFT, zoom)
    if not math.isnan(panel.null):
        for step in range(int(y * zoom), int(end * zoom), 6 * zoom):
            draw.line((at(panel.null), step, at(panel.null), step + 3 * zoom), fill=WEAK, width=zoom)
    for row, (point, null) in enumerate(zip(panel.points, nulls, strict=True)):
        middle = (y + (row + 0.5) * ROW) * zoom
        if math.isnan(point.mean):
            write_text(draw, "no score", x, y + row * ROW + (ROW - 1.3 * SMALL) / 2, SMALL, PANEL, WEAK, zoom)
            continue
        color = WEAK if null or not point.sure else STRONG
        if not math.isnan(point.low):
            draw.line((at(point.low), middle, at(point.high), middle), fill=color, width=2 * zoom)
        radius = 4 * zoom
        box = (at(point.mean) - radius, middle - radius, at(point.mean) + radius, middle + radius)
        draw.ellipse(box, fill=color if point.sure else PAPER, outline=color, width=zoom + 1)


def page(
    scores: Scores, rows: Sequence[Sequence[str]], header: Sequence[str], notes: Sequence[str] = (), command: str = ""
) -> str:
    """The panels as a picture with the table of their numbers, complete in one file."""
    import numpy as np

    shown = html.webp(np.asarray(figure(replace(scores, title="", about=()))), 92)  # the page says it
    return html.render(
        "scores.html", title=scores.title, about=scores.about, figure=shown, header=header, rows=rows, notes=notes,
        right=[i > 1 for i in range(len(header))], command=command, style=html.style("page.css", "scores.css"),
    )  # fmt: skip
