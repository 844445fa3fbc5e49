"""`sweep`: one forward pass for each image, whatever is asked of it."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from convoscope.core.errors import ImageError, UsageError
from convoscope.core.statistic import Statistic
from convoscope.engine.layers import find_layers, first_input
from convoscope.engine.result import Sweep
from convoscope.engine.shards import Pair, Part, Shard, Task, Work, compute
from convoscope.network import Network

Progress = Callable[[int, int], None]


def sweep(
    network: Network | nn.Module, dataset: Any, statistics: Any, layers: Any, *, store: str | Path | None = None,
    engine: str = "local", workers: int = 1, batch_size: int | Literal["auto"] = 32, shard_size: int = 256,
    shard: str | tuple[int, int] | None = None, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Statistics of layers over a data set, by one forward pass for each image."""
    network = network if isinstance(network, Network) else Network(network)
    dataset = opened(dataset)
    named = by_name(statistics)
    adaptive = batch_size == "auto"
    size = (128 if network.device.type != "cpu" else 32) if batch_size == "auto" else batch_size
    for what, value in (("batch_size", size), ("shard_size", shard_size), ("workers", workers)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{what} is {value!r}; expected a whole number of at least 1")
    total = len(dataset)
    if total == 0:
        raise UsageError(f"{dataset.name} has no pictures")
    found = find_layers(network, first_input(network, dataset), layers)
    work = Work(network, dataset, named, total, size, adaptive)
    shards = [Shard(k, s, min(s + shard_size, total)) for k, s in enumerate(range(0, total, shard_size))]
    fold = Fold(work, found, progress)
    pairs = tuple((layer, name) for layer in found for name in named)
    for task, part in compute(work, [Task(s, pairs) for s in shards], fold.hints, fold.tell):
        fold.take(task.shard, part)
    if len(fold.sweep.failed) == total:
        raise ImageError(f"none of the {total} pictures could be read; the first: {next(iter(fold.sweep.failed.values()))}")
    return fold.sweep


class Fold:
    """Merges the parts of shards in the order of the images."""

    def __init__(self, work: Work, layers: tuple[str, ...], progress: Progress | None) -> None:
        self.work, self.progress, self.done = work, progress, 0
        net, data, names = work.network, work.dataset, tuple(work.statistics)
        self.sweep = Sweep(net.name, net.hash, data.name, work.total, layers, names)
        self.sweep.statistics = {(a, n): work.statistics[n].fresh() for a in layers for n in names}

    def hints(self, pairs: Collection[Pair]) -> Mapping[Pair, Statistic]:
        """What the first shards merged to so far."""
        found = self.sweep.statistics
        return {p: found[p] for p in pairs if found[p].begun and type(found[p]).hint is not Statistic.hint}

    def tell(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        if self.progress is not None:
            self.progress(self.done, self.work.total)

    def take(self, shard: Shard, part: Part) -> None:
        """Merge the next shard."""
        kept = {}
        for pair, statistic in part.statistics.items():
            whole = self.sweep.statistics[pair]
            first = not whole.begun
            whole.merge(statistic)
            if statistic.spilled:
                kept[pair] = statistic
                for name in statistic.spilled if first and whole.begun else ():
                    setattr(whole, name, getattr(whole, name)[:0].clone())
        self.sweep.parts.append(kept)
        self.sweep.failed |= part.failed


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
