"""Which methods a metric tells apart: all pairs on the same images, and the groups within which nothing is shown."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.evaluation.statistics import interval, told_apart

SURE = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two methods by one metric, on the images where both have a score.

    `difference` is the mean of how much better `a` is than `b` in the metric's unit, positive is better, `low` and `high` its
    95 % bootstrap interval. `superiority` is the share of images on which `a` is better, ties counted half (McGraw and Wong
    1992). `p` is the p-value of this pair alone, `p_all` that for all pairs of the metric together.
    """

    metric: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    superiority: float
    images: int
    p: float
    p_all: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pairs:
    """All pairs of methods by a metric; `scores` are turned so that higher is better."""

    metric: str
    names: Sequence[str]
    scores: Float[Tensor, "methods images"]
    seed: int = 0

    @cached_property
    def rows(self) -> list[Comparison]:
        """Every pair, in the order of the methods."""
        gap = self._differences
        low, high = interval(gap, self.seed)
        known = ~gap.isnan()
        better = ((gap > 0).sum(1) + (gap == 0).sum(1) / 2) / known.sum(1)
        first, second = self._places
        columns = (gap.nanmean(1), low, high, better.double(), known.sum(1), *self._p)
        return [
            Comparison(self.metric, self.names[a], self.names[b], *numbers)
            for a, b, *numbers in zip(first.tolist(), second.tolist(), *(c.tolist() for c in columns), strict=True)
        ]

    @cached_property
    def better(self) -> Bool[Tensor, "methods methods"]:
        """Whether the first is shown to be better than the second, with p <= 0.05 for all pairs together."""
        count, (first, second) = len(self.names), self._places
        gap, found = self._differences.nanmean(1), torch.zeros(count, count, dtype=torch.bool)
        shown = self._p[1] <= SURE
        found[first, second], found[second, first] = shown & (gap > 0), shown & (gap < 0)
        return found

    @cached_property
    def groups(self) -> list[list[str]]:
        """Methods none of which is shown to be better than another, the best first; every two that are not are in some group.

        Groups overlap where a method stands between two that are told apart (Piepho 2004, "compact letter display"). None where
        nothing could be tested.
        """
        if bool(self._p[0].isnan().all()):
            return []
        means = self.scores.nanmean(1)
        order = [i for i in means.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist() if means[i] == means[i]]
        apart = (self.better | self.better.T)[order][:, order]
        return [[self.names[order[i]] for i in group] for group in cover(apart)]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        first, second = torch.triu_indices(len(self.names), len(self.names), 1)
        return first, second

    @cached_property
    def _differences(self) -> Float[Tensor, "pairs images"]:
        first, second = self._places
        return self.scores[first] - self.scores[second]

    @cached_property
    def _p(self) -> tuple[Tensor, Tensor]:
        return told_apart(self._differences, self.seed)


def cover(apart: Bool[Tensor, "items items"]) -> list[list[int]]:
    """Few groups of items that are not apart, in their order, so that each such pair is in one, and each item.

    From the first item whose pairs are not all covered, the group that reaches farthest, and whatever else fits in; what lies
    within another group is left out.
    """
    count = len(apart)
    near = [sum(1 << j for j in range(count) if j != i and not row[j]) for i, row in enumerate(apart.tolist())]
    missing, groups = list(near), []
    for i in range(count):
        while missing[i] or not any(g >> i & 1 for g in groups):
            group, rest = 1 << i, near[i]
            far = missing[i].bit_length() - 1
            if far >= 0:
                group, rest = group | 1 << far, rest & near[far]
            while rest:
                j = (rest & -rest).bit_length() - 1
                group, rest = group | 1 << j, rest & near[j]
            groups.append(group)
            for j in range(count):
                if group >> j & 1:
                    missing[j] &= ~group
    kept = [g for k, g in enumerate(groups) if not any(g & h == g for h in groups[:k] + groups[k + 1 :] if h != g)]
    return sorted([j for j in range(count) if g >> j & 1] for g in dict.fromkeys(kept))


def letters(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """The letters of the groups that each method is in: those that share one are not told apart."""
    found: dict[str, str] = {}
    for k, group in enumerate(groups):
        for name in group:
            found[name] = found.get(name, "") + letter(k)
    return found


def letter(number: int) -> str:
    """a to z, then a2 to z2, and so on."""
    return chr(ord("a") + number % 26) + ("" if number < 26 else str(number // 26 + 1))
