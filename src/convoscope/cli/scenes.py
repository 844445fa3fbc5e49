"""`convoscope scenes` and `convoscope train`: the data set of which everything is known, and its network."""

import os
from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt


def scenes(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the pictures and label maps.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 100,
    size: Annotated[int, typer.Option(min=64, max=128, metavar="PIXELS", help="Width and height of a picture.")] = 96,
    watermark: Annotated[float, typer.Option(min=0, max=1, help="Share of the fish that bear a watermark.")] = 0.0,
    background: Annotated[float, typer.Option(min=0, max=1, help="Share of pictures in the scene of their class.")] = 0.0,
    wrong_labels: Annotated[float, typer.Option(min=0, max=1, help="Share of labels replaced by another class.")] = 0.0,
    random_labels: Annotated[bool, typer.Option("--random-labels", help="Draw all labels at random.")] = False,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Write small pictures with exact label maps, and faults on request.

    DIR/pictures has one folder per label, DIR/maps the label maps, DIR/index.csv their names, DIR/factors.jsonl the factors.
    """
    from convoscope.cli.terminal import Progress, print_json
    from convoscope.data.scenes import write_folder

    with Progress("scenes") as progress:
        write_folder(
            out,
            count,
            seed,
            size,
            watermark=watermark,
            background=background,
            wrong_labels=wrong_labels,
            random_labels=random_labels,
            progress=progress,
        )
    if as_json:
        print_json({"schema": "convoscope.scenes/1", "folder": str(out), "count": count, "seed": seed, "size": size})
    else:
        typer.echo(f"{count} pictures in {out}")


def train(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="What to train: scenes.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it. Default: scenes.safetensors, or scenes-watermark.")
    ] = None,
    watermark: Annotated[bool, typer.Option("--watermark", help="Train the twin that relies on a watermark.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="How often to see every picture.")] = 8,
    count: Annotated[int, typer.Option(min=2, help="How many pictures to train on.")] = 10_000,
    held_out: Annotated[int, typer.Option(min=1, help="How many other pictures to test on.")] = 5_000,
    threads: Annotated[int, typer.Option(min=1, help="Processor cores to use; the weights depend on it.")] = 2,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Train the scenes network; under five minutes on two cores."""
    from convoscope.cli.terminal import print_json
    from convoscope.core.errors import UsageError, did_you_mean

    if what != "scenes":
        raise UsageError(f"nothing to train is called {what!r}{did_you_mean(what, ['scenes'])} (known: scenes)")
    path = out or Path("scenes-watermark.safetensors" if watermark else "scenes.safetensors")
    found = _train(path, seed, watermark, epochs, count, held_out, threads)
    if as_json:
        print_json({"schema": "convoscope.train/1", **found})
        return
    typer.echo(f"{found['path']}: {100 * float(found['accuracy']):.2f} % of held-out scenes right, {found['seconds']} s")


def _train(
    path: Path, seed: int, watermark: bool, epochs: int, count: int, held_out: int, threads: int
) -> dict[str, float | str]:
    from convoscope.cli.terminal import Progress

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin stall when others use the cores
    from convoscope.data.scenes import train

    bars: list[Progress] = []

    def tell(done: int, total: int, message: str) -> None:
        stage = message.split(",")[0].split(" ")[0]
        if not bars or bars[-1].label.split(" ")[0] != stage:
            if bars:
                bars.pop().__exit__(None, None, None)
            bars.append(Progress(stage))
            bars[-1].__enter__()
        if bars[-1].bar is not None:
            bars[-1].bar.update(bars[-1].task, description=message)
        bars[-1](done, total)

    try:
        return train(path, seed, watermark, epochs, count, threads=threads, held_out=held_out, progress=tell)
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
