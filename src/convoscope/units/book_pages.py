"""A book and its units as pages: what stands there, in words and numbers. How it is drawn is in `show.book`."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convoscope.show import book as show
from convoscope.show.figure import number
from convoscope.show.html import Fact
from convoscope.units.book_files import LayerEntry
from convoscope.units.book_index import Exemplar
from convoscope.units.book_strips import window

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.units.book import Book, Unit

ROWS = {
    "top": ("Strongest", "The places that excite it most, of as many images, strongest first."),
    "quantile": (
        "From strong to weak",
        "Images spread evenly between those it responds to most and least, each where it responds most.",
    ),
    "random": ("At random", "Images drawn by chance, the same for every unit, each where it responds most."),
    "bottom": ("Weakest", "The places where it is lowest, of as many images; of many equal ones some by chance."),
}
ALIKE = 0.95  # units of this correlation are as good as the same
Link = Callable[[str], str]  # from the name of a unit to where its page is; "" for none


def unit_anchor(name: str) -> str:
    """`layer4.1:42` as a part of a file name: `layer4.1-42`."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)


# ---- one unit


def unit_page(unit: "Unit", link: Link | None = None) -> str:
    """The page of one unit."""
    book = unit.book
    return show.unit_page(
        show.UnitPage(
            unit_title(unit),
            unit_lede(unit),
            unit_facts(unit),
            [_row(unit, sort) for sort in book.sorts],
            show.Histogram(unit.edges, unit.counts, _marks(unit)),
            _labels(unit),
            [show.Share(s.name, s.share, f"{100 * s.share:.0f} %") for s in unit.classes],
            _numbers(unit),
            notes=_field_note(unit.layer),
            links=_neighbors(unit, link) if link else (),
            command=f"convoscope unit {book.folder.name} {unit.name}",
            made_by=book.manifest["made_by"],
        )
    )


def unit_title(unit: "Unit") -> str:
    """`layer4:42 detects grass`, where it does."""
    v = unit.values
    if v.get("detector") and v.get("label"):
        return f"{unit.name} detects {v['label']}"
    return f"{unit.name} responds to nothing in this data" if v.get("dead") else unit.name


def unit_lede(unit: "Unit") -> str:
    """In a sentence or two: the label with its score and chance level, and the class."""
    v, parts = unit.values, []
    if unit.labels:
        best = unit.labels[0]
        does = "Its strongest activations cover" if v.get("detector") else "No concept fits well; the closest is"
        held = f", {number(best.held_out_iou)} on images held out" if best.held_out_iou is not None else ""
        chance = f"; chance gives as much with p = {_p(best.p_value)}" if best.p_value is not None else ""
        parts.append(f"{does} {best.concept} ({best.category}) with an IoU of {number(best.iou)}{held}{chance}.")
    if unit.classes and not v.get("dead"):
        parts.append(
            f"{100 * unit.classes[0].share:.0f} % of what its strongest pictures give it comes from {unit.classes[0].name}."
        )
    return " ".join(parts)


def unit_facts(unit: "Unit") -> list[Fact]:
    """Where it stands."""
    book, entry = unit.book, unit.layer
    places = f"{entry.grid[0]} x {entry.grid[1]} places" if entry.grid != (1, 1) else "one place"
    field = "the whole image" if entry.field is None else f"{entry.field[0]} x {entry.field[1]} pixels"
    return [
        Fact("Network", book.manifest["network"]["name"], note=book.manifest["network"]["hash"]),
        Fact("Unit", f"{unit.unit} of {entry.units} in {entry.address}", note=places),
        Fact("Receptive field", field),
        Fact("Data", book.manifest["data"]["name"], note=f"{book.manifest['data']['images']:,} images"),
    ]


def _row(unit: "Unit", sort: str) -> show.Row:
    title, note = ROWS.get(sort, (sort.capitalize(), ""))
    return show.Row(title, note, [_crop(unit, e, p) for e, p in zip(unit.exemplars[sort], crops(unit, sort), strict=False)])


def crops(unit: "Unit", sort: str) -> list[np.ndarray]:
    """The crops of one sort, each (size, size, 4), as many as there are exemplars."""
    strip = np.asarray(unit.strip(sort))
    size = strip.shape[0]
    return [show.rgba(strip[:, i * size : (i + 1) * size]) for i in range(len(unit.exemplars[sort]))]


