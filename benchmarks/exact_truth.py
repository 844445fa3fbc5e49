"""The benchmark with exact truth at a size for the documents, a method at a time, so that it can be stopped and goes on.

    python -m benchmarks.exact_truth [--pictures 24] [--samples 100] [--steps 24] [--minutes 0] [--out docs/bench.md]

Scores and maps of each method are kept in the folder as soon as there are any; a second call goes on with the methods that are
missing, and the page is written when there are all. `--minutes` stops before then; of two calls at once one goes
`--backwards`. Tasks are as `convoscope bench --full` has
them, but for how many pictures they take; methods have their own settings, but for samples, masks and steps, which are
limited to what the options say.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch

import convoscope as cs
from convoscope.evaluation.base import rows_of
from convoscope.evaluation.bench import drawing, tasks
from convoscope.evaluation.bench.base import Task
from convoscope.evaluation.bench.parts import played
from convoscope.evaluation.bench.ranking import MetricRanking, rank_metrics
from convoscope.evaluation.bench.result import CONTROLS, Bench, Kept, Outcome
from convoscope.evaluation.bench.run import KEPT, Explained, bench, limited
from convoscope.files import replaced

SIZES: dict[str, dict[str, int]] = {  # of tasks whose pictures are not counted like those of parts
    "analytic": {"pictures": 4}, "shortcut": {"networks": 5, "pictures": 3}, "tris": {"pictures": 16},
    "birds-contrastivity": {"pictures": 12, "compared": 10}, "watermark": {"pictures": 4}, "permuted": {"pictures": 24},
    "zero-influence": {"pictures": 12},
}  # fmt: skip
FEWER = {"sobol": {"samples": 2}, "is-cam": {"channels": 64, "steps": 2}, "ss-cam": {"channels": 64, "samples": 2}}
PICTURE = Path("docs/images/bench.webp")


def sized(name: str, pictures: int) -> Task:
    """The task with this many pictures, or as many as `SIZES` says."""
    task = tasks()[name]()
    return dataclasses.replace(task, **{"pictures": pictures, **SIZES.get(name, {})})  # type: ignore[type-var]


def controls(asked: list[Task], store: Path) -> None:
    """The rows that are no methods, chance, and which pictures' maps are kept."""
    for task in asked:
        path = store / f"controls {task.name}.pt"
        if path.exists():
            continue
        found = bench(["gradient"], [task], quick=False)
        outcome, kept = found.outcomes[0], found.kept.get(task.name)
        rows = {
            name: {"scores": outcome.scores[1 + k], "reason": "", "seconds": outcome.seconds.get(name, 0.0),
                   "maps": kept.by_name[name] if kept else None}
            for k, name in enumerate(CONTROLS)
        }  # fmt: skip
        with replaced(path) as partial:
            torch.save({"chance": outcome.chance, "rows": rows}, partial)


def run(method: cs.Method, asked: list[Task], store: Path) -> None:
    """One method on these tasks, into the store."""
    mapper = Explained(method)
    for task in asked:
        began, row = time.perf_counter(), {"reason": "", "scores": None, "maps": None}
        try:
            row["scores"] = task.score(mapper)
            if task.name == KEPT[0]:
                truth = played(task.network, task.pictures, task.seed)  # type: ignore[attr-defined]
                row["maps"] = mapper(truth.network, truth.x, truth.target, tuple(range(len(truth.x))))[: KEPT[1]].float()
        except cs.UnsupportedError as error:
            row["reason"] = str(error)
        row["seconds"] = time.perf_counter() - began
        with replaced(store / f"{method.name} {task.name}.pt") as partial:
            torch.save(row, partial)


def assembled(made: list[cs.Method], asked: list[Task], store: Path) -> Bench:
    """The benchmark of all that is in the store."""
    names = (*(m.name for m in made), *CONTROLS)
    outcomes, kept = [], {}
    for task in asked:
        known = torch.load(store / f"controls {task.name}.pt")
        rows = {m.name: torch.load(store / f"{m.name} {task.name}.pt") for m in made} | known["rows"]
        nothing = torch.full_like(known["chance"], torch.nan)
        scores = torch.stack([nothing if rows[n]["reason"] else rows[n]["scores"] for n in names])
        reasons = {n: rows[n]["reason"] for n in names if rows[n]["reason"]}
        outcomes.append(Outcome(task, names, scores, known["chance"], reasons, {n: rows[n]["seconds"] for n in names}))
        if task.name == KEPT[0]:
            truth = played(task.network, task.pictures, task.seed)  # type: ignore[attr-defined]
            chosen = torch.arange(min(KEPT[1], len(truth.x)))
            maps = {n: rows[n]["maps"] for n in names if rows[n]["maps"] is not None}
            kept[task.name] = Kept(truth.network, truth.x[chosen], rows_of(truth.target, chosen), maps)
    titles = (*(m.title for m in made), *CONTROLS.values())
    spent = sum(sum(o.seconds.values()) for o in outcomes)
    return Bench(tuple(outcomes), names, titles, tuple(made), kept, quick=False, seconds=spent)


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
        title = f"*{r['title']}*" if r["control"] else r["title"]
        each = [cell(skills[o.task.name, r["method"]]["skill"]) for o in found.outcomes]
        rows.append((str(r["rank"] or ""), title, f"{cell(r['skill'])} ({cell(r['low'])} to {cell(r['high'])})", *each))
    return markdown(("", "method", "mean skill", *(o.task.title for o in found.outcomes)), rows, 3)


