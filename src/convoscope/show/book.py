"""Pages of a unit book: one unit in full, and the summary of all. Arrays and words in, one self-contained page out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from convoscope.show import html
from convoscope.show.figure import INK, MARGIN, PAPER, SOFT, number, text_height, write_text
from convoscope.show.html import Fact

# From what small fields see to what large ones do; categories of other names follow.
CATEGORIES = ("color", "texture", "material", "part", "object", "scene")
HUES = 8  # colors of categories in the style sheet


@dataclass(frozen=True)
class Crop:
    """What one unit saw in one place: pixels (size, size, 3 or 4); `peak` (y, x) within them, 0 to 1, where it is known."""

    pixels: Any
    caption: str
    alt: str
    peak: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """Crops of one sort, with what is meant by it."""

    title: str
    note: str
    crops: Sequence[Crop]


@dataclass(frozen=True)
class Histogram:
    """Counts (bins,) between edges (bins + 1,), and values to be marked with a word each."""

    edges: Sequence[float]
    counts: Sequence[int]
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Share:
    """One named part of a whole, 0 to 1."""

    label: str
    share: float
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of words under a heading each; columns of numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]


@dataclass(frozen=True)
class UnitPage:
    """Everything about one unit."""

    title: str
    lede: str
    facts: Sequence[Fact]
    rows: Sequence[Row]
    histogram: Histogram | None = None
    labels: Table | None = None
    classes: Sequence[Share] = ()
    numbers: Table | None = None
    notes: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()
    command: str = ""
    made_by: str = ""
    language: str = "en"


@dataclass(frozen=True)
class Card:
    """One unit in the summary: a montage of what excites it most, a headline, and its main numbers."""

    title: str
    headline: str
    category: str
    lines: Sequence[str]
    pixels: Any
    alt: str
    link: str = ""


@dataclass(frozen=True)
class LayerSummary:
    """One layer: its units by the category they detect, shares of it (0 to 1) to be drawn as bars, and its best units."""

    title: str
    units: int
    detectors: Mapping[str, int]
    shares: Sequence[Share]
    facts: Sequence[str]
    cards: Sequence[Card]
    dead: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Concept:
    """One concept, how many units detect it, and the best of them."""

    name: str
    category: str
    units: int
    best: str
    link: str = ""


@dataclass(frozen=True)
class BookPage:
    """The summary of a book."""

    title: str
    lede: str
    facts: Sequence[Fact]
    layers: Sequence[LayerSummary]
    concepts: Sequence[Concept] = ()
    reading: Sequence[str] = ()
    notes: Sequence[str] = ()
    command: str = ""
    made_by: str = ""
    language: str = "en"


# ---- pages


def unit_page(page: UnitPage) -> str:
    """One HTML document about one unit; it needs no network and no other file."""
    rows = [{"title": r.title, "note": r.note, "crops": [_crop(c) for c in r.crops]} for r in page.rows]
    chart = None if page.histogram is None else histogram(page.histogram)
    style, theme = html.style("page.css", "book.css"), html.style("book.js")
    return html.render("book_unit.html", page=page, rows=rows, chart=chart, style=style, script=theme)


def book_page(page: BookPage) -> str:
    """One HTML document about all units; it needs no network and no other file."""
    present = {c for s in page.layers for c, n in s.detectors.items() if n}
    order = ordered(present)
    hues = {c: f"c{i % HUES}" for i, c in enumerate(ordered({*CATEGORIES, *present}))}
    layers = [
        {
            "summary": s,
            "anchor": f"l{i}",
            "parts": _parts(s, order),
            "detectors": sum(s.detectors.values()),
            "cards": [_card(c) for c in s.cards],
        }
        for i, s in enumerate(page.layers)
    ]
    groups = [(c, [x for x in page.concepts if x.category == c]) for c in ordered({x.category for x in page.concepts})]
    return html.render(
        "book.html", page=page, layers=layers, categories=order, hues=hues, groups=groups, heads=_heads(page.layers),
        style=html.style("page.css", "book.css"), script=html.style("book.js"),
    )  # fmt: skip


def ordered(categories: Sequence[str] | set[str]) -> list[str]:
    """Categories from low to high, those of other names at the end by name."""
    return [c for c in CATEGORIES if c in categories] + sorted(c for c in categories if c not in CATEGORIES)


def montage(crops: Sequence[Crop], columns: int = 3, count: int = 9, gap: int = 2) -> np.ndarray:
    """Square crops in a grid, their peaks ringed, RGBA, transparent between and where there are none."""
    size = np.shape(crops[0].pixels)[0] if len(crops) else 8
    rows = -(-count // columns)
    page = np.zeros((rows * (size + gap) - gap, columns * (size + gap) - gap, 4), np.uint8)
    for i, crop in enumerate(crops[:count]):
        y, x = (i // columns) * (size + gap), (i % columns) * (size + gap)
        picture = Image.fromarray(rgba(crop.pixels))
        if crop.peak:
            _ring(ImageDraw.Draw(picture), crop.peak[0] * size, crop.peak[1] * size, max(3.0, size / 16), 1)
        page[y : y + size, x : x + size] = np.asarray(picture)
    return page


def _ring(draw: ImageDraw.ImageDraw, y: float, x: float, radius: float, width: int) -> None:
    """A white ring in a black one, seen on any ground."""
    r = radius + width
    draw.ellipse((x - r, y - r, x + r, y + r), outline="#000000", width=3 * width)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="#ffffff", width=width)


def rgba(pixels: Any) -> np.ndarray:
    """Pixels (H, W, 3 or 4) with an alpha channel."""
    p = np.asarray(pixels, np.uint8)
    return p if p.shape[2] == 4 else np.concatenate([p, np.full((*p.shape[:2], 1), 255, np.uint8)], 2)


# ---- what the templates show


def _crop(crop: Crop) -> dict[str, Any]:
    peak = None if crop.peak is None else {"y": f"{100 * crop.peak[0]:.1f}", "x": f"{100 * crop.peak[1]:.1f}"}
    return {"source": html.webp(np.asarray(crop.pixels), 84), "caption": crop.caption, "alt": crop.alt, "peak": peak}


def _card(card: Card) -> dict[str, Any]:
    return {"card": card, "source": html.webp(np.asarray(card.pixels), 78)}


def _parts(summary: LayerSummary, order: Sequence[str]) -> list[dict[str, Any]]:
    found, whole = [], max(summary.units, 1)
    for category in order:
        count = summary.detectors.get(category, 0)
        if count:
            found.append({"category": category, "count": count, "width": f"{100 * count / whole:.3f}"})
    return found


def _heads(layers: Sequence[LayerSummary]) -> list[str]:
    return list(dict.fromkeys(s.label for summary in layers for s in summary.shares))


WIDE, HIGH, FOOT, HEAD = 640, 190, 34, 26  # of the histogram, in its own units
SMALLEST = 1e-3  # of the largest size: what is closer to zero is one bar


def histogram(h: Histogram) -> dict[str, Any] | None:
    """Bars, ticks and marks of a histogram as places in a drawing; None where there is nothing to draw.

    All bars are of one width, whatever their edges; heights are logarithms of the counts, since most are near zero.
    """
    edges, counts = _trimmed(np.asarray(h.edges, np.float64), np.asarray(h.counts, np.float64))
    if not len(counts):
        return None
    step = WIDE / len(counts)
    height = np.where(counts > 0, np.log10(np.maximum(counts, 1)) + 0.15, 0)
    height = height / height.max() * HIGH
    bars = [
        {"x": f"{i * step + 0.4:.2f}", "width": f"{max(step - 0.8, 0.4):.2f}", "y": f"{HEAD + HIGH - y:.2f}",
         "height": f"{y:.2f}", "text": f"{number(edges[i])} to {number(edges[i + 1])}: {int(counts[i]):,}"}
        for i, y in enumerate(height)
        if counts[i]
    ]  # fmt: skip
    marks = [_mark(_along(edges, value), text) for value, text in h.marks if edges[0] <= value <= edges[-1]]
    return {
        "bars": bars, "ticks": _ticks(edges), "marks": marks, "wide": WIDE, "high": HEAD + HIGH + FOOT, "base": HEAD + HIGH,
        "head": HEAD, "label": f"Histogram of {int(counts.sum()):,} activations from {number(edges[0])} to {number(edges[-1])}",
    }  # fmt: skip


def _trimmed(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without empty bins at the ends, and with the bins next to zero made one."""
    full = np.flatnonzero(counts)
    if not len(full):
        return edges, counts[:0]
    edges, counts = edges[full[0] : full[-1] + 2], counts[full[0] : full[-1] + 1]
    if len(counts) > 1 and np.isinf(edges[0]):
        edges = np.concatenate([[2 * edges[1]], edges[1:]])
    if len(counts) > 1 and np.isinf(edges[-1]):
        edges = np.concatenate([edges[:-1], [2 * edges[-2]]])
    near = np.flatnonzero((np.abs(edges[:-1]) <= _least(edges)) & (np.abs(edges[1:]) <= _least(edges)))
    if len(near) > 1:
        first, last = near[0], near[-1] + 1
        edges = np.concatenate([edges[: first + 1], edges[last:]])
        counts = np.concatenate([counts[:first], [counts[first:last].sum()], counts[last:]])
    return edges, counts


