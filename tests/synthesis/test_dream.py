"""Dreams: the step against a plain one, windows against the whole picture, sizes, channels, interruptions."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.synthesis.dream_tiles import Slopes, axis, leveled, mirrored
from convoscope.targets.features import BestMatch, DotCosine, FeatureDistance


def convolutions(channels: int = 3) -> nn.Sequential:
    """Sees 7 pixels, without padding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)
    ).double()  # fmt: skip


def network(channels: int = 3, **settings: object) -> cs.Network:
    return cs.Network(convolutions(channels), mean=[0.4] * channels, std=[0.3] * channels, **settings)  # type: ignore[arg-type]


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_beyond_the_border_a_picture_goes_on_as_in_a_mirror() -> None:
    row = torch.arange(5.0)
    expected = F.pad(row[None, None], (4, 4), mode="reflect")[0, 0]
    assert torch.equal(row[mirrored(torch.arange(-4, 9), 5)], expected)
    assert mirrored(torch.arange(-3, 4), 1).tolist() == [0] * 7


@pytest.mark.parametrize(
    ("length", "tile", "halo", "jitter"), [(100, 32, 4, 8), (7, 64, 8, 7), (33, 16, 0, 0), (500, 40, 5, 32)]
)
def test_windows_own_every_pixel_once_at_every_shift(length: int, tile: int, halo: int, jitter: int) -> None:
    plan = axis(length, tile, halo, jitter)
    assert plan.side <= tile
    assert plan.room >= jitter
    for shift in range(plan.room + 1):
        owned: list[int] = []
        for shown, own, inside in plan.windows(shift):
            assert len(shown) == plan.side
            assert inside.start >= halo
            assert inside.stop <= plan.side - halo
            assert shown[inside].tolist() == list(range(own.start, own.stop))  # and shows them as they are
            owned += range(own.start, own.stop)
        assert owned == list(range(length))


def test_gradients_in_windows_are_those_of_the_whole_picture() -> None:
    net, x = network(), picture(41, 57)[None]
    slopes = Slopes(net, cs.Layer("4"), 3, lambda n: None)
    halo = 6  # what a pixel reaches, and what that sees
    whole, _ = slopes(x, (axis(41, 400, halo, 0), axis(57, 400, halo, 0)), (0, 0))
    for shifts in ((0, 0), (3, 5)):
        parts, _ = slopes(x, (axis(41, 24, halo, 8), axis(57, 24, halo, 8)), shifts)
        torch.testing.assert_close(parts, whole)
    too_narrow, _ = slopes(x, (axis(41, 24, 2, 8), axis(57, 24, 2, 8)), (0, 0))
    assert not torch.allclose(too_narrow, whole)


def test_a_step_is_the_rate_times_the_normalized_gradient() -> None:
    net, x = network(), picture(20, 24) * 0.5 + 0.25
    made = cs.dream(net, x, cs.Channel("4", 2), octaves=1, steps=1, rate=0.01, jitter=0, bands=1, halo=0)
    pixels = x[None].clone().requires_grad_()
    net.module((pixels - 0.4) / 0.3)[:, 2].mean().backward()
    expected = x + 0.01 * pixels.grad / pixels.grad.abs().mean()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(made.pixels, expected)
    assert made.history == [pytest.approx(float(net.module((x[None] - 0.4) / 0.3)[:, 2].mean().detach()))]


def test_detail_of_the_picture_survives_the_small_octaves() -> None:
    x = picture(60, 70)
    made = cs.dream(network(), x, "4", octaves=3, scale=1.5, steps=2, rate=1e-9, jitter=4)
    torch.testing.assert_close(made.pixels[0], x, atol=1e-6, rtol=0)
    assert made.diagnostics["octave sizes"] == [(27, 31), (40, 47), (60, 70)]


def test_bands_are_evened_out() -> None:
    g = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(1, 3, 64, 64, generator=g), torch.randn(1, 3, 4, 4, generator=g)
    slope = 100 * fine + F.interpolate(coarse, (64, 64), mode="bilinear")

    def share(made: Tensor) -> float:  # of what is coarse
        return float(F.avg_pool2d(made, 16).square().mean() / made.square().mean())

    assert share(leveled(slope.clone(), 4)) > 10 * share(slope)
    torch.testing.assert_close(leveled(slope.clone(), 1), slope / slope.square().mean().sqrt())


