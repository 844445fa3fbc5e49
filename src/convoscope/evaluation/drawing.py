"""An evaluation as a picture and as a page."""

import math
from typing import TYPE_CHECKING, Any

from convoscope.evaluation.comparisons import SURE
from convoscope.evaluation.result import Evaluation
from convoscope.evaluation.statistics import RESAMPLES
from convoscope.show import judged as show
from convoscope.show import scores
from convoscope.show.figure import number
from convoscope.show.html import Fact

if TYPE_CHECKING:
    from PIL import Image

Rows = dict[tuple[str, str], dict[str, Any]]
TITLE = "Can these maps be trusted?"
NOTES = (
    "Methods are compared on the same images. A metric on which no two are told apart needs more images.",
    "Each metric asks something else, in its own unit: there is no mean over metrics.",
)
BETTER = {1: "higher is better", -1: "lower is better", 0: "neither is better"}


def scores_of(found: Evaluation) -> scores.Scores:
    """Means, intervals and what random maps reach."""
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    panels = []
    for metric, label in zip(found.metrics, found.labels, strict=True):
        mine = [rows[label, name] for name in found.names]
        unit = mine[0]["unit"]
        points = [scores.Point(r["mean"], r["low"], r["high"], _sure(r, found)) for r in mine]
        null = rows[label, "random"]["mean"] if "random" in found.nulls else math.nan
        panels.append(scores.Panel(metric.title, f"{BETTER[metric.direction]}; {unit}", points, null))
    images = found.scores.shape[-1]
    about = [f"{found.network}, {images} image{'s' if images != 1 else ''}; means with 95 % bootstrap intervals over images"]
    if "random" in found.nulls:
        about.append(
            "dashed: random maps; filled points are better than those (paired test over images, p ≤ 0.05 for all together), "
            "hollow ones are not shown to be; gray names know nothing of the network"
        )
    return scores.Scores(TITLE, about, found.names, panels, found.nulls)


def _sure(row: dict[str, Any], found: Evaluation) -> bool:
    """Whether it is better than random maps; where there are none to compare with, all are drawn alike."""
    if math.isnan(row["p"]):
        return "random" not in found.nulls or row["direction"] == 0
    return row["p"] <= SURE and row["skill"] > 0


def picture(found: Evaluation) -> "Image.Image":
    """One panel for each metric."""
    return scores.figure(scores_of(found))


def page(found: Evaluation, command: str = "") -> str:
    """A table at a glance, each metric with its intervals and groups, what was measured on what, and all numbers."""
    return show.page(judgment(found, command))


def judgment(found: Evaluation, command: str = "") -> show.Judgment:
    """What the page shows."""
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    some, many = len(found.names) - len(found.nulls), found.scores.shape[-1]
    lede = f"{counted(some, 'method')} judged by {counted(len(found.metrics), 'metric')} on {counted(many, 'image')}"
    lede += (f" of {found.data}" if found.data else "") + f", as the network {found.network or 'given'} sees them."
    refused: dict[str, list[str]] = {}
    for (metric, name), reason in found.left_out.items():
        refused.setdefault(reason, []).append(f"{name} by {metric}")
    header, numbers = _numbers(found, rows)
    notes = (found.warning, *NOTES) if found.warning else NOTES
    judged = [_judged(found, k, rows) for k in range(len(found.metrics))]
    return show.Judgment(
        TITLE, lede, found.names, found.nulls, judged, _kinds(found), _facts(found), notes,
        [(", ".join(who), why) for why, who in refused.items()], header, numbers, _settings(found), command,
    )  # fmt: skip