def _crop(unit: "Unit", e: Exemplar, pixels: np.ndarray) -> show.Crop:
    name, kind = unit.image_name(e), unit.book.image_class(e.image)
    alt = f"{ROWS.get(e.sort, (e.sort,))[0]} {e.rank + 1}: {kind or name}, activation {number(e.value)}"
    return show.Crop(
        pixels, f"{number(e.value)}{f' · {kind}' if kind else ''}", alt, peak_within(e, unit.book.manifest["network"]["size"])
    )


def peak_within(e: Exemplar, size: Sequence[int]) -> tuple[float, float] | None:
    """Where the middle of the unit's field lies in the crop, as shares of its side; None where it is the middle anyway."""
    top, left, side = window(e.box, size[0], size[1])
    if side <= 0:
        return None
    y, x = (e.peak[0] - top) / side, (e.peak[1] - left) / side
    off = max(abs(y - 0.5), abs(x - 0.5))
    return (min(max(y, 0.0), 1.0), min(max(x, 0.0), 1.0)) if off > 0.06 else None


def _marks(unit: "Unit") -> list[tuple[float, str]]:
    threshold = unit.values.get("threshold")
    return [] if threshold is None else [(float(threshold), "strongest 0.5 %")]


def _labels(unit: "Unit") -> show.Table | None:
    if not unit.labels:
        return None
    rows = [
        (x.concept, x.category, number(x.iou), _text(x.held_out_iou), "" if x.p_value is None else _p(x.p_value))
        for x in unit.labels
    ]
    return show.Table(("Concept", "Category", "IoU", "held out", "p"), rows, (False, False, True, True, True))


def _numbers(unit: "Unit") -> show.Table:
    shown = [(c, unit.values.get(c.name)) for c in unit.book.columns]
    known = {"label", "category", "iou", "held_out_iou", "p_value", "detector", "dead", "class"}
    flags = {"class_selective", "color_selective"}
    rows = [
        (c.title, ("no", "yes")[v] if c.name in flags else _text(v)) for c, v in shown if v is not None and c.name not in known
    ]
    return show.Table(("Measure", "Value"), rows, (False, True))


def _text(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)


def _p(value: float) -> str:
    """A probability of chance, in two digits at most."""
    return f"{value:.2g}"


def _field_note(entry: LayerEntry) -> list[str]:
    note = "Each picture shows the receptive field of the unit at that place; what is faint lies outside of it, since the field"
    return [f"{note} goes beyond the image there. A ring marks the middle of the field, where it is not that of the picture."]


def _neighbors(unit: "Unit", link: Link) -> list[tuple[str, str]]:
    address, count = unit.layer.address, unit.layer.units
    found = [("Summary", link(""))]
    found += [("Previous unit", link(f"{address}:{unit.unit - 1}"))] if unit.unit else []
    found += [("Next unit", link(f"{address}:{unit.unit + 1}"))] if unit.unit + 1 < count else []
    return found


# ---- all units


def report_page(book: "Book", units_per_layer: int = 6, link: Link | None = None, command: str = "") -> str:
    """The page of the whole book."""
    rows = book.units()
    by_layer = defaultdict(list)
    for row in rows:
        by_layer[row["layer"]].append(row)
    layers = [_summary(book, entry, by_layer[entry.address], units_per_layer, link) for entry in book.layers]
    manifest = book.manifest
    return show.book_page(
        show.BookPage(
            f"What the units of {manifest['network']['name']} respond to",
            report_lede(book, rows),
            _facts(book),
            layers,
            _concepts(rows, link),
            _reading(book),
            _notes(book),
            command or f"convoscope report {book.folder.name} -o report.html",
            manifest["made_by"],
        )
    )


