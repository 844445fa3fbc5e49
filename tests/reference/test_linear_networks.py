"""On a linear network every method has a closed form."""

import pytest
import torch
from networks import bias_free, dense, normal, relative, values
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.spec import fields_of
from convoscope.method import Method
from convoscope.rules import COMPOSITES
from convoscope.testing.exceptions import EXCEPTIONS

SHAPE, CLASS = (3, 12, 15), 2


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Two convolutions, batch norm, average pooling and a classifier, with biases and without rectifiers."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, stride=2, bias=False), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * 2 * 3, 4),
    ).double().eval()  # fmt: skip
    module[1].running_mean, module[1].running_var = normal(5, seed=8), normal(5, seed=9).square() + 0.5
    module[1].weight.data, module[1].bias.data = normal(5, seed=10), normal(5, seed=11)
    return module


@pytest.fixture(scope="module")
def w(network: nn.Module) -> Tensor:
    """The weights of the class, found one unit vector after the other."""
    return dense(network, SHAPE)[:, CLASS].reshape(1, *SHAPE)


X, START = normal(2, *SHAPE, seed=1), normal(1, *SHAPE, seed=2)


def test_gradient(network: nn.Module, w: Tensor) -> None:
    assert relative(values(network, X, cs.Gradient(), CLASS), w.expand_as(X)) < 1e-13
    assert relative(values(network, X, cs.InputXGradient(), CLASS), w * X) < 1e-13


BY_INPUT = [n for n, m in cs.methods().items() if m.complete and (n, "linear", "is exact on linear networks") not in EXCEPTIONS]


@pytest.mark.parametrize("name", BY_INPUT)
def test_every_complete_method(network: nn.Module, w: Tensor, name: str) -> None:
    """`w * (x - x0)`, with a completeness gap of zero."""
    kind = cs.methods()[name]
    has_baseline = "baseline" in [f.name for f in fields_of(kind)]
    found = cs.explain(cs.Network(network), X, kind.make({"baseline": START} if has_baseline else {}), CLASS)
    assert relative(found.values, w * (X - START if has_baseline else X)) < 1e-12
    assert max(map(abs, found.diagnostics["completeness gap"])) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_weights_of_a_quadrature_sum_to_one(network: nn.Module, w: Tensor, steps: int, batch_size: int) -> None:
    found = values(network, X, cs.IntegratedGradients(steps=steps, baseline=START), CLASS, batch_size=batch_size)
    assert relative(found, w * (X - START)) < 1e-12


@pytest.mark.parametrize("of", [cs.Gradient(), cs.InputXGradient(), cs.IntegratedGradients(steps=2, baseline=0.0)])
def test_smooth_grad(network: nn.Module, w: Tensor, of: Method) -> None:
    """The gradient does not change with the noise; what multiplies it does, with the noise's mean."""
    found = values(network, X, cs.SmoothGrad(of=of, samples=3, sigma=0.2), CLASS)
    if isinstance(of, cs.Gradient):
        assert relative(found, w.expand_as(X)) < 1e-13
    else:
        seen = w[0].abs() > 1e-6  # the last rows and columns fall outside of every window of the pooling
        noise = ((found - w * X) / w)[:, seen]
        spread = 0.2 * (X.flatten(1).amax(1) - X.flatten(1).amin(1)) / 3**0.5
        assert torch.allclose(noise.std(1), spread, rtol=0.1)
        assert bool((noise.mean(1).abs() < 4 * spread / noise.shape[1] ** 0.5).all())


@pytest.mark.parametrize("composite", sorted(COMPOSITES))
def test_lost_relevance_is_what_the_map_misses(network: nn.Module, composite: str) -> None:
    found = cs.explain(cs.Network(network), X, cs.LRP(composite=composite), CLASS)
    score = network(X)[:, CLASS].detach()
    lost = torch.tensor(found.diagnostics["lost relevance"], dtype=torch.float64)
    assert torch.allclose(lost, score - found.values.flatten(1).sum(1), rtol=0, atol=1e-12)


def test_epsilon_rule_without_biases(network: nn.Module) -> None:
    plain = bias_free(network)
    weights = dense(plain, SHAPE)[:, CLASS].reshape(1, *SHAPE)
    assert relative(values(plain, X, cs.LRP(composite="epsilon"), CLASS), weights * X) < 1e-7


def occluded(w: Tensor, change: Tensor, window: int, stride: int) -> Tensor:
    """By definition: every pixel takes the mean, over the windows that hold it, of `sum of w * (x - fill)` in the window."""
    height, width = change.shape[2:]
    total, count = torch.zeros(len(change), height, width, dtype=change.dtype), torch.zeros(height, width)
    for i in sorted({*range(0, height - window + 1, stride), height - window}):
        for j in sorted({*range(0, width - window + 1, stride), width - window}):
            place = (slice(i, i + window), slice(j, j + window))
            total[:, *place] += (w * change)[:, :, *place].sum((1, 2, 3))[:, None, None]
            count[place] += 1
    assert count.min() > 0
    return (total / count)[:, None]


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (4, 2), (5, 3), (12, 1)])
def test_occlusion(network: nn.Module, w: Tensor, window: int, stride: int) -> None:
    found = values(network, X, cs.Occlusion(window=window, stride=stride, fill=START), CLASS, batch_size=7)
    assert relative(found, occluded(w, X - START, window, stride)) < 1e-11


def test_occlusion_by_pixels_is_the_contribution(network: nn.Module, w: Tensor) -> None:
    found = values(network, X, cs.Occlusion(window=1, stride=1, fill="mean"), CLASS)
    assert relative(found, (w * (X - X.mean((2, 3), keepdim=True))).sum(1, keepdim=True)) < 1e-11


def test_window_larger_than_the_image_hides_all_of_it(network: nn.Module) -> None:
    found = values(network, X, cs.Occlusion(window=99, stride=5, fill=0.0), CLASS)
    with torch.no_grad():
        drop = (network(X) - network(torch.zeros_like(X)))[:, CLASS]
    assert torch.allclose(found, drop[:, None, None, None].expand_as(found), atol=1e-12)


def test_other_addresses(network: nn.Module) -> None:
    """At a layer, with the baseline image's own value as baseline: the weights of what follows times the difference there."""
    after = network[2:]
    with torch.no_grad():
        z, z0 = network[:2](X), network[:2](START)
        weights = dense(after, tuple(z.shape[1:]))[:, CLASS].reshape(1, *z.shape[1:])
    found = cs.explain(cs.Network(network), X, cs.IntegratedGradients(steps=3, baseline=z0), CLASS, at="1")
    assert relative(found.values, weights * (z - z0)) < 1e-12


def test_targets(network: nn.Module) -> None:
    """The gradient of a sum of targets is the sum of the gradients; of a channel, that of its mean."""
    matrix = dense(network, SHAPE)
    margin = cs.explain(cs.Network(network), X, cs.Gradient(), 2 * cs.Logit(1) - cs.Logit(0)).values
    assert relative(margin, (2 * matrix[:, 1] - matrix[:, 0]).reshape(1, *SHAPE).expand_as(X)) < 1e-13
    channel = cs.explain(cs.Network(network), X, cs.Gradient(), cs.Channel("2", 1)).values
    mean = dense(lambda x: F.adaptive_avg_pool2d(network[:3](x), 1)[:, 1], SHAPE).reshape(1, *SHAPE)
    assert relative(channel, mean.expand_as(X)) < 1e-13
