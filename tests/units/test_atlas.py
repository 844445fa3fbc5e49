"""Activation atlases: embedding, bins, exemplars, crops and effects, each against a plain loop."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.show.atlas import Sheet, Tile, draw, page
from convoscope.units.atlas import Atlas, atlas
from convoscope.units.crops import window
from convoscope.units.embedding import binned, laid_out, nearest, principal, umap
from convoscope.units.reservoir import Reservoir

DRAW = torch.Generator().manual_seed(0)
POINTS = torch.randn(300, 2, generator=DRAW, dtype=torch.float64)
VALUES = torch.randn(300, 5, generator=DRAW, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (30, 1), (3, 2), (1, 4)])
def test_principal_components_are_those_of_the_decomposition(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.linspace(3, 1, shape[1])
    points, held = principal(x)
    left, sizes, right = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    known = min(2, int((sizes > 1e-9).sum()))
    expected = left[:, :known] * sizes[:known]
    for k in range(known):
        sign = 1 if right[k][right[k].abs().argmax()] > 0 else -1
        assert torch.allclose(points[:, k], sign * expected[:, k], atol=1e-9)
    assert bool((points[:, known:].abs() < 1e-9).all())
    assert points.shape == (shape[0], 2)
    total = float(sizes.square().sum())
    assert abs(held - (float(sizes[:2].square().sum()) / total if total > 1e-20 else 0)) < 1e-12


def test_the_layout_clips_the_outermost_percentiles_with_a_margin() -> None:
    found = laid_out(POINTS)
    for axis in range(2):
        v = POINTS[:, axis].numpy()
        low, high = np.percentile(v, [1, 99])
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
        assert np.allclose(found[:, axis], np.clip((v - low) / (high - low), 0, 1))
    same = laid_out(torch.ones(9, 2))
    assert bool((same == 0.5).all())


@pytest.mark.parametrize(("grid", "least"), [(1, 1), (4, 1), (7, 3), (10, 6)])
def test_bins_are_those_of_a_plain_loop(grid: int, least: int) -> None:
    points = laid_out(POINTS)
    found = binned(points, VALUES, grid, least)
    expected = []
    for r in range(grid):
        for c in range(grid):
            inside = [
                i for i, (x, y) in enumerate(points.tolist())
                if min(int(x * grid), grid - 1) == c and min(int(y * grid), grid - 1) == r
            ]  # fmt: skip
            if len(inside) >= least:
                expected.append((r, c, inside))
    assert [(r, c) for r, c, _ in expected] == list(zip(found.row.tolist(), found.column.tolist(), strict=True))
    exemplars = nearest(VALUES, found, 3)
    for k, (_, _, inside) in enumerate(expected):
        assert int(found.count[k]) == len(inside)
        mean = VALUES[inside].mean(0)
        assert torch.allclose(found.mean[k], mean)
        assert (found.member == k).nonzero()[:, 0].tolist() == inside
        order = sorted(inside, key=lambda i: -float(torch.cosine_similarity(VALUES[i], mean, dim=0)))
        assert exemplars[k].tolist() == (order + [-1] * 3)[:3]
    assert int((found.member < 0).sum()) == 300 - sum(len(inside) for *_, inside in expected)


def test_umap_is_seeded_and_keeps_apart_what_is_apart() -> None:
    pytest.importorskip("umap")
    x = torch.cat([VALUES[:15] / 10 + torch.eye(5)[k] for k in (0, 1)])
    a, b = umap(x, seed=1, neighbors=5), umap(x, seed=1, neighbors=5)
    assert torch.equal(a, b)
    middle = a[:15].mean(0), a[15:].mean(0)
    assert float((middle[0] - middle[1]).norm()) > 2 * float((a[:15] - middle[0]).norm(dim=1).mean())


def test_umap_leaves_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, **settings: object) -> None: ...

        def fit_transform(self, values: np.ndarray) -> np.ndarray:
            torch.set_num_threads(torch.get_num_threads() + 1)  # as numba does
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    before = torch.get_num_threads()
    umap(VALUES, seed=0)
    assert torch.get_num_threads() == before


def test_a_missing_umap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(cs.UnsupportedError, match=r"pip install 'convoscope\[concepts\]'"):
        umap(VALUES, seed=0)


# ---- crops


def test_windows_lie_around_the_middle_of_the_field_and_inside() -> None:
    net = cs.Network(nn.Sequential(nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.Conv2d(4, 4, 3, padding=1)), size=32)
    field = net.trace(torch.zeros(1, 3, 32, 32)).field_of("1")
    assert field.size == (9, 9)
    assert window(field, 8, 8, (32, 32)) == (12, 12, 9)  # rows 2 * 8 - 4 to 2 * 8 + 4
    assert window(field, 0, 15, (32, 32)) == (0, 23, 9)
    assert window(field, 8, 8, (32, 32), side=1) == (16, 16, 1)
    assert window(field, 8, 8, (32, 32), side=99) == (0, 0, 32)
    assert window(None, -1, -1, (40, 30)) == (5, 0, 30)
    deep = cs.Network(nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4)]), size=64)
    field = deep.trace(torch.zeros(1, 3, 64, 64)).field_of("3")
    assert field.size == (31, 31)
    assert window(field, 1, 1, (64, 64))[2] == 31
    assert window(field, 1, 1, (40, 40))[2] == 31
    deep = cs.Network(nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(2)], *[nn.Conv2d(3, 3, 3, 1, 1)] * 6), size=64)
    field = deep.trace(torch.zeros(1, 3, 64, 64)).field_of("2_5")
    assert window(field, 8, 8, (64, 64))[2] == 26  # 0.4 of the picture, less than the field


# ---- the whole


class Colors(nn.Module):
    """Channels are the three colors, averaged over blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.AvgPool2d(4)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean((2, 3)))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Twelve pictures of 8 x 8, each half in one color, half in another."""
    x = torch.zeros(12, 3, 8, 8)
    for i in range(12):
        x[i, i % 3, :, :4] = 1
        x[i, (i + 1) % 3, :, 4:] = 0.5
    return x


@pytest.fixture(scope="module")
def made(pictures: torch.Tensor) -> Atlas:
    net = cs.Network(Colors(), size=8, categories=["red", "none"])
    return atlas(net, pictures, "layer", samples=100, per_image=0, grid=6, target="red", pixels=8)


def test_cells_hold_what_is_alike_and_show_it(made: Atlas) -> None:
    assert len(made) == 6
    assert made.count.tolist() == [8] * 6
    assert len(made.sample) == made.sample.seen == 48
    for k in range(6):
        strongest = int(made.directions[k].argmax())
        shown = made.crops[k].double().mean((1, 2)) / 255
        assert shown.shape == (4, 3)
        assert shown.argmax(1).tolist() == [strongest] * 4
        assert int((made.directions[k] > 1e-9).sum()) == 1


def test_effects_are_what_cells_add_to_the_logit(made: Atlas, pictures: torch.Tensor) -> None:
    expected = made.directions[:, 0] / 4  # red goes into the logit with weight 1, averaged over four places
    assert torch.allclose(made.effects, expected, atol=1e-7)
    assert made.target == "red"
    assert made.unit == "logit"


def test_directions_are_targets(made: Atlas, pictures: torch.Tensor) -> None:
    red = int(made.effects.argmax())
    assert abs(float(made.direction(red).vector.norm()) - 1) < 1e-9
    net = cs.Network(Colors(), size=8)
    found = cs.explain(net, pictures, "gradient", made.direction(red)).values
    assert torch.allclose(found[:, 0], torch.full((12, 8, 8), 1 / 64))


def test_layers_without_positions(pictures: torch.Tensor) -> None:
    net = cs.Network(Colors(), size=8)
    made = atlas(net, pictures, "head", samples=100, grid=3, least=1, target=0)
    assert int(made.count.sum()) == 12
    assert made.sample.row.tolist() == [-1] * 12
    assert torch.allclose(made.effects, made.directions[:, 0])


def test_pages_and_pictures_are_written(made: Atlas, tmp_path: Path) -> None:
    picture = Image.open(made.save(tmp_path / "atlas.png"))
    assert picture.width >= 560
    text = made.save(tmp_path / "atlas.html").read_text()
    assert text.count("<button") == 6
    assert "https://" not in text
    assert "adds to red" in text
    json.dumps(made.to_dict(), allow_nan=False)
    with pytest.raises(cs.UsageError, match=r"an atlas is a \.png or \.html file"):
        made.save(tmp_path / "atlas.jpg")


def test_icons_take_the_place_of_crops(made: Atlas) -> None:
    seen = []

    def icons(directions: torch.Tensor) -> np.ndarray:
        seen.append(directions)
        return np.full((len(directions), 16, 16, 3), 77, np.uint8)

    assert all((t.icon == 77).all() for t in made.sheet(icons).tiles)
    assert torch.equal(seen[0], made.directions)


def test_what_cannot_be_drawn_is_said(pictures: torch.Tensor) -> None:
    net = cs.Network(Colors(), size=8)
    with pytest.raises(cs.UsageError, match="no cell of the grid has 99 of 12"):
        atlas(net, pictures, "layer", samples=100, per_image=1, least=99)
    with pytest.raises(cs.UsageError, match="expected a grid of 1 or more"):
        atlas(net, pictures, "layer", embedding="tsne")  # type: ignore[arg-type]
    with pytest.raises(cs.UsageError, match="layr"):
        atlas(net, pictures, "layr")


def test_any_sharding_makes_the_same_atlas(made: Atlas, pictures: torch.Tensor) -> None:
    net = cs.Network(Colors(), size=8)
    again = atlas(net, pictures, "layer", samples=100, per_image=0, grid=6, pixels=8, shard_size=5, batch_size=2)
    assert torch.equal(again.sample.image, made.sample.image)
    assert torch.equal(again.directions, made.directions)


def test_a_tile_is_as_large_as_it_counts_and_framed_by_its_effect() -> None:
    gray = np.full((4, 4, 3), 128, np.uint8)
    tiles = [Tile(0, 0, gray, [gray], 100, effect=2.0), Tile(0, 1, gray, [gray], 1, effect=-2.0)]
    pixels = np.asarray(draw(Sheet("t", [], tiles, "x", "logit"), zoom=1)).astype(int)
    inside = (pixels == 128).all(2)
    columns = inside.any(0).nonzero()[0]
    gap = int(np.diff(columns).argmax())
    assert gap + 1 > len(columns) - gap - 1 > 10
    row = pixels[int(inside.any(1).nonzero()[0].mean())]
    left, right = row[columns[0] - 2], row[columns[-1] + 2]
    assert left[0] > left[2]  # orange
    assert right[2] > right[0]  # blue
    assert "\N{MINUS SIGN}2" in page(Sheet("t", [], tiles, "x"))
    with pytest.raises(ValueError, match="no cells"):
        draw(Sheet("t", [], []))


def test_a_reservoir_feeds_it_classes() -> None:
    made = Reservoir(count=4)
    made.update(torch.zeros(2, 1, 2, 2), Samples(torch.tensor([0, 1]), torch.zeros(2, 1, 1, 1), torch.tensor([5, -1]), 2))
    assert set(made.value().category.tolist()) <= {5, -1}


def test_the_scenes_by_the_command_line(tmp_path: Path) -> None:
    from convoscope.cli.run import run

    out = tmp_path / "atlas.png"
    code = run(["atlas", "scenes", "scenes:24", "--layer", "layer3", "--samples", "300", "--grid", "6", "--out", str(out)])
    assert code == 0
    assert Image.open(out).width >= 560
