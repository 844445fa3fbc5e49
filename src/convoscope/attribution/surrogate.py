"""A linear model of the target over regions that are shown or hidden: LIME, and KernelSHAP whose weights make it Shapley's."""

from dataclasses import replace
from itertools import combinations
from math import comb
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from convoscope.attribution.regions import Division, Fill, Game, Numbers, Superpixels, games, labels_of
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


def weighted_ridge(shown: Numbers, y: Numbers, weights: Numbers, alpha: float) -> tuple[Numbers, float]:
    """Coefficients and intercept that minimize `sum w (y - shown @ c - b)^2 + alpha |c|^2`."""
    share = weights / weights.sum()
    center, mean = share @ shown, share @ y
    z = shown - center
    coefficients = np.linalg.solve((z.T * weights) @ z + alpha * np.eye(z.shape[1]), (z.T * weights) @ (y - mean))
    return coefficients, float(mean - center @ coefficients)


class LIME(Method):
    """The coefficients of a linear model of the target over regions, fitted around the image (Ribeiro et al. 2016, eq. 2).

    Regions are hidden by independent coins in `samples` pictures; the image itself is one more. A picture in which a fraction
    `s` of the regions is shown weighs `exp(-(1 - sqrt(s))^2 / (2 width^2))`: the cosine distance and the kernel of the
    authors' code. The fit is weighted ridge regression, solved exactly in double precision. Each region is painted with its
    coefficient, in units of the target; the weighted R^2 of the model is reported.
    """

    samples: Annotated[int, "pictures with regions hidden", AtLeast(1)] = 500
    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Superpixels()
    fill: Annotated[Fill | Literal["segment"], "what hides: segment is the mean color of the region, or as for Occlusion"] = (
        "segment"
    )
    width: Annotated[float, "width of the kernel, in cosine distance", AtLeast(1e-3)] = 0.25
    alpha: Annotated[float, "penalty of the squared coefficients", AtLeast(0)] = 1.0

    title, unit = "LIME", "{target} gained when shown"
    stochastic = True
    paper = Paper(
        "ribeiro2016why", "Ribeiro, Marco Tulio and Singh, Sameer and Guestrin, Carlos",
        '"Why Should I Trust You?": Explaining the Predictions of Any Classifier', "KDD", 2016, "1602.04938",
    )  # fmt: skip
    about = About(
        "decision", "which segments of the image speak for the class", "samples forwards",
        "any network, also without gradients", "depends on the segments, the fill and the width of the kernel; look at its R^2",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        own = isinstance(self.fill, str) and self.fill == "segment"
        found = list(games(probe, x, self.regions, 0.0 if own else self.fill))
        if own:
            means = probe.once(x, ("means", self.regions), lambda: self._means(probe, x), target=False)
            found = [replace(game, fill=means[i : i + 1]) for i, game in enumerate(found)]
        return torch.cat([self._map(game) for game in found])

    def _map(self, game: Game) -> Maps:
        shown = np.concatenate([np.ones((1, game.count)), game.draws(range(self.samples), game.count) < 0.5])
        y = game.worth(shown)
        distance = 1 - np.sqrt(shown.mean(1))
        weights = np.exp(-(distance**2) / (2 * self.width**2))
        coefficients, intercept = weighted_ridge(shown, y, weights, self.alpha)
        rest = weights @ (y - shown @ coefficients - intercept) ** 2
        whole = weights @ (y - weights @ y / weights.sum()) ** 2
        game.probe.note("weighted R^2", torch.tensor(1 - rest / max(whole, np.finfo(float).tiny), device="cpu"))
        return game.painted(coefficients)

    def _means(self, probe: Probe, x: Images) -> Tensor:
        labels = labels_of(probe, x, self.regions)
        index = labels[:, None].expand_as(x).flatten(2)
        regions = x.new_zeros(*x.shape[:2], int(labels.max()) + 1)
        return regions.scatter_reduce(2, index, x.flatten(2), "mean", include_self=False).gather(2, index).view_as(x)

    def evaluations(self, x: Images) -> int:
        return self.samples + 1


def shapley_kernel(players: int, size: Numbers) -> Numbers:
    """The weight of one coalition of each size, 0 < size < players (Lundberg and Lee 2017, theorem 2)."""
    return np.array([(players - 1) / (comb(players, int(s)) * s * (players - s)) for s in size])


def shapley_regression(shown: Numbers, y: Numbers, weights: Numbers, nothing: float, everything: float) -> Numbers:
    """Values that sum to `everything - nothing` and minimize `sum w (y - nothing - shown @ values)^2`; of many, the evenest."""
    share, size = (everything - nothing) / shown.shape[1], shown.mean(1, keepdims=True)
    # Rows of sum zero see only what deviates from an equal share, so that the sum is kept exactly.
    root = np.sqrt(weights)[:, None]
    rest = y - nothing - share * shown.sum(1)
    deviation = np.linalg.lstsq(root * (shown - size), root[:, 0] * rest, rcond=1e-10)[0]
    return share + deviation - deviation.mean()


class KernelSHAP(Method):
    """Shapley values of regions by weighted least squares (Lundberg and Lee 2017, theorem 2).

    Coalitions come in pairs with their complements. Sizes small enough for the budget are enumerated, others drawn as the
    Shapley kernel weighs them; with `samples` of at least `2^regions - 2` the values are exact. They always sum to
    target(x) - target(baseline); a region's value is divided among its positions. `sampling="uniform"` hides each region by a
    coin and weighs by the kernel: the pictures of LIME, at more noise.
    """

    samples: Annotated[int, "pictures with regions hidden", AtLeast(2)] = 500
    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Superpixels()
    baseline: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = "mean"
    sampling: Annotated[Literal["paired", "uniform"], "how coalitions are drawn"] = "paired"

    title = "KernelSHAP"
    complete = stochastic = True
    paper = Paper(
        "lundberg2017unified", "Lundberg, Scott M. and Lee, Su-In", "A Unified Approach to Interpreting Model Predictions",
        "NeurIPS", 2017, "1705.07874",
    )  # fmt: skip
    about = About(
        "decision", "each segment's fair share of the change from the baseline", "samples forwards",
        "any network, also without gradients", "depends on the segments and on the baseline; noisy where they are many",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([game.spread(self._values(game)) for game in games(probe, x, self.regions, self.baseline)])

    def _values(self, game: Game) -> Numbers:
        if self.sampling == "uniform":
            shown = (game.draws(range(self.samples), game.count) < 0.5).astype(float)
            shown = shown[(shown.sum(1) > 0) & (shown.sum(1) < game.count)]
            weights = shapley_kernel(game.count, shown.sum(1))
        else:
            shown, weights = self._coalitions(game)
        y = game.worth(np.concatenate([np.zeros((1, game.count)), np.ones((1, game.count)), shown]))
        game.probe.note("target of baseline", torch.tensor(y[0], device="cpu"))
        return shapley_regression(shown, y[2:], weights, y[0], y[1])

    def _coalitions(self, game: Game) -> tuple[Numbers, Numbers]:
        """Coalitions and their weights: whole sizes as long as they are worth it, then pairs drawn from the others."""
        players, left, rows, weights = game.count, self.samples, [], []
        sizes = list(range(1, players // 2 + 1))
        mass = {s: (players - 1) / (s * (players - s)) * (1 if 2 * s == players else 2) for s in sizes}
        while sizes:
            s, many = sizes[0], comb(players, sizes[0]) * (1 if 2 * sizes[0] == players else 2)
            if left * mass[s] / sum(mass[k] for k in sizes) < many * (1 - 1e-9):
                break
            chosen = np.array([_row(players, c) for c in combinations(range(players), s)])
            rows += [chosen] if 2 * s == players else [chosen, 1 - chosen]
            weights.append(np.full(many, mass[s] / many))
            left, sizes = left - many, sizes[1:]
        if sizes and left > 1:
            chosen, times = self._drawn(game, sizes, np.array([mass[s] for s in sizes]), left // 2)
            rows += [chosen, 1 - chosen]
            weights += [times / times.sum() * sum(mass[s] for s in sizes) / 2] * 2
        if not rows:
            return np.zeros((0, players)), np.zeros(0)
        return np.concatenate(rows), np.concatenate(weights)

    def _drawn(self, game: Game, sizes: list[int], mass: Numbers, pairs: int) -> tuple[Numbers, Numbers]:
        """Up to `pairs` different coalitions, and how often each was drawn in up to four times as many draws."""
        found: dict[bytes, list] = {}
        steps = np.cumsum(mass / mass.sum())
        for k in range(4 * pairs):
            draw = game.draws(range(k, k + 1), game.count + 1)[0]
            size = sizes[min(int(np.searchsorted(steps, draw[-1])), len(sizes) - 1)]
            row = _row(game.count, np.argsort(draw[:-1], kind="stable")[:size])
            if 2 * size == game.count and not row[0]:
                row = 1 - row  # of a pair of halves, always the same one
            known = found.setdefault(row.tobytes(), [row, 0])
            known[1] += 1
            if len(found) == pairs:
                break
        return np.stack([row for row, _ in found.values()]), np.array([float(n) for _, n in found.values()])

    def evaluations(self, x: Images) -> int:
        return self.samples + 2


def _row(players: int, members: object) -> Numbers:
    row = np.zeros(players)
    row[list(members)] = 1.0  # type: ignore[call-overload]
    return row
