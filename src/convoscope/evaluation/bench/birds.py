"""FunnyBirds' three dimensions on the scenes: is an explanation complete, correct, contrastive? (Hesse et al. 2023)"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.birds_protocols import (
    balanced_deletion,
    checks,
    complete,
    crossed,
    importances,
    marked,
    single_deletion,
    told_apart,
)
from convoscope.evaluation.bench.birds_truth import Bird, most_unlike, of_game, sets
from convoscope.evaluation.bench.parts import SEED, Parts, Played, played
from convoscope.targets import Logit

PAPER = Paper(
    "hesse2023funnybirds", "Hesse, Robin and Schaub-Meyer, Simone and Roth, Stefan",
    "FunnyBirds: A synthetic vision dataset for a part-based analysis of explainable AI methods", "ICCV", 2023, "2308.06248",
)  # fmt: skip
FEW = 5  # pictures in quick: all else is asked of the maps that the task `parts` has made, another class is not
EXACT = "every part is taken away by drawing the scene without it"


@dataclass(frozen=True)
class Flock:
    """The pictures of `parts`, each with what is known of it; its best set of parts; the class for which other parts count."""

    played: Played
    birds: tuple[Bird, ...]
    best: tuple[tuple[int, float], ...]
    others: tuple[int, ...]


@lru_cache(maxsize=4)
def flock(network: str, pictures: int, seed: int) -> Flock:
    """The same pictures and the same drawings as the task `parts`, made once per process."""
    truth = played(network, pictures, seed)
    birds = tuple(of_game(g) for g in truth.games)
    return Flock(truth, birds, tuple(best_set(b) for b in birds), tuple(most_unlike(b) for b in birds))


def best_set(bird: Bird) -> tuple[int, float]:
    """The set of parts that is the most complete explanation, by its number, and how complete it is; the smallest of equals."""
    every = sets(bird.parts)
    around = torch.zeros(len(every), len(bird.names) - bird.parts, dtype=torch.bool)
    scores = complete(checks(bird, torch.cat([every, around], 1)))
    good = (scores >= scores.max() - 1e-12).nonzero()[:, 0].tolist()
    number = min(good, key=lambda s: s.bit_count())
    return number, float(scores[number])


class _Birds(Task, abstract=True):
    """Base of the three: pictures that the network takes for what they are, and the exact answers."""

    exact, range, paper = EXACT, (0.0, 1.0), PAPER

    pictures: Annotated[int, "how many pictures", AtLeast(2)] = 48
    seed: Annotated[int, "of the scenes"] = SEED
    network: Annotated[str, "a network that ships with the package"] = "scenes"

    def quick(self) -> Task:
        return replace(self, pictures=min(self.pictures, Parts().quick().pictures))  # type: ignore[attr-defined]

    @property
    def flock(self) -> Flock:
        """What is known of the pictures."""
        return flock(self.network, self.pictures, self.seed)

    def maps(self, mapper: Mapper) -> Float[Tensor, "pictures height width"]:
        """The map of each picture for its class."""
        truth = self.flock.played
        return mapper(truth.network, truth.x, truth.target, tuple(range(len(truth.x))))

    def known(self, values: Float[Tensor, " pictures *some"]) -> Float[Tensor, " pictures *some"]:
        """The values of the pictures that the network gets right, NaN for the others."""
        values[torch.tensor([b.predicted != b.label for b in self.flock.birds])] = torch.nan
        return values


class BirdsCompleteness(_Birds):
    """Are all parts that count marked, and nothing else? The completeness of FunnyBirds, as a share of the best there is.

    A part is marked where it holds more of the map's total than a threshold. Mean of two: does the network still know the
    picture with the marked parts alone (PC), not without them (DC), and do they contain a smallest sufficient set (CSDC); and
    how many of the things that do not matter, distractors among them, stay unmarked (D). A set of parts that is perfect in all
    need not exist, so the mean is divided by that of the best of all sets. One threshold for half of the pictures is chosen on
    the other half, never on themselves. Pictures that the network gets wrong have no score.
    """

    title = "FunnyBirds: completeness"
    measures = "how complete the set of marked parts is, as a share of the best set's"

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        birds, maps = self.flock.birds, self.maps(mapper)
        rows = torch.stack([
            complete(checks(bird, marked(m, bird))) / best
            for m, bird, (_, best) in zip(maps, birds, self.flock.best, strict=True)
        ])  # fmt: skip
        rows = self.known(rows)
        return rows.gather(1, crossed(rows)[:, None])[:, 0]

    def oracle(self) -> Mapper:
        birds, best = self.flock.birds, self.flock.best

        def painted(i: int) -> Tensor:
            bird = birds[i]
            return paint(sets(bird.parts)[best[i][0]].double(), bird)

        return lambda network, x, target, places: torch.stack([painted(i) for i in places])


class BirdsCorrectness(_Birds):
    """Are parts as important as what taking each away costs? The single deletion of FunnyBirds, without what size explains.

    Of pairs of parts, how often is the one that costs more the more important one? The mean of two shares: of the pairs of
    which the larger part costs more, and of those of which the smaller one does; pairs weigh as much as their costs differ. A
    part's importance is the map's sum over its pixels, so maps that know sizes alone are right about the first kind and wrong
    about the second: 1/2. Pictures with pairs of one kind only, or that the network gets wrong, have no score. `published`
    takes the protocol as it is published, Spearman's correlation over the parts, halved, plus 1/2: large parts cost more and
    hold more of any map, so random maps get nearly 0.9 there.
    """

    title = "FunnyBirds: correctness"
    measures = "share of pairs of parts that are ordered as what taking each away costs, whether the larger costs more or less"

    published: Annotated[bool, "the correlation of ranks of the paper, which size explains, instead of balanced pairs"] = False

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        protocol = single_deletion if self.published else balanced_deletion
        pairs = zip(self.maps(mapper), self.flock.birds, strict=True)
        return self.known(torch.stack([protocol(b, importances(m, b)) for m, b in pairs]))

    def oracle(self) -> Mapper:
        birds = self.flock.birds
        return lambda network, x, target, places: torch.stack(
            [paint(birds[i].effects[: birds[i].parts, birds[i].label], birds[i]) for i in places]
        )


class BirdsContrastivity(_Birds):
    """Is a part more important for the class it speaks for? The target sensitivity protocol of FunnyBirds, with two maps.

    One for the picture's class and one for the class for which other parts count most of all. Each part, relative to the other
    parts, should be more important for the class for which taking it away costs more; parts weigh as much as that tells the
    classes apart. A map that is the same for both gets 1/2.
    """

    title = "FunnyBirds: contrastivity"
    measures = "share of the parts, by how clear they are, that are more important for the class they speak for"

    compared: Annotated[int, "for how many of them, the first ones, a second map is asked for", AtLeast(1)] = 24

    def quick(self) -> Task:
        return replace(super().quick(), compared=min(self.compared, FEW))

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth, count = self.flock.played, min(self.compared, self.pictures)
        birds, others = self.flock.birds[:count], self.flock.others[:count]
        places = tuple(range(count)) * 2
        maps = mapper(truth.network, truth.x[list(places)], Logit((*(b.label for b in birds), *others)), places)
        found = torch.full((self.pictures,), torch.nan, dtype=torch.float64)
        for i, (bird, other) in enumerate(zip(birds, others, strict=True)):
            found[i] = told_apart(bird, other, importances(maps[i], bird), importances(maps[count + i], bird))
        return found

    def oracle(self) -> Mapper:
        birds = self.flock.birds
        return lambda network, x, target, places: torch.stack(
            [paint(birds[i].effects[: birds[i].parts, c], birds[i]) for i, c in zip(places, target.index, strict=True)]
        )


def paint(values: Float[Tensor, " parts"], bird: Bird) -> Float[Tensor, "height width"]:
    """Each part's value spread evenly over its pixels, for masks that do not overlap."""
    masks = bird.masks[: bird.parts].double()
    return ((values / masks.flatten(1).sum(1))[:, None, None] * masks).sum(0)
