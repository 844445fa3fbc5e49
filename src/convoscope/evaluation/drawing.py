"""An evaluation as a picture and as a page."""

import math
from typing import TYPE_CHECKING, Any

from convoscope.evaluation.result import Evaluation
from convoscope.show import scores as show
from convoscope.show.figure import number

if TYPE_CHECKING:
    from PIL import Image

SURE = 0.05
BETTER = {1: "higher is better", -1: "lower is better", 0: "neither is better"}


def scores_of(found: Evaluation) -> show.Scores:
    """Means, intervals and what random maps reach."""
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    panels = []
    for metric, label in zip(found.metrics, found.labels, strict=True):
        mine = [rows[label, name] for name in found.names]
        unit = mine[0]["unit"]
        points = [show.Point(r["mean"], r["low"], r["high"], _sure(r, found)) for r in mine]
        null = rows[label, "random"]["mean"] if "random" in found.nulls else math.nan
        panels.append(show.Panel(metric.title, f"{BETTER[metric.direction]}; {unit}", points, null))
    images = found.scores.shape[-1]
    about = [f"{found.network}, {images} image{'s' if images != 1 else ''}; means with 95 % bootstrap intervals over images"]
    if "random" in found.nulls:
        about.append(
            "dashed: random maps; filled points are better than those (paired test over images, Holm, p ≤ 0.05), hollow ones "
            "are not shown to be; gray names know nothing of the network"
        )
    return show.Scores("Can these maps be trusted?", about, found.names, panels, found.nulls)


def _sure(row: dict[str, Any], found: Evaluation) -> bool:
    """Whether it is better than random maps; where there are none to compare with, all are drawn alike."""
    if math.isnan(row["p"]):
        return "random" not in found.nulls or row["direction"] == 0
    return row["p"] <= SURE and row["skill"] > 0


def picture(found: Evaluation) -> "Image.Image":
    """One panel for each metric."""
    return show.figure(scores_of(found))


def page(found: Evaluation, command: str = "") -> str:
    """The picture with the table of its numbers."""
    nulls = {"random": "", "edges": "_edges"} | ({} if found.shuffled is None else {"shuffled": "_shuffled"})
    beside = [(f"skill over {what}", f"skill{key}", f"p{key}") for what, key in nulls.items()]
    header = ("metric", "method", "mean", "95 % interval", *(h for words, _, _ in beside for h in (words, "p")), "images")
    rows = [
        (
            r["metric"], r["method"], number(r["mean"]), f"{number(r['low'])} to {number(r['high'])}",
            *(number(r[key]) for _, skill, p in beside for key in (skill, p)), str(r["images"]),
        )
        for r in found.rows()
    ]  # fmt: skip
    rows = [tuple("" if cell in ("nan", "nan to nan") else cell for cell in row) for row in rows]
    notes = [f"Left out {name} by {metric}: {reason}" for (metric, name), reason in found.left_out.items()]
    notes.append(f"{found.passes:,} forward passes of one image in {found.seconds:.1f} s, {found.explained:,} for the maps.")
    return show.page(scores_of(found), rows, header, notes, command)


def fragment(found: Evaluation) -> str:
    """For notebooks: the picture."""
    from convoscope.show.html import image

    return image(picture(found), repr(found), 92)
