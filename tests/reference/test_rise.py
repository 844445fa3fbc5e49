"""Random masks on functions whose answer is known: RISE, Sobol indices and HSIC."""

import numpy as np
import pytest
import torch
from networks import network_of, normal, randomized, values
from torch import nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.attribution.masks import dependence, smooth_masks, total_indices

X = normal(2, 3, 6, 6, seed=1)
REGIONS = (torch.arange(6)[:, None] // 3 * 2 + torch.arange(6) // 3)[None]
LINEAR = randomized(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), X)


def contributions() -> torch.Tensor:
    """What each of four regions adds to the score of each image when it is shown instead of zeros."""
    parts = (LINEAR[1].weight[3].detach().view(3, 6, 6) * X).sum(1)
    return torch.stack([torch.stack([p[REGIONS[0] == k].sum() for k in range(4)]) for p in parts])


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_rise_on_a_linear_network(p: float) -> None:
    """For f = sum c_j + b: E[f M_i] / p = c_i + p (the others) + b, and less the mean score, (1 - p) c_i."""
    c, bias = contributions(), LINEAR[1].bias[3].item()
    expected = c + p * (c.sum(1, keepdim=True) - c) + bias
    method = cs.RISE(masks=3000, p=p, regions=REGIONS, center=False)
    found = values(LINEAR, X, method)[:, 0]
    assert (found - expected[:, REGIONS[0]]).abs().max() < 0.1 * expected.abs().max()
    centered = values(LINEAR, X, cs.RISE(masks=3000, p=p, regions=REGIONS))[:, 0]
    assert (centered - (1 - p) * c[:, REGIONS[0]]).abs().max() < 0.1 * c.abs().max()


def test_smooth_masks_are_the_papers() -> None:
    """Enlarged to (s + 1) cells and cropped at a shift of whole pixels, up to one cell."""
    coins = (torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    shifts = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.3, 0.9], [0.5, 0.1], [0.99, 0.0]], dtype=torch.float64)
    found = smooth_masks(coins, shifts, (10, 7))
    large = F.interpolate(coins[:, None], (16, 12), mode="bilinear", align_corners=False)[:, 0]
    for k, (down, right) in enumerate((shifts * torch.tensor([5, 4])).long().tolist()):
        assert torch.allclose(found[k], large[k, down : down + 10, right : right + 7], atol=1e-12)
    assert torch.allclose(smooth_masks(torch.ones(5, 3, 3).double(), shifts, (10, 7)), torch.ones(()).double())


def test_rise_of_a_constant_score() -> None:
    """Zero where the score is constant; as printed in the paper, the score times how often each pixel was shown."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).double()
    nn.init.zeros_(module[1].weight)
    assert values(module, X, cs.RISE(masks=20)).abs().max() < 1e-12
    printed = values(module, X, cs.RISE(masks=2000, center=False))
    assert (printed / module[1].bias[3].item() - 1).abs().max() < 0.1


def test_total_indices_of_a_sum() -> None:
    """Inputs uniform in 0..1: the variance of c_i x_i is c_i^2 / 12, and an additive function has no interactions."""
    c = np.array([3.0, -2.0, 1.0, 0.0])
    points = torch.quasirandom.SobolEngine(8).draw(4096).double().numpy()
    first, second = points[:, :4], points[:, 4:]
    exchanged = np.repeat(first[:, None], 4, 1)
    exchanged[:, range(4), range(4)] = second
    found = total_indices(first @ c, second @ c, exchanged @ c)
    assert np.allclose(found, c**2 / (c**2).sum(), atol=0.02)
    assert found[3] == 0


def test_total_indices_see_interactions() -> None:
    """f = x y on 0..1: both inputs have a share of 4/7 in the variance, the sum counts what they do together twice."""
    points = torch.quasirandom.SobolEngine(4).draw(4096).double().numpy()
    first, second = points[:, :2], points[:, 2:]
    exchanged = np.repeat(first[:, None], 2, 1)
    exchanged[:, range(2), range(2)] = second
    assert np.allclose(total_indices(first.prod(1), second.prod(1), exchanged.prod(2)), 4 / 7, atol=0.02)


def test_sobol_on_a_linear_network() -> None:
    c = contributions()
    found = values(LINEAR, X, cs.Sobol(samples=512, regions=REGIONS))[:, 0]
    expected = (c**2 / (c**2).sum(1, keepdim=True))[:, REGIONS[0]]
    assert (found - expected).abs().max() < 0.05
    assert found.min() >= 0


def factorial_design(inputs: int) -> np.ndarray:
    return np.array([[(k >> i) & 1 for i in range(inputs)] for k in range(2**inputs)], dtype=float)


@pytest.mark.parametrize("binary", [True, False])
def test_hsic_is_zero_exactly_where_nothing_depends_on_a_region(binary: bool) -> None:
    shown = factorial_design(5)
    found = dependence(shown, 2 * shown[:, 0] - shown[:, 1] * shown[:, 2], binary)
    assert np.allclose(found[3:], 0, atol=1e-12)
    assert (found[:3] > 1e-3).all()
    assert found[0] == found.max()


def test_hsic_is_the_trace_of_four_matrices() -> None:
    random = np.random.default_rng(0)
    shown, y = (random.random((20, 3)) < 0.5) * 1.0, random.normal(size=20)
    center = np.eye(20) - 1 / 20
    distance = np.abs(y[:, None] - y)
    outputs = np.exp(-((distance / np.median(distance[distance > 0])) ** 2) / 2)
    for i, value in enumerate(dependence(shown, y, binary=True)):
        inputs = (shown[:, None, i] == shown[:, i]).astype(float)
        assert np.isclose(value, np.trace(inputs @ center @ outputs @ center) / 19**2)


def test_hsic_sees_what_leaves_the_mean_alone() -> None:
    """Whether a sign is drawn: the score's mean is zero either way."""
    shown = factorial_design(3)
    assert dependence(shown, shown[:, 0] * (2 * shown[:, 1] - 1), binary=True)[0] > 0.01


def test_hsic_of_a_network() -> None:
    """One region in four moves the score."""
    module = randomized(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), X)
    with torch.no_grad():
        module[1].weight.view(4, 3, 6, 6).mul_(REGIONS == 2)
    found = cs.explain(network_of(module), X, cs.HSIC(samples=128, regions=REGIONS), 3).values[:, 0]
    assert found.min() >= 0
    assert (found[:, REGIONS[0] == 2].min() > 20 * found[:, REGIONS[0] != 2].max()).all()
