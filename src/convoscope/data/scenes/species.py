"""The shapes of the species and of the distractors, as tables of forms.

A form lives in a box from -1 to 1, x to the right and y downwards. Each species is a row of parts in drawing
order; each part has one or more shapes; each shape is a row of layers `(role, form)`, where the role says which
of the object's three colors the layer is painted with. Nothing here has a color of its own, so that
no color tells the species.
"""

from math import sqrt
from typing import NamedTuple

Form = tuple  # ("oval", cx, cy, rx, ry, ...) and so on; see forms.distance
Layer = tuple[str, Form]


class Part(NamedTuple):
    """One part of a species: `rate` is how often it is there."""

    name: str
    rate: float
    shapes: dict[str, tuple[Layer, ...]]


def oval(cx: float, cy: float, rx: float, ry: float | None = None, cos: float = 1.0, sin: float = 0.0) -> Form:
    """An ellipse; (cos, sin) turns it."""
    return ("oval", cx, cy, rx, rx if ry is None else ry, cos, sin)


def box(cx: float, cy: float, hx: float, hy: float, round: float = 0.0) -> Form:
    """A rectangle of half widths hx and hy with rounded corners."""
    return ("box", cx, cy, hx, hy, round)


def poly(*points: tuple[float, float], round: float = 0.06) -> Form:
    """A convex polygon, its corners given clockwise as seen on the screen, softly rounded."""
    pairs = list(zip(points, (*points[1:], points[0]), strict=True))
    if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) < 0:
        raise ValueError(f"the corners {points} are not in clockwise order")
    edges = []
    for (x0, y0), (x1, y1) in pairs:
        length = sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        edges.append((nx, ny, -(nx * x0 + ny * y0)))
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return ("poly", round, tuple(edges), (min(xs), min(ys), max(xs), max(ys)))


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Form:
    """A stroke with round ends."""
    return ("line", x0, y0, x1, y1, width)


def ring(cx: float, cy: float, radius: float, width: float) -> Form:
    """A circle drawn with a stroke."""
    return ("ring", cx, cy, radius, width)


def both(*forms: Form) -> Form:
    """What lies in every form."""
    return ("both", *forms)


def either(*forms: Form) -> Form:
    """What lies in any of the forms."""
    return ("either", *forms)


def _main(*forms: Form) -> tuple[Layer, ...]:
    return tuple(("color", f) for f in forms)


def _accent(*forms: Form) -> tuple[Layer, ...]:
    return tuple(("accent", f) for f in forms)


def _detail(*forms: Form) -> tuple[Layer, ...]:
    return tuple(("detail", f) for f in forms)


_CAR = (
    Part("cabin", 1.0, {
        "sedan": _main(poly((-0.62, 0.06), (-0.38, -0.5), (0.28, -0.5), (0.62, 0.06), round=0.14)),
        "van": _main(box(-0.12, -0.22, 0.78, 0.4, 0.16)),
        "beetle": _main(both(oval(-0.02, 0.08, 0.68, 0.64), box(0, -0.3, 1, 0.42))),
    }),
    Part("body", 1.0, {
        "long": _main(box(0, 0.17, 0.98, 0.28, 0.17)),
        "sloped": _main(poly((-0.98, -0.02), (0.62, -0.1), (0.99, 0.14), (0.97, 0.45), (-0.98, 0.45), round=0.2)),
    }),
    Part("window", 0.85, {
        "pair": _detail(box(-0.24, -0.24, 0.19, 0.15, 0.06), box(0.2, -0.24, 0.17, 0.15, 0.06)),
        "wide": _detail(box(-0.02, -0.23, 0.38, 0.15, 0.08)),
    }),
    Part("wheel", 0.85, {
        "disc": (*_accent(oval(-0.54, 0.44, 0.27), oval(0.54, 0.44, 0.27)),
                 *_detail(oval(-0.54, 0.44, 0.12), oval(0.54, 0.44, 0.12))),
        "rim": (*_accent(oval(-0.54, 0.44, 0.28), oval(0.54, 0.44, 0.28)),
                *_detail(ring(-0.54, 0.44, 0.14, 0.05), ring(0.54, 0.44, 0.14, 0.05))),
    }),
    Part("lamp", 0.85, {"round": _detail(oval(0.88, 0.12, 0.09, 0.1)), "bar": _detail(box(0.9, 0.14, 0.06, 0.12, 0.05))}),
)

