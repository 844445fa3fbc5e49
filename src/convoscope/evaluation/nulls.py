"""Maps that know nothing of the network: what a metric has to tell an explanation from."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.evaluation.base import Case, Metric, Scores, chunks, seeded
from convoscope.network import Images


def noise(x: Images, places: tuple[int, ...], seed: int, number: int = 0) -> Float[Tensor, "images height width"]:
    """Independent uniform numbers at every pixel, drawn for each image's place in the data set."""
    return torch.stack(
        [torch.rand(x.shape[2:], generator=seeded(seed, "noise", number, place), dtype=torch.float64) for place in places]
    )


def edges(x: Images) -> Float[Tensor, "images height width"]:
    """The length of the luminance's gradient (Sobel), edges repeated: an edge detector."""
    gray = x.double().mean(1, keepdim=True).cpu()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)[None, None] / 8
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    return (F.conv2d(padded, kernel).square() + F.conv2d(padded, kernel.transpose(2, 3)).square()).sqrt()[:, 0]


NULLS = {"random": lambda x, places, seed: noise(x, places, seed), "edges": lambda x, places, seed: edges(x)}


@dataclass(frozen=True)
class Permuted:
    """Scores of maps beside those of the same values at other places `(shuffles, methods, images)`.

    `skill`: how much better the map is than the mean over its shuffles, in the metric's unit, positive is better; `z`: that in
    standard deviations of the shuffles; `p`: how often shuffles are at least as good, the map itself counted (Phipson and Smyth
    2010). All are `(methods, images)`.
    """

    metric: Metric
    score: Scores
    shuffled: Float[Tensor, "shuffles methods images"]

    @property
    def skill(self) -> Scores:
        return (self.score - self.shuffled.mean(0)) * (self.metric.direction or 1)

    @property
    def z(self) -> Scores:
        spread = self.shuffled.std(0) if len(self.shuffled) > 1 else torch.full_like(self.score, torch.nan)
        return torch.where(spread > 1e-9 * self.score.abs(), self.skill / spread, torch.nan)

    @property
    def p(self) -> Scores:
        as_good = (self.shuffled - self.score) * (self.metric.direction or 1) >= -1e-12 * self.score.abs()
        found = (1 + as_good.sum(0)).double() / (1 + len(self.shuffled))
        return torch.where(self.score.isnan(), torch.nan, found)


def permutations(metric: Metric, case: Case, count: int = 200, at_once: int = 16) -> Permuted:
    """What a metric says of each map and of `count` versions of it whose pixels are shuffled, in the same ways for all methods.

    For random subsets, localization and axioms of maps that costs next to no passes, since what the network is asked does not
    depend on the maps; curves of removed pixels run once for each. Raises UsageError for metrics that make maps anew.
    """
    if "methods" in metric.needs:
        raise UsageError(f"{metric.name} makes maps anew; shuffled maps have no method that made them")
    if count < 1:
        raise UsageError(f"count is {count}; expected at least 1")
    score, parts = metric.score(case), []
    shared = {key: value for key, value in case.memo.items() if _of_the_network(key)}
    for some in chunks(count, at_once):
        maps = torch.stack([shuffled(case.maps, case.places, case.seed, k) for k in some]).flatten(0, 1)
        names = tuple(f"{k} {name}" for k in some for name in case.names)
        part = replace(case, maps=maps, names=names, methods=(), values=(), memo=dict(shared), passes=0, progress=case._count)
        parts.append(metric.score(part).unflatten(0, (len(some), len(case.names))))
    return Permuted(metric, score, torch.cat(parts))


def shuffled(maps: Tensor, places: tuple[int, ...], seed: int, number: int) -> Float[Tensor, "methods images height width"]:
    """Maps with the values of each image at other places, in one way for all methods."""
    flat = maps.flatten(2)
    orders = [torch.randperm(flat.shape[2], generator=seeded(seed, "permutation", number, place)) for place in places]
    return torch.stack([flat[:, i, order] for i, order in enumerate(orders)], 1).view_as(maps)


def _of_the_network(key: object) -> bool:
    """Whether what is kept under a key does not depend on the maps."""
    return isinstance(key, tuple) and key[0] in ("clean", "fill", "blank", "falls", "effects", "regions")