def _least(edges: np.ndarray) -> float:
    size = np.abs(edges[np.isfinite(edges)])
    return SMALLEST * float(size.max()) if len(size) else 0.0


def _along(edges: np.ndarray, value: float) -> float:
    """Where a value stands between the first and the last edge, 0 to 1."""
    i = int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(edges) - 2))
    wide = edges[i + 1] - edges[i]
    part = (value - edges[i]) / wide if np.isfinite(wide) and wide > 0 else 0.5
    return float((i + min(max(part, 0.0), 1.0)) / (len(edges) - 1))


def _ticks(edges: np.ndarray) -> list[dict[str, str]]:
    last = len(edges) - 1
    places = sorted({round(last * k / 4) for k in range(5)})
    anchors = {0: "start", last: "end"}
    return [
        {
            "x": f"{WIDE * i / last:.1f}",
            "text": number(float(edges[i])).replace("-", "\N{MINUS SIGN}"),
            "anchor": anchors.get(i, "middle"),
        }
        for i in places
    ]


def _mark(share: float, text: str) -> dict[str, str]:
    anchor = "start" if share < 0.7 else "end"
    return {"x": f"{WIDE * share:.1f}", "text": text, "anchor": anchor, "shift": "5" if anchor == "start" else "-5"}


# ---- one unit as a picture

