"""What a worker does: read the pictures of a shard ahead of the network, run each batch once, update every statistic."""

import ctypes
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from convoscope.core.backward import out_of_memory
from convoscope.core.errors import ConvoscopeError, UnsupportedError
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.core.statistic import Samples, Statistic
from convoscope.network import Network

Pair = tuple[str, str]  # a layer's address, and the name of a statistic
Row = tuple[int, "Tensor | str"]  # an image's place in the data set, and its input or why it cannot be read
Hints = Callable[[Collection[Pair]], Mapping[Pair, Statistic]]
CACHED = 1 << 23  # bytes of a layer that statistics get at once: what one writes, the next still finds near
READERS = 4  # threads that decode pictures


@dataclass(frozen=True)
class Shard:
    """The images `start` to `stop` of the data set, the `number`-th such stretch."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Task:
    """A shard, and what of it is to be computed, with the keys of both in a store."""

    shard: Shard
    pairs: tuple[Pair, ...]
    key: str
    keys: tuple[str, ...]


@dataclass
class Part:
    """What a shard gave: a statistic for each layer and name, and the images that could not be read, with the reason."""

    statistics: dict[Pair, Statistic] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass
class Work:
    """All that a worker has to know beside its tasks; `batch_size` halves where memory does not suffice if `adaptive`."""

    network: Network
    dataset: Any
    statistics: Mapping[str, Statistic]
    total: int
    batch_size: int = 32
    adaptive: bool = False
    readers: int = READERS


def compute(work: Work, tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None]) -> Iterator[tuple[Task, Part]]:
    """The parts of all tasks, in their order. `tell` is called with the number of images of each batch done.

    Pictures are read in threads, up to two batches ahead and across the ends of shards. Where memory does not suffice for a
    batch, its shard starts again with half the batch size.
    """
    issued: deque[Task] = deque()  # taken by the readers and not finished
    rest = iter(tasks)
    while True:
        told = 0
        stream = _rows(work, itertools.chain(list(issued), _noting(rest, issued)))
        try:
            for task, rows in itertools.groupby(stream, lambda found: found[0]):
                part = Part({p: work.statistics[p[1]].fresh() for p in task.pairs})
                for pair, earlier in hints(task.pairs).items():
                    part.statistics[pair].hint(earlier)
                for batch in _batches((row for _, row in rows), work.batch_size, part.failed):
                    update(work, part.statistics, batch)
                    told += len(batch)
                    tell(len(batch))
                tell(len(part.failed))
                told = 0
                issued.popleft()
                yield task, on_cpu(part)
                del part
                give_back()
            return
        except RuntimeError as error:
            if not (work.adaptive and work.batch_size > 1 and out_of_memory(error)):
                raise
        finally:
            stream.close()
        tell(-told)
        work.batch_size //= 2


def give_back() -> None:
    """Let the system have the memory that is free: glibc keeps it in pieces that no large tensor fits into."""
    trim = _trimming()
    if trim is not None:
        trim(0)


@cache
def _trimming() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library
        return None


def update(work: Work, statistics: Mapping[Pair, Statistic], batch: list[tuple[int, Tensor]]) -> None:
    """One forward pass, which stops after the last layer asked for, and every statistic of every layer."""
    network = work.network
    layers = tuple(dict.fromkeys(layer for layer, _ in statistics))
    x = torch.cat([row for _, row in batch]).to(network.device)
    places = [i for i, _ in batch]
    with undisturbed(network.plain), torch.no_grad():
        found = record(network.plain, x, layers, head=network.head)
        classes = torch.tensor([int(work.dataset.class_of(i)) for i in places], dtype=torch.int64, device=x.device)
        index = torch.tensor(places, device=x.device)
        for layer in layers:
            check_layer(layer, found[layer], len(x))
        for layer in layers:
            mine = [s for (address, _), s in statistics.items() if address == layer]
            for rows in _stretches(found[layer]):
                samples = Samples(index[rows], x[rows], classes[rows], work.total)
                for statistic in mine:
                    statistic.update(found[layer][rows].detach(), samples)


def _stretches(values: Tensor) -> list[slice]:
    """All rows, on a CPU as many at a time as stay in its cache while all statistics look at them."""
    if values.device.type != "cpu":
        return [slice(None)]
    size = max(1, CACHED // max(1, values[0].numel() * values.element_size()))
    return [slice(s, s + size) for s in range(0, len(values), size)]


def on_cpu(part: Part) -> Part:
    """The same with all tensors on the CPU, where parts are merged and kept."""
    for pair, statistic in part.statistics.items():
        if statistic.begun and any(getattr(statistic, name).device.type != "cpu" for name in statistic.state):
            moved = {k: t.cpu() for k, t in statistic.state_dict().items()}
            part.statistics[pair] = statistic.fresh().load_state_dict(moved)
    return part


def check_layer(layer: str, found: Tensor, images: int) -> None:
    """Raises UnsupportedError unless the tensor is `(B, C)` or `(B, C, H, W)`."""
    if found.dim() not in (2, 4) or len(found) != images:
        raise UnsupportedError(
            f"layer {layer!r} makes a tensor {tuple(found.shape)} of {images} images; statistics take (images, channels) or "
            "(images, channels, height, width)"
        )


def read(work: Work, i: int) -> Tensor | str:
    """The input `(1, C, H, W)` of an image, or why it cannot be read."""
    try:
        x = work.network.read(work.dataset.picture(i))
    except (ConvoscopeError, OSError) as error:
        return str(error)
    return x if len(x) == 1 else f"image {i} is {len(x)} pictures"


def _noting(tasks: Iterator[Task], issued: deque[Task]) -> Iterator[Task]:
    for task in tasks:
        issued.append(task)
        yield task


def _rows(work: Work, tasks: Iterable[Task]) -> Iterator[tuple[Task, Row]]:
    """The inputs of all tasks in order, read in threads a bounded number ahead."""
    waiting: deque[tuple[Task, int, Future[Tensor | str]]] = deque()
    pool = ThreadPoolExecutor(min(work.readers, os.cpu_count() or 1), "convoscope-reader")
    try:
        for task in tasks:
            for i in range(task.shard.start, task.shard.stop):
                waiting.append((task, i, pool.submit(read, work, i)))
                if len(waiting) > 2 * work.batch_size:
                    first, place, future = waiting.popleft()
                    yield first, (place, future.result())
        while waiting:
            first, place, future = waiting.popleft()
            yield first, (place, future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(rows: Iterable[Row], size: int, failed: dict[int, str]) -> Iterator[list[tuple[int, Tensor]]]:
    """Neighbors of equal shape, at most `size` of them; what could not be read goes to `failed`."""
    batch: list[tuple[int, Tensor]] = []
    for i, row in rows:
        if isinstance(row, str):
            failed[i] = row
            continue
        if batch and (len(batch) == size or batch[0][1].shape != row.shape):
            yield batch
            batch = []
        batch.append((i, row))
    if batch:
        yield batch
