"""A benchmark with exact truth as a page and as a picture."""

import math
import re
from typing import TYPE_CHECKING, Any

from convoscope.evaluation.bench.result import CONTROLS, Bench, Outcome
from convoscope.show import bench as show

if TYPE_CHECKING:
    from PIL import Image

TITLE = "Which explanations know the answer?"
LEDE = (
    "Every method explains networks and pictures of which the right explanation is known exactly, and stands beside the right "
    "answer, an edge detector and random maps."
)
MINUS = "\N{MINUS SIGN}"
NOTES = (
    "Methods whose intervals overlap are not told apart by this run.",
    "The mean gives every task the same weight. What matters to you may be one of the tasks.",
    "Every method has the same settings on all tasks. A baseline or a layer that fits a task better would change its place.",
    "An edge detector that scores well on a task shows how far one comes there without looking at the network.",
)
QUICK = "This is the quick run: fewer pictures, and methods with fewer samples, masks and steps than by default."


def benchmark_of(found: Bench, metrics: Any = None, command: str = "") -> show.Benchmark:
    """What the page shows; `metrics` is a ranking of metrics, if there is one."""
    rows = {(r["task"], r["method"]): r for r in found.rows()}
    made = []
    for place in found.ranking():
        name = place["method"]
        bars = [_bar(rows[o.task.name, name], o) for o in found.outcomes]
        mean = show.Bar(place["skill"] if place["tasks"] else math.nan, place["low"], place["high"], place["low"] > 0)
        left_out = len(found.outcomes) - place["tasks"]
        note = f"{place['tasks']} of {len(found.outcomes)} tasks" if left_out else ""
        title = CONTROLS.get(name, place["title"] if ":" not in name else f"{place['title']}, {name.split(':', 1)[1]}")
        made.append(show.Row(name, title[:1].upper() + title[1:], str(place["rank"] or ""), mean, bars, place["control"], note))
    asked = [_asked(o, rows, found.seed) for o in found.outcomes]
    told = [] if metrics is None else [_metric(r) for r in metrics.rows() if not r["reason"]]
    notes = [*([QUICK] if found.quick else []), *NOTES]
    notes.append(f"{len(found.methods)} methods in {found.seconds:.0f} s, seed {found.seed}.")
    return show.Benchmark(TITLE, LEDE, asked, made, told, notes, command)


def page(found: Bench, metrics: Any = None, command: str = "") -> str:
    """What was asked, who knew, which metric would have told, who declined."""
    return show.page(benchmark_of(found, metrics, command))


def picture(found: Bench) -> "Image.Image":
    """The table of bars."""
    return show.figure(benchmark_of(found))


def _asked(outcome: Outcome, rows: dict[tuple[str, str], dict[str, Any]], seed: int) -> show.Asked:
    task = outcome.task
    question = re.split(r"(?<=[.?!])\s", " ".join((type(task).__doc__ or "").split()))[0]
    own = [rows[task.name, n] for n in outcome.names if n not in CONTROLS]
    best = max((r for r in own if r["skill"] == r["skill"]), key=lambda r: r["skill"], default=None)
    low, high = task.range
    chance, edges = float(outcome.chance.nanmean()), rows[task.name, "edges"]["mean"]
    facts = [
        ("Items", str(rows[task.name, "oracle"]["items"])),
        ("Chance", f"{chance:z.2f}, on a scale from {low:g} to {high:g}; an edge detector {edges:z.2f}".replace("-", MINUS)),
    ]
    sure = outcome.reliability(seed)
    facts += [] if sure != sure else [("Order", f"{sure:.2f} reliable (split halves; 1: new items would give the same order)")]
    facts += [] if best is None else [("Best", f"{best['method']}, {best['mean']:.2f}")]
    return show.Asked(task.name, task.title, question, task.exact, task.measures, facts, list(outcome.reasons.items()))


def _bar(row: dict[str, Any], outcome: Outcome) -> show.Bar:
    if row["reason"]:
        return show.Bar(math.nan, note=row["reason"])
    note = f"{outcome.task.measures}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    note += f"; skill {row['skill_low']:.2f} to {row['skill_high']:.2f}"
    note += "" if math.isnan(row["p"]) else f"; p = {row['p']:.3g}; rank {row['rank'] or '-'}"
    return show.Bar(row["skill"], row["skill_low"], row["skill_high"], row["skill_low"] > 0, note)


def _metric(row: dict[str, Any]) -> tuple[str, show.Bar, str]:
    note = ""
    if row["oracle"] == row["oracle"]:
        note = f"places {row['oracle']:.0%} of the methods below the right answer, {row['random']:.0%} below a random map"
    return row["title"], show.Bar(row["agreement"], row["low"], row["high"], row["low"] > 0), note
