"""`convoscope merge`: whether the parts of a sweep are all there, and what they come to."""

from pathlib import Path
from typing import Annotated, Any

import typer

from convoscope.cli import options as opt


def merge(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The folder that parts of a sweep were written into.")],
    which: Annotated[
        str | None, typer.Option("--sweep", metavar="NAME", help="One of several sweeps of the store; the start suffices.")
    ] = None,
    as_json: opt.JSON = False,
) -> None:
    """Merge the parts that jobs of an array have computed.

    Says of each sweep in the store how many of its shards are finished, and writes those that are complete, merged in the
    order of the images, as merged-NAME.safetensors into the store. Ends with exit code 1 where shards are missing.
    """
    from convoscope.cli.terminal import Progress, console, print_json, table
    from convoscope.core.errors import ConvoscopeError, UsageError
    from convoscope.engine.run import stored

    known = stored(store)
    chosen = [name for name in known if name.startswith(which or "")]
    if not chosen:
        raise UsageError(f"{str(store)!r} has no sweep {which!r}; it has {', '.join(known)}")
    with Progress("shards") as progress:
        found = [_merged(store, name, progress) for name in chosen]
    if as_json:
        print_json({"schema": "convoscope.merge/1", "sweeps": found})
    else:
        rows = [
            (
                f["sweep"],
                f["network"],
                ", ".join(f["layers"]),
                ", ".join(f["statistics"]),
                f["images"],
                _state(f),
                f["file"] or "",
            )
            for f in found
        ]
        heads = ("sweep", "network", "layers", "statistics", "images", "shards", "merged into")
        console().print(table(heads, rows, right=("images",)))
    missing = sum(f["shards"] - f["finished"] for f in found)
    if missing:
        raise ConvoscopeError(f"{missing} shards are missing; run the jobs that did not finish again, with the same store")


def _state(found: dict[str, Any]) -> str:
    return f"all {found['shards']}" if found["finished"] == found["shards"] else f"{found['finished']} of {found['shards']}"


def _merged(store: Path, name: str, progress: Any) -> dict[str, Any]:
    from convoscope.engine.run import check

    fold, missing = check(store, name, progress)
    plan, file = fold.plan, store / f"merged-{name}.safetensors"
    if not missing:
        from convoscope.engine.shards import Part
        from convoscope.engine.store import pieces, write_durably

        write_durably(file, pieces(name, Part(fold.sweep.statistics, fold.sweep.failed), plan.keys))
    return {
        "sweep": name,
        "network": plan.network_name,
        "network_hash": plan.network_hash,
        "dataset": plan.dataset_name,
        "images": plan.images,
        "failed": len(fold.sweep.failed),
        "layers": list(plan.layers),
        "statistics": list(plan.statistics),
        "shards": len(plan.shards),
        "finished": len(plan.shards) - len(missing),
        "missing": [[s.start, s.stop] for s in missing],
        "file": None if missing else file.name,
    }
