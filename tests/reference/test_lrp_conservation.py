"""Relevance is conserved: exactly without biases, and up to what is counted with them, on ten architectures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from networks import TEN, images, network_of, normal, relative, torchvision_network, values, without_biases
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.operators import Call
from convoscope.rules import COMPOSITES

CLASS = 3
# z-plus loses what units without any positive contribution have: those of depthwise convolutions, behind negative values.
DEPTHWISE = ("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0")
CASES = [
    *((n, c) for n in TEN for c in ("epsilon", "epsilon-gamma-box", "epsilon-plus") if c[-4:] != "plus" or n not in DEPTHWISE),
    *(("resnet18", c) for c in COMPOSITES if c not in ("epsilon", "epsilon-plus", "epsilon-gamma-box")),
    *((n, "deep-taylor") for n in ("densenet121", "squeezenet1_1")),
]


def noted(found: cs.Attribution, name: str) -> Tensor:
    return torch.tensor(found.diagnostics[name], dtype=torch.float64)


def total(maps: Tensor) -> Tensor:
    return maps.flatten(1).sum(1)


@pytest.mark.parametrize(("name", "composite"), CASES, ids=["-".join(c) for c in CASES])
def test_conserved_without_biases(name: str, composite: str) -> None:
    x = images(name).clamp(0, 1)  # from black to white
    found = cs.explain(network_of(without_biases(name)), x, cs.LRP(composite=composite), CLASS)
    assert bool((noted(found, "lost relevance relative") < 1e-5).all())
    if composite == "deep-taylor":  # of one sign, that of the score
        assert relative(found.values.abs().flatten(1).sum(1), total(found.values).abs()) < 1e-9


# ---- what is lost, counted where it is lost
@contextmanager
def counted(losses: list[Tensor]) -> Iterator[None]:
    """Inside, each call with a rule notes what it does not hand on."""
    redirect = Call.redirect

    def counting(self: Call, pull: Callable[..., Tensor], pointwise: bool = False) -> Tensor:
        def noting(call: Call, value: Tensor, gradient: Tensor) -> Tensor:
            before = (value * gradient).flatten(1).sum(1)  # pull may overwrite what it gets
            pulled = pull(call, value, gradient)
            losses.append(before - (call.x * pulled).flatten(1).sum(1))
            return pulled

        return redirect(self, noting)

    Call.redirect = counting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Call.redirect = redirect  # type: ignore[method-assign]


@pytest.mark.parametrize("name", TEN)
def test_lost_relevance_is_what_biases_and_stabilizers_take(name: str) -> None:
    """Additions, concatenations, pools, gates, shuffles and rearrangements lose nothing."""
    losses: list[Tensor] = []
    with counted(losses):
        found = cs.explain(network_of(torchvision_network(name)), images(name), cs.LRP(), CLASS)
    lost, taken = noted(found, "lost relevance"), torch.stack(losses)
    assert len(losses) > 5
    assert bool(((lost - taken.sum(0)).abs() < 1e-9 * taken.abs().sum(0)).all())


class Standing(nn.Module):
    """Batch norms that make no one affine map with what comes before: transposed, over positions, before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.wide, self.norm = nn.ConvTranspose2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.first, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, stride=2, bias=False)
        self.mix, self.positions, self.head = nn.Linear(5, 5, bias=False), nn.BatchNorm1d(64), nn.Linear(5, 4, bias=False)
        for norm in (self.norm, self.first, self.positions):
            norm.weight.data, norm.running_var = norm.weight.data * 1.5, norm.running_var * 0.6

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.wide(x)))
        x = F.relu(self.conv(F.relu(self.first(x))))
        return self.head(F.relu(self.positions(self.mix(x.flatten(2).transpose(1, 2)))).mean(1))


@pytest.mark.parametrize("composite", ["epsilon", "gamma", "alpha1beta0", "epsilon-gamma-box"])
def test_batch_norms_that_stand_alone(composite: str) -> None:
    module, x = Standing().double().eval(), normal(2, 3, 8, 8, seed=1).clamp(0, 1)
    found = cs.explain(cs.Network(module, 8, channels=3), x, cs.LRP(composite=composite), 2)
    assert float(noted(found, "lost relevance relative").max()) < 1e-6
    module.norm.running_mean, module.positions.bias.data = normal(6, seed=2), normal(64, seed=3)
    found = cs.explain(cs.Network(module, 8, channels=3), x, cs.LRP(composite=composite), 2)
    assert float(noted(found, "lost relevance relative").min()) > 1e-3


