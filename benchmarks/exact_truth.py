"""The benchmark with exact truth for the documents: `convoscope bench --full`, with some baselines more, and its tables.

    python -m benchmarks.exact_truth [--store runs/exact-truth] [--out docs/bench.md] [--few 4]

What methods score on tasks, and metrics on methods, is kept in the store as soon as it is there: the same command, killed, goes
on, and it goes on from `convoscope bench --full --store` too. The page is written when there is all.
"""

import argparse
import sys
from pathlib import Path

import torch

import convoscope as cs
from convoscope.evaluation.bench import drawing
from convoscope.evaluation.bench.birds import BirdsCorrectness
from convoscope.evaluation.bench.ranking import AGAIN, MetricRanking, rank_metrics
from convoscope.evaluation.bench.result import CONTROLS, Bench, Outcome
from convoscope.evaluation.bench.run import FULL_LIMITS, bench
from convoscope.evaluation.bench.shortcut_networks import ODDS

BASELINES = ("integrated-gradients:baseline=mean", "deep-lift:baseline=mean")
PICTURE = Path("docs/images/bench.webp")


def cell(value: float) -> str:
    return "" if value != value else f"{value:z.2f}".replace("-", "\N{MINUS SIGN}")


def markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]], right: int = 0) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join("---" if i < right else "--:" for i in range(len(heads))) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ranking(found: Bench) -> str:
    """The mean skill over tasks, and each."""
    skills = {(r["task"], r["method"]): r for r in found.rows()}
    rows = []
    for r in found.ranking():
        settings = r["method"].partition(":")[2]
        title = f"*{r['title']}*" if r["control"] else f"{r['title']}, {settings}" if settings else r["title"]
        each = [cell(skills[o.task.name, r["method"]]["skill"]) for o in found.outcomes]
        rows.append((str(r["rank"] or ""), title, f"{cell(r['skill'])} ({cell(r['low'])} to {cell(r['high'])})", *each))
    return markdown(("", "method", "mean skill", *(o.task.title for o in found.outcomes)), rows, 3)


def task_table(outcome: Outcome, more: dict[str, list[float]]) -> str:
    """The numbers themselves, with intervals, and more columns of everybody."""
    rows = sorted(outcome.rows(), key=lambda r: (r["reason"] != "", -r["skill"] if r["skill"] == r["skill"] else 0))
    cells = []
    for r in rows:
        name = f"*{CONTROLS[r['method']]}*" if r["method"] in CONTROLS else f"`{r['method']}`"
        values = ("", "", "") if r["reason"] else (
            f"{cell(r['mean'])} ({cell(r['low'])} to {cell(r['high'])})",
            f"{cell(r['skill'])} ({cell(r['skill_low'])} to {cell(r['skill_high'])})",
            f"{r['p']:.2g}" if r["p"] == r["p"] else "",
        )  # fmt: skip
        extra = [cell(column[outcome.names.index(r["method"])]) for column in more.values()]
        cells.append((str(r["rank"] or ""), name, *values, *extra))
    return markdown(("", "method", "score", "skill", "p", *more), cells, 2)


def asked_table(found: Bench) -> str:
    rows = []
    for o in found.outcomes:
        sure, items = o.reliability(found.seed), int((~o.scores[o.names.index("oracle")].isnan()).sum())
        rows.append((f"[{o.task.title}](#{anchor(o.task.title)})", f"`{o.task.name}`", o.task.exact, o.task.measures,
                     str(items), cell(float(o.chance.nanmean())), cell(sure)))  # fmt: skip
    return markdown(("task", "name", "the truth is exact, because", "score", "items", "chance", "order reliable"), rows, 4)


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def few_of(metrics: MetricRanking) -> str:
    """Which metrics have scores on fewer pictures than there are, since they take long or are not defined on some."""
    counts = (~metrics.scores.isnan()).any(1).sum(-1).tolist()
    groups = sorted({count for count in counts if 0 < count < metrics.scores.shape[-1]})
    told = [
        f"{n}: {', '.join(m.title for m, count in zip(metrics.metrics, counts, strict=True) if count == n)}" for n in groups
    ]
    return f"Some have scores on fewer pictures. {'; '.join(told)}." if told else ""


def beside(found: Bench, outcome: Outcome) -> dict[str, list[float]]:
    """More columns of some tasks: the strengths of shortcuts, and single deletion as it is published."""
    if outcome.task.name == "shortcut":
        return {f"{odds:g} times as often": [float(s[k :: len(ODDS)].nanmean()) for s in outcome.scores]
                for k, odds in enumerate(ODDS)}  # fmt: skip
    if outcome.task.name != "birds-correctness":
        return {}
    task, kept = BirdsCorrectness(outcome.task.pictures, published=True), found.kept["parts"].by_name  # type: ignore[attr-defined]
    scores = []
    for name in outcome.names:
        maps = kept[name].double() if name in kept else torch.zeros(0)
        mapper = task.oracle() if name == "oracle" else lambda *_, maps=maps: maps
        scores.append(float(task.score(mapper).nanmean()) if len(maps) else torch.nan)
    return {"as published": scores}