def report_lede(book: "Book", rows: Sequence[Mapping[str, Any]]) -> str:
    """The book in two sentences."""
    images, layers = book.manifest["data"]["images"], len(book.layers)
    text = f"{len(rows):,} units in {layers} {'layers' if layers > 1 else 'layer'}, watched over {images:,} images."
    found = [r for r in rows if r.get("detector")]
    if book.manifest["data"]["concepts"]:
        concepts = len({(r["category"], r["label"]) for r in found})
        text += f" {len(found):,} of them detect a concept, {concepts:,} different ones in all."
    dead = sum(1 for r in rows if r.get("dead"))
    return text + (f" {dead:,} never respond." if dead else "")


def _facts(book: "Book") -> list[Fact]:
    m = book.manifest
    size = "{} x {} pixels".format(*m["network"]["size"])
    concepts = len(m["data"]["concepts"])
    labels = f"{concepts:,} concepts labeled" if concepts else "no dense labels"
    classes = f"{len(m['data']['classes']):,} classes" if m["data"]["classes"] else "no classes"
    failed = len(m["failed"])
    return [
        Fact("Network", m["network"]["name"], note=m["network"]["hash"]),
        Fact("Input", size),
        Fact("Data", m["data"]["name"], note=f"{m['data']['images']:,} images" + (f", {failed} unreadable" if failed else "")),
        Fact("Labels", labels, note=classes),
    ]


