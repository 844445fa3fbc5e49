"""`convoscope expert train`: what pictures look like, as a log density, for activation maximization."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt
from convoscope.cli.synthesis import size_of

app = typer.Typer(name="expert", help="Log densities of pictures, for activation maximization.", no_args_is_help=True)


@app.callback()
def expert() -> None:
    """Log densities of pictures, for activation maximization: train one on your data."""


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND[:SETTING=VALUE,...]", help="gaussian, rbm or denoising.")],
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="A folder of pictures, or any other data set.")],
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="The size to which pictures are read. Default: as they are.")
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="1 for gray pictures. Default: as they are, 3 for files.")] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="What the expert knows at once. Default: all of a small picture, else 16."),
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Pixels between two windows. Default: a quarter of one.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")] = Path("expert.safetensors"),
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Train an expert on pictures; a run that was stopped goes on where it was.

    Settings of the kind are options: --noise 0.2 --epochs 30 --hidden 400.
    """
    from convoscope.cli.terminal import Progress, console, note, print_json
    from convoscope.core.errors import UsageError
    from convoscope.core.spec import describe_type, fields_of
    from convoscope.files import check_writable, size_text
    from convoscope.synthesis.experts_training import experts, train_expert

    switches = {f.name for cls in experts().values() for f in fields_of(cls) if describe_type(f.type) == "yes or no"}
    words, settings = opt.split_settings(data, switches)
    if len(words) != 1:
        raise UsageError(f"expected one data set; got {', '.join(map(repr, words)) or 'none'}")
    check_writable(out)
    name, _, rest = kind.partition(":")
    text = f"{name}:{','.join([*(f'{k}={v}' for k, v in settings.items()), *([rest] if rest else [])])}"
    store = out.with_name(f".{out.name}.training")
    sides = [None if s is None else size_of(s) for s in (size, window)]
    try:
        with Progress(name) as progress:
            made = train_expert(
                text, words[0], size=sides[0], channels=channels, window=sides[1], stride=stride, seed=seed, store=store,
                progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        if store.is_file():
            note(f"stopped; the same command goes on from its last epoch ({store})")
        raise
    made.save(out)
    store.unlink(missing_ok=True)
    if as_json:
        told = {"kind": made.kind, "window": list(made.window), "stride": made.stride, "normalized": made.normalized}
        print_json(
            {"schema": "convoscope.expert/1", **told, "settings": made.settings, "report": made.report, "file": str(out)}
        )
        return
    console().print(f"{made}\nwritten to {out} ({size_text(out)}); convoscope maximize MODEL TARGET --expert {out}")
