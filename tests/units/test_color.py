"""Color: units that see it and units that do not, opponent axes, hues."""

import math

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.units.color import AXES, axis_of, color_index, gray, hue_histogram, hue_name, hue_of, opponent

PURE = {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1), "blue": (0, 0, 1), "magenta": (1, 0, 1)}


def flat(*colors: tuple[float, float, float], size: int = 4) -> Tensor:
    return torch.tensor(colors, dtype=torch.float64)[:, :, None, None].expand(-1, -1, size, size)


def halves(a: str, b: str) -> Tensor:
    return torch.cat([flat(PURE[a]), flat(PURE[b])], 3)


class Pictures(list[Tensor]):
    name = "pictures"

    def key(self, i: int) -> str:
        return str(i)

    def picture(self, i: int) -> Tensor:
        return self[i]

    def class_of(self, i: int) -> int:
        return -1


class Patches:
    """Where units are strongest, found the slow way."""

    def __init__(self, maps: Tensor, k: int) -> None:
        self.values, self.images = maps.flatten(2).amax(2).T.topk(k, 1)
        places = maps.flatten(2).argmax(2).T.gather(1, self.images)
        self.rows, self.columns = places // maps.shape[3], places % maps.shape[3]


@pytest.fixture
def photographs() -> Pictures:
    return Pictures(torch.rand(10, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def seeing(weight: Tensor, **settings: object) -> cs.Network:
    module = nn.Conv2d(3, len(weight), weight.shape[2], bias=False, padding=weight.shape[2] // 2).double()
    with torch.no_grad():
        module.weight.copy_(weight)
    module.requires_grad_(False)
    return cs.Network(nn.Sequential(module, nn.ReLU()), size=16, **settings)  # type: ignore[arg-type]


def test_a_red_detector_needs_color_and_a_luminance_unit_does_not(photographs: Pictures) -> None:
    third = 1 / 3
    kernels = torch.tensor([[1.0, -0.5, -0.5], [third, third, third], [1.0, 0, 0], [0, 0, 0]])
    net = seeing(kernels[:, :, None, None])
    maps = net.module(torch.stack(list(photographs)))
    patches = Patches(maps, 4)
    index = color_index(net, photographs, "1", patches, batch_size=3)
    assert index[0] == pytest.approx(1)
    assert index[1] == pytest.approx(0, abs=1e-12)
    assert 0 < index[2] < 1
    assert index[3].isnan()
    # and as the definition has it
    places = torch.stack([patches.images[2], patches.rows[2], patches.columns[2]], 1).tolist()
    pixels = [photographs[i][:, r, c] for i, r, c in places]
    assert index[2] == pytest.approx(float(1 - sum(p.mean() for p in pixels) / sum(p[0] for p in pixels)))


def test_a_gray_picture_is_the_gray_patch_pasted_back(photographs: Pictures) -> None:
    torch.manual_seed(0)
    net = seeing(torch.randn(5, 3, 5, 5, dtype=torch.float64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    maps = net.module(torch.cat([net.read(p) for p in photographs]))
    patches = Patches(maps, 3)
    found = color_index(net, photographs, "1", patches)
    for unit in range(5):
        after = 0.0
        for rank in range(3):
            image, row, column = (int(t[unit, rank]) for t in (patches.images, patches.rows, patches.columns))
            pasted = photographs[image].clone()
            box = pasted[:, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            box.copy_(box.mean(0, keepdim=True).expand_as(box))
            after += float(net.module(net.read(pasted))[0, unit, row, column])
        assert found[unit] == pytest.approx(1 - after / float(patches.values[unit].sum()))


def test_gray_keeps_mean_and_contrast_of_intensity(photographs: Pictures) -> None:
    net = seeing(torch.zeros(1, 3, 1, 1), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    pixels = net.picture(gray(net, net.read(photographs[0]))).double()
    intensity = photographs[0].mean(0)
    torch.testing.assert_close(pixels[0], intensity.expand(3, -1, -1), atol=1e-6, rtol=0)
    one = cs.Network(nn.Conv2d(1, 1, 1), size=16)
    with pytest.raises(cs.UnsupportedError, match="three channels"):
        gray(one, torch.zeros(1, 1, 16, 16))


def test_opponent_space() -> None:
    intensity, chroma, hue = opponent(flat(*PURE.values()))
    assert chroma[:, 0, 0].tolist() == pytest.approx([1] * 6)
    assert hue[:, 0, 0].tolist() == pytest.approx([0, 60, 120, 180, 240, 300], abs=1e-9)
    assert intensity[:, 0, 0].tolist() == pytest.approx([1 / 3, 2 / 3] * 3)
    assert float(opponent(flat((0.3, 0.3, 0.3)))[1].max()) == pytest.approx(0)
    assert [hue_name(d) for d in (0, 59, 110, 180, 250, 300, 359)] == [*PURE, "red"]
    assert (hue_name(31), hue_name(212)) == ("orange", "azure")


def test_hue_histograms() -> None:
    found = hue_histogram(flat(*PURE.values(), (0.5, 0.5, 0.5)), bins=6)
    torch.testing.assert_close(found, torch.cat([torch.eye(6), torch.zeros(1, 6)]).double())
    assert hue_histogram(halves("red", "cyan"), 6)[0].tolist() == pytest.approx([0.5, 0, 0, 0.5, 0, 0])
    near_red = flat((1, 0, 0.05), (1, 0.05, 0))  # both sides of 0 degrees
    assert (hue_histogram(near_red, 12)[:, 0] > 0.9).all()
    assert hue_histogram(torch.zeros(0, 3, 4, 4)).shape == (0, 12)


def test_one_hue_two_opponent_hues_and_all() -> None:
    pictures = torch.cat([flat(PURE["blue"], size=8)[..., :4, :], halves("red", "cyan")])
    hue, one, two = hue_of(pictures)
    assert (float(hue[0]), float(one[0]), float(two[0])) == pytest.approx((240, 1, 1))
    assert (float(one[1]), float(two[1])) == pytest.approx((0, 1), abs=1e-12)
    every = torch.cat([flat(c, size=2) for c in PURE.values()], 3)
    _, one, two = hue_of(every)
    assert (float(one), float(two)) == pytest.approx((0, 0), abs=1e-12)
    assert all(v.isnan().all() for v in hue_of(flat((0.2, 0.2, 0.2))))


@pytest.mark.parametrize(("a", "b", "axis"), [("red", "cyan", 0), ("blue", "yellow", 1), ("magenta", "green", 2)])
def test_axes(a: str, b: str, axis: int) -> None:
    assert AXES[axis] == f"{a}-{b}"
    for picture in (halves(a, b), flat(PURE[a]), flat(PURE[b])):
        assert axis_of(picture).tolist() == [axis]
    assert axis_of(flat((0.1, 0.1, 0.1))).tolist() == [-1]
    assert math.isclose(float(opponent(flat(PURE[a]))[2][0, 0, 0] - opponent(flat(PURE[b]))[2][0, 0, 0]) % 180, 0, abs_tol=1e-9)
