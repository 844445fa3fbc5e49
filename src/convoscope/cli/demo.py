"""`convoscope demo`: the whole thing on the network that ships with the package, offline."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt


def demo(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("convoscope-demo.html"),
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Explain a small network that comes along; works offline."""
    raise NotImplementedError
