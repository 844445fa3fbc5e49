"""Backpropagation rules against an implementation of the published equations: NumPy, dense matrices, unit by unit.

Signal: input x -> convolution + batch norm -> ReLU -> linear -> ReLU -> linear -> the classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from networks import bias_free, dense, normal, relative, values
from torch import Tensor, nn

import convoscope as cs
from convoscope.rules.composites import epsilon, epsilon_plus

SHAPE, CLASS = (2, 6, 5), 1
X = normal(3, *SHAPE, seed=1)
Array = np.ndarray


def build(bias: bool, inplace: bool = True) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Flatten(),
        nn.Linear(4 * 3 * 3, 7), nn.ReLU(), nn.Linear(7, 3),
    ).double().eval()  # fmt: skip
    module[1].weight.data, module[1].running_var = normal(4, seed=3), normal(4, seed=4).square() + 0.5
    module[1].bias.data, module[1].running_mean = normal(4, seed=5), normal(4, seed=6)
    return module if bias else bias_free(module)


@dataclass
class Numbers:
    """One image's forward pass: matrices `(inputs, outputs)`, biases, the values before and after each ReLU."""

    weights: list[Array]
    biases: list[Array]
    before: list[Array]
    after: list[Array]


def numbers(module: nn.Module, x: Tensor) -> Numbers:
    """The layers as matrices; batch norm is part of the first (y = g (Wx + b - m) / sqrt(v + 1e-5) + c)."""
    conv, norm, second, third = module[0], module[1], module[4], module[6]
    scale = (norm.weight / torch.sqrt(norm.running_var + 1e-5)).detach().numpy()
    shift = (scale * (conv.bias.detach().numpy() - norm.running_mean.numpy())) + norm.bias.detach().numpy()
    positions = 9
    first = dense(conv, SHAPE).numpy() * np.repeat(scale, positions)[None, :]
    weights = [first, second.weight.detach().numpy().T, third.weight.detach().numpy().T]
    biases = [np.repeat(shift, positions), second.bias.detach().numpy(), third.bias.detach().numpy()]
    after, before = [x.reshape(-1).numpy()], []
    for k in range(3):
        before.append(after[-1] @ weights[k] + biases[k])
        after.append(np.maximum(before[-1], 0) if k < 2 else before[-1])
    return Numbers(weights, biases, before, after)


def backwards(n: Numbers, rule: str) -> Array:
    """Simonyan et al. 2014 (gradient), Springenberg et al. 2015 (guided), Zeiler and Fergus 2014 (deconvnet)."""
    signal = np.zeros(3)
    signal[CLASS] = 1
    for k in (2, 1, 0):
        signal = np.array([sum(n.weights[k][i, j] * signal[j] for j in range(len(signal))) for i in range(len(n.weights[k]))])
        if k == 0:
            return signal
        open_, positive = n.before[k - 1] > 0, signal > 0
        signal = signal * {"gradient": open_, "guided": open_ & positive, "deconvnet": positive}[rule]
    raise AssertionError


def epsilon_rule(a: Array, w: Array, b: Array, r: Array, e: float) -> Array:
    """Bach et al. 2015, eq. 58: R_i = sum_j a_i w_ij / (z_j + e sign z_j) R_j, e in units of the root mean square of z."""
    z = a @ w + b
    e = e * np.sqrt(np.mean(z**2))
    found = np.zeros_like(a)
    for i in range(len(a)):
        for j in range(len(r)):
            found[i] += a[i] * w[i, j] / (z[j] + (e if z[j] >= 0 else -e)) * r[j]
    return found


def z_plus_rule(a: Array, w: Array, b: Array, r: Array) -> Array:
    """Bach et al. 2015, eq. 60 with alpha = 1, beta = 0: R_i = sum_j (a_i w_ij)+ / (sum_i' (a_i' w_i'j)+ + b_j+) R_j."""
    found = np.zeros_like(a)
    for j in range(len(r)):
        parts = np.maximum(a * w[:, j], 0)
        total = parts.sum() + max(b[j], 0)
        if total > 0:
            found += parts / total * r[j]
    return found


def relevance(n: Numbers, plus: bool, e: float) -> Array:
    r = np.zeros(3)
    r[CLASS] = n.before[2][CLASS]
    r = epsilon_rule(n.after[2], n.weights[2], n.biases[2], r, e)
    r = epsilon_rule(n.after[1], n.weights[1], n.biases[1], r, e)
    last = (n.after[0], n.weights[0], n.biases[0], r)
    return z_plus_rule(*last) if plus else epsilon_rule(*last, e)


