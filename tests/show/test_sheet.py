"""Sheets of many maps: every tile there, of one size, nothing cut off."""

import numpy as np
import pytest

from convoscope.show import html
from convoscope.show.figure import MARGIN, text_width
from convoscope.show.sheet import GAP, SMALL, WIDTH, Sheet, Tile, _captions, _rows, figure, page

PICTURE = np.random.default_rng(0).random((32, 48, 3))


def tile(group: str, i: int, **more: object) -> Tile:
    values = np.random.default_rng(i).normal(size=(8, 12))
    return Tile(f"Method {group}{i}", np.abs(values) if i % 2 else values, not i % 2, group, "logit", "3 passes, 0.1 s", **more)  # type: ignore[arg-type]


def tiles(**sizes: int) -> list[Tile]:
    return [tile(group, i) for group, count in sizes.items() for i in range(count)]


def shape(columns: int, **sizes: int) -> list[str]:
    return ["".join(t.group for _, _, t in row) for row in _rows(tiles(**sizes), columns)]


def test_groups_share_rows_and_are_torn_only_where_no_row_holds_them() -> None:
    assert shape(5, a=2, b=3, c=1) == ["aabbb", "c"]
    assert shape(5, a=3, b=3, c=2) == ["aaa", "bbbcc"]
    assert shape(4, a=1, b=6) == ["abbb", "bbb"]
    assert shape(4, a=3, b=6) == ["aaa", "bbbb", "bb"]
    assert shape(4) == []
    headings = [[h for _, h, _ in row] for row in _rows(tiles(a=1, b=6), 4)]
    assert headings == [["a", "b", "", ""], ["b, continued", "", ""]]


def test_a_figure_holds_all_tiles_in_one_size() -> None:
    sheet = Sheet("Why?", PICTURE, tiles(a=3, b=4, c=9), ["one", "two"], [("CAM", "no pool " * 40)])
    made = figure(sheet, columns=5, zoom=1)
    assert made.width == 2 * MARGIN + 5 * WIDTH + 4 * GAP
    pixels = np.asarray(made)
    margin = np.concatenate([pixels[:, : MARGIN - 1].reshape(-1, 3), pixels[:, made.width - MARGIN + 1 :].reshape(-1, 3)])
    assert (margin == 255).all(), "something reaches into the margin"
    assert (pixels[-MARGIN + 6 :] == 255).all()
    one = figure(Sheet("Why?", PICTURE, tiles(a=3)), columns=5, zoom=1)
    assert one.height < made.height


def test_long_words_stay_within_their_tile() -> None:
    title = "A method with a very long name (setting 12345, other 67890)"
    long = Tile(title, np.ones((4, 4)), True, "A family of long names", "unit " * 20)
    sheet = Sheet("Why?", PICTURE, [long, tile("b", 1)])
    pixels = np.asarray(figure(sheet, columns=2, zoom=1))
    between = pixels[:, MARGIN + WIDTH + 1 : MARGIN + WIDTH + GAP - 1]
    below = between[int(2 * MARGIN + WIDTH * 32 / 48) + 40 :]
    assert (below == 255).all()
    assert text_width("x" * 10, SMALL, 2) == pytest.approx(10 * text_width("x", SMALL, 2), rel=0.2)


def test_captions_tell_cost_check_and_scale() -> None:
    found = tile("a", 0, check="lost relevance 3%")
    cost, check, scale = _captions(found)
    assert (cost, check) == ("3 passes, 0.1 s", "lost relevance 3%")
    assert scale.startswith("±")
    assert scale.endswith("logit")
    assert Tile("zero", np.zeros((3, 3)), True, "a").scale == "zero everywhere"


def test_the_page_is_whole_and_escaped() -> None:
    made = [tile("a", 0, mark="warn", check="lost", about=["Shows <all>."]), *tiles(b=2)]
    sheets = [Sheet(f"Why <{word}>?", PICTURE, made, [word], [("CAM", "has & lacks")]) for word in ("dog", "cat")]
    text = page(html.Report("Methods", command="convoscope compare-methods"), sheets)
    assert text.count('<li class="tile">') == 6
    assert text.count("data:image/webp") == 8
    for word in ("Why &lt;dog&gt;?", "Why &lt;cat&gt;?", "Shows &lt;all&gt;.", "has &amp; lacks", "caution", "continued"):
        assert (word in text) == (word != "continued")
    assert "<script" not in text
