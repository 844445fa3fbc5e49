"""Kernels pixel by pixel, and expanded weights against the product of the weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.show import strip
from convoscope.units import filters


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(3, 8, 5, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
    ]
    return nn.Sequential(*parts).double()


NET = cs.Network(chain(), size=48)


def test_first_kernels_are_pictures_pixel_by_pixel() -> None:
    found = filters.kernels(NET)
    assert (found.address, found.color, len(found)) == ("0", True, 8)
    weight = NET.module[0].weight.detach()
    each, shared = found.pictures(), found.pictures("shared")
    for o in range(8):
        top = float(weight[o].abs().max())
        for c in range(3):
            for r in range(5):
                for k in range(5):
                    assert float(each[o, c, r, k]) == pytest.approx(0.5 + float(weight[o, c, r, k]) / top / 2, abs=1e-12)
        assert float((each[o] - 0.5).abs().max()) == pytest.approx(0.5)
    assert torch.allclose(shared, 0.5 + weight / weight.abs().max() / 2)
    assert torch.equal(found.norms, weight.flatten(2).norm(dim=2))


def test_a_drawn_kernel_has_the_bytes_of_its_weights() -> None:
    drawn = filters.strip_of(filters.kernels(NET))
    picture = strip.figure(strip.Strip("", drawn.groups, side=50, gap=0), zoom=1)
    expected = (filters.kernels(NET).pictures()[1].permute(1, 2, 0) * 255).round().to(torch.uint8)
    for r in range(5):
        for c in range(5):  # second tile: 10 points a pixel, behind the margin
            assert picture.getpixel((20 + 50 + 10 * c + 5, 20 + 10 * r + 5)) == tuple(expected[r, c].tolist())


def test_alexnet_has_96_kernels_of_11_by_11() -> None:
    net = cs.Network(nn.Sequential(nn.Conv2d(3, 96, 11, stride=4)), size=227)
    found = filters.kernels(net)
    drawn = filters.strip_of(found)
    assert found.weight.shape == (96, 3, 11, 11)
    assert len(drawn.groups[0].grids[0].tiles) == 96
    assert "96 kernels of 11 x 11 over 3 channels" in drawn.about[0]
    assert len(filters.strip_of(found[10:20]).groups[0].grids[0].tiles) == 10
    assert [t.caption for t in filters.strip_of(found[[7, 3]]).groups[0].grids[0].tiles] == ["7", "3"]


def test_what_training_gave_up_is_gray() -> None:
    net = cs.Network(chain(), size=48)
    with torch.no_grad():
        net.module[0].weight[3] *= 1e-9
        net.module[0].weight[4] = 0
    pictures = filters.kernels(net).pictures()
    assert pictures[3:5].unique().tolist() == [0.5]
    assert float((pictures[5] - 0.5).abs().max()) == pytest.approx(0.5)


def test_groups_know_their_input_channels() -> None:
    found = filters.kernels(NET, "3")
    assert found.weight.shape == (6, 4, 3, 3)
    assert found.inputs.tolist() == [[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3
    assert not found.color
    row = filters.rows_of(found)[4]
    best = int(found.norms[4].argmax())
    assert (row["unit"], row["strongest"][0]["channel"]) == (4, 4 + best)
    assert row["norm"] == pytest.approx(float(found.weight[4].norm()))
    tile = filters.strip_of(found, channels=2).groups[4].grids[0].tiles[0]
    assert tile.caption.startswith(f"{4 + best}: ")


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_as_convolutions(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups).double()
    found = filters.kernels(cs.Network(nn.Sequential(layer), size=8))
    assert found.weight.shape == (6, 4 // groups, 3, 3)
    for o in range(6):
        for j in range(4 // groups):
            i = int(found.inputs[o, j])
            assert torch.equal(found.weight[o, j], layer.weight[i, o % (6 // groups)])


def test_kernels_of_other_inputs() -> None:
    gray = filters.kernels(cs.Network(nn.Sequential(nn.Conv2d(1, 5, 3)), size=8))
    assert not gray.color
    assert filters.strip_of(gray).groups[0].grids[0].tiles[0].image.ndim == 2
    five = filters.kernels(cs.Network(nn.Sequential(nn.Conv2d(5, 2, 3)), size=8))
    assert len(filters.strip_of(five).groups[1].grids[0].tiles) == 5
    dense = filters.kernels(cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(1 * 6 * 7, 3)), size=(6, 7), channels=1))
    assert dense.weight.shape == (3, 1, 6, 7)
    strip.figure(filters.strip_of(dense))


def test_what_has_no_kernels_says_so() -> None:
    with pytest.raises(cs.UnsupportedError, match="'1' is a ReLU, which has no kernels"):
        filters.kernels(NET, "1")
    nested = cs.Network(nn.Sequential(chain()), size=48)
    with pytest.raises(cs.UnsupportedError, match=r"no kernels; the layers inside of it that do: 0.0, 0.3, 0.5"):
        filters.kernels(nested, "0")
    with pytest.raises(cs.AddressError, match=r"layer '0.33' does not exist; did you mean '0.3'"):
        filters.kernels(nested, "0.33")
    with pytest.raises(cs.UsageError, match="has 8 units, numbered from 0; there is no 8"):
        filters.kernels(NET, "0", [8])
    with pytest.raises(cs.UsageError, match="no scale 'all'"):
        filters.kernels(NET).pictures("all")  # type: ignore[arg-type]
    with pytest.raises(cs.UnsupportedError, match="no convolution"):
        filters.first_layer(cs.Network(nn.Sequential(nn.ReLU()), channels=3))


# ---- expanded weights
def linearized(x: Tensor) -> Tensor:
    """The network without rectifiers and with averages for maxima, without biases."""
    m = NET.module
    x = F.avg_pool2d(F.conv2d(x, m[0].weight, stride=2), 2)
    return F.conv2d(F.conv2d(x, m[3].weight, groups=2), m[5].weight)


def test_expanded_weights_are_the_linear_path() -> None:
    """5 + 1 * 2 = 7, then 7 + 2 * 4 = 15, then 15 + 2 * 4 = 23 pixels."""
    found = filters.expanded(NET, "5")
    assert found.shape == (4, 3, 23, 23)
    at = linearized(torch.zeros(1, 3, 48, 48).double()).shape[2] // 2
    impulse = torch.zeros(1, 3, 48, 48).double()
    for c, r, k in [(0, 11, 11), (2, 3, 20), (1, 0, 0)]:
        impulse.zero_()
        impulse[0, c, at * 4 + r, at * 4 + k] = 1
        assert torch.allclose(linearized(impulse)[0, :, at, at], found[:, c, r, k])


def test_expanded_weights_of_one_layer_are_its_kernels() -> None:
    assert torch.allclose(filters.expanded(NET, "0"), NET.module[0].weight)
    assert torch.allclose(filters.expanded(NET, "5", [2, 0], source="4"), NET.module[5].weight[[2, 0]])


def test_expanded_weights_between_layers_pass_a_rectifier() -> None:
    found = filters.path(NET, "5", "3", [1])
    assert (found.units, found.source, found.color) == ((1,), "3", False)
    assert torch.allclose(found.weight, NET.module[5].weight[[1]])


def test_with_pictures_the_mean_of_the_true_gradients() -> None:
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    maps = NET.module(x)
    middle = maps.shape[2] // 2
    (gradient,) = torch.autograd.grad(maps[:, 2, middle, middle].sum(), x)
    mean = gradient.mean(0)
    found = filters.expanded(NET, "5", [2], pictures=x.detach())
    used = (mean != 0).any(0)
    rows, columns = used.any(1).nonzero()[:, 0], used.any(0).nonzero()[:, 0]
    assert torch.allclose(found[0], mean[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def test_what_does_not_depend_on_the_source() -> None:
    with pytest.raises(cs.UsageError, match="'0' does not depend on '3'; name an earlier layer"):
        filters.expanded(NET, "0", source="3")
    with pytest.raises(cs.UsageError, match="'5' has 4 units, numbered from 0; there is no 9"):
        filters.expanded(NET, "5", [9])


def test_batches_of_units_change_nothing() -> None:
    assert torch.allclose(filters.expanded(NET, "5", batch_size=1), filters.expanded(NET, "5", batch_size=3))
