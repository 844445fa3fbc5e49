"""Anti-aliased painting in layers, with textures, materials and light, that remembers what was painted where.

Like the forms it keeps to operations that IEEE 754 defines to the last bit.
"""

from typing import NamedTuple

import numpy as np

from .forms import Frame, bounds, distance
from .species import Form

RGB = tuple[float, float, float]

# The paint of each color term and the second tone that its textures are drawn in, 0 to 255.
PAINTS: dict[str, tuple[RGB, RGB]] = {
    "black": ((46, 48, 58), (92, 96, 110)), "white": ((246, 246, 243), (204, 209, 219)),
    "red": ((222, 58, 58), (160, 26, 40)), "green": ((74, 172, 84), (36, 118, 58)),
    "yellow": ((252, 208, 62), (226, 158, 20)), "blue": ((56, 128, 220), (26, 80, 168)),
    "brown": ((146, 96, 60), (100, 62, 36)), "orange": ((246, 142, 44), (204, 96, 14)),
    "pink": ((246, 152, 186), (222, 100, 146)), "purple": ((144, 86, 192), (98, 48, 146)),
    "gray": ((150, 155, 163), (106, 111, 122)),
}
_BASE = {n: np.array(a, np.float32).reshape(3, 1, 1) for n, (a, _) in PAINTS.items()}
_TONE = {n: np.array(b, np.float32).reshape(3, 1, 1) - _BASE[n] for n, (_, b) in PAINTS.items()}
_LIGHT = {"left": (-0.7, -0.714), "above": (0.0, -1.0), "right": (0.7, -0.714)}

Box = tuple[int, int, int, int]
Look = tuple[np.ndarray | np.float32, np.ndarray | None, np.ndarray]  # brightness, glint, base color


class Label(NamedTuple):
    """What a layer is, in words; `instance` is "scene", "object", "distractor 1" or "watermark".

    `role` is "color", "accent" or "detail" for what has that color of its object, or "scene", "shadow", "glow", "mark".
    """

    instance: str
    object: str
    part: str
    role: str
    color: str
    texture: str
    material: str


class Painted(NamedTuple):
    """One layer: what it is, the box (y0, y1, x0, x1) it was painted in and its opacity there, 0 to 1."""

    label: Label
    box: Box
    opacity: np.ndarray


class Canvas:
    """A square picture being painted: `image` (3, S, S) in 0..255, `ids` (S, S) numbers the topmost layer."""

    def __init__(self, size: int, light: str):
        self.size = size
        self.light = _LIGHT[light]
        self.image = np.empty((3, size, size), np.float32)
        self.ids = np.zeros((size, size), np.uint8)
        self.layers: list[Painted] = []
        self.x = (np.arange(size, dtype=np.float32) + 0.5).reshape(1, size)
        self.y = (np.arange(size, dtype=np.float32) + 0.5).reshape(size, 1)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Box | None:
        """The pixels (y0, y1, x0, x1) that an area in pixels touches; None outside of the picture."""
        top, bottom = max(int(y0 - 1.0), 0), min(int(y1 + 2.0), self.size)
        left, right = max(int(x0 - 1.0), 0), min(int(x1 + 2.0), self.size)
        return (top, bottom, left, right) if top < bottom and left < right and y1 > -1 and x1 > -1 else None

    def blend(self, label: Label, box: Box, opacity: np.ndarray, paint: np.ndarray, solid: bool = True) -> None:
        """Lay `paint` (3, h, w) over a box; a solid layer gives its labels to the pixels it covers by half or more."""
        y0, y1, x0, x1 = box
        target = self.image[:, y0:y1, x0:x1]
        change = paint - target
        change *= opacity
        target += change
        self.layers.append(Painted(label, box, opacity))
        if solid:
            np.copyto(self.ids[y0:y1, x0:x1], len(self.layers) - 1, where=opacity >= 0.5)

    def shade(self, box: Box, form: Form, f: Frame, label: Label) -> None:
        """Paint one form with its color, texture and material, lit from the light's side."""
        y0, y1, x0, x1 = box
        x, y = self.x[:, x0:x1], self.y[y0:y1]
        d = distance(form, f, x, y)
        opacity = 0.5 - d
        np.maximum(opacity, 0.0, out=opacity)
        np.minimum(opacity, 1.0, out=opacity)
        rim = d  # darkens towards the edge, so that forms look round and stand out from their like
        rim *= 1.0 / max(0.11 * f.unit, 2.0)
        rim += 1.0
        np.maximum(rim, 0.0, out=rim)
        rim *= rim
        rim *= -0.2
        glint = None
        base = _BASE[label.color]
        if min(y1 - y0, x1 - x0) >= 0.16 * f.unit:
            light, glint, base = _MATERIALS[label.material](self, box, f, x, y, base)
            rim += light
        else:
            rim += 1.0
        paint = base * rim
        if label.texture != "plain":
            paint += _TONE[label.color] * texture(label.texture, f, x, y)
        if glint is not None:
            paint += glint
        self.blend(label, box, opacity, paint)

    def form(self, form: Form, f: Frame, label: Label) -> None:
        """Paint one form of an object."""
        bx0, by0, bx1, by1 = bounds(form)
        ax, ay = 0.5 * (bx0 + bx1) * f.unit - f.u0, 0.5 * (by0 + by1) * f.unit - f.v0
        hx, hy = 0.5 * (bx1 - bx0) * f.unit, 0.5 * (by1 - by0) * f.unit
        # the inverse of a rotation, with or without a mirror, is its transpose
        cx, cy = f.ux * ax + f.vx * ay, f.uy * ax + f.vy * ay
        rx, ry = abs(f.ux) * hx + abs(f.vx) * hy, abs(f.uy) * hx + abs(f.vy) * hy
        box = self.box(cx - rx, cy - ry, cx + rx, cy + ry)
        if box is not None:
            self.shade(box, form, f, label)

    def toward_light(self, box: Box, strength: float, offset: float) -> np.ndarray:
        """`offset` in the middle of a box, `strength` more at the edge that faces the light."""
        y0, y1, x0, x1 = box
        lx, ly = self.light
        scale = 2.0 * strength / (abs(lx) * (x1 - x0) + abs(ly) * (y1 - y0))
        middle = offset - scale * 0.5 * (lx * (x0 + x1) + ly * (y0 + y1))
        return (self.x[:, x0:x1] * (scale * lx) + middle) + self.y[y0:y1] * (scale * ly)


