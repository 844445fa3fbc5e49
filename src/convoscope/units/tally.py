"""How active pixels and labeled pixels overlap, counted: whole numbers, whatever the number of images."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from convoscope.core.errors import UsageError

Area = Literal["category", "overlap"]
AREAS = ("category", "overlap")


@dataclass(frozen=True)
class Labels:
    """The dense labels of some pictures of one size, ready to be counted against any number of layers.

    `flat` `(pictures, layers, pixels)` holds the labels as data sets give them, 0 for nothing and k + 1 for concept k; a pixel
    that has one concept in two layers has it once. `concepts` are the labels that occur, rising, with 0 before them, `places`
    says where a label stands in them, and `totals` counts the pixels of each in each picture.
    """

    flat: Int[Tensor, "pictures layers pixels"]
    concepts: Int[Tensor, "present"]
    places: Int[Tensor, " labels"]
    totals: Int[Tensor, "pictures present"]

    @classmethod
    def of(cls, labels: Int[Tensor, "pictures layers height width"]) -> Self:
        """Labels as data sets give them."""
        flat = _once(labels.flatten(2))
        pictures, most = len(flat), 1 + (int(flat.max()) if flat.numel() else 0)
        keys = flat + torch.arange(0, pictures * most, most, device=flat.device, dtype=flat.dtype)[:, None, None]
        counts = torch.bincount(keys.reshape(-1), minlength=pictures * most).view(pictures, most)
        counts[:, 0] = 0
        there = counts.any(0)
        there[0] = True
        concepts = there.nonzero()[:, 0]
        return cls(flat, concepts, there.cumsum(0) - 1, counts[:, concepts])

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len(self.flat)

    def at(self, pictures: Int[Tensor, " n"], pixels: Int[Tensor, " n"]) -> Int[Tensor, "n layers"]:
        """The places in `concepts` of the labels of some pixels."""
        _, layers, size = self.flat.shape
        first = pictures * (layers * size) + pixels
        found = self.flat.reshape(-1)[first[:, None] + torch.arange(0, layers * size, max(size, 1), device=first.device)]
        return self.places[found.long()]

    def present(self, category: Int[Tensor, " concepts"], categories: int) -> Bool[Tensor, "pictures categories"]:
        """Which pictures have a label of which category."""
        found = self.totals.new_zeros(self.pictures, categories)
        found.index_add_(1, category[self.concepts[1:] - 1], self.totals[:, 1:])
        return found > 0


def _once(flat: Int[Tensor, "pictures layers pixels"]) -> Int[Tensor, "pictures layers pixels"]:
    """A label that a pixel has in an earlier layer is not repeated."""
    copied = False
    for later in range(1, flat.shape[1]):
        for earlier in range(later):
            again = (flat[:, later] == flat[:, earlier]) & (flat[:, later] > 0)
            if bool(again.any()):
                flat, copied = (flat if copied else flat.clone()), True
                flat[:, later][again] = 0
    return flat


class Tally:
    """Counts of one layer: pixels where a unit is active and a concept is labeled, and the areas of both.

    `both` `(halves, units, concepts)`, `area` `(halves, units, categories)`, `label` `(halves, concepts)` are int64, kept for
    two halves of the images so that a label can be chosen on one and measured on the other. The area of a unit counts, for
    each category, only pictures that can tell, by one of two published rules:

    - "category": those with a label of the category anywhere (Bau et al. 2017, the sums of equation 1);
    - "overlap": those where the active pixels of the unit meet a label of the category (NetDissect-Lite's code), which leaves
      out pictures where the unit is active in the wrong places, and so makes intersections over unions larger.
    """

    def __init__(self, units: int, category: Int[Tensor, " concepts"], categories: int, area: Area = "category") -> None:
        if area not in AREAS:
            raise UsageError(f"no rule of areas {area!r}; expected 'category' or 'overlap'")
        self.category, self.rule = category.cpu(), area
        self.both = torch.zeros(2, len(category), units, dtype=torch.int64).transpose(1, 2)  # concepts are added one by one
        self.area = torch.zeros(2, units, categories, dtype=torch.int64)
        self.label = torch.zeros(2, len(category), dtype=torch.int64)

    def add(
        self, units: Int[Tensor, " active"], pictures: Int[Tensor, " active"], pixels: Int[Tensor, " active"], labels: Labels,
        half: Int[Tensor, " pictures"],
    ) -> None:  # fmt: skip
        """Count some pictures: all their active pixels (unit, picture, pixel), their labels and the half each belongs to."""
        count, channels, categories = labels.pictures, self.both.shape[1], self.area.shape[2]
        category, present = self.category.to(units.device), len(labels.concepts)
        where = pictures * channels + units
        active = torch.bincount(where, minlength=count * channels).view(count, channels)
        found = labels.at(pictures, pixels)  # (active, layers)
        if self.rule == "category":
            told = labels.present(category, categories)[:, None].expand(-1, channels, -1)
        else:
            group = torch.cat([category.new_full((1,), categories), category[labels.concepts[1:] - 1]])
            keys = where[:, None] * (categories + 1) + group[found]
            told = torch.bincount(keys.reshape(-1), minlength=count * channels * (categories + 1))
            told = told.view(count, channels, -1)[..., :categories] > 0
        area = active[:, :, None] * told
        split = half.to(units.device)
        kinds = labels.concepts[1:].cpu() - 1
        keys = (split[pictures] * (present * channels) + units)[:, None] + found * channels
        both = torch.bincount(keys.reshape(-1), minlength=2 * channels * present).view(2, present, channels)
        self.both.transpose(1, 2).index_add_(1, kinds, both[:, 1:].cpu())
        for h in (0, 1):
            self.area[h] += area[split == h].sum(0).cpu()
            self.label[h, kinds] += labels.totals[split == h].sum(0)[1:].cpu()

    def merge(self, other: "Tally") -> Self:
        """Add the counts of other images; returns self."""
        if other.rule != self.rule or other.both.shape != self.both.shape or not torch.equal(other.category, self.category):
            raise UsageError("tallies of other units, concepts or rules do not merge")
        self.both += other.both
        self.area += other.area
        self.label += other.label
        return self

    def iou(self, half: int | None = None) -> Float[Tensor, "units concepts"]:
        """Intersection over union of each unit with each concept, over all images or one half; 0 where nothing is active."""
        both, area, label = (t.sum(0) if half is None else t[half] for t in (self.both, self.area, self.label))
        return intersection_over_union(both, area[:, self.category], label)


def intersection_over_union(
    both: Int[Tensor, "units concepts"], area: Int[Tensor, "units concepts"], label: Int[Tensor, " concepts"]
) -> Float[Tensor, "units concepts"]:
    """Of counts, in float64."""
    union = area + label - both
    return both.double() / union.clamp(min=1)
