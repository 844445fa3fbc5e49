"""`convoscope concepts`: which concepts a layer has, and whether they matter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convoscope.cli import options as opt
from convoscope.cli.atlas import Data

if TYPE_CHECKING:
    from convoscope.data.dataset import Dataset
    from convoscope.network import Network


def concepts(
    model: opt.ModelArgument,
    data: Data,
    layer: Annotated[str, typer.Option(metavar="ADDRESS", help="The layer; `convoscope layers MODEL` lists them.")],
    method: Annotated[
        Literal["craft", "tcav", "sparse-autoencoder"] | None,
        typer.Option(help="Find concepts for a target; test those of --concept; learn features. Default: craft, or tcav."),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME|INDEX|top", help="The class that concepts are to explain (craft, tcav).")
    ] = "top",
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=DIR]", help="tcav: a label of DATA, or a folder of its pictures; may be repeated."),
    ] = None,
    least: Annotated[
        float, typer.Option(min=0, max=1, help="tcav: share of a picture that a label covers where it counts as there.")
    ] = 0.02,
    random: Annotated[
        str | None, typer.Option(metavar="DIR", help="tcav: pictures of anything. Default: DATA, whatever it shows.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="At most how many pictures of the class (craft, tcav).")] = 40,
    count: Annotated[int, typer.Option("--concepts", min=1, help="craft: how many concepts to find.")] = 8,
    by: Annotated[Literal["squares", "superpixels"], typer.Option(help="craft: how pictures are cut.")] = "squares",
    runs: Annotated[int, typer.Option(min=1, help="tcav: vectors of each concept.")] = 5,
    null: Annotated[int, typer.Option(min=19, help="tcav: random concepts to compare with.")] = 199,
    correction: Annotated[
        Literal["benjamini-hochberg", "bonferroni-holm", "none"], typer.Option(help="tcav: for many tests.")
    ] = "benjamini-hochberg",
    samples: Annotated[int, typer.Option(min=20, help="sparse-autoencoder: activations to learn from.")] = 20_000,
    latents: Annotated[int | None, typer.Option(min=1, help="Features. Default: four for each channel.")] = None,
    active: Annotated[int, typer.Option(min=1, help="sparse-autoencoder: features kept at a position (k).")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="sparse-autoencoder: how often to see every activation.")] = 40,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="sparse-autoencoder: where to write it, .safetensors.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Draw what was found: a .png.")] = None,
    arch: opt.Arch = None,
    weights: opt.Weights = None,
    allow_partial: opt.Partial = False,
    batch_size: opt.BatchSize = "auto",
    seed: opt.Seed = 0,
    device: opt.Device = None,
    as_json: opt.JSON = False,
) -> None:
    """Find the concepts a layer uses for a class (CRAFT), test given ones (TCAV), or learn its sparse features."""
    from convoscope.cli.terminal import print_json
    from convoscope.data.dataset import open_dataset

    chosen = method or ("tcav" if concept else "craft")
    _check(chosen, concept, out, save)
    net = opt.load_network(model, arch, weights, allow_partial, device)
    dataset = open_dataset(data)
    common = {"batch_size": batch_size, "seed": seed}
    if chosen == "tcav":
        settings = {"runs": runs, "null": null, "correction": correction, **common}
        sources = _sources(net, dataset, concept or [], least)
        document = _tcav(net, dataset, layer, target, sources, random, pictures, settings, as_json)
    elif chosen == "craft":
        document = _craft(net, dataset, layer, target, pictures, {"concepts": count, "by": by, **common}, out, as_json)
    else:
        settings = {"latents": latents, "k": active, "epochs": epochs, "seed": seed}
        document = _sparse(net, dataset, layer, samples, settings, common["batch_size"], (save, out), as_json)
    if as_json:
        told = {"network": {"name": net.name, "hash": net.hash}, "data": dataset.name, "layer": layer, "seed": seed}
        print_json({"schema": "convoscope.concepts/1", "method": chosen, **told, **document})


def _check(method: str, concept: list[str] | None, out: Path | None, save: Path | None) -> None:
    from convoscope.core.errors import UsageError
    from convoscope.files import check_writable

    if method == "tcav" and not concept:
        raise UsageError("TCAV tests concepts that are given: --concept NAME (a label of DATA) or --concept NAME=DIR")
    if method != "tcav" and concept:
        raise UsageError(f"--concept is for tcav; {method} finds its own")
    if out is not None and (method == "tcav" or out.suffix != ".png"):
        raise UsageError("--out is for the pictures of craft and sparse-autoencoder, a .png; tables go to stdout, also --json")
    if save is not None and method != "sparse-autoencoder":
        raise UsageError("--save is for a sparse autoencoder")
    for path in (out, save):
        if path is not None:
            check_writable(path)


def _of_target(dataset: "Dataset", target: str, limit: int) -> "Dataset":
    """The pictures of the class where the data set has it, else pictures evenly spread."""
    from convoscope.units.concept_data import of_class

    if target in dataset.classes:
        return dataset.subset(of_class(dataset, target, limit))
    count = min(limit, len(dataset))
    return dataset.subset([k * len(dataset) // count for k in range(count)])


def _craft(
    net: "Network", dataset: "Dataset", layer: str, target: str, limit: int, settings: dict[str, Any], out: Path | None,
    as_json: bool,
) -> dict[str, Any]:  # fmt: skip
    from convoscope.cli.terminal import console, table
    from convoscope.units.discovered import discover

    aim = None if target == "top" else target if target in net.categories else opt.find_target(net, target)
    found = discover(net, _of_target(dataset, target, limit), layer, aim, **settings)
    if out is not None:
        found.save(out)
    if not as_json:
        for text in found.notes():
            console().print(text, style="dim")
        console().print(table(("concept", "importance"), found.rows()))
        console().print(f"Wrote {out}." if out else "--out concepts.png shows them.", style="bold")
    return {**found.to_dict(), "file": str(out) if out else None}


def _sources(net: "Network", dataset: "Dataset", concept: list[str], least: float) -> dict[str, Any]:
    """The pictures of each concept: a folder, or the rows of the data set whose labels show it."""
    from convoscope.core.errors import UsageError
    from convoscope.units.concept_data import rows_showing
    from convoscope.units.tcav import LEAST

    found: dict[str, Any] = {name: folder for name, equals, folder in (c.partition("=") for c in concept) if equals}
    for name, rows in rows_showing(net, dataset, [c for c in concept if "=" not in c], least).items():
        if len(rows) < LEAST:
            raise UsageError(
                f"{name!r} covers {least:.2g} of the picture or more in {len(rows)} pictures of {dataset.name}; {LEAST} are "
                "needed: give more pictures, or a smaller --least"
            )
        found[name] = dataset.subset(rows[:200])
    return found


def _tcav(
    net: "Network", dataset: "Dataset", layer: str, target: str, sources: dict[str, Any], random: str | None, limit: int,
    settings: dict[str, Any], as_json: bool,
) -> dict[str, Any]:  # fmt: skip
    from convoscope.cli.terminal import console, table
    from convoscope.units.tcav import HEADER, tcav

    aim = None if target == "top" else target if target in net.categories else opt.find_target(net, target)
    found = tcav(net, _of_target(dataset, target, limit), sources, random or dataset, layer, aim, **settings)
    if not as_json:
        console().print(table(HEADER, found.rows()))
        for text in found.notes:
            console().print(text, style="dim")
    return found.to_dict()


def _sparse(
    net: "Network", dataset: "Dataset", layer: str, samples: int, settings: dict[str, Any], batch_size: Any,
    files: tuple[Path | None, Path | None], as_json: bool,
) -> dict[str, Any]:  # fmt: skip
    from convoscope.cli.terminal import Progress, console
    from convoscope.engine import sweep
    from convoscope.files import replaced
    from convoscope.units.feature_sheet import feature_sheet
    from convoscope.units.reservoir import Reservoir
    from convoscope.units.sparse_autoencoder import train_sparse_autoencoder

    with Progress("images") as progress:
        drawn = Reservoir(count=samples, seed=settings["seed"])
        sample = sweep(net, dataset, drawn, [layer], batch_size=batch_size, progress=progress)[layer, "reservoir"].value()
        progress.label = "steps"
        made = train_sparse_autoencoder(sample, layer=layer, network_hash=net.hash, progress=progress, **settings)
        save, out = files
        if save is not None:
            made.save(save)
        if out is not None:
            with replaced(out) as partial:
                feature_sheet(made, net, dataset, sample).save(partial, format="PNG")
    if not as_json:
        console().print(repr(made))
        for path in files:
            if path is not None:
                console().print(f"Wrote {path}.", style="bold")
    return {"features": len(made), "channels": len(made.center), "settings": made.settings, "report": vars(made.report)} | {
        "files": [str(p) for p in files if p is not None]
    }  # fmt: skip