def _axis(a: float, b: float, c: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * a + c) + y * b


def _matte(c: Canvas, box: Box, f: Frame, x: np.ndarray, y: np.ndarray, base: np.ndarray) -> Look:
    return c.toward_light(box, 0.13, 1.02), None, base


def _print(c: Canvas, box: Box, f: Frame, x: np.ndarray, y: np.ndarray, base: np.ndarray) -> Look:
    return np.float32(1.0), None, base


def _glossy(c: Canvas, box: Box, f: Frame, x: np.ndarray, y: np.ndarray, base: np.ndarray) -> Look:
    y0, y1, x0, x1 = box
    w, h = 0.5 * (x1 - x0), 0.5 * (y1 - y0)
    cx, cy = x0 + w + 0.46 * w * c.light[0], y0 + h + 0.46 * h * c.light[1]
    p, q = (x - cx) * (1.0 / (0.3 * w)), (y - cy) * (1.0 / (0.22 * h))
    p *= p
    q *= q
    glint = (1.0 - p) - q
    glint *= 300.0
    np.maximum(glint, 0.0, out=glint)
    np.minimum(glint, 150.0, out=glint)
    return c.toward_light(box, 0.2, 0.99), glint, base


def _metal(c: Canvas, box: Box, f: Frame, x: np.ndarray, y: np.ndarray, base: np.ndarray) -> Look:
    light = c.toward_light(box, 2.2, -0.7)  # a broad reflection of the sky and a sharp edge of the ground
    bright = np.abs(light)
    bright *= -0.42
    bright += 1.26
    light += 1.3
    light *= 5.0
    np.maximum(light, 0.0, out=light)
    np.minimum(light, 1.0, out=light)
    light *= 0.5
    light -= 0.42
    bright += light
    np.maximum(bright, 0.55, out=bright)
    return bright, None, base * 0.74 + 42.0


def _wood(c: Canvas, box: Box, f: Frame, x: np.ndarray, y: np.ndarray, base: np.ndarray) -> Look:
    k = 1.0 / f.unit
    u = _axis(f.ux * 0.7 * k, f.uy * 0.7 * k, f.u0 * 0.7 * k + 4.3, x, y)
    u -= np.floor(u)  # the grain bends once per plank
    u *= 1.0 - u
    v = _axis(f.vx * 4.2 * k, f.vy * 4.2 * k, f.v0 * 4.2 * k + 40.2, x, y)
    u *= 2.2
    v += u
    v -= np.floor(v)
    v *= v
    v *= -0.4  # each year ring darkens and ends sharply
    v += c.toward_light(box, 0.1, 1.12)
    return v, None, base * 0.9 + _OAK


_OAK = np.array((14.0, 8.0, 2.0), np.float32).reshape(3, 1, 1)
_MATERIALS = {"matte": _matte, "glossy": _glossy, "metal": _metal, "wood": _wood, "print": _print}


def _wave(a: float, b: float, c: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A triangle wave between -0.25 and 0.25 of period one."""
    w = _axis(a, b, c, x, y)
    w -= np.floor(w)
    w -= 0.5
    np.abs(w, out=w)
    w -= 0.25
    return w


def _sharp(w: np.ndarray, slope: float) -> np.ndarray:
    w *= slope
    w += 0.5
    np.maximum(w, 0.0, out=w)
    np.minimum(w, 1.0, out=w)
    return w


def texture(name: str, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the second tone each pixel has, 0 to 1; the pattern turns and scales with its object."""
    k = 1.0 / (0.34 * f.unit)
    u = (f.ux * k, f.uy * k, f.u0 * k + 0.25)
    v = (f.vx * k, f.vy * k, f.v0 * k + 0.25)
    sharp = 1.0 / k
    if name == "stripes":
        return _sharp(_wave(0.8 * u[0] + 0.6 * v[0], 0.8 * u[1] + 0.6 * v[1], 0.8 * u[2] + 0.6 * v[2], x, y), sharp)
    if name == "zigzag":
        w = _axis(v[0] * 0.9, v[1] * 0.9, v[2] * 0.9, x, y)
        w += _wave(u[0] * 0.75, u[1] * 0.75, u[2] * 0.75, x, y)
        w -= np.floor(w)
        w -= 0.5
        np.abs(w, out=w)
        w -= 0.25
        return _sharp(w, sharp)
    a, b = _wave(*u, x, y), _wave(*v, x, y)
    if name == "checks":
        a *= b
        return _sharp(a, 4.0 * sharp)
    if name == "grid":
        np.maximum(a, b, out=a)
        a -= 0.13
        return _sharp(a, sharp)
    a += 0.25
    b += 0.25
    a *= a
    b *= b
    a += b
    np.sqrt(a, out=a)
    a -= 0.29
    a *= -1.0
    return _sharp(a, sharp)
