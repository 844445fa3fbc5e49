"""Integrated gradients and SmoothGrad where integrals and expectations are known."""

from collections.abc import Callable

import pytest
import torch
from networks import normal, relative
from torch import Tensor, nn

import convoscope as cs

SHAPE = (2, 16, 16)
X, A = normal(2, *SHAPE, seed=1), normal(1, *SHAPE, seed=2)


class Elementwise(nn.Module):
    """Class 0 is zero, class 1 the sum of `A * function(x)`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        score = (A * self.function(x)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def explained(function: Callable[[Tensor], Tensor], method: cs.Method, **settings: int) -> cs.Attribution:
    network = cs.Network(Elementwise(function), channels=2)
    network.module.double()
    network.module.register_buffer("one", torch.ones(1, dtype=torch.float64))
    return cs.explain(network, X, method, 1, **settings)


@pytest.mark.parametrize("steps", [1, 2, 5, 32])
def test_quadratic_is_exact(steps: int) -> None:
    """The midpoint rule is exact where the gradient is linear: a (x^2 - x0^2)."""
    found = explained(torch.square, cs.IntegratedGradients(rule="midpoint", steps=steps, baseline=0.5))
    assert relative(found.values, A * (X.square() - 0.25)) < 1e-13
    assert max(found.diagnostics["completeness gap relative"]) < 1e-12


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_completeness_gap_of_a_cubic(steps: int) -> None:
    """3 (t - 1/2)^2 averaged over midpoints misses the integral by 1 / (4 n^2): the reported gap is -f / (4 n^2)."""
    found = explained(lambda x: x**3, cs.IntegratedGradients(rule="midpoint", steps=steps, baseline=0.0))
    assert relative(found.values, A * X**3 * (1 - 1 / (4 * steps**2))) < 1e-13
    gap = torch.tensor(found.diagnostics["completeness gap"], dtype=torch.float64)
    assert torch.allclose(gap, -(A * X**3).flatten(1).sum(1) / (4 * steps**2), rtol=1e-10)
    assert torch.allclose(
        torch.tensor(found.diagnostics["completeness gap relative"], dtype=torch.float64),
        torch.full((2,), 1 / (4 * steps**2), dtype=torch.float64),
    )


def test_gap_falls_with_the_square_of_the_steps() -> None:
    """The order of the midpoint rule on a smooth function, sin(3 x), from a baseline that is not zero."""
    exact = A * (torch.sin(3 * X) - torch.sin(torch.tensor(-1.2, dtype=torch.float64)))
    errors = []
    for steps in (16, 32, 64):
        found = explained(lambda x: torch.sin(3 * x), cs.IntegratedGradients(rule="midpoint", steps=steps, baseline=-0.4))
        errors.append(float((found.values - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.02)


def test_kink() -> None:
    """relu(x) from -1: each pixel's map is the fraction of midpoints beyond zero, times the way."""
    steps = 10
    found = explained(torch.relu, cs.IntegratedGradients(rule="midpoint", steps=steps, baseline=-1.0))
    points = -1 + (torch.arange(steps, dtype=torch.float64) + 0.5).view(-1, 1, 1, 1, 1) / steps * (X + 1)
    assert relative(found.values, A * (points > 0).double().mean(0) * (X + 1)) < 1e-13


def test_baseline_has_no_share_where_the_image_equals_it() -> None:
    found = explained(torch.exp, cs.IntegratedGradients(steps=4, baseline=X[:1]))
    assert bool((found.values[0] == 0).all())
    assert found.diagnostics["completeness gap"][0] == 0


def noise_of(x: Tensor, sigma: float) -> Tensor:
    """The deviation SmoothGrad uses: a fraction of each image's own range."""
    return sigma * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("samples", [16, 256])
def test_smooth_grad_of_a_quadratic(samples: int) -> None:
    """The gradient a x is linear, so the map is a (x + mean noise), whose deviation is sigma / sqrt(samples)."""
    found = explained(lambda x: x.square() / 2, cs.SmoothGrad(samples=samples, sigma=0.1))
    noise = (found.values / A - X) / noise_of(X, 0.1) * samples**0.5
    count = noise[0].numel()
    assert bool((noise.flatten(1).std(1) - 1).abs().max() < 4 / (2 * count) ** 0.5)
    assert bool(noise.flatten(1).mean(1).abs().max() < 4 / count**0.5)


def test_smooth_grad_of_a_rectifier() -> None:
    """The gradient of relu, smoothed with a normal density, is its distribution function."""
    samples = 400
    found = explained(torch.relu, cs.SmoothGrad(samples=samples, sigma=0.2))
    expected = torch.special.ndtr(X / noise_of(X, 0.2))
    deviation = (expected * (1 - expected) / samples).sqrt()
    assert bool(((found.values / A - expected).abs() < 5 * deviation + 1e-3).all())


def test_no_noise_is_the_method_itself() -> None:
    of = cs.IntegratedGradients(steps=3, baseline=0.0)
    found = explained(torch.exp, cs.SmoothGrad(of=of, samples=4, sigma=0.0), batch_size=3)
    assert relative(found.values, explained(torch.exp, of).values) < 1e-14
