"""Caricatures agree with the picture's features; accents raise a target and keep to the picture."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.synthesis.caricature import Near


def network(channels: int = 3) -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ).double()  # fmt: skip
    return cs.Network(module, size=16, mean=[0.4] * channels, std=[0.3] * channels, categories=list("abcde"))


def picture(channels: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return nn.functional.interpolate(torch.rand(1, channels, 4, 4, generator=g).double(), 16, mode="bilinear")[0] * 0.8 + 0.1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_caricature_has_more_of_the_features_of_the_picture(channels: int) -> None:
    net, of = network(channels), picture(channels)
    made = cs.caricature(net, of, ["0", "2"], steps=120, transforms=())
    assert made.pixels.shape == (2, channels, 16, 16)
    for row, layer in enumerate((0, 2)):
        a, c = (net.module[: layer + 1](net.normalize(p[None].double())).detach() for p in (made.pixels[row], of))
        assert float((a * c).sum()) > float((c * c).sum())  # exaggerated
        assert float(torch.cosine_similarity(a.flatten(), c.flatten(), 0)) > 0.6  # and alike
        assert made.history[-1, row] > made.history[0, row]


def test_a_caricature_may_begin_with_the_picture() -> None:
    made = cs.caricature(network(), picture(), "2", start="picture", steps=0)
    torch.testing.assert_close(made.pixels[0].double(), picture(), atol=1e-3, rtol=0)


def test_near_is_the_relative_error_of_features() -> None:
    net, of = network(), picture()[None]
    other = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = Near(net, "0", net.normalize(of))(other)
    a, c = net.module[0](net.normalize(other)), net.module[0](net.normalize(of))
    torch.testing.assert_close(found, -(a - c).flatten(1).square().sum(1) / c.square().sum())
    assert float(Near(net, "0", net.normalize(of))(of).detach()) == 0


def test_an_accent_raises_the_target_and_keeps_to_the_picture() -> None:
    net, of = network(), picture()
    with torch.no_grad():
        before = float(net.module(net.normalize(of[None]))[0, 2])
    free = cs.accentuate(net, of, ["c"], weight=0.0, steps=40, transforms=())
    kept = cs.accentuate(net, of, ["c"], weight=100.0, near="0", steps=40, transforms=())
    assert free.scores[0] > kept.scores[0] > before
    away = [float((m.pixels[0].double() - of).square().mean()) for m in (free, kept)]
    assert away[1] < away[0] / 4


def test_an_open_target_is_that_of_the_picture() -> None:
    net, of = network(), picture()
    made = cs.accentuate(net, of, cs.Logit(), steps=1)
    assert made.targets[0].index == (int(net.module(net.normalize(of[None])).argmax()),)  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_pictures() -> None:
    net, of = network(), picture()
    one, two, other = (cs.caricature(net, of, "2", steps=4, seed=s).pixels for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
