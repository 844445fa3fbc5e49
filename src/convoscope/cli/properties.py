"""`convoscope properties`: exactness, consistency, completeness, universality and reward of methods."""

from pathlib import Path
from typing import Annotated, Any

import typer

from convoscope.cli import options as opt


def properties(
    model: opt.ModelArgument,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder of pictures, scenes:COUNT, or one picture; classes are for reward.")
    ],
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods, with commas between; settings behind a colon; 'all' for all.")
    ] = "gradient,integrated-gradients,grad-cam,occlusion,lrp",
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Only the first N pictures; 0: all.")] = 0,
    mark: Annotated[
        bool, typer.Option("--mark", help="Of scenes:COUNT: every picture bears the watermark that scenes-watermark goes by.")
    ] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", metavar="FILE",
            help="A page (.html), a picture (.png), rows (.csv) or everything (.json); may be repeated. Default: none.",
        ),
    ] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    as_json: opt.JSON = False,
) -> None:  # fmt: skip
    """Ask methods for the five properties of the literature, one number each; universality on two dozen small networks."""
    from convoscope.cli.evaluate import check_ending
    from convoscope.cli.terminal import Progress, print_json
    from convoscope.cli.work import choose_methods, command_line, jsonable
    from convoscope.data.dataset import open_dataset
    from convoscope.evaluation.properties import properties as run
    from convoscope.files import check_writable

    for path in out or []:
        check_ending(path)
        check_writable(path)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    images = open_dataset([data] if Path(data).is_file() else data, **(_marked() if mark else {}))
    images = images.subset(range(min(limit, len(images)))) if limit else images
    chosen = choose_methods([methods], {}, ())
    with Progress("asking") as progress:
        found = run(net, images, chosen, labels=_labels(net, images), networks=_others(), seed=seed, progress=progress)
    for path in out or []:
        found.save(path, command_line())
    if as_json:
        print_json(jsonable({"schema": "convoscope.properties/1", **found.to_dict(), "files": [str(p) for p in out or []]}))
        return
    _tell(found, out or [])


def _marked() -> dict[str, Any]:
    from convoscope.data.scenes import CATEGORIES

    return {"watermark": dict.fromkeys(CATEGORIES, 1.0)}


def _labels(net: Any, images: Any) -> list[int] | None:
    """The number that the network has for the class of each picture: by name, -1 where it knows no such class."""
    if not images.classes:
        return None
    numbers = {name: k for k, name in enumerate(net.categories)}
    names = [images.classes[k] if (k := images.class_of(i)) >= 0 else "" for i in range(len(images))]
    return [numbers.get(name, -1) for name in names] if numbers else [images.class_of(i) for i in range(len(images))]


def _others() -> list[tuple[Any, Any]]:
    """The small networks that the laws of methods are tested on, with inputs; compiled ones, which take long, left out."""
    import torch

    import convoscope

    zoo = convoscope.testing.zoo().values()
    return [(h.network(torch.float32), h.images(2, torch.float32)) for h in zoo if h.wrap is None]


def _tell(found: Any, files: list[Path]) -> None:
    from convoscope.cli.terminal import console, note, table
    from convoscope.evaluation.properties_result import PROPERTIES
    from convoscope.files import size_text
    from convoscope.show.figure import number

    rows = {(r["method"], r["property"]): number(r["value"]) for r in found.rows()}
    cells = [(name, *("" if rows[name, p] == "nan" else rows[name, p] for p in PROPERTIES)) for name in found.names]
    console().print(table(("method", *PROPERTIES), cells, right=PROPERTIES))
    for which, what in found.definitions.items():
        console().print()
        console().print(which, style="bold")
        console().print(f"not known: {found.missing[which]}" if which in found.missing else what)
    for (name, where), reason in found.left_out.items():
        note(f"{name} does not explain {where}: {reason}")
    for path in files:
        console().print(f"{path} ({size_text(path)})")
