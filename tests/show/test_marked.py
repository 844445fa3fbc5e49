"""Marked pictures: bright inside, dim outside, a rim in its color."""

import numpy as np
import pytest

from convoscope.show.marked import DIM, marked

COLOR = (255, 0, 128)


def made(bright: np.ndarray, outlined: np.ndarray, picture: np.ndarray | None = None, side: int = 8) -> np.ndarray:
    picture = np.full((*bright.shape, 3), 0.8) if picture is None else picture
    return marked(picture, bright, outlined, "#ff0080", side)


def test_inside_is_the_picture_and_outside_is_dim() -> None:
    bright = np.zeros((8, 8), bool)
    bright[2:5, 1:4] = True
    found = made(bright, np.zeros((8, 8), bool))
    assert found.dtype == np.uint8
    assert (found[bright] == 204).all()
    assert (found[~bright] == round(DIM * 204)).all()


def test_colors_outside_are_half_as_strong() -> None:
    picture = np.zeros((4, 4, 3))
    picture[..., 0] = 1.0
    found = made(np.zeros((4, 4), bool), np.zeros((4, 4), bool), picture, side=4)
    red, green, blue = (int(v) for v in found[0, 0])
    assert (red, green, blue) == (round(DIM * (127.5 + 42.5)), round(DIM * 42.5), round(DIM * 42.5))


def test_the_rim_is_the_edge_of_what_is_outlined_and_not_that_of_the_picture() -> None:
    outlined = np.zeros((9, 9), bool)
    outlined[2:7, 0:6] = True  # touches the left side
    found = made(np.ones((9, 9), bool), outlined, side=9)
    rim = (found == COLOR).all(2)
    expected = outlined.copy()
    expected[3:6, 0:5] = False
    assert (rim == expected).all()


@pytest.mark.parametrize(("shape", "side", "factor"), [((5, 8), 16, 2), ((5, 8), 17, 3), ((8, 8), 4, 1)])
def test_small_pictures_are_enlarged_by_whole_factors(shape: tuple[int, int], side: int, factor: int) -> None:
    bright = np.zeros(shape, bool)
    bright[1, 2] = True
    found = made(bright, np.zeros(shape, bool), side=side)
    assert found.shape == (shape[0] * factor, shape[1] * factor, 3)
    inside = (found == 204).all(2)
    assert inside[factor : 2 * factor, 2 * factor : 3 * factor].all()
    assert inside.sum() == factor**2
