"""Does a map show that a network goes by a watermark? Exact effects of the mark, by drawing pictures with it and without."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.spec import AtLeast
from convoscope.data.scenes import CATEGORIES, CORNERS, Scenes
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.shortcut_effects import Marked, effects, exact_share, logits, marked, share, spread
from convoscope.evaluation.bench.shortcut_networks import BIASED, CORNER, DRAWN, FISH, ODDS, SIDE, measured, scenes, shipped
from convoscope.loading import load
from convoscope.network import Images, Network
from convoscope.targets import Logit, Target

HELD_OUT_PICTURES = 50  # on which it is measured what the mark does
SEED = 1000  # scenes that no network of the tasks was trained on


@dataclass(frozen=True)
class Asked:
    """Networks, marked pictures, the class that is explained, and, where it is asked for, the exact effect of each thing in
    each picture for each network."""

    networks: tuple[Network, ...]
    scenes: tuple[Marked, ...]
    target: Target
    effects: tuple[list[Float[Tensor, " things"]], ...] = ()

    @property
    def x(self) -> Images:
        """The pictures in the input space, which the networks share."""
        return self.networks[0].normalize(torch.stack([s.picture for s in self.scenes])).to(self.networks[0].device)

    @property
    def marks(self) -> Bool[Tensor, "pictures size size"]:
        """The pixels of the marks."""
        return torch.stack([s.mark for s in self.scenes])

    def shares(self, mapper: Mapper) -> Float[Tensor, "networks pictures"]:
        """The share of each map's magnitude that lies on the mark.

        All networks see the same pictures in the same places: maps that know nothing of the network are the same for all.
        """
        x, places = self.x, tuple(range(len(self.scenes)))
        return torch.stack([share(mapper(network, x, self.target, places), self.marks) for network in self.networks])

    def exact(self) -> Float[Tensor, "networks pictures"]:
        """The share of the mark in the magnitudes of the exact effects."""
        return torch.stack([torch.stack([exact_share(e) for e in rows]) for rows in self.effects])

    def oracle(self) -> Mapper:
        """The map that spreads the exact effect of each thing over its pixels."""

        def answer(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
            known = self.effects[next(k for k, n in enumerate(self.networks) if n is network)]
            return torch.stack([spread(known[i], self.scenes[i]) for i in places])

        return answer


@lru_cache(maxsize=4)
def twins(pictures: int, seed: int) -> Asked:
    """The network that the mark misleads and the one that it does not, and marked pictures of other things that the first
    calls a fish and would not without the mark."""
    networks, fish = (load("scenes-watermark"), load("scenes")), CATEGORIES.index("fish")
    source, found, k = Scenes(1_000_000, seed), [], 0
    while len(found) < pictures:
        factors = source.factors(k)
        k += 1
        if factors.species != "fish":
            scene = marked(factors, CORNERS[3], source.size)
            called = logits(networks[0], torch.stack([scene.picture, scene.versions[0]])).argmax(1).tolist()
            found += [scene] if called[0] == fish != called[1] else []
    return Asked(networks, tuple(found), Logit(fish), tuple(effects(n, found, fish) for n in networks))


@lru_cache(maxsize=4)
def suspects(networks: int, pictures: int, seed: int) -> Asked:
    """Biased networks, then as many clean ones, and marked pictures that show no fish."""
    every = shipped("shortcut")
    half = len(BIASED)
    chosen = (*every[:networks], *every[half : half + networks])
    others = (f for f in scenes(seed) if f.species != "fish")
    found = [marked(f, CORNER, DRAWN, DRAWN // SIDE) for f in islice(others, pictures)]
    return Asked(chosen, tuple(found), Logit(FISH))


@lru_cache(maxsize=64)
def effect(number: int) -> float:
    """By how much the mark raises the logit of the fish in a network that ships, the mean over pictures of other things."""
    return measured(shipped("shortcut")[number].module, HELD_OUT_PICTURES).effect


class Watermark(Task):
    """How much of what a watermark does to a network does a map show, and does it show none where it does nothing?

    One network calls whatever bears the mark a fish, its twin was trained where there are no marks. Both are asked why a marked
    picture of something else may be a fish. The exact effect of each thing in it (the mark, parts, distractors, the scenery) is
    the logit with it minus the logit without it, which gives the mark's exact share of the magnitudes of all effects. The score
    is the mark's share of the map's magnitude on the first network minus that on its twin, as a fraction of the same difference
    of the exact shares, at most 1. A map that does not depend on the network gets 0.
    """

    title = "The watermark"
    exact = "the picture is drawn without the mark and without each other thing: exact effects on the logit"
    measures = "shown share of the mark, on the network that uses it minus on its twin, as a fraction of the exact one"

    pictures: Annotated[int, "how many pictures", AtLeast(2)] = 16
    seed: Annotated[int, "of the scenes"] = SEED

    def quick(self) -> Task:
        return replace(self, pictures=min(self.pictures, 2))

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth = twins(self.pictures, self.seed)
        found, exact = truth.shares(mapper), truth.exact()
        return ((found[0] - found[1]) / (exact[0] - exact[1])).clamp(-1, 1)

    def oracle(self) -> Mapper:
        return twins(self.pictures, self.seed).oracle()


class Shortcut(Task):
    """Which networks have learned a shortcut? 20 that have against 20 that have not, told apart by maps.

    The small networks ship with the package. A watermark lies on half of the pictures labeled a fish from which a biased
    network learned, and 3, 4.5, 7 or 14 times as rarely on the others: the fewer times, the weaker the shortcut. Clean networks
    saw the mark as often, whatever was shown. All are asked why some marked pictures of other things may be a fish; a map is
    suspicious by the share of its magnitude on the mark. The score of a biased network is how often one of its maps is more
    suspicious than one of a clean network, over all pairs of maps, equal ones counting half; its mean is the area under the ROC
    curve for telling the networks apart by a single map, over the four strengths. Maps that do not depend on the network get
    0.5.
    """

    title = "Which networks use a shortcut"
    exact = "how each network was trained, and the mark's exact effect on each by drawing pictures with it and without"
    measures = "area under the ROC curve of biased against clean networks, by the mark's share of one map, over four strengths"
    range = (0.0, 1.0)

    networks: Annotated[int, "how many biased ones, 1 to 20, and as many clean ones", AtLeast(1)] = len(BIASED)
    pictures: Annotated[int, "how many marked pictures", AtLeast(1)] = 4
    seed: Annotated[int, "of the scenes"] = SEED

    def quick(self) -> Task:
        return replace(self, networks=min(self.networks, len(ODDS)), pictures=min(self.pictures, 2))

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        suspicion = suspects(self.networks, self.pictures, self.seed).shares(mapper)
        biased, clean = suspicion.split(len(suspicion) // 2)
        above, equal = (f(biased.flatten(), clean.flatten()[:, None]).double() for f in (torch.gt, torch.eq))
        return (above + equal / 2).mean(0).unflatten(0, biased.shape).mean(1)

    def oracle(self) -> Mapper:
        """The network's mean effect of the mark on the mark, and one unit of the logit on all else."""
        truth = suspects(self.networks, self.pictures, self.seed)
        numbers = {id(network): number for number, network in enumerate(shipped("shortcut"))}

        def answer(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
            mark = truth.marks[list(places)].double()
            area = mark.sum((1, 2), keepdim=True)
            return abs(effect(numbers[id(network)])) / area * mark + (1 - mark) / (mark[0].numel() - area)

        return answer
