"""Dissection: chance is calibrated, a planted detector is found, both rules of unique detectors, files and comparisons."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.data.dataset import Concept, Dataset
from convoscope.units.chance import Points, chance
from convoscope.units.detectors import LayerLabels, Match, UnitLabel
from convoscope.units.dissection import Dissection, dissect
from convoscope.units.dissection_compare import compare_dissections


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Squares(Dataset):
    """Noise with a bright square in the first channel, labeled 'square', and stripes of labels that nothing shows."""

    name = "squares"
    concepts = (Concept("square", "object"), Concept("left", "part"), Concept("right", "part"), Concept("never", "color"))

    def __init__(self, count: int = 40, size: int = 32) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"{self.name} {i}"

    def place(self, i: int) -> tuple[slice, slice]:
        row, column = torch.randint(0, self.size - 8, (2,), generator=random(i)).tolist()
        return slice(row, row + 8), slice(column, column + 8)

    def picture(self, i: int) -> Tensor:
        pixels = 0.4 * torch.rand(3, self.size, self.size, generator=random(1000 + i))
        pixels[0][self.place(i)] = 1.0
        return pixels

    def segments(self, i: int) -> Tensor:
        labels = torch.zeros(2, self.size, self.size, dtype=torch.int32)
        labels[0][self.place(i)] = 1
        half = torch.randint(0, self.size, (1,), generator=random(2000 + i))
        labels[1, :, : int(half)] = 2
        labels[1, :, int(half) :] = 3
        return labels


def network() -> cs.Network:
    """Channel 0 sees the planted square, 5 only where it fills a cell; the others see what means nothing, and 4 is dead."""
    conv = nn.Conv2d(3, 6, 4, 4, bias=True)
    torch.nn.init.zeros_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight[0, 0] = conv.weight[5, 0] = 1 / 16
        for k in (1, 2, 3):
            conv.weight[k, 1 + k % 2] = torch.randn(4, 4, generator=random(k))
        conv.bias[5] = -0.95
    return cs.Network(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 2)), size=32)


@pytest.fixture(scope="module")
def found() -> Dissection:
    return dissect(network(), Squares(), "1", fraction=0.05, draws=99)


def test_the_planted_detector_is_found_and_chance_finds_none(found: Dissection) -> None:
    unit = found["1:0"]
    assert (unit.label, unit.category, unit.stable) == ("square", "object", True)
    assert unit.iou > 0.4
    assert unit.held_out == pytest.approx(unit.iou, rel=0.2)
    assert unit.p == {"shifted": 0.01, "permuted": 0.01}
    assert all(u.p["shifted"] > 0.01 for u in found["1"].units[1:5])
    assert found["1"].detectors(p=0.02) == {"object": 2}
    assert [u for u, _ in found["1"].found(p=0.02)] == [0, 5]
    assert found["1"].interpretable(p=0.02) == 2


def test_its_intersection_over_union_is_that_of_its_masks(found: Dissection) -> None:
    net, data = network(), Squares()
    maps = torch.cat([net.module[:2](net.read(data.picture(i))) for i in range(40)]).detach()[:, 0]
    threshold = maps.flatten().sort(descending=True).values[int(0.05 * maps.numel())]
    assert found["1:0"].threshold == float(threshold)
    assert found["1:0"].exceedance == float((maps > threshold).double().mean())
    masks = torch.nn.functional.interpolate(maps[:, None], 32, mode="bilinear", align_corners=False)[:, 0] > threshold
    labels = torch.stack([data.segments(i)[0] == 1 for i in range(40)])
    assert found["1:0"].iou == float((masks & labels).sum() / (masks | labels).sum().double())
    strongest = maps.flatten(1).amax(1).sort(descending=True, stable=True).indices[:9]
    assert list(found["1:0"].images) == strongest.tolist()


def test_units_that_never_change_have_no_label(found: Dissection) -> None:
    dead, sparse = found["1:4"], found["1:5"]
    assert (dead.note, dead.label, dead.iou, dead.p, dead.images) == ("dead", "", 0.0, {"shifted": 1.0, "permuted": 1.0}, ())
    assert sparse.note == "sparse"
    assert 0 < sparse.exceedance < 0.05


def test_one_seed_one_result_and_any_shards() -> None:
    net, data = network(), Squares(20)
    one = dissect(net, data, "1", fraction=0.05, draws=9).to_dict()
    assert dissect(net, data, "1", fraction=0.05, draws=9, batch_size=7).to_dict() == one
    other = dissect(net, data, "1", fraction=0.05, draws=9, seed=1).to_dict()
    assert [u["iou"] for u in other["layers"][0]["units"]] == [u["iou"] for u in one["layers"][0]["units"]]
    assert other != one


def test_labels_of_layers_without_places_fill_the_picture() -> None:
    unit = dissect(network(), Squares(), "3", fraction=0.2, draws=0)["3"].units[0]
    assert unit.label in ("left", "right")
    assert unit.p == {}
    assert unit.chance is None
    assert unit.exceedance <= 0.2


def test_what_cannot_be_dissected_says_why() -> None:
    net = network()
    with pytest.raises(cs.UsageError, match="has no dense labels"):
        dissect(net, [torch.zeros(3, 32, 32)], "1")
    with pytest.raises(cs.UsageError, match="no rule of areas 'paper'"):
        dissect(net, Squares(2), "1", area="paper")  # type: ignore[arg-type]
    with pytest.raises(cs.UsageError, match="null models are some of shifted, swapped, permuted"):
        dissect(net, Squares(2), "1", nulls=["rotated"])
    with pytest.raises(cs.UsageError, match="a limit from 0 to below 1; got 2"):
        dissect(net, Squares(2), "1", iou=2)


# ---- chance


def noise_points(seed: int, pictures: int = 24, units: int = 12) -> tuple[Points, Tensor]:
    """Units and labels that are smooth noise, the same everywhere, and have nothing to do with each other."""
    fields = torch.randn(pictures, units + 2, 12, 12, generator=random(seed))
    maps = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(fields, (2, 2, 2, 2), mode="circular"), 5, 1)
    points, spread = Points((12, 12), 1), maps.std()
    for picture in maps[:, :2]:
        high, low = picture > 0.5 * spread, picture < -spread
        points.take_labels(high * torch.tensor([1, 2])[:, None, None] + low.int() * 3)
    own = maps[:, 2:]
    active = own > own.transpose(0, 1).flatten(1).quantile(0.95, 1)[:, None, None]
    pictures_of, units_of, pixels = active.flatten(2).nonzero(as_tuple=True)
    points.take_active("layer", units_of, pictures_of, pixels)
    return points, torch.tensor([0, 0, 1, 1, 2])


def p_of_noise(kind: str) -> Tensor:
    found = []
    for seed in range(40):
        points, category = noise_points(seed)
        found.append(chance(points, points.stacked(), "layer", 12, category, 3, (kind,), 39, 0.04, seed).p[kind])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["shifted", "swapped"])
def test_p_values_of_noise_are_uniform(kind: str) -> None:
    p = p_of_noise(kind)
    assert p.min() >= 1 / 40
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert float((p <= level + 1e-9).double().mean()) == pytest.approx(level, abs=0.06)


def test_p_values_of_noise_against_other_units_are_not_too_small() -> None:
    """Real units are active in the same share of places, mixtures of them only in the mean, so theirs spread more."""
    p = p_of_noise("permuted")
    assert float((p <= 0.1 + 1e-9).double().mean()) <= 0.1
    assert float(p.mean()) == pytest.approx(0.5, abs=0.05)


def test_chance_says_how_many_detectors_there_would_be() -> None:
    points, category = noise_points(1)
    low, high = (
        chance(points, points.stacked(), "layer", 12, category, 3, ("shifted",), 20, limit, 0).detectors["shifted"]
        for limit in (0.0, 0.9)
    )
    assert (low, high) == (12, 0)


def test_points_are_those_of_the_pictures() -> None:
    points = Points.of((96, 96), 1000)
    assert points.grid[0] * points.grid[1] * 1000 <= 1 << 18
    dense = torch.arange(96 * 96, dtype=torch.int32).view(1, 96, 96)
    points.take_labels(dense)
    every = torch.arange(96 * 96)
    points.take_active("a", every * 0, every * 0, every)
    _, _, numbers = points.active["a"][0]
    assert numbers.tolist() == list(range(points.grid[0] * points.grid[1]))
    assert Points.of((8, 8), 3).grid == (8, 8)


# ---- rules of counting


def unit(number: int, *matches: tuple[str, str, float]) -> UnitLabel:
    ordered = tuple(Match(*m) for m in sorted(matches, key=lambda m: -m[2]))
    first = ordered[0]
    return UnitLabel(
        number, first.label, first.category, first.iou, first.iou, True, {"shifted": 0.01 * number}, 0.01, 1.0, 0.005, "",
        ordered, ordered, (number,),
    )  # fmt: skip


LAYER = LayerLabels("layer", (4, 7, 7), "centers", 0.04, (
    unit(0, ("dog", "object", 0.20), ("red", "color", 0.05)),
    unit(1, ("dog", "object", 0.10), ("red", "color", 0.01)),
    unit(2, ("red", "color", 0.30), ("cat", "object", 0.05)),
    unit(3, ("blue", "color", 0.04), ("dog", "object", 0.01)),
), {"shifted": 0.5})  # fmt: skip


def test_the_two_rules_of_unique_detectors_by_hand() -> None:
    """Unit 3 is at the limit, not above it. By its top label alone unit 2 detects red; by category it also detects a cat."""
    assert LAYER.detectors("top") == {"object": 2, "color": 1}
    assert LAYER.unique("top") == {"object": 1, "color": 1}
    assert LAYER.detectors("per-category") == {"object": 3, "color": 2}
    assert LAYER.unique("per-category") == {"object": 2, "color": 1}
    assert (LAYER.interpretable("top"), LAYER.interpretable("per-category")) == (3, 3)
    assert LAYER.histogram() == [("dog", "object", 2), ("red", "color", 1)]
    assert LAYER.detectors("top", p=0.015) == {"object": 2}
    with pytest.raises(cs.UsageError, match="no rule 'any' of unique detectors"):
        LAYER.unique("any")  # type: ignore[arg-type]


def dissection(name: str, *layers: LayerLabels) -> Dissection:
    settings = {
        "fraction": 0.005, "iou": 0.04, "area": "category", "anchor": "centers", "nulls": ["shifted"], "draws": 9, "seed": 0,
    }  # fmt: skip
    return Dissection(name, "0" * 16, "data", 10, 0, settings, {la.address: la for la in layers}, {"object": 2, "color": 2})


def test_a_dissection_saved_is_the_same_when_loaded(tmp_path: Path, found: Dissection) -> None:
    for one in (found, dissection("one", LAYER)):
        path = one.save(tmp_path / "found.json")
        loaded = Dissection.load(path)
        assert loaded == one
        assert str(loaded) == str(one)
        assert json.loads(path.read_text())["schema"] == "convoscope.dissection/1"
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(cs.UsageError, match="is no dissection"):
        Dissection.load(tmp_path / "other.json")
    with pytest.raises(cs.UsageError, match=r"saved as .json, .html or .png; got 'found.txt'"):
        found.save(tmp_path / "found.txt")


def test_layers_and_units_by_name(found: Dissection) -> None:
    assert found["1"].units[2] is found["1:2"]
    with pytest.raises(cs.UsageError, match="no layer '2' here"):
        found["2"]
    with pytest.raises(cs.UsageError, match="1 has units 0 to 5; got 6"):
        found["1:6"]
    assert found.categories == ["object", "part", "color"]


def test_a_comparison_follows_units_and_counts(tmp_path: Path) -> None:
    later = LayerLabels("layer", (1, 7, 7), "centers", 0.04, (unit(0, ("cat", "object", 0.5)),), {"shifted": 0.0})
    both = compare_dissections({"before": dissection("a", LAYER), "after": dissection("b", later)})
    assert both.counts("layer") == {"before": {"object": 1, "color": 1}, "after": {"object": 1}}
    assert [(n, u.label, u.iou) for n, u in both.unit("layer:0")] == [("before", "dog", 0.2), ("after", "cat", 0.5)]
    assert [n for n, _ in both.unit("layer:1")] == ["before"]
    assert both.moved("layer") == [(0, "dog", "cat")]
    assert "before" in str(both)
    assert both.image().width > 300
    with pytest.raises(cs.UsageError, match="at least two"):
        compare_dissections([dissection("a", LAYER)])
    assert both.to_dict()["schema"] == "convoscope.dissection-comparison/1"
    assert both.save(tmp_path / "both.html").read_text().startswith("<!doctype html>")


def test_a_real_network_on_labeled_photographs(testdata: Path, torch_home: Path) -> None:
    """ResNet-18 on 128 photographs of COCO: so few that most shifted units are above 0.04 as well, and yet many more units
    than the ten of 512 that chance gives have a label that none of 49 draws reaches."""
    folder = testdata / "coco"
    if not folder.is_dir():
        pytest.skip("CONVOSCOPE_TESTDATA has no labeled photographs of COCO")
    data = cs.open_dataset(folder)
    found = dissect(cs.load("torchvision:resnet18"), data, "layer4", nulls="shifted", draws=49)
    layer = found["layer4"]
    assert layer.shape == (512, 7, 7)
    assert layer.anchor == "centers"
    assert found.images == len(data) == 128
    assert all(u.exceedance <= 0.005 for u in layer.units)
    beyond = [m for _, m in layer.found(p=0.025)]
    assert len(beyond) > 40
    assert len({m.label for m in beyond}) >= 10
    assert layer.by_chance["shifted"] > 256
