"""`convoscope evaluate` and `convoscope metrics`: whether explanations can be trusted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from convoscope.cli import options as opt

DEFAULT_OUT = Path("convoscope-evaluation.html")


def metrics(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Metrics to describe; default: all.")] = None,
    as_json: opt.JSON = False,
) -> None:
    """List the metrics of explanations: what each asks, in which direction it is better, what it cannot see."""
    from convoscope.cli.terminal import console, print_json, table
    from convoscope.core.spec import describe_type, fields_of, lookup
    from convoscope.evaluation.base import metrics as known

    chosen = {name: lookup("metric", name) for name in names} if names and known() else known()
    if as_json:
        print_json({"schema": "convoscope.metrics/1", "metrics": [_described(cls) for cls in chosen.values()]})
        return
    rows = [(name, c.family, BETTER[c.direction], c.use, c.drawback) for name, c in chosen.items()]  # type: ignore[attr-defined]
    console().print(table(("metric", "family", "better", "asks", "but"), rows))
    for name, cls in chosen.items() if names else ():
        settings = [(f.name, str(f.default), describe_type(f.type), f.help) for f in fields_of(cls)]
        console().print(f"\n{name}: {' '.join((cls.__doc__ or '').split())}\n")
        console().print(table(("setting", "default", "takes", "what it is"), settings))


BETTER = {1: "higher", -1: "lower", 0: "neither"}


def _described(cls: Any) -> dict[str, Any]:
    from convoscope.cli.work import jsonable
    from convoscope.core.spec import describe_type, fields_of

    paper = cls.paper
    return jsonable({
        "name": cls.name, "title": cls.title, "family": cls.family, "direction": cls.direction, "range": list(cls.range),
        "unit": cls.unit, "needs": list(cls.needs), "use": cls.use, "drawback": cls.drawback,
        "paper": None if paper is None else {"title": paper.title, "year": paper.year, "venue": paper.venue},
        "settings": [{"name": f.name, "default": str(f.default), "takes": describe_type(f.type), "help": f.help}
                     for f in fields_of(cls)],
    })  # fmt: skip


def evaluate(
    model: opt.ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of pictures, scenes:COUNT, or one picture.")],
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods, with commas between; settings behind a colon; 'all' for all.")
    ] = "gradient,integrated-gradients,grad-cam,occlusion,lrp",
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="Metrics, likewise; 'convoscope metrics' lists them.")
    ] = "deletion,insertion,faithfulness-correlation,infidelity",
    target: Annotated[
        str | None, typer.Option(metavar="CLASS", help="A class, by number or name; default: the top class of each picture.")
    ] = None,
    concept: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where the evidence is, for metrics that ask: a concept of the dense labels."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Only the first N pictures; 0: all.")] = 0,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A page (.html), a picture (.png), rows (.csv) or all scores (.json); may be repeated. Default: "
            f"{DEFAULT_OUT}; none with --json.",
        ),
    ] = None,
    permutations: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Judge each map beside N versions of itself with its values at other places."),
    ] = 0,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="What it may take beside the network, such as 2GB; default: what runs fast."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what is done there; the same command, killed, goes on from it.")
    ] = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Judge methods by metrics on many pictures, with intervals, beside maps that know nothing of the network."""
    from convoscope.cli.terminal import Progress, print_json
    from convoscope.cli.work import choose_methods, command_line, jsonable, split_methods
    from convoscope.data.dataset import open_dataset
    from convoscope.evaluation.evaluate import evaluate as run
    from convoscope.evaluation.evaluate import metric_of
    from convoscope.files import check_writable, write_text

    files = out or ([] if as_json else [DEFAULT_OUT])
    for path in files:
        check_ending(path)
        check_writable(path)
    made, asked = choose_methods([methods], {}, ()), [metric_of(m) for m in split_methods(metrics)]
    images = open_dataset([data] if Path(data).is_file() else data)
    images = images.subset(range(min(limit, len(images)))) if limit else images
    needs_concept(asked, images, concept)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    truth = None if concept is None else truth_of(net, images, concept)
    with Progress("evaluating (passes)") as progress, goes_on(store):
        found = run(
            net, images, made, asked, target, truth=truth, permutations=permutations, batch_size=batch_size, memory=memory,
            store=store, seed=seed, progress=progress,
        )  # fmt: skip
    for path in files:
        if path.suffix.lower() in (".html", ".htm"):
            from convoscope.evaluation import drawing

            write_text(path, drawing.page(found, command_line()))
        else:
            found.save(path)
    if as_json:
        print_json(jsonable({"schema": "convoscope.evaluate/1", **found.to_dict(), "files": [str(p) for p in files]}))
        return
    _tell(found, files)


