"""Maps are drawn true to sign and place, and never hide the photograph."""

import numpy as np
import pytest

from convoscope.show.colormap import ZERO, diverging, oklab, sequential
from convoscope.show.overlay import (
    as_bytes,
    backdrop,
    colorize,
    enlarged,
    indices,
    limit,
    overlay,
    resample,
)

rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_limit_is_symmetric_and_robust():
    values = rng.normal(size=(100, 100))
    assert limit(values) == limit(-values) == pytest.approx(np.percentile(np.abs(values), 99.5))
    values[0, 0] = 1e9
    assert limit(values) < 10
    assert limit(np.zeros((5, 5))) == 0
    sparse = np.zeros((224, 224))
    sparse[3, 3] = -2
    assert limit(sparse) == 2


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.zeros(3), np.zeros((1, 2, 3))])
def test_what_cannot_be_drawn(bad):
    with pytest.raises(ValueError, match=r"NaN or infinite|expected"):
        limit(bad)
    with pytest.raises(ValueError, match=r"NaN or infinite|expected"):
        colorize(bad, limit=1.0, signed=True)
    with pytest.raises(ValueError, match="expected 0 or more"):
        colorize(np.zeros((2, 2)), limit=-1.0, signed=True)


def test_resample_has_half_pixel_centers():
    # Two samples over four pixels: centers at 1/4 and 3/4 of the width, held constant outside them.
    assert np.allclose(resample([[0.0, 4.0]], 1, 4), [[0, 1, 3, 4]])
    assert np.allclose(resample([[0.0, 4.0]], 3, 4), np.tile([0, 1, 3, 4], (3, 1)))
    v = rng.normal(size=(7, 5))
    assert np.allclose(resample(v, 7, 5), v)
    assert np.allclose(resample(v, 70, 50)[::-1, ::-1], resample(v[::-1, ::-1], 70, 50))
    assert np.allclose(resample(np.full((3, 3), 2.0), 10, 11), 2)


def test_resample_equals_torch():
    torch = pytest.importorskip("torch")
    v = rng.normal(size=(7, 9))
    for size in ((224, 200), (4, 3), (7, 20)):
        there = torch.nn.functional.interpolate(torch.tensor(v)[None, None], size, mode="bilinear", align_corners=False)
        assert np.allclose(resample(v, *size), there[0, 0].numpy(), atol=1e-12)


def test_colorize():
    values = np.array([[-3.0, -1.0, 0.0, 1.0, 3.0]])
    colors = colorize(values, limit=2, signed=True)
    table = diverging()
    assert np.array_equal(colors[0, 0], table[1])
    assert np.array_equal(colors[0, 2], table[ZERO])
    assert np.array_equal(colors[0, 4], table[255])
    assert indices(values, limit=2, signed=True)[0].tolist() == [1, 64, 128, 192, 255]
    assert indices(values, limit=2, signed=False)[0].tolist() == [0, 0, 0, 128, 255]
    assert np.array_equal(colorize(values, limit=2, signed=False)[0, 4], sequential()[255])
    assert (colorize(np.zeros((3, 3)), limit=0, signed=True) == table[ZERO]).all()


def test_overlay_of_nothing_is_the_gray_photograph():
    out = overlay(np.zeros((7, 7)), PHOTO, limit=0.0, signed=True)
    assert out.shape == PHOTO.shape
    assert np.abs(oklab(out / 255)[..., 1:]).max() < 0.004
    assert np.array_equal(out, backdrop(PHOTO))
    assert np.array_equal(out, overlay(np.zeros((7, 7)), PHOTO, limit=1.0, signed=False))


@pytest.mark.parametrize("signed", [True, False])
def test_overlay_shows_the_map_and_the_photograph(signed):
    values = np.zeros((40, 56))
    values[:, :28] = 1
    out = oklab(overlay(values, PHOTO, limit=1.0, signed=signed) / 255)
    assert np.hypot(out[:, :28, 1], out[:, :28, 2]).min() > 0.04  # colored on the left
    assert np.hypot(out[:, 29:, 1], out[:, 29:, 2]).max() < 0.004  # gray on the right
    before = oklab(backdrop(PHOTO) / 255)[:, :28, 0].ravel()
    assert np.corrcoef(before, out[:, :28, 0].ravel())[0, 1] > 0.95  # the photograph is still there


def test_overlay_sign_and_place():
    values = np.array([[1.0, -1.0], [0.0, 0.0]])
    lab = oklab(overlay(values, np.full((20, 20, 3), 128, np.uint8), limit=1.0, signed=True) / 255)
    assert (lab[:4, :4, 2] > 0.03).all()
    assert (lab[:4, 16:, 2] < -0.03).all()
    assert np.abs(lab[16:, :, 1:]).max() < 0.004


def test_pictures_of_every_kind():
    assert np.array_equal(as_bytes(PHOTO / 255), PHOTO)
    assert as_bytes(PHOTO[..., 0]).shape == (40, 56, 3)
    assert as_bytes(PHOTO[..., :1]).shape == (40, 56, 3)
    assert overlay(np.ones((2, 2)), PHOTO[..., 0] / 255.0, limit=1, signed=False).shape == (40, 56, 3)
    with pytest.raises(ValueError, match="expected"):
        as_bytes(PHOTO[..., :2])
    assert enlarged(PHOTO, 200).shape == (200, 280, 3)
    assert enlarged(PHOTO, 30) is PHOTO