_SAILBOAT = (
    Part("mast", 0.85, {"pole": _detail(line(0.0, -0.94, 0.0, 0.5, 0.04))}),
    Part("flag", 0.85, {"pennant": _detail(poly((0.0, -1.0), (0.0, -0.76), (-0.36, -0.88), round=0.03))}),
    Part("jib", 0.85, {
        "triangle": _accent(poly((-0.08, -0.66), (-0.08, 0.34), (-0.72, 0.34), round=0.05)),
    }),
    Part("sail", 1.0, {
        "triangle": _main(poly((0.08, -0.86), (0.82, 0.34), (0.08, 0.34), round=0.06)),
        "gaff": _main(poly((0.08, -0.56), (0.52, -0.86), (0.86, 0.34), (0.08, 0.34), round=0.08)),
        "full": _main(both(oval(0.08, -0.2, 0.82, 0.72), box(0.5, -0.2, 0.42, 0.54))),
    }),
    Part("hull", 1.0, {
        "flat": _accent(poly((-0.98, 0.46), (0.98, 0.46), (0.66, 0.92), (-0.66, 0.92), round=0.16)),
        "round": _accent(both(oval(0, 0.44, 0.97, 0.52), box(0, 0.72, 1, 0.27))),
    }),
)

_HOUSE = (
    Part("chimney", 0.85, {"square": _detail(box(0.5, -0.56, 0.12, 0.34, 0.03))}),
    Part("body", 1.0, {"wide": _main(box(0, 0.4, 0.76, 0.58, 0.04)), "narrow": _main(box(0, 0.4, 0.62, 0.58, 0.04))}),
    Part("roof", 1.0, {
        "gable": _accent(poly((0.0, -0.98), (0.98, -0.12), (-0.98, -0.12), round=0.1)),
        "hip": _accent(poly((-0.5, -0.72), (0.5, -0.72), (0.98, -0.12), (-0.98, -0.12), round=0.1)),
    }),
    Part("door", 0.85, {
        "square": _detail(box(-0.26, 0.66, 0.17, 0.33, 0.03)),
        "arched": _detail(either(box(-0.26, 0.72, 0.17, 0.27, 0.0), oval(-0.26, 0.46, 0.17))),
    }),
    Part("window", 0.85, {
        "square": (*_accent(box(0.27, 0.34, 0.23, 0.23, 0.03)),
                   *_detail(box(0.27, 0.34, 0.16, 0.16, 0.02)), *_accent(line(0.27, 0.2, 0.27, 0.48, 0.025))),
        "round": (*_accent(oval(0.27, 0.34, 0.24)), *_detail(oval(0.27, 0.34, 0.16))),
    }),
)

_TREE = (
    Part("trunk", 1.0, {
        "straight": _accent(poly((-0.12, 0.0), (0.12, 0.0), (0.18, 0.98), (-0.18, 0.98), round=0.04)),
        "forked": _accent(either(line(0, 0.9, 0, 0.4, 0.13), line(0, 0.5, -0.3, -0.1, 0.07), line(0, 0.5, 0.3, -0.1, 0.07))),
    }),
    Part("crown", 1.0, {
        "round": _main(either(oval(0, -0.42, 0.58, 0.55), oval(-0.46, -0.05, 0.42, 0.38), oval(0.46, -0.05, 0.42, 0.38))),
        "pine": _main(poly((0, -0.42), (0.78, 0.5), (-0.78, 0.5), round=0.08),
                      poly((0, -0.74), (0.62, 0.1), (-0.62, 0.1), round=0.08),
                      poly((0, -0.99), (0.44, -0.36), (-0.44, -0.36), round=0.08)),
        "tall": _main(oval(0, -0.28, 0.48, 0.7)),
    }),
    Part("fruit", 0.85, {
        "round": _detail(oval(-0.26, -0.02, 0.095), oval(0.24, -0.2, 0.095),
                         oval(0.08, 0.16, 0.095), oval(-0.08, -0.46, 0.095)),
    }),
)