def test_the_same_seed_gives_the_same_dream_and_another_one_another() -> None:
    net, x = network(), picture(40, 50)
    settings = {"octaves": 2, "steps": 3, "jitter": 8, "tile": 32, "halo": 4}
    one, two, other = (cs.dream(net, x, "4", seed=s, **settings) for s in (0, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_an_interrupted_dream_goes_on_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    net, x = network(), picture(40, 50)
    settings = {"octaves": 3, "steps": 3, "jitter": 8, "tile": 32, "halo": 4}
    whole = cs.dream(net, x, "4", **settings)  # type: ignore[arg-type]

    def interrupt(done: int, total: int) -> None:
        assert total == 9
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cs.dream(net, x, "4", progress=interrupt, store=tmp_path, **settings)  # type: ignore[arg-type]
    steps: list[int] = []
    made = cs.dream(net, x, "4", store=tmp_path, watch=lambda n, p: steps.append(n), **settings)  # type: ignore[arg-type]
    assert steps == list(range(stop + 1, 10))
    assert torch.equal(made.pixels, whole.pixels)
    assert made.history == whole.history
    assert [n for n, _ in made.frames] == [n for n, _ in whole.frames]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(made.frames, whole.frames, strict=True))
    again = cs.dream(net, x, "4", store=tmp_path, **settings)  # type: ignore[arg-type]
    assert torch.equal(again.pixels, whole.pixels)
    assert again.diagnostics["evaluations"] == whole.diagnostics["evaluations"]


def test_the_network_never_sees_more_than_windows() -> None:
    net = network()
    seen: list[tuple[int, ...]] = []
    handle = net.module.register_forward_pre_hook(lambda m, a: seen.append(tuple(a[0].shape)))
    made = cs.dream(net, picture(130, 170), "4", octaves=2, steps=1, tile=48, halo=8, batch_size=2)
    handle.remove()
    assert max(h * w for _, _, h, w in seen) <= 48**2
    assert max(n for n, *_ in seen) == 2
    assert made.pixels.shape == (1, 3, 130, 170)
    assert not net.module._forward_hooks
    assert all(p.grad is None and p.requires_grad for p in net.module.parameters())


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    made = cs.dream(network(channels), picture(30, 33, channels), "4", octaves=2, steps=2, jitter=4)
    assert made.pixels.shape == (1, channels, 30, 33)
    assert made.history[-1] > made.history[0]
    assert made.image().size == (33, 30)


def test_a_network_of_one_size_dreams_at_any() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)).double()
    net = cs.Network(module, size=28, channels=1)
    made = cs.dream(net, picture(45, 60, 1), 3, octaves=2, steps=4)
    assert made.pixels.shape == (1, 1, 45, 60)
    assert made.settings["tile"] == 28
    with pytest.raises(cs.UsageError, match="takes 28 x 28"):
        cs.dream(net, picture(45, 60, 1), 3, tile=64)


def test_an_open_target_is_that_of_the_picture() -> None:
    module = nn.Sequential(convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    net, x = cs.Network(module, size=32, categories=list("abcde")), picture(32, 32)
    made = cs.dream(net, x, cs.Logit(), octaves=1, steps=1)
    assert made.target.index == (int(module(net.normalize(x[None])).argmax()),)  # type: ignore[attr-defined]


def test_a_guide_draws_each_place_to_its_best_match() -> None:
    net, x, guide = network(), picture(16, 16)[None], picture(12, 14)[None].flip(3)
    features = net.module(net.normalize(guide))[0].flatten(1)
    activations = net.module(net.normalize(x)).detach().requires_grad_()
    from convoscope.core.record import Activations

    target = BestMatch("4", features)
    score = target(Activations.of({"4": activations}, torch.zeros(1, dtype=torch.long)))
    expected = 0.0
    for place in activations[0].flatten(1).T:
        expected += max(float(place.detach() @ other.detach()) for other in features.T)
    assert float(score) == pytest.approx(expected)
    score.sum().backward()
    best = (activations[0].flatten(1).T @ features).argmax(1)
    torch.testing.assert_close(activations.grad[0].flatten(1), features[:, best])  # type: ignore[index]
    made = cs.dream(net, x[0], "4", guide=guide[0], octaves=1, steps=6)
    assert made.history[-1] > made.history[0]
    with pytest.raises(cs.UsageError, match="guide"):
        cs.dream(net, x[0], cs.Logit(1), guide=guide[0])


def test_feature_targets_are_their_formulas() -> None:
    from convoscope.core.record import Activations

    g = torch.Generator().manual_seed(0)
    code, values = torch.randn(4, 3, 5, generator=g).double(), torch.randn(2, 4, 3, 5, generator=g).double()
    found = Activations.of({"a": values}, torch.zeros(2, dtype=torch.long))
    errors, agreement = FeatureDistance("a", code)(found), DotCosine("a", code, 2.0)(found)
    for row in range(2):
        assert float(errors[row]) == pytest.approx(float((values[row] - code).square().sum() / code.square().sum()))
        total = 0.0
        for i in range(3):
            for j in range(5):
                u, v = values[row, :, i, j], code[:, i, j]
                dot = float(u @ v)
                total += dot * max(dot / math.sqrt(float(u @ u) * float(v @ v)), 0.1) ** 2
        assert float(agreement[row]) == pytest.approx(total / 15)
    with pytest.raises(cs.UsageError, match="the code has"):
        FeatureDistance("a", code[:, :2])(found)


@pytest.fixture
def dreamt() -> cs.Dream:
    return cs.dream(network(), picture(30, 40), "4", octaves=2, steps=2)


def test_files_hold_the_dream_and_its_settings(dreamt: cs.Dream, tmp_path: Path) -> None:
    import json

    from PIL import Image
    from safetensors.torch import load_file

    with Image.open(dreamt.save(tmp_path / "d.png")) as image:
        assert image.size == (40, 30)
        assert json.loads(image.info["convoscope"])["settings"]["octaves"] == 2
    torch.testing.assert_close(load_file(dreamt.save(tmp_path / "d.safetensors"))["pixels"], dreamt.pixels)
    page = dreamt.save(tmp_path / "d.html").read_text()
    assert page.count("<img") >= 5
    assert "jitter: 32" in page
    assert dreamt.strip().width > 300
    with pytest.raises(cs.UsageError, match=r"expected \.png"):
        dreamt.save(tmp_path / "d.bmp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"scale": 1.0}, "scale is above 1"), ({"octaves": 0}, "octaves is 0"), ({"tile": 20, "halo": 10}, "between two halos")],
)
def test_what_makes_no_sense_is_said(settings: dict[str, int], message: str) -> None:
    with pytest.raises(cs.UsageError, match=message):
        cs.dream(network(), picture(30, 40), "4", **settings)  # type: ignore[arg-type]
