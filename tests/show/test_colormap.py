"""The tables keep their promises: equal steps, zero in the middle, no reliance on red against green."""

import numpy as np
import pytest

from convoscope.show.colormap import ZERO, diverging, oklab, sequential, srgb

TABLES = [sequential("light"), sequential("dark"), diverging("light"), diverging("dark")]

# Machado, Oliveira, Fernandes 2009: how full deuteranopia and protanopia see linear RGB.
DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
PROTANOPIA = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])


def lightness(table):
    return oklab(table / 255)[:, 0]


def seen(table, matrix):
    linear = (table / 255) ** 2.2 @ matrix.T
    return oklab(np.clip(linear, 0, 1) ** (1 / 2.2))


@pytest.mark.parametrize("table", TABLES)
def test_shape_and_safety(table):
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_oklab_known_values_and_inverse():
    assert np.allclose(oklab([1, 1, 1]), [1, 0, 0], atol=1e-6)
    assert np.allclose(oklab([1, 0, 0]), [0.62796, 0.22486, 0.12585], atol=1e-4)
    colors = np.random.default_rng(0).random((50, 3))
    assert np.allclose(srgb(oklab(colors)), colors, atol=1e-6)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_sequential_lightness_is_a_straight_line(theme):
    light = lightness(sequential(theme))
    line = np.linspace(light[0], light[-1], 256)
    assert np.abs(light - line).max() < 0.012
    # 8-bit rounding moves neighbors, so look at steps of four
    assert (np.sign(np.diff(light[::4])) == np.sign(light[-1] - light[0])).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_diverging_is_symmetric_about_a_gray_zero(theme):
    table = diverging(theme)
    light = lightness(table)
    assert np.ptp(table[ZERO].astype(int)) <= 1
    assert np.array_equal(table[0], table[1])
    k = np.arange(128)
    assert np.abs(light[ZERO + k] - light[ZERO - k]).max() < 0.012
    assert np.abs(light[ZERO:] - np.linspace(light[ZERO], light[255], 128)).max() < 0.012
    lab = oklab(table / 255)
    assert (lab[ZERO + 20 :, 2] > 0).all()  # above zero is on the yellow side
    assert (lab[1 : ZERO - 20, 2] < 0).all()  # below on the blue side


@pytest.mark.parametrize("matrix", [DEUTERANOPIA, PROTANOPIA])
def test_signs_differ_for_people_who_confuse_red_and_green(matrix):
    for theme in ("light", "dark"):
        lab = seen(diverging(theme), matrix)
        for k in (32, 64, 127):
            normal = np.linalg.norm(np.subtract(*oklab(diverging(theme)[[ZERO + k, ZERO - k]] / 255)))
            assert np.linalg.norm(lab[ZERO + k] - lab[ZERO - k]) > 0.55 * normal
        strengths = seen(sequential(theme), matrix)[::8, 0]
        assert (np.diff(strengths) * (1 if theme == "dark" else -1) > 0).all()
