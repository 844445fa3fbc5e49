"""Drawing the factors of picture number `index` of data set `seed`, with the faults that were asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convoscope.core.errors import UsageError

from .counter import Stream
from .factors import (
    CATEGORIES,
    COLORS,
    CORNERS,
    DISTRACTOR_KINDS,
    LIGHTS,
    MATERIALS,
    SCENES,
    TEXTURES,
    Distractor,
    Factors,
    Shapes,
    known,
)
from .species import SPECIES

WATERMARKED = "fish"


@dataclass(frozen=True)
class Faults:
    """Faults to plant.

    `watermark`: the rate at which pictures labeled as a class bear the mark, by class; the others never do.
    A number is the rate for "fish". `background`: the rate at which a picture of a class shows the scene that belongs to
    its class (class k, scene k modulo 6); a mapping gives `{class: (scene, rate)}`. `wrong_labels`: the rate of labels
    replaced by another class. `random_labels`: all labels drawn at random. The true class stays in `species`.
    """

    watermark: float | Mapping[str, float] = 0.0
    background: float | Mapping[str, tuple[str, float]] = 0.0
    wrong_labels: float = 0.0
    random_labels: bool = False
    corner: str = field(default=CORNERS[3])

    def __post_init__(self) -> None:
        marks = self.watermark if isinstance(self.watermark, Mapping) else {WATERMARKED: self.watermark}
        grounds = self.background
        if not isinstance(grounds, Mapping):
            grounds = {c: (SCENES[k % len(SCENES)], grounds) for k, c in enumerate(CATEGORIES)}
        for name in (*marks, *grounds):
            known(name, CATEGORIES, "species")
        for scene, _ in grounds.values():
            known(scene, SCENES, "scene")
        known(self.corner, CORNERS, "corner for a watermark")
        for rate in (*marks.values(), *(r for _, r in grounds.values()), self.wrong_labels):
            if not 0.0 <= rate <= 1.0:
                raise UsageError(f"a rate of faults is between 0 and 1, not {rate}")
        object.__setattr__(self, "watermark", dict(marks))
        object.__setattr__(self, "background", {k: tuple(v) for k, v in grounds.items()})


NO_FAULTS = Faults()


def _parts(draw: Stream, species: str) -> Shapes:
    chosen = []
    for part in SPECIES[species]:
        shapes = list(part.shapes)
        if draw.unit(f"part {part.name}") < part.rate:
            chosen.append((part.name, shapes[draw.below(len(shapes), f"shape {part.name}")]))
    return tuple(chosen)


def _three_colors(draw: Stream, name: str) -> tuple[str, str, str]:
    left = list(COLORS)
    first = left.pop(draw.below(11, f"{name} color"))
    second = left.pop(draw.below(10, f"{name} accent"))
    return first, second, left[draw.below(9, f"{name} detail")]


def _distractor(draw: Stream, k: int) -> Distractor:
    name = f"distractor {k}"
    color, accent, _ = _three_colors(draw, name)
    return Distractor(
        DISTRACTOR_KINDS[draw.below(len(DISTRACTOR_KINDS), f"{name} kind")], color, accent,
        TEXTURES[draw.below(len(TEXTURES), f"{name} texture")], MATERIALS[draw.below(len(MATERIALS), f"{name} material")],
        draw.between(0.08, 0.92, f"{name} x"), draw.between(0.68, 0.9, f"{name} y"),
        draw.between(0.055, 0.085, f"{name} scale"), draw.below(41, f"{name} angle") - 20)


def draw_factors(seed: int, index: int, faults: Faults = NO_FAULTS) -> Factors:
    """The factors of picture `index` of data set `seed`: each is drawn on its own, independent of the class."""
    draw = Stream(seed, index)
    species = CATEGORIES[draw.below(len(CATEGORIES), "species")]
    color, accent, detail = _three_colors(draw, "object")
    scene = SCENES[draw.below(len(SCENES), "scene")]
    bound: Any = faults.background
    if species in bound and draw.unit("background") < bound[species][1]:
        scene = bound[species][0]
    marks: Any = faults.watermark
    count, label = draw.below(3, "distractors"), _label(draw, species, faults)
    return Factors(
        species=species, label=label, scene=scene, horizon=draw.between(0.5, 0.66, "horizon"),
        light=LIGHTS[draw.below(3, "light")], color=color, accent=accent, detail=detail,
        texture=TEXTURES[draw.below(len(TEXTURES), "texture")], material=MATERIALS[draw.below(len(MATERIALS), "material")],
        parts=_parts(draw, species), x=draw.between(0.38, 0.62, "x"), y=draw.between(0.46, 0.6, "y"),
        scale=draw.between(0.25, 0.36, "scale"), angle=draw.below(21, "angle") - 10, mirror=draw.below(2, "mirror") == 1,
        distractors=tuple(_distractor(draw, k) for k in range(1, count + 1)),
        watermark=faults.corner if draw.unit("watermark") < marks.get(label, 0.0) else "",
        seed=seed, index=index, noise=draw.bits("noise"))


def _label(draw: Stream, species: str, faults: Faults) -> str:
    if faults.random_labels:
        return CATEGORIES[draw.below(len(CATEGORIES), "random label")]
    if draw.unit("wrong label") < faults.wrong_labels:
        others = [c for c in CATEGORIES if c != species]
        return others[draw.below(len(others), "which wrong label")]
    return species
