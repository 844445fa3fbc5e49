"""Metrics where things get small, coarse or random: half precision, one class, one pixel, draws, no effect at all."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope import evaluation as e
from convoscope.evaluation.imputation import imputed
from convoscope.testing.cases import Linear, oracle
from convoscope.testing.making import made_of


class Sum(nn.Module):
    """Classes that are weighted sums of all pixels, with an offset."""

    def __init__(self, *weights: float, offset: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weights, self.offset = nn.Parameter(torch.tensor(weights, dtype=dtype)), offset

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((1, 2, 3))[:, None] * self.weights + self.offset


def draws(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_losses_count_in_half_precision(dtype) -> None:
    """Each square of 16 pixels is worth 2 to 10 percent of the output: much more than its rounding."""
    weights = torch.ones(1, 16, 16, dtype=dtype)
    network = cs.Network(Linear(weights), size=16, channels=1)
    x = (0.2 + draws((1, 1, 16, 16)).square()).to(dtype)
    maps = x[:, 0].double()[None]
    case = cs.Case(network, x, cs.Logit(1), maps, ("exact",))
    share = 16 / 256
    assert float(e.Infidelity(50, share, fill=0.0).score(case)) < 0.01
    assert float(e.FaithfulnessCorrelation(50, share, 0.0).score(case)) > 0.7


def test_rounding_is_no_loss() -> None:
    """Nothing that is filled matters: what is left is rounding, and no correlation."""
    network = cs.Network(Sum(0.0, 0.0, offset=1 / 3, dtype=torch.float32), channels=1)
    case = cs.Case(network, draws((2, 1, 8, 8)).float(), cs.Logit(0), draws((1, 2, 8, 8)), ("any",))
    assert e.FaithfulnessCorrelation(10).score(case).isnan().all()
    assert e.Infidelity(10).score(case).isnan().all()


def test_fills_are_told_apart_by_what_they_hold() -> None:
    """Tensors that come and go may get each other's place in memory."""
    case, _ = oracle(3)
    for k in range(12):
        found = e.Deletion(4, torch.full((1, 3, 12, 12), float(k)), "target").score(case)
        assert torch.equal(found, e.Deletion(4, float(k), "target").score(case))
        assert torch.equal(e.Completeness(torch.full((1, 3, 1, 1), float(k))).score(case), e.Completeness(float(k)).score(case))


# ---------------------------------------------------------------- classes
def test_a_network_with_one_class() -> None:
    """The class is the top one where it is more probable than not; there is no other to compare with."""
    network = cs.Network(Sum(1.0, offset=-3.0), channels=1)
    x = torch.cat([draws((1, 1, 6, 6)), 0.01 * draws((1, 1, 6, 6), 1)])  # sums of about 18 and 0.2
    case = made_of(cs.Case(network, x, cs.Logit(0), torch.zeros(1, 2, 6, 6).double(), ("none",)), "input-x-gradient")
    found = e.AIC((0.1, 0.3), 0.0).score(case)[0]
    assert 0 < float(found[0]) < 1
    assert found[1].isnan()
    with pytest.raises(cs.UnsupportedError, match="random-logit compares classes; Sum has one"):
        e.RandomLogit().score(case)
    result = cs.evaluate(network, x, ["input-x-gradient"], ["random-logit", "deletion:steps=4"], 0, nulls=())
    assert result.left_out["random-logit", "input-x-gradient"].endswith("Sum has one")
    assert result.scores[1].isfinite().all()


@pytest.mark.parametrize("target", [cs.Logit(1), cs.Probability(1), cs.LogProbability(1)])
def test_any_target_that_is_a_class_has_others_beside_it(target) -> None:
    """For sums, the map of class k is k + 1 times that of class 0: they are alike, or opposed where the sign turns."""
    network = cs.Network(Sum(-1.0, 2.0), channels=1)
    x = 0.02 * draws((2, 1, 6, 6))
    case = made_of(cs.Case(network, x, target, torch.zeros(1, 2, 6, 6).double(), ("none",)), "input-x-gradient")
    assert torch.allclose(e.RandomLogit().score(case), -torch.ones(1, 2).double())


