"""Which metric can be trusted? Whether what metrics say of methods agrees with what exact truth says of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.spec import fields_of
from convoscope.evaluation import tables
from convoscope.evaluation.base import Case, Metric, mean_ranks, metrics, pearson, rows_of, seeded
from convoscope.evaluation.bench.parts import played
from convoscope.evaluation.bench.reliability import LEAST, reliability
from convoscope.evaluation.bench.result import CONTROLS, Bench
from convoscope.evaluation.bench.run import cheap, threads
from convoscope.evaluation.bench.store import Scored, Store
from convoscope.evaluation.evaluate import metric_of
from convoscope.evaluation.nulls import noise
from convoscope.evaluation.statistics import RESAMPLES
from convoscope.method import explain

TASK = "parts"
PICTURES = {True: 8, False: 16}  # by whether the benchmark is a quick one
AGAIN, FEW = 4, 3  # for metrics that make maps anew: pictures, and changes of each
AT_ONCE = 2  # pictures whose scores are stored together
RARE = "left out: no pictures were given for metrics that take long"
SLOW = ("road",)  # others that are asked on as few pictures
NUMBERS = (
    "agreement", "low", "high", "image", "image_low", "image_high", "overall", "overall_low", "overall_high",
    "oracle", "random",
)  # fmt: skip
ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)

QUICK: dict[str, dict[str, Any]] = {
    "comprehensiveness": {"shares": (0.05, 0.2)},
    "sufficiency": {"shares": (0.05, 0.2)},
    "deletion": {"steps": 4},
    "insertion": {"steps": 4},
    "morf": {"steps": 4},
    "lerf": {"steps": 4},
    "effective-complexity": {"steps": 4},
    "faithfulness-correlation": {"count": 50},
    "infidelity": {"count": 50},
    "sensitivity-n": {"count": 16},
    "non-sensitivity": {"cells": 7},
    "irof": {"segments": 5},
    "region-perturbation": {"cells": 6, "regions": 3},
}
SCENES: dict[str, dict[str, Any]] = {  # flat pictures need fewer bytes when they are whole than when they are partly filled in
    "aic": {"fill": "mean"},
    "sic": {"fill": "mean"},
}
DEAR = dict.fromkeys(("aic", "sic", "road"), "too dear for a quick benchmark; the full one has it")
DEARER = {"smprt": "too dear here: as mprt, with a map for each of many noisy copies, layers and methods"}
MAKES = "makes maps anew, too dear for a quick benchmark; the full one has it"


@dataclass
class MetricRanking:
    """Scores of metrics `(metrics, names, images)` beside those of exact truth `(names, items)`; NaN where there are none.

    The first items are the images. `overall` is one number for each name, if there is a truth over many tasks. `names` are
    methods, then the controls, which take no part in the agreement. `left_out` says why a metric was not asked.
    """

    metrics: tuple[Metric, ...]
    names: tuple[str, ...]
    scores: Float[Tensor, "metrics names images"]
    truth: Float[Tensor, "names items"]
    passes: tuple[int, ...]
    overall: Float[Tensor, " names"] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    truth_name: str = TASK
    seed: int = 0
    seconds: float = 0.0

    def __repr__(self) -> str:
        images = f"{self.scores.shape[-1]} images of {self.truth_name}"
        return f"MetricRanking({len(self.metrics)} metrics of {len(self._own)} methods on {images})"

    def rows(self) -> list[dict[str, Any]]:
        """One row for each metric, the one that agrees most with exact truth first.

        `agreement`: Spearman's correlation, over methods, of their mean score with their mean exact score, the metric turned so
        that higher is better; `low` and `high` its 95 % bootstrap interval over images. `image` with its ends is the same of
        each image alone, then averaged: whether a single picture suffices. `overall` with its ends: with the mean over many
        tasks in place of the exact score. `oracle` and `random`: the share of methods that the metric places below the right
        answer (1 is right) and below a random map (0 is right). `passes`: forward passes at most for each image and method, or
        for each image where they are `shared` by all methods; where `makes`, how many maps are made anew. Those that were not
        asked come last, with their reason.
        """
        return [dict(row) for row in self._rows]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        found = [self._row(k, metric) for k, metric in enumerate(self.metrics)]
        found.sort(key=lambda r: (r["agreement"] != r["agreement"], -r["agreement"]))
        nothing = dict.fromkeys(NUMBERS, torch.nan)
        absent = [
            {**_told(metrics()[name]), **nothing, "methods": 0, "passes": 0, "reason": reason}
            for name, reason in self.left_out.items()
        ]
        return found + absent

    @property
    def reliability(self) -> float:
        """How well the exact scores tell the order of methods on other pictures, 1 is surely (`reliability`)."""
        return reliability(self.truth[self._own], self.seed)

    def table(self) -> Any:
        """The rows as a pandas DataFrame. Raises UsageError without pandas."""
        return tables.frame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """The rows, every score and all settings, as JSON values."""
        return tables.plain({
            "truth": self.truth_name, "seed": self.seed, "seconds": self.seconds, "images": self.scores.shape[-1],
            "reliability": self.reliability, "overall": None if self.overall is None else self.overall.tolist(),
            "metrics": [m.to_dict() for m in self.metrics], "names": list(self.names), "rows": self.rows(),
            "scores": self.scores.tolist(), "exact": self.truth.tolist(),
        })  # fmt: skip

    def joined(self, other: "MetricRanking") -> "MetricRanking":
        """The metrics of both, of the same names and truth; one of them may have fewer images."""
        missing = self.scores.shape[-1] - other.scores.shape[-1]
        scores = torch.cat([self.scores, F.pad(other.scores, (0, missing), value=torch.nan)])
        return replace(
            self, metrics=self.metrics + other.metrics, scores=scores, passes=self.passes + other.passes,
            seconds=self.seconds + other.seconds,
        )  # fmt: skip

    @property
    def _own(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if name not in CONTROLS]

    def _row(self, k: int, metric: Metric) -> dict[str, Any]:
        turned = self.scores[k] * (metric.direction or 1)
        found = agreement(turned[self._own], self.truth[self._own], self.seed)
        if self.overall is not None:
            whole = agreement(turned[self._own], self.overall[self._own, None], self.seed)[:3]
        else:
            whole = (torch.nan,) * 3
        means = turned.nanmean(-1)
        rivals = means[self._own][~means[self._own].isnan()]
        beaten = []
        for name in ("oracle", "random"):
            mean = means[self.names.index(name)] if name in self.names else torch.tensor(torch.nan)
            beaten.append(float((rivals < mean).double().mean()) if len(rivals) and not mean.isnan() else torch.nan)
        few = f"{len(rivals)} methods have a score by it on these pictures, or all the same"
        return {
            **_told(type(metric)), **dict(zip(NUMBERS, (*found, *whole, *beaten), strict=True)), "methods": len(rivals),
            "passes": self.passes[k], "reason": "" if found[0] == found[0] else few,
        }  # fmt: skip


def _told(metric: type[Metric]) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "title": metric.title,
        "family": metric.family,
        "direction": metric.direction,
        "shared": metric.shared,
    }


def rank_metrics(
    bench: Bench, metrics: Sequence[Metric | str] | None = None, *, seed: int = 0, pictures: int | None = None,
    few: int = AGAIN, workers: int | None = None, store: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MetricRanking:  # fmt: skip
    """Which metrics (default: all) agree with the exact Shapley values of the task "parts"?

    They judge the maps that a benchmark kept, of all methods and of the controls; localization metrics take the parts of
    positive Shapley value for the object. The truth are the exact scores of all pictures of the task. A quick benchmark asks
    on eight pictures with few steps, another on sixteen with the settings given (or on `pictures`). ROAD, and metrics that make
    maps anew, are asked on `few` pictures (0: left out), the latter of methods with few samples (`cheap`), with three changes
    of each picture. `store` is a folder as that of `bench`. Raises UsageError where "parts" was not run.
    """
    if TASK not in bench.kept:
        raise UsageError(f"metrics are ranked on the task {TASK!r}, which this benchmark lacks; run it with that task")
    count = min(len(bench.kept[TASK].x), pictures or PICTURES[bench.quick])
    case, some = _case(bench, count, seed), range(min(few, count))
    exact = bench.of(TASK).scores[[bench.of(TASK).names.index(name) for name in case.names]]
    asked, left_out = asked_for(metrics, bench.quick)
    if not some and metrics is None:
        left_out |= {m.name: RARE for m in asked if _slow(m)}
        asked = [m for m in asked if not _slow(m)]
    makes = [m for m in asked if "methods" in m.needs]
    montages = [m for m in makes if "classes" in m.needs]
    groups = [
        (lambda: case, [m for m in asked if not _slow(m)]),
        (lambda: _again(case, range(min(PICTURES[True], count))), montages),
        (lambda: _part(case, some), [m for m in asked if _slow(m) and m not in makes]),
        (lambda: _again(case, some), [m for m in makes if m not in montages]),
    ]
    ranked = [rank(own(), exact, them, workers=workers, store=store, progress=progress) for own, them in groups if them]
    if not ranked:
        raise UsageError("no metrics to rank; cs.metrics() lists them")
    found = reduce(MetricRanking.joined, ranked)
    whole = {r["method"]: r["skill"] for r in bench.ranking()} if len(bench.outcomes) > 1 else {}
    overall = torch.tensor([whole[n] for n in case.names], dtype=torch.float64) if whole else None
    return replace(found, left_out=left_out, truth_name=TASK, overall=overall)


def _slow(metric: Metric) -> bool:
    return "methods" in metric.needs or metric.name in SLOW


def _case(bench: Bench, count: int, seed: int) -> Case:
    """The first pictures that a benchmark kept, with everybody's maps, and the parts that speak for the class as the truth."""
    kept, task = bench.kept[TASK], bench.of(TASK).task
    games = played(task.network, task.pictures, task.seed).games[:count]  # type: ignore[attr-defined]
    where = torch.stack([(g.masks.bool() & (g.worth > 0)[:, None, None]).any(0) for g in games])
    x, maps, names = kept.x[:count], kept.maps[:, :count].double(), kept.names
    if "random" not in names:
        maps, names = torch.cat([maps, noise(x, tuple(range(count)), seed)[None]]), (*names, "random")
    own = dict(zip(bench.names, bench.methods, strict=False))  # the rest of the names are controls
    return Case(
        kept.network, x, rows_of(kept.target, torch.arange(count)), maps, names, tuple(own.get(n) for n in names), truth=where,
        seed=seed, batch_size=rows_at_once(x),
    )  # fmt: skip


