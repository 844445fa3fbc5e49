"""`convoscope color`: how color is represented in a network."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt


def color(
    model: opt.ModelArgument,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of pictures, or scenes:500.")],
    layers: Annotated[
        str, typer.Option(metavar="LAYERS", help="Addresses or patterns, with commas: 'layer*', 'conv1,layer1'.")
    ] = "layer*",
    patches: Annotated[int, typer.Option(min=1, help="How many of its strongest patches describe a unit.")] = 9,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it: a PNG.")] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep what the pass over the data found.")] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    device: opt.Device = None,
    batch_size: opt.BatchSize = "auto",
    as_json: opt.JSON = False,
) -> None:
    """Tell how color is represented: the share of color-selective units in each layer, and their hues.

    A unit's color index is the share of its activation that it loses when its strongest patches are made gray; from 0.25 on
    it counts as selective for color.
    """
    from convoscope.cli.terminal import Progress, console, print_json, table
    from convoscope.files import check_writable
    from convoscope.units.color_study import color_study

    if out is not None:
        check_writable(out)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    asked = [word.strip() for word in layers.split(",") if word.strip()]
    with Progress("pictures") as progress:

        def tell(what: str, done: int, total: int) -> None:
            progress.label = what
            progress(done, total)

        found = color_study(net, data, asked, patches=patches, store=store, batch_size=batch_size, progress=tell)
    saved = found.save(out) if out is not None else None
    if as_json:
        document = {"schema": "convoscope.color/1", **found.to_dict()}
        print_json(document | ({"file": str(saved)} if saved else {}))
        return
    screen = console()
    screen.print(table(found.header, found.rows(), right={*found.header} - {"layer", "hue"}))
    if saved:
        screen.print(f"drawn in {saved}")
