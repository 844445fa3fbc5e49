"""What each thing in a marked scene does to a network's answer, by drawing the scene without it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from convoscope.data.scenes import SCENES, Factors, render
from convoscope.evaluation.bench.parts_game import drawn, players_of, showing
from convoscope.network import Network

MARK = 0  # the number of the mark among the things; the scenery is the last


@dataclass(frozen=True)
class Marked:
    """A picture `(3, S, S)` in 0..1 that bears the mark, the things in it, and versions of it in which one thing is changed.

    Things are the mark, the parts of the object, the distractors and the scenery. `masks` are disjoint and cover the picture:
    the mark's pixels are those that differ without it, the scenery's are what is left. Version k has thing `changed[k]` taken
    away, the scenery exchanged for one of the five others.
    """

    factors: Factors
    picture: Float[Tensor, "3 size size"]
    names: tuple[str, ...]
    masks: Bool[Tensor, "things size size"]
    versions: Float[Tensor, "versions 3 size size"]
    changed: Int[Tensor, " versions"]

    @property
    def mark(self) -> Bool[Tensor, "size size"]:
        """The pixels of the mark."""
        return self.masks[MARK]


def marked(factors: Factors, corner: str, size: int, pool: int = 1) -> Marked:
    """The scene of these factors with a mark in a corner, drawn at `size` pixels, each `pool` x `pool` of them one."""
    factors = replace(factors, watermark=corner)
    sample, things = render(factors, size), players_of(factors)
    covered = F.avg_pool2d(torch.stack([torch.from_numpy(sample.where(**t)) for t in things.values()]).float(), pool) >= 0.5
    every = 2 ** len(things) - 1
    changes = [replace(factors, watermark="")]
    changes += [showing(factors, tuple(things), every - 2**k) for k in range(len(things))]
    changes += [replace(factors, scene=other) for other in SCENES if other != factors.scene]
    pictures = F.avg_pool2d(drawn([factors, *changes], size), pool)
    picture, versions = pictures[0], pictures[1:]
    masks = [(picture != versions[0]).any(0)]
    seen = [True]
    for mask in covered:
        mask = mask & ~torch.stack(masks).any(0)
        seen.append(bool(mask.any()))
        masks.append(mask)
    masks.append(~torch.stack(masks).any(0))
    seen.append(bool(masks[-1].any()))
    number = torch.cat([torch.arange(len(masks) - 1), torch.full((len(SCENES) - 1,), len(masks) - 1)])
    kept = torch.tensor(seen)
    new = kept.cumsum(0) - 1
    names = [n for n, shows in zip(("mark", *things, "scenery"), seen, strict=True) if shows]
    return Marked(
        factors, picture, tuple(names), torch.stack(masks)[kept], versions[kept[number]], new[number[kept[number]]]
    )  # fmt: skip


def logits(network: Network, pictures: Float[Tensor, "pictures 3 size size"]) -> Float[Tensor, "pictures classes"]:
    """What a network says of pictures in 0..1, in float64, on the CPU."""
    module = copy.deepcopy(network.plain).double()
    with torch.no_grad():
        rows = [module(network.normalize(part.double().to(network.device))) for part in pictures.split(64)]
    return torch.cat([network.head(r).cpu() for r in rows])


def effects(network: Network, scenes: Sequence[Marked], index: int) -> list[Float[Tensor, " things"]]:
    """By how much each thing in a picture raises the logit of a class: with it minus without, of the scenery the mean over
    the five others, in float64."""
    found = logits(network, torch.cat([torch.cat([s.picture[None], s.versions]) for s in scenes]))[:, index]
    rows = found.split([1 + len(s.versions) for s in scenes])
    return [_means(row[0] - row[1:], scene) for row, scene in zip(rows, scenes, strict=True)]


def _means(changes: Float[Tensor, " versions"], scene: Marked) -> Float[Tensor, " things"]:
    sums = torch.zeros(len(scene.names), dtype=torch.float64).index_add_(0, scene.changed, changes)
    return sums / scene.changed.bincount(minlength=len(scene.names))


def spread(effect: Float[Tensor, " things"], scene: Marked) -> Float[Tensor, "size size"]:
    """The map that puts each thing's effect evenly on its pixels."""
    return ((effect / scene.masks.flatten(1).sum(1))[:, None, None] * scene.masks).sum(0)


def share(values: Float[Tensor, "... size size"], mask: Bool[Tensor, "... size size"]) -> Float[Tensor, "..."]:
    """The share of a map's magnitude that lies on a mask; 0 where the map is 0."""
    magnitude = values.double().abs()
    total = magnitude.sum((-2, -1))
    return (magnitude * mask).sum((-2, -1)) / total.masked_fill(total == 0, 1)


def exact_share(effect: Float[Tensor, " things"]) -> Float[Tensor, ""]:
    """The share of the mark in the magnitudes of all effects."""
    return effect[MARK].abs() / effect.abs().sum()
