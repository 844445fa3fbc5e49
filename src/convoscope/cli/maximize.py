"""`convoscope maximize`: pictures that units and classes would like to see."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from convoscope.cli import options as opt
from convoscope.cli import synthesis as syn


def maximize(
    model: opt.ModelArgument,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="layer4:42 (a channel), layer4:42@3,5 or layer4:42@center (one position), layer4, tabby or class:281 (a "
            "class), log-probability:tabby, or a sum in quotes: '0.8*layer4:7 - 0.2*layer3:5'.",
        ),
    ],
    image: Annotated[str, typer.Option(metavar="NAME[:SETTINGS]", help="What is optimized: fourier, pixels, ...")] = "fourier",
    size: syn.Size = None,
    steps: syn.Steps = 256,
    copies: Annotated[int, typer.Option(min=1, help="Pictures for each target, from different starts.")] = 1,
    start: Annotated[
        Literal["noise", "gray", "black", "random"], typer.Option(help="What pictures begin with; noise: the image's own.")
    ] = "noise",
    rate: syn.Rate = None,
    optimizer: Annotated[
        Literal["adam", "nadam", "sgd", "momentum", "normalized"] | None, typer.Option(help="Default: that of the image.")
    ] = None,
    transform: syn.Transforms = None,
    penalty: syn.Penalties = None,
    expert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trained density of pictures that they are to be probable under.")
    ] = None,
    expert_weight: Annotated[float, typer.Option(help="How much of the target's unit one nat of it costs.")] = 1.0,
    views: Annotated[
        int | None, typer.Option(min=1, help="How often each picture is shown, moved, in a step. Default: that of the image.")
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
    """Make pictures that raise units, classes or sums of them: what would they like to see?

    Ctrl-C keeps the state, and the same command goes on from it. Beside each score stands its mean under transforms that were
    drawn anew: a picture whose score falls apart there only fools the network.
    """
    making = syn.Making("maximize", out, as_json, store, preview, strip)
    from convoscope.cli.work import command_line
    from convoscope.show.figure import number
    from convoscope.synthesis import drawing
    from convoscope.synthesis.experts import load_expert
    from convoscope.synthesis.maximize import image_of, target_of
    from convoscope.synthesis.maximize import maximize as run

    chosen = image_of(image, size)
    settings = {"transforms": syn.parsed("transform", transform), "penalties": syn.parsed("penalty", penalty) or ()}
    settings |= {} if views is None else {"views": views}
    settings |= {} if expert is None else {"expert": load_expert(expert), "expert_weight": expert_weight}
    net = opt.load_network(model, arch, weights, allow_partial, device)
    wanted = [target_of(net, text) for text in targets]
    made = making(
        lambda **live: run(
            net, wanted, chosen, steps=steps, copies=copies, start=start, rate=rate, optimizer=optimizer,
            batch_size=batch_size, seed=seed, **settings, **live,
        ),
        lambda thing, path: drawing.save(thing, path, _typed(command_line())),
    )  # fmt: skip
    rows = zip(made.names, map(number, made.scores), map(number, made.held_out), strict=True)
    making.tell(made, list(rows), ("target", "score", "held out"))


def _typed(line: str) -> str:
    """What was typed, unless this is not the command line."""
    import sys

    return line if Path(sys.argv[0]).stem in ("convoscope", "__main__") else ""
