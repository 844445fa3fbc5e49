"""`convoscope explain`: why this prediction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.cli.work import Work

DEFAULT_OUT = Path("convoscope-report.html")


def explain(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures: JPEG, PNG, WebP, TIFF, ...")],
    model: opt.Model,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME[:SETTING=VALUE,...]",
            help="A method; may be repeated. 'convoscope methods' lists them. Default: a good set.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME|INDEX|top",
            help="The class to explain; may be repeated. Default: top.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="Explain by the activations of this layer, not by pixels."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"The report, one self-contained page. Default: {DEFAULT_OUT}; none with --json.",
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Write every map as a PNG into this folder.")] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = 32,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Show which pixels made the network decide.

    Every setting of a method is an option too (--steps 64, --window 32) and goes to every chosen method that
    has it; 'convoscope methods NAME' lists them with their help.
    """
    from convoscope.cli import work as do
    from convoscope.core.errors import UsageError
    from convoscope.files import check_writable

    out = out if out or as_json else DEFAULT_OUT
    if out:
        check_writable(out)
    pictures, settings = opt.split_settings(images, do.switches())
    if not pictures:
        raise UsageError("no picture given; for example: convoscope explain cat.jpg --model torchvision:resnet18")
    known = [name for p in context.command.params for name in p.opts if name.startswith("--")]
    methods = do.choose_methods(method or [], settings, known)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    targets = [net.target(t) for t in target or ["top"]]
    job = do.Work(net, net.read(pictures), pictures, methods, targets, bool(method), at, batch_size, seed)
    _run(job, out, png, as_json)


def _run(job: "Work", out: Path | None, png: Path | None, as_json: bool) -> None:
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, print_json

    screen = console()
    if not as_json:
        for name, found in zip(job.names, job.net.predict(job.x), strict=True):
            screen.print(f"{name}: {do.predictions_line(found)}", style="bold")
        size = " x ".join(str(n) for n in job.x.shape[2:])
        screen.print(f"network {job.net.name}, input {size}, seed {job.seed}\n")
    job.run()
    if not as_json:
        tell(job)
    wrote: dict[str, Any] = {"report": None, "pictures": []}
    if png:
        wrote["pictures"] = [str(p) for p in do.save_pictures(job, png)]
    line = do.write_report({"": job}, out, title=f"{job.net.name} explained") if out else ""
    if as_json:
        print_json(do.document(job) | wrote | {"report": str(out) if out else None})
        return
    if png:
        screen.print(f"{len(wrote['pictures'])} pictures in {png}")
    screen.print(line)


def tell(job: "Work") -> None:
    """Print the table of attributions and what was left out, with the reason."""
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console

    screen = console()
    screen.print(do.summary(job))
    for name, reason in job.left_out:
        screen.print(f"left out {name}: {reason}", style="dim")
    screen.print()
