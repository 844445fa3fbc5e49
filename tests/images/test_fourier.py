"""Fourier pictures: against a sum of waves written out, there and back, colors by the right matrix, rows on their own."""

import math

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.images.base import Draws, Space
from convoscope.images.color import NATURAL, color_axes, colored
from convoscope.images.fourier import Fourier, frequencies

CPU = torch.device("cpu")
SIZES = [(8, 8), (7, 9), (6, 11), (9, 6), (1, 5), (4, 1)]


def space(size: tuple[int, int], channels: int = 3) -> Space:
    return Space(channels, size, CPU, torch.float64)


def pixels(size: tuple[int, int], channels: int = 3, rows: int = 2, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 0.05 + 0.9 * torch.rand(rows, channels, *size, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_picture_of_any_size_has_its_parameters(size: tuple[int, int], channels: int) -> None:
    image, where, wanted = Fourier(), space(size, channels), pixels(size, channels)
    assert torch.allclose(image.pixels(image.encode(wanted, where), where), wanted, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_a_parameter_is_a_wave_of_its_frequency(size: tuple[int, int]) -> None:
    """One entry of the spectrum, written out: contrast x 1/f x 2 cos(2 pi (u y / h + v x / w)) / sqrt(h w), in logits."""
    height, width = size
    where, image, u, v = space(size, 1), Fourier(), 2, 1
    parameters = {k: torch.zeros_like(p) for k, p in image.begin(where, Draws(0, ((0,),), where)).items()}
    parameters["spectrum"][0, 0, u, v, 0] = 3.0
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    frequency = math.hypot(u / height, v / width)
    wave = 3 * 0.25 / frequency * 2 * torch.cos(2 * math.pi * (u * y / height + v * x / width)) / math.sqrt(height * width)
    assert torch.allclose(torch.logit(image.pixels(parameters, where))[0, 0], wave, atol=1e-12)


def test_frequencies_are_in_waves_per_pixel() -> None:
    found = frequencies((5, 6), CPU, torch.float64)
    rows = torch.tensor([0, 1, 2, -2, -1]).double() / 5
    columns = torch.tensor([0, 1, 2, 3]).double() / 6
    expected = (rows[:, None] ** 2 + columns**2).sqrt()
    expected[0, 0] = 1 / 6
    assert torch.allclose(found, expected)


def test_decay_is_the_slope_of_the_spectrum() -> None:
    where, wanted = space((8, 8)), pixels((8, 8))
    flat, steep = (Fourier(decay=d).encode(wanted, where)["spectrum"] for d in (0.0, 1.5))
    assert torch.allclose(steep, flat * frequencies((8, 8), CPU, torch.float64)[..., None] ** 1.5, atol=1e-12)


def test_colors_are_the_axes_of_natural_pictures_and_not_their_transpose() -> None:
    """The first axis is brightness: it moves red, green and blue alike; the longest axis has length 1."""
    axes = color_axes(True, space((2, 2)))
    assert axes is not None
    bright = colored(torch.tensor([1.0, 0, 0]).double().view(1, 3, 1, 1), axes).flatten()
    assert torch.allclose(bright, torch.tensor([0.26, 0.27, 0.27]).double() / math.hypot(0.26, 0.27, 0.27))
    yellow = colored(torch.tensor([0, -1.0, 0]).double().view(1, 3, 1, 1), axes).flatten()
    assert yellow[0] < 0 < yellow[2]
    assert torch.allclose(axes * math.hypot(0.26, 0.27, 0.27), torch.tensor(NATURAL).double())


def test_own_axes_of_color_and_none() -> None:
    where, wanted = space((6, 5), 4), pixels((6, 5), 4)
    axes = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = Fourier(decorrelate=False)
    mixed = Fourier(decorrelate=axes)
    found = {"spectrum": mixed.encode(wanted, where)["spectrum"]}
    assert torch.allclose(mixed.pixels(found, where), wanted, atol=1e-10)
    moved = {"spectrum": torch.einsum("dc,bchwk->bdhwk", axes, found["spectrum"])}
    assert torch.allclose(plain.pixels(moved, where), wanted, atol=1e-10)
    assert torch.equal(Fourier().encode(wanted, where)["spectrum"], plain.encode(wanted, where)["spectrum"])
    with pytest.raises(cs.UsageError, match=r"here 4 x 4; got shape \(3, 3\)"):
        Fourier(decorrelate=torch.eye(3)).encode(wanted, where)


def test_rows_are_their_own_and_repeat() -> None:
    where, image = space((9, 8)), Fourier()
    both = image.begin(where, Draws(5, ((0,), (1,)), where))
    alone = image.begin(where, Draws(5, ((1,),), where))
    assert torch.equal(both["spectrum"][1:], alone["spectrum"])
    assert not torch.equal(both["spectrum"][0], both["spectrum"][1])
    assert torch.equal(image.pixels(both, where)[1:], image.pixels(alone, where))
    assert (image.pixels(both, where) - 0.5).abs().max() < 0.1  # a start is nearly gray


def test_gradients_reach_all_waves() -> None:
    where, image = space((5, 4), 2), Fourier(decay=0.7)
    spectrum = image.encode(pixels((5, 4), 2), where)["spectrum"].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: image.pixels({"spectrum": s}, where), [spectrum])


def test_after_a_look_in_inference_mode_gradients_still_work() -> None:
    where, image = space((10, 11), 3), Fourier(decay=0.9)
    with torch.inference_mode():
        image.pixels(image.begin(where, Draws(0, ((0,),), where)), where)
    spectrum = image.begin(where, Draws(0, ((0,),), where))["spectrum"].requires_grad_()
    image.pixels({"spectrum": spectrum}, where).sum().backward()
    assert spectrum.grad is not None


def test_by_name() -> None:
    from convoscope.images import of

    assert of("image", "fourier:size=(12,16),decay=0.5") == cs.Fourier((12, 16), decay=0.5)
    assert cs.Fourier.from_dict(cs.Fourier(decorrelate=torch.eye(2)).to_dict()) == cs.Fourier(decorrelate=torch.eye(2))
