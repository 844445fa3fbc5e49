"""Equal to zennit, where it follows the equations.

Its stabilizers are absolute and ours are fractions of the values' root mean square: both are made negligible. Its merged
batch norms keep their epsilon (release 0.5), so those of the networks here are zero.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from networks import bias_free, images, normal, randomized, relative, torchvision_models, torchvision_network, values
from torch import Tensor, nn

import convoscope as cs
from convoscope.rules import AlphaBeta, Flat, Gamma, Rule, WSquare, ZBox, ZPlus
from convoscope.rules.composites import epsilon, epsilon_plus, layered

torchvision_models()  # zennit imports torchvision
zennit = pytest.importorskip("zennit", reason="zennit is not installed")
SequentialMergeBatchNorm, ResNetCanonizer = zennit.canonizers.SequentialMergeBatchNorm, zennit.torchvision.ResNetCanonizer
EpsilonPlus, Epsilon = zennit.composites.EpsilonPlus, zennit.rules.Epsilon

CLASS, TINY, X = 3, 1e-14, images("resnet18")


def exact_norms(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.0
    return module


def small() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12 * 6 * 6, 20), nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip
    return randomized(module, normal(4, 3, 64, 64, seed=2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], type]] = {
    "small": (small, SequentialMergeBatchNorm),
    "vgg11_bn": (lambda: torchvision_network("vgg11_bn"), SequentialMergeBatchNorm),
    "resnet18": (lambda: torchvision_network("resnet18"), ResNetCanonizer),
}


def zennits(module: nn.Module, composite: Any) -> Tensor:
    """Relevance by zennit, beginning with the logit of the class."""
    mask = torch.zeros(10, dtype=torch.float64)
    mask[CLASS] = 1
    with zennit.attribution.Gradient(model=deepcopy(module), composite=composite) as attributor:
        return attributor(X.clone(), lambda output: output * mask)[1]


@pytest.mark.parametrize("bias", ["with biases", "without"])
@pytest.mark.parametrize("name", NETWORKS)
def test_epsilon_plus(name: str, bias: str) -> None:
    make, canonizer = NETWORKS[name]
    module = exact_norms(deepcopy(make()) if bias == "with biases" else bias_free(make()))
    theirs = zennits(module, EpsilonPlus(epsilon=TINY, stabilizer=TINY, canonizers=[canonizer()]))
    assert relative(values(module, X, cs.LRP(composite=epsilon_plus(TINY)), CLASS), theirs) < 1e-5


LOW, HIGH = (v * torch.ones(1, 3, 1, 1, dtype=torch.float64) for v in (-4.0, 5.0))
RULES: dict[str, tuple[Rule, Any]] = {
    "gamma": (Gamma(0.25, TINY), lambda: zennit.rules.Gamma(0.25, stabilizer=TINY)),
    "alpha-beta": (AlphaBeta(2.0, 1.0, TINY), lambda: zennit.rules.AlphaBeta(2, 1, stabilizer=TINY)),
    "z-plus": (ZPlus(TINY), lambda: zennit.rules.ZPlus(stabilizer=TINY)),
}
FIRST: dict[str, tuple[Rule, Any]] = {
    "z-B": (ZBox(LOW, HIGH, TINY), lambda: zennit.rules.ZBox(LOW, HIGH, stabilizer=TINY)),
    # Its bias counts as one of the weights unless it is said to be zero, and takes relevance.
    "w-squared": (WSquare(TINY), lambda: zennit.rules.WSquare(stabilizer=TINY, zero_params="bias")),
    "flat": (Flat(TINY), lambda: zennit.rules.Flat(stabilizer=TINY)),
}
CASES = [*(("small", r, "") for r in RULES), *(("small", "gamma", f) for f in FIRST), ("resnet18", "alpha-beta", ""),
         ("resnet18", "gamma", "z-B"), ("resnet18", "z-plus", "flat"), ("vgg11_bn", "gamma", "z-B")]  # fmt: skip


@pytest.mark.parametrize(("name", "rule", "first"), CASES, ids=["-".join(filter(None, c)) for c in CASES])
def test_rules_inside_and_first(name: str, rule: str, first: str) -> None:
    """One rule in convolutions, epsilon in linear operators, and another rule in the first layer."""
    make, canonizer = NETWORKS[name]
    module, (ours, theirs) = exact_norms(deepcopy(make())), RULES[rule]
    table = zennit.composites.layer_map_base(TINY)
    rules = [*table, (zennit.types.Convolution, theirs()), (torch.nn.Linear, Epsilon(TINY))]
    if first:
        start, composite = [(zennit.types.Convolution, FIRST[first][1]())], zennit.composites.SpecialFirstLayerMapComposite
        found = composite(rules, start, canonizers=[canonizer()])
    else:
        found = zennit.composites.LayerMapComposite(rules, canonizers=[canonizer()])
    table = layered(ours, epsilon(TINY).entries[0].rule, FIRST[first][0] if first else None, TINY)
    assert relative(values(module, X, cs.LRP(composite=table), CLASS), zennits(module, found)) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_epsilon(name: str) -> None:
    make, canonizer = NETWORKS[name]
    module = exact_norms(deepcopy(make()))
    linear = [(kind, Epsilon(TINY)) for kind in (zennit.types.Convolution, zennit.types.Linear)]
    rules = [*linear, *zennit.composites.layer_map_base(TINY)]
    composite = zennit.composites.LayerMapComposite(rules, canonizers=[canonizer()])
    assert relative(values(module, X, cs.LRP(composite=epsilon(TINY)), CLASS), zennits(module, composite)) < 1e-5


def test_default_stabilizers_change_little() -> None:
    """The defaults of both, on a network with biases: the maps differ by less than one in a thousand."""
    module = exact_norms(deepcopy(small()))
    theirs = zennits(module, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()]))
    assert relative(values(module, X, cs.LRP(), CLASS), theirs) < 1e-3
