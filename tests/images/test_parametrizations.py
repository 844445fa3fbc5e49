"""Laplacian, CPPN and MACO pictures against their formulas; and what every parametrization has to do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.images.base import Draws, Space
from convoscope.images.maco import MACO, resized

CPU = torch.device("cpu")
SIZES = [(16, 16), (9, 13), (3, 40), (1, 2)]
ALL = [cs.Pixels(), cs.Pixels(bound="clip"), cs.Fourier(), cs.Laplacian(), cs.Laplacian(levels=2), cs.CPPN(hidden=5), cs.MACO()]
EXACT = [cs.Pixels(), cs.Pixels(bound="clip"), cs.Fourier(), cs.Laplacian(), cs.Laplacian(levels=1)]
each = pytest.mark.parametrize("image", ALL, ids=str)


def space(size: tuple[int, int] = (16, 16), channels: int = 3, dtype: torch.dtype = torch.float64) -> Space:
    return Space(channels, size, CPU, dtype)


def draws(where: Space, rows: int = 2, seed: int = 0) -> Draws:
    return Draws(seed, tuple((k,) for k in range(rows)), where)


def pixels(where: Space, rows: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(9)
    return 0.05 + 0.9 * torch.rand(rows, where.channels, *where.size, generator=draw, dtype=torch.float64)


# ---- all of them
@each
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_of_any_size_and_channels(image: cs.Image, size: tuple[int, int], channels: int) -> None:
    where = space(size, channels, torch.float32)
    parameters = image.begin(where, draws(where))
    assert all(len(p) == 2 and p.dtype == torch.float32 for p in parameters.values())
    found = image.pixels(parameters, where)
    assert found.shape == (2, channels, *size)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1


@each
def test_rows_know_nothing_of_each_other(image: cs.Image) -> None:
    where = space()
    three = image.begin(where, draws(where, 3))
    one = image.begin(where, Draws(0, ((1,),), where))
    assert all(torch.equal(three[name][1:2], one[name]) for name in three)
    assert torch.allclose(image.pixels(three, where)[1:2], image.pixels(one, where), atol=1e-14)
    leaves = {name: p.clone().requires_grad_() for name, p in three.items()}
    weights = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.autograd.grad((image.pixels(leaves, where)[1] * weights).sum(), list(leaves.values()))
    assert any(g[1].abs().sum() > 0 for g in gradients)
    assert all(g[0].abs().sum() == g[2].abs().sum() == 0 for g in gradients)


@each
def test_seeds(image: cs.Image) -> None:
    where = space()
    same, again, other = (image.begin(where, draws(where, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], other[name]) for name in same)


@each
def test_gradients(image: cs.Image) -> None:
    where = space((3, 4), 2)
    parameters = image.begin(where, draws(where, 1))
    names = list(parameters)
    noise = [torch.randn(p.shape, generator=torch.Generator().manual_seed(4), dtype=p.dtype) * 0.1 for p in parameters.values()]
    leaves = [(p + n).requires_grad_() for p, n in zip(parameters.values(), noise, strict=True)]
    assert torch.autograd.gradcheck(lambda *p: image.pixels(dict(zip(names, p, strict=True)), where), leaves)


@pytest.mark.parametrize("image", EXACT, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(image: cs.Image, size: tuple[int, int]) -> None:
    where = space(size)
    wanted = pixels(where)
    assert torch.allclose(image.pixels(image.encode(wanted, where), where), wanted, atol=1e-10)


@each
def test_every_one_can_be_raised(image: cs.Image) -> None:
    torch.manual_seed(0)
    net = cs.Network(nn.Sequential(nn.Conv2d(2, 3, 5, padding=2), nn.Tanh()), size=12, channels=2)
    made = cs.maximize(net, [cs.Channel("1", 0, "max"), cs.Channel("1", 1, "max")], image, steps=30)
    assert made.pixels.shape == (2, 2, 12, 12)
    start = cs.maximize(net, [cs.Channel("1", 0, "max"), cs.Channel("1", 1, "max")], image, steps=0)
    assert all(a > b + 0.02 for a, b in zip(made.scores, start.scores, strict=True))


@each
def test_by_name(image: cs.Image) -> None:
    from convoscope.images import known, of

    assert known("image")[image.name] is type(image)
    assert type(image).from_dict(image.to_dict()) == image
    assert of("image", f"{image.name}:size=8") == type(image)(size=8)


# ---- Laplacian
def test_a_level_is_enlarged_level_by_level() -> None:
    where, image = space((9, 17), 1), cs.Laplacian()
    parameters = {k: torch.zeros_like(p) for k, p in image.begin(where, draws(where, 1)).items()}
    assert [tuple(p.shape[2:]) for p in parameters.values()] == [(9, 17), (5, 9)]
    parameters["level1"][0, 0] = torch.arange(45).double().view(5, 9) / 9
    parameters["level0"][0, 0, 4, 4] = 1.5
    coarse = torch.nn.functional.interpolate(parameters["level1"], size=(9, 17), mode="bilinear")
    coarse[0, 0, 4, 4] += 1.5
    assert torch.allclose(torch.logit(image.pixels(parameters, where)), coarse, atol=1e-9)
    assert [len(cs.Laplacian(levels=n).begin(space((64, 40)), draws(where))) for n in (1, 2, 9)] == [1, 2, 4]


# ---- CPPN
def test_a_network_paints_each_pixel() -> None:
    where, image = space((4, 6), 2), cs.CPPN(hidden=3, layers=2)
    torch.manual_seed(0)
    parameters = {k: torch.randn_like(p) for k, p in image.begin(where, draws(where)).items()}
    found, step = image.pixels(parameters, where), 2 * math.sqrt(3) / 6
    for row, (i, j) in ((0, (0, 0)), (1, (3, 4))):
        x = torch.tensor([(i - 1.5) * step, (j - 2.5) * step]).double()
        for k in range(2):
            x = parameters[f"weight{k}"][row] @ x + parameters[f"bias{k}"][row, :, 0]
            x = torch.cat([x.atan() / 0.67, (x.atan() ** 2 - 0.45) / 0.396])
        expected = (parameters["weight"][row] @ x + parameters["bias"][row, :, 0]).sigmoid()
        assert torch.allclose(found[row, :, i, j], expected)


def test_a_painted_picture_is_the_same_at_any_size() -> None:
    small, large = space((5, 5)), space((15, 15))
    image = cs.CPPN(hidden=4, layers=3)
    parameters = image.begin(small, draws(small))
    assert torch.equal(image.pixels(parameters, small), torch.full((2, 3, 5, 5), 0.5).double())  # gray at first
    parameters["weight"] += 0.3
    assert torch.allclose(image.pixels(parameters, large)[:, :, 1::3, 1::3], image.pixels(parameters, small), atol=1e-12)


# ---- MACO
def test_a_picture_has_the_magnitudes_it_was_given() -> None:
    """... up to one factor for each picture, where a wave is no conjugate of another of the same half."""
    where = space((12, 14), 3)
    magnitude = 0.5 + torch.rand(3, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    image = MACO(magnitude=magnitude, decorrelate=False)
    logits = torch.logit(image.pixels(image.begin(where, draws(where)), where))
    ratio = torch.fft.rfft2(logits).abs()[..., 1:-1] / magnitude[..., 1:-1]
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-9)
    assert torch.allclose(logits.flatten(1).mean(1), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(logits.flatten(1).std(1, unbiased=False), torch.ones(2).double())


def test_phases_start_uniform_so_that_no_corner_glows() -> None:
    """Phases from N(0, 1) would give the pixel at (0, 0) tens of deviations, as the waves agree there."""
    where = space((64, 64), 1)
    image = MACO(decorrelate=False)
    parameters = image.begin(where, draws(where, 4))
    phase = parameters["phase"]
    assert torch.histc(phase, 8, -math.pi, math.pi).std() / (phase.numel() / 8) < 0.03
    corner = torch.logit(image.pixels(parameters, where)).square()[:, 0, 0, 0]
    assert (corner < 16).all()


def test_phases_of_a_picture_come_back() -> None:
    """A picture that already has the magnitudes is shown as it is."""
    where, image = space((10, 9), 3), MACO()
    wanted = image.pixels(image.begin(where, draws(where)), where)
    wanted = image.pixels(image.encode(wanted, where), where)
    assert torch.allclose(image.pixels(image.encode(wanted, where), where), wanted, atol=0.05)
    with pytest.raises(cs.UsageError, match="a picture of one color has no phases"):
        image.encode(torch.full((1, 3, 10, 9), 0.5).double(), where)


def test_magnitudes_of_other_sizes_are_those_of_the_same_waves() -> None:
    def falling(height: int, width: int) -> Tensor:
        from convoscope.images.fourier import frequencies

        return (2 / frequencies((height, width), CPU, torch.float64))[None]

    for size in ((24, 40), (17, 33), (64, 64)):
        assert torch.allclose(resized(falling(32, 48), size), falling(*size), rtol=1e-9)
    where = space((16, 16), 2)
    with pytest.raises(cs.UsageError, match=r"magnitudes are \(2, height, width // 2 \+ 1\)"):
        MACO(magnitude=torch.ones(3, 8, 5)).pixels({"phase": torch.zeros(1, 2, 16, 9).double()}, where)
    mixed = torch.rand(2, 16, 9, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(resized(mixed, (16, 16)), mixed)
    low = resized(mixed, (8, 8))  # every second wave of the larger
    assert torch.allclose(low[:, 1:4, 1:4] * 1.0, mixed[:, 2:8:2, 2:8:2])


def test_the_network_is_shown_boxes_with_noise() -> None:
    assert [type(t).__name__ for t in MACO().transforms((448, 448), (224, 224))] == ["Crops", "Noise", "Noise"]
    seen: list[Any] = []

    class Eye(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return self.body(x)

    cs.maximize(cs.Network(Eye(), size=16), cs.Channel("body", 0), cs.MACO(24), steps=2, held_out=())
    assert seen[0] == (4, 3, 16, 16)
