"""A Synthesis: pictures, files, words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import convoscope as cs
from convoscope.synthesis.result import name_of


def made(channels: int = 3, count: int = 3) -> cs.Synthesis:
    torch.manual_seed(0)
    net = cs.Network(nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU()), 12, name="plain", channels=channels)
    return cs.ascend(net, [cs.Channel("0", k) for k in range(count)], "pixels", steps=3, rate=0.5, seed=9)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_one_picture_is_its_pixels(channels: int) -> None:
    found = made(channels)
    bare = np.asarray(found.image(1))
    expected = found.pixels[1] if channels == 3 else found.pixels[1].mean(0, keepdim=True).expand(3, -1, -1)
    assert np.array_equal(bare, expected.mul(255).round().byte().permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(found.image(-1)), np.asarray(found.image(2)))
    for index in (3, -4):
        with pytest.raises(cs.UsageError, match="0 to 2"):
            found.image(index)


def test_files_hold_what_made_them(tmp_path: Path) -> None:
    found = made()
    assert found.to_dict() == json.loads(json.dumps(found.to_dict()))
    found.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["convoscope"]) == found.to_dict()  # type: ignore[attr-defined]
    page = found.save(tmp_path / "a.html").read_text(encoding="utf-8")
    for words in ("plain", "steps: 3", "seed: 9", "step 2", "0:2", "rate: 0.5"):
        assert words in page
    found.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("pixels"), found.pixels)
        assert torch.equal(file.get_tensor("history"), found.history)
        assert json.loads(file.metadata()["convoscope"]) == found.to_dict()
    with pytest.raises(cs.UsageError, match=r"expected \.png"):
        found.save(tmp_path / "a.gif")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_pictures_in_the_networks_space() -> None:
    found = made()
    maps = found.network.module(found.inputs)
    scores = [float(maps[k, k].mean().detach()) for k in range(3)]
    raw = [float(found.network.module[0](found.inputs)[k, k].mean().detach()) for k in range(3)]
    assert found.scores == pytest.approx(raw, rel=1e-4)
    assert all(s >= r - 1e-6 for s, r in zip(scores, raw, strict=True))


def test_words_for_pictures() -> None:
    found = made()
    assert found.names == ["0:0", "0:1", "0:2"]
    net = cs.Network(nn.Conv2d(3, 8, 3), 12, categories=["a, first", "b"])
    for target, name in (
        (cs.Logit(0), "a"), (cs.LogProbability(1), "log p(b)"), (cs.Probability(0) - 2 * cs.Logit(1), "p(a) - 2 b"),
        (cs.Neuron("x", 3, 1, 2), "x:3 at 1,2"), (cs.Layer("x"), "layer of x"), (-0.5 * cs.Channel("x", 1), "- 0.5 x:1"),
    ):  # fmt: skip
        assert name_of(target, net) == name
    assert "3 pictures of 12 x 12 for plain" in repr(found)
    assert "<img" in found._repr_html_()
    assert len(found) == 3
    assert found.strip().width > 300
