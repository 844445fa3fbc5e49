"""Class selectivity, orientation and symmetry: closed forms, units that are selective by construction, any split."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.units.selectivity import (
    ClassActivity,
    class_entropy,
    class_index,
    class_selectivity,
    class_shares,
    classes_of,
)

MAPS = torch.rand(12, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 3, -1, 0, 1, 2, 5])


def taken(*ranges: range) -> ClassActivity:
    found = ClassActivity()
    for rows in ranges:
        if len(rows):
            index = torch.tensor(list(rows))
            found.update(MAPS[index], Samples(index, MAPS[index], CLASSES[index], len(MAPS)))
    return found


def test_means_are_those_of_a_slow_count() -> None:
    found = taken(range(5), range(5, 12)).value()
    for c in range(6):
        rows = MAPS[c == CLASSES].mean((2, 3))
        assert torch.allclose(found[c], rows.mean(0)) if len(rows) else found[c].isnan().all()


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(0, 13, 3), 2)))
def test_any_split_of_class_activity_is_one_pass(cuts: tuple[int, int]) -> None:
    one = taken(range(12))
    parts = range(cuts[0]), range(cuts[0], cuts[1]), range(cuts[1], 12)
    first, second, third = (taken(p) for p in parts)
    merged = first.merge(second).merge(third)
    assert torch.equal(merged.images, one.images)
    torch.testing.assert_close(merged.sums, one.sums, rtol=1e-14, atol=0)
    loaded = ClassActivity().load_state_dict(merged.state_dict()).merge(taken(range(1)))
    assert loaded.images[0] == one.images[0] + 1


def test_class_activity_without_classes() -> None:
    found = ClassActivity()
    found.update(MAPS[:2], Samples(torch.arange(2), MAPS[:2], torch.tensor([-1, -1]), 2))
    index, which = found.selectivity()
    assert index.isnan().all()
    assert which.tolist() == [-1] * 4
    assert found.merge(taken(range(12))).value().shape == (6, 4)
    with pytest.raises(cs.UsageError, match="needs to know the classes"):
        ClassActivity().update(MAPS)


def test_class_selectivity_of_units_made_for_it() -> None:
    means = torch.tensor([[4.0, 2, 0, 3], [0, 2, 0, 1], [0, 2, 0, 1], [torch.nan] * 4])
    index, which = class_selectivity(means)
    assert index[:2].tolist() == [1, 0]
    assert index[2].isnan()
    assert index[3] == 0.5
    assert which[[0, 2, 3]].tolist() == [0, -1, 0]


def test_shares_of_classes() -> None:
    weights = torch.tensor([[4.0, 3, 2, 1], [1, 1, 1, 1], [5, -1, 0, 2], [0, 0, 0, 0]])
    classes = torch.tensor([[7, 2, 7, 2], [3, 1, 2, 0], [6, 6, 1, -1], [1, 2, 3, 4]])
    share, which = class_shares(weights, classes)
    assert share.tolist() == [[0.6, 0.4, 0, 0], [0.25] * 4, [1, 0, 0, 0], [0] * 4]
    assert which.tolist() == [[7, 2, -1, -1], [0, 1, 2, 3], [6, -1, -1, -1], [-1] * 4]
    torch.testing.assert_close(class_entropy(weights, classes)[:3], torch.tensor([0.97095, 2, 0]).double(), atol=1e-4, rtol=0)
    assert class_entropy(weights, classes)[3].isnan()


def test_the_class_index_is_the_published_rule() -> None:
    weights = torch.tensor([[4.0, 3, 2, 1]]).expand(3, 4)
    classes = torch.tensor([[5, 5, 5, 5], [1, 2, 3, 4], [1, 1, 2, 3]])
    assert class_index(weights, classes).tolist() == [1, 0, pytest.approx(1 / 3)]
    assert class_index(weights, classes, 0.7).tolist() == [1, pytest.approx(2 / 3), 1]  # 4 + 3 of 10
    assert class_index(weights, classes, 0.71).tolist() == [1, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert class_index(weights[:1, :1], classes[:1, :1]).isnan().all()
    for wrong in (0, 1.1):
        with pytest.raises(cs.UsageError, match="share of the activation"):
            class_index(weights, classes, wrong)


def test_a_unit_made_for_a_class_is_found(hidden: "Hidden") -> None:
    found = taken()
    for i in range(len(hidden)):
        unit = torch.tensor([[float(hidden.class_of(i) == 1), 1.0]])
        found.update(unit, Samples(torch.tensor([i]), unit[..., None, None], torch.tensor([hidden.class_of(i)]), len(hidden)))
    index, which = found.selectivity()
    assert index.tolist() == [1, 0]
    assert which[0] == 1
    assert classes_of(hidden, torch.tensor([[0, 4], [-1, 2]])).tolist() == [[0, 1], [-1, 2]]


class Hidden(list[Tensor]):
    """A data set of pictures (3, H, W); the class of row i is i modulo 3."""

    name = "hidden"

    def key(self, i: int) -> str:
        return str(i)

    def picture(self, i: int) -> Tensor:
        return self[i]

    def class_of(self, i: int) -> int:
        return i % 3


@pytest.fixture
def hidden() -> Hidden:
    return Hidden(torch.rand(9, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))


# ---- turned and mirrored patches


class Patches:
    """Where units are strongest, found here the slow way."""

    def __init__(self, maps: Tensor, k: int) -> None:
        self.values, images = maps.flatten(2).amax(2).T.topk(k, 1)
        self.images = images
        places = maps.flatten(2).argmax(2).T.gather(1, images)
        self.rows, self.columns = places // maps.shape[3], places % maps.shape[3]


def gabor(angle: float | None, size: int = 15) -> Tensor:
    """An even filter that answers to gratings of its orientation, or to rings (None), with mean zero."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = torch.hypot(x, y) if angle is None else x * math.cos(angle) + y * math.sin(angle)
    envelope = torch.exp(-(x * x + y * y) / 18)
    return envelope * torch.cos(along) - envelope * (envelope * torch.cos(along)).sum() / envelope.sum()


