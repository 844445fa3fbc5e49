"""Methods against metrics on some images: `evaluate`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.spec import parse_spec
from convoscope.data.dataset import Dataset
from convoscope.evaluation.base import Case, Metric, metrics
from convoscope.evaluation.nulls import NULLS
from convoscope.evaluation.result import Evaluation
from convoscope.method import Method, explain, method_of
from convoscope.network import Network
from convoscope.targets import Target

DEFAULT = ("deletion", "insertion", "faithfulness-correlation", "infidelity")
IMAGES = 8  # whose maps are held at once


def evaluate(
    network: Network | nn.Module, images: Any, methods: Sequence[Method | str] = (), metrics: Sequence[Metric | str] = DEFAULT,
    target: Any = None, *, maps: Mapping[str, Float[Tensor, "images height width"]] | None = None,
    truth: Bool[Tensor, "images height width"] | None = None, nulls: Sequence[str] = ("random", "edges"),
    batch_size: int | Literal["auto"] = "auto", seed: int = 0, progress: Any = None,
) -> Evaluation:  # fmt: skip
    """What the metrics say of the methods' maps, image by image, with intervals, and next to maps that know nothing.

    `images` is an input tensor, anything `network.read` takes, or a Dataset; `methods` explain them for `target` (default: the
    top class of each image). `maps` are others of your own, one for each image at its size, signed. `truth` marks where the
    evidence is, for metrics that ask for it. `nulls`: "random" noise and "edges" are judged like methods, so that scores
    can be read as skill.

    Images are taken eight at a time, so that memory does not depend on their number. What several metrics or methods need
    alike is computed once: curves of pixels removed serve deletion and pixel flipping, random subsets are shown to the network
    once for all methods, equal rankings are run once. A metric that cannot be had for a method is NaN there, with its reason.
    """
    network = network if isinstance(network, Network) else Network(network)
    asked = [metric_of(m) for m in metrics]
    made = [method_of(m) for m in methods]
    maps = dict(maps or {})
    names = [*_distinct([m.name for m in made]), *maps, *nulls]
    _check(asked, names, nulls, truth)
    began = time.perf_counter()
    parts, run = [], _Run(network, asked, made, maps, tuple(nulls), target, truth, batch_size, seed, progress)
    with undisturbed(network.plain):
        for first, x in _images(network, images):
            parts.append(run.part(x, first, names))
    if not parts:
        raise UsageError("no images to evaluate on")
    return Evaluation(
        metrics=tuple(asked),
        names=tuple(names),
        nulls=tuple(nulls),
        scores=torch.cat(parts, -1),
        units=tuple(m.unit.format(target=run.unit(m)) for m in asked),
        left_out=run.left_out,
        network=network.name,
        network_hash=network.hash,
        seed=seed,
        passes=run.passes,
        seconds=time.perf_counter() - began,
        explained=run.explained,
    )


def metric_of(which: Metric | str) -> Metric:
    """A metric from its name, `name:setting=value`, or itself. Raises SpecError with the closest names."""
    metrics()
    if isinstance(which, str):
        return parse_spec("metric", which)  # type: ignore[return-value]
    if not isinstance(which, Metric):
        raise UsageError(f"a metric is its name or a Metric such as Deletion(); got {type(which).__name__}")
    return which


def _check(asked: Sequence[Metric], names: Sequence[str], nulls: Sequence[str], truth: Tensor | None) -> None:
    if not asked:
        raise UsageError("no metrics to evaluate by; cs.metrics() lists them")
    for null in nulls:
        if null not in NULLS:
            raise UsageError(f"no null {null!r}; expected {', '.join(NULLS)}")
    twice = {n for n in names if list(names).count(n) > 1}
    if twice:
        raise UsageError(f"two maps are called {twice.pop()!r}; rename one")
    if not set(names) - set(nulls):
        raise UsageError("no methods and no maps to evaluate")
    for m in asked:
        if "truth" in m.needs and truth is None:
            raise UsageError(f"{m.name} compares maps with the truth; give truth=, a mask (images, height, width)")


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return out


def _images(network: Network, images: Any) -> Iterator[tuple[int, Tensor]]:
    """Inputs, some at a time, with the place of the first."""
    if isinstance(images, Dataset):
        for first in range(0, len(images), IMAGES):
            rows = [network.read(images.picture(i)) for i in range(first, min(first + IMAGES, len(images)))]
            if len({tuple(r.shape) for r in rows}) > 1:
                raise UsageError("pictures of different sizes cannot be compared pixel by pixel; give the Network a size")
            yield first, network.check(torch.cat(rows))
        return
    x = network.check(images if isinstance(images, Tensor) else network.read(images))
    for first in range(0, len(x), IMAGES):
        yield first, x[first : first + IMAGES].clone()


@dataclass
class _Run:
    """What one evaluation is asked for, and what it has cost so far."""

    network: Network
    metrics: Sequence[Metric]
    methods: Sequence[Method]
    maps: Mapping[str, Tensor]
    nulls: tuple[str, ...]
    target: Any
    truth: Tensor | None
    batch_size: int | str
    seed: int
    progress: Any

    def __post_init__(self) -> None:
        self.left_out: dict[tuple[str, str], str] = {}
        self.passes, self.explained = 0, 0
        self._units: dict[str, str] = {}

    def part(self, x: Tensor, first: int, names: Sequence[str]) -> Float[Tensor, "metrics methods images"]:
        """The scores of some images."""
        size = rows_at_once(x) if self.batch_size == "auto" else int(self.batch_size)
        case = self._case(x, first, tuple(names), size)
        out = torch.full((len(self.metrics), len(names), len(x)), torch.nan, dtype=torch.float64)
        for k, metric in enumerate(self.metrics):
            out[k] = self._scored(metric, case)
        self.passes += case.passes
        return out

    def _scored(self, metric: Metric, case: Case) -> Tensor:
        if "methods" not in metric.needs:
            return metric.score(case)
        found = torch.full((len(case.names), len(case.x)), torch.nan, dtype=torch.float64)
        for number, method in enumerate(case.methods):
            if method is None:
                self.left_out[metric.name, case.names[number]] = "it is given as maps alone, and this metric makes maps anew"
                continue
            try:
                found[number] = metric.score(case.only(number))[0]
            except UnsupportedError as error:
                self.left_out[metric.name, case.names[number]] = str(error)
        return found

    def _case(self, x: Tensor, first: int, names: tuple[str, ...], size: int) -> Case:
        places = tuple(range(first, first + len(x)))
        target = self._target(x, first)
        maps = [self._explained(method, x, target, size) for method in self.methods]
        for name, given in self.maps.items():
            if given.dim() != 3 or given.shape[1:] != x.shape[2:] or len(given) <= places[-1]:
                raise UsageError(
                    f"maps of {name!r} are one for each image at its size, (images, {x.shape[2]}, {x.shape[3]}); "
                    f"got {tuple(given.shape)}"
                )
            maps.append(given[first : first + len(x)].detach().cpu().double())
        maps += [NULLS[n](x, places, self.seed) for n in self.nulls]
        truth = None if self.truth is None else self.truth[first : first + len(x)]
        case = Case(
            self.network, x, target, torch.stack(maps), names, (*self.methods, *(None,) * (len(names) - len(self.methods))),
            truth=truth, places=places, seed=self.seed, batch_size=size, progress=self.progress,
        )  # fmt: skip
        self._units = {"target": target.unit, "probability": case.judge("probability").unit}
        return case

    def _target(self, x: Tensor, first: int) -> Target:
        """The target with everything open fixed by the clean images."""
        from convoscope.evaluation.base import rows_of

        target = self.network.target(self.target)
        if any(isinstance(getattr(target, n), tuple) for n in target.each):
            target = rows_of(target, torch.arange(first, first + len(x)))
        return explain(self.network, x, "gradient", target).target if target.open else target

    def _explained(self, method: Method, x: Tensor, target: Target, size: int) -> Tensor:
        found = explain(self.network, x, method, target, seed=self.seed, batch_size=size)
        self.explained += int(found.diagnostics["evaluations"])
        return found.heatmap().detach().cpu().double()

    def unit(self, metric: Metric) -> str:
        """The unit of the target as the metric judges it."""
        return self._units[getattr(metric, "of", "target")]
