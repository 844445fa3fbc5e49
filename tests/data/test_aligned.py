"""Dense labels lie where the network has the pixels."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import convoscope as cs
from convoscope.data import aligned
from convoscope.data.aligned import fit_places, measured, places
from convoscope.data.tensors import fit

SIZES = [(48, 64), (64, 48), (43, 64), (50, 33), (22, 22), (100, 130), (32, 32), (33, 100), (12, 9)]


def network(size: int | tuple[int, int] | None = None, transform: Any = None, channels: int = 3) -> cs.Network:
    return cs.Network(torch.nn.Conv2d(channels, 1, 1), size, 0.5, 0.25, transform=transform)


def regions(size: tuple[int, int], count: int = 3) -> Tensor:
    """Big regions 1, 2, ... of a picture, a different number of them down and across."""
    rows = torch.arange(size[0]) * count // size[0]
    columns = torch.arange(size[1]) * (count + 1) // size[1]
    return (rows[:, None] * (count + 1) + columns + 1).int()


class Painted(cs.Dataset):
    """One picture whose gray says its label: label k is gray 15 k."""

    name = "painted"

    def __init__(self, labels: Tensor, tensor: bool = False) -> None:
        self.labels, self.tensor = labels, tensor
        self.concepts = tuple(cs.Concept(str(k), "object") for k in range(1, 17))

    def __len__(self) -> int:
        return 1

    def key(self, i: int) -> str:
        return "painted"

    def picture(self, i: int) -> Any:
        gray = (self.labels * 15).to(torch.uint8)
        return gray.expand(3, -1, -1) if self.tensor else Image.fromarray(gray.numpy()).convert("RGB")

    def segments(self, i: int) -> Tensor:
        return torch.stack([self.labels, torch.zeros_like(self.labels)])


def agrees(net: cs.Network, data: Painted) -> float:
    """The share of the input's pixels whose gray is that of their label, of those that no edge of a region touches."""
    found = cs.segments_for(net, data, 0)
    seen = net.picture(net.read(data.picture(0)))[0].mean(0)
    assert found.shape == (2, *seen.shape)
    assert not found[1].any()
    around = torch.nn.functional.unfold(found[:1].float()[None], 5, padding=2).view(25, *seen.shape)
    inner = (around == found[0]).all(0) & (found[0] > 0)
    assert inner.float().mean() > 0.25
    return float(((seen * 255 / 15 - found[0]).abs() < 0.2)[inner].float().mean())


# ---- the network's own reading
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("to", [(32, 32), (20, 32), (96, 40)])
def test_labels_follow_fit_to_the_pixel(size: tuple[int, int], to: tuple[int, int]) -> None:
    found = fit_places(size, to)
    scale = max(to[0] / size[0], to[1] / size[1])
    for axis, line in enumerate((found.rows, found.columns)):
        new = max(to[axis], round(size[axis] * scale))
        top = (new - to[axis]) // 2
        assert line.tolist() == [math.floor((r + top + 0.5) * size[axis] / new) for r in range(to[axis])]
    # coordinates sent through fit itself come out at the same places, but for the border that kernels are cut off at
    for axis, line in enumerate((found.rows, found.columns)):
        ramp = (torch.arange(size[axis]) + 0.5).double() / size[axis]
        picture = (ramp[:, None] if axis == 0 else ramp[None]).expand(size)[None, None]
        seen = fit(picture, to)[0, 0].select(1 - axis, to[1 - axis] // 2) * size[axis]
        reach = 1 + max(1, 1 / scale)
        inner = (seen > reach) & (seen < size[axis] - reach)
        assert ((seen - line - 0.5).abs() <= 0.56)[inner].all()


@pytest.mark.parametrize("size", [(64, 48), (97, 131), (30, 80)])
@pytest.mark.parametrize("to", [None, 32, (40, 64)])
@pytest.mark.parametrize("tensor", [False, True])
def test_labels_lie_where_their_pixels_do(size: tuple[int, int], to: Any, tensor: bool) -> None:
    assert agrees(network(to), Painted(regions(size), tensor)) == 1


def test_a_picture_of_the_networks_size_keeps_its_labels() -> None:
    data = Painted(regions((32, 32)))
    assert torch.equal(cs.segments_for(network(32), data, 0), data.segments(0))
    scenes = cs.open_dataset("scenes:3")
    assert torch.equal(cs.segments_for(cs.load("scenes"), scenes, 2), scenes.segments(2))


# ---- transforms of others
def preset(size: tuple[int, int], resize: int, crop: int) -> list[list[int]]:
    """Where torchvision's classification transforms take their pixels from, by their documentation."""
    short, long = min(size), max(size)
    new = (resize, int(resize * long / short)) if size[0] <= size[1] else (int(resize * long / short), resize)
    tops = [round((n - crop) / 2) for n in new]
    return [
        [math.floor((r + top + 0.5) * n / m) for r in range(crop)] for n, m, top in zip(size, new, tops, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [*SIZES, (240, 320), (213, 320), (256, 256)])
def test_torchvisions_transforms_are_measured_to_the_pixel(size: tuple[int, int], torchvision: Any) -> None:
    transform = torchvision.transforms._presets.ImageClassification(crop_size=28, resize_size=32)
    found = measured(transform, size, "RGB")
    assert [found.rows.tolist(), found.columns.tolist()] == preset(size, 32, 28)


@pytest.mark.parametrize("size", [(48, 64), (100, 130), (213, 320)])
@pytest.mark.parametrize("bicubic", [False, True])
def test_transforms_that_take_pictures_of_bytes_only(size: tuple[int, int], bicubic: bool, torchvision: Any) -> None:
    t = torchvision.transforms
    how = t.InterpolationMode.BICUBIC if bicubic else t.InterpolationMode.BILINEAR
    steps = [t.Resize(32, how), t.CenterCrop(28), t.ToTensor(), t.Normalize([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])]
    found = measured(t.Compose([lambda p: p.convert("RGB"), *steps]), size, "RGB")
    expected = preset(size, 32, 28)
    assert [found.rows.tolist(), found.columns.tolist()] == expected


def test_a_real_networks_reading(torchvision: Any, torch_home: Path) -> None:
    net = cs.load("torchvision:resnet18")
    assert agrees(net, Painted(regions((240, 320)))) == 1
    assert agrees(net, Painted(regions((500, 333)))) == 1
    fits = Painted(regions((224, 224)), tensor=True)  # tensors of the network's size are only normalized
    assert torch.equal(cs.segments_for(net, fits, 0), fits.segments(0))
    assert agrees(net, Painted(regions((224, 224)))) == 1


def test_padding_has_no_labels_and_turned_pictures_turn_them(torchvision: Any) -> None:
    t = torchvision.transforms
    padded = t.Compose([t.Resize((20, 20)), t.Pad((2, 4, 6, 8)), t.ToTensor()])
    found = cs.segments_for(network(transform=padded), Painted(regions((20, 20))), 0)[0]
    assert torch.equal(found[4:24, 2:22], regions((20, 20)))
    assert int((found > 0).sum()) == 400
    for turn, expected in [
        (t.Lambda(lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), lambda x: x.flip(-1)),
        (t.Lambda(lambda p: p.transpose(Image.Transpose.ROTATE_90)), lambda x: x.rot90(1, (-2, -1))),
        (t.Lambda(lambda p: p.transpose(Image.Transpose.TRANSPOSE)), lambda x: x.mT),
    ]:
        labels = regions((24, 36))
        net = network(transform=t.Compose([turn, t.ToTensor()]))
        assert torch.equal(cs.segments_for(net, Painted(labels), 0)[0], expected(labels))


def test_gray_networks_and_their_transforms(torchvision: Any) -> None:
    t = torchvision.transforms
    net = network(transform=t.Compose([t.Resize(32), t.CenterCrop(28), t.ToTensor()]), channels=1)
    found = places(net, (48, 64))
    assert [found.rows.tolist(), found.columns.tolist()] == preset((48, 64), 32, 28)


def test_transforms_that_labels_cannot_follow_are_refused(torchvision: Any) -> None:
    t = torchvision.transforms
    wave = t.Lambda(lambda x: x[:, :, (torch.arange(28) * 27 / 27 + 6 * torch.sin(torch.arange(28.0))).clamp(0, 27).long()])
    for step, error in ((wave, "more than resize"), (t.RandomHorizontalFlip(), "is random"), (t.RandomCrop(20), "is random")):
        net = network(transform=t.Compose([t.Resize((28, 28)), t.ToTensor(), step]))
        with pytest.raises(cs.UnsupportedError, match=f"{error}.* labels cannot follow it"):
            cs.segments_for(net, Painted(regions((48, 64))), 0)
    always = network(transform=t.Compose([t.RandomHorizontalFlip(1.0), t.ToTensor()]))  # draws, and does the same each time
    assert torch.equal(cs.segments_for(always, Painted(regions((9, 9))), 0)[0], regions((9, 9)).flip(-1))


# ---- kept
def test_labels_of_a_batch_are_decoded_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = Painted(regions((32, 32))), []
    segments = data.segments
    data.segments = lambda i: (calls.append(i), segments(i))[1]  # type: ignore[method-assign]
    net = network(16)
    first = cs.segments_for(net, data, 0)
    assert cs.segments_for(net, data, 0) is first
    assert calls == [0]
    net.size = (20, 20)
    assert cs.segments_for(net, data, 0).shape == (2, 20, 20)
    assert calls == [0, 0]
    monkeypatch.setattr(aligned, "KEPT", 1)
    cs.segments_for(net, Painted(regions((8, 8))), 0)
    cs.segments_for(net, data, 0)
    assert len(aligned._kept) == 1
    assert calls == [0, 0, 0]
    pickle.dumps(net)
    with pytest.raises(cs.UsageError, match="rows 0 to 0; got 1"):
        cs.segments_for(net, data, 1)


def test_no_labels_have_the_inputs_size(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "a.png")
    assert cs.segments_for(network(16), cs.open_dataset(tmp_path), 0).shape == (0, 16, 16)
