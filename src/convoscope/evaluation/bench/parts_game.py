"""Exact Shapley values of a network over the parts of a scene.

The players are the parts of the object and the distractors. A part that does not play is not drawn, so that every picture the
network is asked about is one that the scenes could show; the scenery is always there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.data.scenes import CATEGORIES, Factors, Scenes, render
from convoscope.network import Network

VISIBLE = 8  # pixels; what shows less has no place in a map, and always plays


def shapley(values: Float[Tensor, " coalitions"]) -> Float[Tensor, " players"]:
    """The Shapley values of a game; `values[s]` is worth what the players earn whose bit is set in s.

    `phi_i = sum over s without i of |s|! (n - |s| - 1)! / n! (v(s + i) - v(s))` (Shapley 1953); they sum to v(all) - v(none).
    Raises UsageError where the values are not 2^players.
    """
    players = len(values).bit_length() - 1
    if len(values) != 2**players:
        raise UsageError(f"a game of n players has 2^n values; got {len(values)}")
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

    `outputs` are the logits of each of the 2^players pictures, by the bits of those who are drawn; `factors` draw the full one.
    """

    factors: Factors
    picture: Float[Tensor, "3 size size"]
    label: int
    names: tuple[str, ...]
    masks: Bool[Tensor, "players size size"]
    outputs: Float[Tensor, "coalitions classes"]

    @property
    def values(self) -> Float[Tensor, " coalitions"]:
        """The logit of the class for each of the pictures."""
        return self.outputs[:, self.label]

    @property
    def worth(self) -> Float[Tensor, " players"]:
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


def game(network: Network, factors: Factors, size: int, least: int = 4, most: int = 10) -> Game | None:
    """The game of a picture with every coalition drawn and shown to the network; None where too few or many players show."""
    sample = render(factors, size)
    masks = {name: sample.where(**labels) for name, labels in players_of(factors).items()}
    names = tuple(name for name, mask in masks.items() if mask.sum() >= VISIBLE)
    if not least <= len(names) <= most:
        return None
    pictures = drawn([showing(factors, names, s) for s in range(2 ** len(names))], size)
    label = CATEGORIES.index(factors.species)
    shown = torch.from_numpy(np.stack([masks[name] for name in names]))
    return Game(factors, pictures[-1], label, names, shown, logits(network, pictures).double())


def games(network: Network, number: int, seed: int, least: int = 4, most: int = 10) -> list[Game]:
    """The games of the first `number` pictures of the data set `seed` with `least` to `most` players."""
    scenes, found = Scenes(100_000, seed=seed), []
    for index in count():
        made = game(network, scenes.factors(index), scenes.size, least, most)
        found += [] if made is None else [made]
        if len(found) == number:
            return found
    raise AssertionError("unreachable")


def drawn(factors: Sequence[Factors], size: int) -> Float[Tensor, "pictures 3 size size"]:
    """The pictures of these factors, in 0..1."""
    pictures = np.stack([render(f, size).picture for f in factors])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def logits(network: Network, pictures: Float[Tensor, "pictures 3 height width"]) -> Float[Tensor, "pictures classes"]:
    """What the network says of pictures in 0..1, on the CPU."""
    with torch.no_grad():
        rows = [network.normalize(part.to(network.device)) for part in pictures.split(32)]
        return torch.cat([network.head(network.plain(z)) for z in rows]).cpu()
