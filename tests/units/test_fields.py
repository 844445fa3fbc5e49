"""Where units look: boxes against gradients and the formula of the literature, and the pixels in them."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.run import undisturbed
from convoscope.units import fields
from convoscope.units.exemplars import Patches


class Branched(nn.Module):
    """Convolutions, a max pool, a skip connection and a wide branch; weights positive, so that no gradient cancels."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 5, stride=2, padding=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)
        for p in self.parameters():
            nn.init.uniform_(p, 0.1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        x = self.last(self.narrow(x) + self.wide(x))
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
NET = cs.Network(Branched().double(), size=(40, 52), mean=0.5, std=0.25)


def seen(address: str, row: int, column: int) -> tuple[int, int, int, int]:
    """The pixels that a unit's value depends on for some input: the hull of gradients at many random inputs."""
    hull = torch.zeros(40, 52, dtype=torch.bool)
    for seed in range(60):
        x = torch.rand(1, 3, 40, 52, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        kept: dict[str, Tensor] = {}
        with undisturbed(NET.plain):
            handle = NET.module.get_submodule(address).register_forward_hook(lambda m, a, out, k=kept: k.update(out=out))
            NET.module(x)
            handle.remove()
        (gradient,) = torch.autograd.grad(kept["out"][0, :, row, column].sum(), x)
        hull |= (gradient[0] != 0).any(0)
    rows, columns = hull.any(1).nonzero(), hull.any(0).nonzero()
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


@pytest.mark.parametrize(
    ("address", "row", "column"),
    [("stem", 7, 9), ("pool", 0, 0), ("pool", 5, 6), ("narrow", 4, 4), ("wide", 5, 6), ("last", 0, 3), ("last", 5, 7)],
)
def test_boxes_are_what_gradients_reach(address: str, row: int, column: int) -> None:
    box = fields.image_box(NET, address, row, column)
    assert box.clipped == seen(address, row, column)
    assert box.exact


def test_full_boxes_are_those_of_the_formula() -> None:
    """stem: size 5, stride 2, offset -2; pool: 5 + 2 * 2 = 9, 4, -2 - 2 = -4; the wide branch: 9 + 4 * 4 = 25, 4, -12; and
    last: 25 + 2 * 4 = 33, 4, -16."""
    assert fields.image_box(NET, "stem", 3, 1).full == (4, 0, 9, 5)
    assert fields.image_box(NET, "pool", 0, 2).full == (-4, 4, 5, 13)
    assert fields.image_box(NET, "last", 0, 12).full == (-16, 32, 17, 65)
    assert fields.image_box(NET, "last", 0, 12).clipped == (0, 32, 17, 52)


def test_the_region_of_the_lecture() -> None:
    """One 3 x 3 convolution of stride 2 without padding: rows 2 (i - 1) to 2 (i - 1) + 2 counted from 1 are 2 i to 2 i + 2."""
    net = cs.Network(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2)), size=9)
    for i in range(4):
        for j in range(4):
            box = fields.image_box(net, "0", i, j)
            assert box.clipped == box.full == (2 * i, 2 * j, 2 * i + 3, 2 * j + 3)


def test_units_that_see_everything() -> None:
    box = fields.image_box(NET, "head", 0, 0)
    assert box.clipped == box.full == (0, 0, 40, 52)
    assert fields.image_box(NET, "input", 3, 4).clipped == (3, 4, 4, 5)


def test_names_of_units() -> None:
    assert fields.unit_name("layer4:42") == ("layer4", 42)
    assert fields.unit_name(" layer1.0.conv1 : 7") == ("layer1.0.conv1", 7)
    assert fields.unit_name("last:5", NET) == ("last", 5)
    for wrong in ("layer4", "layer4:", ":3", "layer4:x", "layer4:-1", "layer4:1.5", ""):
        with pytest.raises(cs.UsageError, match=r"is no unit; give its layer and its number from 0, such as layer4:42"):
            fields.unit_name(wrong)
    with pytest.raises(cs.UsageError, match="'last' has 6 units, numbered from 0; there is no 6"):
        fields.unit_name("last:6", NET)
    with pytest.raises(cs.AddressError, match=r"layer 'lst' does not exist; did you mean 'last'"):
        fields.unit_name("lst:6", NET)


def test_places_that_are_not_there() -> None:
    with pytest.raises(cs.UsageError, match=r"'last' is 10 x 13, numbered from 0; there is no place \(10, 0\)"):
        fields.image_box(NET, "last", 10, 0)
    with pytest.raises(cs.AddressError, match="did you mean 'pool'"):
        fields.image_box(NET, "pol", 0, 0)
    free = cs.Network(Branched())
    with pytest.raises(cs.UsageError, match="any size; give an input"):
        fields.image_box(free, "pool", 0, 0)
    assert fields.image_box(free, "pool", 0, 2, torch.zeros(1, 3, 40, 52)).full == (-4, 4, 5, 13)


PIXELS = torch.rand(4, 3, 40, 52, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_patches_are_the_pixels_in_the_box() -> None:
    data = cs.open_dataset(PIXELS)
    found = fields.patch(NET, data, "pool", 2, 0, 2)
    assert torch.allclose(found, PIXELS[2, :, 0:5, 4:13].float(), atol=1e-6)
    padded = fields.patch(NET, data, "pool", 2, 0, 2, pad=True)
    assert padded.shape == (3, 9, 9)
    assert torch.equal(padded[:, 4:], found)
    assert padded[:, :4].unique().tolist() == [0.5]


def test_patches_of_many_units() -> None:
    images = torch.tensor([[2, 0], [1, 2], [3, -1]])
    places = Patches(
        torch.zeros(3, 2), images, torch.tensor([[0, 3], [1, 1], [9, -1]]), torch.tensor([[2, 3], [0, 5], [12, -1]])
    )
    data = cs.open_dataset(PIXELS)
    found = fields.patches(NET, data, "pool", places, [2, 0])
    assert [len(row) for row in found] == [1, 2]
    assert torch.equal(found[1][0], fields.patch(NET, data, "pool", 2, 0, 2))
    assert torch.equal(found[1][1], fields.patch(NET, data, "pool", 0, 3, 3))
    assert torch.equal(found[0][0], fields.patch(NET, data, "pool", 3, 9, 12))
    with pytest.raises(cs.UsageError, match="there are 3 units, numbered from 0; there is no 3"):
        fields.patches(NET, data, "pool", places, [3])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    net = cs.Network(Branched(channels), size=(40, 52))
    data = cs.open_dataset(PIXELS[:, :1].expand(-1, channels, -1, -1).contiguous())
    found = fields.patch(net, data, "stem", 1, 4, 4)
    assert torch.allclose(found, PIXELS[1, :1, 6:11, 6:11].float().expand(3, -1, -1), atol=1e-6)
