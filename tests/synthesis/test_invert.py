"""Inversion: codes that are met, errors against their formula, the paper's priors, interruptions, generators."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.images.base import Space
from convoscope.synthesis.invert_mahendran import RATES, NaturalPrior, schedule, strength

SIZE = (12, 14)


def network(channels: int = 3) -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5),
    ).double()  # fmt: skip
    return cs.Network(module, size=SIZE, mean=[0.4] * channels, std=[0.3] * channels)


def pictures(count: int = 2, channels: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 4, 4, generator=g, dtype=torch.float64)
    return list(nn.functional.interpolate(coarse, SIZE, mode="bilinear") * 0.8 + 0.1)


def error(net: cs.Network, layer: int, made: Tensor, of: Tensor, log: bool = False) -> float:
    a, c = (net.module[: layer + 1](net.normalize(p[None].double())) for p in (made, of))
    a, c = (t.log_softmax(1) if log else t for t in (a, c))
    return float(((a - c).square().sum() / c.square().sum()).detach())


def test_codes_are_met_and_errors_are_their_formula() -> None:
    net, of = network(), pictures()
    made = cs.invert(net, of, ["0", "2", "output", "log-probabilities"], steps=150)
    assert made.pixels.shape == (4, 2, 3, *SIZE)
    for k in range(2):
        for row, (layer, log) in enumerate([(0, False), (2, False), (6, False), (6, True)]):
            assert made.errors[row][k] == pytest.approx(error(net, layer, made.pixels[row, k], of[k], log), rel=1e-3, abs=1e-9)
            assert made.errors[row][k] < 1e-3
    first = torch.stack(of).float()
    expected = (made.pixels[0] - first).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(torch.tensor(made.differences[0]), expected)  # type: ignore[index]
    assert float(expected.max()) < 0.05  # a first layer that is one to one gives the picture itself


def test_codes_may_be_given_without_pictures() -> None:
    net, of = network(), torch.stack(pictures())
    codes = net.module[:3](net.normalize(of)).detach()
    made = cs.invert(net, {"2": codes}, steps=40)
    assert made.originals is None
    assert made.differences is None
    assert torch.equal(made.pixels, cs.invert(net, of, "2", steps=40).pixels)


def test_a_picture_does_not_depend_on_what_else_is_inverted() -> None:
    net, of = network(), pictures(3)
    many = cs.invert(net, of, ["0", "2"], steps=20, batch_size=2)
    single = cs.invert(net, of[:1], "2", steps=20)
    torch.testing.assert_close(many.pixels[1, :1], single.pixels[0], atol=1e-5, rtol=0)
    assert not torch.allclose(many.pixels[1, 0], cs.invert(net, of[:1], "2", steps=20, seed=1).pixels[0, 0])


@pytest.mark.parametrize("by", ["fourier", "mahendran-vedaldi"])
def test_an_interrupted_inversion_goes_on_to_the_same_bits(by: str, tmp_path: Path) -> None:
    net, of = network(), pictures()
    settings = {"by": by} if by != "fourier" else {"steps": 60}
    whole = cs.invert(net, of, ["0", "2"], **settings)  # type: ignore[arg-type]
    steps = len(whole.history)

    def interrupt(done: int, total: int) -> None:
        assert total == 4 * steps
        if done >= 2.5 * steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cs.invert(net, of, ["0", "2"], progress=interrupt, store=tmp_path, **settings)  # type: ignore[arg-type]
    told: list[int] = []
    made = cs.invert(
        net, of, ["0", "2"], store=tmp_path, progress=lambda done, total: told.append(done), **settings  # type: ignore[arg-type]
    )  # fmt: skip
    assert told[0] > 2.5 * steps
    assert told[-1] == 4 * steps
    assert torch.equal(made.pixels, whole.pixels)
    assert torch.equal(made.history, whole.history)
    assert made.errors == whole.errors


def test_the_priors_are_those_of_the_paper() -> None:
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    found = NaturalPrior(10.0, mean, std)(pixels)
    sigma = 255 * math.sqrt(sum(s * s for s in std) / 3)
    for row in range(2):
        x = [[[255 * (float(pixels[row, c, i, j]) - mean[c]) for j in range(5)] for i in range(4)] for c in range(3)]
        varies = large = 0.0
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    down = x[c][i + 1][j] - x[c][i][j] if i < 3 else 0.0
                    right = x[c][i][j + 1] - x[c][i][j] if j < 4 else 0.0
                    varies += down**2 + right**2
                    large += x[c][i][j] ** 6
        assert float(found[row]) == pytest.approx((10 / 2 * varies + 8e-10 / 2 * large) / (60 * sigma**2))
    space = Space(3, (4, 5), torch.device("cpu"))
    assert schedule(space, std)[0] == pytest.approx(0.004 * 60 * (sigma / 255) ** 2)
    assert [RATES.count(r) for r in (0.004, 0.0004, 0.00004)] == [100, 200, 100]


def test_total_variation_counts_more_the_deeper_the_layer() -> None:
    net = network()
    space = Space(3, SIZE, net.device, net.dtype)
    assert [strength(net, space, a) for a in ("0", "2", "output")] == [1.0, 10.0, 100.0]


def test_a_generator_is_asked_once() -> None:
    net, of = network(), pictures()
    asked: list[tuple[int, ...]] = []

    def generator(code: Tensor) -> Tensor:
        asked.append(tuple(code.shape))
        return code[:, :3, :6, :7].sigmoid()

    made = cs.invert(net, of, "2", by="generator", generator=generator)
    assert asked == [(2, 16, *SIZE)]
    assert made.pixels.shape == (1, 2, 3, *SIZE)
    assert made.errors[0][0] == pytest.approx(error(net, 2, made.pixels[0, 0], of[0]), rel=1e-3)
    assert made.history.shape[0] == 0
    assert made.image().width > 200
    with pytest.raises(cs.UsageError, match="no generator for '0'"):
        cs.invert(net, of, ["0", "2"], by="generator", generator={"2": generator})
    with pytest.raises(cs.UsageError, match=re.escape("expected pixels (2, 3")):
        cs.invert(net, of, "2", by="generator", generator=lambda code: code)


def test_a_trained_generator_inverts_its_own_layer_and_network() -> None:
    net, of = network(), pictures(1)
    module = nn.Sequential(nn.Conv2d(16, 3, 1), nn.Sigmoid()).double()
    mean = torch.zeros(16, *SIZE)
    told = {"layer": "2", "network": net.name, "network_hash": net.hash}
    generator = cs.Generator(module, (16, *SIZE), prior="features", mean=mean, deviation=mean + 1, made=told)
    made = cs.invert(net, of, "2", by="generator", generator=generator)
    expected = module(net.module[:3](net.normalize(of[0][None]))).detach().float()
    torch.testing.assert_close(made.pixels[0], expected)
    with pytest.raises(cs.UsageError, match="inverts '2' of"):
        cs.invert(net, of, "0", by="generator", generator=generator)
    other = cs.Network(nn.Sequential(*net.module[:3], nn.Flatten(), nn.Linear(16 * 12 * 14, 2)).double(), size=SIZE)
    with pytest.raises(cs.UsageError, match="not '2' of Sequential"):
        cs.invert(other, of, "2", by="generator", generator=generator)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_another_parametrization(channels: int) -> None:
    made = cs.invert(network(channels), pictures(1, channels), "0", by=cs.Pixels(), steps=60)
    assert made.errors[0][0] < 0.01
    assert made.image("0").size == (SIZE[1], SIZE[0])


def test_files_hold_pictures_errors_and_settings(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors import safe_open

    made = cs.invert(network(), pictures(), ["0", "2"], steps=3)
    with Image.open(made.save(tmp_path / "i.png")) as image:
        assert json.loads(image.info["convoscope"])["layers"][1]["errors"] == made.errors[1]
    with safe_open(made.save(tmp_path / "i.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("pixels"), made.pixels)
        assert torch.equal(file.get_tensor("originals"), made.originals)
    page = made.save(tmp_path / "i.html").read_text()
    assert page.count("<img") >= 6
    assert "steps: 3" in page
    assert made.strip().height > 100
    assert "0 " in repr(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "name the layers"), ({"layers": ["0", "0"]}, "each once"),
        ({"layers": "zero"}, "no layer|does not exist"),
        ({"layers": "0", "by": "dreaming"}, "no inversion by"), ({"layers": "0", "steps": 0}, "at least 1"),
        ({"layers": "0", "by": "mahendran-vedaldi", "steps": 9}, "of the paper"),
        ({"layers": "0", "by": cs.Fourier(99)}, "leave its size out"), ({"source": {"2": torch.rand(1, 2, 3)}}, "the code has"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said(change: dict[str, object], message: str) -> None:
    with pytest.raises(cs.ConvoscopeError, match=message):
        cs.invert(network(), **{"source": pictures(1), **change})  # type: ignore[arg-type]
