"""Universal perturbations: one change for all, within bounds, judged on images it was not made from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convoscope as cs

SIDE = 6
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)


def network() -> cs.Network:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)]
    return cs.Network(nn.Sequential(*parts).double(), SIDE, MEAN, STD)


def inputs(count: int = 40) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return network().normalize(torch.rand(count, 3, SIDE, SIDE, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize(("by", "norm", "epsilon"), [("gradient", "linf", 0.4), ("gradient", "l2", 4.0)])
def test_it_fools_on_images_it_has_not_seen(by: str, norm: str, epsilon: float) -> None:
    net, x = network(), inputs()
    found = cs.attack(net, x, "universal", by=by, norm=norm, epsilon=epsilon, passes=4)
    size = found.universal.abs().amax() if norm == "linf" else found.universal.norm()
    assert float(size) <= epsilon * (1 + 1e-12)
    assert found.notes["images"] == 30
    assert found.notes["held_out"] == 10
    assert len(found) == 10
    assert found.notes["held_out_fooling_rate"] == float(found.success.double().mean())
    drawn = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = epsilon * (drawn.sign() if norm == "linf" else drawn / drawn.norm())
    random = net.module(net.normalize((found.clean + noise).clamp(0, 1))).argmax(1) != found.goal
    assert found.notes["held_out_fooling_rate"] > float(random.double().mean()) + 0.1
    assert found.notes["fooling_rate"] >= 0.6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_paper_s_way_goes_to_a_target_as_well(norm: str) -> None:
    epsilon = 0.4 if norm == "linf" else 4.0
    found = cs.attack(network(), inputs(), "universal", 1, by="deep-fool", norm=norm, epsilon=epsilon, passes=4)
    before = (found.before.argmax(1) == 1).double().mean()
    assert found.notes["held_out_fooling_rate"] >= max(0.8, float(before) + 0.3)
    assert found.notes["fooling_rate"] == max(found.notes["curve"])


def test_each_image_carries_the_same_change_cut_at_the_range() -> None:
    net, x = network(), inputs()
    found = cs.attack(net, x, "universal", epsilon=0.3, passes=1)
    assert torch.allclose(found.pixels, (found.clean + found.universal).clamp(0, 1), atol=1e-12)
    again = net.module(net.normalize(found.pixels)).argmax(1) != net.module(net.normalize(found.clean)).argmax(1)
    assert torch.equal(found.success, again)


def test_to_a_target_and_with_a_seed() -> None:
    net, x = network(), inputs()
    a, b, c = (cs.attack(net, x, "universal", 1, epsilon=0.5, passes=3, seed=s) for s in (0, 0, 1))
    assert a.notes["held_out_fooling_rate"] >= 0.9
    assert a.predictions("after")[0][0].index == 1
    assert torch.equal(a.universal, b.universal)
    assert not torch.equal(a.universal, c.universal)


def test_over_a_folder_of_pictures(tmp_path: Path) -> None:
    net = network()
    for i, p in enumerate(torch.rand(12, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))):
        Image.fromarray((p * 255).to(torch.uint8).numpy()).save(tmp_path / f"{i:02}.png")
    found = cs.attack(net, str(tmp_path), "universal", epsilon=0.3, passes=1, batch=4)
    assert len(found) == 3
    assert found.save(tmp_path / "universal.png").is_file()
    assert found.to_dict()["notes"]["images"] == 9
    assert "universal" in found.tensors()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": [1, 2]}, "one class"),
        ({"labels": 1}, "no labels"),
        ({"held_out": 0.0}, "none to judge"),
        ({"held_out": 1.0}, "none to make"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(cs.UsageError, match=words):
        cs.attack(network(), inputs(8), "universal", **settings)
