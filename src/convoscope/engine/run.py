"""`sweep`: one forward pass for each image, whatever is asked of it; `merged`: what stored shards come to."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from convoscope.core.errors import ImageError, UsageError, did_you_mean
from convoscope.core.run import rows_at_once
from convoscope.core.statistic import Statistic
from convoscope.engine import plan as planning
from convoscope.engine.fold import Fold
from convoscope.engine.layers import find_layers, first_input
from convoscope.engine.local import Engine, Here, Processes
from convoscope.engine.result import Sweep
from convoscope.engine.shards import Shard, Work
from convoscope.engine.store import Store
from convoscope.network import Network

Progress = Callable[[int, int], None]
POLL = 0.2  # seconds between looks at shards that other processes compute


def sweep(
    network: Network | nn.Module, dataset: Any, statistics: Any, layers: Any, *, store: str | Path | None = None,
    engine: str = "local", workers: int = 1, batch_size: int | Literal["auto"] = "auto", shard_size: int = 256,
    shard: str | tuple[int, int] | None = None, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Statistics of layers over a data set, by one forward pass for each image.

    `dataset` is what `open_dataset` takes; `statistics` a Statistic, a list, or a mapping of names to them; `layers` are
    addresses (also `input`) and patterns, where `*` stands for anything but a dot and `**` for anything. Statistics get
    `(B, C, H, W)` or `(B, C)`.

    The images are cut into stretches of `shard_size`, whose statistics are merged in order: the same for every engine and
    any number of workers. With `store`, a folder, each finished shard is written at once and a rerun computes what is
    missing: other weights, files, settings or code count as missing. `engine="local"` computes here, or in `workers`
    processes of one thread each; `engine="ray"` on the Ray cluster that is running, or on this machine as one.
    `shard="i/n"` computes every n-th shard from the i-th (0 to n - 1) on into the store, for arrays of jobs.
    `batch_size` "auto" takes as many images as run fast (8 of 224 x 224 pixels on a CPU, 128 on a GPU) and halves where memory
    does not suffice. `progress` is called with (images done, of how many).

    Pictures that cannot be read are left out and named in `failed`; if all are, ImageError is raised.
    """
    network = network if isinstance(network, Network) else Network(network)
    dataset, named, own = opened(dataset), by_name(statistics), part_of(shard, store)
    auto = batch_size == "auto"
    for what, value in (("batch_size", 1 if auto else batch_size), ("shard_size", shard_size), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{what} is {value!r}; expected a whole number of at least 1")
    total = len(dataset)
    if total == 0:
        raise UsageError(f"{dataset.name} has no pictures")
    if engine not in ("local", "ray"):
        raise UsageError(f"no engine {engine!r}; expected 'local' or 'ray'")
    first = first_input(network, dataset)
    found = find_layers(network, first, layers)
    work = Work(network, dataset, named, total, rows_at_once(first) if auto else int(batch_size), auto)
    there = None if store is None else Store(store)
    plan = planning.plan_of(work, found, shard_size, there is not None)
    if there is not None:
        planning.save(there, plan)
    fold = Fold(plan, plan.part(own), there, progress)
    _run(fold, _engine(engine, work, workers))
    return _finished(fold)


def _engine(name: str, work: Work, workers: int) -> Engine:
    if name == "ray":
        from convoscope.engine.ray import Ray

        return Ray(work, workers)
    return Here(work) if workers == 1 else Processes(work, workers)


def _run(fold: Fold, engine: Engine) -> None:
    shards = list(fold.shards)
    try:
        while shards:
            fold.deferred = []
            for found in engine.compute(fold.tasks(shards), fold.hints, fold.tell):
                fold.take(*found)
                del found  # it would last until the next
            if fold.deferred and len(fold.deferred) == len(shards):
                time.sleep(POLL)
            shards = fold.deferred
        if again := list(fold.lacking()):
            fold.replace(engine.compute(iter(again), lambda _: {}, lambda _: None))
    finally:
        fold.release()
        engine.close()


def _finished(fold: Fold) -> Sweep:
    found = fold.sweep
    if found.failed and len(found.failed) == fold.images:
        raise ImageError(f"none of the {fold.images} pictures could be read; the first: {next(iter(found.failed.values()))}")
    return found


def part_of(shard: str | tuple[int, int] | None, store: Any = True) -> tuple[int, int] | None:
    """The part that `i/n` means. Raises UsageError unless 0 <= i < n, and without a store to put it in."""
    if shard is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", shard) if isinstance(shard, str) else None
    i, n = (int(match[1]), int(match[2])) if match else shard if isinstance(shard, tuple) and len(shard) == 2 else (-1, 0)
    if not 0 <= i < n:
        raise UsageError(f"shard is {shard!r}; expected i/n with i from 0 to n - 1, such as 0/4")
    if store is None:
        raise UsageError("shard=... computes a part for others to merge; say where it goes with store=...")
    return i, n


def merged(store: str | Path, which: str | None = None) -> Sweep:
    """The Sweep of a store whose shards are all there, without network and data.

    `which` names a sweep of the store (the start of its name suffices); by default the only one. Raises UsageError where
    shards are missing.
    """
    known = stored(store)
    matching = [name for name in known if name.startswith(which or "")]
    if len(matching) != 1:
        state = f"no sweep {which!r}{did_you_mean(which or '', known)}" if not matching else f"{len(matching)} sweeps"
        raise UsageError(f"{str(store)!r} has {state}; name one of {', '.join(known)}")
    fold, missing = check(store, matching[0])
    if missing:
        first = f"images {missing[0].start} to {missing[0].stop - 1}"
        raise UsageError(f"{len(missing)} of {len(fold.shards)} shards are missing, first {first}; run them, then merge")
    return _finished(fold)


def check(store: str | Path, name: str, progress: Progress | None = None) -> tuple[Fold, list[Shard]]:
    """The shards of a stored sweep folded up to the first that is missing, and those that are. `progress`: of its shards."""
    plan = planning.load(stored(store)[name])
    fold, missing = Fold(plan, plan.shards, Store(store)), []
    for done, shard in enumerate(plan.shards, 1):
        missing += [shard] if fold.look(shard) is not None else []
        if progress is not None:
            progress(done, len(plan.shards))
    return fold, missing


def stored(store: str | Path) -> dict[str, Path]:
    """The sweeps of a store by name, oldest first. Raises UsageError where there are none."""
    known = planning.plans(Store(store)) if Path(store).is_dir() else []
    if not known:
        raise UsageError(f"{str(store)!r} is no store of a sweep; cs.sweep(..., store=...) makes one")
    return {p.stem.removeprefix("sweep-"): p for p in known}


def by_name(statistics: Any) -> dict[str, Statistic]:
    """Statistics by their names: those given, else their labels."""
    if isinstance(statistics, Mapping):
        found = dict(statistics)
    else:
        several = [statistics] if isinstance(statistics, Statistic) else list(statistics)
        found = {s.label() if isinstance(s, Statistic) else repr(s): s for s in several}
        if len(found) < len(several):
            raise UsageError("several statistics of one kind need names: give a mapping name -> Statistic")
    for name, statistic in found.items():
        if not (isinstance(name, str) and name and isinstance(statistic, Statistic)):
            raise UsageError(f"statistics are Statistic objects, or a mapping of names to them; got {name!r}: {statistic!r}")
    if not found:
        raise UsageError("no statistic to compute; give at least one")
    return found


def opened(dataset: Any) -> Any:
    """The data set itself, or what `open_dataset` makes of a folder, a list, or a data set of PyTorch."""
    if all(hasattr(dataset, name) for name in ("key", "picture", "class_of", "__len__")):
        return dataset
    from convoscope.data.dataset import open_dataset

    return open_dataset(dataset)