def asked_for(chosen: Sequence[Metric | str] | None, quick: bool) -> tuple[list[Metric], dict[str, str]]:
    """The metrics, those of a quick benchmark with few steps, and why others are not asked."""
    if chosen is not None:
        return [metric_of(m) for m in chosen], {}
    found, left_out = [], DEARER | (DEAR if quick else {})
    for name, kind in metrics().items():
        if quick and "methods" in kind.needs:
            left_out[name] = MAKES
        elif name not in left_out:
            found.append(fewer(kind(), quick))
    return found, left_out


def fewer(metric: Metric, quick: bool) -> Metric:
    """The metric with fewer steps in a quick benchmark, and with fewer changes where each needs a new map."""
    settings = SCENES.get(metric.name, {}) | (QUICK.get(metric.name, {}) if quick else {})
    if "methods" in metric.needs:
        known = {f.name for f in fields_of(type(metric))} & {"count", "smooth"}
        settings = {name: min(FEW, getattr(metric, name)) for name in known}
    return replace(metric, **settings)


def _again(case: Case, rows: range) -> Case:
    """Some images with new maps, by the methods with few samples."""
    part = _part(case, rows)
    methods = tuple(None if m is None else cheap(m) for m in case.methods)
    maps = part.maps.clone()
    for k, method in enumerate(methods):
        if method is not None:
            maps[k] = explain(case.network, part.x, method, part.target, seed=case.seed).heatmap().double().cpu()
    return replace(part, maps=maps, methods=methods)


