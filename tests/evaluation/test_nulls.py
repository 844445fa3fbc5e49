"""Maps that know nothing, and what a map is worth beside its own values at other places."""

import math

import pytest
import torch
from plain import case

import convoscope as cs
from convoscope import evaluation as e
from convoscope.evaluation.base import seeded
from convoscope.evaluation.nulls import edges, noise, permutations, shuffled
from convoscope.testing.cases import oracle, with_maps


def test_edges_are_the_gradient_of_the_brightness() -> None:
    x = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    gray = x.double().mean(1)
    found = edges(x)
    assert found.dtype == torch.float64
    for i in range(2):
        for r in range(6):
            for q in range(7):
                at = lambda a, b, i=i: float(gray[i, min(max(a, 0), 5), min(max(b, 0), 6)])  # noqa: E731
                down = sum(w * (at(r + 1, q + k) - at(r - 1, q + k)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
                across = sum(w * (at(r + k, q + 1) - at(r + k, q - 1)) for k, w in ((-1, 1), (0, 2), (1, 1))) / 8
                assert float(found[i, r, q]) == pytest.approx(math.hypot(down, across), abs=1e-12)
    ramp = torch.arange(7.0).expand(1, 1, 6, 7)
    assert torch.allclose(edges(ramp)[0, :, 1:-1], torch.ones(6, 5).double())


def test_noise_belongs_to_a_place_a_seed_and_a_number() -> None:
    x = torch.zeros(2, 3, 4, 5)
    one = noise(x, (3, 8), 0)
    assert one.shape == (2, 4, 5)
    assert one.dtype == torch.float64
    assert torch.equal(noise(x.flip(0), (8, 3), 0), one.flip(0))
    drawn = torch.rand(4, 5, generator=seeded(0, "noise", 0, 8), dtype=torch.float64)
    assert torch.equal(one[1], drawn)
    assert torch.equal(noise(x, (3, 8), 0, 0), one)
    for other in (noise(x, (3, 8), 1), noise(x, (3, 8), 0, 1), noise(x, (8, 3), 0)):
        assert not (other == one).any()
    assert 0 <= float(one.min()) < float(one.max()) <= 1


def test_shuffles_are_the_same_for_all_methods() -> None:
    c = case()
    found = shuffled(c.maps, c.places, c.seed, 4)
    for i, place in enumerate(c.places):
        order = torch.randperm(99, generator=seeded(c.seed, "permutation", 4, place))
        for m in range(2):
            assert torch.equal(found[m, i].flatten(), c.maps[m, i].flatten()[order])


@pytest.mark.parametrize("metric", [e.FaithfulnessCorrelation(20, fill=0.0), e.LocalizationAUC(), e.Deletion(5, 0.0, "target")])
def test_a_map_beside_its_own_values_at_other_places(metric) -> None:
    linear, exact = oracle()
    maps = torch.stack([exact, -exact, torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(2)).double()])
    found = permutations(metric, with_maps(linear, maps), count=19, at_once=7)
    scores = torch.stack([metric.score(with_maps(linear, shuffled(maps, (0, 1, 2), 0, k))) for k in range(19)])
    assert torch.allclose(found.shuffled, scores, atol=1e-12)
    assert torch.allclose(found.score, metric.score(with_maps(linear, maps)))
    skill = (found.score - scores.mean(0)) * metric.direction
    assert torch.allclose(found.skill, skill)
    assert torch.allclose(found.z, skill / scores.std(0))
    assert (found.z[0] > 3).all()
    assert (found.z[1] < -3).all()
    assert (found.p[0] == 1 / 20).all()
    assert (found.p[1] == 1).all()
    assert ((found.p[2] > 0) & (found.p[2] <= 1)).all()


def test_random_subsets_are_shown_once_for_all_shuffles() -> None:
    c = case()
    e.Infidelity(6).score(c)
    before = c.passes
    permutations(e.Infidelity(6), c, count=10)
    assert c.passes == before
    for metric in (e.NonSensitivity(3), e.Completeness()):
        metric.score(c)
        before = c.passes
        permutations(metric, c, count=3)
        assert c.passes == before, metric
    e.Deletion(5).score(c)
    before = c.passes
    permutations(e.Deletion(5), c, count=2)
    assert c.passes == before + 2 * 2 * 3 * 4  # two shuffles of two maps of three images, four steps between the ends


def test_one_shuffle_is_a_null_without_a_spread() -> None:
    found = permutations(e.LocalizationAUC(), case(), count=1)
    assert found.shuffled.shape == (1, 2, 3)
    assert found.z.isnan().all()
    assert set(found.p.flatten().tolist()) <= {0.5, 1.0}
    assert len(permutations(e.LocalizationAUC(), case(), count=3, at_once=1).shuffled) == 3


def test_what_does_not_depend_on_places_has_no_z() -> None:
    c = case()
    for metric in (e.Gini(), e.Completeness()):
        found = permutations(metric, c, count=5)
        assert found.z.isnan().all()
        assert (found.p == 1).all()
    empty = case(truth=torch.zeros(3, 9, 11, dtype=torch.bool))
    assert permutations(e.TopK(), empty, count=3).p.isnan().all()


def test_wrong_use() -> None:
    with pytest.raises(cs.ConvoscopeError, match="max-sensitivity makes maps anew; shuffled maps have no method"):
        permutations(e.MaxSensitivity(), case())
    with pytest.raises(cs.ConvoscopeError, match="count is 0; expected at least 1"):
        permutations(e.Gini(), case(), count=0)
