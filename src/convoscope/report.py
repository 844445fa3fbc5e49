"""Results made visible: a figure, a fragment for a notebook, a page. The only module that knows both results and `show`."""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from convoscope.citation import cite
from convoscope.core.errors import UsageError
from convoscope.core.spec import fields_of
from convoscope.files import check_writable, replaced
from convoscope.show import figure as fig
from convoscope.show import html
from convoscope.show import overlay as ov
from convoscope.show.sheet import Sheet, Tile
from convoscope.show.sheet import page as sheet_page

if TYPE_CHECKING:
    from PIL import Image

    from convoscope.network import Network
    from convoscope.results import Attribution

SMALLEST = 224  # pixels; smaller pictures are enlarged before a map is laid over them
GOOD, BAD = 0.01, 0.1  # relative gap or loss up to which a map is marked as sound, from which as doubtful
CHECKS = {
    "completeness gap": "how far the map's sum is from the change of the target",
    "lost relevance": "what biases and stabilizers swallowed on the way",
}


# ---- a page


def build_report(
    network: "Network",
    x: Tensor,
    names: Sequence[str],
    attributions: Sequence["Attribution"],
    *,
    title: str = "",
    lede: str = "",
    notes: Sequence[str] = (),
    command: str = "",
) -> html.Report:
    """A report on the inputs `x` (B, C, H, W), called `names`, and what explains them; `page` makes HTML of it."""
    device = next(iter(network.module.parameters()), torch.empty(0)).device
    return html.Report(
        title or f"{network.name} explained",
        pictures_of(network, x, names, attributions),
        network=network_facts(network, x),
        lede=lede,
        notes=notes,
        command=command,
        python=as_python(network, names, attributions),
        settings=[
            html.Fact("seed", ", ".join(str(s) for s in sorted({a.seed for a in attributions}))),
            html.Fact("device", str(device)),
            html.Fact("PyTorch", torch.__version__),
            html.Fact("weights", network.hash),
        ],
        bibtex=cite(*attributions),
        made_by=f"convoscope {version('convoscope')}",
    )


def page(report: html.Report) -> str:
    """One self-contained HTML document."""
    return html.page(report)


def pictures_of(
    network: "Network", x: Tensor, names: Sequence[str], attributions: Sequence["Attribution"], note: str = ""
) -> list[html.Picture]:
    """For every input the picture, the predictions, and its maps ordered by target."""
    found = []
    for i, (name, said) in enumerate(zip(names, predictions(network, x), strict=True)):
        ordered = sorted(attributions, key=lambda a: [target_text(b, i) for b in attributions].index(target_text(a, i)))
        explained = {target_text(a, i) for a in attributions}
        ranked = [html.Prediction(p.category, p.probability, p.category in explained) for p in said]
        maps = [map_of(a, i) for a in ordered]
        found.append(html.Picture(Path(name).name, photograph(network, x, i), ranked, maps, note))
    return found


def predictions(network: "Network", x: Tensor) -> list[list[Any]]:
    """What `network.predict` says of each input; nothing where the output ranks no categories (segmentation, detection)."""
    try:
        return network.predict(x)
    except UsageError:
        return [[] for _ in x]


def map_of(attribution: "Attribution", index: int) -> html.Map:
    """One map with all that helps to judge it."""
    method = attribution.method
    about, paper = method.about, method.paper
    return html.Map(
        title=title_of(method),
        values=map_at_input_size(attribution, index),
        signed=attribution.signed,
        target=target_text(attribution, index),
        unit=unit_of(attribution),
        shows=f"Shows {about.use}.",
        facts=facts(attribution, index),
        drawback=f"{about.drawback[:1].upper()}{about.drawback[1:]}.",
        citation=f"{paper.authors.split(',')[0]} et al., {paper.title}, {paper.venue} {paper.year}" if paper else "",
    )


def sheet_of(
    network: "Network", x: Tensor, name: str, rows: Sequence[Any], target: int, left_out: Sequence[tuple[str, str]]
) -> Sheet:
    """The maps of one picture for one of several targets on a sheet; `rows` have method, family, attributions and costs."""
    said = predictions(network, x)[0][:3]
    shown = rows[0].attributions[target]
    facts = [": ".join([Path(name).name, " · ".join(f"{p.category} {p.probability:.2f}" for p in said)][: 1 + bool(said)])]
    facts += [f"{network.name}, input {' x '.join(map(str, x.shape[2:]))}, seed {shown.seed}"]
    if (count := len(rows[0].attributions)) > 1:
        all_of_them = "both" if count == 2 else f"all {count}"
        facts += [f"Times and passes are those of {all_of_them} targets together, which share passes."]
    tiles = [_tile(row, target) for row in rows]
    return Sheet(f"Why {target_text(shown, 0)}? {len(tiles)} methods", photograph(network, x, 0), tiles, facts, left_out)


