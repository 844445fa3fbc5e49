"""LIME against ridge regression of scikit-learn, with the weights of its authors' code."""

import numpy as np
import pytest
import torch
from networks import normal, randomized, values
from torch import nn

import convoscope as cs
from convoscope.attribution.surrogate import weighted_ridge

X = normal(2, 3, 6, 6, seed=1)
STRIPS = (torch.arange(6)[:, None] // 3 * 4 + torch.tensor([0, 0, 1, 2, 2, 3]))[None]
MODULE = randomized(
    nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)), normal(8, 3, 6, 6, seed=3)
)


@pytest.mark.parametrize(("samples", "regions", "alpha"), [(50, 8, 1.0), (5, 9, 1.0), (40, 3, 1e-3)])
def test_ridge_equals_scikit_learns(samples: int, regions: int, alpha: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    random = np.random.default_rng(0)
    shown, y, weights = (random.random((samples, regions)) < 0.5) * 1.0, random.normal(size=samples), random.random(samples)
    theirs = linear_model.Ridge(alpha=alpha, fit_intercept=True).fit(shown, y, sample_weight=weights)
    coefficients, intercept = weighted_ridge(shown, y, weights, alpha)
    assert np.allclose(coefficients, theirs.coef_, atol=1e-10)
    assert np.isclose(intercept, theirs.intercept_, atol=1e-10)


def test_lime_is_that_regression_on_the_pictures_it_shows() -> None:
    """Which pixels each picture hides is read from the picture itself."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    image, pictures = X[:1], []
    handle = MODULE.register_forward_pre_hook(lambda _, args: pictures.append(args[0].detach().clone()))
    try:
        found = cs.explain(MODULE, image, cs.LIME(samples=60, regions=torch.arange(36).view(1, 6, 6), fill=0.0), 3)
    finally:
        handle.remove()
    every = torch.cat(pictures[-2:])  # 61 pictures, in batches of 32
    assert len(every.unique(dim=0)) == 61
    shown = (every[:, 0] != 0).double()
    assert torch.equal(shown[:, None] * image, every)
    assert shown.flatten(1).all(1).sum() == 1  # the image itself
    with torch.no_grad():
        y = MODULE(every)[:, 3].numpy()
    weights = np.sqrt(np.exp(-((1 - np.sqrt(shown.flatten(1).mean(1).numpy())) ** 2) / 0.25**2))
    theirs = linear_model.Ridge(alpha=1.0).fit(shown.flatten(1), y, sample_weight=weights)
    assert np.allclose(found.values.flatten(), theirs.coef_, atol=1e-10)
    expected = theirs.score(shown.flatten(1), y, weights)
    assert np.isclose(found.diagnostics["weighted R^2"][0], expected)


def test_lime_finds_the_coefficients_of_a_linear_network() -> None:
    """With hardly a penalty: what each region adds when it is shown instead of the fill, and an R^2 of one."""
    module = randomized(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)), X)
    found = cs.explain(module, X, cs.LIME(samples=40, regions=STRIPS, fill=0.3, alpha=1e-9), 3)
    parts = (module[1].weight[3].detach().view(3, 6, 6) * (X - 0.3)).sum(1)
    expected = torch.stack([torch.stack([p[STRIPS[0] == k].sum() for k in range(8)])[STRIPS[0]] for p in parts])
    assert torch.allclose(found.values[:, 0], expected, atol=1e-6)
    assert np.allclose(found.diagnostics["weighted R^2"], 1)


def test_the_fill_of_lime_is_the_mean_of_each_region() -> None:
    """An image that is constant in every region does not change when they are hidden."""
    flat = normal(1, 3, 8, seed=5)[:, :, STRIPS[0]]
    assert values(MODULE, flat, cs.LIME(samples=20, regions=STRIPS)).abs().max() < 1e-10
    assert values(MODULE, X, cs.LIME(samples=20, regions=STRIPS)).abs().max() > 1e-3
