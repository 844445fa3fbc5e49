"""What a picture is made of: the names of every factor's values, and the factors of one picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from convoscope.core.errors import UsageError, did_you_mean

from .species import DISTRACTORS, SPECIES

CATEGORIES: tuple[str, ...] = tuple(SPECIES)
SCENES = ("meadow", "sea", "desert", "city", "snow", "mountains")
LIGHTS = ("left", "above", "right")
COLORS = ("black", "white", "red", "green", "yellow", "blue", "brown", "orange", "pink", "purple", "gray")
TEXTURES = ("plain", "stripes", "dots", "checks", "zigzag", "grid")
MATERIALS = ("matte", "glossy", "metal", "wood")
DISTRACTOR_KINDS: tuple[str, ...] = tuple(DISTRACTORS)
CORNERS = ("top left", "top right", "bottom left", "bottom right")

Shapes = tuple[tuple[str, str], ...]


def known(value: str, names: tuple[str, ...] | list[str], what: str) -> str:
    """`value`, or a UsageError that offers the closest of `names`."""
    if value not in names:
        raise UsageError(f"no {what} {value!r}{did_you_mean(value, names)} (known: {', '.join(names)})")
    return value


@dataclass(frozen=True)
class Distractor:
    """A small thing that says nothing about the class.

    `x` and `y` are its middle and `scale` its half width, in fractions of the picture's side.
    """

    kind: str
    color: str
    accent: str
    texture: str
    material: str
    x: float
    y: float
    scale: float
    angle: int

    def __post_init__(self) -> None:
        known(self.kind, DISTRACTOR_KINDS, "distractor")
        _check_paint(self)


@dataclass(frozen=True)
class Factors:
    """Everything that determines a picture: `render(factors)` is a pure function of it.

    `species` is the true class and `label` the class the picture is labeled with. `parts` are the parts that are
    there with their shapes, in drawing order. `color` paints the main parts, with `texture`; `accent` and `detail`
    paint the others, plain. `x` and `y` are the middle of the object and `scale` its half width, in fractions of the
    picture's side; `angle` turns it, in degrees. `horizon` is a fraction of the height. `noise` seeds all that is
    left (clouds, hills, stars): keep it, and changing one factor changes nothing else.
    """

    species: str
    label: str
    scene: str
    horizon: float
    light: str
    color: str
    accent: str
    detail: str
    texture: str
    material: str
    parts: Shapes
    x: float
    y: float
    scale: float
    angle: int
    mirror: bool
    distractors: tuple[Distractor, ...] = ()
    watermark: str = ""
    seed: int = 0
    index: int = 0
    noise: int = 0

    def __post_init__(self) -> None:
        known(self.species, CATEGORIES, "species")
        known(self.label, CATEGORIES, "label")
        known(self.scene, SCENES, "scene")
        known(self.light, LIGHTS, "light")
        known(self.detail, COLORS, "color")
        _check_paint(self)
        if self.watermark:
            known(self.watermark, CORNERS, "corner for a watermark")
        for part, shape in self.parts:
            known(shape, part_shapes(self.species, part), f"shape of {part} of a {self.species}")

    def without(self, *parts: str) -> Self:
        """The same picture with these parts of the object taken away."""
        for part in parts:
            part_shapes(self.species, part)
        return replace(self, parts=tuple(p for p in self.parts if p[0] not in parts))

    def having(self, part: str, shape: str | None = None) -> Self:
        """The same picture with this part of the object, in this shape (or else as it is, or in its first shape)."""
        shapes = part_shapes(self.species, part)
        chosen = {**{part: shapes[0]}, **dict(self.parts)}
        if shape is not None:
            chosen[part] = known(shape, shapes, f"shape of {part} of a {self.species}")
        order = [p.name for p in SPECIES[self.species]]
        return replace(self, parts=tuple((name, chosen[name]) for name in order if name in chosen))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `parts` becomes a mapping from part to shape."""
        values = asdict(self)
        return {**values, "parts": dict(self.parts), "distractors": list(values["distractors"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        names = {f.name for f in fields(cls)}
        for name in values:
            known(name, sorted(names), "factor")
        try:
            return cls(**{
                **values,
                "parts": tuple(values["parts"].items()),
                "distractors": tuple(Distractor(**d) for d in values.get("distractors", ())),
            })
        except (TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"these are not the factors of a picture: {error}") from error

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"the factors of a picture are one line of JSON, not {text[:40]!r}: {error}") from error
        return cls.from_dict(values)


def part_shapes(species: str, part: str) -> list[str]:
    """The shapes that a part of a species comes in."""
    names = {p.name: list(p.shapes) for p in SPECIES[known(species, CATEGORIES, "species")]}
    return names[known(part, list(names), f"part of a {species}")]


def _check_paint(thing: Factors | Distractor) -> None:
    known(thing.color, COLORS, "color")
    known(thing.accent, COLORS, "color")
    known(thing.texture, TEXTURES, "texture")
    known(thing.material, MATERIALS, "material")
