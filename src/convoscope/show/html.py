"""One self-contained page, or a fragment for a notebook, of pictures, predictions and the maps that explain them."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from convoscope.show.colormap import Bytes, Floats, diverging, sequential
from convoscope.show.figure import Scale, bar_colors, number
from convoscope.show.overlay import as_bytes, indices, limit, overlay, resample

Mark = Literal["", "good", "warn"]

LARGEST = 640  # pixels of the longer side on the page
FRAGMENT_BYTES = 900_000


@dataclass(frozen=True)
class Fact:
    """One line of facts; `mark` says whether the value speaks for or against trusting what it stands by."""

    label: str
    value: str
    mark: Mark = ""
    note: str = ""


@dataclass(frozen=True)
class Prediction:
    """One category and its probability, 0 to 1; `explained` where the maps below are for it."""

    category: str
    probability: float
    explained: bool = False


@dataclass(frozen=True)
class Map:
    """One explanation of one picture.

    `values` (h, w) are raw, at any resolution; `signed` ones are drawn with zero in the middle. `limit` is the value that
    gets the strongest color (default: the 99.5th percentile of the magnitudes). `target` is what is explained, in words.
    """

    title: str
    values: Any
    signed: bool
    target: str = ""
    unit: str = ""
    shows: str = ""
    facts: Sequence[Fact] = ()
    drawback: str = ""
    citation: str = ""
    limit: float | None = None


@dataclass(frozen=True)
class Picture:
    """One picture (H, W, 3) or (H, W), uint8 or float in 0..1, what the network says, and why."""

    name: str
    image: Any
    predictions: Sequence[Prediction] = ()
    maps: Sequence[Map] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A whole page: the network, the pictures, and how to make all of it again."""

    title: str
    pictures: Sequence[Picture] = ()
    network: Sequence[Fact] = ()
    lede: str = ""
    notes: Sequence[str] = ()
    command: str = ""
    python: str = ""
    settings: Sequence[Fact] = ()
    bibtex: str = ""
    made_by: str = ""
    language: str = field(default="en", kw_only=True)


def page(report: Report) -> str:
    """One HTML document that needs no network, no other file and, to be read, no script."""
    return render(
        "page.html",
        report=report,
        pictures=[_picture(p, f"p{i}", LARGEST, least=448) for i, p in enumerate(report.pictures, 1)],
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
        tables=Markup(json.dumps({"signed": _hex(diverging()), "strength": _hex(sequential())})),
    )


