"""`convoscope dissect`: which concepts the units of a network detect."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.units.dissection import Dissection

DEFAULT_OUT = Path("convoscope-dissection.html")


def dissect(
    model: opt.ModelArgument,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Pictures with dense labels: scenes:COUNT, or a COCO panoptic or Broden folder."),
    ],
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers, such as layer4 or 'layer*'; may be repeated. Default: the last map."),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", metavar="FILE",
            help=f"The report (.html), all numbers (.json) or the chart (.png); may be repeated. Default: {DEFAULT_OUT}; none "
            "with --json.",
        ),
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of its values on which a unit is active.")] = 0.005,
    iou: Annotated[float, typer.Option(help="Intersection over union above which a unit is a detector.")] = 0.04,
    rule: Annotated[
        Literal["top", "per-category"], typer.Option(help="A unit counts for its best label, or for the best of each category.")
    ] = "top",
    area: Annotated[
        Literal["category", "overlap"],
        typer.Option(help="Pictures in which a unit's area counts: with a label of the category, or where they overlap."),
    ] = "category",
    anchor: Annotated[
        Literal["centers", "tiles"], typer.Option(help="Maps lie on the centers of receptive fields, or on equal tiles.")
    ] = "centers",
    draws: Annotated[int, typer.Option(min=0, help="Draws of each null model; 0: none, and no p-values.")] = 200,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Dissections saved as .json, of other checkpoints or networks, to compare."),
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep what is measured there; a rerun resumes.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes that run the network.")] = 1,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:
    """Find which concepts the units of a network detect, and which of them beyond chance.

    Each unit's strongest activations are laid over the dense labels of the pictures (Bau et al. 2017). Thresholds and counts
    are exact; p-values come from units that mean nothing, and every label is measured on pictures it was not chosen on.
    """
    from convoscope.cli.terminal import Progress, print_json
    from convoscope.core.errors import UsageError
    from convoscope.data.dataset import open_dataset
    from convoscope.files import check_writable
    from convoscope.units.dissection import Dissection
    from convoscope.units.dissection import dissect as run

    files = out or ([] if as_json else [DEFAULT_OUT])
    for path in files:
        if path.suffix not in (".html", ".json", ".png"):
            raise UsageError(f"a dissection is saved as .json, .html or .png; got {path.name!r}")
        check_writable(path)
    earlier = {p.stem: Dissection.load(p) for p in compare or []}
    net = opt.load_network(model, arch, weights, allow_partial, device)
    found = open_dataset(data)
    if layers is None:
        layers = [_last_spatial(net, found)]
    with Progress("dissecting") as progress:
        d = run(
            net, found, layers, fraction=fraction, iou=iou, area=area, anchor=anchor, draws=draws, store=store, engine=engine,
            workers=workers, batch_size=batch_size, seed=seed, progress=progress,
        )  # fmt: skip
    for path in files:
        _write(d, path, rule)
    if as_json:
        print_json(d.to_dict())
    else:
        _tell(d, rule, earlier, files)


def _last_spatial(net: object, data: object) -> str:
    from convoscope.core.errors import UsageError

    last = net.trace(net.read(data.picture(0))).last_spatial()  # type: ignore[attr-defined]
    if last is None:
        raise UsageError("this network has no layer with rows and columns; --layers names those to dissect")
    return last


def _write(d: "Dissection", path: Path, rule: Literal["top", "per-category"]) -> None:
    from convoscope.files import replaced, write_text

    if path.suffix == ".html":
        typed = Path(sys.argv[0]).stem in ("convoscope", "__main__")
        write_text(path, d.to_html(rule, f"convoscope {shlex.join(sys.argv[1:])}" if typed else ""))
    elif path.suffix == ".png":
        with replaced(path) as partial:
            d.image(rule).save(partial, "png")
    else:
        d.save(path)


def _tell(
    d: "Dissection", rule: Literal["top", "per-category"], earlier: dict[str, "Dissection"], files: list[Path]
) -> None:
    from convoscope.cli.terminal import console, table
    from convoscope.files import size_text

    screen = console()
    failed = f", {d.failed} could not be read" if d.failed else ""
    screen.print(f"{d.network_name} on {d.images:,} images of {d.dataset_name}{failed}", style="bold")
    screen.print()
    header, rows = d.rows(rule)
    screen.print(table(header, rows, right=header[1:]))
    units = [(u, a) for a, layer in d.layers.items() for u in layer.units if u.iou > layer.iou]
    best = sorted(units, key=lambda pair: -pair[0].iou)[:8]
    if best:
        screen.print()
        lines = [
            [f"{a}:{u.unit}", u.label, u.category, f"{u.iou:.3f}", f"{u.held_out:.3f}", *(f"{p:.3f}" for p in u.p.values())]
            for u, a in best
        ]
        head = ["unit", "label", "category", "IoU", "held out", *(f"p {n}" for n in best[0][0].p)]
        screen.print(table(head, lines, right=head[3:]))
    if earlier:
        from convoscope.units.dissection_compare import compare_dissections

        screen.print()
        header, rows = compare_dissections({**earlier, "now": d}).rows(rule)
        screen.print(table(header, rows, right=header[2:]))
    screen.print()
    for path in files:
        screen.print(f"{path} ({size_text(path)})", soft_wrap=True)
