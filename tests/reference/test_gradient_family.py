"""SmoothGrad and its siblings against closed forms and saliency, the full gradient against its completeness."""

from collections.abc import Callable

import pytest
import torch
from networks import images, network_of, normal, relative, torchvision_network, values
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.probe import Probe
from convoscope.testing import unavailable, zoo

X, A = normal(2, 2, 12, 12, seed=1), normal(1, 2, 12, 12, seed=2)
GAP = "completeness gap of the parts"


class Function(nn.Module):
    """Class 0 is zero, class 1 a function of the image."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = self.function(x).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def network(function: Callable[[Tensor], Tensor], channels: int = 2, dtype: torch.dtype = torch.float64) -> cs.Network:
    return cs.Network(Function(function).to(dtype), channels=channels)


QUADRATIC = network(lambda x: A * x.square() / 2)  # its gradient is A * x


def deviation(x: Tensor, sigma: float) -> Tensor:
    return sigma * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)


def test_siblings_share_their_samples() -> None:
    """Mean of squares = square of mean + variance, and three methods cost what one does."""
    settings = {"samples": 7, "sigma": 0.2}
    methods = [kind(**settings) for kind in (cs.SmoothGrad, cs.SmoothGradSquared, cs.VarGrad)]
    mean, squared, variance = cs.explain(QUADRATIC, X, methods, 1, batch_size=5)
    assert relative(squared.values, mean.values.square() + variance.values * 6 / 7) < 1e-12
    assert sum(a.diagnostics["evaluations"] for a in (mean, squared, variance)) == 7 * len(X)
    for a, m in zip((mean, squared, variance), methods, strict=True):
        assert torch.equal(cs.explain(QUADRATIC, X, m, 1, batch_size=5).values, a.values)


def test_var_grad_is_the_unbiased_variance() -> None:
    """Of A * (x + noise): A^2 times the variance of the noise, estimated to sqrt(2 / (n - 1))."""
    found = cs.explain(QUADRATIC, X, cs.VarGrad(samples=5, sigma=0.1), 1).values
    ratio = (found / (A * deviation(X, 0.1)).square()).flatten(1)
    assert bool(((ratio.mean(1) - 1).abs() < 4 * (2 / 4 / ratio.shape[1]) ** 0.5).all())


def test_variance_is_not_lost_in_single_precision() -> None:
    """A gradient of 10,000 with a spread of about one: the mean of squares less the square of the mean is noise of size 8."""
    steep = network(lambda x: 1e4 * x + x.square() / 2, dtype=torch.float32)
    found = cs.explain(steep, X.float(), cs.VarGrad(samples=8, sigma=0.2), 1, batch_size=3).values
    assert bool((found >= 0).all())
    ratio = found / deviation(X, 0.2).float().square()
    assert float((ratio.mean() - 1).abs()) < 0.1


def test_paired_noise_cancels() -> None:
    found = cs.explain(QUADRATIC, X, cs.SmoothGrad(samples=6, sigma=0.3, paired=True), 1, batch_size=3).values
    assert relative(found, A * X) < 1e-12
    odd = cs.explain(QUADRATIC, X, cs.SmoothGrad(samples=5, sigma=0.3, paired=True), 1).values
    assert relative(odd, A * X) > 1e-3


@pytest.mark.parametrize("squared", [False, True])
def test_equal_to_saliency(squared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same noise, a fraction of the image's own range; its sums are in single precision."""
    library, np = pytest.importorskip("saliency.core"), pytest.importorskip("numpy")
    noise, x = normal(4, 2, 12, 12, seed=9), X[:1]
    cubic = network(lambda x: A * x**3)
    drawn = iter(noise.numpy())
    monkeypatch.setattr(np.random, "normal", lambda mean, scale, shape: mean + scale * next(drawn))
    monkeypatch.setattr(Probe, "normal", lambda self, x, draw=0: torch.stack([noise[key[-1]] for key in self.keys]))

    def gradient(x: object, call_model_args: object = None, expected_keys: object = None) -> dict[str, object]:
        return {"INPUT_OUTPUT_GRADIENTS": (3 * A * torch.as_tensor(x).square()).numpy()}

    theirs = library.GradientSaliency().GetSmoothedMask(
        x[0].numpy(), gradient, stdev_spread=0.15, nsamples=4, magnitude=squared
    )
    ours = (cs.SmoothGradSquared if squared else cs.SmoothGrad)(samples=4, sigma=0.15)
    assert relative(cs.explain(cubic, x, ours, 1).values[0], torch.as_tensor(theirs)) < 1e-6


# ---------------------------------------------------------------- full gradients
def relative_gap(found: cs.Attribution) -> float:
    return max(found.diagnostics[f"{GAP} relative"])


