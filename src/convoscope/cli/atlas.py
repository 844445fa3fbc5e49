"""`convoscope atlas`: what a layer tells apart, as a map of pictures."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from convoscope.cli import options as opt

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A folder of pictures (one folder for each class, or none) or scenes:COUNT.")
]


def atlas(
    model: opt.ModelArgument,
    data: Data,
    layer: Annotated[str, typer.Option(metavar="ADDRESS", help="The layer; `convoscope layers MODEL` lists them.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .png, or an .html page to explore.")],
    samples: Annotated[int, typer.Option(min=2, help="How many activations to lay out.")] = 10_000,
    per_image: Annotated[int, typer.Option(min=0, help="At most how many of one picture; 0: any number.")] = 4,
    grid: Annotated[int, typer.Option(min=1, help="Rows and columns of the map.")] = 20,
    least: Annotated[int | None, typer.Option(min=1, help="Activations a cell needs to be shown.")] = None,
    embedding: Annotated[
        Literal["pca", "umap"], typer.Option(help="Principal components, or UMAP (of convoscope[concepts]).")
    ] = "pca",
    target: Annotated[
        str | None, typer.Option(metavar="NAME|INDEX", help="A class: frames show what each cell adds to its score.")
    ] = None,
    crop: Annotated[int | None, typer.Option(min=1, metavar="PIXELS", help="Side of a crop, in pixels of the input.")] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep finished parts here; a rerun goes on.")] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Draw an activation atlas: what a layer tells apart, neighbors being alike to it."""
    from convoscope.cli.terminal import Progress, console, print_json
    from convoscope.core.errors import UsageError
    from convoscope.files import check_writable, size_text
    from convoscope.units.atlas import atlas as make

    if out.suffix not in (".png", ".html"):
        raise UsageError(f"cannot write {out.name!r}: an atlas is a .png or .html file")
    check_writable(out)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    aim = None if target is None else opt.find_target(net, target)
    with Progress("images") as progress:
        made = make(
            net, data, layer, samples=samples, per_image=per_image, grid=grid, least=least, embedding=embedding, target=aim,
            crop=crop, batch_size=batch_size, seed=seed, store=store, progress=progress,
        )  # fmt: skip
        made.save(out)
    if as_json:
        print_json({"schema": "convoscope.atlas/1", "file": str(out), "seed": seed, **made.to_dict()})
        return
    for fact in made.facts():
        console().print(fact, style="dim")
    console().print(f"Wrote {out}, {size_text(out)}.", style="bold")