def rank(
    case: Case, truth: Float[Tensor, "names items"], chosen: Sequence[Metric | str], *, workers: int | None = None,
    store: str | Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> MetricRanking:  # fmt: skip
    """Metrics beside exact scores of the same maps: `truth` holds one for each name of the case and item, higher is better.

    The first items are the images of the case, there may be others. Pictures are shared out among `workers` threads (default:
    as many as torch uses); the scores do not depend on how many. `progress` is called with what is done and how much there is.
    """
    asked = [metric_of(m) for m in chosen]
    if truth.dim() != 2 or len(truth) != len(case.names) or truth.shape[1] < len(case.x):
        raise UsageError(f"the truth is a score of each map {tuple(case.maps.shape[:2])}; got {tuple(truth.shape)}")
    for metric in asked:
        if "methods" in metric.needs and not any(case.methods):
            raise UsageError(f"{metric.name} makes maps anew, and the case has maps alone; give it the methods")
        if "truth" in metric.needs and case.truth is None:
            raise UsageError(f"{metric.name} compares maps with a mask, and the case has none")
    began, done, kept = time.perf_counter(), 0, None if store is None else Store(store)

    def scored(rows: range) -> Tensor:
        nonlocal done
        part, found = _part(case, rows), []
        for metric in asked:
            found.append(_scored(metric, part) if kept is None else _kept(metric, part, kept))
            done += 1
            if progress is not None:
                progress(done, len(parts) * len(asked))
        return torch.stack(found)

    with undisturbed(case.network.plain), threads(workers) as pool:
        each = -(-len(case.x) // (workers or torch.get_num_threads())) if kept is None else AT_ONCE
        each = len(case.x) if any("classes" in m.needs for m in asked) else each  # montages take other pictures
        parts = [range(i, min(i + each, len(case.x))) for i in range(0, len(case.x), each)]
        scores = torch.cat(list(pool.map(scored, parts)), -1)
    return MetricRanking(
        tuple(asked), case.names, scores, truth, tuple(m.passes(case) for m in asked), seed=case.seed, truth_name="the truth",
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _part(case: Case, rows: range) -> Case:
    own = slice(rows.start, rows.stop)
    return replace(
        case, x=case.x[own], target=rows_of(case.target, torch.tensor(list(rows))), maps=case.maps[:, own],
        truth=None if case.truth is None else case.truth[own], places=case.places[own], memo={}, passes=0,
    )  # fmt: skip


def _scored(metric: Metric, case: Case) -> Float[Tensor, "names images"]:
    """The metric of each map; NaN where it cannot be had."""
    found = torch.full(case.maps.shape[:2], torch.nan, dtype=torch.float64)
    if "methods" not in metric.needs:
        with suppress(UnsupportedError):
            found = metric.score(case).double().cpu()
        return found
    for number, method in enumerate(case.methods):
        if method is not None:
            with suppress(UnsupportedError):
                found[number] = metric.score(case.only(number))[0].double().cpu()
    return found


def _kept(metric: Metric, case: Case, store: Store) -> Float[Tensor, "names images"]:
    """The same, from the store if it is there."""
    key = (metric, case.x, case.maps, case.target, case.methods, case.truth, case.places, case.seed)
    found = store.find(*key)
    if found is None:
        began = time.perf_counter()
        found = Scored(_scored(metric, case), seconds=time.perf_counter() - began)
        store.keep(found, *key)
    return found.scores  # type: ignore[return-value]


# ---------------------------------------------------------------- agreement
def agreement(
    scores: Float[Tensor, "methods images"], truth: Float[Tensor, "methods items"], seed: int = 0
) -> tuple[float, float, float, float, float, float]:
    """Spearman's correlation across methods: of their means over images, and the mean over images of that of each image alone.

    Each is followed by the ends of its 95 % percentile bootstrap interval: images are drawn with replacement, and so are the
    items of the truth. Methods without any score are left out, scores that lack on some images are passed over; NaN where
    fewer than four methods remain, or all are alike. The first items of the truth are the images, if it has as many.
    """
    known = ~scores.isnan().all(-1) & ~truth.isnan().all(-1)
    scores, truth = scores[known], truth[known]
    if len(scores) < LEAST:
        return (torch.nan,) * 6
    images = scores.shape[-1]
    drawn = _drawn(images, seed, "images")
    same = truth.shape[-1] == images
    exact = _means(truth, drawn if same else _drawn(truth.shape[-1], seed, "items"))
    over = pearson(mean_ranks(_means(scores, drawn)), mean_ranks(exact))
    both = zip(scores.T, truth.T, strict=False) if truth.shape[-1] >= images else ()
    each = torch.tensor([_alone(a, b) for a, b in both] or [torch.nan] * images, dtype=torch.float64)
    means = each[drawn].nanmean(-1)
    return (_alone(scores.nanmean(-1), truth.nanmean(-1)), *_ends(over, images), float(each.nanmean()), *_ends(means, images))


def _drawn(count: int, seed: int, what: str) -> Tensor:
    return torch.randint(count, (RESAMPLES, count), generator=seeded(seed, "agreement", what))


def _means(values: Float[Tensor, "methods images"], drawn: Tensor) -> Float[Tensor, "draws methods"]:
    """The means of resampled images; a method that has none of them keeps its mean of all."""
    if not values.isnan().any():
        return values[:, drawn].mean(-1).T.contiguous()
    means = values[:, drawn].nanmean(-1)
    return torch.where(means.isnan(), values.nanmean(-1)[:, None], means).T.contiguous()


def _alone(scores: Float[Tensor, " methods"], truth: Float[Tensor, " methods"]) -> float:
    known = ~scores.isnan() & ~truth.isnan()
    if int(known.sum()) < LEAST:
        return torch.nan
    return float(pearson(mean_ranks(scores[known]), mean_ranks(truth[known])))


def _ends(draws: Tensor, images: int) -> tuple[float, float]:
    low, high = draws.nanquantile(ENDS).tolist() if images > 1 else (torch.nan, torch.nan)
    return low, high
