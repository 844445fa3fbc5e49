"""Who computes: this process, or others of this machine with one thread each."""

import contextlib
import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

import torch

from convoscope.core.errors import ConvoscopeError, UsageError
from convoscope.core.statistic import Statistic
from convoscope.engine.shards import Hints, Pair, Part, Task, Work, compute
from convoscope.engine.store import add_contents, decode, encode

Found = tuple[Task, Part, bytes | None]
AHEAD = 3  # tasks handed out for each worker


class Engine(Protocol):
    """Computes tasks; parts come in any order, with the bytes of their files where they are there already."""

    def compute(self, tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None]) -> Iterator[Found]: ...
    def close(self) -> None: ...


class Here:
    """This process."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def compute(self, tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None]) -> Iterator[Found]:
        return map(lambda found: (*found, None), compute(self.work, tasks, hints, tell))  # noqa: C417  a loop would keep a part

    def close(self) -> None:
        """Nothing to be ended."""


def scheduled(
    tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None], ahead: int, work: Work,
    submit: Callable[[Task, bytes], Any], completed: Callable[[Collection[Any]], Iterable[tuple[Any, bytes]]],
) -> Iterator[Found]:  # fmt: skip
    """The parts of tasks that workers compute: at most `ahead` beyond the oldest that is not finished.

    `submit` hands a task out and returns a handle, `completed` waits for some handles and returns them with their results.
    """
    rest, running, number = iter(tasks), {}, 0
    while True:
        while not running or number - min(n for n, _ in running.values()) < ahead:
            task = next(rest, None)
            if task is None:
                break
            running[submit(task, packed(hints(task.pairs)))] = number, task
            number += 1
        if not running:
            return
        for handle, data in completed(running.keys()):
            _, task = running.pop(handle)
            tell(len(task.shard))
            part = Part()
            add_contents(part, decode(data), dict(zip(task.pairs, task.keys, strict=True)), work.statistics)
            yield task, part, data
            del part, data


def packed(statistics: Mapping[Pair, Statistic]) -> bytes:
    """Statistics as bytes, for `Worker.run`; none for none."""
    keys = {pair: str(i) for i, pair in enumerate(statistics)}
    brief = Part({pair: statistic.brief() for pair, statistic in statistics.items()})
    return pickle.dumps((keys, encode("", brief, keys))) if statistics else b""


class Worker:
    """What computes in another process."""

    def __init__(self, blob: bytes, device: str | None = None) -> None:
        self.work: Work = pickle.loads(blob)
        if device is not None:
            self.work.network.module.to(device)

    def run(self, task: Task, earlier: bytes) -> bytes:
        """The file of a task's part. `earlier` is what hints are made of."""
        hints = Part()
        if earlier:
            keys, data = pickle.loads(earlier)
            add_contents(hints, decode(data), keys, self.work.statistics)
        _, part = next(compute(self.work, [task], lambda _: hints.statistics, lambda _: None))
        return encode(task.key, part, dict(zip(task.pairs, task.keys, strict=True)))


def sendable(work: Work, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """The work as bytes. Raises UsageError naming what cannot be sent to another process."""
    work = copy.copy(work)
    work.network = copy.copy(work.network)
    work.network._traces = {}  # each finds its own
    for what, thing in (("network", work.network), ("data set", work.dataset), ("statistics", work.statistics)):
        try:
            dumps(thing)
        except Exception as error:  # pickling raises anything
            raise UsageError(
                f"the {what} cannot be sent to other processes ({str(error).splitlines()[0]}); define its classes and "
                "functions at the top of a module, or use one worker"
            ) from None
    return dumps(work)


_worker: Worker | None = None


def _start(blob: bytes, parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _worker = Worker(blob)


def _watch(parent: int) -> None:
    """End with the process that started us, also when that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(task: Task, earlier: bytes) -> bytes:
    assert _worker is not None
    return _worker.run(task, earlier)


class Processes:
    """Processes of this machine, started when there is something to do."""

    def __init__(self, work: Work, workers: int) -> None:
        self.work, self.workers = work, workers
        work.readers = max(1, (os.cpu_count() or 1) // workers)
        self.blob = sendable(work)
        self.pool: ProcessPoolExecutor | None = None

    def compute(self, tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None]) -> Iterator[Found]:
        try:
            yield from scheduled(tasks, hints, tell, AHEAD * self.workers, self.work, self._submit, _completed)
        except BrokenProcessPool:
            raise ConvoscopeError(
                "a worker ended without a word: killed for want of memory, or started from a script whose calls are not under "
                "`if __name__ == '__main__':`; with store=... finished shards are kept, and a rerun goes on from there"
            ) from None

    def _submit(self, task: Task, earlier: bytes) -> Future[bytes]:
        if self.pool is None:
            settings = {"mp_context": get_context("spawn"), "initializer": _start, "initargs": (self.blob, os.getpid())}
            self.pool = ProcessPoolExecutor(self.workers, **settings)
        return self.pool.submit(_run, task, earlier)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        if self.pool is None:
            return
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                process.terminate()
        for process in processes:
            with contextlib.suppress(OSError, ValueError, AssertionError):
                process.join(5)
        self.pool = None


def _completed(handles: Collection[Future[bytes]]) -> list[tuple[Future[bytes], bytes]]:
    return [(f, f.result()) for f in wait(handles, return_when=FIRST_COMPLETED).done]
