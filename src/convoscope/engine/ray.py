"""Who computes: actors of a Ray cluster, each with the network. A killed one is started anew, and its task runs again."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from convoscope.core.errors import ConvoscopeError, UsageError
from convoscope.engine.local import AHEAD, Found, Worker, scheduled, sendable
from convoscope.engine.shards import Hints, Task, Work

RESTARTS = 4  # of an actor, and tries of a task beyond the first


def import_ray() -> Any:
    """Ray, or a UsageError that says how to get it."""
    try:
        import ray
    except ImportError:
        raise UsageError("engine='ray' needs Ray; install it with: pip install 'convoscope[ray]'") from None
    return ray


class Actor(Worker):
    """A worker on a cluster; on a GPU if it was given one."""

    def __init__(self, blob: bytes, gpu: bool) -> None:
        import torch

        torch.set_num_threads(1)
        super().__init__(blob, "cuda" if gpu else None)

    def process(self) -> int:
        """The number of its process."""
        import os

        return os.getpid()


class Ray:
    """A cluster that runs already (`RAY_ADDRESS`, or `ray.init` called before), or this machine as one."""

    def __init__(self, work: Work, workers: int) -> None:
        self.ray = import_ray()
        self.work, self.workers, self.ours = work, workers, False
        self.actors: list[Any] = []
        self.busy: dict[Any, Any] = {}  # what is computed -> the actor that does
        self.put: Any = None
        there = copy.copy(work)
        if work.network.device.type != "cpu":  # which another machine may not have
            there.network = copy.copy(work.network)
            there.network.module = copy.deepcopy(work.network.module).cpu()
        from ray import cloudpickle

        self.blob = sendable(there, cloudpickle.dumps)

    def _start(self) -> None:
        ray = self.ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            self.ours = True
        gpus = int(ray.cluster_resources().get("GPU", 0))
        kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Actor)
        most = gpus or int(ray.cluster_resources().get("CPU", 1))  # more would wait for a place for ever
        self.put = ray.put(self.blob)  # held until the end: an actor that is started again is given it again
        self.actors = [kind.remote(self.put, gpus > 0) for _ in range(max(1, min(self.workers, most)))]

    def compute(self, tasks: Iterable[Task], hints: Hints, tell: Callable[[int], None]) -> Iterator[Found]:
        yield from scheduled(tasks, hints, tell, AHEAD * self.workers, self.work, self._submit, self._completed)

    def _submit(self, task: Task, earlier: bytes) -> Any:
        if not self.actors:
            self._start()
        working = list(self.busy.values())
        actor = min(self.actors, key=working.count)
        handle = actor.run.remote(task, earlier)
        self.busy[handle] = actor
        return handle

    def _completed(self, handles: Collection[Any]) -> list[tuple[Any, bytes]]:
        done, _ = self.ray.wait(list(handles), num_returns=1)
        return [(handle, self._result(handle)) for handle in done]

    def _result(self, handle: Any) -> bytes:
        self.busy.pop(handle)
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConvoscopeError):
                raise error.cause from None
            raise
        except self.ray.exceptions.RayActorError as error:
            raise ConvoscopeError(_lost(str(error))) from None

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors, self.put = [], None
        if self.ours:
            self.ray.shutdown()


def _lost(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    if "creation task" in error:
        named = [line for line in lines if line.split(":")[0].endswith("Error")]
        return f"a worker of the cluster cannot start: {(named or lines)[-1]}"
    return (
        f"a worker of the cluster was lost {RESTARTS + 1} times ({lines[0]}); with store=... finished shards are kept, and a "
        "rerun goes on from there"
    )
