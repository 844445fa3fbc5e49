"""Pixels kept in 0..1 by a sigmoid, and by clipping."""

import torch

import convoscope as cs
from convoscope.images.base import Draws, Space

SPACE = Space(2, (4, 5), torch.device("cpu"), torch.float64)
WANTED = 0.02 + 0.96 * torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_there_and_back() -> None:
    for image in (cs.Pixels(), cs.Pixels(bound="clip")):
        assert torch.allclose(image.pixels(image.encode(WANTED, SPACE), SPACE), WANTED, atol=1e-12)


def test_clipped_pixels_are_the_parameters() -> None:
    image = cs.Pixels(bound="clip", deviation=0.3)
    parameters = image.begin(SPACE, Draws(0, ((0,), (1,)), SPACE))
    found = image.pixels(parameters, SPACE).clone()
    assert found.min() < 0.3
    assert 0.7 < found.max() <= 1
    parameters["pixels"].add_(0.6)
    image.settle(parameters, SPACE, 0)
    assert torch.equal(image.pixels(parameters, SPACE), (found + 0.6).clamp(max=1))
    assert torch.equal(image.encode(2 * WANTED - 0.5, SPACE)["pixels"], (2 * WANTED - 0.5).clamp(0, 1))


def test_a_start_is_nearly_gray() -> None:
    for bound, slope in (("sigmoid", 4), ("clip", 1)):
        image = cs.Pixels(bound=bound)  # type: ignore[arg-type]
        found = image.pixels(image.begin(SPACE, Draws(0, ((0,),), SPACE)), SPACE)
        assert 0.005 < slope * (found - 0.5).std() < 0.02
