"""Forms as signed distance fields over boxes of pixels, in float32.

Only additions, subtractions, multiplications, divisions, square roots, comparisons and roundings are used, each of
which IEEE 754 defines to the last bit: a picture is the same on every platform.
"""

from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import numpy as np

from .species import Form


class Frame(NamedTuple):
    """From picture to object: u = ux x + uy y + u0 and v likewise, all in pixels; `unit` is the object's half width."""

    ux: float
    uy: float
    u0: float
    vx: float
    vy: float
    v0: float
    unit: float


def _sine(degrees: float) -> float:
    x = degrees * 0.017453292519943295
    return x - x * x * x / 6.0 + x * x * x * x * x / 120.0


def frame(x: float, y: float, unit: float, angle: float = 0.0, mirror: bool = False) -> Frame:
    """The frame of an object at (x, y) pixels, turned by `angle` degrees (within 90) and perhaps mirrored."""
    s = _sine(angle)
    c = sqrt(1.0 - s * s)
    m = -1.0 if mirror else 1.0
    return Frame(m * c, m * s, -m * (c * x + s * y), -s, c, s * x - c * y, unit)


def _axis(a: float, b: float, c: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * a + c) + y * b


def _oval(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, cx, cy, rx, ry, c, s = form
    u0, v0 = f.u0 - f.unit * cx, f.v0 - f.unit * cy
    rx, ry = rx * f.unit, ry * f.unit
    p = _axis((c * f.ux + s * f.vx) / rx, (c * f.uy + s * f.vy) / rx, (c * u0 + s * v0) / rx, x, y)
    q = _axis((c * f.vx - s * f.ux) / ry, (c * f.vy - s * f.uy) / ry, (c * v0 - s * u0) / ry, x, y)
    p *= p
    q *= q
    value = p + q
    if rx == ry:
        np.sqrt(value, out=value)
        value -= 1.0
        value *= rx
        return value
    value -= 1.0  # first-order distance: the function over the length of its gradient
    p *= 4.0 / (rx * rx)
    q *= 4.0 / (ry * ry)
    p += q
    p += 1e-6
    np.sqrt(p, out=p)
    value /= p
    return value


def _box(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, cx, cy, hx, hy, rounded = form
    r = rounded * f.unit
    qx = np.abs(_axis(f.ux, f.uy, f.u0 - f.unit * cx, x, y))
    qy = np.abs(_axis(f.vx, f.vy, f.v0 - f.unit * cy, x, y))
    qx -= hx * f.unit - r
    qy -= hy * f.unit - r
    if rounded == 0.0:
        return np.maximum(qx, qy, out=qx)
    inner = np.maximum(qx, qy)
    np.minimum(inner, 0.0, out=inner)
    np.maximum(qx, 0.0, out=qx)
    np.maximum(qy, 0.0, out=qy)
    qx *= qx
    qy *= qy
    qx += qy
    np.sqrt(qx, out=qx)
    qx += inner
    qx -= r
    return qx


def _poly(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, rounded, edges, _ = form
    k = rounded * f.unit
    value: np.ndarray | None = None
    for nx, ny, c in edges:
        d = _axis(nx * f.ux + ny * f.vx, nx * f.uy + ny * f.vy, nx * f.u0 + ny * f.v0 + c * f.unit, x, y)
        if value is None:
            value = d
            continue
        gap = value - d  # polynomial smooth maximum: rounds the corner over k pixels
        np.maximum(value, d, out=value)
        np.abs(gap, out=gap)
        gap *= -1.0 / k
        gap += 1.0
        np.maximum(gap, 0.0, out=gap)
        gap *= gap
        gap *= 0.25 * k
        value += gap
    assert value is not None
    return value


def _line(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, x0, y0, x1, y1, width = form
    dx, dy = x1 - x0, y1 - y0
    length = sqrt(dx * dx + dy * dy)
    c, s = dx / length, dy / length
    u0, v0 = f.u0 - f.unit * (x0 + x1) * 0.5, f.v0 - f.unit * (y0 + y1) * 0.5
    along = np.abs(_axis(c * f.ux + s * f.vx, c * f.uy + s * f.vy, c * u0 + s * v0, x, y))
    across = _axis(c * f.vx - s * f.ux, c * f.vy - s * f.uy, c * v0 - s * u0, x, y)
    along -= 0.5 * length * f.unit
    np.maximum(along, 0.0, out=along)
    along *= along
    across *= across
    along += across
    np.sqrt(along, out=along)
    along -= max(width * f.unit, 0.55)
    return along


def _ring(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, cx, cy, radius, width = form
    value = np.abs(_oval(("oval", cx, cy, radius, radius, 1.0, 0.0), f, x, y))
    value -= width * f.unit
    return value


def _either(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    value = distance(form[1], f, x, y)
    for other in form[2:]:
        np.minimum(value, distance(other, f, x, y), out=value)
    return value


def _both(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    value = distance(form[1], f, x, y)
    for other in form[2:]:
        np.maximum(value, distance(other, f, x, y), out=value)
    return value


_DISTANCES = {"oval": _oval, "box": _box, "poly": _poly, "line": _line, "ring": _ring, "either": _either, "both": _both}


def distance(form: Form, f: Frame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of `form` in pixels, negative inside, at the pixels of columns x and rows y."""
    return _DISTANCES[form[0]](form, f, x, y)


def _bounds(form: Form) -> tuple[float, float, float, float]:
    kind = form[0]
    if kind == "oval":
        _, cx, cy, rx, ry, c, s = form
        r = max(rx, ry)
        hx, hy = (rx, ry) if s == 0.0 else (abs(c) * rx + abs(s) * r, abs(c) * ry + abs(s) * r)
        return cx - hx, cy - hy, cx + hx, cy + hy
    if kind == "box":
        _, cx, cy, hx, hy, _ = form
        return cx - hx, cy - hy, cx + hx, cy + hy
    if kind == "poly":
        return form[3]
    if kind == "line":
        _, x0, y0, x1, y1, w = form
        return min(x0, x1) - w, min(y0, y1) - w, max(x0, x1) + w, max(y0, y1) + w
    if kind == "ring":
        _, cx, cy, r, w = form
        return cx - r - w, cy - r - w, cx + r + w, cy + r + w
    parts = [bounds(f) for f in form[1:]]
    low, high = (max, min) if kind == "both" else (min, max)
    x0, y0, x1, y1 = zip(*parts, strict=True)
    return low(x0), low(y0), high(x1), high(y1)


@lru_cache(maxsize=4096)
def bounds(form: Form) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around a form, in its own units."""
    return _bounds(form)
