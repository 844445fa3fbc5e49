"""Transforms: identity, whole shifts against torch.roll and reflection, a bilinear resampling written out, rows, seeds."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import convoscope as cs
from convoscope.images.base import Draws, Space, Transform
from convoscope.images.transforms import Crops, Jitter, Noise, RandomCrop, Spin, gathered, mirrored, resampled, standard

CPU = torch.device("cpu")


def pixels(rows: int = 3, size: tuple[int, int] = (10, 13), channels: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(rows, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(x: Tensor, seed: int = 0, keys: Any = None) -> Draws:
    space = Space(x.shape[1], (x.shape[2], x.shape[3]), CPU, x.dtype)
    return Draws(seed, keys or tuple((k,) for k in range(len(x))), space)


class Known(Draws):
    """Draws whose uniform numbers are given."""

    def uniform(self, shape: tuple[int, ...], draw: Any) -> Tensor:
        return torch.tensor(self.seed, dtype=torch.float64).view(-1, *shape)

    normal = uniform


def known(x: Tensor, *uniform: Any) -> Known:
    found = draws(x)
    return Known(uniform, found.keys, found.space)  # type: ignore[arg-type]


IDENTITIES = [Jitter(0), Jitter(0, "wrap"), Spin(0, 0), Spin(degrees=0.0, scale=0.0), Noise(0), RandomCrop((10, 13))]
MOVES = [Jitter(3), Jitter(4, "wrap"), Spin(), Spin(30, 0.3), Crops(), Crops(0.5), *standard(224), *standard(32)]
SHAPES = [*MOVES, Noise(), Noise(0.2, "uniform")]


@pytest.mark.parametrize("transform", IDENTITIES, ids=str)
def test_settings_that_move_nothing_move_nothing(transform: Transform) -> None:
    x = pixels()
    assert torch.equal(transform(x, draws(x), 0), x)


@pytest.mark.parametrize("most", [1, 3, 9])
def test_a_shift_is_whole(most: int) -> None:
    """Uniform draws at the two ends and in the middle are the largest shifts either way, and none."""
    x = pixels()
    shifts = [(-most, most), (0, 0), (most, -most)]
    drawn = known(x, (0.0, 0.999999), (0.5, 0.5), (0.999999, 0.0))
    wrapped = Jitter(most, "wrap")(x, drawn, 0)
    reflected = Jitter(most)(x, drawn, 0)
    wide = F.pad(x, (most,) * 4, mode="reflect")
    for row, shift in enumerate(shifts):
        assert torch.equal(wrapped[row], torch.roll(x[row], shift, (1, 2)))
        assert torch.equal(reflected[row], torch.roll(wide[row], shift, (1, 2))[:, most:-most, most:-most])


def test_shifts_are_uniform() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = 1
    places = [Jitter(1)(x, draws(x, seed), 0).flatten().argmax().item() for seed in range(360)]
    counts = torch.bincount(torch.tensor(places), minlength=64).view(8, 8)
    assert counts[3:6, 3:6].sum() == 360
    assert (counts[3:6, 3:6] > 15).all()


def test_the_margin_is_torchs() -> None:
    x = pixels()
    assert torch.equal(mirrored(x, 4), F.pad(x, (4,) * 4, mode="reflect"))


def bilinear(row: Tensor, y: float, x: float) -> Tensor:
    """The value between four pixels, of a picture mirrored about its edges."""

    def inside(place: float, size: int) -> float:
        place = abs(place + 0.5) % (2 * size)
        return min(max((2 * size - place if place > size else place) - 0.5, 0), size - 1)

    height, width = row.shape[1:]
    y, x = inside(y, height), inside(x, width)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    a, b = y - top, x - left
    upper = (1 - b) * row[:, top, left] + b * row[:, top, left + 1]
    return (1 - a) * upper + a * ((1 - b) * row[:, top + 1, left] + b * row[:, top + 1, left + 1])


@pytest.mark.parametrize("size", [(9, 9), (8, 13)])
def test_a_turn_is_about_the_middle_and_in_pixels(size: tuple[int, int]) -> None:
    """Every pixel written out: the place it comes from is turned and scaled about the middle of the picture, also an oblong."""
    x = pixels(2, size)
    uniform = ((0.9, 0.2), (0.1, 1.0))
    found = Spin(40, 0.25)(x, known(x, *uniform), 0)
    middle = (size[0] - 1) / 2, (size[1] - 1) / 2
    for row, (first, second) in enumerate(uniform):
        angle, zoom = math.radians(40) * (2 * first - 1), 1 + 0.25 * (2 * second - 1)
        for i in range(size[0]):
            for j in range(size[1]):
                down, right = (i - middle[0]) / zoom, (j - middle[1]) / zoom
                y = middle[0] + math.sin(angle) * right + math.cos(angle) * down
                across = middle[1] + math.cos(angle) * right - math.sin(angle) * down
                assert torch.allclose(found[row, :, i, j], bilinear(x[row], y, across), atol=1e-9)


def test_a_quarter_turn_is_a_turn_of_the_array() -> None:
    x = pixels(1, (8, 8))
    assert torch.allclose(Spin(90, 0)(x, known(x, (1.0, 0.5)), 0), torch.rot90(x, 1, (2, 3)), atol=1e-12)


def test_there_are_no_black_borders() -> None:
    x = torch.ones(4, 3, 20, 30)
    for transform in MOVES:
        assert torch.allclose(transform(x, draws(x), 3), x, atol=1e-6)


@pytest.mark.parametrize("transform", SHAPES, ids=str)
def test_rows_are_moved_on_their_own(transform: Transform) -> None:
    x = pixels(4, (24, 31))
    whole = transform(x, draws(x), 7)
    assert whole.shape == x.shape
    for row in range(4):
        alone = x[row : row + 1]
        assert torch.equal(transform(alone, draws(alone, keys=((row,),)), 7), whole[row : row + 1])
    same = x[:1].expand(4, -1, -1, -1)
    assert not torch.equal(transform(same, draws(same), 7)[0], transform(same, draws(same), 7)[1])


@pytest.mark.parametrize("transform", SHAPES, ids=str)
def test_seed_and_step_say_how(transform: Transform) -> None:
    x = pixels(2, (24, 31))
    found = [transform(x, draws(x, seed), step) for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


@pytest.mark.parametrize(
    "transform", [Jitter(2), Jitter(2, "wrap"), Spin(20, 0.2), Crops(0.6, size=4), RandomCrop(3), Noise()], ids=str
)
def test_gradients(transform: Transform) -> None:
    x = pixels(2, (5, 6), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: transform(p, draws(x), 0), [x])


def test_a_box_is_where_it_was_drawn() -> None:
    """Half the picture, moved by a quarter of it: whole pixels, and boxes that would reach over the border end there."""
    x = pixels(3, (8, 16))
    drawn = known(x, (0.0, 0.0, 0.0), (0.0, -1.0, 1.0), (0.0, 9.0, -9.0))
    found = Crops(0.5, spread=0.1, around=0.25, size=(4, 8))(x, drawn, 0)
    assert torch.allclose(found[0], x[0, :, 2:6, 4:12], atol=1e-12)
    assert torch.allclose(found[1], x[1, :, 0:4, 8:16], atol=1e-12)
    assert torch.allclose(found[2], x[2, :, 4:8, 0:8], atol=1e-12)
    whole = Crops(1.0, spread=0, around=0.3)(x, draws(x), 0)
    assert torch.allclose(whole, x, atol=1e-12)
    shares = torch.arange(16).double().expand(1, 1, 16, 16)
    widths = [float(Crops(0.5, 0.2)(shares, draws(shares, s), 0).diff(dim=3).mean()) for s in range(200)]
    assert 0.48 < sum(widths) / 200 < 0.52  # the mean share
    assert 0.15 < torch.tensor(widths).std() < 0.25


def test_a_window_is_whole() -> None:
    x = pixels(3, (6, 9))
    found = RandomCrop((4, 5))(x, known(x, (0.0, 0.0), (0.5, 0.5), (0.999, 0.999)), 0)
    for row, (top, left) in enumerate(((0, 0), (1, 2), (2, 4))):
        assert torch.equal(found[row], x[row, :, top : top + 4, left : left + 5])
    with pytest.raises(cs.UsageError, match="a window of 7 x 7 takes a larger picture; got 6 x 9"):
        RandomCrop(7)(x, draws(x), 0)


def test_noise_is_as_much_as_it_says() -> None:
    x = torch.full((2, 3, 40, 40), 0.5, dtype=torch.float64)
    for distribution, deviation in (("normal", 0.3), ("uniform", 0.3 / math.sqrt(3))):
        noise = Noise(0.3, distribution)(x, draws(x), 0) - x  # type: ignore[arg-type]
        assert noise.std() == pytest.approx(deviation, rel=0.03)
        assert noise.mean() == pytest.approx(0, abs=0.01)
    assert Noise(0.3, "uniform")(x, draws(x), 0).sub(x).abs().max() <= 0.3


def test_resampling_nothing() -> None:
    x = pixels()
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(3, 2, 3)
    assert torch.allclose(resampled(x, theta, (10, 13)), x, atol=1e-12)


def test_what_cannot_be_moved() -> None:
    x = pixels(size=(4, 9))
    with pytest.raises(cs.UsageError, match="jitter by 4 pixels takes a larger picture; got 4 x 9"):
        Jitter(4)(x, draws(x), 0)
    with pytest.raises(cs.UsageError, match="expected a scale under 1"):
        Spin(scale=1)(x, draws(x), 0)
    for side in (1, 2, 8, 28, 32, 64, 96, 224, 1000):
        small = pixels(1, (side, side), 1)
        for transform in standard(side):
            small = transform(small, draws(small), 0)
        assert small.shape[2:] == (side, side)


def test_gathering_is_grid_sample() -> None:
    x = pixels(3, (7, 9))
    grid = 2.5 * (2 * torch.rand(3, 5, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)
    expected = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    assert torch.allclose(gathered(x, grid), expected, atol=1e-12)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gathered(p, grid), [leaf])
