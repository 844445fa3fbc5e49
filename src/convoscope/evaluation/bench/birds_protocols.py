"""The protocols of FunnyBirds (Hesse et al. 2023, "FunnyBirds: a synthetic vision dataset for a part-based analysis of
explainable AI methods", ICCV, 2308.06248), for any pictures whose parts can be taken away.

Each is a function of one picture, of which all is known, and of what a map says of its things: how important each is, or
which ones it marks as important.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convoscope.evaluation.base import spearman
from convoscope.evaluation.bench.birds_truth import Bird, Contrast, bits, profile

THRESHOLDS = torch.linspace(0.01, 0.5, 80, dtype=torch.float64)  # shares of a map's total, those of the published evaluation
ROUNDING = 1e-5  # of float32, on the way to a map

Marked = Bool[Tensor, "*some things"]


# ---------------------------------------------------------------- what a map says
def importances(maps: Float[Tensor, "*some height width"], bird: Bird) -> Float[Tensor, "*some things"]:
    """The sum of a map over the pixels of each thing."""
    return maps.double().flatten(-2) @ bird.masks.flatten(1).double().T


def marked(values: Float[Tensor, "height width"], bird: Bird, plain: bool = False) -> Bool[Tensor, "thresholds things"]:
    """The things that hold more of the map's total than each threshold.

    The total is the sum over all things, and over the rest of the picture, of what is positive there in all: the plain sum of
    the map where it is positive, and positive also where it is not. `plain` takes the plain sum, as the published evaluation
    does; of a map that sums to less than nothing everything above that counts as important.
    """
    found, rest = importances(values, bird), values.double()[~bird.masks.any(0)].sum()
    total = values.double().sum() if plain else torch.cat([found, rest[None]]).clamp(min=0).sum()
    return found > total * THRESHOLDS[:, None]


# ---------------------------------------------------------------- completeness
def controlled_synthetic_data_check(bird: Bird, found: Marked) -> Float[Tensor, "*some"]:
    """CSDC: the share of a smallest sufficient set of parts that is marked, of the set where it is greatest.

    NaN where no such set is known, or the network does not know the class.
    """
    if not len(bird.sufficient) or bird.predicted != bird.label:
        return torch.full(found.shape[:-1], torch.nan, dtype=torch.float64)
    inside = (found[..., None, : bird.parts] & bird.sufficient).sum(-1)
    return (inside.double() / bird.sufficient.sum(-1)).amax(-1)


def preservation_check(bird: Bird, found: Marked) -> Float[Tensor, "*some"]:
    """PC: whether the network says the same where the parts that are not marked are taken away."""
    return bird.stays[_set(bird, found)].double()


def deletion_check(bird: Bird, found: Marked) -> Float[Tensor, "*some"]:
    """DC: whether the network says something else where the marked parts are taken away."""
    return (~bird.stays[len(bird.kept) - 1 - _set(bird, found)]).double()


def distractibility(bird: Bird, found: Marked) -> Float[Tensor, "*some"]:
    """D: the share of the irrelevant things, surroundings among them, that are not marked. NaN where all are relevant."""
    return 1 - (found & bird.irrelevant).sum(-1).double() / bird.irrelevant.sum()


COMPLETENESS = {
    "CSDC": controlled_synthetic_data_check, "PC": preservation_check, "DC": deletion_check, "D": distractibility,
}  # fmt: skip


def checks(bird: Bird, found: Marked) -> Float[Tensor, " protocols *some"]:
    """CSDC, PC, DC and D."""
    return torch.stack([protocol(bird, found) for protocol in COMPLETENESS.values()])


def complete(values: Float[Tensor, " protocols *some"]) -> Float[Tensor, "*some"]:
    """Completeness: the mean of D and of the mean of CSDC, PC and DC, of those that are defined."""
    return torch.stack([values[:3].nanmean(0), values[3]]).nanmean(0)


def _set(bird: Bird, found: Marked) -> Int[Tensor, "*some"]:
    return bits(found[..., : bird.parts])


# ---------------------------------------------------------------- correctness
def single_deletion(bird: Bird, found: Float[Tensor, " things"]) -> Float[Tensor, ""]:
    """SD: how the importances of the parts rank with what taking each away costs the class, 0..1; 1/2 for equal ones.

    Spearman's correlation, halved, plus 1/2. NaN where all cost the same. The class is the predicted one.
    """
    cost = bird.effects[: bird.parts, bird.predicted]
    if len(cost) < 2 or bool((cost == cost[0]).all()):
        return torch.tensor(torch.nan, dtype=torch.float64)
    return spearman(found[: bird.parts], cost).nan_to_num(0.0) / 2 + 0.5


def balanced_deletion(bird: Bird, found: Float[Tensor, " things"]) -> Float[Tensor, ""]:
    """SD without what size explains: of pairs of parts, how often the one that costs more is the more important one, 0..1.

    The mean of two shares: of the pairs of which the larger part costs more, and of those of which the smaller one does. Maps
    that rank parts by their size alone, up or down, get 1/2; so do equal importances. Pairs weigh as much as their costs
    differ. NaN where pairs of one kind are missing. The class is the predicted one.
    """
    cost = bird.effects[: bird.parts, bird.predicted]
    size = bird.masks[: bird.parts].flatten(1).sum(1)
    i, j = torch.triu_indices(len(cost), len(cost), 1)
    clear, larger, said = cost[i] - cost[j], (size[i] - size[j]).sign(), found[i] - found[j]
    same = said.abs() <= ROUNDING * torch.maximum(found[i].abs(), found[j].abs())
    right = torch.where(same, 0.5, (said * clear > 0).double())
    kinds = (clear.sign() == larger, clear.sign() == -larger)
    return torch.stack([_weighted(right, clear.abs() * (kind & (larger != 0))) for kind in kinds]).mean()


def _weighted(values: Float[Tensor, " pairs"], weights: Float[Tensor, " pairs"]) -> Float[Tensor, ""]:
    return (values * weights).sum() / weights.sum()


# ---------------------------------------------------------------- contrastivity
def target_sensitivity(
    contrast: Contrast, first: Float[Tensor, " things"], second: Float[Tensor, " things"], ties: float = 0.5
) -> Float[Tensor, ""]:
    """TS: of two comparisons the share that comes out right: parts that speak for a class are more important for it.

    `first` and `second` are the importances for the two classes. A map that is the same for both, up to rounding, gets `ties`.
    """
    found = []
    for parts, own, other in ((contrast.parts[0], first, second), (contrast.parts[1], second, first)):
        found.append(_more(own[: len(parts)][parts].sum(), other[: len(parts)][parts].sum(), ties))
    return torch.stack(found).mean()


def told_apart(bird: Bird, other: int, first: Float[Tensor, " things"], second: Float[Tensor, " things"]) -> Float[Tensor, ""]:
    """TS over all parts, for the picture's class and another: for which of them each part counts more, relative to the others.

    Parts weigh as much as what taking them away tells them apart. A map that is the same for both classes gets 1/2.
    """
    cost = profile(bird.effects[: bird.parts, [bird.label, other]].T)
    said = profile(torch.stack([first, second])[:, : bird.parts])
    clear, more = cost[0] - cost[1], said[0] - said[1]
    return _weighted(torch.where(more.abs() <= ROUNDING, 0.5, (more * clear > 0).double()), clear.abs())


def _more(a: Tensor, b: Tensor, ties: float) -> Tensor:
    same = (a - b).abs() <= ROUNDING * (a.abs() + b.abs())
    return torch.where(same, ties, (a > b).double())


# ---------------------------------------------------------------- the network alone
def background_independence(bird: Bird) -> Float[Tensor, " surroundings"]:
    """BI: for each of the surroundings, whether the network does without."""
    return bird.irrelevant[bird.parts :].double()


# ---------------------------------------------------------------- one threshold for many pictures
def crossed(values: Float[Tensor, "pictures thresholds"]) -> Int[Tensor, " pictures"]:
    """Which threshold each picture takes: the one that is best for the pictures of the other half.

    Halves are the even and the odd rows. Of equally good ones the middle. With one picture alone, the first threshold.
    """
    found = torch.zeros(len(values), dtype=torch.long)
    for half in (0, 1):
        if len(values[1 - half :: 2]):
            found[half::2] = middle(values[1 - half :: 2].nanmean(0))
    return found


def middle(scores: Float[Tensor, " thresholds"]) -> int:
    """The middle one of the best."""
    scores = scores.nan_to_num(-torch.inf)
    best = (scores >= scores.max() - 1e-12).nonzero()[:, 0]
    return int(best[(len(best) - 1) // 2])
