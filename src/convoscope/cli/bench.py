"""`convoscope bench`: which method finds the answer where the answer is known, and which metric would have told."""

from pathlib import Path
from typing import Annotated, Any

import typer

from convoscope.cli import options as opt


def bench(
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods, with commas between; settings behind a colon; 'all' for all.")
    ] = "all",
    tasks: Annotated[str, typer.Option(metavar="NAMES", help="Tasks, likewise; --list shows them.")] = "all",
    full: Annotated[
        bool, typer.Option("--full", help="More pictures, samples, metrics: a quarter of an hour, two cores; --store goes on.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the tasks and what they ask, and stop.")] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", metavar="FILE",
            help="A page (.html), a picture (.png), rows (.csv) or all scores (.json); may be repeated. Default: none.",
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what is done there; the same command, killed, goes on from it.")
    ] = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:  # fmt: skip
    """Rank methods by tasks of which the right answer is known exactly, then the metrics by how well they agree."""
    from convoscope.cli.evaluate import check_ending, goes_on
    from convoscope.cli.terminal import Progress, print_json
    from convoscope.cli.work import choose_methods, command_line, jsonable, split_methods
    from convoscope.evaluation.bench import tasks as known
    from convoscope.evaluation.bench.run import bench as run
    from convoscope.files import check_writable, write_text

    if listed:
        _list(as_json)
        return
    for path in out or []:
        check_ending(path)
        check_writable(path)
    asked: list[Any] = list(known()) if tasks == "all" else list(split_methods(tasks))
    choose_methods([methods], {}, ())  # wrong names are told before any work
    chosen = None if methods == "all" else split_methods(methods)
    with Progress("benchmark, methods") as progress, goes_on(store):
        found = run(chosen, asked, quick=not full, seed=seed, store=store, progress=progress)
    metrics = _metrics(found, seed, store)
    for path in out or []:
        if path.suffix.lower() in (".html", ".htm"):
            from convoscope.evaluation.bench import drawing

            write_text(path, drawing.page(found, metrics, command_line()))
        else:
            found.save(path)
    if as_json:
        extra = {"metrics": metrics.to_dict()} if metrics else {}
        document = {"schema": "convoscope.bench/1", **found.to_dict(), **extra, "files": [str(p) for p in out or []]}
        print_json(jsonable(document))
        return
    _tell(found, metrics, out or [])


def _metrics(found: Any, seed: int, store: Path | None) -> Any:
    """The ranking of the metrics, where the task that it is judged by was run with methods enough to rank."""
    from convoscope.cli.evaluate import goes_on
    from convoscope.cli.terminal import Progress
    from convoscope.evaluation.bench.ranking import LEAST, TASK, rank_metrics

    if TASK not in found.kept or len(found.methods) < LEAST:
        return None
    with Progress("benchmark, metrics") as progress, goes_on(store):
        return rank_metrics(found, seed=seed, store=store, progress=progress)


def _list(as_json: bool) -> None:
    from convoscope.cli.terminal import console, print_json, table
    from convoscope.evaluation.bench import tasks as known

    if as_json:
        rows = [{"name": n, "title": t.title, "exact": t.exact, "measures": t.measures, "range": list(t.range),
                 "about": " ".join((t.__doc__ or "").split())} for n, t in known().items()]  # fmt: skip
        print_json({"schema": "convoscope.tasks/1", "tasks": rows})
        return
    console().print(table(("task", "measures", "exact because"), [(n, t.measures, t.exact) for n, t in known().items()]))


def _tell(found: Any, metrics: Any, files: list[Path]) -> None:
    from convoscope.cli.terminal import console, note, table
    from convoscope.files import size_text

    skills = {(r["task"], r["method"]): r["skill"] for r in found.rows()}
    letters = {o.task.name: chr(ord("a") + k % 26) for k, o in enumerate(found.outcomes)}
    rows = [
        (r["method"], r["rank"] or "", _skill(r["skill"]), _skill(r["low"]), _skill(r["high"]),
         *(_skill(skills[task, r["method"]]) for task in letters))
        for r in found.ranking()
    ]  # fmt: skip
    console().print("Skill: 0 is what random maps reach, 1 the right answer. The mean over tasks, its 95 % interval, each task")
    heads = ("method", "rank", "skill", "from", "to", *letters.values())
    console().print(table(heads, rows, right=heads[1:]))
    console().print()
    asked = [(letters[o.task.name], o.task.name, _skill(o.reliability(found.seed)), o.task.measures) for o in found.outcomes]
    console().print(table(("", "task", "order reliable", "measures"), asked, right=("order reliable",)))
    if metrics is not None:
        console().print("\nWhich metric orders the methods as the exact truth of 'parts' does?", style="bold")
        told = [r for r in metrics.rows() if not r["reason"]]
        cells = [(r["metric"], _skill(r["agreement"]), f"{_skill(r['low'])} to {_skill(r['high'])}") for r in told]
        console().print(table(("metric", "agreement", "95 % interval"), cells, right=("agreement",)))
    for outcome in found.outcomes:
        for name, reason in outcome.reasons.items():
            note(f"{name} has no score on {outcome.task.name}: {reason}")
    quick = ", quick: few pictures and samples; --full takes more" if found.quick else ""
    note(f"{found!r} in {found.seconds:.0f} s{quick}")
    for path in files:
        console().print(f"{path} ({size_text(path)})")


def _skill(value: float) -> str:
    return "" if value != value else f"{value:.2f}"