@pytest.fixture
def eyes(hidden: Hidden) -> tuple[cs.Network, Hidden, Patches]:
    """Units: an upright Gabor, a ring, a corner that no mirror but one diagonal keeps."""
    corner = torch.zeros(15, 15, dtype=torch.float64)
    corner[3, 3:12] = corner[3:12, 3] = 1
    kernels = torch.stack([gabor(0.0), gabor(None), corner - corner.mean()])
    module = nn.Sequential(nn.Conv2d(3, 3, 15, stride=2, padding=7, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        module[0].weight.copy_(kernels[:, None].expand(3, 3, 15, 15))
    module.requires_grad_(False)
    net = cs.Network(module, size=32)
    pictures = Hidden()
    for kernel in kernels:  # each unit's own pattern, in the middle where its unit has no edge in sight
        picture = torch.full((3, 32, 32), 0.5, dtype=torch.float64)
        picture[:, 9:24, 9:24] += 0.4 * kernel / kernel.abs().max()
        pictures.append(picture)
    maps = module(torch.stack(list(pictures)))
    return net, pictures, Patches(maps, 1)


def test_orientation_and_symmetry_of_units_made_for_them(eyes: tuple[cs.Network, Hidden, Patches]) -> None:
    from convoscope.units.orientation import orientation_index, symmetry_index

    net, pictures, patches = eyes
    assert patches.images.tolist() == [[0], [1], [2]]
    index, tuning = orientation_index(net, pictures, "1", patches)
    assert index[0] > 0.6
    assert abs(index[1]) < 0.05
    assert tuning[0, 4] < 0.05  # across
    assert tuning[:, 0].tolist() == [1, 1, 1]
    whole, _ = orientation_index(net, pictures, "1", patches, alone=False)
    assert whole[0] > whole[1] + 0.1
    with pytest.raises(cs.UnsupportedError, match="no patches"):
        orientation_index(cs.Network(nn.AdaptiveAvgPool2d(1), size=32), pictures, "output", patches, alone=True)
    left, up, diagonal, other = symmetry_index(net, pictures, "1", patches).T
    torch.testing.assert_close(left[:2], torch.ones(2).double())
    torch.testing.assert_close(up[:2], torch.ones(2).double())
    assert diagonal[0] < 0.05
    assert other[0] < 0.05
    assert diagonal[2] == pytest.approx(1)
    assert max(left[2], up[2], other[2]) < 0.8


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (6, 9)])
def test_quarter_turns_and_mirrors_move_pixels_exactly(size: tuple[int, int]) -> None:
    from convoscope.units.orientation import _MIRRORS, moved, turn

    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in size)
    window = ((rows[:, None] ** 2 + columns**2).sqrt() <= min(size) / 2).double()
    mean = x.mean((2, 3), keepdim=True)
    pairs = [(turn(0), x), (turn(180), x.flip(2, 3)), (_MIRRORS[0], x.flip(3)), (_MIRRORS[1], x.flip(2))]
    if size[0] == size[1]:
        pairs += [(turn(90), x.rot90(1, (2, 3))), (_MIRRORS[2], x.transpose(2, 3))]
        pairs += [(_MIRRORS[3], x.transpose(2, 3).flip(2, 3))]
    for matrix, expected in pairs:
        torch.testing.assert_close(moved(x, matrix), expected * window + mean * (1 - window))


def test_crops_run_alone_say_what_the_whole_picture_says(hidden: Hidden) -> None:
    from convoscope.units.altered import crop_readings, readings

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    net = cs.Network(nn.Sequential(*layers).double().requires_grad_(False), size=32)
    maps = net.module(torch.stack(list(hidden)))
    inner = torch.zeros_like(maps)
    inner[:, :, 2:6, 2:6] = maps[:, :, 2:6, 2:6]  # whose fields lie inside of the picture
    patches = Patches(inner, 3)
    same = [lambda x: x, lambda x: 1 - x]
    alone = crop_readings(net, hidden, "4", patches, same, batch_size=2)
    torch.testing.assert_close(alone[0], patches.values)
    torch.testing.assert_close(readings(net, hidden, {"4": patches}, same, batch_size=4)["4"], alone)
    peaks = readings(net, hidden, {"4": patches}, same[:1], peak=True)["4"][0]
    torch.testing.assert_close(peaks, maps.flatten(2).amax(2).T.gather(1, patches.images))
    early = Patches(net.module[:2](torch.stack(list(hidden))), 2)
    both = readings(net, hidden, {"1": early, "4": patches}, same[:1], batch_size=4)
    torch.testing.assert_close(both["1"][0], early.values)
    torch.testing.assert_close(both["4"][0], patches.values)