def _tile(row: Any, target: int) -> Tile:
    attribution = row.attributions[target]
    told = map_of(attribution, 0)
    check = next((f for f in told.facts if f.label in CHECKS), None)
    relative = check and re.search(r"\((.*)\)", check.value)
    seconds = f"{row.seconds:.2f} s" if row.seconds < 10 else f"{row.seconds:.0f} s"
    return Tile(
        told.title,
        told.values,
        told.signed,
        row.family,
        told.unit,
        f"{row.passes:,} {'pass' if row.passes == 1 else 'passes'}, {seconds}",
        f"{check.label} {relative[1] if relative else check.value}" if check else "",
        check.mark if check else "",
        [told.shows, told.drawback, told.citation],
    )


def comparison_page(
    network: "Network", x: Tensor, name: str, rows: Sequence[Any], sheets: Sequence[Sheet], command: str
) -> str:
    """One self-contained HTML document with sheets of many methods."""
    report = html.Report(
        f"{len(rows)} methods explain {Path(name).name}",
        network=network_facts(network, x),
        command=command,
        bibtex=cite(*[a for row in rows for a in row.attributions[:1]]),
        made_by=f"convoscope {version('convoscope')}",
    )
    return sheet_page(report, sheets)


def title_of(method: Any) -> str:
    """The title of a method with the settings that are not the usual ones."""
    changed = [
        (f.name, getattr(method, f.name)) for f in fields_of(type(method)) if not _same(getattr(method, f.name), f.default)
    ]
    return method.title + (f" ({', '.join(f'{k} {_brief(v)}' for k, v in changed)})" if changed else "")


def facts(attribution: "Attribution", index: int) -> list[html.Fact]:
    """What the method chose, whether the map adds up, and what it cost."""
    diagnostics, method = attribution.diagnostics, attribution.method
    found = [html.Fact("layer", where, note=positions(attribution))] if (where := layer_of(attribution)) != "input" else []
    found += [html.Fact("baseline", baseline)] if (baseline := baseline_of(method)) else []
    for name, meaning in CHECKS.items():
        text, relative = check(attribution, name, index)
        if text:
            mark = "" if relative is None or GOOD < relative <= BAD else "good" if relative <= GOOD else "warn"
            found.append(html.Fact(name, text, mark, meaning))
    if others := diagnostics.get("activations with their ordinary gradient"):
        meaning = f"activations that are no ReLU kept their ordinary gradient, such as {others[0]}"
        found.append(html.Fact("not covered", f"{len(others)} activation{'s' * (len(others) > 1)}", "warn", meaning))
    if "evaluations" in diagnostics:
        count = round(diagnostics["evaluations"] / max(len(attribution), 1))
        found.append(html.Fact("cost", f"{count} {'evaluation' if count == 1 else 'evaluations'}"))
    return found


def network_facts(network: "Network", x: Tensor) -> list[html.Fact]:
    """The network in a line."""
    parameters = sum(p.numel() for p in network.module.parameters())
    return [
        html.Fact("network", network.name),
        html.Fact("input", " x ".join(str(n) for n in x.shape[1:])),
        html.Fact("parameters", f"{parameters:,}"),
    ]


def as_python(network: "Network", names: Sequence[str], attributions: Sequence["Attribution"]) -> str:
    """Code that makes the attributions again."""
    lines = ["import convoscope as cs", "", f"net = cs.load({network.name!r})", f"x = net.read({list(names)!r})"]
    for a in attributions:
        # Every spec prints as the call that makes it; only its package is missing.
        method, target = (re.sub(r"\b([A-Z]\w*)\(", r"cs.\1(", repr(s)) for s in (a.method, a.target))
        at = f", at={a.at!r}" if a.at != "input" else ""
        lines.append(f"cs.explain(net, x, {method}, {target}{at}, seed={a.seed})")
    return "\n".join(lines)


# ---- one result


def picture(attribution: "Attribution", over: Tensor | None, indices: Iterable[int]) -> "Image.Image":
    """The maps of some images as a figure, each with its scale, over the inputs `over` (B, C, H, W) where given."""
    return fig.figure([panel(attribution, over, i) for i in indices])


