"""`convoscope invert`: what layers have kept of pictures."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn


def invert(
    model: opt.ModelArgument,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Pictures whose codes are inverted.")],
    layers: Annotated[
        list[str],
        typer.Option(
            "--layer", "--layers", "-l", metavar="LAYER[,LAYER...]",
            help="Addresses, 'output' or 'log-probabilities'; with commas, or repeated.",
        ),
    ],
    by: Annotated[
        Literal["fourier", "mahendran-vedaldi", "generator"],
        typer.Option(help="Waves by L-BFGS; pixels as in the paper; or a generator that was trained to invert the layer."),
    ] = "fourier",
    generator: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The generator, a file of 'convoscope generator train'.")
    ] = None,
    size: syn.Size = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of each picture. Default: 300.")] = None,
    penalty: syn.Penalties = None,
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
    """Make pictures with the codes that pictures have at some layers: what is kept there, and what is gone?

    Ctrl-C keeps the state, and the same command goes on from it. The error is the squared distance of the codes over the
    squared length of the code that was asked for.
    """
    making = syn.Making("invert", out, as_json, store, preview, strip)
    from convoscope.cli.maximize import _typed
    from convoscope.cli.work import command_line
    from convoscope.show.figure import number
    from convoscope.synthesis.invert import invert as run

    asked = list(dict.fromkeys(a.strip() for text in layers for a in text.split(",") if a.strip()))
    net = opt.load_network(model, arch, weights, allow_partial, device)
    if by == "generator" and generator is None:
        raise typer.BadParameter("inversion by a generator needs --generator FILE")
    made = making(
        lambda **live: run(
            net, [str(p) for p in pictures], asked, by, size=size, steps=steps, penalties=syn.parsed("penalty", penalty),
            generator=generator, seed=seed, batch_size=batch_size, **live,
        ),
        lambda thing, path: thing.save(path, _typed(command_line())),
    )  # fmt: skip
    apart = made.differences
    rows = [
        (layer, path.name, number(made.errors[k][i]), number(apart[k][i]))
        for k, layer in enumerate(made.layers)
        for i, path in enumerate(pictures)
    ]
    making.tell(made, rows, ("layer", "picture", "error", "pixels apart"))
