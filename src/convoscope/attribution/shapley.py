"""Each region's share of the target: what is lost without it, and averages of that over what else is shown."""

import heapq
from itertools import permutations
from math import factorial
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from convoscope.attribution.regions import Division, Fill, Game, Grid, Numbers, Superpixels, games, most_regions
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


class FeatureAblation(Method):
    """How much the target falls when one region is hidden (Li et al. 2016, eq. 1, as a difference).

    Each region is painted with its value, in units of the target.
    """

    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Superpixels()
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"

    title, unit = "Feature ablation", "{target} lost when hidden"
    paper = Paper(
        "li2016understanding", "Li, Jiwei and Monroe, Will and Jurafsky, Dan",
        "Understanding Neural Networks through Representation Erasure", "arXiv", 2016, "1612.08220",
    )  # fmt: skip
    about = About(
        "decision", "what the score loses without a segment", "1 forward per segment", "any network, also without gradients",
        "misses what two segments show both; depends on the segments and on what fills them",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([game.painted(self._values(game)) for game in games(probe, x, self.regions, self.fill)])

    def _values(self, game: Game) -> Numbers:
        worth = game.worth(np.concatenate([np.ones((1, game.count)), 1 - np.eye(game.count)]))
        return worth[0] - worth[1:]

    def evaluations(self, x: Images) -> int:
        return 1 + most_regions(self.regions, x)


class ShapleySampling(Method):
    """Shapley values of regions: what each adds when regions appear in a random order, the mean over `permutations`.

    Castro et al. 2009. Every second order is the reverse of the one before, which takes noise away; if at least as many are
    asked for as there are, each is taken once and the values are exact. For any number of them the values sum to
    target(x) - target(baseline). A region's value is divided among its positions.
    """

    permutations: Annotated[int, "orders in which regions appear", AtLeast(1)] = 10
    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Superpixels()
    baseline: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"

    title = "Shapley sampling"
    complete = stochastic = True
    paper = Paper(
        "castro2009polynomial", "Castro, Javier and Gomez, Daniel and Tejada, Juan",
        "Polynomial calculation of the Shapley value based on sampling", "Computers & Operations Research 36", 2009,
    )  # fmt: skip
    about = About(
        "decision", "each segment's fair share of the change from the baseline", "permutations x segments forwards",
        "any network, also without gradients", "slow; depends on the segments and on the baseline",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([game.spread(self._values(game)) for game in games(probe, x, self.regions, self.baseline)])

    def _values(self, game: Game) -> Numbers:
        orders = self._orders(game)
        rank = np.argsort(orders, 1)
        shown = (rank[:, None] < np.arange(game.count + 1)[:, None]).astype(float)  # (orders, how many appeared, regions)
        worth = game.worth(shown.reshape(-1, game.count)).reshape(shown.shape[:2])
        game.probe.note("target of baseline", torch.tensor(worth[0, 0], device="cpu"))
        return np.take_along_axis(np.diff(worth, axis=1), rank, 1).mean(0)

    def _orders(self, game: Game) -> NDArray[np.int64]:
        if game.count <= 12 and self.permutations >= factorial(game.count):
            return np.array(list(permutations(range(game.count))))
        forth = np.argsort(game.draws(range((self.permutations + 1) // 2), game.count), 1, kind="stable")
        return np.stack([forth, forth[:, ::-1]], 1).reshape(-1, game.count)[: self.permutations]

    def evaluations(self, x: Images) -> int:
        return 2 + self.permutations * (most_regions(self.regions, x) - 1)


_TOGETHER = 16  # boxes divided at a time; the order of divisions must not depend on the batch size


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of an image, the last ones excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def halves(self) -> tuple["Box", "Box"]:
        """Two halves along the longer side; rows where both are equal."""
        if self.bottom - self.top >= self.right - self.left:
            middle = self.top + (self.bottom - self.top) // 2
            return self._replace(bottom=middle), self._replace(top=middle)
        middle = self.left + (self.right - self.left) // 2
        return self._replace(right=middle), self._replace(left=middle)

    @property
    def places(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


class _Part(NamedTuple):
    """A box that appears next to the boxes of `beside` and takes the target from `before` to `after`."""

    box: Box
    beside: tuple[Box, ...]
    before: float
    after: float
    weight: float

    @property
    def value(self) -> float:
        return (self.after - self.before) * self.weight

    def split(self, first: float, second: float) -> list["_Part"]:
        """Its halves, each alone and each after the other; `first`, `second`: the target with that half only."""
        a, b = self.box.halves()
        weight = self.weight / 2
        return [
            _Part(a, self.beside, self.before, first, weight), _Part(b, self.beside, self.before, second, weight),
            _Part(a, (*self.beside, b), second, self.after, weight), _Part(b, (*self.beside, a), first, self.after, weight),
        ]  # fmt: skip


class PartitionSHAP(Method):
    """Owen values of pixels: a box's value is shared between its halves by Shapley's rule, and so on down to pixels.

    Owen 1977, on boxes halved along their longer side (never across channels), as in shap's Partition explainer. Boxes of the
    greatest value are divided first; when `samples` pictures are used up, the value of a box is divided evenly among its
    pixels. Sums to target(x) - target(baseline) for any number of them, and draws no random numbers.
    """

    samples: Annotated[int, "pictures with parts hidden", AtLeast(2)] = 500
    baseline: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"

    title = "PartitionSHAP"
    complete = True
    paper = Paper(
        "owen1977values", "Owen, Guillermo", "Values of Games with a Priori Unions",
        "Mathematical Economics and Game Theory, Lecture Notes in Economics and Mathematical Systems 141", 1977,
    )  # fmt: skip
    about = About(
        "decision", "each part's share of the change from the baseline, fine where it matters", "samples forwards",
        "any network, also without gradients", "shares follow boxes, not things; depends on the baseline",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([self._map(game) for game in games(probe, x, Grid(1), self.baseline)])

    def _map(self, game: Game) -> Maps:
        nothing, everything = game.ends()
        game.probe.note("target of baseline", torch.tensor(nothing, device="cpu"))
        height, width = game.labels.shape
        values, left = np.zeros((height, width)), self.samples
        waiting: list[tuple[float, int, _Part]] = []
        new, number = [_Part(Box(0, height, 0, width), (), nothing, everything, 1.0)], 0
        while new:
            for part in new:
                if part.box.area == 1:
                    values[part.box.places] += part.value
                else:
                    # Rounded, so that the order of what is equal but for rounding is that of its making.
                    heapq.heappush(waiting, (-float(f"{abs(part.value):.5g}"), number, part))
                    number += 1
            chosen = [heapq.heappop(waiting)[2] for _ in range(min(_TOGETHER, left // 2, len(waiting)))]
            left -= 2 * len(chosen)
            new = self._divided(game, chosen)
        for _, _, part in waiting:
            values[part.box.places] += part.value / part.box.area
        return torch.as_tensor(values, device="cpu").to(game.x)[None, None]

    def _divided(self, game: Game, parts: list[_Part]) -> list[_Part]:
        shown = np.zeros((2 * len(parts), *game.labels.shape), dtype=bool)
        for k, part in enumerate(parts):
            for half, box in enumerate(part.box.halves()):
                for b in (*part.beside, box):
                    shown[2 * k + half][b.places] = True
        scores = game.scores(len(shown), lambda block: torch.as_tensor(shown[block.start : block.stop], device="cpu"))
        return [child for k, part in enumerate(parts) for child in part.split(*scores[2 * k : 2 * k + 2].tolist())]

    def evaluations(self, x: Images) -> int:
        return self.samples + 2
