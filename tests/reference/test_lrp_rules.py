"""Every relevance rule on every kind of convolution, against its equation on dense matrices, unit by unit."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from networks import dense, normal, relative, values
from test_linear_operators import KINDS, Alone
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.rules import EPSILON, AlphaBeta, Composite, Entry, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

LOW, HIGH = torch.tensor([-2.0, -1.5, -3.0, -2.5]), torch.tensor([2.0, 2.5, 1.5, 3.0])
BOUNDS = tuple(b.double().view(1, 4, 1, 1) for b in (LOW, HIGH))
X = normal(2, 4, 6, 6, seed=1).clamp(-1.4, 1.4)
X[:, :, 2, 3] = 0.0  # pixels of value zero are pixels


class Unit:
    """One image and one unit: what each input contributes, the unit's weights, bias and value."""

    def __init__(self, module: nn.Module, x: Tensor, unit: int) -> None:
        self.x, shape = x, tuple(x.shape)
        self.w = dense(module, shape)[:, unit].reshape(shape)
        ones = deepcopy(module)
        for name, p in ones.named_parameters():
            p.data = torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)
        self.seen = (dense(ones, shape)[:, unit].reshape(shape) != 0).double()
        with torch.no_grad():
            self.b, self.z = (float(module(v[None])[0, unit]) for v in (torch.zeros_like(x), x))
        self.c = x * self.w


def gamma_rule(u: Unit, gamma: float = 0.7) -> Tensor:
    favored = u.c * (1 + gamma * (u.c * u.z > 0).double())
    return favored / (favored.sum() + u.b * (1 + gamma * (u.b * u.z > 0))) * u.z


def alpha_beta(u: Unit) -> Tensor:
    up, down = u.c.clamp(min=0), u.c.clamp(max=0)
    tiny = 1e-300  # a unit may have nothing for it, or nothing against it
    return (3 * up / (up.sum() + max(u.b, 0) + tiny) - 2 * down / (down.sum() + min(u.b, 0) - tiny)) * u.z


def box(u: Unit) -> Tensor:
    low, high = (b[0].expand_as(u.x) for b in BOUNDS)
    parts = u.c - low * u.w.clamp(min=0) - high * u.w.clamp(max=0)
    return parts / parts.sum() * u.z


TINY = 1e-14
RULES: dict[str, tuple[Rule, Callable[[Unit], Tensor]]] = {
    "gamma": (Gamma(0.7, TINY), gamma_rule),
    "alpha-beta": (AlphaBeta(3.0, 2.0, TINY), alpha_beta),
    "z-B": (ZBox(*BOUNDS, epsilon=TINY), box),
    "w-squared": (WSquare(TINY), lambda u: u.w**2 / (u.w**2).sum() * u.z),
    "flat": (Flat(TINY), lambda u: u.seen / u.seen.sum() * u.z),
    "gamma of zero": (Gamma(0.0, TINY), lambda u: u.c),
    "infinite gamma": (Gamma(1e12, TINY), lambda u: (s := u.c * (u.c * u.z > 0)) / (s.sum() + u.b * (u.b * u.z > 0)) * u.z),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("reflected", "linear")])
def test_rule(kind: str, name: str) -> None:
    module = Alone(kind)
    for k, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=20 + k)
    rule, equation = RULES[name]
    network = cs.Network(module.eval(), 6, channels=4)
    composite = Composite((Entry("conv*|linear", rule, first=True),))
    for x in X:
        scores = module(x[None])[0].detach()
        for unit in (int(scores.argmax()), int(scores.argmin())):
            found = cs.explain(network, x[None], cs.LRP(composite=composite), unit).values[0]
            assert relative(found, equation(Unit(module, x, unit))) < 1e-9


# ---- what rules have to do with each other
def sequence() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)]
    return nn.Sequential(*layers).double().eval()


def everywhere(rule: Rule) -> cs.LRP:
    return cs.LRP(composite=Composite((Entry("conv*|linear", rule),)))


def test_limits_of_gamma() -> None:
    """On values that are not negative: from the epsilon rule to z-plus."""
    module, x = sequence(), X.abs()
    module[5].bias.data += 10 - module(x).min().item()
    for gamma, rule in ((0.0, Epsilon()), (1e9, ZPlus())):
        assert relative(values(module, x, everywhere(Gamma(gamma)), 1), values(module, x, everywhere(rule), 1)) < 1e-6
    assert relative(values(module, x, everywhere(AlphaBeta(1.0, 0.0)), 1), values(module, x, everywhere(ZPlus()), 1)) < 1e-12


def test_alpha_and_beta_have_to_conserve() -> None:
    with pytest.raises(cs.SpecError, match="expected 1"):
        AlphaBeta(2.0, 0.5)


def test_lrp_0_is_input_times_gradient_without_biases() -> None:
    module = sequence()
    for p in module:
        if getattr(p, "bias", None) is not None:
            p.bias.data.zero_()
    expected = values(module, X, cs.InputXGradient(), 1)
    for method in (cs.LRPZero(), cs.LRP(composite="lrp-0"), cs.LRP(composite="zero"), cs.LRPEpsilon(epsilon=1e-13)):
        assert relative(values(module, X, method, 1), expected) < 1e-9


# ---- the first layer
class Prepared(nn.Module):
    """What a network does to its input before the first layer, by hand."""

    def __init__(self, body: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.prepare = body, prepare

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.prepare(x))


def body(padding: int) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=padding), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)).double().eval()


