"""`convoscope weights`: the kernels of a layer."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt

DEFAULT_OUT = Path("convoscope-weights.png")


def weights(
    model: opt.ModelArgument,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="Default: the first convolution.")] = None,
    unit: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Only this unit; may be repeated. Default: the first 96.")
    ] = None,
    shared: Annotated[bool, typer.Option("--shared", help="One scale for all kernels, so that they compare.")] = False,
    through: Annotated[
        str | None,
        typer.Option(metavar="LAYER", help="Expanded weights: the linear path from this earlier layer, or from input."),
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Input channels shown of each deeper kernel.")] = 8,
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
    """Show the kernels of a layer: in color where they read the picture, else by their strongest input channels.

    With --through, what several layers make together: the linear path between two layers (Voss et al. 2021).
    """
    from convoscope.cli.pictures import check_out, tell, write_strip
    from convoscope.core.errors import UsageError
    from convoscope.units import filters

    out = out if out or as_json else DEFAULT_OUT
    check_out(out)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    if through is not None and layer is None:
        raise UsageError("--through needs --layer, the later of the two layers")
    found = filters.kernels(net, layer, unit) if through is None else filters.path(net, str(layer), through, unit)
    count = len(found)
    found = found if unit else found[:96]
    document = {
        "schema": "convoscope.weights/1", "network": {"name": net.name, "hash": net.hash}, "layer": found.address,
        "through": through, "shape": list(found.weight.shape), "units": filters.rows_of(found),
    }  # fmt: skip
    if out is not None:
        drawn = filters.strip_of(found, scale="shared" if shared else "each", channels=channels)
        write_strip(drawn, out, f"{net.name}: weights as pictures.")
    some = f", the first {len(found)} of {count} units" if len(found) < count else ""
    tell(document, out, as_json, f"{found.address}: weights {' x '.join(map(str, found.weight.shape))}{some}")
