"""A real network on a real photograph of a dog above and a cat below: maps lie on the animal that is asked for."""

from pathlib import Path

import pytest
import torch

import convoscope as cs

# Rows and columns of each animal in the 224 x 224 input (the picture, scaled by 8/7 and cropped), without where both are.
PLACES = {"boxer": (slice(0, 122), slice(72, 178)), "tiger cat": (slice(146, 224), slice(38, 214))}


@pytest.fixture(scope="module")
def network(torch_home: Path) -> cs.Network:
    return cs.load("torchvision:resnet18")


@pytest.fixture(scope="module")
def photograph(network: cs.Network, testdata: Path) -> torch.Tensor:
    return network.read(testdata / "classic_images" / "both.png")


def shares(network: cs.Network, x: torch.Tensor, method: cs.Method, category: str) -> dict[str, float]:
    """The fraction of the positive part of a map that lies on each animal."""
    positive = cs.explain(network, x, method, category).heatmap()[0].clamp(min=0)
    return {animal: float(positive[place].sum() / positive.sum()) for animal, place in PLACES.items()}


@pytest.mark.parametrize(("category", "other"), [("boxer", "tiger cat"), ("tiger cat", "boxer")])
def test_grad_cam_lies_on_the_animal(network: cs.Network, photograph: torch.Tensor, category: str, other: str) -> None:
    """Each box is a quarter of the picture; more than half of the map, and its peak, are in the right one."""
    found = shares(network, photograph, cs.GradCAM(), category)
    assert found[category] > 0.5
    assert found[category] > 2.5 * found[other]
    heatmap = cs.explain(network, photograph, cs.GradCAM(), category).heatmap()[0]
    inside = torch.zeros_like(heatmap, dtype=torch.bool)
    inside[PLACES[category]] = True
    assert bool(inside.flatten()[heatmap.argmax()])


FINE = (
    cs.LRP(), cs.LRP(composite="epsilon"), cs.IntegratedGradients(steps=8), cs.GuidedBackprop(),
    cs.Occlusion(window=64, stride=40),
)  # fmt: skip


@pytest.mark.parametrize("method", FINE, ids=str)
def test_share_moves_with_the_target(network: cs.Network, photograph: torch.Tensor, method: cs.Method) -> None:
    """Asked for the other animal, a map moves at least a tenth of its positive part there: these follow edges as well."""
    boxer, cat = (shares(network, photograph, method, c) for c in PLACES)
    assert boxer["boxer"] > cat["boxer"] + 0.1
    assert cat["tiger cat"] > boxer["tiger cat"] + 0.1
