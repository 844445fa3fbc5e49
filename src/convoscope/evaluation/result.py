"""What an evaluation returns: every score, and tables that say how sure they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.evaluation import tables
from convoscope.evaluation.base import Metric
from convoscope.evaluation.comparisons import Comparison, Pairs, letters
from convoscope.evaluation.statistics import interval, mean_of, told_apart
from convoscope.method import Method


@dataclass
class Evaluation:
    """Scores `(metrics, methods, images)`; NaN where a metric is not defined. `left_out` says why a method has none.

    `passes` are the forward passes of one image that the metrics took, `explained` those of the methods' own maps. `shuffled`
    are the scores of the same maps with their values at other places, if they were asked for. `data` and `target` say in words
    what was explained, `made` are the methods that made the first of the maps, with their settings.
    """

    metrics: Sequence[Metric]
    names: Sequence[str]
    nulls: Sequence[str]
    scores: Float[Tensor, "metrics methods images"]
    units: Sequence[str]
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    network: str = ""
    network_hash: str = ""
    seed: int = 0
    passes: int = 0
    seconds: float = 0.0
    explained: int = 0
    shuffled: Float[Tensor, "metrics permutations methods images"] | None = None
    data: str = ""
    target: str = ""
    made: Sequence[Method] = ()

    def __repr__(self) -> str:
        m, n, i = self.scores.shape
        return f"Evaluation({n} methods by {m} metrics on {i} images of {self.network})"

    @cached_property
    def labels(self) -> list[str]:
        """What the metrics are called: their names, with settings where two have the same."""
        return tables.called(self.metrics)

    @property
    def warning(self) -> str:
        """What so few images cannot tell, or nothing where there are enough."""
        count = self.scores.shape[-1]
        if count > 5:
            return ""
        if count == 1:
            return "One image has no intervals and tells nothing apart; six are the least that do."
        return f"{count} images tell nothing apart: p is {2 / 2**count:.2g} at least. Six images are the least that do."

    def rows(self) -> list[dict[str, Any]]:
        """One row for each metric and method: mean, 95 % interval, and how it stands to maps that know nothing.

        `skill` is the mean of how much better than the random map the method is, image by image, in the metric's own unit,
        positive is better; `p` says how likely one as large is by chance, for all methods together (`told_apart`).
        `skill_edges` and `p_edges` say the same beside the edge detector. With permutations, `skill_shuffled` is how much
        better the mean is than that of the method's own values at other places, `z` that in their standard deviations, and
        `p_shuffled` how often they are at least as good; NaN for metrics that do not look at places.

        `group` and `better_than` compare the methods with one another: those that share a letter are not told apart, and
        `better_than` counts those that a method is shown to be better than. Maps that know nothing do not take part.
        """
        found = []
        for k, metric in enumerate(self.metrics):
            low, high = interval(self.scores[k], self.seed)
            means = mean_of(self.scores[k])
            skills, p = self._skill(k, metric, "random")
            beside, p_beside = self._skill(k, metric, "edges")
            pairs = self._pairs[k]
            group, better = letters(pairs.groups), dict(zip(pairs.names, pairs.better.sum(1).tolist(), strict=True))
            for n, name in enumerate(self.names):
                found.append({
                    "metric": self.labels[k], "method": name, "mean": float(means[n]), "low": float(low[n]),
                    "high": float(high[n]), "images": int((~self.scores[k, n].isnan()).sum()), "skill": skills[n], "p": p[n],
                    "skill_edges": beside[n], "p_edges": p_beside[n], **self._permuted(k, n, metric),
                    "group": group.get(name, ""), "better_than": better.get(name, float("nan")),
                    "unit": self.units[k], "direction": metric.direction,
                })  # fmt: skip
        return found

    def table(self) -> Any:
        """The rows as a pandas DataFrame. Raises UsageError without pandas."""
        return tables.frame(self.rows())

    def compare(self, metric: str, a: str, b: str) -> Comparison:
        """Two methods by a metric, on the same images: the mean difference, better is positive, its interval and p-value.

        It is one question asked alone, so that `p_all` is `p`; `comparisons` asks about all pairs.
        """
        k = self._number(metric)
        return self._compared(k, (self._method(a), self._method(b))).rows[0]

    def comparisons(self, metric: str | None = None) -> list[Comparison]:
        """Every pair of methods on the same images, by a metric or all of them; `pandas.DataFrame(...)` makes a table of it."""
        chosen = range(len(self.metrics)) if metric is None else [self._number(metric)]
        return [row for k in chosen for row in self._pairs[k].rows]

    def groups(self, metric: str) -> list[list[str]]:
        """Methods that a metric does not tell apart, the best first; who stands between two groups is in both."""
        return self._pairs[self._number(metric)].groups

    def ranking(self, metric: str) -> list[str]:
        """The methods from best to worst by the mean of a metric; those without a score last."""
        k = self._number(metric)
        means = mean_of(self.scores[k]) * (self.metrics[k].direction or 1)
        order = torch.where(means.isnan(), -torch.inf, means).argsort(descending=True, stable=True)
        return [self.names[int(i)] for i in order]

    def best(self, metric: str) -> list[str]:
        """The methods that no other is shown to be better than, in their order; none where nothing could be tested."""
        pairs = self._pairs[self._number(metric)]
        beaten = pairs.better.any(0).tolist()
        tested = {name for group in pairs.groups for name in group}
        return [name for name, lost in zip(pairs.names, beaten, strict=True) if name in tested and not lost]

    def joined(self, other: "Evaluation") -> "Evaluation":
        """The same methods and metrics on the images of both. Raises UsageError where scores cannot be averaged."""
        for what in ("metrics", "names", "units", "network_hash"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise UsageError(f"these evaluations differ in their {what}, and have no common mean: {ours} and {theirs}")
        from dataclasses import replace

        return replace(
            self, scores=torch.cat([self.scores, other.scores], -1), passes=self.passes + other.passes,
            seconds=self.seconds + other.seconds, explained=self.explained + other.explained,
            left_out={**self.left_out, **other.left_out}, shuffled=_joined(self.shuffled, other.shuffled),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The rows, every score and what was left out, as JSON values."""
        return {
            "network": {"name": self.network, "hash": self.network_hash},
            "seed": self.seed,
            "metrics": [m.to_dict() for m in self.metrics],
            "methods": list(self.names),
            "settings": [m.to_dict() for m in self.made],
            "data": self.data,
            "target": self.target,
            "images": self.scores.shape[-1],
            "groups": {label: pairs.groups for label, pairs in zip(self.labels, self._pairs, strict=True)},
            "comparisons": tables.plain([row.to_dict() for row in self.comparisons()]),
            "rows": tables.plain(self.rows()),
            "scores": tables.plain(self.scores.tolist()),
            "left_out": [{"metric": m, "method": n, "reason": r} for (m, n), r in self.left_out.items()],
            "passes": self.passes,
            "explained": self.explained,
            "seconds": self.seconds,
        }

    def save(self, path: str | Path) -> Path:
        """Writes the scores (`.json`), the rows (`.csv`), or a table of them (`.html`, `.png`); the file is whole or absent."""
        from convoscope.evaluation import drawing

        return tables.save(path, self, self.image, lambda: drawing.page(self))

    def image(self) -> Any:
        """The table as a picture: every metric a column, every method a row, with intervals."""
        from convoscope.evaluation import drawing

        return drawing.picture(self)

    def _repr_html_(self) -> str:
        from convoscope.evaluation import drawing

        return drawing.fragment(self)

    @cached_property
    def _pairs(self) -> list[Pairs]:
        own = [i for i, name in enumerate(self.names) if name not in self.nulls]
        return [self._compared(k, own) for k in range(len(self.metrics))]

    def _compared(self, k: int, rows: Sequence[int]) -> Pairs:
        turned = self.scores[k, list(rows)] * (self.metrics[k].direction or 1)
        return Pairs(self.labels[k], [self.names[i] for i in rows], turned, self.seed)

    def _permuted(self, k: int, n: int, metric: Metric) -> dict[str, float]:
        """The mean over images beside the means of the shuffled maps (Phipson and Smyth 2010)."""
        if self.shuffled is None:
            return {}
        own, others = mean_of(self.scores[k, n]), mean_of(self.shuffled[k, :, n])
        better = (own - others) * (metric.direction or 1)
        skill, spread = float(better.mean()), float(others.std()) if len(others) > 1 else 0.0
        as_good = int((better <= 1e-12 * own.abs()).sum())
        known = skill == skill and metric.direction != 0 and not metric.blind
        return {
            "skill_shuffled": skill if known else float("nan"),
            "z": skill / spread if known and spread > 1e-9 * abs(float(own)) else float("nan"),
            "p_shuffled": (1 + as_good) / (1 + len(others)) if known else float("nan"),
        }

    def _skill(self, k: int, metric: Metric, name: str) -> tuple[list[float], list[float]]:
        nothing = [float("nan")] * len(self.names)
        if name not in self.nulls or not metric.direction:
            return nothing, nothing
        gap = (self.scores[k] - self.scores[k, list(self.names).index(name)]) * metric.direction
        own = [i for i, other in enumerate(self.names) if other != name]
        p = dict(zip(own, told_apart(gap[own], self.seed)[1].tolist(), strict=True))
        return gap.nanmean(1).tolist(), [p.get(i, float("nan")) for i in range(len(self.names))]

    def _number(self, metric: str) -> int:
        if metric not in self.labels:
            hint = did_you_mean(metric, self.labels)
            raise UsageError(f"no metric {metric!r} here{hint}; there are {', '.join(self.labels)}")
        return self.labels.index(metric)

    def _method(self, name: str) -> int:
        if name not in self.names:
            raise UsageError(f"no method {name!r} here{did_you_mean(name, self.names)}; there are {', '.join(self.names)}")
        return list(self.names).index(name)


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The shuffled maps' scores of both, where both have equally many."""
    return None if a is None or b is None or a.shape[1] != b.shape[1] else torch.cat([a, b], -1)
