"""Counts by category as colored bars: stacked, one line for each layer, and one bar for each concept."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from convoscope.show.figure import INK, LINE, MARGIN, PAPER, SOFT, text_height, text_width, write_text

COLORS = {
    "object": "#2f6fb7", "part": "#e08214", "scene": "#3a9d5d", "material": "#8a63b8", "texture": "#c8476b", "color": "#a8912a",
}  # fmt: skip
OTHERS = ("#3aa6a6", "#7a5c43", "#6b7280", "#d27fb5")
HEAD, NAME, SMALL = 18.0, 12.5, 10.5
TALL, GAP, LABEL, NOTE, WIDE = 22, 9, 150, 300, 560  # points: a bar, between two, names, remarks, the longest bar
COLUMN, HIGH = 15, 90  # points: a concept of a histogram, its tallest bar


@dataclass(frozen=True)
class Bar:
    """One line of stacked parts (category, count), with a remark behind it."""

    label: str
    parts: Sequence[tuple[str, int]]
    note: str = ""

    @property
    def total(self) -> int:
        """The length of the line."""
        return sum(count for _, count in self.parts)


@dataclass(frozen=True)
class Histogram:
    """Concepts (label, category, count) of one layer."""

    heading: str
    rows: Sequence[tuple[str, str, int]]


def colors_of(categories: Sequence[str]) -> dict[str, str]:
    """A color for each category, the same wherever it occurs."""
    others = [c for c in categories if c not in COLORS]
    return {c: COLORS.get(c) or OTHERS[others.index(c) % len(OTHERS)] for c in categories}


def chart(
    title: str, subtitle: str, bars: Sequence[Bar], histograms: Sequence[Histogram], categories: Sequence[str], zoom: int = 2
) -> Image.Image:
    """Stacked bars below each other, and histograms below them, on white paper; one point is `zoom` pixels."""
    across = 2 * MARGIN + LABEL + WIDE + NOTE
    heads = [(t, size, ink, space) for t, size, ink, space in ((title, HEAD, INK, 4), (subtitle, NAME, SOFT, 14)) if t]
    shelves = _shelves([p for h in histograms for p in _pieces(h, across - 2 * MARGIN, zoom)], across - 2 * MARGIN)
    down = 2.0 * MARGIN + sum(text_height(t, size, across - 2 * MARGIN, zoom) + space for t, size, _, space in heads)
    down += 26 + len(bars) * (TALL + GAP) + sum(14 + max(p.tall for p in shelf) for shelf in shelves)
    page = Image.new("RGB", (across * zoom, round(down * zoom)), PAPER)
    draw, colors = ImageDraw.Draw(page), colors_of(categories)
    y = float(MARGIN)
    for text, size, ink, space in heads:
        write_text(draw, text, MARGIN, y, size, across - 2 * MARGIN, ink, zoom)
        y += text_height(text, size, across - 2 * MARGIN, zoom) + space
    _legend(draw, categories, colors, y, zoom)
    y += 26
    longest = max([b.total for b in bars] + [1])
    for bar in bars:
        _bar(draw, bar, y, WIDE / longest, colors, zoom)
        y += TALL + GAP
    for shelf in shelves:
        y, x = y + 14, float(MARGIN)
        for piece in shelf:
            _histogram(page, draw, piece, (x, y), colors, zoom)
            x += piece.wide
        y += max(p.tall for p in shelf)
    return page


def _legend(draw: ImageDraw.ImageDraw, categories: Sequence[str], colors: dict[str, str], y: float, zoom: int) -> None:
    x = float(MARGIN + LABEL)
    for category in categories:
        draw.rectangle((x * zoom, (y + 2) * zoom, (x + 11) * zoom, (y + 13) * zoom), fill=colors[category])
        write_text(draw, category, x + 16, y, NAME, 200, INK, zoom)
        x += 16 + text_width(category, NAME, zoom) + 18


def _bar(draw: ImageDraw.ImageDraw, bar: Bar, y: float, scale: float, colors: dict[str, str], zoom: int) -> None:
    middle = y + (TALL - 1.3 * NAME) / 2
    write_text(draw, bar.label, MARGIN, middle, NAME, LABEL - 10, INK, zoom)
    x = float(MARGIN + LABEL)
    for category, count in bar.parts:
        if not count:
            continue
        right = x + count * scale
        draw.rectangle((x * zoom, y * zoom, right * zoom - 1, (y + TALL) * zoom), fill=colors[category])
        wide = text_width(str(count), SMALL, zoom)
        if wide + 4 < right - x:
            write_text(draw, str(count), (x + right - wide) / 2, y + (TALL - 1.3 * SMALL) / 2, SMALL, 99, PAPER, zoom)
        x = right
    text = f"{bar.total}   {bar.note}" if bar.note else str(bar.total)
    write_text(draw, text, x + 8, y + (TALL - 1.3 * SMALL) / 2, SMALL, 900, SOFT, zoom)


# ---- histograms


@dataclass(frozen=True)
class _Piece:
    """As much of a histogram as fits into one line; `most` is the count of the tallest bar, `deep` the points of names."""

    heading: str
    rows: Sequence[tuple[str, str, int]]
    most: int
    deep: float
    wide: float

    @property
    def tall(self) -> float:
        return 20 + 18 + HIGH + self.deep + 12


def _pieces(histogram: Histogram, across: float, zoom: int) -> list[_Piece]:
    fit, found = int(across // COLUMN), []
    for i in range(0, len(histogram.rows), fit):
        rows = histogram.rows[i : i + fit]
        heading = histogram.heading if i == 0 else f"{histogram.heading}, continued"
        deep = max(text_width(label, SMALL, zoom) for label, _, _ in rows) + 4
        wide = max(len(rows) * COLUMN, text_width(heading, NAME, zoom)) + 2 * COLUMN
        found.append(_Piece(heading, rows, max(n for _, _, n in histogram.rows), deep, wide))
    return found


def _shelves(pieces: Sequence[_Piece], across: float) -> list[list[_Piece]]:
    """Pieces beside each other where they fit."""
    shelves: list[list[_Piece]] = []
    for piece in pieces:
        if shelves and sum(p.wide for p in shelves[-1]) + piece.wide - 2 * COLUMN <= across:
            shelves[-1].append(piece)
        else:
            shelves.append([piece])
    return shelves


def _histogram(
    page: Image.Image, draw: ImageDraw.ImageDraw, piece: _Piece, at: tuple[float, float], colors: dict[str, str], zoom: int
) -> None:
    """Draws one bar for each concept, with the names turned below."""
    x, base = at[0], at[1] + 20 + 18 + HIGH
    write_text(draw, piece.heading, x, at[1], NAME, 9999, INK, zoom)
    draw.line((x * zoom, base * zoom, (x + len(piece.rows) * COLUMN) * zoom, base * zoom), fill=LINE, width=zoom)
    for i, (label, category, count) in enumerate(piece.rows):
        left, tall = x + i * COLUMN, HIGH * count / piece.most
        box = ((left + 2) * zoom, (base - tall) * zoom, (left + COLUMN - 2) * zoom - 1, base * zoom - 1)
        draw.rectangle(box, fill=colors[category])
        wide = text_width(str(count), SMALL - 1, zoom)
        write_text(draw, str(count), left + (COLUMN - wide) / 2, base - tall - 14, SMALL - 1, 99, SOFT, zoom)
        name = Image.new("RGB", (round(piece.deep * zoom), round(1.3 * SMALL * zoom)), PAPER)
        write_text(ImageDraw.Draw(name), label, piece.deep - 2 - text_width(label, SMALL, zoom), 0, SMALL, 999, INK, zoom)
        page.paste(name.rotate(90, expand=True), (round((left + 1) * zoom), round((base + 3) * zoom)))
