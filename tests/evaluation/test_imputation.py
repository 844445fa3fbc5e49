"""Pixels filled in from their neighbors, against a direct solution; axioms on networks that break them."""

import numpy as np
import pytest
import torch

import convoscope as cs
from convoscope.evaluation import Completeness, NonSensitivity, RegionPerturbation
from convoscope.evaluation.axioms import cells_of, regions
from convoscope.evaluation.imputation import imputed
from convoscope.testing.metrics import oracle


def solved(x: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Each missing pixel the weighted mean of its neighbors, by elimination."""
    height, width = x.shape
    number = {place: k for k, place in enumerate(zip(*np.nonzero(gone), strict=True))}
    a, b = np.zeros((len(number), len(number))), np.zeros(len(number))
    for (r, c), k in number.items():
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                place = (r + dr, c + dc)
                if (dr, dc) == (0, 0) or not (0 <= place[0] < height and 0 <= place[1] < width):
                    continue
                weight = 2.0 if 0 in (dr, dc) else 1.0
                a[k, k] += weight
                if place in number:
                    a[k, number[place]] -= weight
                else:
                    b[k] += weight * x[place]
    out = x.copy()
    out[tuple(np.array(list(number)).T)] = np.linalg.solve(a, b)
    return out


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_missing_pixels_solve_the_system_of_road(share) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, 13, 18, generator=g, dtype=torch.float64)
    gone = torch.rand(2, 13, 18, generator=g) < share
    found = imputed(x, gone)
    for i in range(2):
        for c in range(3):
            assert np.abs(found[i, c].numpy() - solved(x[i, c].numpy(), gone[i].numpy())).max() < 1e-4


def test_nothing_missing_changes_nothing_and_everything_missing_is_finite() -> None:
    x = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    assert torch.equal(imputed(x, torch.zeros(1, 9, 9, dtype=torch.bool)), x)
    assert imputed(x, torch.ones(1, 9, 9, dtype=torch.bool)).isfinite().all()


def test_a_constant_picture_stays_constant() -> None:
    x = torch.full((1, 2, 30, 31), 0.3, dtype=torch.float64)
    gone = torch.rand(1, 30, 31, generator=torch.Generator().manual_seed(0)) < 0.9
    assert (imputed(x, gone) - 0.3).abs().max() < 1e-4


def test_completeness_is_the_missing_share() -> None:
    case, exact = oracle()
    maps = torch.stack([exact, 0.75 * exact, 2 * exact])
    case = cs.Case(case.network, case.x, case.target, maps, ("all", "three quarters", "twice"))
    found = Completeness(fill=0.0).score(case)
    expected = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)[:, None].expand(3, 3)
    assert torch.allclose(found, expected, atol=1e-12)


def test_relevance_without_effect_and_effect_without_relevance_both_count() -> None:
    case, exact = oracle()
    wrong = exact.clone()
    wrong[:, 11, 0] = exact.abs().amax()  # a pixel of the rows that say nothing
    wrong[:, 5, 5] = 0  # one of the object
    case = cs.Case(case.network, case.x, case.target, torch.stack([exact, wrong]), ("exact", "wrong"))
    found = NonSensitivity(cells=12, fill=0.0).score(case)
    assert found[0].abs().max() == 0
    assert torch.allclose(found[1], torch.full((3,), 2 / 144, dtype=torch.float64))


def test_cells_cover_the_picture_evenly() -> None:
    labels = cells_of(13, 7, 4)
    assert labels.shape == (13, 7)
    assert sorted(labels.unique().tolist()) == list(range(16))
    assert torch.bincount(labels.flatten()).amin() >= 3
    maps = torch.rand(2, 13, 7, dtype=torch.float64)
    assert torch.allclose(regions(maps, 4).sum(-1), maps.sum((1, 2)))


def test_region_perturbation_of_a_linear_network_is_a_sum() -> None:
    case, exact = oracle()
    found = RegionPerturbation(cells=4, regions=5, fill=0.0, of="target").score(case)[0]
    sums = regions(exact, 4).sort(1, descending=True).values  # cells of one size
    lost = torch.cat([torch.zeros(3, 1, dtype=torch.float64), sums[:, :5].cumsum(1)], 1)
    assert torch.allclose(found, lost.mean(1), atol=1e-12)
