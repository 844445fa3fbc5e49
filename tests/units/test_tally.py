"""The tally: equal to the last pixel to upsampling everything, both rules of areas, and any split of the images."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.placing import placed
from convoscope.units.tally import Labels, Tally
from convoscope.units.upsampling import Axis, Placing


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(values: list[float], first: float, step: float, pixel: int) -> float:
    """One value between unit centers, as a person would compute it."""
    place = min(max((pixel - first) / step, 0.0), len(values) - 1.0)
    low = min(int(place), max(len(values) - 2, 0))
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


GRIDS = [
    # units, pixels, first center, step
    (6, 96, 0.0, 16.0), (7, 50, 3.5, 7.0), (7, 50, -2.0, 8.0), (3, 40, 15.0, 5.0), (5, 12, 0.7, 2.3), (4, 64, 7.5, 16.0),
    (1, 9, 4.0, 9.0), (9, 5, 0.0, 0.5), (48, 96, 0.0, 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("units", "pixels", "first", "step"), GRIDS)
def test_an_axis_interpolates_between_centers(units: int, pixels: int, first: float, step: float) -> None:
    values = torch.randn(units, dtype=torch.float64, generator=random())
    found = Axis.of(units, pixels, first, step).interpolated(values, 0)
    expected = [at(values.tolist(), first, step, p) for p in range(pixels)]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_tiles_are_those_of_align_corners_false() -> None:
    maps = torch.randn(2, 3, 7, 5, generator=random())
    dense = Placing.of((7, 5), (112, 63), anchor="tiles").dense(maps)
    assert torch.allclose(dense, F.interpolate(maps, (112, 63), mode="bilinear", align_corners=False), atol=1e-6)


def test_centers_are_those_of_receptive_fields() -> None:
    net = cs.load("scenes")
    x = torch.randn(1, 3, 96, 96, generator=random())
    field = net.trace(x).field_of("layer3")
    maps = torch.randn(1, 2, 12, 12, generator=random())
    placing = Placing.of((12, 12), (96, 96), field)
    assert placing.anchor == "centers"
    assert torch.allclose(placing.dense(maps), placed(maps, field, (96, 96)), atol=1e-6)
    assert Placing.of((1, 1), (96, 96), net.trace(x).field_of("pool")).anchor == "tiles"
    with pytest.raises(cs.UsageError, match="no anchor 'corners'"):
        Placing.of((1, 1), (9, 9), anchor="corners")  # type: ignore[arg-type]


def placing(row: int, column: int) -> Placing:
    return Placing(Axis.of(*GRIDS[row]), Axis.of(*GRIDS[column]), "centers")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("row", "column"), list(product(range(len(GRIDS)), repeat=2)))
def test_pixels_above_a_threshold_are_those_of_the_whole_map_to_the_last_one(row: int, column: int, dtype: torch.dtype) -> None:
    own = placing(row, column)
    maps = torch.randn(6, own.rows.units, own.columns.units, generator=random(row), dtype=dtype)
    maps[1] = (maps[1] * 2).round() / 2  # equal values, and values equal to the threshold
    thresholds = torch.tensor([0.5, 0.5, -9.0, 9.0, 0.0, 1.5], dtype=dtype)
    which, pixels = own.above(maps, thresholds)
    expected = own.dense(maps).flatten(1) > thresholds[:, None]
    found = torch.zeros_like(expected, dtype=torch.int64)
    found.index_put_((which, pixels), torch.ones_like(pixels), accumulate=True)
    assert torch.equal(found, expected.long())


def test_no_value_between_units_is_above_them_whatever_the_rounding() -> None:
    """Of ends that differ by many orders, `a + w * (b - a)` is above both for some weights; ours is not."""
    values = torch.tensor([-1.0, 1e-9, 1.0, 1.0 + 2**-23, 3e-39, 1e30, -1e30, 0.1])
    ends = torch.cartesian_prod(values, values)
    axis = Axis.of(2, 999, -0.5, 1001.0)
    found = axis.to("cpu", torch.float32).interpolated(ends, 1)
    assert (found <= ends.amax(1, keepdim=True)).all()


# ---- counting


def counted(maps: Tensor, labels: Tensor, thresholds: Tensor, own: Placing, half: Tensor, tally: Tally) -> Tally:
    images, channels = maps.shape[:2]
    which, pixels = own.above(maps.flatten(0, 1), thresholds.repeat(images))
    tally.add(which % channels, which // channels, pixels, Labels.of(labels), half)
    return tally


def by_hand(
    maps: Tensor, labels: Tensor, thresholds: Tensor, own: Placing, category: list[int], rule: str
) -> list[list[float]]:
    """Every image, unit and concept one by one, masks as they stand in the paper."""
    masks = own.dense(maps) > thresholds[:, None, None]
    images, channels = maps.shape[:2]
    found = []
    for unit in range(channels):
        line = []
        for concept, kind in enumerate(category):
            both = union = 0
            for image in range(images):
                mask, label = masks[image, unit], (labels[image] == concept + 1).any(0)
                of_kind = [(labels[image] == c + 1).any(0) for c, k in enumerate(category) if k == kind]
                seen = any(bool((o & mask).any() if rule == "overlap" else o.any()) for o in of_kind)
                both += int((mask & label).sum())
                union += int(((mask & label.logical_not()) if seen else torch.zeros_like(mask)).sum() + label.sum())
            line.append(both / union if union else 0.0)
        found.append(line)
    return found


CATEGORY = [0, 0, 1, 2, 2, 2]


def example(seed: int, images: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    maps = torch.randn(images, 4, 3, 5, dtype=torch.float64, generator=random(seed))
    labels = torch.randint(0, 7, (images, 3, 40, 12), generator=random(seed + 1), dtype=torch.int32)
    labels *= torch.rand(images, 3, 40, 12, generator=random(seed + 2)) < 0.3
    labels[0] *= labels[0] < 4  # a picture without labels of the last category
    labels[1] = 0  # and one without any
    return maps, labels, torch.tensor([0.4, 1.2, -0.3, 8.0], dtype=torch.float64)


@pytest.mark.parametrize("rule", ["category", "overlap"])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_intersection_over_union_is_that_of_masks(rule: str, seed: int) -> None:
    maps, labels, thresholds = example(seed)
    own, half = placing(3, 4), torch.tensor([0, 1, 1, 0, 1])
    tally = counted(maps, labels, thresholds, own, half, Tally(4, torch.tensor(CATEGORY), 3, rule))  # type: ignore[arg-type]
    expected = by_hand(maps, labels, thresholds, own, CATEGORY, rule)
    assert torch.equal(tally.iou(), torch.tensor(expected, dtype=torch.float64))
    for h in (0, 1):
        part = half == h
        expected = by_hand(maps[part], labels[part], thresholds, own, CATEGORY, rule)
        assert torch.equal(tally.iou(h), torch.tensor(expected, dtype=torch.float64))
    assert tally.both.dtype == torch.int64
    assert int(tally.both.sum()) > 100


def test_any_split_of_the_images_counts_the_same() -> None:
    maps, labels, thresholds = example(3, 6)
    own, half = placing(3, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    fresh = lambda: Tally(4, torch.tensor(CATEGORY), 3)  # noqa: E731
    one = counted(maps, labels, thresholds, own, half, fresh())
    for first, second in product(range(1, 6), range(1, 6)):
        if first < second:
            parts = [slice(0, first), slice(first, second), slice(second, 6)]
            a, b, c = (counted(maps[p], labels[p], thresholds, own, half[p], fresh()) for p in parts)
            found = c.merge(a).merge(b)
            assert all(torch.equal(getattr(found, n), getattr(one, n)) for n in ("both", "area", "label"))
    with pytest.raises(cs.UsageError, match="do not merge"):
        one.merge(Tally(4, torch.tensor(CATEGORY), 3, "overlap"))
    with pytest.raises(cs.UsageError, match="no rule of areas 'lite'"):
        Tally(4, torch.tensor(CATEGORY), 3, "lite")  # type: ignore[arg-type]


def test_the_two_rules_by_hand() -> None:
    """Two pictures of four pixels. The unit is active on the left half of both; 'red' is there in the first picture, 'blue'
    on the right half of the second. Blue is a color, so both pictures can tell of colors; by overlap the second cannot."""
    labels = torch.tensor([[[[1, 0], [1, 0]]], [[[0, 2], [0, 2]]]], dtype=torch.int32)
    units = torch.zeros(4, dtype=torch.int64)
    active = units, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 0, 2]), Labels.of(labels), torch.tensor([0, 0])
    paper, lite = (Tally(1, torch.tensor([0, 0]), 1, rule) for rule in ("category", "overlap"))  # type: ignore[arg-type]
    paper.add(*active)
    lite.add(*active)
    assert paper.iou().tolist() == [[2 / 4, 0.0]]
    assert lite.iou().tolist() == [[2 / 2, 0.0]]


def test_a_concept_in_two_layers_of_a_pixel_counts_once() -> None:
    labels = torch.tensor([[[[1, 2]], [[1, 1]]]], dtype=torch.int32)
    tally = Tally(1, torch.tensor([0, 0]), 1)
    everywhere = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1])
    tally.add(*everywhere, Labels.of(labels), torch.tensor([1]))
    assert tally.both.tolist() == [[[0, 0]], [[2, 1]]]
    assert tally.label.tolist() == [[0, 0], [2, 1]]


def test_pictures_without_labels_or_activity_change_nothing() -> None:
    tally = Tally(3, torch.tensor([0, 1]), 2)
    nothing = torch.zeros(0, dtype=torch.int64)
    tally.add(nothing, nothing, nothing, Labels.of(torch.zeros(2, 0, 4, 4, dtype=torch.int32)), torch.tensor([0, 1]))
    one = torch.zeros(1, dtype=torch.int64)
    tally.add(one, one, one, Labels.of(torch.zeros(1, 2, 4, 4, dtype=torch.int32)), torch.tensor([0]))
    assert not tally.both.any()
    assert not tally.area.any()
    assert tally.iou().tolist() == [[0, 0]] * 3


def test_counts_go_on_beyond_what_single_precision_can_count() -> None:
    """2 ** 24 + 1 is the first whole number that float32 does not have."""
    tally = Tally(1, torch.tensor([0]), 1)
    tally.both += 2**24
    tally.area += 2**24
    tally.label += 2**24
    one = torch.zeros(1, dtype=torch.int64)
    tally.add(one, one, one, Labels.of(torch.ones(1, 1, 1, 1, dtype=torch.int32)), torch.tensor([0]))
    assert tally.both.flatten().tolist() == [2**24 + 1, 2**24]
    assert tally.area.flatten().tolist() == [2**24 + 1, 2**24]
    assert tally.label.flatten().tolist() == [2**24 + 1, 2**24]


def test_the_published_algorithms_count_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    benchmark = pytest.importorskip("benchmarks.dissection", reason="the benchmarks are not part of this installation")
    assert benchmark.main(["--quick"]) == 0
    assert capsys.readouterr().out.count("identical counts") == 2
