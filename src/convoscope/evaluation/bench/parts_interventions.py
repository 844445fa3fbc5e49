"""Does a map say what would happen? One factor of a scene is changed, the picture is drawn anew, the network asked again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.spec import AtLeast
from convoscope.data.scenes import COLORS, MATERIALS, SCENES, TEXTURES, Factors
from convoscope.evaluation.base import spearman
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.parts import SEED, played
from convoscope.evaluation.bench.parts_game import VISIBLE, Game, drawn, logits
from convoscope.network import Network

LEAST = 4  # interventions with pixels of their own, for a rank correlation
OTHERS = 3  # values that a factor is changed to, at most
VALUES = {"color": COLORS, "accent": COLORS, "detail": COLORS, "texture": TEXTURES, "material": MATERIALS, "scene": SCENES}


@dataclass(frozen=True)
class Effects:
    """The interventions on a picture, the pixels that each changes alone, and the mean magnitude of the logit's change."""

    names: tuple[str, ...]
    masks: Bool[Tensor, "interventions size size"]
    effects: Float[Tensor, " interventions"]

    @property
    def area(self) -> Float[Tensor, " interventions"]:
        """How many pixels are its own."""
        return self.masks.flatten(1).sum(1)


def interventions_of(factors: Factors) -> dict[str, list[Factors]]:
    """Each intervention on a picture by name, with the pictures that it may lead to.

    The object's main color or its texture, in turn; its two other colors; the color, texture, material or presence of each
    distractor, in turn; the scenery.
    """
    turn = factors.index
    found = {what: _changed(factors, what) for what in (("color", "texture")[turn % 2], "accent", "detail", "scene")}
    for k, d in enumerate(factors.distractors):
        rest = [*factors.distractors[:k], *factors.distractors[k + 1 :]]
        what = ("color", "texture", "material", "presence")[(turn + k) % 4]
        new: list[list[Any]] = [rest]
        if what != "presence":
            new = [[*factors.distractors[:k], changed, *factors.distractors[k + 1 :]] for changed in _changed(d, what)]
        found[f"{what} of distractor {k + 1}"] = [replace(factors, distractors=tuple(ds)) for ds in new]
    return found


def _changed(thing: Any, what: str) -> list[Any]:
    """The thing with other values of a factor: the next ones in the list of them all."""
    values = VALUES[what]
    first = values.index(getattr(thing, what))
    taken = {getattr(thing, name, "") for name in ("color", "accent", "detail")} if values is COLORS else {values[first]}
    others = [v for v in (*values[first:], *values[:first]) if v not in taken]
    return [replace(thing, **{what: v}) for v in others[:OTHERS]]


def effects(network: Network, game: Game) -> Effects | None:
    """What interventions on a picture do; None where fewer than four change 8 pixels or more that no other changes."""
    found = interventions_of(game.factors)
    pictures = [drawn(new, game.picture.shape[-1]) for new in found.values()]
    touched = torch.stack([(p != game.picture).any(1).any(0) for p in pictures])
    alone = touched & (touched.sum(0) == 1)
    shown = [k for k in range(len(found)) if int(alone[k].sum()) >= VISIBLE]
    if len(shown) < LEAST:
        return None
    clean = game.values[-1]
    changes = [(logits(network, pictures[k])[:, game.label].double() - clean).abs().mean() for k in shown]
    return Effects(tuple(list(found)[k] for k in shown), alone[shown], torch.stack(changes))


@lru_cache(maxsize=4)
def intervened(network: str, pictures: int, seed: int) -> tuple[Effects | None, ...]:
    """The effects on the pictures of `played`, drawn and scored once per process."""
    truth = played(network, pictures, seed)
    return tuple(effects(truth.network, g) for g in truth.games)


class Interventions(Task):
    """Which change of the picture would change the logit, and by how much?

    One factor of a scene is changed and everything else kept: the object's main color or texture, each of its two other
    colors, the color, texture, material or presence of each distractor, the scenery. The picture is drawn anew with up to
    three other values and shown to the network that ships with the package; the effect is the mean magnitude of what that
    does to the logit of the class. The score of a picture is Spearman's correlation, over its interventions, of two numbers
    per pixel: the map's mass (its sum of magnitudes) on the pixels that this intervention alone changes, and the effect. A
    map that is equal on all of them gets 0. Pictures are those of `parts`; with fewer than four interventions that change
    8 pixels of their own a picture has no score.
    """

    title = "Interventions"
    exact = "one factor is changed, the picture drawn anew and shown to the network"
    measures = "rank correlation over interventions of a map's mass on changed pixels and the effect, both per pixel"

    pictures: Annotated[int, "how many pictures", AtLeast(2)] = 48
    seed: Annotated[int, "of the scenes"] = SEED
    network: Annotated[str, "a network that ships with the package"] = "scenes"

    def quick(self) -> Task:
        return Interventions(pictures=min(self.pictures, 16), seed=self.seed, network=self.network)

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth, known = self._truth()
        maps = mapper(truth.network, truth.x, truth.target, tuple(range(len(truth.x))))
        return torch.stack([_agreement(m, e) for m, e in zip(maps, known, strict=True)])

    def oracle(self) -> Mapper:
        truth, known = self._truth()
        shape = truth.x.shape[2:]

        def spread(i: int) -> Tensor:
            e = known[i]
            return torch.zeros(shape, dtype=torch.float64) if e is None else (
                (e.effects / e.area)[:, None, None] * e.masks).sum(0)  # fmt: skip

        return lambda network, x, target, places: torch.stack([spread(i) for i in places])

    def _truth(self) -> tuple[Any, Sequence[Effects | None]]:
        settings = (self.network, self.pictures, self.seed)
        return played(*settings), intervened(*settings)


def _agreement(values: Float[Tensor, "height width"], known: Effects | None) -> Float[Tensor, ""]:
    """Spearman's correlation per pixel of a map's mass on the pixels of each intervention and its effect."""
    if known is None:
        return torch.tensor(torch.nan, dtype=torch.float64)
    mass = (values.double().abs() * known.masks).flatten(1).sum(1)
    return spearman(mass / known.area, known.effects / known.area).nan_to_num(0.0)