def fragment(report: Report) -> str:
    """Self-styled HTML for a notebook's output, of about 1 MB at most: pictures that do not fit are counted, not shown."""
    shown, size = [], 0
    for i, picture in enumerate(report.pictures, 1):
        made = _picture(picture, f"p{i}", 320, least=0)
        size += len(made["source"]) + sum(len(m["overlay"]) + len(m["source"]) for m in made["maps"])
        if shown and size > FRAGMENT_BYTES:
            break
        shown.append(made)
    return render(
        "fragment.html",
        report=report,
        pictures=shown,
        more=len(report.pictures) - len(shown),
        style=Markup(_text("fragment.css")),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A small self-styled HTML table; columns of numbers are set to the right."""
    columns = [[str(row[i]) for row in rows] for i in range(len(header))]
    right = [any(c) and all(_is_number(cell) for cell in c if cell) for c in columns]
    style = Markup(_text("fragment.css"))
    return render("table.html", header=header, rows=rows, right=right, style=style)


# what the templates show


def _picture(picture: Picture, anchor: str, largest: int, least: int) -> dict[str, Any]:
    pixels = fitted(as_bytes(picture.image), largest, least)
    height, width = pixels.shape[:2]
    maps = [_map(m, pixels, picture.name, f"{anchor}-{i}", least > 0) for i, m in enumerate(picture.maps, 1)]
    targets = [{"target": target, "maps": list(group)} for target, group in groupby(maps, lambda m: m["target"])]
    return {
        "anchor": anchor,
        "name": picture.name,
        "note": picture.note,
        "source": webp(pixels, 88),
        "width": width,
        "height": height,
        "original": np.shape(picture.image)[1::-1],
        "predictions": [_prediction(p) for p in picture.predictions],
        "targets": targets,
        "maps": maps,
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    p = prediction.probability
    share = p if np.isfinite(p) else 0.0
    text = f"{100 * p:.1f} %" if 0.0005 <= p <= 0.9995 or p in (0, 1) else "< 0.1 %" if p < 0.0005 else "> 99.9 %"
    return {
        "category": prediction.category,
        "explained": prediction.explained,
        "percent": f"{100 * max(0.0, min(1.0, share)):.2f}",
        "text": text if np.isfinite(p) else "not a number",
    }


def _map(m: Map, pixels: Bytes, name: str, anchor: str, thumb: bool) -> dict[str, Any]:
    values = np.asarray(m.values, np.float64)
    top = limit(values) if m.limit is None else m.limit
    scale = Scale.of(top, m.signed, m.unit)
    height, width = pixels.shape[:2]
    laid = overlay(values, pixels, limit=top, signed=m.signed)
    return {
        "anchor": anchor,
        "title": m.title,
        "target": m.target,
        "shows": m.shows,
        "facts": m.facts,
        "drawback": m.drawback,
        "citation": m.citation,
        "signed": m.signed,
        "limit": top,
        "unit": m.unit,
        "overlay": webp(laid, 86),
        "thumb": webp(fitted(laid, 256, 0), 78) if thumb else "",
        "source": _palette_png(resample(values, height, width), top, m.signed),
        "alt": f"{m.title} of {name}" + (f" for {m.target}" if m.target else ""),
        "where": where(values, m.signed),
        "resolution": f"{values.shape[1]} x {values.shape[0]}",
        "coarse": values.shape[0] < height / 2,
        "gradient": Markup(gradient(scale)),
        "ticks": [{"at": f"{100 * at:g}", "text": text.replace("-", "\N{MINUS SIGN}")} for at, text in scale.ticks()],
        "scale": _scale_in_words(scale),
        "clipped": _clipped(values, top, m.signed),
    }


def where(values: Floats, signed: bool) -> str:
    """Words for the place of the strongest value, for people who cannot see the map."""
    if not values.any():
        return "It is zero everywhere."
    strength = np.abs(values) if signed else values
    row, column = np.unravel_index(int(np.argmax(strength)), values.shape)
    vertical = ("top", "middle", "bottom")[int(3 * row / values.shape[0])]
    horizontal = ("left", "center", "right")[int(3 * column / values.shape[1])]
    place = "center" if (vertical, horizontal) == ("middle", "center") else f"{vertical} {horizontal}"
    kind = "" if not signed else " and positive" if values[row, column] > 0 else " and negative"
    return f"Strongest{kind} at the {place}."


def _scale_in_words(scale: Scale) -> str:
    unit = f" {scale.unit}" if scale.unit else ""
    if scale.high <= scale.low:
        return "Color scale: the map is zero everywhere."
    if scale.signed:
        return f"Color scale from {number(scale.low)} (blue) over zero (white) to {number(scale.high)}{unit} (orange)."
    return f"Color scale from zero (white) to {number(scale.high)}{unit} (dark red)."


def _clipped(values: Floats, top: float, signed: bool) -> str:
    """How much lies beyond the end colors: shown, since it cannot be seen."""
    strength = np.abs(values) if signed else values
    beyond = float((strength > top).mean())
    if top == 0 or beyond == 0:
        return ""
    share = f"{100 * beyond:.1f} %" if beyond >= 0.0005 else "under 0.1 %"
    return f"{share} beyond the scale, up to {number(float(strength.max()))}"


# pictures as text


def fitted(pixels: Bytes, largest: int, least: int) -> Bytes:
    """Pixels with the longer side at most `largest`, and at least `least` so that fine colors survive encoding."""
    height, width = pixels.shape[:2]
    factor = min(1.0, largest / max(height, width))
    if max(height, width) < least:
        factor = min(least / max(height, width), 16.0)
    if factor == 1.0:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def image(pixels: Any, words: str, quality: int = 90) -> str:
    """A picture for a notebook, with what it shows in words: only text, whatever they hold."""
    return f'<img alt="{escape(words)}" src="{webp(np.asarray(pixels), quality)}" style="max-width: 100%">'


def webp(pixels: Bytes, quality: int) -> str:
    return _data_uri(Image.fromarray(pixels), "webp", quality=quality, method=4)


def _palette_png(values: Floats, top: float, signed: bool) -> str:
    """A map without loss: one byte per pixel, its place in the color table."""
    picture = Image.fromarray(indices(values, limit=top, signed=signed), "L")
    picture.putpalette((diverging() if signed else sequential()).tobytes())
    return _data_uri(picture, "png", optimize=True)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gradient(scale: Scale) -> str:
    colors = bar_colors(scale)
    chosen = colors[np.rint(np.linspace(0, len(colors) - 1, 33)).astype(int)]
    return f"linear-gradient(90deg,{','.join(_hex(chosen))})"


def _hex(colors: np.ndarray) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colors.tolist()]


def _is_number(text: str) -> bool:
    return bool(text) and text.replace(",", "").replace(".", "", 1).replace("-", "", 1).isdigit()


# templates


FOLDER = Path(__file__).parent / "templates"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["policy"] = _policy
    return environment


def _policy(script: str) -> str:
    """The content security policy of a page: nothing but what it carries itself is loaded, and no other script runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


@cache
def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def style(*names: str) -> Markup:
    """Style sheets, for a page that has to carry them itself."""
    return Markup("".join(_text(name) for name in names))


def render(template: str, **values: Any) -> str:
    """A page or fragment from its template."""
    return _environment().get_template(template).render(**values)
