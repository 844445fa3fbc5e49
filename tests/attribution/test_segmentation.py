"""Segmentation from saliency: a drawn object is found exactly, and what cannot be segmented says so."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convoscope as cs

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
SIDE = 64


class Reds(nn.Module):
    """Class 0 is how much red there is; class 1 is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 1, 3, padding=1)
        self.body.weight.data[:] = -1 / 9
        self.body.weight.data[:, 0] = 1 / 9
        self.body.bias.data[:] = 0

    def forward(self, x: Tensor) -> Tensor:
        red = self.body(x).relu().square().mean((1, 2, 3))
        return torch.stack([red, 0 * red], 1)


@pytest.fixture(scope="module")
def net() -> cs.Network:
    return cs.Network(Reds(), size=SIDE, categories=["red", "nothing"])


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Tensor]:
    """A red disk (and a small red dot) on a noisy green ground, twice at other places; where the disks are."""
    g = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(2, 3, SIDE, SIDE, generator=g)
    x[:, 1] += 0.5
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disks = torch.stack([(rows - 22) ** 2 + (columns - 24) ** 2 < 180, (rows - 40) ** 2 + (columns - 36) ** 2 < 120])
    for i, disk in enumerate(disks):
        for area in (disk, (rows > 57) & (rows < 61) & (columns > 57) & (columns < 61)):
            x[i, 0][area] += 0.8
            x[i, 1][area] -= 0.45
    return x, disks


def overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("method", ["gradient", "input-x-gradient", "occlusion:window=8", "grad-cam:layer=body"])
def test_a_drawn_object_is_found(net: cs.Network, scene: tuple[Tensor, Tensor], method: str) -> None:
    x, disks = scene
    found = cs.segment(cs.explain(net, x, method, "red"))
    assert found.mask.dtype == torch.bool
    assert found.empty == ("", "")
    for mask, disk in zip(found.mask, disks, strict=True):
        assert overlap(mask, disk) > 0.9


def test_the_largest_piece_alone_or_all(net: cs.Network, scene: tuple[Tensor, Tensor]) -> None:
    a = cs.explain(net, scene[0], "gradient", "red")
    largest, every = cs.segment(a), cs.segment(a, largest=False, smooth=0)
    assert not largest.mask[0, 59, 59]
    assert every.mask[0, 59, 59]
    assert torch.equal(cs.segment(a).mask, largest.mask)


def test_what_speaks_against_the_class_seeds_no_object(net: cs.Network, scene: tuple[Tensor, Tensor]) -> None:
    x, _ = scene
    a = cs.explain(net, x, "input-x-gradient", "red")
    assert a.values.amin() < 0
    assert torch.equal(cs.segment(a).saliency, a.heatmap().clamp(min=0))
    assert torch.equal(cs.segment(a, by="max-abs").saliency, a.heatmap("max-abs"))
    a = cs.explain(net, x, "gradient", "red")
    assert torch.equal(cs.segment(a).saliency, a.heatmap("max-abs"))


def test_a_constant_map_gives_an_empty_mask_and_says_so(net: cs.Network, scene: tuple[Tensor, Tensor]) -> None:
    x = scene[0].clone()
    x[1] = 0
    found = cs.segment(cs.explain(net, x, "gradient", "red"))
    assert found.empty[0] == ""
    assert "constant" in found.empty[1]
    assert found.mask[0].any()
    assert not found.mask[1].any()
    assert found.image().height > 2 * 224


def test_what_grabcut_cannot_do_is_an_empty_mask_too(
    net: cs.Network, scene: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise cv2.error("no\nsamples")

    monkeypatch.setattr(cv2, "grabCut", broken)
    found = cs.segment(cs.explain(net, scene[0], "gradient", "red"))
    assert not found.mask.any()
    assert found.empty[0] == "GrabCut failed: no samples"


def test_pictures_and_files(net: cs.Network, scene: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = cs.segment(cs.explain(net, scene[0], "gradient", "red"))
    cutout = found.cutout(1)
    assert (cutout.mode, cutout.size) == ("RGBA", (SIDE, SIDE))
    assert torch.equal(torch.from_numpy(np.asarray(cutout)[..., 3] > 0), found.mask[1])
    with Image.open(found.save(tmp_path / "a.png", 0, title="red")) as opened:
        assert opened.width > 4 * 2 * 240
    with pytest.raises(cs.UsageError, match=r"name it \.png"):
        found.save(tmp_path / "a.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "settings", [{"foreground": 0.2}, {"foreground": 1.5}, {"iterations": 0}, {"smooth": -1.0}, {"by": "largest"}]
)
def test_settings_are_checked(net: cs.Network, scene: tuple[Tensor, Tensor], settings: dict) -> None:
    with pytest.raises(cs.UsageError):
        cs.segment(cs.explain(net, scene[0], "gradient", "red"), **settings)


def test_without_opencv_the_extra_is_named(
    net: cs.Network, scene: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(cs.UsageError, match=r"pip install 'convoscope\[segmentation\]'"):
        cs.segment(cs.explain(net, scene[0], "gradient", "red"))