_FISH = (
    Part("tail", 1.0, {
        "forked": _accent(either(poly((-0.42, -0.06), (-0.42, 0.12), (-1.0, -0.14), (-0.96, -0.58), round=0.08),
                                 poly((-0.42, -0.12), (-0.42, 0.06), (-0.96, 0.58), (-1.0, 0.14), round=0.08))),
        "fan": _accent(poly((-0.45, 0.0), (-0.98, 0.48), (-0.98, -0.48), round=0.14)),
    }),
    Part("fin", 0.85, {
        "pointed": _accent(poly((-0.42, -0.2), (-0.16, -0.74), (0.4, -0.28), round=0.1),
                           poly((-0.2, 0.2), (0.24, 0.26), (-0.16, 0.7), round=0.1)),
        "round": _accent(oval(-0.04, -0.34, 0.42, 0.28), oval(-0.02, 0.38, 0.24, 0.24)),
    }),
    Part("body", 1.0, {
        "oval": _main(oval(0.14, 0, 0.8, 0.46)),
        "slender": _main(oval(0.12, 0, 0.86, 0.34)),
        "tall": _main(oval(0.18, 0, 0.7, 0.56)),
    }),
    Part("eye", 0.85, {
        "round": (*_detail(oval(0.58, -0.1, 0.12)), *_accent(oval(0.6, -0.1, 0.055))),
    }),
    Part("flipper", 0.85, {"oval": _accent(oval(0.1, 0.12, 0.22, 0.11, 0.9, -0.436))}),
)

_BIRD = (
    Part("tail", 0.85, {
        "fan": _accent(poly((-0.4, -0.02), (-0.4, 0.26), (-1.0, 0.2), (-0.98, -0.28), round=0.08)),
        "long": _accent(poly((-0.4, 0.04), (-0.4, 0.26), (-1.0, 0.5), (-1.0, 0.3), round=0.05)),
    }),
    Part("leg", 0.85, {
        "pair": _detail(either(line(-0.12, 0.5, -0.12, 0.92, 0.04), line(0.1, 0.5, 0.1, 0.92, 0.04),
                               line(-0.12, 0.92, 0.02, 0.94, 0.04), line(0.1, 0.92, 0.24, 0.94, 0.04))),
    }),
    Part("body", 1.0, {
        "oval": _main(oval(-0.02, 0.16, 0.6, 0.44, 0.966, 0.259)),
        "plump": _main(oval(-0.02, 0.14, 0.58, 0.5)),
    }),
    Part("crest", 0.5, {"spike": _accent(poly((0.28, -0.56), (0.24, -0.98), (0.56, -0.62), round=0.05))}),
    Part("head", 1.0, {"round": _main(oval(0.46, -0.36, 0.34))}),
    Part("beak", 1.0, {
        "pointed": _detail(poly((0.72, -0.48), (1.0, -0.3), (0.72, -0.18), round=0.05)),
        "long": _detail(poly((0.72, -0.42), (1.1, -0.32), (0.72, -0.22), round=0.03)),
    }),
    Part("eye", 0.85, {"round": (*_detail(oval(0.56, -0.44, 0.1)), *_accent(oval(0.58, -0.44, 0.045)))}),
    Part("wing", 0.85, {
        "folded": _accent(oval(-0.14, 0.12, 0.44, 0.22, 0.94, 0.34)),
        "raised": _accent(oval(-0.28, -0.26, 0.2, 0.56, 0.94, -0.34)),
    }),
)