def metrics_table(metrics: MetricRanking) -> str:
    rows = [
        (r["title"], f"`{r['metric']}`", r["family"], f"{cell(r['agreement'])} ({cell(r['low'])} to {cell(r['high'])})",
         f"{r['oracle']:.0%}" if r["oracle"] == r["oracle"] else "", f"{r['random']:.0%}" if r["random"] == r["random"] else "",
         f"{r['passes']:,.0f}")
        for r in metrics.rows() if not r["reason"]
    ]  # fmt: skip
    heads = ("metric", "name", "family", "agreement", "below the right answer", "below a random map", "passes")
    return markdown(heads, rows, 3)


PAGE = """# Which explanations know the answer?

Every method explains networks and pictures of which the right explanation is known exactly. Beside the methods stand the
right answer itself, an edge detector and random maps (in italics). *Skill* is 0 for what random maps reach, 1 for the right
answer and -1 for the worst score there is; intervals are 95 % bootstrap intervals over the items of a task. [How to run it,
read it and add a task](how-to/bench.md).

    {command}

{sizes}

![Every method on every task](images/{picture})

## What was asked

{asked}

*Order reliable* is the split-half reliability of the order of the methods (Spearman-Brown): 1 says that as many new items
would give the same order, 0 that they would give another.

## The ranking

The mean over tasks gives each the same weight; a task that a method refuses counts 0, what guessing gets.

{ranking}
{refused}
## Which metric would have told?

Where nobody knows the truth, one has metrics. Here they judge the maps of the same methods on {images} pictures of *{parts}*.
*Agreement* is the rank correlation, over methods, of the mean a metric gives with the exact one (the metric turned so that
higher is better). The exact order itself is {sure} reliable on these pictures, so no metric can be expected to agree by more
than {most}. *Below the right answer* is the share of the methods that the metric places below it (100 % is right), *below a
random map* the share below noise (0 % is right). *Passes* are forward passes for each picture and method. {few} AIC and SIC
fill what is not shown with the mean: these drawn pictures need fewer bytes whole than partly filled in, so that the filling of
the paper has no curve here.

{metrics}

{absent}

## Each task

Scores as the task measures them; `p` for the difference from random maps (signs of items flipped at random, Holm's correction
over methods).

{each}"""


SIZES = """The methods are those of `convoscope bench --full`, with at most {steps} steps and {samples} samples or masks, and
two with another baseline."""


def page(found: Bench, metrics: MetricRanking, command: str) -> str:
    reasons = [f"- `{n}` on *{o.task.title}*: {why}" for o in found.outcomes for n, why in o.reasons.items()]
    refused = "\nNo score:\n\n" + "\n".join(reasons) + "\n" if reasons else ""
    each = "\n\n".join(
        f"### {o.task.title}\n\n{' '.join((type(o.task).__doc__ or '').split())}\n\n{task_table(o, beside(found, o))}"
        for o in found.outcomes
    )
    absent = [f"- {r['title']}: {r['reason']}" for r in metrics.rows() if r["reason"]]
    sure = metrics.reliability
    sizes = SIZES.format(**FULL_LIMITS)
    return PAGE.format(
        command=command, sizes=sizes, picture=PICTURE.name, asked=asked_table(found), ranking=ranking(found), refused=refused,
        images=metrics.scores.shape[-1], few=few_of(metrics), parts=found.of("parts").task.title, sure=cell(sure),
        most=cell(max(sure, 0) ** 0.5), metrics=metrics_table(metrics), absent="\n".join(absent), each=each,
    )  # fmt: skip


def shown(what: str) -> object:
    """Who is told how far it is."""

    def tell(done: int, total: int) -> None:
        print(f"\r{what} {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    return tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/exact-truth"))
    parser.add_argument("--out", type=Path, default=Path("docs/bench.md"))
    parser.add_argument("--few", type=int, default=AGAIN, help="pictures for metrics that take long; 0 leaves them out")
    given = parser.parse_args()
    found = bench([*cs.methods(), *BASELINES], quick=False, store=given.store, progress=shown("methods"))  # type: ignore[arg-type]
    metrics = rank_metrics(found, few=given.few, store=given.store, progress=shown("metrics"))  # type: ignore[arg-type]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    image = drawing.picture(found)
    image.thumbnail((2000, 2000))
    image.save(PICTURE, quality=80, method=6)
    command = "python -m benchmarks.exact_truth" + (f" --few {given.few}" if given.few != AGAIN else "")
    given.out.write_text(page(found, metrics, command), encoding="utf-8")


if __name__ == "__main__":
    main()
