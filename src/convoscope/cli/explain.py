"""`convoscope explain`: why this prediction."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.cli.work import Work

DEFAULT_OUT = Path("convoscope-report.html")
DEFAULT_FOLDER = Path("convoscope-maps")


def explain(
    context: typer.Context,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Pictures (JPEG, PNG, WebP, TIFF, ...), or folders of them.")
    ],
    model: opt.Model,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME[:SETTING=VALUE,...]",
            help="A method, several with commas, or all. 'convoscope methods' lists them. Default: a good set.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME|INDEX|top",
            help="The class to explain, or another target such as channel:layer=layer3,channel=7. Default: top.",
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Explain by the activations of this layer, not by pixels; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help=f"The report, one self-contained page. Default: {DEFAULT_OUT}; none with --json. For folders, as --png.",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help=f"Write every map as a PNG into this folder. Default for folders of pictures: {DEFAULT_FOLDER}."
        ),
    ] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Show which pixels made the network decide.

    Every setting of a method is an option too (--steps 64, --window 32) and goes to every chosen method that
    has it; 'convoscope methods NAME' lists them with their help. Of folders, all pictures in them are explained, and
    their maps written one by one with an index; a run that was stopped goes on where it was.
    """
    from convoscope.cli import folders
    from convoscope.cli import work as do
    from convoscope.cli.pictures import PAGE, check_out
    from convoscope.core.errors import UsageError

    pictures, settings = opt.split_settings(images, do.switches())
    if not pictures:
        raise UsageError("no picture given; for example: convoscope explain cat.jpg --model torchvision:resnet18")
    in_folders = any(Path(p).is_dir() for p in pictures)
    if in_folders and out:
        if png or out.suffix.lower() in (".html", ".htm"):
            raise UsageError("a report of whole folders would be too large to open; --out DIR says where their maps go")
        png, out = out, None
    out = out if out or as_json or in_folders else DEFAULT_OUT
    check_out(out, PAGE)
    known = [name for p in context.command.params for name in p.opts if name.startswith("--")]
    methods = do.choose_methods(method or [], settings, known)
    found = folders.pictures_in(pictures, png or DEFAULT_FOLDER) if in_folders else []
    net = opt.load_network(model, arch, weights, allow_partial, device)
    targets = [opt.find_target(net, t) for t in target or ["top"]]
    chosen = bool(method) and "all" not in (method or [])
    if in_folders:
        folders.run(folders.Batch(net, found, methods, targets, chosen, at, batch_size, seed, png or DEFAULT_FOLDER), as_json)
        return
    job = do.Work(net, net.read(pictures), pictures, methods, targets, chosen, at, batch_size, seed)
    _run(job, out, png, as_json)


def _run(job: "Work", out: Path | None, png: Path | None, as_json: bool) -> None:
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, print_json
    from convoscope.report import predictions

    screen = console()
    if not as_json:
        for name, found in zip(job.names, predictions(job.net, job.x), strict=True):
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
