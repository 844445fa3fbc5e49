"""`convoscope fool`: pictures that mean nothing and that the network is sure of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn

if TYPE_CHECKING:
    from convoscope.network import Network


def fool(
    model: opt.ModelArgument,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS", help="A class by number or name, or several numbers, 0,5,7 or 0-9; may be repeated. Default: all."
        ),
    ] = None,
    by: Annotated[
        Literal["gradient", "evolution-direct", "evolution-cppn"],
        typer.Option(help="Follow the gradient; breed pixels; breed small networks that draw patterns."),
    ] = "gradient",
    steps: Annotated[
        int | None,
        typer.Option("--steps", "--generations", min=0, help="Steps of the ascent, or generations. Default: 300, 500 or 200."),
    ] = None,
    start: Annotated[
        str, typer.Option(metavar="noise|FILE", help="gradient: what pictures begin with: noise, or a picture.")
    ] = "noise",
    decay: Annotated[float, typer.Option(help="gradient: share that is pulled back to the mean color at each step.")] = 0.0,
    population: Annotated[int, typer.Option(min=1, help="evolution: children in each generation.")] = 200,
    goal: Annotated[float, typer.Option(min=0, max=1, help="Stop where the network is this sure of every picture.")] = 0.9999,
    size: syn.Size = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each picture bare, pixel for pixel, as a .png there.")
    ] = None,
    store: syn.Store = None,
    preview: syn.Preview = None,
    strip: syn.StripFile = None,
    out: syn.Out = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Make pictures that mean nothing to people and that the network takes for a class with high confidence.

    Confidences are those of the pictures as saved, 8 bits for each color. Ctrl-C keeps the state, and the same command goes on
    from it, also with more steps.
    """
    from convoscope.cli.work import command_line
    from convoscope.files import make_folder
    from convoscope.synthesis.fool import fool as run
    from convoscope.synthesis.fool_result import percent

    making = syn.Making("fool", out, as_json, store, preview, strip)
    if pictures is not None:
        make_folder(pictures)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    chosen = _classes(net, classes)
    made = making(
        lambda **live: run(
            net, chosen, by, steps=steps, start=start, decay=decay, population=population, goal=goal, size=size,
            batch_size=batch_size, seed=seed, **live,
        ),
        lambda thing, path: thing.save(path, command_line()),
    )  # fmt: skip
    if pictures is not None:
        made.save_pictures(pictures)
    sure = sorted(zip(made.classes, made.names, made.confidences, strict=True), key=lambda row: row[2])
    rows = [(name, number, percent(c)) for number, name, c in (sure if len(sure) <= 20 else [*sure[:10], *sure[-10:]])]
    making.tell(made, rows, ("class", "number", "confidence"))
    if not as_json:
        _summary(made)


def _summary(made: Any) -> None:
    from convoscope.cli.terminal import console

    console().print(made.facts()[1], style="bold")


def _classes(net: "Network", texts: list[str] | None) -> list[int | str] | None:
    """Classes from numbers, ranges and names; a name may hold commas."""
    if texts is None:
        return None
    found: list[int | str] = []
    for text in texts:
        parts = [p.strip() for p in text.split(",")]
        if text in net.categories or not all(_numbers(p) for p in parts):
            found.append(text)
        else:
            found += [n for p in parts for n in _numbers(p)]
    return list(dict.fromkeys(found))


def _numbers(text: str) -> range:
    """`7` or `0-9`; empty where it is neither."""
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        return range(0)
    return range(int(first), int(last or first) + 1)
