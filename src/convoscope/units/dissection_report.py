"""Dissections made visible: the chart of detectors by category and layer, and the page with the best units' pictures."""

import base64
import io
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from convoscope.core.record import canonical, record
from convoscope.core.run import undisturbed
from convoscope.data.dataset import segments_for
from convoscope.show import html
from convoscope.show.bars import Bar, Histogram, colors_of
from convoscope.show.bars import chart as draw_chart
from convoscope.show.figure import number
from convoscope.show.marked import marked
from convoscope.units.detectors import LayerLabels, Rule, UnitLabel
from convoscope.units.upsampling import Placing

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.units.dissection import Dissection
    from convoscope.units.dissection_compare import Comparison

UNITS, PICTURES, SIGNIFICANT = 8, 5, 0.01
RULES = {
    "top": "each unit counts for its best label alone",
    "per-category": "each unit may count once in every category",
}


def chart(d: "Dissection", rule: Rule) -> "Image.Image":
    """Unique detectors by category and layer, and how many units detect each concept."""
    title = f"{d.network_name}: unique detectors by category"
    subtitle = f"{d.images:,} images of {d.dataset_name}; intersection over union above {d.settings['iou']:g}; {RULES[rule]}"
    rows = [Histogram(f"{a}: units for each concept", layer.histogram(rule)) for a, layer in d.layers.items()]
    return draw_chart(title, subtitle, [_bar(a, layer, rule) for a, layer in d.layers.items()], rows, d.categories)


def _bar(name: str, layer: LayerLabels, rule: Rule) -> Bar:
    by_chance = next(iter(layer.by_chance.values()), None)
    chance = "" if by_chance is None else f"; by chance {number(round(by_chance, 1))}"
    return Bar(
        name, list(layer.unique(rule).items()),
        f"unique; {layer.interpretable(rule)} of {len(layer.units)} units detect something{chance}",
    )  # fmt: skip


# ---- page


def page(d: "Dissection", rule: Rule, command: str = "") -> str:
    """One self-contained HTML document."""
    colors = colors_of(d.categories)
    report = html.Report(
        f"What the units of {d.network_name} detect",
        network=_facts(d),
        lede=_lede(d, rule),
        notes=_notes(d, rule),
        command=command,
        bibtex="",
        made_by=f"convoscope {version('convoscope')}",
    )
    return html.render(
        "dissection.html",
        report=report,
        style=html.style("page.css", "dissection.css"),
        legend=[{"name": c, "color": colors[c]} for c in d.categories],
        chart=_png(draw_chart("", "", [_bar(a, la, rule) for a, la in d.layers.items()], [], d.categories)),
        tables=[_detector_table(d, rule)] + ([_chance_table(d)] if d.settings["draws"] and d.settings["nulls"] else []),
        layers=[_layer(d, layer, rule, colors) for layer in d.layers.values()],
        nulls=list(d.settings["nulls"]) if d.settings["draws"] else [],
    )


def _facts(d: "Dissection") -> list[html.Fact]:
    s = d.settings
    failed = f"; {d.failed} could not be read" if d.failed else ""
    concepts = ", ".join(f"{d.concepts[c]} {c}" for c in d.categories)
    nulls = f"{s['draws']} draws of each: {', '.join(s['nulls'])}" if s["draws"] and s["nulls"] else "none drawn"
    return [
        html.Fact("network", d.network_name, note=f"weights {d.network_hash}"),
        html.Fact("data", d.dataset_name, note=f"{d.images:,} images{failed}"),
        html.Fact("concepts", str(sum(d.concepts.values())), note=concepts),
        html.Fact("active", f"top {100 * s['fraction']:g} % of each unit", note=f"detector above IoU {s['iou']:g}"),
        html.Fact("null models", nulls, note=f"seed {s['seed']}"),
    ]


def _lede(d: "Dissection", rule: Rule) -> str:
    units = sum(len(la.units) for la in d.layers.values())
    found = sum(la.interpretable(rule) for la in d.layers.values())
    layers = "one layer" if len(d.layers) == 1 else f"{len(d.layers)} layers"
    return f"Of {units:,} units in {layers}, {found:,} overlap a labeled concept by more than {d.settings['iou']:g}."


def _notes(d: "Dissection", rule: Rule) -> list[str]:
    notes = [
        "IoU is the intersection over union of the pixels where a unit is active and those that have the label, over all "
        "images. Held out: measured on images that the label was not chosen on.",
    ]
    if d.settings["draws"] and d.settings["nulls"]:
        notes.append(
            f"p is the share of {d.settings['draws'] + 1} draws in which a unit that means nothing has as good a best label, "
            f"the choice of the label included; {1 / (d.settings['draws'] + 1):.2g} is the smallest possible. Shifted: each "
            "map against the labels of another picture, rolled around. Permuted: in each picture the map of another unit."
        )
    return [*notes, f"Unique detectors are different concepts; {RULES[rule]}."]


def _detector_table(d: "Dissection", rule: Rule) -> dict[str, Any]:
    header, rows = d.rows(rule)
    return {"title": "Unique detectors by layer", "header": header, "rows": rows, "note": ""}


