"""Curves over steps, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from convoscope.show.figure import INK, LINE, PAPER, SOFT, number, text_width, write_text

COLORS = ("#2f6fb7", "#e08214", "#3a9d5d", "#c8476b", "#8a63b8")
TEXT, LEFT, RIGHT, TOP, BELOW = 10.5, 46, 12, 26, 34  # points


@dataclass(frozen=True)
class Line:
    """One curve; `x` rises."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def chart(
    lines: Sequence[Line], *, x: str = "", y: str = "", low: float | None = None, high: float | None = None, width: int = 480,
    height: int = 190, zoom: int = 2,
) -> Image.Image:  # fmt: skip
    """The curves over each other with axes and names, on white paper; `x`, `y` name the axes, `low`, `high` end the second.

    Width and height in points, of `zoom` pixels each.
    """
    if not lines or not all(len(line.x) == len(line.y) > 0 for line in lines):
        raise ValueError("a chart of no curves, or of a curve without as many x as y")
    ends = (min(min(line.x) for line in lines), max(max(line.x) for line in lines))
    values = [v for line in lines for v in line.y]
    bottom, top = min(values) if low is None else low, max(values) if high is None else high
    top = top if top > bottom else bottom + 1
    page = Image.new("RGB", (width * zoom, height * zoom), PAPER)
    draw = ImageDraw.Draw(page)
    wide, tall = width - LEFT - RIGHT, height - TOP - BELOW

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
        up = min(max((b - bottom) / (top - bottom), 0.0), 1.0)
        return (LEFT + across * wide) * zoom, (TOP + (1 - up) * tall) * zoom

    for k in range(5):
        value = bottom + (top - bottom) * k / 4
        row = place(ends[0], value)[1]
        draw.line((LEFT * zoom, row, (LEFT + wide) * zoom, row), fill=LINE, width=max(1, zoom // 2))
        label = number(round(value, 12))
        write_text(draw, label, LEFT - 6 - text_width(label, TEXT, zoom), row / zoom - 0.65 * TEXT, TEXT, 99, SOFT, zoom)
    for value in dict.fromkeys((ends[0], round((ends[0] + ends[1]) / 2), ends[1])):
        label = number(value) if value < 1000 else f"{value:,.0f}"
        across = place(value, bottom)[0] / zoom - text_width(label, TEXT, zoom) / 2
        write_text(draw, label, min(across, width - text_width(label, TEXT, zoom) - 2), TOP + tall + 4, TEXT, 99, SOFT, zoom)
    write_text(draw, x, LEFT + (wide - text_width(x, TEXT, zoom)) / 2, height - 1.4 * TEXT, TEXT, 400, SOFT, zoom)
    _names(draw, lines, y, zoom)
    for line, color in reversed(list(zip(lines, _colors(len(lines)), strict=True))):
        points = [place(a, b) for a, b in zip(line.x, line.y, strict=True)]
        draw.line(points, fill=color, width=round(1.5 * zoom), joint="curve")
        if len(points) == 1:
            draw.ellipse([c + d for d in (-2 * zoom, 2 * zoom) for c in points[0]], fill=color)
    return page


def _colors(count: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(count)]


def _names(draw: ImageDraw.ImageDraw, lines: Sequence[Line], y: str, zoom: int) -> None:
    """The name of the second axis, and of each curve beside its color."""
    write_text(draw, y, 4, 4, TEXT, 200, SOFT, zoom)
    across = max(LEFT, 4 + text_width(y, TEXT, zoom) + 24)
    for line, color in zip(lines, _colors(len(lines)), strict=True):
        draw.rectangle((across * zoom, 9 * zoom, (across + 14) * zoom, 11 * zoom), fill=color)
        write_text(draw, line.label, across + 19, 4, TEXT, 200, INK, zoom)
        across += 19 + text_width(line.label, TEXT, zoom) + 18
