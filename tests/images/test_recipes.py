"""On a real network: transforms make pictures hold when moved, and waves make them better than pixels."""

from pathlib import Path

import pytest

import convoscope as cs

UNITS = [cs.Channel("layer3.1.bn2", unit) for unit in (0, 1, 5)]


@pytest.fixture(scope="module")
def network(torch_home: Path) -> cs.Network:
    return cs.load("torchvision:resnet18")


def test_transforms_make_pictures_hold_when_moved(network: cs.Network) -> None:
    moved = cs.maximize(network, UNITS, cs.Fourier(96), steps=24)
    still = cs.maximize(network, UNITS, cs.Fourier(96), steps=24, transforms=())
    pixels = cs.maximize(network, UNITS, cs.Pixels(96), steps=24)
    for k in range(len(UNITS)):
        assert still.scores[k] > moved.scores[k]
        assert still.held_out[k] < moved.held_out[k]
        assert pixels.held_out[k] < moved.held_out[k]
        assert moved.held_out[k] > 0.8 * moved.scores[k]
