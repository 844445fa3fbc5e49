"""Feature maps: the activations themselves, their order, their scales, their pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.cli.run import run
from convoscope.show import overlay, strip
from convoscope.units import feature_maps as maps


def network(channels: int = 3) -> cs.Network:
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(channels, 10, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 2),
    ]
    return cs.Network(nn.Sequential(*parts), size=32, name="small")


NET = network()
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_activations() -> None:
    found = maps.feature_maps(NET, X, "0")
    assert torch.allclose(found[1].values, NET.module[0](X)[1].detach())
    assert torch.allclose(found[1].picture, X[1])
    assert found[0].signed
    assert not maps.feature_maps(NET, X, "1")[0].signed
    strength = NET.module[0](X)[0].abs().amax((1, 2))
    assert found[0].order().tolist() == strength.argsort(descending=True).tolist()
    assert found[0].order("index").tolist() == list(range(10))


def test_scales() -> None:
    found = maps.feature_maps(NET, X, "0")[0]
    sizes = found.values[[3, 5]].abs().flatten().double()
    shared = found.limit([3, 5])
    assert shared[0] == shared[1]
    assert float(shared[0]) == pytest.approx(float(np.percentile(sizes.numpy(), 99.5)), rel=1e-5)
    assert torch.equal(found.limit([3, 5], "each"), found.values[[3, 5]].abs().amax((1, 2)))


def test_a_strip_shows_the_maps_asked_for_on_the_scale_it_states() -> None:
    found = maps.feature_maps(NET, X, "0")[0]
    drawn = maps.strip_of(found, count=4)
    tiles = drawn.groups[0].grids[0].tiles
    order = found.order()[:4].tolist()
    assert [int(t.caption.split(":")[0]) for t in tiles] == order
    assert drawn.scale is not None
    limit = float(found.limit(order)[0])
    assert drawn.scale.high == pytest.approx(limit)
    expected = overlay.colorize(found.values[order[2]].numpy(), limit=limit, signed=True)
    assert np.array_equal(tiles[2].image, expected)
    assert "4 of 10 channels of 16 x 16, strongest first" in drawn.about[0]
    chosen = maps.strip_of(found, units=[7, 1], over=True).groups[0].grids[0].tiles
    assert [t.caption.split(":")[0] for t in chosen] == ["7", "1"]
    assert chosen[0].image.shape == (32, 32, 3)


def test_an_overlay_puts_each_activation_at_the_center_of_what_it_sees() -> None:
    """Stride 2, kernel 3, padding 1: the unit in row 4, column 6 is centered on pixel (8, 12)."""
    net = cs.Network(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False)), size=32)
    with torch.no_grad():
        net.module[0].weight.fill_(1)
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 8, 12] = 1
    found = maps.feature_maps(net, x, "0")[0]
    picture = found.over(0, 1.0).astype(int)
    colorful = picture.max(2) - picture.min(2)
    rows, columns = np.mgrid[:32, :32]
    center = ((colorful * rows).sum() / colorful.sum(), (colorful * columns).sum() / colorful.sum())
    assert center == pytest.approx((8, 12), abs=0.05)


def test_several_layers_in_one_strip_each_with_its_own_scale() -> None:
    both = [maps.strip_of(maps.feature_maps(NET, X[:1], layer)[0]) for layer in ("0", "1")]
    drawn = maps.together(both)
    assert [g.title for g in drawn.groups] == ["Feature maps of 0", "Feature maps of 1"]
    assert [g.scale.signed for g in drawn.groups if g.scale] == [True, False]
    assert drawn.scale is None
    assert maps.together(both[:1]) is both[0]
    text = strip.page(drawn)
    assert text.count("<figure>") == 20
    assert "http" not in text.replace("http-equiv", "")
    assert strip.figure(drawn).width > 800


def test_numbers_of_the_maps() -> None:
    found = maps.feature_maps(NET, X, "0")[0]
    row = maps.rows_of(found)[3]
    best = int(found.values[3].argmax())
    assert (row["row"], row["column"]) == divmod(best, 16)
    assert row["largest"] == float(found.values[3].max())
    assert row["mean"] == pytest.approx(float(found.values[3].mean()))
    assert [r["unit"] for r in maps.rows_of(found, [5, 2])] == [5, 2]


def test_a_layer_that_is_silent_is_drawn_as_zero() -> None:
    net = network()
    with torch.no_grad():
        net.module[0].weight.zero_()
        net.module[0].bias.fill_(-1)
    drawn = maps.strip_of(maps.feature_maps(net, X, "1")[0])
    assert "10 are zero everywhere in this picture" in drawn.about[0]
    strip.figure(drawn)


def test_networks_of_one_channel() -> None:
    found = maps.feature_maps(network(1), X[:, :1], "1")[0]
    assert found.picture.shape == (3, 32, 32)
    strip.figure(maps.strip_of(found, over=True))


def test_what_has_no_maps_says_so() -> None:
    with pytest.raises(cs.UnsupportedError, match=r"'4' has shape \(2,\), no rows and columns"):
        maps.feature_maps(NET, X, "4")
    with pytest.raises(cs.AddressError, match="layer '9' does not exist"):
        maps.feature_maps(NET, X, "9")
    found = maps.feature_maps(NET, X, "0")[0]
    with pytest.raises(cs.UsageError, match="'0' has 10 channels, numbered from 0; there is no 10"):
        maps.strip_of(found, units=[10])
    with pytest.raises(cs.UsageError, match="no order 'size'"):
        maps.strip_of(found, sort="size")  # type: ignore[arg-type]
    with pytest.raises(cs.UsageError, match="no scale 'all'"):
        found.limit(scale="all")  # type: ignore[arg-type]
    with pytest.raises(cs.UsageError, match="count is 0"):
        maps.strip_of(found, count=0)


# ---- commands
def test_commands_draw_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture)
    asked = ["feature-maps", str(picture), "--model", "scenes", "--count", "6"]
    assert run([*asked, "--over", "--out", str(tmp_path / "maps.png")]) == 0
    assert Image.open(tmp_path / "maps.png").width > 500
    assert run([*asked, "--out", str(tmp_path / "maps.html")]) == 0
    assert "convoscope feature-maps" not in capsys.readouterr().out
    assert "Feature maps of" in (tmp_path / "maps.html").read_text(encoding="utf-8")
    assert run([*asked, "--unit", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "convoscope.feature-maps/1"
    assert [u["unit"] for u in document["layers"][0]["units"]] == [2]
    assert run(["weights", "scenes", "--out", str(tmp_path / "w.png"), "--shared"]) == 0
    assert Image.open(tmp_path / "w.png").width > 400
    capsys.readouterr()
    assert run(["weights", "scenes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "convoscope.weights/1"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["feature-maps", "p.png", "--model", "scenes", "--out", "x.gif"], "expected a picture, .png, or a page, .html"),
        (["feature-maps", "p.png", "--model", "scenes", "--sort", "size"], "no order 'size'"),
        (["weights", "scenes", "--through", "input"], "--through needs --layer"),
        (["weights", "scenes", "--layer", "nothing"], "layer 'nothing' does not exist"),
    ],
)
def test_commands_refuse_in_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