def counted(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _judged(found: Evaluation, k: int, rows: Rows) -> show.Judged:
    metric, label, groups = found.metrics[k], found.labels[k], found.groups(found.labels[k])
    best, marks = found.best(label) if len(groups) > 1 else [], []
    for name in found.ranking(label):
        r = rows[label, name]
        own = [g for g, group in enumerate(groups) if name in group]
        marks.append(show.Mark(name, r["mean"], r["low"], r["high"], _kind(r, found), name in best, own, _told(r, found)))
    defined = (~found.scores[k].isnan()).any(0).sum().item()
    images = "" if defined == found.scores.shape[-1] else f"Defined on {defined} of {counted(found.scores.shape[-1], 'image')}."
    null = rows[label, "random"]["mean"] if "random" in found.nulls else math.nan
    said = ("No two methods are told apart." if len(groups) == 1 else "") if groups else ""
    asks = metric.use[:1].upper() + metric.use[1:] + ("" if metric.use.endswith("?") else ".")
    title = metric.title + (f", {label.split(':', 1)[1]}" if ":" in label else "")
    return show.Judged(
        label, title, metric.family, rows[label, found.names[0]]["unit"], BETTER[metric.direction].split()[0], asks,
        metric.drawback, images, marks, null, said,
    )  # fmt: skip


def _kind(row: dict[str, Any], found: Evaluation) -> str:
    """How a method stands beside the maps that know nothing."""
    if row["method"] in found.nulls:
        return "null"
    keys = [key for null, key in (("random", ""), ("edges", "_edges")) if null in found.nulls]
    beside = [(row[f"p{key}"], row[f"skill{key}"]) for key in keys]
    if not beside or any(math.isnan(p) for p, _ in beside):
        return ""
    better = [p <= SURE and skill > 0 for p, skill in beside]
    if all(better):
        return "both" if len(better) > 1 or "edges" not in found.nulls else "random"
    p, skill = beside[0]
    return "random" if better[0] else "worse" if p <= SURE and skill < 0 else "none"


def _kinds(found: Evaluation) -> list[tuple[str, str]]:
    words = {
        ("random", "edges"): [("both", "better than random maps and an edge detector"), ("random", "better than random maps")],
        ("random",): [("both", "better than random maps")], ("edges",): [("random", "better than an edge detector")],
    }  # fmt: skip
    known = tuple(n for n in ("random", "edges") if n in found.nulls)
    return [*words[known], ("none", "not shown to be better"), ("worse", "worse than random maps")] if known else []


def _told(row: dict[str, Any], found: Evaluation) -> str:
    """A mark in words."""
    if math.isnan(row["mean"]):
        return found.left_out.get((row["metric"], row["method"]), "no score")
    text = f"{row['method']}: mean {number(row['mean'])}"
    text += "" if math.isnan(row["low"]) else f", 95 % interval {number(row['low'])} to {number(row['high'])}"
    for what, key in (("random maps", ""), ("edges", "_edges")):
        p, skill = row[f"p{key}"], row[f"skill{key}"]
        if not math.isnan(p):
            text += f"; {number(abs(skill))} {'better' if skill >= 0 else 'worse'} than {what}, {chance(p)}"
    if row["group"]:
        others = len(found.names) - len(found.nulls) - 1
        text += f"; shown to be better than {row['better_than']} of {others} methods"
    return text


def chance(p: float) -> str:
    """A p-value."""
    return "" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _facts(found: Evaluation) -> list[Fact]:
    images, few = found.scores.shape[-1], found.scores.shape[-1] <= 12
    flips = f"all {2**images:,} flips" if few else f"{RESAMPLES:,} random flips"
    facts = [
        Fact("Network", found.network or "given", note=found.network_hash),
        Fact("Images", f"{images:,}" + (f" of {found.data}" if found.data else "")),
        Fact("Explained", found.target or "the top class of each image"),
        Fact("Intervals", f"percentile bootstrap over images, {RESAMPLES:,} draws"),
        Fact("Tests", f"paired sign-flip permutation tests over images, {flips}; p ≤ 0.05 for all pairs of a metric "
             "together, and for all methods beside random maps or edges (Westfall and Young's step-down)"),
    ]  # fmt: skip
    if found.shuffled is not None:
        facts.append(Fact("Shuffles", f"each map beside {counted(found.shuffled.shape[1], 'version')} of itself, shuffled"))
    cost = f"{found.passes:,} forward passes of one image in {found.seconds:.1f} s, {found.explained:,} for the maps."
    return [*facts, Fact("Seed", str(found.seed)), Fact("Cost", cost)]


def _settings(found: Evaluation) -> list[Fact]:
    named = [*zip(found.names, found.made, strict=False), *zip(found.labels, found.metrics, strict=True)]
    return [Fact(name, repr(spec)) for name, spec in named]


def _numbers(found: Evaluation, rows: Rows) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every row in the order of the page, as texts."""
    nulls = {"random": "", "edges": "_edges"}
    beside = [(f"over {n}", f"skill{k}", f"p{k}") for n, k in nulls.items() if n in found.nulls]
    beside += [] if found.shuffled is None else [("over shuffled", "skill_shuffled", "p_shuffled")]
    header = ("metric", "method", "mean", "low", "high", "group", "better than", *(h for w, _, _ in beside for h in (w, "p")),
              "images", "unit")  # fmt: skip
    made = []
    for label in found.labels:
        for name in found.ranking(label):
            r = rows[label, name]
            numbers = [number(r[key]) for key in ("mean", "low", "high")]
            numbers += [r["group"], str(r["better_than"])]
            numbers += [number(r[key]) for _, skill, p in beside for key in (skill, p)]
            made.append((label, name, *("" if n == "nan" else n for n in numbers), str(r["images"]), r["unit"]))
    return header, made


def fragment(found: Evaluation) -> str:
    """For notebooks: the picture."""
    from convoscope.show.html import image

    return image(picture(found), repr(found), 92)