def panel(attribution: "Attribution", over: Tensor | None, index: int) -> fig.Panel:
    """One map with its scale, titled by the method."""
    values, signed = map_at_input_size(attribution, index), attribution.signed
    limit = ov.limit(values)
    if over is None:
        image = ov.enlarged(ov.colorize(values, limit=limit, signed=signed), SMALLEST)
    else:
        check_inputs(attribution, over)
        image = photograph(attribution.network, over, index)
        image = ov.overlay(values, ov.enlarged(image, SMALLEST), limit=limit, signed=signed)
    parts = [target_text(attribution, index)]
    parts += [f"at {where}"] if (where := layer_of(attribution)) != "input" else []
    parts += [f"{name} {text}" for name in CHECKS if (text := check(attribution, name, index)[0])]
    return fig.Panel(title_of(attribution.method), image, ", ".join(parts), fig.Scale.of(limit, signed, unit_of(attribution)))


def fragment_of(attribution: "Attribution", over: Tensor | None) -> str:
    """HTML for a notebook: the maps over their inputs, or, without inputs, on their own."""
    count = range(len(attribution))
    if over is None:
        buffer = io.BytesIO()
        picture(attribution, None, count).save(buffer, "png", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        alt = f"{attribution.method.name}: maps with their color scales"
        return f'<img style="max-width:100%;width:{min(len(count), 5) * 280}px" alt="{alt}" src="data:image/png;base64,{data}">'
    check_inputs(attribution, over)
    names = [f"image {i}" for i in count]
    return html.fragment(html.Report("", pictures_of(attribution.network, over, names, [attribution])))


def save(attribution: "Attribution", path: Path, over: Tensor | None) -> Path:
    """Write a PNG of the maps or a safetensors file of the values with all that made them; whole or not at all."""
    if path.suffix not in (".png", ".safetensors"):
        raise UsageError(f"cannot tell from {path.name!r} what to write; name it .png or .safetensors")
    check_writable(path)
    with replaced(path) as partial:
        if path.suffix == ".png":
            picture(attribution, over, range(len(attribution))).save(partial, format="PNG")
        else:
            from safetensors.torch import save

            made = {"convoscope": json.dumps(attribution.to_dict())}
            partial.write_bytes(save({"values": attribution.values.detach().cpu().contiguous()}, made))
    return path


# ---- parts of it


def map_at_input_size(attribution: "Attribution", index: int) -> np.ndarray:
    """The map (H, W) of one image at input size, channels summed."""
    return attribution.heatmap()[index].detach().double().cpu().numpy()


def photograph(network: "Network", x: Tensor, index: int) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of one input, as the network sees them."""
    return ov.as_bytes(network.picture(x[index : index + 1])[0].permute(1, 2, 0).cpu().numpy())


def check_inputs(attribution: "Attribution", over: Tensor) -> None:
    """Raise unless there is one input for each map."""
    if over.dim() != 4 or len(over) != len(attribution):
        raise UsageError(f"{len(attribution)} maps need as many inputs (images, channels, H, W); got {tuple(over.shape)}")


def target_text(attribution: "Attribution", index: int) -> str:
    """What image `index` was explained for: a category where the target is one, else the target itself."""
    target = attribution.target
    chosen = getattr(target, "index", None)
    if isinstance(chosen, tuple):
        chosen = chosen[index]
    if not isinstance(chosen, int):
        return str(target)
    name = attribution.network.category(chosen)
    return name if target.name == "logit" else f"{target.name} of {name}"


def unit_of(attribution: "Attribution") -> str:
    """What the numbers of a map measure."""
    return attribution.method.unit.format(target=getattr(attribution.target, "unit", "target"))


def positions(attribution: "Attribution") -> str:
    """The resolution of a map that is coarser than the input."""
    rows, columns = attribution.values.shape[2:]
    return "" if (rows, columns) == tuple(attribution.size[:2]) else f"{rows} x {columns} positions"


def baseline_of(method: Any) -> str:
    """What the method compares the image with, where it does."""
    baseline = getattr(method, "baseline", getattr(method, "fill", None))
    return "" if baseline is None else _brief(baseline)


def layer_of(attribution: "Attribution") -> str:
    """The address the map belongs to."""
    return str(attribution.diagnostics.get("layer") or attribution.at)


def check(attribution: "Attribution", name: str, index: int) -> tuple[str, float | None]:
    """The completeness gap or lost relevance of one image in words, and as a fraction; empty if there is none."""
    value = _entry(attribution.diagnostics, name, index)
    relative = _entry(attribution.diagnostics, f"{name} relative", index)
    if value is None:
        return "", None
    return f"{value:.2g}" + (f" ({abs(relative):.1%})" if relative is not None else ""), relative and abs(relative)


def _entry(diagnostics: Mapping[str, Any], name: str, index: int) -> Any:
    value = diagnostics.get(name)
    return value[index] if isinstance(value, list | tuple) else value


def _brief(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor) or default is dataclasses.MISSING:
        return value is default
    return bool(value == default)
