"""What is known of a picture whose parts can be taken away: what a network says of it without any of them."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.data.dataset import segments_for
from convoscope.data.parts import PartPictures
from convoscope.evaluation.bench.parts_game import Game
from convoscope.network import Images, Network

MATTERS = 0.05  # of the target's value: what taking a thing away has to cost for the thing to matter (Hesse et al. 2023)


@dataclass(frozen=True)
class Contrast:
    """Two classes and two sets of parts: the first set speaks for the first class, the second for the second."""

    classes: tuple[int, int]
    parts: tuple[Bool[Tensor, " parts"], Bool[Tensor, " parts"]]


@dataclass(frozen=True)
class Bird:
    """A picture of class `label`: its things by name, parts first and surroundings last, and the pixels of each.

    `kept[s]` are the network's outputs with those parts alone whose bit is set in s, all surroundings there; `lone[k]` those
    without the k-th of the surroundings. `sufficient` are the smallest sets of parts that tell the class, none if not known.
    """

    label: int
    names: tuple[str, ...]
    masks: Bool[Tensor, "things height width"]
    kept: Float[Tensor, "sets classes"]
    lone: Float[Tensor, "surroundings classes"]
    sufficient: Bool[Tensor, "least parts"]
    contrast: Contrast | None

    @cached_property
    def parts(self) -> int:
        """How many of the things are parts."""
        return len(self.kept).bit_length() - 1

    @cached_property
    def predicted(self) -> int:
        """The class that the network takes the whole picture for."""
        return int(self.kept[-1].argmax())

    @cached_property
    def stays(self) -> Bool[Tensor, " sets"]:
        """Whether the network says the same of each set of parts as of all."""
        return self.kept.argmax(1) == self.predicted

    @cached_property
    def effects(self) -> Float[Tensor, "things classes"]:
        """What each class loses where one thing is taken away."""
        whole = len(self.kept) - 1
        without = self.kept[[whole ^ 1 << k for k in range(self.parts)]]
        return self.kept[-1] - torch.cat([without, self.lone])

    @cached_property
    def irrelevant(self) -> Bool[Tensor, " things"]:
        """The things without which the predicted class loses less than a twentieth."""
        return self.effects[:, self.predicted] < MATTERS * self.kept[-1, self.predicted].abs()


def bits(marked: Bool[Tensor, "*some parts"]) -> Int[Tensor, "*some"]:
    """Sets of parts as numbers: the k-th bit for the k-th part."""
    return (marked.long() << torch.arange(marked.shape[-1])).sum(-1)


def sets(parts: int) -> Bool[Tensor, "sets parts"]:
    """All sets of so many parts, in the order of their numbers."""
    return (torch.arange(2**parts)[:, None] >> torch.arange(parts) & 1).bool()


def minimal(enough: Bool[Tensor, " sets"]) -> Bool[Tensor, "least parts"]:
    """The sets that are enough and of which no smaller one inside is; none where the empty set is enough."""
    every = sets(len(enough).bit_length() - 1)
    found: list[Tensor] = []
    for s in sorted(range(1, len(enough)), key=lambda s: s.bit_count()):
        if enough[s] and not enough[0] and not any((every[s] >= f).all() for f in found):
            found.append(every[s])
    return torch.stack(found) if found else every[:0]


# ---------------------------------------------------------------- two classes to tell apart
def profile(values: Float[Tensor, "*some parts"]) -> Float[Tensor, "*some parts"]:
    """What parts count relative to each other: the absolute values sum to 1."""
    return values / values.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def most_unlike(bird: Bird) -> int:
    """The class for which other parts count than for the picture's own, by the distance of their profiles."""
    known = profile(bird.effects[: bird.parts].T)
    distance = (known - known[bird.label]).abs().sum(-1)
    return int(distance.argmax())


def borne_out(contrast: Contrast, kept: Float[Tensor, "sets classes"]) -> bool:
    """Whether the network bears it out: each class loses more without its own parts than without the other's."""
    whole = len(kept) - 1
    lost = torch.stack([kept[-1] - kept[whole ^ int(bits(p))] for p in contrast.parts])[:, list(contrast.classes)]
    return bool(lost[0, 0] > lost[1, 0] and lost[1, 1] > lost[0, 1])


# ---------------------------------------------------------------- where it comes from
def of_game(game: Game) -> Bird:
    """What drawing a scene without any of its parts tells; the smallest sets of parts are those the network needs."""
    around = [n.startswith("distractor") for n in game.names]
    if any(a > b for a, b in pairwise(around)):
        raise UsageError(f"expected the distractors after all parts; got {', '.join(game.names)}")
    count, most = around.count(False), len(game.outputs) - 1
    kept = game.outputs[(most >> count << count) + torch.arange(2**count)]
    lone = game.outputs[[most ^ 1 << k for k in range(count, len(around))]]
    stays = kept.argmax(1) == kept[-1].argmax()
    return Bird(game.label, game.names, game.masks, kept, lone, minimal(stays), None)


def of_picture(network: Network, dataset: PartPictures, i: int) -> tuple[Images, Bird]:
    """The picture as the network takes it, and what it says of it without any of its parts."""
    names, around = dataset.parts(i), dataset.surroundings(i)
    every = sets(len(names))
    removed = [[n for n, stays in zip(names, row, strict=True) if not stays] for row in every.tolist()]
    pictures = [dataset.without(i, gone) for gone in (*removed, *([a] for a in around))]
    x = torch.cat([network.read(p) for p in pictures])
    found = outputs(network, x)
    kept, lone = found[: len(every)], found[len(every) :]
    told = [torch.tensor([n in least for n in names]) for least in dataset.sufficient(i)]
    rivals, contrast = dataset.rivals(i), None
    if rivals is not None:
        first, second = (torch.tensor([n in some for n in names]) for some in rivals.parts)
        contrast = Contrast(rivals.classes, (first, second))
        contrast = contrast if borne_out(contrast, kept) else None
    sufficient = torch.stack(told) if told else minimal(kept.argmax(1) == kept[-1].argmax())
    masks = where(network, dataset, i, (*names, *around))
    return x[len(every) - 1 :][:1], Bird(dataset.class_of(i), (*names, *around), masks, kept, lone, sufficient, contrast)


def where(network: Network, dataset: PartPictures, i: int, names: tuple[str, ...]) -> Bool[Tensor, "things height width"]:
    """The pixels of each thing where the network has them, widened by the data set's margin."""
    numbers = {c.name: k + 1 for k, c in enumerate(dataset.concepts)}
    segments = segments_for(network, dataset, i)
    if not len(segments):
        raise UsageError(f"picture {i} of {dataset.name} has no dense labels, so nobody knows where its parts are")
    masks = torch.stack([(segments == numbers[n]).any(0) for n in names])
    if not dataset.margin:
        return masks
    return F.max_pool2d(masks[None].float(), 2 * dataset.margin + 1, 1, dataset.margin)[0] > 0


@torch.no_grad()
def outputs(network: Network, x: Images) -> Float[Tensor, "rows classes"]:
    """What the network says, on the CPU in float64. Raises UsageError where that is not one number for each class."""
    with undisturbed(network.plain):
        parts = x.split(rows_at_once(x))
        found = torch.cat([record(network.plain, p.clone(), ("output",), head=network.head)["output"].detach() for p in parts])
    if found.dim() != 2 or found.shape[1] < 2:
        raise UsageError(f"the protocols need the scores of two classes or more (images, classes); got {tuple(found.shape)}")
    return found.cpu().double()
