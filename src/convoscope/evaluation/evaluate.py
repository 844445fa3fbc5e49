"""Methods against metrics on some images: `evaluate`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.run import undisturbed
from convoscope.core.spec import parse_spec
from convoscope.data.dataset import Dataset
from convoscope.evaluation.base import Metric, metrics
from convoscope.evaluation.budget import budget, bytes_of
from convoscope.evaluation.kept import Kept
from convoscope.evaluation.nulls import NULLS
from convoscope.evaluation.parts import Run, groups
from convoscope.evaluation.result import Evaluation
from convoscope.evaluation.tables import called
from convoscope.method import Method, method_of
from convoscope.network import Network
from convoscope.targets import Logit, Probability, Target

DEFAULT = ("deletion", "insertion", "faithfulness-correlation", "infidelity")


def evaluate(
    network: Network | nn.Module, images: Any, methods: Sequence[Method | str] = (), metrics: Sequence[Metric | str] = DEFAULT,
    target: Any = None, *, maps: Mapping[str, Float[Tensor, "images height width"]] | None = None,
    truth: Bool[Tensor, "images height width"] | None = None, nulls: Sequence[str] = ("random", "edges"),
    permutations: int = 0, batch_size: int | Literal["auto"] = "auto", memory: int | str | None = None,
    store: str | Path | None = None, seed: int = 0, progress: Any = None,
) -> Evaluation:  # fmt: skip
    """What the metrics say of the methods' maps, image by image, with intervals, and next to maps that know nothing.

    `images` is an input tensor, anything `network.read` takes, or a Dataset; `methods` explain them for `target` (default: the
    top class of each image). `maps` are others of your own, one for each image at its size, signed. `truth` marks where the
    evidence is, for metrics that ask for it. `nulls`: "random" noise and "edges" are judged like methods, so that scores
    can be read as skill; `permutations` judges each map also beside as many versions of itself with its values at other
    places, which costs curves a run each and others little. `progress` is called with (passes done, at most how many).

    Images are taken eight at a time, so that memory does not depend on their number. What several metrics or methods need
    alike is computed once. What cannot be had is NaN, with its reason in `left_out`.

    `memory`, bytes or a text such as "2 GB", bounds what all this takes beside the network: images and rows at once and random
    masks are chosen to fit. `store` is a folder that keeps each metric of each group of images as it is done: the same call,
    killed and started again, goes on from there and gives the same scores to the bit.
    """
    network = network if isinstance(network, Network) else Network(network)
    asked, made = tuple(metric_of(m) for m in metrics), [method_of(m) for m in methods]
    maps = dict(maps or {})
    names = (*called(made), *maps, *nulls)
    _check(asked, names, nulls, truth, memory, permutations)
    began = time.perf_counter()
    with undisturbed(network.plain):
        given = images if isinstance(images, Dataset) else network.check(_read(network, images))
        run = Run(
            network, asked, made, names, maps, tuple(nulls), target, truth, seed, len(given), progress,
            None if store is None else Kept(store), permutations,
        )  # fmt: skip

        def step(x: Tensor) -> int:
            run.budget = budget(memory, network, x, asked, len(names) * (1 + bool(permutations)), batch_size)
            return run.budget.images

        scores = [run.part(x, first) for first, x in groups(network, given, step)]
    if not scores:
        raise UsageError("no images to evaluate on")
    return Evaluation(
        asked, names, tuple(nulls), torch.cat(scores, -1), tuple(run.units[m] for m in asked), run.left_out,
        network=network.name, network_hash=network.hash, seed=seed, passes=run.passes, explained=run.explained,
        seconds=time.perf_counter() - began, shuffled=run.beside(), data=given.name if isinstance(given, Dataset) else "",
        target=wanted(network.target(target), network.categories), made=made,
    )  # fmt: skip


def _read(network: Network, images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else network.read(images)


def wanted(target: Target, categories: Sequence[str] = ()) -> str:
    """What is explained, in words."""
    if any(isinstance(getattr(target, n), tuple) for n in target.each):
        return "a class of its own for each image"
    if not isinstance(target, Logit | Probability):
        return repr(target)
    if target.open:
        return "the top class of each image"
    number = int(target.index)  # type: ignore[arg-type]
    return f"class {number}" + (f", {categories[number]}" if number < len(categories) else "")


def metric_of(which: Metric | str) -> Metric:
    """A metric from its name, `name:setting=value`, or itself. Raises SpecError with the closest names."""
    metrics()
    if isinstance(which, str):
        return parse_spec("metric", which)  # type: ignore[return-value]
    if not isinstance(which, Metric):
        raise UsageError(f"a metric is its name or a Metric such as Deletion(); got {type(which).__name__}")
    return which


def _check(
    asked: Sequence[Metric], names: Sequence[str], nulls: Sequence[str], truth: Tensor | None, memory: int | str | None,
    permutations: int,
) -> None:  # fmt: skip
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
    if permutations < 0:
        raise UsageError(f"permutations is {permutations}; expected 0 or more")
    if memory is not None:
        bytes_of(memory)
    for m in asked:
        if "truth" in m.needs and truth is None:
            raise UsageError(f"{m.name} compares maps with the truth; give truth=, a mask (images, height, width)")
