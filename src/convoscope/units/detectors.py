"""Which units detect what: labels of units, and both published ways of counting distinct detectors."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from convoscope.core.errors import UsageError

Rule = Literal["top", "per-category"]
RULES = ("top", "per-category")
ORDER = ("object", "part", "scene", "material", "texture", "color")


@dataclass(frozen=True)
class Match:
    """A unit and a concept: intersection over union over all images."""

    label: str
    category: str
    iou: float
    p: float | None = None


@dataclass(frozen=True)
class UnitLabel:
    """What one unit responds to.

    `label` is the concept with the largest `iou`, the intersection over union of the unit's active pixels with it; it is active
    above `threshold`, in a share `exceedance` of its values. `held_out` is the intersection over union measured on images that
    the label was not chosen on (the mean over both halves), `stable` whether both halves choose the same. `p` says, by null
    model, how often a unit that means nothing has as good a best label, `usual` how good such labels are in the mean. `note` is
    "dead" for units that never change and "sparse" for those that are at their lowest value nearly everywhere. `top` are the
    best few concepts, `best_of` the best of each category, `images` those with the strongest activations, strongest first.
    """

    unit: int
    label: str
    category: str
    iou: float
    held_out: float
    stable: bool
    p: Mapping[str, float]
    usual: float | None
    threshold: float
    exceedance: float
    note: str
    top: tuple[Match, ...]
    best_of: tuple[Match, ...]
    images: tuple[int, ...]

    @property
    def chance(self) -> float | None:
        """The p-value of the first null model, None where none was asked for."""
        return next(iter(self.p.values()), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        return found | {"p": dict(self.p), "images": list(self.images)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        matches = {k: tuple(Match(**m) for m in values[k]) for k in ("top", "best_of")}
        return cls(**{**values, **matches, "images": tuple(values["images"])})


@dataclass(frozen=True)
class LayerLabels:
    """The labels of all units of a layer; a unit is a detector of what it has more than `iou` with.

    `shape` is (channels, rows, columns), `anchor` how maps were laid over pictures, and `by_chance` how many units a layer of
    units that mean nothing has above the limit, by null model.
    """

    address: str
    shape: tuple[int, ...]
    anchor: str
    iou: float
    units: tuple[UnitLabel, ...]
    by_chance: Mapping[str, float]

    def found(self, rule: Rule = "top", p: float | None = None) -> list[tuple[int, Match]]:
        """The detectors: units with what they detect.

        "top" gives each unit its best label alone (Bau et al. 2017, the text); "per-category" each category's best label, so
        that a unit may detect a color and an object (the authors' own counts). With `p`, only what chance does in a smaller
        share of draws.
        """
        if rule not in RULES:
            raise UsageError(f"no rule {rule!r} of unique detectors; expected 'top' or 'per-category'")
        pairs = []
        for u in self.units:
            matches = (Match(u.label, u.category, u.iou, u.chance),) if rule == "top" else u.best_of
            pairs += [(u.unit, m) for m in matches if m.iou > self.iou and (p is None or m.p is None or m.p < p)]
        return pairs

    def detectors(self, rule: Rule = "top", p: float | None = None) -> dict[str, int]:
        """How many units detect something of each category; by "per-category" a unit may count in several."""
        return _sorted(Counter(m.category for _, m in self.found(rule, p)))

    def interpretable(self, rule: Rule = "top", p: float | None = None) -> int:
        """How many units detect anything."""
        return len({unit for unit, _ in self.found(rule, p)})

    def unique(self, rule: Rule = "top", p: float | None = None) -> dict[str, int]:
        """How many different concepts of each category are detected."""
        return _sorted(Counter(category for category, _ in {(m.category, m.label) for _, m in self.found(rule, p)}))

    def beyond(self, p: float = 0.01) -> dict[str, int]:
        """How many units have a best label of each category that chance does in a smaller share of draws, however small its
        intersection over union: large concepts, such as scenes, cannot have more than `fraction` over their own share."""
        return _sorted(Counter(m.category for u in self.units for m in u.best_of if m.p is not None and m.p < p))

    def histogram(self, rule: Rule = "top", p: float | None = None) -> list[tuple[str, str, int]]:
        """Concept, category and how many units detect it: by category, most first."""
        counts = Counter((m.category, m.label) for _, m in self.found(rule, p))
        rows = sorted(counts.items(), key=lambda item: (place(item[0][0]), -item[1], item[0]))
        return [(label, category, count) for (category, label), count in rows]

    def to_dict(self) -> dict[str, Any]:
        """Units and counts, as JSON values."""
        rules: list[Rule] = ["top", "per-category"]
        return {
            "address": self.address,
            "shape": list(self.shape),
            "anchor": self.anchor,
            "interpretable": {r: self.interpretable(r) for r in rules},
            "detectors": {r: self.detectors(r) for r in rules},
            "unique": {r: self.unique(r) for r in rules},
            "beyond_chance": self.beyond(),
            "by_chance": dict(self.by_chance),
            "units": [u.to_dict() for u in self.units],
        }


def place(category: str) -> tuple[int, str]:
    """Where a category stands in lists: those of the paper first, from objects to colors."""
    return (ORDER.index(category) if category in ORDER else len(ORDER), category)


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {category: counts[category] for category in sorted(counts, key=place)}
