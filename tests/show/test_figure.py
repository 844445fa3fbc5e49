"""Figures hold what they are given: pixels, numbers, words."""

import io

import numpy as np
import pytest
from PIL import Image

from convoscope.show.colormap import ZERO, diverging, sequential
from convoscope.show.figure import Panel, Scale, _lines, _plain, bar_colors, figure, number

rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def panel(k=0, **options):
    return Panel(f"panel {k}", PHOTO, **options)


def test_numbers_are_short():
    values = [0, 1, -12.3456, 0.012345, 1e-5, 123456, 1234.5]
    assert [number(v) for v in values] == ["0", "1", "-12.3", "0.0123", "1e-5", "1.23e5", "1.23e3"]


def test_scales_state_their_range_and_zero():
    assert Scale.of(2.5, True, "logits").ticks() == [(0.0, "-2.5"), (0.5, "0"), (1.0, "2.5")]
    assert Scale.of(2.5, False).ticks() == [(0.0, "0"), (1.0, "2.5")]
    assert Scale.of(0.0, True).ticks() == [(0.5, "0 everywhere")]


def test_the_middle_of_a_signed_bar_is_zero():
    colors = bar_colors(Scale.of(1.0, True))
    assert len(colors) % 2 == 1
    assert np.array_equal(colors[len(colors) // 2], diverging()[ZERO])
    assert np.array_equal(bar_colors(Scale.of(1.0, False)), sequential())
    assert (bar_colors(Scale.of(0.0, True)) == diverging()[ZERO]).all()


def test_grid():
    row = figure([panel(k) for k in range(3)])
    assert row.width == 2 * (2 * 20 + 3 * 240 + 2 * 24)
    grid = figure([panel(k) for k in range(3)], columns=2)
    assert grid.width == 2 * (2 * 20 + 2 * 240 + 24)
    assert grid.height > 1.6 * row.height
    many = figure([panel(k) for k in range(6)])
    assert many.width == row.width
    assert figure([panel()], zoom=1, width=100).width == 140
    with pytest.raises(ValueError, match="no panels"):
        figure([])


def test_the_picture_is_in_the_figure_pixel_for_pixel():
    page = np.asarray(figure([Panel("", PHOTO)], width=40, zoom=1))
    assert np.array_equal(page[21:49, 21:59], PHOTO[1:-1, 1:-1])  # inside its thin frame


def test_scale_and_caption_add_height_and_color():
    bare = figure([panel()])
    full = figure([panel(caption="what it shows " * 9, scale=Scale.of(3.0, True, "logits"))])
    assert full.height > bare.height + 100
    end = tuple(diverging()[250])
    assert sum(count for count, color in full.getcolors(1 << 20) if color == end) >= 9


def test_text_stays_in_its_column():
    lines = _lines("a very long word: " + "x" * 200, 12.5, 100, 2)
    assert len(lines) > 10
    assert "".join(lines).count("x") == 200
    assert _lines("", 12.5, 100, 2) == [""]


def test_letters_the_font_lacks():
    assert _plain("7 \u00d7 7 \u2212 café, Straße\n") == "7 x 7 - cafe, Strasse"
    assert _plain("猫") == "?"
    figure([Panel("猫" * 200, PHOTO, "<b>&amp;")])


def test_same_bytes_each_time():
    def encoded():
        buffer = io.BytesIO()
        figure([panel(caption="c", scale=Scale.of(1.0, True, "u"))], title="t").save(buffer, "PNG")
        return buffer.getvalue()

    assert encoded() == encoded()
    assert Image.open(io.BytesIO(encoded())).mode == "RGB"