def test_random_logit_of_what_is_no_class() -> None:
    case, _ = oracle()
    made = made_of(case, "gradient", target=cs.Margin(1, 0))
    with pytest.raises(cs.UsageError, match="not a class"):
        e.RandomLogit().score(made)


# ---------------------------------------------------------------- draws
def test_methods_that_draw_draw_for_the_place_of_an_image() -> None:
    """Not for its row: however many images are held at once, and whatever picture is explained, the draws are the same."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 144, 3)).double()
    network, x = cs.Network(module, size=12), draws((5, 2, 12, 12))
    methods, metrics = ["smooth-grad:samples=2,sigma=0.5"], ["deletion:steps=6", "max-sensitivity:count=2", "random-logit"]
    whole = cs.evaluate(network, x, methods, metrics, 1, nulls=())
    few = cs.evaluate(network, x, methods, metrics, 1, nulls=(), memory="250KB")
    assert torch.allclose(few.scores, whole.scores, rtol=0, atol=1e-9)
    steady = cs.evaluate(network, x, methods, ["max-sensitivity:count=2,radius=1e-7"], 1, nulls=())
    assert (steady.scores < 1e-4).all()  # other draws would make it 0.5
    maps = [cs.explain(network, x[k], methods[0], 1, places=(7,)).values for k in (slice(0, 1), slice(1, 2))]
    both = cs.explain(network, x[:2], methods[0], 1, places=(7, 7)).values
    assert torch.allclose(torch.cat(maps), both, rtol=0, atol=1e-12)
    assert not torch.allclose(cs.explain(network, x[:1], methods[0], 1).values, maps[0])
    with pytest.raises(cs.UsageError, match="3 places for 5 images"):
        cs.explain(network, x, methods[0], 1, places=(1, 2, 3))


# ---------------------------------------------------------------- nothing there
def test_a_picture_without_anything_has_no_relative_change() -> None:
    """Of a picture of zeros every change is infinitely large; that is no perfect stability."""
    network = cs.Network(Sum(1.0, 2.0), channels=1)
    x = torch.cat([torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)]).double()
    case = made_of(cs.Case(network, x, cs.Logit(1), torch.zeros(1, 2, 6, 6).double(), ("none",)), "smooth-grad:samples=2")
    case.maps = draws((1, 2, 6, 6))
    found = e.RelativeInputStability(2).score(case)[0]
    assert found[0].isnan()
    assert found[1].isfinite()


def test_maps_that_mark_nothing_do_not_raise_the_confidence() -> None:
    """The network prefers black: a map of zeros hides all, and would be the best of all."""
    case = cs.Case(
        cs.Network(Sum(1.0, -1.0), channels=1), 0.1 * draws((1, 1, 6, 6)), cs.Logit(1),
        torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6), draws((1, 6, 6))]).double(), ("none", "all", "some"),
    )  # fmt: skip
    assert e.IncreaseInConfidence().score(case)[:, 0].nan_to_num(-1).tolist() == [-1, -1, 1]


def test_a_target_that_does_not_rise_needs_no_pixels_and_has_no_share() -> None:
    case = cs.Case(cs.Network(Sum(0.0, 0.0, offset=1.0), channels=1), draws((1, 1, 8, 8)), cs.Logit(1),
                   draws((1, 1, 8, 8)), ("any",))  # fmt: skip
    assert e.EffectiveComplexity(steps=4).score(case).isnan().all()


def test_pixels_without_neighbors() -> None:
    x = draws((1, 2, 1, 1))
    assert torch.equal(imputed(x, torch.zeros(1, 1, 1, dtype=torch.bool)), x)
    assert torch.equal(imputed(x, torch.ones(1, 1, 1, dtype=torch.bool)), x)  # the mean of what was there
    wide = draws((1, 2, 5, 8))
    everything = imputed(wide, torch.ones(1, 5, 8, dtype=torch.bool))
    assert torch.allclose(everything, wide.mean((2, 3), keepdim=True).expand_as(wide))