CELL, SPACE, TITLE_SIZE, TEXT_SIZE = 92, 8, 22, 13  # points


def unit_figure(page: UnitPage, zoom: int = 2) -> Image.Image:
    """Title, lede and one row of crops for each sort on white paper; one point is `zoom` pixels."""
    most = max((len(r.crops) for r in page.rows), default=1)
    across = 2 * MARGIN + most * (CELL + SPACE) - SPACE
    wide = across - 2 * MARGIN
    head = text_height(page.title, TITLE_SIZE, wide, zoom) + 6 + text_height(page.lede, TEXT_SIZE, wide, zoom)
    each = 22 + CELL + 20 + 10
    sheet = Image.new("RGB", (round(across * zoom), round((2 * MARGIN + head + each * len(page.rows)) * zoom)), PAPER)
    draw = ImageDraw.Draw(sheet)
    write_text(draw, page.title, MARGIN, MARGIN, TITLE_SIZE, wide, INK, zoom)
    under = MARGIN + text_height(page.title, TITLE_SIZE, wide, zoom) + 6
    write_text(draw, page.lede, MARGIN, under, TEXT_SIZE, wide, SOFT, zoom)
    y = MARGIN + head + 10
    for row in page.rows:
        write_text(draw, row.title, MARGIN, y, TEXT_SIZE, wide, INK, zoom)
        for i, crop in enumerate(row.crops):
            _place(sheet, draw, crop, MARGIN + i * (CELL + SPACE), y + 20, zoom)
        y += each
    return sheet


def boxed(picture: Any, box: tuple[int, int, int, int], peak: tuple[float, float] | None = None) -> Image.Image:
    """A picture (H, W, 3) with a box (top, left, bottom, right) drawn into it and a ring at a place (y, x), in pixels.

    Small pictures are enlarged by a whole factor, so that lines do not hide what they are about.
    """
    from convoscope.show.overlay import as_bytes, enlarged

    pixels = as_bytes(picture)
    large = enlarged(pixels, 448)
    zoom = large.shape[0] / pixels.shape[0]
    found = Image.fromarray(large)
    draw = ImageDraw.Draw(found)
    top, left, bottom, right = (v * zoom for v in box)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="#000000", width=4)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="#ffffff", width=2)
    if peak is not None:
        _ring(draw, peak[0] * zoom, peak[1] * zoom, 8, 2)
    return found


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, crop: Crop, x: float, y: float, zoom: int) -> None:
    side = CELL * zoom
    picture = Image.fromarray(rgba(crop.pixels)).resize((side, side), Image.Resampling.BICUBIC)
    at = (round(x * zoom), round(y * zoom))
    draw.rectangle((*at, at[0] + side - 1, at[1] + side - 1), fill="#eceef1")
    sheet.paste(picture, at, picture)
    if crop.peak:
        _ring(draw, at[1] + crop.peak[0] * side, at[0] + crop.peak[1] * side, 4 * zoom, zoom)
    write_text(draw, crop.caption, x, y + CELL + 2, 10.5, 4 * CELL, SOFT, zoom)
