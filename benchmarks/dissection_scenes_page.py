"""The page about the units of the scenes network, from the numbers of `benchmarks.dissection_scenes`."""

import textwrap
from typing import Any

HEAD = """# What the units of the scenes network detect

Written by `python -m benchmarks.dissection_scenes --write docs/dissection-scenes.md`."""
LIMITS = """## What it does not say

Labels are the best of {concepts} names. A unit between two concepts has the name of one; a unit with a name need not matter to
the output. Units permuted within pictures are the stricter null model where units of a layer overlap the same few concepts:
{permuted}."""


def page(found: dict[str, Any]) -> str:
    """The whole page in Markdown, with the parts that were measured."""
    parts = [HEAD]
    if "network" in found:
        parts += [_published(found["network"]), _beyond(found["network"]["published"]), _wide(found["network"]["wide"])]
    if "training" in found:
        parts.append(_training(found["training"]))
    if "network" in found:
        layers = found["network"]["published"]["layers"]
        sure = [f"{m['sure']['permuted']} of {m['detectors']} detectors of {a}" for a, m in layers.items()]
        text = f"{', '.join(sure)} have p < 0.01 against them"
        parts.append(LIMITS.format(concepts=found["network"]["published"]["concepts"], permuted=text))
    paragraphs = "\n\n".join(parts).split("\n\n")
    return "\n\n".join(p if p.startswith(("|", "#", "```", "- ")) else textwrap.fill(p, 128) for p in paragraphs) + "\n"


def table(heads: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown, numbers to the right."""
    align = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in (heads, align, *rows))


def _counts(d: dict[str, Any]) -> str:
    heads = ["layer", "units", "detectors", "shifted units above 0.04", "unique", *d["categories"]]
    rows = [
        [a, m["units"], m["detectors"], f"{m['by chance']['shifted']:.1f}", sum(m["unique"].values()),
         *(m["unique"].get(c, 0) for c in d["categories"])]
        for a, m in d["layers"].items()
    ]  # fmt: skip
    return table(heads, rows)


def _published(found: dict[str, Any]) -> str:
    d = found["published"]
    layers = d["layers"]
    total = sum(m["detectors"] for m in layers.values())
    sure, stable = (sum(m["sure"]["shifted"] for m in layers.values()), sum(m["stable"] for m in layers.values()))
    best = ", ".join(f"{name} {label} ({iou:.2f})" for name, label, iou in d["best"])
    last = list(layers)[-1]
    per_category = ", ".join(str(m["per category"]) for m in layers.values())
    return (
        f"The network that ships with the package, dissected against exact labels: {d['images']:,} pictures of the scenes, "
        f"{d['concepts']} concepts of {len(d['categories'])} categories, {sum(m['units'] for m in layers.values())} units. "
        f"{found['seconds']:.0f} seconds on one core with 200 draws of each null model, drawing the pictures and the labels "
        "included.\n\n```\nconvoscope dissect scenes scenes:2000 --layers stem --layers 'layer*' --out report.html\n```\n\n"
        "## As published: the top 0.5 %, IoU above 0.04, top label\n\n" + _counts(d) + "\n\n"
        f"Counted by the best label of each category, the unique detectors are {per_category}. {sure} of the {total} detectors "
        "have p < 0.01 against shifted units. Labels hold on pictures they were not chosen on: the mean IoU of "
        f"{last} is {layers[last]['iou']:.3f}, held out {layers[last]['held out']:.3f}; the two halves choose the same label "
        f"for {stable} of the {total}. The best units: {best}."
    )


def _beyond(d: dict[str, Any]) -> str:
    rows = [[a, m["units"], *(m["beyond"].get(c, 0) for c in d["categories"])] for a, m in d["layers"].items()]
    return (
        "## Beyond chance, however small the overlap\n\nUnits whose best label of a category has p < 0.01 against shifted "
        "units. By chance it would be about one in a hundred.\n\n" + table(["layer", "units", *d["categories"]], rows)
    )


def _wide(d: dict[str, Any]) -> str:
    last, layers = list(d["layers"])[-1], d["layers"]
    most = ", ".join(f"{max(m['unique'], key=m['unique'].get)} in {a}" for a, m in layers.items() if any(m["unique"].values()))
    return (
        "## With the top 5 %\n\nThe same with `--fraction 0.05`, where a unit has room for what is spread over a picture: "
        f"colors, materials, textures. At this fraction the limit of 0.04 separates little in {last}, where "
        f"{layers[last]['by chance']['shifted']:.0f} of {layers[last]['units']} shifted units pass it; p-values do: "
        f"{layers[last]['sure']['shifted']} of its {layers[last]['detectors']} detectors have p < 0.01. The category with most "
        f"unique detectors: {most}.\n\n" + _counts(d)
    )


def _training(found: dict[str, Any]) -> str:
    names = list(found["right"])
    layers = list(found["layers"][names[0]])
    rows = [
        [n, f"{100 * found['right'][n]:.1f} %",
         *(f"{found['layers'][n][a]['detectors']} / {sum(found['layers'][n][a]['unique'].values())}" for a in layers)]
        for n in names
    ]  # fmt: skip
    units = [
        [unit, *(f"{label} {iou:.3f}" if label else "-" for _, label, iou in line)] for unit, line in found["units"].items()
    ]
    return (
        "## While it is trained\n\nA network like it, trained from random weights; the checkpoints of that run dissected on "
        f"{found['images']} pictures and put beside each other by `compare_dissections` (on the command line, `convoscope "
        "dissect ... --compare earlier.json`). Detectors / unique detectors of each layer, and the share of 1,000 other "
        "scenes that are named right:\n\n" + table(["checkpoint", "right", *layers], rows) + "\n\n"
        f"Before any training {found['layers'][names[0]][layers[-1]]['detectors']} of {found['of']} units of {layers[-1]} are "
        "above the limit of 0.04 already: alone it says little. "
        f"From the first to the last checkpoint {found['moved']} of {found['of']} units of layer4 became detectors of "
        "something, ceased to be, or changed their label. The three best of the end, with their best label and its IoU at each "
        "checkpoint:\n\n" + table(["unit", *names], units)
    )
