"""Exact Shapley values of a network over the parts of a scene.

The players are the parts of the object and the distractors. A part that does not play is not drawn, so that every picture the
network is asked about is one that the scenes could show; the scenery is always there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

import convoscope as cs
from convoscope.data.scenes import CATEGORIES, Factors, Scenes, render

VISIBLE = 8  # pixels; what shows less has no place in a map, and always plays


def shapley(values: Tensor) -> Tensor:
    """The Shapley values `(players,)` of a game; `values[s]` is worth what the players earn whose bit is set in s.

    `phi_i = sum over s without i of |s|! (n - |s| - 1)! / n! (v(s + i) - v(s))` (Shapley 1953); they sum to v(all) - v(none).
    """
    players = len(values).bit_length() - 1
    if len(values) != 2**players:
        raise ValueError(f"a game of n players has 2^n values; got {len(values)}")
    coalitions = torch.arange(2**players)
    sizes = sum((coalitions >> k & 1 for k in range(players)), torch.zeros_like(coalitions))
    shares = [math.factorial(k) * math.factorial(players - k - 1) / math.factorial(players) for k in range(players)]
    weights = torch.tensor([*shares, 0.0], dtype=values.dtype)
    found = []
    for k in range(players):
        without = coalitions[(coalitions >> k & 1) == 0]
        found.append((weights[sizes[without]] * (values[without | 1 << k] - values[without])).sum())
    return torch.stack(found)


@dataclass(frozen=True)
class Game:
    """A picture `(3, S, S)` in 0..1, its class, its players with the pixels `(players, S, S)` that show them, and their worth.

    `values` holds the logit of the class for each of the 2^players pictures, by the bits of those who are drawn.
    """

    picture: Tensor
    label: int
    names: tuple[str, ...]
    masks: Tensor
    values: Tensor

    @property
    def worth(self) -> Tensor:
        """The exact Shapley value of each player."""
        return shapley(self.values)


def players_of(factors: Factors) -> dict[str, dict[str, str]]:
    """The parts and distractors of a picture by name, with the labels of their pixels."""
    parts = {name: {"instance": "object", "part": name} for name, _ in factors.parts}
    return parts | {f"distractor {k}": {"instance": f"distractor {k}"} for k in range(1, len(factors.distractors) + 1)}


def showing(factors: Factors, names: Sequence[str], drawn: int) -> Factors:
    """The picture in which, of the players `names`, only those are drawn whose bit is set."""
    absent = {name for k, name in enumerate(names) if not drawn >> k & 1}
    kept = tuple(d for k, d in enumerate(factors.distractors, 1) if f"distractor {k}" not in absent)
    return replace(factors.without(*[n for n in absent if not n.startswith("distractor")]), distractors=kept)


def game(factors: Factors, scores: Callable[[Tensor, int], Tensor], size: int, least: int = 4) -> Game | None:
    """The game of a picture with every coalition drawn and scored; None where fewer than `least` players show.

    `scores` gives the logits of a class for pictures `(N, 3, S, S)`.
    """
    sample = render(factors, size)
    masks = {name: sample.where(**labels) for name, labels in players_of(factors).items()}
    names = tuple(name for name, mask in masks.items() if mask.sum() >= VISIBLE)
    if len(names) < least:
        return None
    drawn = np.stack([render(showing(factors, names, s), size).picture for s in range(2 ** len(names))])
    pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    label = CATEGORIES.index(factors.species)
    shown = torch.from_numpy(np.stack([masks[name] for name in names]))
    return Game(pictures[-1], label, names, shown, scores(pictures, label).double())


def games(network: cs.Network, number: int, seed: int, least: int = 4) -> list[Game]:
    """The games of the first `number` pictures of the data set `seed` with at least `least` players."""

    def scores(pictures: Tensor, label: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.head(network.plain(network.normalize(b)))[:, label] for b in pictures.split(32)])

    scenes, found = Scenes(100_000, seed=seed), []
    for index in count():
        made = game(scenes.factors(index), scores, scenes.size, least)
        found += [] if made is None else [made]
        if len(found) == number:
            return found
    raise AssertionError("unreachable")
