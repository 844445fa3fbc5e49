"""`convoscope feature-maps`: what a layer makes of a picture."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt

DEFAULT_OUT = Path("convoscope-feature-maps.png")


def feature_maps(
    picture: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture (JPEG, PNG, WebP, TIFF, ...).")],
    model: opt.Model,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="LAYER", help="May be repeated. Default: the last layer with rows and columns."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="strength|index", help="Strongest channels first, or by number.")] = "strength",
    count: Annotated[int, typer.Option(min=1, help="Channels shown of each layer.")] = 64,
    unit: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this channel; may be repeated.")] = None,
    over: Annotated[bool, typer.Option("--over", help="Draw the maps over the picture.")] = False,
    each: Annotated[bool, typer.Option("--each", help="Scale every map to its own largest activation.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=f"A picture (.png) or page (.html). Default: {DEFAULT_OUT}."),
    ] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Show what every channel of a layer makes of a picture, in a grid or over the picture."""
    from convoscope.cli.pictures import check_out, tell, write_strip
    from convoscope.core.errors import UsageError
    from convoscope.units import feature_maps as maps

    out = out if out or as_json else DEFAULT_OUT
    check_out(out)
    if sort not in ("strength", "index"):
        raise UsageError(f"no order {sort!r}; expected 'strength' or 'index'")
    net = opt.load_network(model, arch, weights, allow_partial, device)
    x = net.read(picture)
    asked = layer or [net.trace(x).last_spatial()]
    if asked == [None]:
        raise UsageError(f"{net.name} makes no tensor with rows and columns")
    found = [maps.feature_maps(net, x, str(address))[0] for address in asked]
    settings = {"sort": sort, "count": count, "over": over, "scale": "each" if each else "shared", "units": unit}
    strips = [maps.strip_of(f, name=Path(picture).name, **settings) for f in found]  # type: ignore[arg-type]
    layers = [{"layer": f.address, "shape": list(f.values.shape), "units": maps.rows_of(f, unit)} for f in found]
    if out is not None:
        write_strip(maps.together(strips), out, f"{net.name} on {Path(picture).name}")
    document = {"schema": "convoscope.feature-maps/1", "picture": picture, "network": {"name": net.name, "hash": net.hash}}
    line = "; ".join(f"{f.address}: {' x '.join(map(str, f.values.shape))}" for f in found)
    tell(document | {"layers": layers}, out, as_json, line)
