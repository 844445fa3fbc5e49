"""Methods against tasks of which the answer is known: a bar with its interval for each. As a page and as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from convoscope.show import html
from convoscope.show.figure import INK, LINE, MARGIN, PAPER, SOFT, text_height, text_width, write_text

LOW, HIGH = -0.3, 1.0  # the ends of every bar; what lies beyond is cut off there
HEAD, TEXT, SMALL = 18.0, 11.0, 9.5
ROW, WIDE, NARROW, GAP = 19.0, 190.0, 66.0, 12.0  # points: a row, the bar over all tasks, the bar of a task, between bars
GOOD, UNSURE, BAD, KNOWN = "#6fa5e0", "#cfdff2", "#e59a52", "#b4bac3"


@dataclass(frozen=True)
class Bar:
    """A skill, 0 for chance and 1 for the right answer, with its interval; `sure`: it is above chance. NaN: none.

    `note` is told when one points at it: the number behind it, or why there is none.
    """

    skill: float
    low: float = math.nan
    high: float = math.nan
    sure: bool = True
    note: str = ""

    @property
    def text(self) -> str:
        """The skill with two digits."""
        return "\N{EN DASH}" if math.isnan(self.skill) else f"{self.skill:z.2f}".replace("-", "\N{MINUS SIGN}")

    @property
    def kind(self) -> str:
        """Which color it has."""
        return "bad" if self.skill < 0 else "good" if self.sure else "unsure"

    def at(self, value: float, width: float = 100.0) -> float:
        """Where a value is on a bar of this width."""
        return round((min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW) * width, 2)


@dataclass(frozen=True)
class Row:
    """One method: its rank, its mean over tasks, and each task. `control`: it is none, and has no rank."""

    name: str
    title: str
    rank: str
    mean: Bar
    bars: Sequence[Bar]
    control: bool = False
    note: str = ""


@dataclass(frozen=True)
class Asked:
    """One task: what it asks, why its truth is exact, what the number is, and facts about this run of it."""

    name: str
    title: str
    about: str
    exact: str
    measures: str
    facts: Sequence[tuple[str, str]] = ()
    refused: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Benchmark:
    """All of it. `metrics` are (name, bar, note) of metrics that need no truth, by how well they agree with it."""

    title: str
    lede: str
    tasks: Sequence[Asked]
    rows: Sequence[Row]
    metrics: Sequence[tuple[str, Bar, str]] = ()
    notes: Sequence[str] = ()
    command: str = ""


def page(found: Benchmark) -> str:
    """One page that loads nothing."""
    return html.render(
        "bench.html", title=found.title, found=found, zero=Bar(0.0).at(0.0), command=found.command,
        style=html.style("page.css", "bench.css"),
    )  # fmt: skip


def figure(found: Benchmark, zoom: int = 2) -> Image.Image:
    """The table of bars; one point is `zoom` pixels."""
    names = max(text_width(r.title, TEXT, zoom) for r in found.rows) + 12
    ranks = 26.0
    across = 2 * MARGIN + ranks + names + WIDE + 50 + len(found.tasks) * (NARROW + 30 + GAP)
    inside = across - 2 * MARGIN
    titles = [text_height(t.title, SMALL, NARROW + 26, zoom) for t in found.tasks]
    head = text_height(found.title, HEAD, inside, zoom) + text_height(found.lede, TEXT, inside, zoom) + 22
    top = MARGIN + head + max([*titles, 14.0]) + 6
    page = Image.new("RGB", (round(across * zoom), round((top + ROW * len(found.rows) + MARGIN) * zoom)), PAPER)
    draw = ImageDraw.Draw(page)
    write_text(draw, found.title, MARGIN, MARGIN, HEAD, inside, INK, zoom)
    write_text(draw, found.lede, MARGIN, MARGIN + text_height(found.title, HEAD, inside, zoom) + 6, TEXT, inside, SOFT, zoom)
    left = MARGIN + ranks + names
    lefts = [left, *(left + WIDE + 50 + k * (NARROW + 30 + GAP) for k in range(len(found.tasks)))]
    for x, title in zip(lefts, ("Mean skill over tasks", *(t.title for t in found.tasks)), strict=True):
        width = WIDE if x == left else NARROW + 26
        write_text(draw, title, x, top - 6 - text_height(title, SMALL, width, zoom), SMALL, width, SOFT, zoom)
    for k, row in enumerate(found.rows):
        y = top + k * ROW
        ink = SOFT if row.control else INK
        if k % 2 == 0:
            draw.rectangle((MARGIN * zoom / 2, y * zoom, page.width - MARGIN * zoom / 2, (y + ROW) * zoom), fill="#f7f7f5")
        write_text(draw, row.rank, MARGIN, y + 2.5, TEXT, ranks, SOFT, zoom)
        write_text(draw, row.title, MARGIN + ranks, y + 2.5, TEXT, names, ink, zoom)
        for x, bar in zip(lefts, (row.mean, *row.bars), strict=True):
            _bar(draw, bar, x, y, WIDE if x == left else NARROW, row.control, zoom)
    return page


def _bar(draw: ImageDraw.ImageDraw, bar: Bar, x: float, y: float, width: float, control: bool, zoom: int) -> None:
    def at(value: float) -> float:
        return (x + bar.at(value, width)) * zoom

    middle = (y + ROW / 2) * zoom
    draw.line((at(0), (y + 1) * zoom, at(0), (y + ROW - 1) * zoom), fill=LINE, width=zoom)
    write_text(draw, bar.text, x + width + 5, y + 3.5, SMALL, 40, SOFT if control or math.isnan(bar.skill) else INK, zoom)
    if math.isnan(bar.skill):
        return
    color = KNOWN if control else {"good": GOOD, "unsure": UNSURE, "bad": BAD}[bar.kind]
    ends = sorted((at(0), at(bar.skill)))
    draw.rectangle((ends[0], middle - 4 * zoom, ends[1], middle + 4 * zoom), fill=color)
    if not math.isnan(bar.low):
        draw.line((at(bar.low), middle, at(bar.high), middle), fill=INK, width=zoom)
        for end in (bar.low, bar.high):
            draw.line((at(end), middle - 2 * zoom, at(end), middle + 2 * zoom), fill=INK, width=zoom)


def alt(row: Row, tasks: Sequence[Any]) -> str:
    """A row in words, for people who cannot see it."""
    return f"{row.title}: {row.mean.text}; " + ", ".join(f"{t.title} {b.text}" for t, b in zip(tasks, row.bars, strict=True))