@pytest.mark.parametrize("target", [cs.Logit(1), cs.Probability(1), cs.Margin(0, 2)], ids=str)
@pytest.mark.parametrize("name", zoo())
def test_full_gradient_is_complete_on_hostile_networks(name: str, target: cs.Target) -> None:
    hostile = zoo()[name]
    if reason := unavailable(hostile):
        pytest.skip(reason)
    assert relative_gap(cs.explain(hostile.network(), hostile.images(), cs.FullGrad(), target)) < 1e-10


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"])
def test_full_gradient_is_complete_on(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    found = cs.explain(network_of(module), x, cs.FullGrad(), cs.Logit((3, 7)))
    with torch.no_grad():
        scale = module(x).abs().max()
    assert max(abs(g) for g in found.diagnostics[GAP]) < 1e-10 * float(scale)
    assert found.values.shape == (2, 1, *x.shape[2:])


def test_full_gradient_at_a_layer() -> None:
    module, x = torchvision_network("resnet18"), images("resnet18")
    assert relative_gap(cs.explain(network_of(module), x, cs.FullGrad(), 3, at="layer2")) < 1e-10


W, B = normal(4, 2, 3, 3, seed=3), normal(4, seed=4)


def _overwritten_view(x: Tensor) -> Tensor:
    y = F.conv2d(x, W, B)
    y.view(-1).mul_(y.detach().mean()).add_(0.5)
    y[:, 1:3] = 0.25
    y[:, :1] -= 2.0
    return F.relu_(y)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "scale from the image": lambda x: F.conv2d(x, W, B) * (x.mean((1, 2, 3)).sin() + 1).view(-1, 1, 1, 1),
    "product with itself": lambda x: x * x * x,
    "quotient": lambda x: x / (1 + x.square()),
    "constant over signal": lambda x: 3 / (2 + x.square()),
    "maximum with a constant": lambda x: torch.max(x, torch.full_like(x, 0.3)),
    "maximum of two": lambda x: torch.maximum(x[:, :1] * 2, x[:, 1:]),
    "chosen": lambda x: torch.where(x > 0.1, x.exp(), torch.ones_like(x)),
    "gate from the signal": lambda x: torch.lerp(x, x.sin(), x.sigmoid()),
    "attention": lambda x: torch.softmax(x @ x.sin().mT, -1) @ x.cos(),
    "in place on a part": lambda x: F.hardsigmoid(x[:, :, 2:].transpose(2, 3)) * F.hardswish(x.clone()[:, :, 2:].mT, True),
    "normalized": lambda x: F.normalize(F.layer_norm(x, (12, 12)) + 1, dim=1).cumsum(1) * A,
    "padded with ones": lambda x: F.pad(x, (1, 1), value=1.0) ** 2,
    "stacked with constants": lambda x: torch.cat([x, torch.linspace(0, 1, 12).to(x).expand_as(x)], 1).square(),
    "overwritten view": _overwritten_view,
    "cut off": lambda x: (x.detach() * x + x.detach()).clamp(-0.5, 0.7),
}


@pytest.mark.parametrize("name", ODD)
def test_full_gradient_is_complete_with(name: str) -> None:
    found = cs.explain(network(ODD[name]), X[:1], cs.FullGrad(), 1)
    assert relative_gap(found) < 1e-10


def test_full_gradient_map() -> None:
    """The parts by autograd alone: maps of input size, so nothing is enlarged; the linear layer's bias is not drawn."""
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    module = torch.nn.Module.double(module).eval()
    with torch.no_grad():
        for p in [*module.parameters(), module[1].running_mean]:
            p.copy_(normal(*p.shape, seed=p.numel()) if p.dim() else p)
    x = X.clone().requires_grad_()
    first = module[0](x)
    normed = module[1](first)
    second = module[3](normed.relu())
    smooth = module[4](second)
    score = module[5:](smooth)[:, 1].sum()
    gx, g1, gn, g2, gs = torch.autograd.grad(score, (x, first, normed, second, smooth))
    norm = module[1]
    shift = norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()
    parts = [
        x * gx, g1 * module[0].bias.view(-1, 1, 1), gn * shift.view(-1, 1, 1), g2 * module[3].bias.view(-1, 1, 1),
        gs * (smooth - smooth * (1 - smooth) * second),
    ]  # fmt: skip

    def scaled(part: Tensor) -> Tensor:
        low, high = part.abs().amin((1, 2, 3), keepdim=True), part.abs().amax((1, 2, 3), keepdim=True)
        return ((part.abs() - low) / (high - low)).sum(1, keepdim=True)

    expected = sum(scaled(p.detach()) for p in parts)
    assert isinstance(expected, Tensor)
    assert relative(values(module, X, cs.FullGrad(), 1), expected) < 1e-12


def test_one_pass_serves_the_family() -> None:
    module, x = torchvision_network("resnet18"), images("resnet18")
    found = cs.explain(network_of(module), x, [cs.Gradient(), cs.InputXGradient(), cs.FullGrad()], 3)
    assert sum(a.diagnostics["evaluations"] for a in found) == len(x)
    alone = values(module, x, cs.FullGrad(), 3)
    assert relative(found[2].values, alone) < 1e-12
