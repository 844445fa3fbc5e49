"""Zeiler's pictures: every projection against one explanation at a time, cropped to what the unit sees."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.core.statistic import Samples
from convoscope.units import fields, zeiler

PIXELS = torch.rand(7, 3, 24, 28, generator=torch.Generator().manual_seed(0))


def network(channels: int = 3) -> cs.Network:
    torch.manual_seed(0)
    parts = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()]
    return cs.Network(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).double(), size=(24, 28))


NET = network()
DATA = cs.open_dataset(PIXELS)


def best(net: cs.Network = NET, pixels: torch.Tensor = PIXELS, k: int = 3) -> cs.TopPatches:
    statistic = cs.TopPatches(k=k)
    x = torch.cat([net.read(p) for p in pixels])
    index = torch.arange(len(x))
    statistic.update(net.module[:5](x).detach(), Samples(index, x, torch.full_like(index, -1), len(x)))
    return statistic


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_projections_are_those_of_one_neuron_at_a_time(batch_size: int) -> None:
    top = best()
    found = zeiler.project(NET, DATA, "4", top, [3, 1], batch_size=batch_size)
    patches = top.value()
    assert (found.units, found.method) == ((3, 1), "deconvnet")
    for unit in (3, 1):
        assert len(found[unit]) == 3
        for rank, p in enumerate(found[unit]):
            assert (p.image, p.row, p.column) == tuple(
                int(t[unit, rank]) for t in (patches.images, patches.rows, patches.columns)
            )
            assert p.value == float(patches.values[unit, rank])
            x = NET.read(PIXELS[p.image])
            alone = cs.explain(NET, x, "deconvnet", cs.Neuron("4", unit, p.row, p.column)).values[0]
            box = fields.image_box(NET, "4", p.row, p.column).full
            assert p.box == box
            assert torch.allclose(p.projection, fields.cropped(alone, box, 0.0))
            assert torch.equal(p.patch, fields.cropped(NET.picture(x)[0], box))
            assert float(p.projection.abs().sum()) == pytest.approx(float(alone.abs().sum()))  # nothing outside of the field


def test_any_method_at_input_resolution() -> None:
    found = zeiler.project(NET, DATA, "4", best(), [0], method="gradient")
    p = found[0][0]
    x = NET.read(PIXELS[p.image])
    alone = cs.explain(NET, x, "gradient", cs.Neuron("4", 0, p.row, p.column)).values[0]
    assert torch.allclose(p.projection, fields.cropped(alone, p.box, 0.0))


def test_fields_larger_than_the_picture_are_clipped() -> None:
    net = cs.Network(nn.Sequential(nn.Conv2d(3, 2, 31, padding=15), nn.ReLU()).double(), size=(24, 28))
    statistic = cs.TopPatches(k=2)
    x = net.read(PIXELS)
    statistic.update(net.module(x).detach(), Samples(torch.arange(7), x, torch.full((7,), -1), 7))
    for p in zeiler.project(net, DATA, "1", statistic, [0])[0]:
        assert p.box == fields.image_box(net, "1", p.row, p.column).clipped


def test_pictures_of_projections() -> None:
    values = torch.tensor([[[-2.0, 0.0, 2.0]]]).expand(3, -1, -1)
    assert zeiler.pixels_of(values)[0, :, 1].tolist() == [0, 0.5, 1]
    assert zeiler.pixels_of(torch.zeros(3, 2, 2)).max() == 0.5
    assert zeiler.pixels_of(torch.ones(5, 2, 2)).shape == (2, 2, 3)


def test_one_figure_for_a_layer(tmp_path: Path) -> None:
    found = zeiler.project(NET, DATA, "4", best())
    assert found.units == (0, 1, 2, 3, 4)
    path = found.save(tmp_path / "layer.png")
    assert Image.open(path).width > 600
    text = found.save(tmp_path / "layer.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 5 * 2 * 3
    with pytest.raises(cs.UsageError, match=r"expected .png or .html"):
        found.save(tmp_path / "layer.gif")


def test_progress_and_one_channel() -> None:
    net, told = network(1), []
    data = cs.open_dataset(PIXELS[:, :1].contiguous())
    found = zeiler.project(net, data, "4", best(net, PIXELS[:, :1]), [2], progress=lambda d, t: told.append((d, t)))
    assert found[2][0].projection.shape[0] == 1
    assert told == [(3, 3)]
    found.strip()


def test_what_cannot_be_projected() -> None:
    with pytest.raises(cs.UsageError, match="'4' has 5 units, numbered from 0; there is no 5"):
        zeiler.project(NET, DATA, "4", best(), [5])
    with pytest.raises(cs.UsageError, match="'7' has no rows and columns"):
        zeiler.project(NET, DATA, "7", best(), [0])
    with pytest.raises(cs.UsageError, match="unit 4 was not projected; there are 0"):
        zeiler.project(NET, DATA, "4", best(), [0])[4]


def test_the_document_runs() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "look-at-units.md"
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), path.name, "exec"), names)
    assert len(names["crops"]) == 9
    assert len(names["picture"].groups) == 4
    assert names["channel"] == 4


def test_the_folder_offers_its_functions() -> None:
    import convoscope.units as units

    assert units.project is zeiler.project
    assert units.image_box is fields.image_box
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        units.nothing  # noqa: B018
