"""What CAMs of one call share, what they skip, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.testing.zoo import zoo

GRADIENT = [
    cs.GradCAM(), cs.GradCAMPlusPlus(), cs.XGradCAM(), cs.HiResCAM(), cs.LayerCAM(), cs.EigenCAM(), cs.EigenGradCAM(),
    cs.ShapleyCAM(), cs.AblationCAM(), cs.ReciproCAM(),
]  # fmt: skip
ALL = [*GRADIENT, cs.ScoreCAM(), cs.SSCAM(samples=2), cs.ISCAM(steps=2), cs.SmoothGradCAMPlusPlus(samples=2), cs.FinerCAM(),
       cs.GuidedGradCAM()]  # fmt: skip


class Counting(nn.Module):
    """Counts the rows that pass through the network it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Any:
        self.rows += len(x)
        return self.inner(x)


def counted(name: str = "skip") -> tuple[cs.Network, Tensor, Counting]:
    hostile = zoo()[name]
    module, x = Counting(hostile.module()), hostile.images()
    net = cs.Network(module, 8)
    cs.explain(net, x, "grad-cam", 1)  # traced once, as a network in use is
    module.rows = 0
    return net, x, module


def test_gradient_cams_of_all_targets_share_one_pass() -> None:
    net, x, module = counted()
    targets = [cs.Logit(0), cs.Logit(1)]
    found = cs.explain(net, x, GRADIENT, targets)
    assert module.rows == len(x)
    for a in found:
        assert torch.allclose(a.values, cs.explain(net, x, a.method, a.target).values, rtol=1e-12, atol=1e-14), a


@pytest.mark.parametrize("name", ["in-place-relu", "skip-in-place", "shared-relu", "smooth"])
def test_several_layers_behind_in_place_operators(name: str) -> None:
    net, x, module = counted(name)
    layers = [e.address for e in net.trace(x).entries if len(e.shape) == 3 and e.shape[1] > 1 and e.parameters == 0][:4]
    assert len(layers) > 1
    found = cs.explain(net, x, ["grad-cam", "hires-cam"], 1, at=layers)
    assert module.rows == len(x)
    for a in found:
        alone = cs.explain(net, x, a.method.name, 1, at=a.diagnostics["layer"])
        assert torch.allclose(a.values, alone.values, rtol=1e-12, atol=1e-14), a


def test_guided_grad_cam_takes_one_pass_where_no_relu_follows() -> None:
    net, x, module = counted("in-place-relu")
    cs.explain(net, x, cs.GuidedGradCAM(), 1)
    assert module.rows == len(x)
    cs.explain(net, x, cs.GuidedGradCAM(layer="inner.0"), 1)
    assert module.rows == 3 * len(x)


def test_constant_channels_are_not_scored() -> None:
    net, x, module = counted()
    module.inner.layers["norm"].weight.data[:2] = 0
    module.inner.layers["norm"].bias.data[:2] = -99.0
    module.inner.layers["one"].bias.data[:2] = -99.0
    found = cs.explain(net, x, cs.ScoreCAM(), 1)
    assert bool(found.values.isfinite().all())
    assert module.rows == len(x) * (1 + 2)


def test_at_most_so_many_channels_are_scored() -> None:
    net, x, module = counted()
    cs.explain(net, x, cs.ScoreCAM(channels=3), 1)
    assert module.rows == len(x) * (1 + 3)


def test_channels_that_are_zero_are_not_ablated() -> None:
    net, x, module = counted("no-pooling")
    dead = cs.AblationCAM(layer="inner.1")
    before = cs.explain(net, x, dead, 1).diagnostics["evaluations"]
    module.inner[0].bias.data[1:] = -99.0
    after = cs.explain(net, x, dead, 1).diagnostics["evaluations"]
    assert before - after == 3 * len(x)


def test_xgrad_cam_of_a_channel_that_cancels_out_has_no_weight() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2)).double()
    module[0].weight.data[:] = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    x = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]]]]).double()
    assert cs.explain(cs.Network(module), x, cs.XGradCAM(layer="0"), 0).values.abs().max() == 0


class Tokens(nn.Module):
    """Patches as tokens: (images, positions, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).mT).relu().mean(1))


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_tokens_are_refused(method: cs.Method) -> None:
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(cs.UnsupportedError, match=r"\(1, 16, 4\); tokens .* have no rows and columns"):
        cs.explain(cs.Network(Tokens(), 8), x, method, 1, at="block")


@pytest.mark.parametrize("method", [m for m in GRADIENT if m.name != "eigen-cam"], ids=lambda m: m.name)
def test_targets_before_the_layer_are_refused(method: cs.Method) -> None:
    hostile = zoo()["no-pooling"]
    with pytest.raises(cs.UnsupportedError, match="does not depend on"):
        cs.explain(hostile.network(), hostile.images(), method, cs.Channel("0", 1), at="1")


def test_finer_cam_is_told_when_there_is_no_class() -> None:
    hostile = zoo()["skip"]
    with pytest.raises(cs.UnsupportedError, match="its target is a Logit"):
        cs.explain(hostile.network(), hostile.images(), cs.FinerCAM(), cs.Probability(1))
    with pytest.raises(cs.UnsupportedError, match="that of a class"):
        cs.explain(hostile.network(), hostile.images(), cs.ScoreCAM(score="probability"), cs.Margin(0, 1))


def test_finer_cam_has_the_sign_of_its_method() -> None:
    assert not cs.FinerCAM().signed
    assert cs.FinerCAM(of=cs.HiResCAM()).signed


def test_recipro_cam_refuses_large_layers() -> None:
    hostile = zoo()["no-pooling"]
    with pytest.raises(cs.UsageError, match="3 x 3 places, more than places=4"):
        cs.explain(hostile.network(), hostile.images(), cs.ReciproCAM(places=4), 1)