PIXELS = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
PIXELS[:, :, 1, 1] = 0.0
FIRST = ["epsilon-gamma-box", "epsilon-plus-flat", "deep-taylor"]


def at_pixels(module: nn.Module, which: str, x: Tensor = PIXELS, **space: object) -> Tensor:
    return cs.explain(cs.Network(module, 6, **space), x, cs.LRP(composite=which), 1).values  # type: ignore[arg-type]


@pytest.mark.parametrize("which", FIRST)
def test_padding_receives_nothing(which: str) -> None:
    """Zeros that the network pads itself count as padding of the convolution."""
    inside, outside = body(1), Prepared(body(0), lambda x: F.pad(x, (1, 1, 1, 1)))
    outside.body.load_state_dict(inside.state_dict())
    assert relative(at_pixels(outside, which), at_pixels(inside, which)) < 1e-12


@pytest.mark.parametrize("which", FIRST)
def test_a_network_that_normalizes_its_input(which: str) -> None:
    """The same relevance, whether the pixels are normalized before the network or in it, in place or one by one."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    expected = at_pixels(body(1), which, (PIXELS - m) / s, mean=mean, std=std)

    def one_by_one(x: Tensor) -> Tensor:
        return torch.cat([(x[:, k : k + 1] - mean[k]).div_(std[k]) for k in range(3)], 1)

    for prepare in (lambda x: (x - m) / s, one_by_one, lambda x: x.clone().sub_(m).div_(s)):
        assert relative(at_pixels(Prepared(body(1), prepare), which), expected) < 1e-9


def test_first_rules_are_for_pixels_alone() -> None:
    module = sequence()
    for which, without in (("epsilon-plus-flat", "epsilon-plus"), ("deep-taylor", "alpha1beta0")):
        found, expected = (cs.explain(module, X, cs.LRP(composite=c), 1, at="1").values for c in (which, without))
        assert relative(found, expected) < 1e-12


POOLS = [nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(2)]


@pytest.mark.parametrize("pool", POOLS)
def test_flat_pools(pool: nn.Module) -> None:
    """A pool hands equal parts to what it sees: the share of a constant image in a mean pool without padding."""
    side, adaptive = pool(PIXELS).shape[2], "Adaptive" in type(pool).__name__
    module = nn.Sequential(pool, nn.Flatten(), nn.Linear(3 * side**2, 3)).double()
    composite = Composite((Entry("*pool*", Flat(), first=True), Entry("linear", Epsilon(TINY))))
    found = cs.explain(cs.Network(module, 6), PIXELS, cs.LRP(composite=composite), 1).values
    one = torch.ones_like(PIXELS).requires_grad_()
    mean = F.adaptive_avg_pool2d(one, side) if adaptive else F.avg_pool2d(one, 3, 2, 1, count_include_pad=False)
    relevance = module[2].weight[1].view(1, 3, side, side) * pool(PIXELS)
    mean.backward(relevance.detach())
    assert relative(found, one.grad) < 1e-9


@pytest.mark.parametrize("which", ["epsilon", "gamma", "alpha1beta0", "epsilon-plus"])
def test_a_batch_norm_alone_is_a_convolution_of_single_channels(which: str) -> None:
    def net(middle: nn.Module) -> nn.Module:
        torch.manual_seed(6)
        layers = [nn.Conv2d(4, 5, 3), nn.Softplus(), nn.MaxPool2d(2), middle, nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)]
        return nn.Sequential(*layers).double().eval()

    norm, single = nn.BatchNorm2d(5, eps=0.0), nn.Conv2d(5, 5, 1, groups=5)
    alone, convolved = net(norm), net(single)
    norm.weight.data, norm.bias.data = normal(5, seed=7), normal(5, seed=8)
    single.weight.data, single.bias.data = norm.weight.data.view(5, 1, 1, 1).clone(), norm.bias.data.clone()
    method = cs.LRP(composite=which)
    assert relative(values(alone, X, method, 1), values(convolved, X, method, 1)) < 1e-9


# ---- by address, strictness
def test_rules_by_address() -> None:
    module = sequence()
    mixed = Composite((Entry("conv*", ZPlus(), "0"), Entry("conv*|linear", Epsilon(), "2|5")))
    by_rule = {"0": ZPlus(), "2": Epsilon(), "5": Epsilon()}
    for address, rule in by_rule.items():
        name = "linear" if address == "5" else "conv2d"
        assert mixed.rule_for(name, address) == rule
    assert "0 " in str(mixed)
    with pytest.raises(cs.UnsupportedError, match="'conv2d' at '0'"):
        values(module, X, cs.LRP(composite=Composite((Entry("conv*|linear", Epsilon(), "2|5"),))), 1)


def test_names() -> None:
    assert cs.LRP(composite="preset-a") != cs.LRP(composite="epsilon-plus")
    module = sequence()
    assert torch.equal(values(module, X, cs.LRP(composite="preset-b"), 1), values(module, X, cs.LRPAlphaBeta(), 1))
    for settings, reason in (
        ({"composite": "epsilon-pluss"}, "did you mean 'epsilon-plus'"),
        ({"composite": "lrp-0", "epsilon": 0.25}, "no epsilon rule"),
        ({"composite": EPSILON, "epsilon": 0.25}, "by name"),
    ):
        with pytest.raises(cs.SpecError, match=reason):
            cs.LRP(**settings)
    by_text = cs.explain(cs.Network(module, 6, channels=4), X, "lrp:composite=epsilon-plus,epsilon=0.25", 1)
    assert by_text.method == cs.LRP(composite="epsilon-plus", epsilon=0.25)
