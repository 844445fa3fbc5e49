"""Randomized networks, and what alike means."""

import numpy as np
import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.evaluation import (
    EfficientRandomization,
    ParameterRandomization,
    RandomLogit,
    SmoothRandomization,
    data_randomization,
)
from convoscope.evaluation.base import seeded
from convoscope.evaluation.randomization import histogram_entropy, layers_with_weights, randomized_steps, similarity, ssim
from convoscope.testing.cases import Linear, oracle
from convoscope.testing.making import made_of


def test_structural_similarity_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 40, 31, generator=g, dtype=torch.float64) for _ in range(2))
    b = 0.6 * a + 0.4 * b
    reach = 5
    for x, y in zip(a, b, strict=True):
        _, expected = metrics.structural_similarity(
            x.numpy(), y.numpy(), data_range=4.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        inner = (slice(reach, -reach),) * 2  # at the borders the two mirror in different ways
        whole = ssim(x[None], y[None])
        assert abs(float(whole) - expected.mean()) < 0.02
        assert abs(_inner(x, y, reach) - expected[inner].mean()) < 1e-6


def _inner(x: torch.Tensor, y: torch.Tensor, reach: int) -> float:
    """The mean over places whose window lies inside: of crops that end there, all at once by linearity of the mean."""
    total, count = 0.0, 0
    height, width = x.shape
    for r in range(reach, height - reach, 7):
        for c in range(reach, width - reach, 7):
            box = (slice(r - reach, r + reach + 1), slice(c - reach, c + reach + 1))
            total += _center(x[box], y[box])
            count += 1
    assert count
    from skimage.metrics import structural_similarity

    _, full = structural_similarity(
        x.numpy(), y.numpy(), data_range=4.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    points = [full[r, c] for r in range(reach, height - reach, 7) for c in range(reach, width - reach, 7)]
    assert abs(total / count - sum(points) / count) < 1e-9
    return float(full[reach:-reach, reach:-reach].mean())


def _center(x: torch.Tensor, y: torch.Tensor) -> float:
    """Structural similarity at the middle of a window, by its definition."""
    offsets = torch.arange(-5, 6, dtype=x.dtype)
    w = torch.exp(-offsets.square() / (2 * 1.5**2))
    w = torch.outer(w, w) / w.sum() ** 2
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, both = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
    one, two = 0.04**2, 0.12**2
    return float((2 * mx * my + one) * (2 * both + two) / ((mx**2 + my**2 + one) * (vx + vy + two)))


def test_similarity_of_a_map_with_itself_is_one_and_shifted_maps_differ() -> None:
    maps = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for by in ("spearman", "ssim"):
        assert torch.allclose(similarity(maps, 3 * maps, by), torch.ones(2, dtype=torch.float64), atol=1e-9)
        assert (similarity(maps, maps.roll(3, 2), by).abs() < 0.3).all()
        assert similarity(maps, torch.ones_like(maps), by).isnan().all()


def network() -> cs.Network:
    torch.manual_seed(4)
    block = [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), *block, nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                           nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()  # fmt: skip
    return cs.Network(module.eval(), size=12, channels=1)


def case_of(net: cs.Network, *methods) -> cs.Case:
    case, _ = oracle()
    case.network = net
    return made_of(case, *methods)


def test_each_layer_gets_a_shuffle_of_its_own() -> None:
    """Layers of one shape must not become copies of each other, and the user's network must stay what it is."""
    net = network()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    names = [n for n, _ in layers_with_weights(net.module)]
    steps = list(randomized_steps(case_of(net, "gradient"), "top-down"))
    assert len(steps) == len(names)
    after = steps[-1].module.state_dict()
    assert all(torch.equal(before[k], v) for k, v in net.module.state_dict().items())
    for name in names:
        weight = f"{name}.weight"
        assert torch.equal(after[weight].flatten().sort().values, before[weight].flatten().sort().values)
    order = [
        (after[f"{n}.weight"].flatten()[:, None] == before[f"{n}.weight"].flatten()).double().argmax(1) for n in ("2", "4")
    ]
    assert not torch.equal(*order)


@pytest.mark.parametrize("order", ["top-down", "bottom-up", "once"])
def test_the_gradient_forgets_and_the_curve_has_a_step_for_each_layer(order) -> None:
    net = network()
    metric = ParameterRandomization(order=order)
    curve = metric.curve(case_of(net, "gradient"))
    assert len(curve) == (1 if order == "once" else len(layers_with_weights(net.module)))
    assert (curve[-1] < 0.9).all()
    assert torch.allclose(metric.score(case_of(net, "gradient"))[0], curve.nanmean(0))


def test_the_other_class_is_another() -> None:
    net = network()
    case = case_of(net, "gradient")
    other = RandomLogit()._other(case)
    assert all(o != 1 and 0 <= o < 4 for o in other.index)
    with pytest.raises(cs.ConvoscopeError, match="asks for a class"):
        RandomLogit().score(cs.Case(net, case.x, cs.Channel("0", 1), case.maps, case.names, case.methods))


def test_a_twin_with_other_weights() -> None:
    case, _ = oracle()
    same = cs.Network(Linear(case.network.module.weights.detach().clone()), size=12, channels=1)
    flipped = cs.Network(Linear(-case.network.module.weights.detach().clone()), size=12, channels=1)
    made = made_of(case, "gradient")
    assert torch.allclose(data_randomization(made, same), torch.ones(1, 3, dtype=torch.float64))
    assert torch.allclose(data_randomization(made, flipped), -torch.ones(1, 3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("bins", [2, 7, 100])
def test_entropy_of_a_histogram_is_that_of_numpy(bins) -> None:
    maps = torch.randn(4, 9, 11, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 3
    maps[2] = 4.0
    for row, found in zip(maps, histogram_entropy(maps, bins), strict=True):
        share = np.histogram(row.numpy(), bins=bins)[0] / row.numel()
        assert float(found) == pytest.approx(-sum(p * np.log(p) for p in share if p), abs=1e-12)
    assert histogram_entropy(maps, bins)[2] == 0


def test_efficient_randomization_is_the_rise_of_the_entropy() -> None:
    net = network()
    made = case_of(net, "gradient", "input-x-gradient")
    (twin,) = randomized_steps(made, "once")
    for number, method in enumerate(("gradient", "input-x-gradient")):
        after = histogram_entropy(cs.explain(twin, made.x, method, 1).heatmap(), 30)
        before = histogram_entropy(made.maps[number], 30)
        found = EfficientRandomization(bins=30).score(made)[number]
        assert torch.allclose(found, (after - before) / before, atol=1e-9)
        assert (found != 0).all()
    assert EfficientRandomization().passes(made) == 1


def test_smooth_maps_are_the_mean_over_noisy_copies() -> None:
    net = network()
    made = case_of(net, "input-x-gradient")
    made.places = (4, 0, 7)
    copies = []
    for k in range(3):
        drawn = [torch.randn(1, 12, 12, generator=seeded(0, "smooth", k, p)) for p in made.places]
        copies.append(made.x + 0.05 * torch.stack(drawn).double())

    def mean(net: cs.Network) -> torch.Tensor:
        return torch.stack([cs.explain(net, c, "input-x-gradient", 1).heatmap().double() for c in copies]).mean(0)

    expected = [similarity(mean(net), mean(twin), "spearman") for twin in randomized_steps(made, "top-down")]
    assert torch.allclose(SmoothRandomization(smooth=3).score(made)[0], torch.stack(expected).mean(0), atol=1e-9)
    assert SmoothRandomization().smooth == 10
    assert ParameterRandomization().smooth == 1
    assert SmoothRandomization(smooth=3).passes(made) == 3 * (1 + len(layers_with_weights(net.module)))
    assert ParameterRandomization(order="once").passes(made) == 2


def test_noise_of_smooth_maps_is_in_pixels() -> None:
    """A picture stored in other units gets the same noise."""
    plain = network()
    other = cs.Network(nn.Sequential(_Times(0.5), plain.module), size=12, channels=1, mean=[0.0], std=[0.5])
    a = case_of(plain, "gradient")
    b = case_of(other, "gradient")
    b.x = a.x * 2
    metric = SmoothRandomization(smooth=2, noise=0.2)
    maps = [metric._map(c, 0, c.network) for c in (a, b)]
    assert torch.allclose(maps[0], maps[1] * 2, atol=1e-9)


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor
