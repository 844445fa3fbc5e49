"""Neuron features: the weighted mean of patches, by a slow loop over pixels."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.units.neuron_feature import Window, by_image, cut, neuron_features, weights_of


class Pictures(list[Tensor]):
    """A data set that counts how often a picture is asked for."""

    name = "pictures"
    asked = 0

    def key(self, i: int) -> str:
        return str(i)

    def picture(self, i: int) -> Tensor:
        self.asked += 1
        return self[i]

    def class_of(self, i: int) -> int:
        return -1


@dataclass
class Patches:
    values: Tensor
    images: Tensor
    rows: Tensor
    columns: Tensor


@pytest.fixture
def pictures() -> Pictures:
    return Pictures(torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def patches() -> Patches:
    return Patches(
        torch.tensor([[4.0, 2, 1], [3, 3, -1], [0, 0, 0]]),
        torch.tensor([[0, 2, 1], [2, 0, 3], [-1, -1, -1]]),
        torch.tensor([[3, 0, 7], [0, 7, 2], [0, 0, 0]]),
        torch.tensor([[3, 0, 5], [0, 7, 2], [0, 0, 0]]),
    )


def net(*layers: nn.Module) -> cs.Network:
    return cs.Network(nn.Sequential(*layers).double(), size=16, mean=(0.5, 0.4, 0.3), std=0.25)


def test_the_mean_is_that_of_a_slow_loop(pictures: Pictures, patches: Patches) -> None:
    network = net(nn.Conv2d(3, 3, 5, 2, 2))
    found = neuron_features(network, pictures, "0", patches)
    assert found.shape == (3, 3, 5, 5)
    assert pictures.asked == 4  # one decode for each picture that patches are from
    total, weight = torch.zeros(3, 3, 5, 5), torch.zeros(3, 1, 5, 5)
    for unit in range(3):
        for rank in range(3):
            image, value = int(patches.images[unit, rank]), float(patches.values[unit, rank])
            if image < 0 or value <= 0:
                continue
            w = value / float(patches.values[unit].max())
            for i in range(5):
                for j in range(5):
                    y, x = 2 * int(patches.rows[unit, rank]) - 2 + i, 2 * int(patches.columns[unit, rank]) - 2 + j
                    if 0 <= y < 16 and 0 <= x < 16:
                        total[unit, :, i, j] += w * pictures[image][:, y, x]
                        weight[unit, :, i, j] += w
    expected = torch.where(weight > 0, total / weight.clamp(min=1e-9), 0.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[2] == 0.5).all()
    assert torch.equal(neuron_features(network, pictures, "0", patches, units=[1, 2]), found[1:])


def test_weights_are_shares_of_the_largest(patches: Patches) -> None:
    assert weights_of(patches).tolist() == [[1, 0.5, 0.25], [1, 1, 0], [0, 0, 0]]


def test_fields_as_large_as_the_picture_and_larger(pictures: Pictures, patches: Patches) -> None:
    patches.rows, patches.columns = torch.zeros_like(patches.rows), torch.zeros_like(patches.rows)
    mean = (pictures[0] * 4 + pictures[2] * 2 + pictures[1]) / 7
    whole = net(nn.AdaptiveAvgPool2d(1))
    torch.testing.assert_close(neuron_features(whole, pictures, "0", patches)[0].double(), mean, atol=1e-6, rtol=0)
    half = neuron_features(whole, pictures, "0", patches, resolution=8)
    assert half.shape == (3, 3, 8, 8)
    assert float((half[0].mean() - mean.mean()).abs()) < 0.01


def test_of_a_field_larger_than_the_picture_the_middle_is_drawn(pictures: Pictures, patches: Patches) -> None:
    patches.rows, patches.columns = torch.zeros_like(patches.rows), torch.zeros_like(patches.rows)
    found = neuron_features(net(nn.Conv2d(3, 3, 31, 31, 15)), pictures, "0", patches)[0].double()
    mean = (pictures[0] * 4 + pictures[2] * 2 + pictures[1]) / 7
    assert found.shape == (3, 16, 16)  # rows -15 to 15 are seen, of which -8 to 7 are drawn
    torch.testing.assert_close(found[:, 8:, 8:], mean[:, :8, :8], atol=1e-6, rtol=0)
    assert (found[:, :8] == 0.5).all()


def test_windows_and_crops(pictures: Pictures) -> None:
    network = net(nn.Conv2d(3, 3, 5, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = network.read(pictures[0])
    window = Window.of(network, x, "0")
    assert (window.size, window.stride, window.offset, window.whole) == ((5, 5), (2, 2), (-2, -2), (False, False))
    assert window.corners(torch.tensor([0, 3]), torch.tensor([1, 0])).tolist() == [[-2, 0], [4, -2]]
    assert Window.of(network, x, "2").whole == (True, True)
    assert Window.of(network, x, "output").whole == (True, True)
    pixel = Window.of(network, x, "input")
    assert (pixel.size, pixel.stride, pixel.offset, pixel.picture) == ((1, 1), (1, 1), (0, 0), (16, 16))
    crops = cut(pictures[0], torch.tensor([[-2, 0], [14, 15]]), (4, 3))
    assert torch.equal(crops[0, :, 2:], pictures[0][:, :2, :3])
    assert (crops[0, :, :2] == 0).all()
    assert torch.equal(crops[1, :, :2, :1], pictures[0][:, 14:, 15:])
    assert cut(pictures[0], torch.zeros(0, 2, dtype=torch.int64), (4, 3)).shape == (0, 3, 4, 3)


def test_patches_come_image_by_image(patches: Patches) -> None:
    groups = list(by_image(patches))
    assert [g.image for g in groups] == [0, 1, 2, 3]
    assert [list(zip(g.units.tolist(), g.ranks.tolist(), strict=True)) for g in groups] == [
        [(0, 0), (1, 1)], [(0, 2)], [(0, 1), (1, 0)], [(1, 2)],
    ]  # fmt: skip
    assert [g.units.tolist() for g in by_image(patches, [1])] == [[1], [1], [1]]
    assert list(by_image(patches, [2])) == []


def test_no_patches_at_all_are_gray(pictures: Pictures, patches: Patches) -> None:
    assert neuron_features(net(nn.Conv2d(3, 3, 5)), pictures, "0", patches, units=[2]).tolist() == [[[[0.5]]] * 3]


def test_one_channel(patches: Patches) -> None:
    module = nn.Conv2d(1, 3, 5, 2, 2).double()
    network = cs.Network(nn.Sequential(module), size=16)
    pictures = Pictures(torch.rand(4, 1, 16, 16, dtype=torch.float64))
    found = neuron_features(network, pictures, "0", patches)
    assert found.shape == (3, 3, 5, 5)
    assert torch.equal(found[:, 0], found[:, 1])