_SNOWMAN = (
    Part("arm", 0.85, {
        "up": _accent(either(line(-0.3, 0.02, -0.88, -0.34, 0.04), line(0.3, 0.02, 0.88, -0.34, 0.04),
                             line(-0.68, -0.22, -0.72, -0.42, 0.03), line(0.68, -0.22, 0.72, -0.42, 0.03))),
        "down": _accent(either(line(-0.3, -0.02, -0.86, 0.22, 0.04), line(0.3, -0.02, 0.86, 0.22, 0.04),
                               line(-0.68, 0.15, -0.82, 0.04, 0.03), line(0.68, 0.15, 0.82, 0.04, 0.03))),
    }),
    Part("body", 1.0, {
        "balls": _main(oval(0, 0.56, 0.52, 0.44), oval(0, 0.02, 0.39, 0.34)),
        "stout": _main(oval(0, 0.54, 0.6, 0.46), oval(0, 0.02, 0.44, 0.34)),
    }),
    Part("head", 1.0, {"round": _main(oval(0, -0.44, 0.3))}),
    Part("hat", 0.85, {
        "top hat": _accent(either(box(0, -0.68, 0.38, 0.05, 0.04), box(0, -0.84, 0.22, 0.17, 0.04))),
        "cone": _accent(poly((0, -1.04), (0.27, -0.6), (-0.27, -0.6), round=0.06)),
        "cap": _accent(either(both(oval(0, -0.56, 0.3, 0.32), box(0, -0.75, 0.4, 0.19)), box(0.16, -0.58, 0.3, 0.05, 0.04))),
    }),
    Part("scarf", 0.85, {"knotted": _accent(box(0, -0.2, 0.29, 0.08, 0.07), box(0.17, -0.02, 0.08, 0.2, 0.05))}),
    Part("button", 0.85, {"round": _detail(oval(0, 0.12, 0.06), oval(0, 0.4, 0.06), oval(0, 0.62, 0.06))}),
    Part("eye", 0.85, {"round": _detail(oval(-0.11, -0.5, 0.05), oval(0.12, -0.5, 0.05))}),
    Part("nose", 0.85, {"carrot": _detail(poly((0.0, -0.46), (0.36, -0.36), (0.0, -0.34), round=0.03))}),
)

_ROCKET = (
    Part("flame", 0.85, {
        "drop": (*_detail(oval(0, 0.72, 0.2, 0.34)), *_accent(oval(0, 0.66, 0.1, 0.22))),
        "twin": _detail(oval(-0.12, 0.74, 0.11, 0.26), oval(0.12, 0.74, 0.11, 0.26)),
    }),
    Part("fin", 1.0, {
        "swept": _accent(poly((-0.22, 0.08), (-0.22, 0.56), (-0.66, 0.8), (-0.62, 0.46), round=0.08),
                         poly((0.22, 0.08), (0.62, 0.46), (0.66, 0.8), (0.22, 0.56), round=0.08)),
        "square": _accent(poly((-0.22, 0.14), (-0.22, 0.56), (-0.58, 0.56), (-0.58, 0.34), round=0.05),
                          poly((0.22, 0.14), (0.58, 0.34), (0.58, 0.56), (0.22, 0.56), round=0.05)),
    }),
    Part("body", 1.0, {
        "tube": _main(box(0, 0.02, 0.3, 0.58, 0.08)),
        "cigar": _main(both(oval(0, 0.02, 0.38, 0.92), box(0, 0.02, 0.5, 0.58))),
    }),
    Part("nose", 0.85, {
        "cone": _accent(poly((0, -1.02), (0.3, -0.4), (-0.3, -0.4), round=0.06)),
        "dome": _accent(both(oval(0, -0.38, 0.3, 0.56), box(0, -0.7, 0.4, 0.34))),
    }),
    Part("window", 0.85, {
        "porthole": (*_accent(oval(0, -0.14, 0.19)), *_detail(oval(0, -0.14, 0.13))),
        "pair": _detail(oval(0, -0.2, 0.11), oval(0, 0.12, 0.11)),
    }),
    Part("band", 0.85, {"stripe": _detail(box(0, 0.42, 0.29, 0.06, 0.0))}),
)

_BALLOON = (
    Part("rope", 0.85, {"pair": _accent(either(line(-0.17, 0.4, -0.13, 0.76, 0.022), line(0.17, 0.4, 0.13, 0.76, 0.022)))}),
    Part("basket", 1.0, {
        "square": _detail(box(0, 0.84, 0.2, 0.15, 0.04)),
        "tub": _detail(poly((-0.24, 0.68), (0.24, 0.68), (0.15, 0.99), (-0.15, 0.99), round=0.08)),
    }),
    Part("envelope", 1.0, {
        "round": _main(either(oval(0, -0.3, 0.7), poly((-0.58, 0.06), (0.58, 0.06), (0.2, 0.54), (-0.2, 0.54), round=0.08))),
        "pear": _main(either(oval(0, -0.38, 0.62),
                             poly((-0.58, -0.18), (0.58, -0.18), (0.16, 0.54), (-0.16, 0.54), round=0.1))),
    }),
    Part("band", 0.85, {
        "belt": _accent(both(oval(0, -0.32, 0.64), box(0, -0.3, 0.8, 0.12))),
        "collar": _accent(box(0, 0.47, 0.2, 0.08, 0.03)),
    }),
)

