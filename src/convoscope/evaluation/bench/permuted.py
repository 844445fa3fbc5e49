"""Do maps differ between a network that learned and its twin that memorized as much as the networks do?"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.spec import AtLeast, Paper
from convoscope.data.scenes import Factors, render
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.parts_game import drawn, players_of, shapley, showing
from convoscope.evaluation.bench.shortcut_effects import logits
from convoscope.evaluation.bench.shortcut_networks import DRAWN, SIDE, SPECIES, TRAINING, TWINS, scenes, shipped
from convoscope.network import Images, Network
from convoscope.targets import Logit, Target

PLAYERS = (4, 6)  # at least, at most
VISIBLE = 4  # pixels; what shows less always plays


@dataclass(frozen=True)
class Table:
    """A picture, its players' pixels, disjoint, and the picture of each of the 2^players coalitions."""

    masks: Bool[Tensor, "players size size"]
    pictures: Float[Tensor, "coalitions 3 size size"]


@dataclass(frozen=True)
class Twins:
    """The network that learned the labels and the one that memorized dealt ones, with what both were trained on.

    `targets` ask each network about the label that it was taught for the picture; `worth` holds the exact Shapley value of each
    player for each network.
    """

    networks: tuple[Network, ...]
    x: Images
    masks: tuple[Bool[Tensor, "players size size"], ...]
    targets: tuple[Target, ...]
    worth: tuple[tuple[Float[Tensor, " players"], ...], ...]


def table(factors: Factors) -> Table | None:
    """Every coalition of the parts and distractors that show, drawn; None where there are too few or too many."""
    sample, things = render(factors, DRAWN), players_of(factors)
    shown = torch.stack([torch.from_numpy(sample.where(**labels)) for labels in things.values()]).float()
    masks = F.avg_pool2d(shown, DRAWN // SIDE) >= 0.5
    masks &= masks.cumsum(0) == 1  # of two that have half of a pixel each, the first
    seen = masks.flatten(1).sum(1) >= VISIBLE
    names = tuple(name for name, visible in zip(things, seen.tolist(), strict=True) if visible)
    if not PLAYERS[0] <= len(names) <= PLAYERS[1]:
        return None
    pictures = drawn([showing(factors, names, s) for s in range(2 ** len(names))], DRAWN)
    return Table(masks[seen], F.avg_pool2d(pictures, DRAWN // SIDE))


@lru_cache(maxsize=4)
def twins(pictures: int) -> Twins:
    """The twins and the first pictures of their training that have four to six players and were dealt a wrong label."""
    networks, count = shipped("permuted"), TWINS[0].count
    rows = list(islice(scenes(TRAINING), count))
    species = torch.tensor([SPECIES.index(f.species) for f in rows])
    taught = [recipe.labels(species) for recipe in TWINS]
    found: list[tuple[int, Table]] = []
    for k in (taught[0] != taught[1]).nonzero()[:, 0].tolist():
        made = table(rows[k])
        found += [] if made is None else [(k, made)]
        if len(found) == pictures:
            break
    chosen = [k for k, _ in found]
    worth = tuple(
        tuple(shapley(logits(network, t.pictures)[:, int(labels[k])]) for k, t in found)
        for network, labels in zip(networks, taught, strict=True)
    )
    x = networks[0].normalize(torch.stack([t.pictures[-1] for _, t in found]))
    targets = tuple(Logit(tuple(labels[chosen].tolist())) for labels in taught)
    return Twins(networks, x, tuple(t.masks for _, t in found), targets, worth)


class Permuted(Task):
    """Do maps tell a network that learned from its twin that memorized, as far as the networks go by different things?

    The twins have the same form, the same start and the same training pictures; one was taught what they show, the other labels
    dealt to them at random, which it knows by heart. Both are asked about pictures they were trained on, each why it says what
    it was taught. The truth is exact: every coalition of the parts and distractors is drawn and shown to both, which gives the
    Shapley value of each player for each twin. A map is read as its sum over each player's pixels. Of the values of either
    twin only the direction counts (they are divided by their length), and of the directions only how that of the one twin
    differs from that of the other. With d this difference for the map and e the exact one, the score is
    2 d.e / (d.d + e.e): 1 where d is e, 0 where the map is the same for both twins, like that of an edge detector.
    """

    title = "The twin with permuted labels"
    exact = "every subset of the parts is drawn and shown to both twins: exact Shapley values of what each has learned"
    measures = "agreement of how maps differ between the twins with how their Shapley values differ"
    paper = Paper(
        "adebayo2018sanity", "Adebayo, Julius and Gilmer, Justin and Muelly, Michael and Goodfellow, Ian and Hardt, Moritz and "
        "Kim, Been", "Sanity Checks for Saliency Maps", "Advances in Neural Information Processing Systems 31", 2018,
        "1810.03292",
    )  # fmt: skip

    pictures: Annotated[int, "how many of the training pictures", AtLeast(2)] = 48

    def quick(self) -> Task:
        return replace(self, pictures=min(self.pictures, 12))

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth = twins(self.pictures)
        places = tuple(range(len(truth.x)))
        maps = [mapper(network, truth.x, target, places) for network, target in zip(truth.networks, truth.targets, strict=True)]
        scores = []
        for i, masks in enumerate(truth.masks):
            shown = [(m[i].double() * masks).flatten(1).sum(1) for m in maps]
            scores.append(concordance(contrast(*shown), contrast(*(worth[i] for worth in truth.worth))))
        return torch.stack(scores)

    def oracle(self) -> Mapper:
        truth = twins(self.pictures)

        def answer(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
            known = truth.worth[next(k for k, n in enumerate(truth.networks) if n is network)]
            return torch.stack([spread(known[i], truth.masks[i]) for i in places])

        return answer


def spread(worth: Float[Tensor, " players"], masks: Bool[Tensor, "players size size"]) -> Float[Tensor, "size size"]:
    """The map that puts each player's value evenly on its pixels."""
    return ((worth / masks.flatten(1).sum(1))[:, None, None] * masks).sum(0)


def contrast(learned: Float[Tensor, " players"], memorized: Float[Tensor, " players"]) -> Float[Tensor, " players"]:
    """By how much the direction of the second differs from that of the first; what is 0 has none and stays 0."""
    return F.normalize(memorized, dim=0) - F.normalize(learned, dim=0)


def concordance(d: Float[Tensor, " players"], e: Float[Tensor, " players"]) -> Float[Tensor, ""]:
    """`2 d.e / (d.d + e.e)`, between -1 and 1, and 1 only where they are equal; NaN where both are 0 (Lin 1989, about zero)."""
    return 2 * (d @ e) / (d @ d + e @ e)