def _chance_table(d: "Dissection") -> dict[str, Any]:
    header = ["layer", "units", *d.categories]
    rows = [
        [a, str(len(la.units)), *(str(la.beyond(SIGNIFICANT).get(c, 0)) for c in d.categories)] for a, la in d.layers.items()
    ]
    note = (
        "Whatever their IoU: a concept that covers a fifth of all pixels cannot have an IoU above "
        f"{d.settings['fraction'] / 0.2:g} with a unit that is active on {100 * d.settings['fraction']:g} % of them. "
        "By chance it would be about one unit in a hundred."
    )
    return {"title": f"Units with a label beyond chance (p < {SIGNIFICANT:g})", "header": header, "rows": rows, "note": note}


def _layer(d: "Dissection", layer: LayerLabels, rule: Rule, colors: dict[str, str]) -> dict[str, Any]:
    rows = layer.histogram(rule)
    most = max([count for _, _, count in rows] + [1])
    best = sorted((u for u in layer.units if u.iou > layer.iou), key=lambda u: -u.iou)[:UNITS]
    shape = f"{layer.shape[0]} units in {layer.shape[1]} x {layer.shape[2]}"
    return {
        "address": layer.address,
        "summary": f"{shape} places; {layer.interpretable(rule)} detectors of {sum(layer.unique(rule).values())} concepts",
        "histogram": [
            {"label": la, "category": c, "count": n, "tall": f"{100 * n / most:.1f}", "color": colors[c]} for la, c, n in rows
        ],
        "units": [_unit(u, colors) | {"pictures": shown} for u, shown in zip(best, _pictures(d, layer, best), strict=True)],
        "table": [_line(u) for u in layer.units],
    }


def _unit(u: UnitLabel, colors: dict[str, str]) -> dict[str, Any]:
    p = "; ".join(f"p {_p(v)} {k}" for k, v in u.p.items())
    usual = "" if u.usual is None else f", by chance {number(round(u.usual, 3))}"
    others = ", ".join(f"{m.label} {m.iou:.3f}" for m in u.top[1:4])
    return {
        "unit": u.unit,
        "label": u.label,
        "category": u.category,
        "color": colors[u.category],
        "iou": f"IoU {u.iou:.3f}; held out {u.held_out:.3f}{usual}",
        "p": p,
        "others": f"then {others}" if others else "",
    }


def _p(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _line(u: UnitLabel) -> list[str]:
    p = [_p(v) for v in u.p.values()]
    held = f"{u.held_out:.3f}" if u.label else ""
    return [
        str(u.unit), u.label or "none", u.category, f"{u.iou:.3f}", held, *p, number(u.threshold),
        f"{100 * u.exceedance:.3g} %", u.note,
    ]  # fmt: skip


def _pictures(d: "Dissection", layer: LayerLabels, units: Sequence[UnitLabel]) -> list[list[dict[str, str]]]:
    """The strongest pictures of each unit: bright where it is active, its label outlined."""
    if d.network is None or d.data is None or not units:
        return [[] for _ in units]
    net, data, colors = d.network, d.data, colors_of(d.categories)
    wanted = sorted({i for u in units for i in u.images[:PICTURES]})
    inputs = {i: net.read(data.picture(i)) for i in wanted}
    maps = {}
    with undisturbed(net.plain), torch.no_grad():
        for i, x in inputs.items():
            maps[i] = record(net.plain, x, (layer.address,), head=net.head)[layer.address][0].float().cpu()
    found = []
    for u in units:
        cards = []
        number_of = next(k for k, c in enumerate(data.concepts, 1) if (c.name, c.category) == (u.label, u.category))
        for i in u.images[:PICTURES]:
            size, own = (inputs[i].shape[2], inputs[i].shape[3]), maps[i][u.unit]
            field = net.trace(inputs[i]).field_of(canonical(net.plain, layer.address))
            placing = Placing.of(layer.shape[1:], size, field, d.settings["anchor"])  # type: ignore[arg-type]
            active = placing.dense(own.view(layer.shape[1:])) > u.threshold
            label = (segments_for(net, data, i) == number_of).any(0)
            pixels = net.picture(inputs[i])[0].permute(1, 2, 0).numpy()
            made = marked(pixels, active.numpy(), np.asarray(label.cpu()), colors[u.category])
            there = "with the label" if bool(label.any()) else "without the label"
            cards.append({"source": html.webp(html.fitted(made, 224, 0), 80), "alt": f"picture {i}, {there}"})
        found.append(cards)
    return found


def comparison_page(c: "Comparison", rule: Rule = "top") -> str:
    """Dissections beside each other as one self-contained HTML document."""
    colors, (header, rows) = colors_of(c.categories), c.rows(rule)
    tables = [{"title": "Unique detectors", "header": header, "rows": rows, "note": f"Each counted so: {RULES[rule]}."}]
    first, last = next(iter(c.of)), list(c.of)[-1]
    for address in c.addresses:
        moved = c.moved(address)
        lines = [[str(u), a or "none", b or "none"] for u, a, b in moved]
        if lines:
            title = f"{address}: {len(moved)} units changed"
            tables.append({"title": title, "header": ["unit", first, last], "rows": lines, "note": ""})
    report = html.Report(
        "Dissections compared",
        network=[html.Fact(n, d.network_name, note=f"{d.images:,} images of {d.dataset_name}") for n, d in c.of.items()],
        lede=f"From {first} to {last}.",
        made_by=f"convoscope {version('convoscope')}",
    )
    return html.render(
        "dissection.html", report=report, style=html.style("page.css", "dissection.css"),
        legend=[{"name": n, "color": colors[n]} for n in c.categories], chart=_png(c.image(rule)), tables=tables, layers=[],
        nulls=[],
    )  # fmt: skip


def _png(picture: "Image.Image") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
