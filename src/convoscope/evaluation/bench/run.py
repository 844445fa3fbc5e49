"""The benchmark with exact truth: every method on every task, beside maps that know nothing and maps that know the answer."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.spec import Spec, fields_of, parse_spec
from convoscope.evaluation.base import digest, rows_of
from convoscope.evaluation.bench import tasks as known_tasks
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.result import CONTROLS, Bench, Kept, Outcome
from convoscope.evaluation.bench.store import Scored, Store
from convoscope.evaluation.nulls import edges, noise
from convoscope.method import Method, explain, method_of
from convoscope.method import methods as known_methods
from convoscope.network import Images, Network
from convoscope.targets import Target

DRAWS = 32  # random maps for chance, and as many others for the row "random"
REMEMBERED = 256  # maps of one method, for tasks that ask for the same ones
KEPT = ("parts", 48)  # of which task, and of how many of its pictures, the maps stay with the result
MOST = 8  # threads

LIMITS = {"steps": 8, "samples": 40, "masks": 40, "permutations": 1}
FEWER: dict[str, dict[str, int]] = {  # what the limits leave too dear: gradients of many samples, and products of settings
    "deep-lift-shap": {"samples": 4}, "expected-gradients": {"samples": 8}, "is-cam": {"channels": 32, "steps": 2},
    "score-cam": {"channels": 32}, "smooth-grad": {"samples": 8}, "smooth-grad-cam-plus-plus": {"samples": 8},
    "smooth-grad-squared": {"samples": 8}, "sobol": {"samples": 1}, "ss-cam": {"channels": 32, "samples": 2},
    "var-grad": {"samples": 8},
}  # fmt: skip
FULL_LIMITS = {"steps": 32, "samples": 200, "masks": 200}
FULL_FEWER = {"sobol": {"samples": 2}, "is-cam": {"channels": 64, "steps": 2}, "ss-cam": {"channels": 64, "samples": 2}}


def bench(
    methods: Sequence[Method | str] | None = None, tasks: Sequence[Task | str] | None = None, *, quick: bool = True,
    seed: int = 0, workers: int | None = None, store: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bench:  # fmt: skip
    """How well methods (default: all) answer tasks (default: all) of which the right answer is known exactly.

    Beside them stand "oracle", which knows the answer, "edges", an edge detector, and "random", the mean of 32 random maps;
    chance is the mean of 32 others. `quick` takes small tasks and methods with fewer samples (`cheap`): under a minute on two
    cores. Otherwise tasks are as they were given, and so are methods given with settings; others get no more samples and steps
    than `moderate` says: a quarter of an hour. A method that cannot explain a network of a task has no score there, with its
    reason. `workers` methods run at a time, a thread each (default: as many as torch uses); numbers depend on the seed alone,
    up to rounding. `store` is a folder that keeps what a method scored on a task as it is done: the same call, killed, goes on
    from there. `progress` is called with what is done and how much there is.
    """
    given = list(known_methods()) if methods is None else list(methods)
    made = [method_of(m) for m in given]
    asked = [task_of(t) for t in (known_tasks() if tasks is None else tasks)]
    if not made or not asked:
        raise UsageError(f"nothing to do: {len(made)} methods on {len(asked)} tasks")
    asked = [t.quick() for t in asked] if quick else asked
    own = [not quick and not (isinstance(m, str) and ":" not in m) for m in given]  # settings that were chosen
    made = [m if chosen else cheap(m) if quick else moderate(m) for m, chosen in zip(made, own, strict=True)]
    _distinct([t.name for t in asked], "tasks")
    names = _named(methods, made)
    began = time.perf_counter()
    with threads(workers) as pool:
        run = _Run(asked, names, made, seed, None if store is None else Store(store), progress)
        list(pool.map(run.truth, range(len(asked))))
        run.chance(list(pool.map(run.draw, range(2 * DRAWS))))
        list(pool.map(run.method, range(len(made))))
    return run.result(quick, time.perf_counter() - began)


def task_of(which: Task | str) -> Task:
    """A task from its name, `name:setting=value`, or itself. Raises SpecError with the closest names."""
    known_tasks()
    if isinstance(which, str):
        return parse_spec("task", which)  # type: ignore[return-value]
    if not isinstance(which, Task):
        raise UsageError(f"a task is its name or a Task; got {type(which).__name__}")
    return which


def cheap(method: Method) -> Method:
    """The method with fewer samples, masks and steps, also inside a method that it averages: some ten passes for an image.

    Numbers that are smaller already stay.
    """
    return limited(method, LIMITS, FEWER)


def moderate(method: Method) -> Method:
    """The method as the full benchmark has it: at most 32 steps and 200 samples or masks."""
    return limited(method, FULL_LIMITS, FULL_FEWER)


def limited(spec: Any, limits: Mapping[str, int], own: Mapping[str, Mapping[str, int]]) -> Any:
    """The method with whole numbers of at most `limits`, by the name of the setting, or `own`, by the name of the method."""
    mine = own.get(spec.name, {})
    most, changes = {**limits, **mine}, {}
    for info in fields_of(type(spec)):
        value = getattr(spec, info.name)
        if isinstance(value, Spec):
            changes[info.name] = limited(value, limits, own)
        elif (value is None and info.name in mine) or (isinstance(value, int) and value > most.get(info.name, value)):
            changes[info.name] = most[info.name]
    return dataclasses.replace(spec, **changes) if changes else spec


def fitting(method: Method, side: int) -> Method:
    """The method with a window of at most a third of a picture's side, its stride in proportion: some tasks are small."""
    settings = {info.name: getattr(method, info.name) for info in fields_of(type(method))}
    changes = {k: fitting(v, side) for k, v in settings.items() if isinstance(v, Method)}
    window, stride = settings.get("window"), settings.get("stride")
    if isinstance(window, int) and window > max(1, side // 3):
        changes["window"] = max(1, side // 3)  # type: ignore[assignment]
        if isinstance(stride, int):
            changes["stride"] = max(1, stride * max(1, side // 3) // window)  # type: ignore[assignment]
    return dataclasses.replace(method, **changes) if changes else method


# ---------------------------------------------------------------- who gives maps
class Explained:
    """The maps of a method; those asked for before, of the same network, picture and target, are not made again."""

    def __init__(self, method: Method, seed: int = 0) -> None:
        self.method, self.seed = method, seed
        self._made: dict[Any, Tensor] = {}
        self._networks: dict[int, Network] = {}  # held, so that no other network gets their number

    def __call__(
        self, network: Network, x: Images, target: Target, places: tuple[int, ...]
    ) -> Float[Tensor, "rows height width"]:
        self._networks[id(network)] = network
        keys = [(id(network), digest(row), rows_of(target, torch.tensor([i]))) for i, row in enumerate(x)]
        new = [i for i, key in enumerate(keys) if key not in self._made]
        found = {keys[i]: self._made[keys[i]] for i in range(len(x)) if keys[i] in self._made}
        if new:
            chosen = torch.tensor(new)
            method = fitting(self.method, min(x.shape[2:]))
            where = [places[i] for i in new]
            made = explain(network, x[chosen.to(x.device)], method, rows_of(target, chosen), seed=self.seed, places=where)
            found |= dict(zip((keys[i] for i in new), made.heatmap().double().cpu(), strict=True))
        self._made |= found
        for key in list(self._made)[: max(0, len(self._made) - REMEMBERED)]:
            del self._made[key]
        return torch.stack([found[key] for key in keys])


def random_maps(seed: int, number: int) -> Mapper:
    """Who draws uniform numbers between 0 and 1 at every pixel: draw `number` of a seed."""
    return lambda network, x, target, places: noise(x, places, seed, number)


def edge_maps(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Float[Tensor, "rows height width"]:
    """An edge detector, which looks at the picture alone."""
    return edges(x)


# ---------------------------------------------------------------- one run
class _Run:
    """What a run is asked for, and the scores it has so far."""

    def __init__(
        self, tasks: list[Task], names: list[str], made: list[Method], seed: int, store: Store | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.tasks, self.made, self.seed, self.store, self.progress = tasks, made, seed, store, progress
        self.names = (*names, *CONTROLS)
        self.scores: list[dict[str, Tensor]] = [{} for _ in tasks]
        self.chances: list[Tensor] = [torch.empty(0)] * len(tasks)
        self.reasons: list[dict[str, str]] = [{} for _ in tasks]
        self.seconds: list[dict[str, float]] = [{} for _ in tasks]
        self.maps: dict[str, Kept] = {}
        self.done, self.lock = 0, threading.Lock()

    def truth(self, number: int) -> None:
        """The rows of those who know the answer and of the edge detector; the first computes the truth, once for all."""
        self._score(number, "oracle", self.tasks[number].oracle())
        self._score(number, "edges", edge_maps)

    def draw(self, number: int) -> list[Tensor]:
        """The scores of one random map for each item of each task; tasks with pictures of one size get the same maps."""
        made: dict[Any, Tensor] = {}
        draw = random_maps(self.seed, number)

        def mapper(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
            key = (places, tuple(x.shape[2:]))
            if key not in made:
                made[key] = draw(network, x, target, places)
            return made[key]

        keeping = [self._keeping(t, "random", mapper) if number == DRAWS else mapper for t in self.tasks]
        return [t.score(m).double().cpu() for t, m in zip(self.tasks, keeping, strict=True)]

    def chance(self, drawn: list[list[Tensor]]) -> None:
        """What the first half of the random maps score is chance, what the others do the row "random"."""
        for k in range(len(self.tasks)):
            scores = torch.stack([one[k] for one in drawn])
            self.chances[k], self.scores[k]["random"] = scores[:DRAWS].nanmean(0), scores[DRAWS:].nanmean(0)

    def method(self, number: int) -> None:
        """One method on every task."""
        mapper = Explained(self.made[number], self.seed)
        for k in range(len(self.tasks)):
            if not self._known(k, number):
                self._score(k, self.names[number], mapper)
                self._keep(k, number)
        with self.lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, len(self.made))

    def _score(self, number: int, name: str, mapper: Mapper) -> None:
        task, began = self.tasks[number], time.perf_counter()
        try:
            self.scores[number][name] = task.score(self._keeping(task, name, mapper)).double().cpu()
        except UnsupportedError as error:
            self.reasons[number][name] = str(error)
        self.seconds[number][name] = time.perf_counter() - began

    def _known(self, number: int, method: int) -> bool:
        """Takes over what the store has of a method on a task."""
        task, name = self.tasks[number], self.names[method]
        found = None if self.store is None else self.store.find(task, self.made[method], self.seed)
        if found is None:
            return False
        self.seconds[number][name] = found.seconds
        if found.scores is None:
            self.reasons[number][name] = found.reason
        else:
            self.scores[number][name] = found.scores
        if found.maps is not None:
            self.maps[task.name].by_name[name] = found.maps
        return True

    def _keep(self, number: int, method: int) -> None:
        """Puts what a method scored on a task into the store."""
        if self.store is None:
            return
        task, name = self.tasks[number], self.names[method]
        maps = self.maps[task.name].by_name.get(name) if task.name in self.maps else None
        scored = Scored(
            self.scores[number].get(name), self.reasons[number].get(name, ""), self.seconds[number][name], maps
        )  # fmt: skip
        self.store.keep(scored, task, self.made[method], self.seed)

    def _keeping(self, task: Task, name: str, mapper: Mapper) -> Mapper:
        """The mapper, whose first maps stay with the result where they are wanted."""
        if task.name != KEPT[0]:
            return mapper

        def keep(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
            found = mapper(network, x, target, places)
            rows = torch.arange(min(KEPT[1], len(x)))
            with self.lock:
                kept = self.maps.setdefault(task.name, Kept(network, x[: len(rows)], rows_of(target, rows), {}))
                kept.by_name.setdefault(name, found[: len(rows)].float())
            return found

        return keep

    def result(self, quick: bool, seconds: float) -> Bench:
        outcomes = []
        for k, task in enumerate(self.tasks):
            nothing = torch.full_like(self.chances[k], torch.nan)
            rows = torch.stack([self.scores[k].get(name, nothing) for name in self.names])
            outcomes.append(Outcome(task, self.names, rows, self.chances[k], self.reasons[k], self.seconds[k]))
        for kept in self.maps.values():
            kept.by_name = {name: kept.by_name[name] for name in self.names if name in kept.by_name}
        titles = (*(m.title for m in self.made), *CONTROLS.values())
        return Bench(tuple(outcomes), self.names, titles, tuple(self.made), self.maps, quick, self.seed, seconds)


@contextmanager
def threads(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Some threads, of which each computes on one core."""
    before = torch.get_num_threads()
    workers = min(before, os.cpu_count() or 1, MOST) if workers is None else workers
    if workers < 1:
        raise UsageError(f"workers is {workers}; expected at least 1")
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, before // workers),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _named(given: Sequence[Method | str] | None, made: Sequence[Method]) -> list[str]:
    """What methods are called in the tables: as they were asked for."""
    asked = [m.name for m in made] if given is None else [m if isinstance(m, str) else m.name for m in given]
    for name in CONTROLS:
        if name in asked:
            raise UsageError(f"{name!r} is always there, and no method")
    _distinct(asked, "methods")
    return asked


def _distinct(names: Sequence[str], what: str) -> None:
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise UsageError(f"two {what} are called {twice[0]!r}; give each once")
