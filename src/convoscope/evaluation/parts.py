"""An evaluation image group by image group: maps made, metrics asked, finished parts kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.data.dataset import Dataset
from convoscope.engine.keys import network_key
from convoscope.evaluation.base import Case, Metric, rows_of
from convoscope.evaluation.budget import Budget, device_of
from convoscope.evaluation.kept import Kept, Part
from convoscope.evaluation.nulls import NULLS, permutations
from convoscope.evaluation.tables import called
from convoscope.method import Method, explain
from convoscope.network import Network
from convoscope.targets import Target

ALONE = "it is given as maps alone, and this metric makes maps anew"


def groups(network: Network, images: Tensor | Dataset, size: Callable[[Tensor], int]) -> Iterator[tuple[int, Tensor]]:
    """Inputs, as many at a time as `size` says of the first, with the place of the first of them."""
    if isinstance(images, Tensor):
        step = size(images) if len(images) else 1
        for first in range(0, len(images), step):
            yield first, images[first : first + step].clone()
        return
    first, step = 0, 1
    while first < len(images):
        if not first:
            step = size(network.check(network.read(images.picture(0))))
        rows = [network.read(images.picture(i)) for i in range(first, min(first + step, len(images)))]
        if len({tuple(r.shape) for r in rows}) > 1:
            raise UsageError("pictures of different sizes cannot be compared pixel by pixel; give the Network a size")
        yield first, network.check(torch.cat(rows))
        first += step


@dataclass
class Run:
    """What one evaluation is asked for, and what it has cost so far. `progress` takes passes done, and at most how many."""

    network: Network
    metrics: Sequence[Metric]
    methods: Sequence[Method]
    names: Sequence[str]
    maps: Mapping[str, Tensor]
    nulls: tuple[str, ...]
    target: Any
    truth: Tensor | None
    seed: int
    count: int
    progress: Callable[[int, int], Any] | None = None
    kept: Kept | None = None
    permutations: int = 0
    budget: Budget | None = None
    total: int = 0
    passes: int = 0
    explained: int = 0
    units: dict[Metric, str] = field(default_factory=dict)
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    common: dict[Any, Any] = field(default_factory=dict)
    shuffled: list[Tensor] = field(default_factory=list)

    @cached_property
    def labels(self) -> list[str]:
        """What the metrics are called in the results."""
        return called(self.metrics)

    def part(self, x: Tensor, first: int) -> Float[Tensor, "metrics methods images"]:
        """The scores of some images."""
        files = self._files(x, first)
        found = [self.kept.find(path) for path in files] if self.kept is not None else [None] * len(self.metrics)
        case = self._case(x, first) if any(part is None for part in found) else None
        for k, metric in enumerate(self.metrics):
            part = found[k]
            if part is None:
                assert case is not None
                part = found[k] = self._scored(metric, case)
                if self.kept is not None:
                    self.kept.keep(files[k], part)
            else:
                self.explained += part.explained
                self._count(part.passes + part.explained)
            self.passes += part.passes
            self.units[metric] = part.unit
            self.left_out |= {(self.labels[k], name): reason for name, reason in part.left_out.items()}
        if self.permutations:
            self.shuffled.append(torch.stack([p.shuffled for p in found if p is not None and p.shuffled is not None]))
        return torch.stack([part.scores for part in found if part is not None])

    def beside(self) -> Tensor | None:
        """The scores of shuffled maps so far, `(metrics, permutations, methods, images)`, if they were asked for."""
        return torch.cat(self.shuffled, -1) if self.permutations else None

    def _files(self, x: Tensor, first: int) -> list[Any]:
        if self.kept is None:
            return []
        rows = slice(first, first + len(x))
        own = [given[rows] for given in self.maps.values()]
        truth = None if self.truth is None else self.truth[rows]
        every = (
            network_key(self.network), device_of(x), self.budget, x, first, list(self.names), list(self.methods), own, truth,
            self.target, self.seed, self.permutations,
        )  # fmt: skip
        return [self.kept.path(metric, *every) for metric in self.metrics]

    # ---- one metric
    def _scored(self, metric: Metric, case: Case) -> Part:
        """The scores of all methods, those that refuse the network among them."""
        before, explained = case.passes, case.kept.pop("explained", 0)
        part = Part(torch.full((len(self.names), len(case.x)), torch.nan, dtype=torch.float64), explained=explained)
        part.left_out |= case.kept["refused"]
        if self.permutations:
            part.shuffled = torch.full((self.permutations, *part.scores.shape), torch.nan, dtype=torch.float64)
        rows = [list(self.names).index(name) for name in case.names]
        if "methods" not in metric.needs:
            try:
                part.scores[rows] = metric.score(case).cpu()
                if part.shuffled is not None:
                    part.shuffled[:, rows] = permutations(metric, case, self.permutations, at_once=1).shuffled.cpu()
            except UnsupportedError as error:
                part.left_out |= dict.fromkeys(case.names, str(error))
        for number, row in enumerate(rows) if "methods" in metric.needs else ():
            name = case.names[number]
            if case.methods[number] is None:
                part.left_out[name] = ALONE
                continue
            try:
                part.scores[row] = metric.score(case.only(number))[0].cpu()
            except UnsupportedError as error:
                part.left_out[name] = str(error)
        which = case.judge("probability") if getattr(metric, "of", "target") == "probability" else case.target
        part.unit, part.passes = metric.unit.format(target=which.unit), case.passes - before
        return part

    # ---- maps
    def _case(self, x: Tensor, first: int) -> Case:
        assert self.budget is not None
        places = tuple(range(first, first + len(x)))
        target = self._target(x, first)
        made: dict[str, Tensor] = {}
        refused: dict[str, str] = {}
        explained = self.explained
        for name, method in zip(self.names, self.methods, strict=False):
            try:
                made[name] = self._explained(method, x, target, places)
            except UnsupportedError as error:
                refused[name] = str(error)
        for name, given in self.maps.items():
            if given.dim() != 3 or given.shape[1:] != x.shape[2:] or len(given) <= places[-1]:
                raise UsageError(
                    f"maps of {name!r} are one for each image at its size, (images, {x.shape[2]}, {x.shape[3]}); "
                    f"got {tuple(given.shape)}"
                )
            made[name] = given[first : first + len(x)].detach().cpu().double()
        made |= {n: NULLS[n](x, places, self.seed) for n in self.nulls}
        maps = torch.empty(len(made), len(x), *x.shape[2:], dtype=torch.float64)
        names = tuple(made)
        for k, name in enumerate(names):
            maps[k] = made.pop(name)
        methods = dict(zip(self.names, self.methods, strict=False))
        self.common |= {"refused": refused, "explained": self.explained - explained}
        case = Case(
            self.network, x, target, maps, names, tuple(methods.get(n) for n in names),
            truth=None if self.truth is None else self.truth[first : first + len(x)], places=places, seed=self.seed,
            batch_size=self.budget.rows, progress=self._count, room=self.budget.masks, kept=self.common,
        )  # fmt: skip
        self.total = self.total or self._most(case)
        return case

    def _most(self, case: Case) -> int:
        """How many passes of one image the whole evaluation takes at most."""
        maps = sum(m.evaluations(case.x[:1]) for m in self.methods)
        alone = len(self.names) * (1 + self.permutations)
        each = [m.passes(case) * (maps if "methods" in m.needs else 1 if m.shared else alone) for m in self.metrics]
        return self.count * (sum(each) + maps)

    def _target(self, x: Tensor, first: int) -> Target:
        """The target with everything open fixed by the clean images."""
        target = self.network.target(self.target)
        if any(isinstance(getattr(target, n), tuple) for n in target.each):
            target = rows_of(target, torch.arange(first, first + len(x)))
        if not target.open:
            return target
        assert self.budget is not None
        return explain(self.network, x, "gradient", target, batch_size=self.budget.rows).target

    def _explained(self, method: Method, x: Tensor, target: Target, places: tuple[int, ...]) -> Tensor:
        assert self.budget is not None
        found = explain(self.network, x, method, target, seed=self.seed, batch_size=self.budget.rows, places=places)
        passes = int(found.diagnostics["evaluations"])
        self.explained += passes
        self._count(passes)
        return found.heatmap().detach().cpu().double()

    def _count(self, passes: int) -> None:
        self.common["done"] = self.common.get("done", 0) + passes
        if self.progress is not None:
            self.progress(self.common["done"], max(self.total, self.common["done"]))
