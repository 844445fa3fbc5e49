"""Operators by one name, rules that keep the value, strict tables that say what they miss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.operators import Call, Rewriter, operator_name, surrogate
from convoscope.core.record import Observer, record
from convoscope.rules import DECONVNET, EPSILON, EPSILON_PLUS, GUIDED, Composite, Entry, Epsilon, Rule

G = torch.Generator().manual_seed(0)
X = torch.randn(2, 4, 9, 9, generator=G, dtype=torch.float64)


class Same(Rule):
    """The ordinary gradient, by way of a rule."""

    def __call__(self, call: Call) -> Tensor:
        return call.redirect(lambda call, value, gradient: call.pull(gradient))


class Tenth(Rule):
    """A tenth of the ordinary gradient of an elementwise operator, as an expression."""

    def __call__(self, call: Call) -> Tensor:
        return surrogate(call.value(), call.x, 0.1)


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward
        self.double().eval().requires_grad_(False)
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=G) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Names(Observer):
    def __init__(self) -> None:
        self.names: list[str] = []

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.names.append(name)


def names(forward: Callable[..., Tensor], **parts: nn.Module) -> list[str]:
    seen = Names()
    with torch.no_grad():
        record(Net(forward, **parts), X.clone(), observer=seen)
    return seen.names


def pulled(net: nn.Module, table: Composite | None) -> tuple[Tensor, Tensor, list[str]]:
    """Value, gradient of a weighted sum of it, and the addresses that a rule covered."""
    x = X.clone().requires_grad_()
    rewriter = None if table is None else Rewriter(table)
    output = record(net, x, ("output",), rewriter=rewriter)["output"]
    weights = torch.arange(output.numel(), dtype=torch.float64).cos().view_as(output)
    return output.detach(), torch.autograd.grad((output * weights).sum(), x)[0], rewriter.matched if rewriter else []


def table(operators: str, rule: Rule, strict: bool = False) -> Composite:
    return Composite((Entry(operators, rule),), strict=strict)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- names
def test_every_spelling_of_an_operator_has_one_name() -> None:
    def relus(s: Net, x: Tensor) -> Tensor:
        x = torch.relu(F.relu(x)).relu()
        x = F.relu(F.relu_(x.relu_()), inplace=True)
        return s.act(x)

    assert names(relus, act=nn.ReLU(inplace=True)) == ["relu"] * 7
    sums: Any = lambda s, x: torch.add(1 + (x + 1).add(1).add_(1), 1)  # noqa: E731
    assert names(sums) == ["add"] * 5

    def assigned(s: Net, x: Tensor) -> Tensor:
        x += 1
        x -= 2
        x *= 3
        x /= 4
        return x

    assert names(assigned) == ["add", "sub", "mul", "div"]
    joined: Any = lambda s, x: torch.cat([torch.concat([x, x]), torch.concatenate([x])])  # noqa: E731
    assert names(joined) == ["cat"] * 3


INPLACE: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool]] = [
    (torch.relu, (X,), {}, False),
    (Tensor.relu_, (X,), {}, True),
    (F.relu, (X,), {"inplace": True}, True),
    (F.relu, (X, True), {}, True),
    (F.relu, (X, False), {}, False),
    (F.leaky_relu, (X, 0.1, True), {}, True),
    (F.leaky_relu, (X, 0.1), {}, False),
    (F.dropout, (X, 0.5, False, True), {}, True),
    (F.dropout, (X, 0.5, False), {"inplace": False}, False),
    (Tensor.__iadd__, (X, X), {}, True),
    (Tensor.add_, (X, X), {}, True),
    (Tensor.__add__, (X, X), {}, False),
    (Tensor.__invert__, (X,), {}, False),
    (Tensor.__setitem__, (X, 0, X), {}, True),
]


@pytest.mark.parametrize(("func", "args", "kwargs", "inplace"), INPLACE)
def test_in_place_is_known_before_the_call(func: Any, args: Any, kwargs: Any, inplace: bool) -> None:
    assert bool(Call(operator_name(func), "a", func, args, kwargs).inplace) is inplace


# ---- values and gradients
def test_surrogate_has_one_value_and_another_gradient() -> None:
    x = X.clone().requires_grad_()
    value = surrogate(x.exp().detach(), 3 * x, scale=x.detach())
    assert torch.equal(value.detach(), X.exp())
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], 3 * X)


LINEAR: dict[str, nn.Module] = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "asymmetric": nn.Conv2d(4, 6, (3, 1), stride=(2, 3), padding=(0, 2), bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "same": nn.Conv2d(4, 6, 3, padding="same"),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "linear": nn.Linear(9, 5),
}


@pytest.mark.parametrize("norm", [False, True], ids=["alone", "with batch norm"])
@pytest.mark.parametrize("kind", LINEAR)
def test_a_rule_that_changes_nothing_changes_nothing(kind: str, norm: bool) -> None:
    channels = 4 if kind == "linear" else 8 if kind == "depthwise" else 6
    after = nn.BatchNorm2d(channels) if norm else nn.Identity()
    net = Net(lambda s, x: s.after(s.layer(x)), layer=LINEAR[kind], after=after)
    value, gradient, _ = pulled(net, None)
    found, pull, matched = pulled(net, table("conv*|linear", Same()))
    assert torch.equal(found, value)
    assert torch.allclose(pull, gradient, rtol=1e-10, atol=1e-13)
    assert matched[0] == "layer"
    # A convolution and the batch norm after it are one affine call; after a linear or transposed one it stands alone.
    assert matched == (["layer", "after"] if norm and kind not in ("linear", "transposed") else ["layer"])


def test_a_batch_norm_is_one_with_the_convolution_before_it() -> None:
    conv, bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    net = Net(lambda s, x: s.bn(s.conv(x)), conv=conv, bn=bn)
    _, gradient, _ = pulled(net, table("conv2d", Epsilon()))
    z = bn(conv(X))
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    weights = torch.arange(z.numel(), dtype=torch.float64).cos().view_as(z)
    expected = F.conv_transpose2d(weights, conv.weight * scale[:, None, None, None])
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()  # z / (z + e) is one up to the stabilizer
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pulled(net, EPSILON)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_batch_norm_stands_alone_where_something_comes_between() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.conv(x)
        h += 1
        return s.bn(h)

    _, _, matched = pulled(Net(run, conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)), table("conv2d", Same()))
    assert matched == ["conv"]


def test_expressions_work_as_rules() -> None:
    value, gradient, _ = pulled(Net(lambda s, x: x.tanh().tanh()), table("tanh", Tenth()))
    assert torch.equal(value, X.tanh().tanh())
    weights = torch.arange(X.numel(), dtype=torch.float64).cos().view_as(X)
    assert torch.allclose(gradient, weights / 100)


def test_rules_look_at_operators_and_addresses() -> None:
    net = Net(lambda s, x: s.b(s.a(F.relu(x))), a=nn.Tanh(), b=nn.Tanh())
    weights = torch.arange(X.numel(), dtype=torch.float64).cos().view_as(X)
    only = Composite((Entry("tanh", Tenth(), addresses="b"),), strict=False)
    _, gradient, matched = pulled(net, only)
    assert matched == ["b"]
    inner = X.relu().tanh()
    assert torch.allclose(gradient, weights / 10 * (1 - inner**2) * (X > 0))
    first = Composite((Entry("t*", Same(), addresses="a"), Entry("tanh|relu", Tenth())), strict=False)
    assert first.rule_for("tanh", "a") == Same()
    assert first.rule_for("tanh", "b") == Tenth()
    assert first.rule_for("relu", "relu") == Tenth()
    assert first.rule_for("conv2d", "a") is None


IN_PLACE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "module": lambda s, h: s.relu(h),
    "functional": lambda s, h: F.relu(h, inplace=True),
    "method": lambda s, h: h.relu_(),
}


@pytest.mark.parametrize("dropped", [False, True], ids=["used", "dropped"])
@pytest.mark.parametrize("composite", [GUIDED, DECONVNET, EPSILON, EPSILON_PLUS], ids=["guided", "deconvnet", "eps", "plus"])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_in_place_operators_give_what_others_give(kind: str, composite: Composite, dropped: bool) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.conv(x)
        y = IN_PLACE[kind](s, h)
        z = s.other(x)
        z += h if dropped else y
        return s.last(z)

    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(4, 5, 3), "other": nn.Conv2d(4, 5, 3), "last": nn.Conv2d(5, 2, 3), "relu": nn.ReLU(inplace=True)}
    clean = Net(lambda s, x: s.last(s.conv(x).relu() + s.other(x)), **parts)
    value, gradient, _ = pulled(Net(run, **parts), composite)
    expected, pull, _ = pulled(clean, composite)
    assert torch.equal(value, expected)
    assert torch.allclose(gradient, pull, rtol=1e-9, atol=1e-13)


def test_one_relu_used_twice_is_covered_twice() -> None:
    net = Net(lambda s, x: s.relu(s.relu(x) - 0.5), relu=nn.ReLU())
    assert pulled(net, GUIDED)[2] == ["relu", "relu_1"]


# ---- strictness
NO_RULE: dict[str, tuple[Callable[[Net, Tensor], Tensor], str]] = {
    "exp": (lambda s, x: s.conv(x).exp(), "no rule for 'exp' at 'exp'"),
    "inside a module": (lambda s, x: s.odd(s.conv(x)), r"no rule for 'sin' at 'odd.sin'"),
    "product of two signals": (lambda s, x: s.conv(x) * s.other(x), "a product of two signals, 'mul', at 'mul'"),
    "a signal times itself": (lambda s, x: (h := s.conv(x)) * h, "a product of two signals, 'mul', at 'mul'"),
    "division by a signal": (lambda s, x: 1 / (s.conv(x).abs() + 1), "no rule for"),
    "larger of two signals": (lambda s, x: torch.maximum(s.conv(x), s.other(x)), "no rule for 'maximum'"),
}


@pytest.mark.parametrize("kind", NO_RULE)
def test_strict_tables_name_what_they_have_no_rule_for(kind: str) -> None:
    run, reason = NO_RULE[kind]
    odd = Net(lambda s, x: x.sin())
    net = Net(run, conv=nn.Conv2d(4, 4, 3), other=nn.Conv2d(4, 4, 3), odd=odd)
    with pytest.raises(cs.UnsupportedError, match=reason):
        pulled(net, EPSILON)
    pulled(net, Composite(EPSILON.entries, strict=False))


def test_scaling_by_what_carries_no_signal_is_allowed() -> None:
    net = Net(lambda s, x: (s.conv(x) * torch.rand(4, 1, 1, dtype=x.dtype) / 3 + 1) * 2, conv=nn.Conv2d(4, 4, 3))
    pulled(net, EPSILON)


def _hidden(x: Tensor) -> Tensor:
    return torch.jit.script(_swish)(x)


def _swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("hide", [_hidden, _Own.apply], ids=["TorchScript function", "autograd.Function"])
def test_what_comes_out_of_a_hidden_operator_is_refused(hide: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda s, x: hide(s.conv(x)).flatten(1), conv=nn.Conv2d(4, 4, 3))
    for composite in (EPSILON, GUIDED):
        with pytest.raises(cs.UnsupportedError, match="'flatten' receives comes from an operator that cannot be seen"):
            pulled(net, composite)
    assert pulled(net, None)[1].shape == X.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_in_torchscript_are_refused() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).double())
    net = Net(lambda s, x: s.inner(x), inner=inner)
    with pytest.raises(cs.UnsupportedError, match=r"inner.*TorchScript, which hides its operators; pass the nn.Module"):
        pulled(net, GUIDED)


# ---- composites
def test_composites_print_as_tables() -> None:
    lines = str(EPSILON).splitlines()
    assert lines[0].split()[0] == "conv*"
    assert "Epsilon(epsilon=" in lines[0]
    assert lines[-1] == "anything else: proportional, or an error"
    assert str(GUIDED).splitlines()[-1] == "anything else: ordinary gradient"


def test_composites_are_specs() -> None:
    back = Composite.from_dict(EPSILON_PLUS.to_dict())
    assert back == EPSILON_PLUS
    assert hash(back) == hash(EPSILON_PLUS)
    assert back.rule_for("conv2d", "x") == EPSILON_PLUS.rule_for("conv2d", "x")  # type: ignore[attr-defined]
    assert EPSILON != EPSILON_PLUS


@pytest.mark.parametrize("act", [nn.Hardswish, nn.ELU, nn.ReLU6, nn.SiLU])
def test_a_rule_keeps_the_input_of_a_call_that_overwrites_it(act: Any) -> None:
    def network(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 4, 3), act(inplace=inplace), nn.Conv2d(4, 4, 3), act(inplace=inplace)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()

    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = [cs.explain(network(inplace), x, "lrp", 1).values for inplace in (False, True)]
    assert torch.equal(*maps)
