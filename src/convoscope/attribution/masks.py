"""Random masks over the whole image: the mean score under them, and how much of its variance each part explains."""

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from convoscope.attribution.regions import Division, Fill, Game, Grid, Numbers, filled, games, most_regions
from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


def smooth_masks(coins: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Grids `(n, s, s)` enlarged to s + 1 cells of the image's s, bilinearly, and cut out at shifts `(n, 2)` of 0..1 cell.

    Every pixel of every mask is a weighted mean of coins, so it has their mean.
    """
    s, ways = coins.shape[-1], []
    for axis, length in enumerate(size):
        cell = -(-length // s)
        pixels = torch.arange(length, device=coins.device, dtype=coins.dtype)
        start = (shifts[:, axis, None] * (cell + 1)).floor().clamp(max=cell)
        places = ((start + pixels + 0.5) * s / ((s + 1) * cell) - 0.5).clamp(0, s - 1)
        ways.append((1 - (places[..., None] - torch.arange(s, device=coins.device)).abs()).relu())
    return ways[0] @ coins @ ways[1].transpose(1, 2)


class RISE(Method):
    """The mean score of randomly masked images in which a pixel is shown, less the mean over all masks.

    Petsiuk et al. 2018, eq. 6: `sum_i f(x * M_i) M_i / (p N)` over `masks` grids of coins, enlarged bilinearly and shifted at
    random. Subtracted is the same sum for a constant score, which moves every pixel equally and takes most of the noise with
    it; `center=False` gives the sum as printed. With `regions`, the coins are those of regions: the pictures of LIME.
    """

    masks: Annotated[int, "masked pictures", AtLeast(1)] = 1000
    cells: Annotated[int, "coins along each side", AtLeast(1)] = 7
    p: Annotated[float, "probability that a cell is shown, above 0"] = 0.5
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = 0.0
    center: Annotated[bool, "subtract what a constant score would give"] = True
    regions: Annotated[Division | None, "coins for regions instead of smooth cells, or labels (1 or B, H, W)"] = None

    title, unit = "RISE", "{target} gained when shown"
    stochastic = True
    paper = Paper(
        "petsiuk2018rise", "Petsiuk, Vitali and Das, Abir and Saenko, Kate",
        "RISE: Randomized Input Sampling for Explanation of Black-box Models", "BMVC", 2018, "1806.07421",
    )  # fmt: skip
    about = About(
        "decision", "which parts the score needs, whatever else is hidden", "masks forwards",
        "any network, also without gradients", "slow and noisy; blurred by the size of the cells",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        if x.dim() != 4:
            raise UsageError(f"RISE masks (images, channels, rows, columns); got shape {tuple(x.shape)}")
        if not 0 < self.p <= 1:
            raise UsageError(f"rise: p is {self.p}; expected a probability above 0")
        if self.regions is not None:
            return torch.cat([game.painted(self._values(game)) for game in games(probe, x, self.regions, self.fill)])
        fill = filled(probe, x, self.fill)
        total, covered, weighted = x.new_zeros(len(x), 1, 1), x.new_zeros(1), x.new_zeros(1)
        for block in probe.blocks(self.masks):
            masks = self._masks(probe, x, block)
            pictures = torch.lerp(fill[:, None], x[:, None], masks[:, :, None])
            scores = probe.repeat(block).score(pictures.flatten(0, 1)).view(len(x), len(block), 1, 1)
            total, covered, weighted = total + scores.sum(1), covered + masks.sum(1), weighted + (scores * masks).sum(1)
        return self._mean(total, covered, weighted)[:, None]

    def _mean(self, total: Any, covered: Any, weighted: Any) -> Any:
        """The map from sums over masks: of scores, of masks, and of their products."""
        return (weighted - covered * total / self.masks if self.center else weighted) / (self.p * self.masks)

    def _values(self, game: Game) -> Numbers:
        shown = (game.draws(range(self.masks), game.count) < self.p).astype(float)
        scores = game.worth(shown)
        return self._mean(scores.sum(), shown.sum(0), scores @ shown)

    def _masks(self, probe: Probe, x: Images, block: range) -> Tensor:
        """Smooth masks `(images, draws, H, W)`."""
        like = x.new_empty(len(x), self.cells**2 + 2, dtype=torch.float32)
        drawn = torch.stack([probe.uniform(like, draw=k) for k in block], 1).flatten(0, 1)
        coins = (drawn[:, 2:] < self.p).to(x).unflatten(1, (self.cells, self.cells))
        return smooth_masks(coins, drawn[:, :2].to(x), (x.shape[2], x.shape[3])).unflatten(0, (len(x), len(block)))

    def evaluations(self, x: Images) -> int:
        return self.masks


def space_filling(game: Game, rows: int) -> Numbers:
    """Two samples `(2, rows, regions)` uniform in 0..1: a Sobol sequence, shifted by one random vector for each image.

    The first rows are the same however many are asked for, and for every method.
    """
    points = torch.quasirandom.SobolEngine(2 * game.count, scramble=False).draw(rows, dtype=torch.float64).numpy()
    moved = (points + game.draws(range(1), 2 * game.count)[0]) % 1
    return np.stack([moved[:, : game.count], moved[:, game.count :]])


def total_indices(first: Numbers, second: Numbers, exchanged: Numbers) -> Numbers:
    """Total Sobol indices by Jansen's estimator.

    `first`, `second` `(rows,)` are scores of two independent samples, `exchanged` `(rows, inputs)` those of the first with
    one input taken from the second. Zero where scores are constant.
    """
    variance = np.concatenate([first, second]).var()
    if variance <= 1e-20 * max(np.abs(first).max() ** 2, np.finfo(float).tiny):
        return np.zeros(exchanged.shape[1])
    return ((first[:, None] - exchanged) ** 2).mean(0) / (2 * variance)


class Sobol(Method):
    """The share of the score's variance in which a region has a part, alone or with others: its total Sobol index.

    Fel et al. 2021, section 3: regions fade into `fill` by random amounts, uniform in 0..1; Jansen's estimator on two samples
    of a Sobol sequence. Indices are at least 0 and sum to at least 1; they say how much a region matters, not in which
    direction.
    """

    samples: Annotated[int, "rows of each of the two samples; a power of 2 fills space best", AtLeast(1)] = 32
    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Grid(8)
    fill: Annotated[Fill, "what regions fade into: a name, a number or a tensor in input space"] = 0.0

    title, unit = "Sobol", "share of the variance of the {target}"
    stochastic, signed = True, False
    paper = Paper(
        "fel2021look", "Fel, Thomas and Cadene, Remi and Chalvidal, Mathieu and Cord, Matthieu and Vigouroux, David and "
        "Serre, Thomas", "Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity Analysis",
        "NeurIPS", 2021, "2111.04138",
    )  # fmt: skip
    about = About(
        "decision", "which parts matter, with all their interactions", "samples x (regions + 2) forwards",
        "any network, also without gradients", "has no sign; as coarse as the regions",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([game.painted(self._values(game)) for game in games(probe, x, self.regions, self.fill)])

    def _values(self, game: Game) -> Numbers:
        first, second = space_filling(game, self.samples)
        exchanged = np.repeat(first[:, None], game.count, 1)
        each = np.arange(game.count)
        exchanged[:, each, each] = second
        scores = game.worth(np.concatenate([first, second, exchanged.reshape(-1, game.count)]))
        n = self.samples
        return total_indices(scores[:n], scores[n : 2 * n], scores[2 * n :].reshape(n, game.count))

    def evaluations(self, x: Images) -> int:
        return self.samples * (most_regions(self.regions, x) + 2)


def dependence(inputs: Numbers, scores: Numbers, binary: bool) -> Numbers:
    """The Hilbert-Schmidt independence criterion `tr(K H L H) / (n - 1)^2` between each column of `inputs` and the scores.

    `L` is Gaussian of the scores, its width their median distance; `K` says whether two inputs are equal where they are
    `binary`, and is Gaussian with the width of their median distance else.
    """
    n = len(scores)
    if n < 2:
        return np.zeros(inputs.shape[1])
    kernel = _gaussian(scores)
    centered = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    if binary:  # K = (1 + s s^T) / 2 with s = +-1, and centering takes the constant
        signs = 2 * inputs - 1
        found = np.einsum("ai,ab,bi->i", signs, centered, signs, optimize=True) / 2
    else:
        found = np.array([(_gaussian(column) * centered).sum() for column in inputs.T])
    return np.maximum(found, 0) / (n - 1) ** 2  # a rounding below zero


def _gaussian(values: Numbers) -> Numbers:
    distance = np.abs(values[:, None] - values)
    apart = distance[distance > 1e-12 * max(np.abs(values).max(), np.finfo(float).tiny)]
    return np.exp(-((distance / np.median(apart)) ** 2) / 2) if apart.size else np.ones_like(distance)


class HSIC(Method):
    """How strongly the score depends on whether a region is shown: their Hilbert-Schmidt independence criterion.

    Novello et al. 2022, section 3: kernels see any dependence, also one that leaves the mean alone, with fewer pictures than
    Sobol indices need. At least 0; of order 1/samples where there is none. Regions that fade (`binary=False`) make the
    pictures of `Sobol`.
    """

    samples: Annotated[int, "masked pictures", AtLeast(2)] = 500
    regions: Annotated[Division, "how images are divided, or labels (1 or B, H, W)"] = Grid(8)
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = 0.0
    binary: Annotated[bool, "regions are shown or hidden; else they fade by any amount"] = True

    title, unit = "HSIC", "dependence of the {target}"
    stochastic, signed = True, False
    paper = Paper(
        "novello2022making", "Novello, Paul and Fel, Thomas and Vigouroux, David",
        "Making Sense of Dependence: Efficient Black-box Explanations Using Dependence Measure", "NeurIPS", 2022, "2206.06219",
    )  # fmt: skip
    about = About(
        "decision", "which parts the score depends on, in any way", "samples forwards", "any network, also without gradients",
        "has no sign and no unit of its own; as coarse as the regions",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        return torch.cat([game.painted(self._values(game)) for game in games(probe, x, self.regions, self.fill)])

    def _values(self, game: Game) -> Numbers:
        shown = np.concatenate(list(space_filling(game, -(-self.samples // 2))))[: self.samples]
        shown = (shown < 0.5).astype(float) if self.binary else shown
        return dependence(shown, game.worth(shown), self.binary)

    def evaluations(self, x: Images) -> int:
        return self.samples
