"""Charts of counts: every count as long as it says, in its category's color, nothing cut off."""

import numpy as np

from convoscope.show.bars import COLORS, GAP, HIGH, LABEL, MARGIN, OTHERS, TALL, WIDE, Bar, Histogram, chart, colors_of


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])


def runs(row: np.ndarray, color: str) -> list[int]:
    """Lengths of the stretches of a color in a row of pixels."""
    inside = np.concatenate([[0], (row == rgb(color)).all(1), [0]]).astype(int)
    turns = np.diff(inside).nonzero()[0]
    return (turns[1::2] - turns[::2]).tolist()


def test_colors_are_the_same_wherever_a_category_occurs() -> None:
    assert colors_of(["object", "part"])["part"] == colors_of(["part"])["part"] == COLORS["part"]
    named = colors_of(["mood", "object", "weather"])
    assert (named["mood"], named["weather"]) == OTHERS[:2]
    many = colors_of([f"kind {k}" for k in range(6)])
    assert many["kind 4"] == many["kind 0"]


def test_lines_are_as_long_as_their_counts() -> None:
    bars = [Bar("layer1", [("object", 10), ("color", 30)]), Bar("layer2", [("object", 20), ("part", 0), ("color", 0)])]
    assert [b.total for b in bars] == [40, 20]
    pixels = np.asarray(chart("", "", bars, [], ["object", "part", "color"], zoom=1))
    found = []
    for k in range(2):
        row = pixels[MARGIN + 26 + k * (TALL + GAP) + 1]  # above the numbers
        found.append([sum(runs(row, COLORS[c])) for c in ("object", "color", "part")])
    expected = [[WIDE / 4, 3 * WIDE / 4, 0], [WIDE / 2, 0, 0]]
    assert np.allclose(found, expected, rtol=0, atol=1)
    assert (pixels[:, : MARGIN - 2] == 255).all(), "something reaches into the margin"


def test_columns_of_a_histogram_are_as_tall_as_their_counts() -> None:
    shown = Histogram("layer4", [("dog", "object", 8), ("red", "color", 4), ("a very long name of a thing", "part", 2)])
    pixels = np.asarray(chart("Title", "", [], [shown], ["object", "part", "color"], zoom=1))
    below = pixels[120:]  # the legend has squares of the same colors
    tall = {c: max(sum(runs(below[:, x], COLORS[c])) for x in range(below.shape[1])) for c in ("object", "color", "part")}
    assert np.allclose([tall["object"], tall["color"], tall["part"]], [HIGH, HIGH / 2, HIGH / 4], rtol=0, atol=1)
    assert (pixels[-6:] == 255).all(), "a name is cut off"


def test_long_histograms_go_on_in_another_line_and_an_empty_chart_is_one() -> None:
    rows = [(f"thing {k}", "object", 1 + k % 3) for k in range(200)]
    long, short = (chart("T", "S", [], [Histogram("layer", r)], ["object"], zoom=1) for r in (rows, rows[:20]))
    assert long.width == short.width == 2 * MARGIN + LABEL + WIDE + 300
    assert long.height > 2 * short.height
    assert chart("", "", [], [], [], zoom=1).height > 0