def _summary(
    book: "Book", entry: LayerEntry, rows: Sequence[Mapping[str, Any]], count: int, link: Link | None
) -> show.LayerSummary:
    from convoscope.units.book import best

    detectors: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.get("detector") and row.get("category"):
            detectors[row["category"]] += 1
    dead = [r["unit"] for r in rows if r.get("dead")]
    field = "sees the whole image" if entry.field is None else f"sees {entry.field[0]} x {entry.field[1]} pixels"
    facts = [f"{entry.units:,} units", field, f"{entry.grid[0]} x {entry.grid[1]} places"]
    concepts = len({r["label"] for r in rows if r.get("detector")})
    if book.manifest["data"]["concepts"]:
        chance = book.manifest["settings"]["chance"] * entry.units
        facts.append(f"{_count(sum(detectors.values()), 'detector')} of {_count(concepts, 'concept')}")
        facts += [f"{chance:.1f} detectors expected by chance"] if book.manifest["settings"]["draws"] else []
    facts += _remarks(rows)
    cards = [_card(book, row, link) for row in best(list(rows), count)]
    return show.LayerSummary(entry.address, entry.units, dict(detectors), _shares(book, rows), facts, cards, dead)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The opponent axes of color-selective units, and how many units say what another says."""
    axes = Counter(r["color_axis"] for r in rows if r.get("color_selective") and r.get("color_axis"))
    alike = sum(1 for r in rows if (r.get("nearest_correlation") or 0.0) >= ALIKE)
    found = (
        ["colors: " + ", ".join(f"{axis} {n}" for axis, n in sorted(axes.items(), key=lambda i: (-i[1], i[0])))] if axes else []
    )
    return found + ([f"{_count(alike, 'unit')} as good as another (correlation from {ALIKE:g})"] if alike else [])


def _shares(book: "Book", rows: Sequence[Mapping[str, Any]]) -> list[show.Share]:
    known = {c.name for c in book.columns}
    whole = max(len(rows), 1)
    found = []
    for title, flag in (("Color-selective", "color_selective"), ("Class-selective", "class_selective"), ("Dead", "dead")):
        if flag in known:
            share = sum(1 for r in rows if r.get(flag)) / whole
            found.append(show.Share(title, share, f"{100 * share:.0f} %"))
    return found


def _card(book: "Book", row: Mapping[str, Any], link: Link | None) -> show.Card:
    unit = book.unit(f"{row['layer']}:{row['unit']}")
    detects = bool(row.get("detector") and row.get("label"))
    lines = []
    if detects:
        chance = row.get("p_value")
        lines.append(f"IoU {number(row['iou'])}{f', p {_p(chance)}' if chance is not None else ''}")
    elif row.get("label") and not row.get("class_selective"):
        lines.append(f"closest: {row['label']}, IoU {number(row['iou'])}")
    if unit.classes:
        lines.append(f"{unit.classes[0].name} {100 * unit.classes[0].share:.0f} %")
    pictures = [_crop(unit, e, p) for e, p in _pairs(unit, "top")]
    shown = ", ".join(dict.fromkeys(unit.book.image_class(e.image) or "" for e in unit.exemplars["top"])).strip(", ")
    alt = f"The {len(pictures)} places that excite {unit.name} most" + (f", in pictures of {shown}" if shown else "")
    headline = str(row["label"]) if detects else str(row["class"]) if row.get("class_selective") else unit.name
    category = str(row["category"]) if detects else ""
    return show.Card(unit.name, headline, category, lines, show.montage(pictures), alt, link(unit.name) if link else "")


def _concepts(rows: Sequence[Mapping[str, Any]], link: Link | None) -> list[show.Concept]:
    found = defaultdict(list)
    for row in rows:
        if row.get("detector") and row.get("label"):
            found[row["category"], row["label"]].append(row)
    made = []
    for (category, label), units in found.items():
        top = max(units, key=lambda r: r["iou"])
        name = f"{top['layer']}:{top['unit']}"
        made.append(show.Concept(label, category, len(units), f"{name} · {number(top['iou'])}", link(name) if link else ""))
    return sorted(made, key=lambda c: (-c.units, c.name))


def _reading(book: "Book") -> list[str]:
    if not book.manifest["data"]["concepts"]:
        return ["The data has no dense labels, so no concepts are named: units are shown by what excites them."]
    s = book.manifest["settings"]
    tested = (
        f", and maps that mean nothing, since they are laid over other pictures, reach as much in under "
        f"{100 * s['chance']:g}\N{NO-BREAK SPACE}% of {s['draws']} draws (p)."
    )
    return [
        f"A unit detects a concept when its strongest {100 * s['fraction']:g}\N{NO-BREAK SPACE}% of activations cover the "
        f"concept's pixels: their overlap over their union (IoU), over all images, is above {s['iou']:g}"
        + (tested if s["draws"] else ".")
    ]


def _notes(book: "Book") -> list[str]:
    return [
        "The nine small pictures of a unit are from the nine images that excite it most, the strongest first. Each shows the "
        "receptive field at the strongest place; what is faint lies outside of it, since the field goes beyond the image there."
    ]


def summary(book: "Book") -> dict[str, Any]:
    """The numbers of the report: for each layer its detectors by category, dead units and shares."""
    layers = []
    for entry in book.layers:
        rows = book.units([f"layer={entry.address}"])
        found = _summary(book, entry, rows, 0, None)
        shares = {s.label.lower().replace("-", "_"): s.share for s in found.shares}
        concepts = len({r["label"] for r in rows if r.get("detector")})
        numbers = {"address": entry.address, "units": entry.units, "detectors": dict(found.detectors), "concepts": concepts}
        layers.append(numbers | {"dead_units": list(found.dead), "shares": shares})
    return {"layers": layers}


# ---- one unit as a picture


def unit_figure(unit: "Unit") -> "Image.Image":
    """The unit as one picture on white paper: title, what it responds to, and a row of crops for each sort."""
    from convoscope.show.book import unit_figure as draw

    rows = [show.Row(ROWS.get(s, (s,))[0], "", [_crop(unit, e, p) for e, p in _pairs(unit, s)]) for s in unit.book.sorts]
    page = show.UnitPage(unit_title(unit), unit_lede(unit), (), rows, show.Histogram(unit.edges, unit.counts, _marks(unit)))
    return draw(page)


def _pairs(unit: "Unit", sort: str) -> Any:
    return zip(unit.exemplars[sort], crops(unit, sort), strict=False)


# ---- a folder of pages


def export(book: "Book", folder: Path, units_per_layer: int = 6, progress: Callable[[int, int], None] | None = None) -> int:
    """Write the summary and a page for every unit into a folder that needs no server; the number of pages."""
    from convoscope.files import make_folder, write_text

    make_folder(folder / "units")
    done = 0

    def here(name: str) -> str:
        return f"{unit_anchor(name)}.html" if name else "../index.html"

    for entry in book.layers:
        for k in range(entry.units):
            unit = book.unit(f"{entry.address}:{k}")
            write_text(folder / "units" / here(unit.name), unit_page(unit, here))
            done += 1
            if progress:
                progress(done, len(book))
    write_text(folder / "index.html", report_page(book, units_per_layer, lambda name: f"units/{here(name)}"))
    return done + 1
