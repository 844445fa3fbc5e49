"""`convoscope dream`: a picture, changed until the network sees more of what it sees in it."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn


def dream(
    model: opt.ModelArgument,
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture of any size; the dream has the same.")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", metavar="TARGET",
            help="layer3 (all of a layer), layer4:42 (a channel), tabby (a class), or a sum of these in quotes. Default: "
            "the last layer with rows and columns.",
        ),
    ] = None,
    guide: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A second picture, whose features of the layer the dream is drawn to.")
    ] = None,
    octaves: Annotated[int, typer.Option(min=1, help="Sizes of the picture, from small to large.")] = 4,
    scale: Annotated[float, typer.Option(help="How much larger each is than the last.")] = 1.4,
    steps: Annotated[int, typer.Option(min=1, help="Steps at each size.")] = 10,
    rate: Annotated[float, typer.Option(help="What a step changes of a pixel on average, in 255ths.")] = 1.5,
    jitter: Annotated[int, typer.Option(min=0, help="Pixels that the picture is moved by before each step.")] = 32,
    bands: Annotated[int, typer.Option(min=1, help="Octaves of fineness over which a step is evened out; 1: not at all.")] = 4,
    tile: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a side of what the network sees at once: less needs less memory.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=2, help="Longer side to make of the picture. Default: as it is.")] = None,
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
) -> None:  # fmt: skip
    """DeepDream: show a picture with ever more of what a network sees in it.

    Memory depends on --tile, not on the picture. Ctrl-C keeps the state, and the same command goes on from it.
    """
    making = syn.Making("dream", out, as_json, store, preview, strip, (".jpg", ".jpeg", *syn.KINDS))
    from convoscope.cli.maximize import _typed
    from convoscope.cli.work import command_line
    from convoscope.synthesis.dream import dream as run

    net = opt.load_network(model, arch, weights, allow_partial, device)
    made = making(
        lambda **live: run(
            net, picture, target, octaves=octaves, scale=scale, steps=steps, rate=rate / 255, jitter=jitter, bands=bands,
            tile=tile, guide=guide, size=size, seed=seed, batch_size=batch_size, **live,
        ),
        lambda thing, path: thing.save(path, _typed(command_line())),
    )  # fmt: skip
    making.tell(made)