@contextmanager
def goes_on(store: Path | None) -> Iterator[None]:
    """Says, where it is interrupted, that the same command goes on."""
    from convoscope.cli.terminal import note

    try:
        yield
    except KeyboardInterrupt:
        if store is not None:
            note(f"stopped; the same command goes on from what is done ({store})")
        raise


def check_ending(path: Path) -> None:
    """Raises UsageError, before any work, for a kind of file that an evaluation is not saved as."""
    from convoscope.core.errors import UsageError

    if path.suffix.lower() not in (".html", ".htm", ".png", ".csv", ".json"):
        raise UsageError(f"an evaluation is saved as .html, .png, .csv or .json; got {path.name!r}")


def needs_concept(metrics: Any, images: Any, concept: str | None) -> None:
    """Raises UsageError, before any work, where a metric asks where the evidence is and nobody said."""
    from convoscope.core.errors import UsageError, did_you_mean

    names = [c.name for c in images.concepts]
    asks = [m.name for m in metrics if "truth" in m.needs]
    if concept is not None and concept not in names:
        known = did_you_mean(concept, names) if names else "; it has no dense labels"
        raise UsageError(f"{images.name} has no concept {concept!r}{known}")
    if asks and concept is None and not names:
        raise UsageError(f"{asks[0]} compares maps with masks of the evidence, and {images.name} has no dense labels")
    if asks and concept is None:
        some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise UsageError(f"{asks[0]} compares maps with masks of the evidence; say of what: --concept NAME (here {some})")


def truth_of(net: Any, images: Any, concept: str) -> Any:
    """Where a concept of the data set is in each picture, at the network's input size."""
    import torch

    from convoscope.data.dataset import segments_for

    number = [c.name for c in images.concepts].index(concept) + 1
    return torch.stack([(segments_for(net, images, i) == number).any(0) for i in range(len(images))])


def _tell(found: Any, files: list[Path]) -> None:
    from convoscope.cli.terminal import console, note, table
    from convoscope.files import size_text
    from convoscope.show.figure import number

    rows, some = {(r["metric"], r["method"]): r for r in found.rows()}, len(found.names) - len(found.nulls)
    header = ("method", "mean", "95 % interval", "skill", "p", "better than", "group")
    for metric, label in zip(found.metrics, found.labels, strict=True):
        unit = rows[label, found.names[0]]["unit"]
        cells = [
            (
                name, number(r["mean"]), f"{number(r['low'])} to {number(r['high'])}", number(r["skill"]), number(r["p"]),
                f"{r['better_than']} of {some - 1}" if r["group"] else "", r["group"],
            )
            for name in found.ranking(label)
            if (r := rows[label, name])
        ]  # fmt: skip
        cells = [tuple("" if c in ("nan", "nan to nan") else c for c in row) for row in cells]
        title = metric.title + (f", {label.split(':', 1)[1]}" if ":" in label else "")
        console().print(f"{title} ({unit}, {BETTER[metric.direction]} is better)", style="bold")
        console().print(table(header, cells, right=("mean", "skill", "p", "better than")))
        console().print()
    told = "skill, p: over random maps" if "random" in found.nulls else ""
    if any(r["group"] for r in rows.values()):
        told += f"{'; ' if told else ''}methods that share a letter are not told apart (paired tests over images, p <= 0.05)"
    for text in (told, found.warning):
        if text:
            note(text)
    reasons: dict[str, list[str]] = {}
    for (metric, name), reason in found.left_out.items():
        reasons.setdefault(reason, []).append(f"{name} by {metric}")
    for reason, who in reasons.items():
        note(f"left out {', '.join(who)}: {reason}")
    for path in files:
        console().print(f"{path} ({size_text(path)})")
