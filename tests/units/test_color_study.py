"""The study of color: shares and hues of units made for it, its table, picture and command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.cli.run import run
from convoscope.show.hues import HueRow, hue_figure, rose
from convoscope.units.color_study import LayerColors

COLORS = {"red": (1, 0, 0), "cyan": (0, 1, 1), "blue": (0, 0, 1), "gray": (0.6, 0.6, 0.6), "dark": (0.1, 0.1, 0.1)}


@pytest.fixture
def study() -> cs.ColorStudy:
    """Units: red, blue, red left of cyan, intensity, and one that nothing excites."""
    weight = torch.zeros(5, 3, 1, 2)
    weight[0, :, 0, 0] = torch.tensor([1.0, -0.5, -0.5])
    weight[1, :, 0, 0] = torch.tensor([-0.5, -0.5, 1.0])
    weight[2, :, 0] = torch.tensor([[1.0, -1], [-0.5, 0.5], [-0.5, 0.5]])
    weight[3, :, 0, 0] = 1 / 3
    weight[4] = -1
    module = nn.Sequential(nn.Conv2d(3, 5, (1, 2), (1, 2), bias=False), nn.ReLU())
    with torch.no_grad():
        module[0].weight.copy_(weight)
    names = ["red", "blue", "gray", "dark"]
    pictures = [torch.tensor(COLORS[n]).view(3, 1, 1).expand(3, 8, 8) for n in names]
    both = torch.cat([torch.tensor(COLORS[n]).view(3, 1, 1).expand(3, 8, 1) for n in ("red", "cyan")], 2).repeat(1, 1, 4)
    return cs.color_study(cs.Network(module, size=8, name="made"), torch.stack([*pictures, both]), ["1"], patches=1)


def test_units_made_for_color_are_found(study: cs.ColorStudy) -> None:
    (layer,) = study.layers
    assert layer.index[:4].tolist() == pytest.approx([1, 1, 1, 0], abs=1e-6)
    assert layer.index[4].isnan()
    assert layer.alive == 4
    assert layer.shares() == (0.25, 0, 0.75)
    assert layer.axis_shares() == pytest.approx({"red-cyan": 2 / 3, "blue-yellow": 1 / 3, "magenta-green": 0})
    assert layer.opponent_share() == pytest.approx(1 / 3)
    assert layer.hue[:2].tolist() == pytest.approx([0, 240], abs=1e-4)
    assert layer.hue_shares().tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0, 1 / 6, 0, 1 / 3, 0, 0, 0], abs=1e-6)
    assert sorted(layer.strongest(3)) == [0, 1, 2]
    assert len(layer.strongest()) == 4
    torch.testing.assert_close(layer.features[2, :, 0], torch.tensor([[1.0, 0], [0, 1], [0, 1]]))


def test_the_table_and_the_document(study: cs.ColorStudy) -> None:
    (row,) = study.rows()
    assert dict(zip(study.header, row, strict=True)) == {
        "layer": "1", "units": "5", "excited": "4", "index": "1.00", "not selective": "25 %", "a little": "0 %",
        "selective": "75 %", "opponent": "33 %", "red-cyan": "67 %", "blue-yellow": "33 %", "magenta-green": "0 %",
        "hue": "red", "off the others": "",
    }  # fmt: skip
    assert "red-cyan" in str(study)
    document = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert document["layers"][0]["each"][4] == {
        "color_index": None, "hue": None, "hue_strength": None, "opponent_strength": None, "axis": None,
    }  # fmt: skip
    assert document["layers"][0]["each"][2]["axis"] == "red-cyan"


def test_hues_of_the_selective_and_of_the_others() -> None:
    hues = torch.zeros(11, 12, dtype=torch.float64)
    hues[:5, 0] = 0.3
    hues[5:10, 3], hues[5:10, 0] = 0.01, 0.03
    none = torch.full((11,), torch.nan)
    index = torch.tensor([0.5] * 5 + [0.05] * 5 + [0.2])
    layer = LayerColors("a", index, torch.zeros(11, 3, 1, 1), hues, none, none, none, torch.zeros(11, dtype=torch.int64))
    assert layer.hue_shares()[0] == 1
    assert layer.hue_shares(False)[[0, 3]].tolist() == pytest.approx([0.75, 0.25])
    assert layer.off() == pytest.approx(0.25)
    assert replace(layer, index=index * 0.1).off() is None


def test_the_picture(study: cs.ColorStudy, tmp_path: Path) -> None:
    assert study.save(tmp_path / "study.png").stat().st_size > 5000
    with pytest.raises(cs.UsageError, match=r"saved as \.png"):
        study.save(tmp_path / "study.jpg")


def test_gray_networks_have_no_colors() -> None:
    with pytest.raises(cs.UnsupportedError, match="three channels"):
        cs.color_study(cs.Network(nn.Conv2d(1, 2, 3), size=8), torch.rand(2, 1, 8, 8), ["output"])


def test_areas_of_a_rose_are_shares() -> None:
    pixels = np.asarray(rose([0.5, 0, 0, 0.25, 0, 0, 0, 0, 0.25, 0, 0, 0], 200)).astype(int)
    ink = (pixels.max(2) - pixels.min(2)) > 60
    red = ink & (pixels[..., 0] > 180) & (pixels[..., 2] < 120) & (pixels[..., 1] < 120)
    assert red[:, 100:].sum() > 0.97 * red.sum()  # to the right
    assert red.sum() == pytest.approx(math.pi * 100**2 / 12, rel=0.1)
    blue = ink & (pixels[..., 2] > 180) & (pixels[..., 0] < 120)
    assert blue.sum() == pytest.approx(red.sum() / 2, rel=0.15)
    assert blue[100:].sum() == blue.sum()  # 240 degrees against the clock is below
    assert (np.asarray(rose([0.0] * 12, 40)) > 100).all()


def test_figures_of_no_units_and_of_no_layers() -> None:
    row = HueRow("empty", [], (0.0, 0.0, 0.0), [0.0] * 12)
    assert hue_figure([row], "title").width > 300
    with pytest.raises(ValueError, match="no layers"):
        hue_figure([], "title")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["color", "scenes", "scenes:12", "--layers", "stem,layer1", "--patches", "2", "--out", str(tmp_path / "a.png")]
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "convoscope.color/1"
    assert [layer["layer"] for layer in document["layers"]] == ["stem", "layer1"]
    assert (tmp_path / "a.png").is_file()
    assert run(words) == 0
    assert "magenta-green" in capsys.readouterr().out
    assert run(["color", "scenes", "scenes:4", "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_every_column_of_the_table_of_units() -> None:
    network, data = cs.load("scenes"), cs.open_dataset("scenes:24")
    from convoscope.units.table import statistics

    found = cs.sweep(network, data, statistics(3), ["layer1"])
    table = cs.unit_table(network, data, "layer1", found["layer1"], altered=("color", "orientation", "symmetry"))
    assert all(column.shape == (16,) for column in table.values())
    expected = "maximum lifetime-sparseness dead zero-share class-selectivity class-index top-class nearest-correlation "
    expected += "color-index hue color-axis orientation-index symmetry-left-right"
    assert set(expected.split()) <= set(table)
    top: Tensor = table["top-class"][~table["dead"]]
    assert ((top >= 0) & (top < len(data.classes))).all()
    logits = cs.sweep(network, data, statistics(3), ["head"])  # units without rows and columns
    of_logits = cs.unit_table(network, data, "head", logits["head"], altered=("color", "orientation", "symmetry"))
    assert set(of_logits) == set(table)
    assert (of_logits["color-index"] > 0.1).any()
    plain = cs.unit_table(network, data, "layer1", found["layer1"])
    assert "color-index" not in plain
    with pytest.raises(cs.UsageError, match="did you mean 'color'"):
        cs.unit_table(network, data, "layer1", found["layer1"], altered=("colour",))
    with pytest.raises(cs.UsageError, match="need the strongest patches"):
        cs.unit_table(network, data, "layer1", {}, altered=("color",))


def test_the_first_layer_of_a_real_network_divides_its_labor(testdata: Path, torch_home: Path, torchvision: object) -> None:
    study = cs.color_study(cs.load("torchvision:resnet18"), testdata / "imagenet_samples" / "images", ["conv1"])
    (layer,) = study.layers
    blind, between, selective = layer.shares()
    assert blind > 0.5
    assert between < 0.1
    assert selective > 0.2
    red = int(layer.index.nan_to_num(-1).argmax())
    assert layer.index[red] > 0.95
    assert layer.features.shape[2:] == (7, 7)
    assert layer.off() is not None
    assert layer.off() > 0.2
