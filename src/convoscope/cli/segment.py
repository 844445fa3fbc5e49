"""`convoscope segment`: the object behind an explanation, cut out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from convoscope.cli import options as opt

DEFAULT_OUT = Path("convoscope-segments")


def segment(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures: JPEG, PNG, WebP, TIFF, ...")],
    model: opt.Model,
    method: Annotated[
        str, typer.Option(metavar="NAME[:SETTING=VALUE,...]", help="The method whose map points at the object.")
    ] = "gradient",
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|INDEX|top", help="The class to look for; may be repeated. Default: top."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder to write to: image, saliency, mask and cut-out in one, and the cut-out."),
    ] = DEFAULT_OUT,
    by: Annotated[
        Literal["max-abs", "l2", "positive"] | None,
        typer.Option(help="What counts as strong. Default: positive values of maps with for and against, else magnitudes."),
    ] = None,
    foreground: Annotated[float, typer.Option(min=0, max=1, help="Quantile above which the map is object.")] = 0.95,
    background: Annotated[float, typer.Option(min=0, max=1, help="Quantile below which it is background.")] = 0.30,
    smooth: Annotated[
        float, typer.Option(min=0, help="Deviation of the Gaussian over the map, as a fraction of the shorter side.")
    ] = 0.013,
    all_pieces: Annotated[bool, typer.Option("--all-pieces", help="Keep all pieces, not only the largest.")] = False,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Cut out the object that the network looked at (GrabCut, seeded by the map of a method)."""
    from convoscope.attribution.segmentation import segment as cut
    from convoscope.cli import work as do
    from convoscope.cli.terminal import console, print_json
    from convoscope.core.errors import UsageError
    from convoscope.files import make_folder

    pictures, settings = opt.split_settings(images, do.switches())
    if not pictures:
        raise UsageError("no picture given; for example: convoscope segment cat.jpg --model torchvision:resnet18")
    known = [name for p in context.command.params for name in p.opts if name.startswith("--")]
    methods = do.choose_methods([method], settings, known)
    make_folder(out)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    targets = [opt.find_target(net, t) for t in target or ["top"]]
    job = do.Work(net, net.read(pictures), pictures, methods, targets, True, None, batch_size, seed)
    job.run()
    rows: list[dict[str, Any]] = []
    for a in job.attributions:
        found = cut(a, by=by, foreground=foreground, background=background, smooth=smooth, largest=not all_pieces)
        rows += [_save(found, pictures[i], i, out) for i in range(len(found))]
    if as_json:
        print_json({"schema": "convoscope.segments/1", "segments": rows})
        return
    for row in rows:
        text = f"empty: {row['empty']}" if row["empty"] else f"{row['share']:.0%} of the picture"
        console().print(f"{row['picture']}, {row['target']}: {text}; {row['figure']}, {row['cutout']}")


def _save(found: Any, picture: str, index: int, out: Path) -> dict[str, Any]:
    from convoscope.cli.work import slug
    from convoscope.files import replaced
    from convoscope.report import target_text

    target = target_text(found.attribution, index)
    stem = "-".join(slug(w) for w in (Path(picture).stem, found.attribution.method.name, target))
    figure, cutout = out / f"{stem}.png", out / f"{stem}-cutout.png"
    found.save(figure, index, title=f"{Path(picture).name}: {target}")
    with replaced(cutout) as partial:
        found.cutout(index).save(partial, format="PNG")
    share = float(found.mask[index].double().mean())
    return {"picture": picture, "target": target, "share": share, "empty": found.empty[index]} | {
        "figure": str(figure), "cutout": str(cutout)
    }  # fmt: skip
