"""Penalties against their formulas on pictures where those can be written down, gradients, and rows on their own."""

import math

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.images.base import Penalty
from convoscope.images.penalties import L1, L2, AlphaNorm, Blur, Border, TotalVariation, blurred

ALL = [L1(), L2(), AlphaNorm(), TotalVariation(), TotalVariation(beta=1), Blur(), Border(width=2)]


def pixels(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(rows, 2, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ramp(slope_down: float, slope_right: float) -> Tensor:
    """Two channels, 5 x 8: the first an inclined plane, the second flat."""
    y, x = torch.meshgrid(torch.arange(5).double(), torch.arange(8).double(), indexing="ij")
    return torch.stack([slope_down * y + slope_right * x, torch.full((5, 8), 0.3).double()])[None]


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_a_gray_picture_costs_nothing_and_any_other_something(penalty: Penalty) -> None:
    gray = torch.full((2, 2, 6, 7), 0.5, dtype=torch.float64)
    assert torch.allclose(penalty(gray), torch.zeros(2).double(), atol=1e-15)
    assert (penalty(pixels()) > 0).all()


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_rows_are_their_own(penalty: Penalty) -> None:
    x = pixels()
    assert penalty(x).shape == (3,)
    assert torch.allclose(torch.cat([penalty(x[i : i + 1]) for i in range(3)]), penalty(x), rtol=1e-13)


@pytest.mark.parametrize("penalty", [p for p in ALL if not isinstance(p, Blur)], ids=str)
def test_gradients(penalty: Penalty) -> None:
    x = pixels(2).requires_grad_()
    assert torch.autograd.gradcheck(penalty, [x])
    flat = torch.full((1, 2, 6, 7), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(flat).sum(), flat)
    assert torch.equal(gradient, torch.zeros_like(flat))  # and not NaN


def test_norms_are_sums_about_the_middle() -> None:
    x = torch.full((1, 3, 4, 5), 0.5, dtype=torch.float64)
    x[0, 1, 2, 3] = 0.9
    x[0, 0, 0, 0] = 0.2
    assert L1()(x).item() == pytest.approx(0.7)
    assert L2()(x).item() == pytest.approx(0.4**2 + 0.3**2)
    mean = torch.linspace(0.1, 0.9, 3, dtype=torch.float64).view(1, 3, 1, 1)
    assert L2(middle=mean)(mean.expand(2, -1, 4, 5)).tolist() == [0, 0]
    assert L1(middle=mean)(x * 0).item() == pytest.approx(20 * 1.5)
    assert L1(middle=mean[0])(x * 0).item() == pytest.approx(20 * 1.5)
    assert L2(middle=x)(x).item() == 0
    with pytest.raises(cs.UsageError, match=r"the middle is pixels \(1, 3, 4, 5\); got \(2, 3, 4, 5\)"):
        L2(middle=torch.cat([x, x]))(x)


def test_the_alpha_norm_is_of_colors() -> None:
    """One pixel of twenty is (0.5, 0.25) from gray: |(1, 0.5)|^6 / 20."""
    x = torch.full((1, 2, 4, 5), 0.5, dtype=torch.float64)
    x[0, :, 1, 1] = torch.tensor([1.0, 0.75])
    assert AlphaNorm()(x).item() == pytest.approx(1.25**3 / 20)
    assert AlphaNorm(alpha=1)(x).item() == pytest.approx(math.sqrt(1.25) / 20)


@pytest.mark.parametrize("beta", [1, 2, 3])
def test_the_total_variation_of_a_plane(beta: int) -> None:
    """Of 5 x 8 places, 4 x 7 have both neighbors, 4 only the lower, 7 only the right one."""
    down, right = 0.03, 0.04
    expected = (28 * 0.05**beta + 4 * down**beta + 7 * right**beta) / 40
    assert TotalVariation(beta=beta)(ramp(down, right)).item() == pytest.approx(expected)


def test_a_step_along_the_blur_penalty_is_a_blur() -> None:
    x = pixels().requires_grad_()
    (gradient,) = torch.autograd.grad(Blur(sigma=0.7)(x).sum(), x)
    assert torch.allclose(x - 42 * gradient, blurred(x.detach(), 0.7), atol=1e-12)
    smooth = Blur(sigma=0.7)(blurred(x.detach(), 0.7))
    assert (smooth < Blur(sigma=0.7)(x) / 2).all()


def test_a_blur_is_a_gaussian() -> None:
    dot = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    dot[0, 0, 8, 8] = 1
    found = blurred(dot, 1.5)[0, 0]
    places = torch.arange(17).double() - 8
    bell = torch.exp(-places.square() / 4.5) * (places.abs() <= 6)
    bell /= bell.sum()
    assert torch.allclose(found, bell[:, None] * bell, atol=1e-12)
    assert torch.allclose(blurred(pixels() * 0 + 0.3, 2.0), pixels() * 0 + 0.3, atol=1e-12)


def test_the_border_is_a_frame() -> None:
    x = torch.full((2, 3, 10, 12), 0.5, dtype=torch.float64)
    x[0, :, 2:8, 2:10] = 1.0  # inside
    x[1, :, 0, 0] = 1.0
    frame = 120 - 6 * 8
    assert Border(width=2)(x).tolist() == pytest.approx([0, 3 * 0.25 / frame])
    assert Border(width=3)(x)[0] > 0
    assert Border(width=99)(x)[1].item() == pytest.approx(3 * 0.25 / 120)


def test_by_name() -> None:
    from convoscope.images import of

    assert of("penalty", "total-variation:weight=0.1,beta=1") == TotalVariation(weight=0.1, beta=1)
    assert of("penalty", "l2:weight=2") == L2(weight=2)