_MUSHROOM = (
    Part("stem", 1.0, {
        "straight": _accent(box(0, 0.5, 0.24, 0.48, 0.12)),
        "bulb": _accent(either(box(0, 0.5, 0.19, 0.48, 0.1), oval(0, 0.76, 0.36, 0.22))),
    }),
    Part("gills", 0.85, {"disc": _detail(oval(0, 0.1, 0.76, 0.14))}),
    Part("collar", 0.5, {"skirt": _detail(poly((-0.2, 0.32), (0.2, 0.32), (0.34, 0.5), (-0.34, 0.5), round=0.06))}),
    Part("cap", 1.0, {
        "dome": _main(both(oval(0, 0.1, 0.96, 0.98), box(0, -0.42, 1, 0.52, 0.1))),
        "bell": _main(both(oval(0, 0.12, 0.72, 1.08), box(0, -0.42, 1, 0.54, 0.1))),
        "flat": _main(both(oval(0, 0.12, 0.99, 0.64), box(0, -0.3, 1, 0.42, 0.1))),
    }),
    Part("spot", 0.85, {
        "round": _detail(oval(-0.36, -0.14, 0.14, 0.13), oval(0.1, -0.3, 0.16, 0.15), oval(0.44, -0.06, 0.11, 0.1)),
    }),
)

SPECIES: dict[str, tuple[Part, ...]] = {
    "car": _CAR, "sailboat": _SAILBOAT, "house": _HOUSE, "tree": _TREE, "fish": _FISH,
    "bird": _BIRD, "snowman": _SNOWMAN, "rocket": _ROCKET, "balloon": _BALLOON, "mushroom": _MUSHROOM,
}

# Where the shadow lies: (height of its middle, half width, darkness); floating things throw a small one far below.
SHADOWS: dict[str, tuple[float, float, float]] = {
    "car": (0.7, 1.02, 0.36), "sailboat": (0.92, 0.92, 0.34), "house": (0.98, 0.95, 0.36), "tree": (0.98, 0.7, 0.34),
    "fish": (1.02, 0.66, 0.22), "bird": (0.95, 0.6, 0.3), "snowman": (0.98, 0.68, 0.36), "rocket": (1.1, 0.5, 0.24),
    "balloon": (1.12, 0.5, 0.22), "mushroom": (0.98, 0.72, 0.36),
}

DISTRACTORS: dict[str, tuple[Part, ...]] = {
    "ball": (Part("body", 1.0, {"round": _main(oval(0, 0, 0.92))}),),
    "crate": (Part("body", 1.0, {"square": (*_main(box(0, 0.05, 0.86, 0.86, 0.08)),
                                            *_accent(line(-0.6, -0.55, 0.6, 0.65, 0.11)))}),),
    "flower": (
        Part("stalk", 1.0, {"straight": _accent(line(0, 0, 0, 0.92, 0.09))}),
        Part("petal", 1.0, {"round": _main(either(oval(0, -0.68, 0.28), oval(0.36, -0.42, 0.28), oval(0.23, 0.0, 0.28),
                                                  oval(-0.23, 0.0, 0.28), oval(-0.36, -0.42, 0.28)))}),
        Part("core", 1.0, {"round": _accent(oval(0, -0.28, 0.2))}),
    ),
    "star": (Part("body", 1.0, {"six points": _main(either(
        poly((0, -0.95), (0.82, 0.47), (-0.82, 0.47), round=0.1),
        poly((-0.82, -0.47), (0.82, -0.47), (0, 0.95), round=0.1)))}),),
    "ring": (Part("body", 1.0, {"round": _main(ring(0, 0, 0.66, 0.24))}),),
    "cone": (
        Part("body", 1.0, {"pointed": _main(poly((-0.12, -0.9), (0.12, -0.9), (0.56, 0.8), (-0.56, 0.8), round=0.08))}),
        Part("base", 1.0, {"flat": _accent(box(0, 0.8, 0.8, 0.13, 0.06))}),
    ),
}