def task_table(outcome: Outcome) -> str:
    """The numbers themselves, with intervals."""
    rows = sorted(outcome.rows(), key=lambda r: (r["reason"] != "", -r["skill"] if r["skill"] == r["skill"] else 0))
    cells = []
    for r in rows:
        name = f"*{CONTROLS[r['method']]}*" if r["method"] in CONTROLS else f"`{r['method']}`"
        values = ("", "", "") if r["reason"] else (
            f"{cell(r['mean'])} ({cell(r['low'])} to {cell(r['high'])})",
            f"{cell(r['skill'])} ({cell(r['skill_low'])} to {cell(r['skill_high'])})",
            f"{r['p']:.2g}" if r["p"] == r["p"] else "",
        )  # fmt: skip
        cells.append((str(r["rank"] or ""), name, *values))
    return markdown(("", "method", "score", "skill", "p"), cells, 2)


def asked_table(found: Bench) -> str:
    rows = []
    for o in found.outcomes:
        sure = o.reliability(found.seed)
        rows.append((f"[{o.task.title}](#{anchor(o.task.title)})", f"`{o.task.name}`", o.task.exact, o.task.measures,
                     str(o.scores.shape[-1]), cell(float(o.chance.nanmean())), cell(sure)))  # fmt: skip
    return markdown(("task", "name", "the truth is exact, because", "score", "items", "chance", "order reliable"), rows, 4)


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


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
random map* the share below noise (0 % is right). *Passes* are forward passes for each picture and method.

{metrics}

## Each task

Scores as the task measures them; `p` for the difference from random maps (signs of items flipped at random, Holm's correction
over methods).

{each}"""


def page(found: Bench, metrics: MetricRanking, command: str, sizes: str) -> str:
    reasons = [f"- `{n}` on *{o.task.title}*: {why}" for o in found.outcomes for n, why in o.reasons.items()]
    refused = "\nNo score:\n\n" + "\n".join(reasons) + "\n" if reasons else ""
    each = "\n\n".join(f"### {o.task.title}\n\n{' '.join((type(o.task).__doc__ or '').split())}\n\n{task_table(o)}"
                       for o in found.outcomes)  # fmt: skip
    sure = metrics.reliability
    return PAGE.format(
        command=command, sizes=sizes, picture=PICTURE.name, asked=asked_table(found), ranking=ranking(found), refused=refused,
        images=metrics.scores.shape[-1], parts=found.of("parts").task.title, sure=cell(sure), most=cell(max(sure, 0) ** 0.5),
        metrics=metrics_table(metrics), each=each,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--samples", type=int, default=100, help="at most this many samples or masks of a method")
    parser.add_argument("--steps", type=int, default=24, help="at most this many steps of a method")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many, to go on later")
    parser.add_argument("--quick", action="store_true", help="as `convoscope bench` does it, in one go")
    parser.add_argument("--backwards", action="store_true", help="from the last method to the first")
    parser.add_argument("--metric-pictures", type=int, default=8, help="pictures on which metrics are asked")
    parser.add_argument("--store", type=Path, default=Path("runs/exact-truth"))
    parser.add_argument("--out", type=Path, default=Path("docs/bench.md"))
    options = parser.parse_args()
    if options.quick:
        found = bench()
        write(
            found, rank_metrics(found), "--quick", "The tasks and methods are those of `convoscope bench`, quick.", options.out
        )
        return
    options.store.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    limits = {"samples": options.samples, "masks": options.samples, "steps": options.steps}
    made = [limited(cls(), limits, FEWER) for cls in cs.methods().values()]
    asked = [sized(name, options.pictures) for name in tasks()]
    controls(asked, options.store)
    for method in reversed(made) if options.backwards else made:
        missing = [t for t in asked if not (options.store / f"{method.name} {t.name}.pt").exists()]
        if missing:
            if options.minutes and time.perf_counter() - began > 60 * options.minutes:
                sys.exit("not all methods are done; the same command goes on")
            run(method, missing, options.store)
            print(f"{method.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    found = assembled(made, asked, options.store)
    metrics = rank_metrics(found, pictures=options.metric_pictures, few=0)
    sizes = (
        f"Tasks on scenes took {options.pictures} pictures, the others as many as the script's `SIZES`; methods had their own "
        f"settings, with at most {options.samples} samples or masks and {options.steps} steps. `convoscope bench --full` "
        "limits nothing."
    )
    settings = f"--pictures {options.pictures} --samples {options.samples} --steps {options.steps}"
    write(found, metrics, settings, sizes, options.out)


def write(found: Bench, metrics: MetricRanking, settings: str, sizes: str, out: Path) -> None:
    """The page and its picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shown = drawing.picture(found)
    shown.thumbnail((2000, 2000))
    shown.save(PICTURE, quality=80, method=6)
    out.write_text(page(found, metrics, f"python -m benchmarks.exact_truth {settings} --out {out}", sizes), encoding="utf-8")


if __name__ == "__main__":
    main()
