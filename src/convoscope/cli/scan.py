"""`convoscope scan`: what every unit of a network responds to, written into a folder."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convoscope.cli import options as opt


def scan(
    model: opt.ModelArgument,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder of pictures (one folder for each class, COCO panoptic, Broden) or scenes:COUNT."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder of the book.")],
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers, such as layer4 or 'layer*'; may be repeated. Default: '*'."),
    ] = None,
    exemplars: Annotated[int, typer.Option(min=1, help="Places of each sort that are kept for every unit.")] = 9,
    crop: Annotated[int, typer.Option(min=16, metavar="PIXELS", help="Size of their pictures.")] = 72,
    draws: Annotated[
        int, typer.Option(min=0, help="Draws of units that mean nothing, for the p-values of labels; 0 leaves them out.")
    ] = 200,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes that run the network.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Run only part I of N (0 to N - 1) of the images; a scan without it joins them."),
    ] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Write a book of what every unit responds to.

    With exemplars, activation histogram, selectivity and, where the data has dense labels, the concepts each unit detects.
    One pass over the data. A scan that was stopped goes on where it was: run it again.
    """
    from convoscope.cli.terminal import Progress, console, print_json
    from convoscope.data.dataset import open_dataset
    from convoscope.units.book_scan import scan as write

    net = opt.load_network(model, arch, weights, allow_partial, device)
    found = open_dataset(data)
    with Progress("images") as progress:

        def tell(what: str, done: int, total: int) -> None:
            progress.label = what
            progress(done, total)

        book = write(
            net, found, layers or ["*"], out, exemplars=exemplars, crop=crop, draws=draws, seed=seed, engine=engine,
            workers=workers, batch_size=batch_size, shard=shard, progress=tell,
        )  # fmt: skip
    if as_json:
        print_json(document(out, book, shard))
    elif book is None:
        console().print(f"part {shard} is done; when all are, the same scan without --shard writes the book")
    else:
        console().print(f"{book!r}\n{out}", soft_wrap=True)
        hints = (f"convoscope report {out} -o report.html", f"convoscope units {out}", f"convoscope unit {out} LAYER:NUMBER")
        console().print(" · ".join(hints), style="dim")


def document(out: Path, book: Any, shard: str | None) -> dict[str, Any]:
    """What `--json` prints."""
    found: dict[str, Any] = {"schema": "convoscope.scan/1", "book": str(out), "shard": shard, "complete": book is not None}
    if book is None:
        return found
    m = book.manifest
    return found | {
        "network": {"name": m["network"]["name"], "hash": m["network"]["hash"]},
        "data": {"name": m["data"]["name"], "images": m["data"]["images"], "failed": len(m["failed"])},
        "layers": [{"address": e.address, "units": e.units} for e in book.layers],
        "columns": [c.name for c in book.columns],
    }