# ---- deep Taylor
def rectifying(bias: float) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(8 * 16, 5)).double().eval()
    for part in module:
        if isinstance(getattr(part, "bias", None), Tensor):
            part.bias.data = bias * normal(*part.bias.shape, seed=3).abs() + (0 if bias < 0 else 0.1)
    return module


def test_deep_taylor_conserves_where_no_bias_is_positive() -> None:
    x = normal(3, 3, 12, 12, seed=1).clamp(-2, 2)
    for bias in (-0.2, 0.2):
        module = rectifying(bias)
        module[6].weight.data.abs_()
        network = cs.Network(module, 12, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        found = cs.explain(network, x, "deep-taylor", 1)
        assert float(module(x)[:, 1].detach().min()) > 0
        share = noted(found, "positive biases")
        assert bool((found.values >= -1e-12).all())
        assert bool((share.abs() < 1e-7).all()) if bias < 0 else bool(((share > 0.01) & (share < 1)).all())


def test_deep_taylor_needs_relu_alone() -> None:
    module = rectifying(-0.2)
    for activation in (nn.LeakyReLU(), nn.SiLU(), nn.Sigmoid()):
        module[4] = activation
        with pytest.raises(cs.UnsupportedError, match=r"whose only activation is ReLU; '.*' at '4'"):
            values(module, normal(1, 3, 12, 12), cs.DeepTaylor(), 1)


# ---- simple Taylor
def test_simple_taylor() -> None:
    module, x, root = rectifying(0.2), normal(2, 3, 12, 12, seed=1), normal(1, 3, 12, 12, seed=2)
    leaf = root.clone().requires_grad_()
    module(leaf)[:, 1].sum().backward()
    found = cs.explain(cs.Network(module, 12), x, cs.SimpleTaylor(root=root), 1)
    assert relative(found.values, leaf.grad * (x - root)) < 1e-12
    with torch.no_grad():
        left = module(x)[:, 1] - module(root)[:, 1] - found.values.flatten(1).sum(1)
    assert torch.allclose(noted(found, "left out by the expansion"), left)
    assert bool((cs.explain(module, x, cs.SimpleTaylor(root=x[:1]), 1).values[0] == 0).all())


# ---- attention
class Attending(nn.Module):
    """One head over the positions of a map: a module, the operator that fuses it, or by hand."""

    def __init__(self, how: str = "by hand") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.how, self.stem, self.head = how, nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.Linear(6, 4, bias=False)
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.module = nn.MultiheadAttention(6, 1, bias=False, batch_first=True)
        self.module.in_proj_weight.data = torch.cat([p.weight.data for p in (self.q, self.k, self.v)])
        self.module.out_proj.weight.data = torch.eye(6)

    def forward(self, x: Tensor) -> Tensor:
        t = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        q, k, v = self.q(t), self.k(t), self.v(t)
        if self.how == "module":
            mixed = self.module(t, t, t, need_weights=False)[0]
        elif self.how == "fused":
            mixed = F.scaled_dot_product_attention(q, k, value=v)
        elif self.how == "einsum":
            mixed = torch.einsum("bij,bjc->bic", torch.softmax(torch.einsum("bic,bjc->bij", q, k) / 6**0.5, -1), v)
        else:
            mixed = torch.softmax(q @ k.transpose(1, 2) / 6**0.5, -1) @ v
        return self.head((t + mixed).mean(1))


def test_attention() -> None:
    x, maps = normal(2, 3, 9, 9), []
    for how in ("by hand", "einsum", "fused", "module"):
        module = Attending(how).double().eval()
        found = cs.explain(cs.Network(module, 9), x, cs.LRP(composite="epsilon"), 2)
        assert max(found.diagnostics["lost relevance relative"]) < 1e-5
        maps.append(found.values)
    assert max(relative(m, maps[0]) for m in maps) < 1e-7


def test_a_product_of_two_signals_is_halved() -> None:
    class Squared(Attending):
        def forward(self, x: Tensor) -> Tensor:
            t = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
            return self.head((self.q(t) @ self.k(t).transpose(1, 2)) @ self.v(t)).mean(1)

    found = cs.explain(cs.Network(Squared().double().eval(), 9), normal(2, 3, 9, 9), cs.LRP(composite="lrp-0"), 2)
    assert max(found.diagnostics["lost relevance relative"]) < 1e-7