def each(module: nn.Module, function: Callable[[Numbers], Array]) -> Tensor:
    return torch.stack([torch.from_numpy(function(numbers(module, x))).reshape(SHAPE) for x in X])


@pytest.mark.parametrize(
    ("rule", "method"), [("gradient", cs.Gradient()), ("guided", cs.GuidedBackprop()), ("deconvnet", cs.Deconvnet())]
)
def test_rules_at_rectifiers(rule: str, method: cs.Method) -> None:
    module = build(bias=True)
    expected = each(module, lambda n: backwards(n, rule))
    assert relative(values(module, X, method, CLASS), expected) < 1e-13
    if rule != "gradient":
        assert relative(expected, each(module, lambda n: backwards(n, "gradient"))) > 0.1


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("e", [1e-9, 0.01, 0.25])
def test_epsilon(bias: bool, e: float, inplace: bool) -> None:
    module = build(bias, inplace)
    expected = each(module, lambda n: relevance(n, False, e))
    assert relative(values(module, X, cs.LRP(composite=epsilon(e)), CLASS), expected) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sign", ["both signs", "positive"])
def test_epsilon_plus(bias: bool, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(bias)
    if sign == "positive":
        monkeypatch.setitem(globals(), "X", X.abs())
    expected = each(module, lambda n: relevance(n, True, 1e-12))
    assert relative(values(module, X, cs.LRP(composite=epsilon_plus(1e-12)), CLASS), expected) < 1e-10


def test_epsilon_rule_without_biases_is_input_times_gradient() -> None:
    module = build(bias=False)
    found = values(module, X, cs.LRP(composite="epsilon"), CLASS)
    assert relative(found, values(module, X, cs.InputXGradient(), CLASS)) < 1e-7


def test_relevance_is_conserved_without_biases() -> None:
    module = build(bias=False)
    for composite in ("epsilon", "epsilon-plus"):
        found = cs.explain(cs.Network(module), X, cs.LRP(composite=composite), CLASS)
        if composite == "epsilon":
            assert max(found.diagnostics["lost relevance relative"]) < 1e-7
        score = module(X)[:, CLASS].detach()
        # Units whose inputs all contribute negatively have nowhere to hand their relevance with the z-plus rule.
        dead = torch.stack([torch.tensor(unsupported(numbers(module, x))) for x in X])
        assert torch.allclose(found.values.flatten(1).sum(1) + (dead if "plus" in composite else 0), score, rtol=1e-7)


def unsupported(n: Numbers) -> float:
    """The relevance at units of the first layer that no input contributes to positively."""
    r = np.zeros(3)
    r[CLASS] = n.before[2][CLASS]
    for k in (2, 1):
        r = epsilon_rule(n.after[k], n.weights[k], n.biases[k], r, 0)
    return float(sum(r[j] for j in range(len(r)) if np.maximum(n.after[0] * n.weights[0][:, j], 0).sum() == 0))


def test_skip_additions_share_in_proportion() -> None:
    """z = a + b: a unit takes a / z of the relevance from one branch and b / z from the other, whatever the signs."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 6, bias=False).double(), nn.Linear(4, 6, bias=False).double()
            self.last = nn.Linear(6, 3, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            left = self.left(x.flatten(1))
            left += self.right(x.flatten(1)).relu()
            return self.last(left.relu())

    torch.manual_seed(1)
    module, x = Skip(), normal(1, 1, 2, 2, seed=7)
    a = x.reshape(-1).numpy()
    left, right, last = (m.weight.detach().numpy().T for m in (module.left, module.right, module.last))
    branches = [a @ left, np.maximum(a @ right, 0)]
    z = branches[0] + branches[1]
    top = np.zeros(3)
    top[CLASS] = np.maximum(z, 0) @ last[:, CLASS]
    r = epsilon_rule(np.maximum(z, 0), last, np.zeros(3), top, 0)
    zero = np.zeros(6)
    expected = epsilon_rule(a, left, zero, branches[0] / z * r, 0) + epsilon_rule(a, right, zero, branches[1] / z * r, 0)
    found = values(module, x, cs.LRP(composite="epsilon"), CLASS)
    assert relative(found.reshape(-1), torch.from_numpy(expected)) < 1e-7
