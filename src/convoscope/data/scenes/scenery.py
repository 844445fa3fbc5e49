"""The six scenes: sky, light and ground, painted from back to front with a horizon."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .canvas import Canvas, Label, Painted
from .counter import hashed, table
from .factors import Factors
from .forms import distance, frame
from .species import either, oval

RGB = tuple[float, float, float]
_COUNT = 4096
_RANDOM = table(_COUNT + 64, 0x5CE7E)
_UNITS: list[float] = _RANDOM.tolist()

# What scenery is called, and the color, texture and material it has in the label maps.
SCENERY: dict[str, tuple[str, str, str]] = {
    "blue sky": ("blue", "plain", "air"), "dusty sky": ("orange", "plain", "air"), "night sky": ("purple", "plain", "air"),
    "winter sky": ("gray", "plain", "air"), "evening sky": ("pink", "plain", "air"),
    "sun": ("yellow", "plain", "light"), "moon": ("white", "plain", "light"), "star": ("white", "plain", "light"),
    "cloud": ("white", "plain", "air"), "evening cloud": ("pink", "plain", "air"), "snowflake": ("white", "plain", "snow"),
    "hill": ("green", "plain", "foliage"), "grass": ("green", "blades", "foliage"),
    "water": ("blue", "ripples", "water"), "island": ("gray", "plain", "stone"),
    "dune": ("orange", "plain", "sand"), "sand": ("yellow", "ripples", "sand"), "mesa": ("brown", "plain", "stone"),
    "far building": ("purple", "plain", "stone"), "building": ("black", "plain", "stone"),
    "lit window": ("yellow", "plain", "light"), "road": ("gray", "plain", "asphalt"),
    "lane mark": ("white", "plain", "asphalt"), "pine": ("green", "plain", "foliage"),
    "snow bank": ("white", "plain", "snow"), "snow": ("white", "plain", "snow"),
    "mountain": ("purple", "plain", "stone"), "snow cap": ("white", "plain", "snow"), "heath": ("brown", "blades", "foliage"),
}
_OBJECTS = {n: n.split()[-1] if n.endswith(("sky", "cloud", "building")) else n for n in SCENERY}
LABELS = {n: Label("scene", _OBJECTS[n], "", "scene", *SCENERY[n]) for n in SCENERY}
_GLOW = Label("scene", "", "", "glow", "", "", "")
SUN_X = {"left": 0.2, "above": 0.5, "right": 0.8}


def _unit(noise: int, k: int) -> float:
    return _UNITS[(noise + 61 * k) % _COUNT]


@lru_cache(maxsize=64)
def _knots(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(count / size)
    index = at.astype(np.intp)
    w = at - index.astype(np.float32)
    return index, w * w * (3.0 - 2.0 * w)


def _curve(size: int, count: int, noise: int) -> np.ndarray:
    """Smooth noise (size,) in 0..1 with `count` bends."""
    start = noise % _COUNT
    values = _RANDOM[start:start + count + 2]
    index, w = _knots(size, count)
    low = values[index]
    return low + (values[index + 1] - low) * w


def _gradient(c: Canvas, top: RGB, bottom: RGB, y0: float, y1: float) -> np.ndarray:
    """Colors (3, S, 1) that change from `top` at height y0 to `bottom` at y1, in pixels."""
    t = (c.y - y0) * (1.0 / (y1 - y0))
    np.maximum(t, 0.0, out=t)
    np.minimum(t, 1.0, out=t)
    a = np.array(top, np.float32).reshape(3, 1, 1)
    return a + t * (np.array(bottom, np.float32).reshape(3, 1, 1) - a)


def _sky(c: Canvas, name: str, top: RGB, bottom: RGB, horizon: float) -> None:
    c.layers.append(_everything(LABELS[name], c.size))
    c.image[...] = _gradient(c, top, bottom, 0.0, horizon)


@lru_cache(maxsize=64)
def _everything(label: Label, size: int) -> Painted:
    return Painted(label, (0, size, 0, size), np.ones((size, size), np.float32))


def _ridge(c: Canvas, name: str, top: np.ndarray, paint: np.ndarray) -> None:
    """Everything below the line `top` (S,), in pixels."""
    y0 = max(int(top.min()) - 1, 0)
    opacity = c.y[y0:] - top
    opacity += 0.5
    np.maximum(opacity, 0.0, out=opacity)
    np.minimum(opacity, 1.0, out=opacity)
    c.blend(LABELS[name], (y0, c.size, 0, c.size), opacity, paint[:, y0:] if paint.shape[1] > 1 else paint)


def _peaks(c: Canvas, count: float, phase: float) -> np.ndarray:
    """`count` triangles (S,) from 0 up to 0.5 over the width of the picture."""
    t = c.x[0] * (count / c.size) + phase
    return 0.5 - np.abs(t - np.floor(t) - 0.5)


def _rgb(r: float, g: float, b: float) -> np.ndarray:
    return np.array((r, g, b), np.float32).reshape(3, 1, 1)


def _disc(c: Canvas, name: str, x: float, y: float, r: float, color: RGB, glow: float, strength: float) -> None:
    """The sun or the moon, in a glow of `glow` radii."""
    box = c.box(x - glow * r, y - glow * r, x + glow * r, y + glow * r)
    if box is None:
        return
    y0, y1, x0, x1 = box
    dx, dy = (c.x[:, x0:x1] - x) * (1.0 / r), (c.y[y0:y1] - y) * (1.0 / r)
    d = np.sqrt(dx * dx + dy * dy)
    halo = 1.0 - d * (1.0 / glow)
    np.maximum(halo, 0.0, out=halo)
    halo *= halo
    halo *= strength
    paint = _rgb(*color)
    c.blend(_GLOW, box, halo, paint, solid=False)
    d -= 1.0
    d *= -r
    d += 0.5
    np.maximum(d, 0.0, out=d)
    np.minimum(d, 1.0, out=d)
    c.blend(LABELS[name], box, d, paint)


_CLOUDS = tuple(
    either(oval(-0.5, 0.1, 0.42 + a, 0.24), oval(0.05, -0.08, 0.4, 0.34 - a), oval(0.5, 0.12, 0.44 - a, 0.2))
    for a in (0.0, 0.06, -0.06)
)


def _clouds(c: Canvas, name: str, noise: int, horizon: float, color: RGB, opacity: float, count: int = 2) -> None:
    for k in range(count):
        unit = c.size * (0.13 + 0.1 * _unit(noise, 3 * k + 40))
        x = c.size * (0.08 + 0.46 * k + 0.38 * _unit(noise, 3 * k + 41))
        y = horizon * (0.16 + 0.44 * _unit(noise, 3 * k + 42))
        box = c.box(x - unit, y - 0.45 * unit, x + unit, y + 0.3 * unit)
        if box is None:
            continue
        y0, y1, x0, x1 = box
        d = distance(_CLOUDS[(noise + k) % 3], frame(x, y, unit), c.x[:, x0:x1], c.y[y0:y1])
        d *= -1.0
        d += 0.5
        np.maximum(d, 0.0, out=d)
        np.minimum(d, 1.0, out=d)
        fade = (c.y[y0:y1] - (y - 0.5 * unit)) * (-0.5 / unit)
        fade += opacity
        d *= np.maximum(fade, 0.5)
        c.blend(LABELS[name], box, d, _rgb(*color))


def _smooth(field: np.ndarray, axis: int, reach: int) -> np.ndarray:
    total = field.copy()
    for k in range(1, reach):
        total += np.roll(field, k, axis)
    return total * np.float32(1 / reach)


@lru_cache(maxsize=4)
def _streaks(horizontal: bool) -> np.ndarray:
    """Noise (512, 512) in about -1..1, smeared into blades or ripples."""
    field = table(512 * 512, 77 + horizontal).reshape(512, 512)
    field = _smooth(_smooth(field, 1 if horizontal else 0, 14 if horizontal else 4), 0 if horizontal else 1, 2)
    field -= np.float32(0.5)
    return field * np.float32(8.0 if horizontal else 5.0)


def _texture_ground(c: Canvas, noise: int, horizon: float, horizontal: bool, strength: RGB) -> None:
    """Blades or ripples that grow towards the viewer."""
    y0 = int(horizon) + 1
    depth = (c.y[y0:, 0] - horizon) * (1.0 / (c.size - horizon))
    field = _streaks(horizontal)
    rows = (96.0 - 34.0 / (depth + 0.3)).astype(np.intp) if horizontal else np.arange(len(depth))
    start = noise % 400
    tile = field[rows + start, noise // 512 % 380:][:, :c.size] * (0.25 + 0.75 * depth[:, None])
    c.image[:, y0:] += tile * _rgb(*strength)


@lru_cache(maxsize=16)
def _specks(size: int, key: int, count: int, low: float, high: float) -> np.ndarray:
    """Opacity (2 S, 2 S) of small round specks, for stars and snowflakes."""
    field = np.zeros((2 * size, 2 * size), np.float32)
    at = np.arange(2 * size, dtype=np.float32) + 0.5
    u = table(3 * count, key).reshape(count, 3)
    for x, y, r in u.tolist():
        radius = (low + (high - low) * r) * size
        dx, dy = (at - x * 2 * size)[None], (at - y * 2 * size)[:, None]
        d = np.sqrt(dx * dx + dy * dy) - radius
        np.maximum(field, np.minimum(np.maximum(0.5 - d, 0.0), min(1.0, radius * 1.4)), out=field)
    return field


def _speckle(c: Canvas, name: str, noise: int, bottom: float, specks: np.ndarray, color: RGB) -> None:
    rows = min(int(bottom), c.size)
    y, x = noise % c.size, noise // 131 % c.size
    c.blend(LABELS[name], (0, rows, 0, c.size), specks[y:y + rows, x:x + c.size], _rgb(*color))


def _meadow(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "blue sky", (92, 168, 236), (214, 238, 250), h)
    _disc(c, "sun", s * SUN_X[f.light], 0.34 * h, 0.065 * s, (255, 236, 150), 4.5, 0.7)
    _clouds(c, "cloud", n, h, (255, 255, 255), 0.95)
    _ridge(c, "hill", h - s * (0.02 + 0.13 * _curve(s, 3, n)), _rgb(146, 200, 158))
    _ridge(c, "hill", h - s * (-0.01 + 0.08 * _curve(s, 4, n + 900)), _rgb(112, 186, 110))
    _ridge(c, "grass", h + s * 0.05 * _curve(s, 2, n + 1800), _gradient(c, (134, 204, 98), (72, 158, 72), h, s))
    _texture_ground(c, n, h + 0.06 * s, False, (20, 22, 12))


def _sea(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "blue sky", (70, 158, 226), (226, 244, 248), h)
    _disc(c, "sun", s * SUN_X[f.light], 0.3 * h, 0.06 * s, (255, 244, 190), 5.0, 0.75)
    _clouds(c, "cloud", n, h, (255, 255, 255), 0.9, 3)
    _ridge(c, "island", h - s * (0.15 * _curve(s, 3, n) - 0.06), _rgb(142, 174, 190))
    _ridge(c, "water", np.full(s, h, np.float32), _gradient(c, (96, 196, 216), (18, 98, 168), h, s))
    _texture_ground(c, n, h, True, (44, 38, 30))


def _desert(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "dusty sky", (244, 166, 98), (255, 226, 172), h)
    _disc(c, "sun", s * SUN_X[f.light], 0.42 * h, 0.085 * s, (255, 246, 206), 4.0, 0.7)
    steps = np.floor(_curve(s, 5, n) * 5.0) - 1.0
    _ridge(c, "mesa", h - s * 0.045 * np.maximum(steps, -0.5), _gradient(c, (196, 112, 78), (214, 146, 98), 0.6 * h, h))
    dune = _gradient(c, (238, 176, 104), (226, 156, 86), 0.8 * h, 1.1 * h)
    _ridge(c, "dune", h - s * (0.07 * _curve(s, 3, n + 700) - 0.015), dune)
    _ridge(c, "sand", h + s * 0.1 * _curve(s, 2, n + 1400), _gradient(c, (250, 214, 138), (232, 178, 98), h, s))
    _texture_ground(c, n, h + 0.1 * s, True, (14, 14, 14))


def _skyline(c: Canvas, name: str, noise: int, h: float, width: float, high: float, paint: np.ndarray) -> np.ndarray:
    """Buildings; gives their tops (S,)."""
    block = (c.x[0] * (1.0 / (width * c.size))).astype(np.intp)
    tops = h - c.size * (0.04 + high * _RANDOM[noise % _COUNT:][:64][block])
    tops = np.floor(tops) + 0.5
    _ridge(c, name, tops, paint)
    return tops


def _city(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "night sky", (38, 26, 86), (128, 84, 160), h)
    _speckle(c, "star", n, 0.8 * h, _specks(s, 5, 150, 0.004, 0.009), (255, 250, 224))
    _disc(c, "moon", s * SUN_X[f.light], 0.3 * h, 0.07 * s, (250, 246, 226), 3.2, 0.35)
    _skyline(c, "far building", n + 300, h, 0.07, 0.3, _rgb(88, 62, 132))
    tops = _skyline(c, "building", n + 600, h, 0.105, 0.24, _rgb(42, 36, 74))
    y0, y1 = int(tops.min()), int(h)
    column, row = c.x * (34.0 / s), c.y[y0:y1] * (30.0 / s)
    i, j = column.astype(np.intp), row.astype(np.intp)
    pane = ((column - i) < 0.62) & ((row - j) < 0.66)
    lit = pane & (_RANDOM[(i * 57 + j * 131 + n) % _COUNT] < 0.3) & (c.y[y0:y1] > tops + 0.02 * s)
    c.blend(LABELS["lit window"], (y0, y1, 0, s), lit.astype(np.float32), _rgb(255, 214, 112))
    _ridge(c, "road", np.full(s, h, np.float32), _gradient(c, (112, 106, 132), (84, 82, 104), h, s))
    middle = h + 0.46 * (s - h)
    dash = np.minimum(_peaks(c, 5.0, _unit(n, 7)) * (0.2 * s) - 0.04 * s, 0.016 * s - np.abs(c.y - middle))
    dash = np.minimum(np.maximum(dash + 0.5, 0.0), 0.9)
    y0, y1 = int(middle - 0.03 * s), int(middle + 0.04 * s)
    c.blend(LABELS["lane mark"], (y0, y1, 0, s), dash[y0:y1], _rgb(232, 226, 214))


def _snow(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "winter sky", (150, 172, 198), (222, 230, 238), h)
    _disc(c, "sun", s * SUN_X[f.light], 0.36 * h, 0.06 * s, (255, 250, 232), 3.6, 0.6)
    _ridge(c, "snow bank", h - s * (0.16 * _curve(s, 3, n) - 0.01), _gradient(c, (206, 219, 234), (228, 236, 244), 0.6 * h, h))
    spacing = 0.085 * s
    column = c.x[0] * (1.0 / spacing)
    k = column.astype(np.intp)
    tall = np.maximum(_RANDOM[(n + 333) % _COUNT:][:64][k] - 0.3, 0.0) * (0.34 * s)
    spike = tall * (1.0 - 2.0 * np.abs(column - k - 0.5))
    _ridge(c, "pine", h + 0.02 * s - spike, _gradient(c, (62, 112, 104), (84, 138, 126), 0.6 * h, h))
    _ridge(c, "snow", h + s * 0.05 * _curve(s, 2, n + 1800), _gradient(c, (238, 243, 250), (212, 224, 240), h, s))
    _speckle(c, "snowflake", n, s, _specks(s, 9, 130, 0.006, 0.014), (255, 255, 255))


def _mountains(c: Canvas, f: Factors, n: int, h: float) -> None:
    s = c.size
    _sky(c, "evening sky", (226, 120, 158), (255, 212, 186), h)
    _disc(c, "sun", s * SUN_X[f.light], 0.5 * h, 0.09 * s, (255, 232, 168), 4.0, 0.65)
    _clouds(c, "evening cloud", n, h, (255, 200, 206), 0.85)
    top = h - s * (0.5 * _peaks(c, 2.0, _unit(n, 3)) + 0.1 * _curve(s, 9, n) - 0.06)
    _ridge(c, "mountain", top, _gradient(c, (150, 98, 158), (190, 136, 176), 0.5 * h, h))
    _ridge(c, "mountain", h - s * (0.2 * _peaks(c, 3.0, _unit(n, 9)) + 0.06 * _curve(s, 9, n + 500) - 0.04), _rgb(116, 74, 132))
    _ridge(c, "heath", h + s * 0.05 * _curve(s, 2, n + 900), _gradient(c, (176, 112, 92), (122, 76, 72), h, s))
    _texture_ground(c, n, h + 0.06 * s, False, (14, 10, 10))


_PAINTERS: dict[str, Callable[[Canvas, Factors, int, float], None]] = {
    "meadow": _meadow, "sea": _sea, "desert": _desert, "city": _city, "snow": _snow, "mountains": _mountains,
}


def paint_scene(c: Canvas, f: Factors) -> None:
    """Paint the scene behind everything."""
    _PAINTERS[f.scene](c, f, hashed(f.noise, 1) & 0xFFFFFF, f.horizon * c.size)
