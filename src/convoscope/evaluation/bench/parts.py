"""Does a map say which parts of a picture count? Exact Shapley values of parts, by drawing every subset of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import AtLeast
from convoscope.evaluation.base import pearson
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.parts_game import Game, games
from convoscope.loading import load
from convoscope.network import Images, Network
from convoscope.targets import Logit, Target

SEED = 1000  # scenes that the network was not trained on
PLAYERS = (4, 6)  # at least, at most


@dataclass(frozen=True)
class Played:
    """The network, its pictures with the game of each, and the class that is explained."""

    network: Network
    x: Images
    target: Target
    games: tuple[Game, ...]


@lru_cache(maxsize=4)
def played(network: str, pictures: int, seed: int) -> Played:
    """The games of some scenes, drawn and scored once per process."""
    net = load(network)
    found = games(net, pictures, seed, *PLAYERS)
    x = net.normalize(torch.stack([g.picture for g in found]))
    return Played(net, x, Logit(tuple(g.label for g in found)), tuple(found))


class Parts(Task):
    """Which parts of the picture count for the network that ships with the package, and by how much?

    The players are the parts of the object and the distractors that show 8 pixels or more, four to six of them. Each of the
    2^players pictures is drawn without the parts that do not play and shown to the network; the logits of the picture's class
    give exact Shapley values. The score of a picture is Pearson's correlation, over its players, of two numbers per pixel: the
    map's sum over a player's pixels, and its Shapley value, both divided by how many pixels show it. Without that division a
    map that knows nothing is right about much, since large parts count for more in both. Signs count: some parts speak
    against the class. A map that is equal on all parts gets 0.
    """

    title = "Parts that count"
    exact = "every subset of the parts is drawn and shown to the network: exact Shapley values"
    measures = "correlation over parts of a map with the Shapley values, both per pixel"

    pictures: Annotated[int, "how many pictures", AtLeast(2)] = 48
    seed: Annotated[int, "of the scenes"] = SEED
    network: Annotated[str, "a network that ships with the package"] = "scenes"

    def quick(self) -> Task:
        return Parts(pictures=min(self.pictures, 16), seed=self.seed, network=self.network)

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth = played(self.network, self.pictures, self.seed)
        maps = mapper(truth.network, truth.x, truth.target, tuple(range(len(truth.x))))
        return torch.stack([agreement(m, g) for m, g in zip(maps, truth.games, strict=True)])

    def oracle(self) -> Mapper:
        truth = played(self.network, self.pictures, self.seed)
        return lambda network, x, target, places: torch.stack([spread(truth.games[i]) for i in places])


def agreement(values: Float[Tensor, "height width"], game: Game) -> Float[Tensor, ""]:
    """Pearson's correlation, both per pixel, of a map's sum over each player's pixels and its Shapley value; 0 if constant."""
    area = game.masks.flatten(1).sum(1)
    sums = (values.double() * game.masks).flatten(1).sum(1)
    return pearson(sums / area, game.worth / area).nan_to_num(0.0)


def spread(game: Game) -> Float[Tensor, "height width"]:
    """The Shapley value of each player spread evenly over its pixels."""
    area = game.masks.flatten(1).sum(1)
    return ((game.worth / area)[:, None, None] * game.masks).sum(0)
