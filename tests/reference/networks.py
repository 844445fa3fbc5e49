"""Networks without trained weights on which errors show: no bias is zero, no batch norm the identity, no layer scale tiny."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import convoscope as cs
from convoscope.loading import import_torchvision

CLASSES = 10
TEN = (
    "resnet18", "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "vgg11_bn", "mobilenet_v3_small",
    "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0",
)  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same on every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(name: str, count: int = 2, seed: int = 1) -> Tensor:
    """Inputs of both signs, just large enough that the last feature map has rows and columns."""
    return normal(count, 3, *(2 * [107 if name == "inception_v3" else 64]), seed=seed)


def randomized(module: nn.Module, example: Tensor, seed: int = 0) -> nn.Module:
    """The module in float64 and evaluation mode, with every parameter and statistic random.

    Weights keep the scale of the signal; the statistics of batch norms are those of `example`, disturbed by a fifth, so that
    the signal survives a hundred layers and no batch norm is the identity.
    """
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()

    def draw(tensor: Tensor, mean: float, deviation: float) -> None:
        tensor.data.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))

    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.dim() > 1 and name == "weight":
                draw(parameter, 0.0, math.sqrt(2 / parameter[0].numel()))
            elif name == "bias":
                draw(parameter, 0.0, 0.2)
            else:  # scales of normalizations and layers
                parameter.data.copy_(0.5 + torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype))
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        module(example.clone())
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        draw(scatter := torch.empty_like(mean), 0.0, 0.2)
        mean.add_(scatter * variance.sqrt())
        variance.mul_(0.6 + 0.8 * torch.rand(variance.shape, generator=generator, dtype=variance.dtype))
        norm.eval()
    return module


@cache
def torchvision_network(name: str) -> nn.Module:
    """A torchvision architecture in float64, randomized. It is shared by all tests, none of which may change it."""
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3", "vgg11_bn", "vgg11") else {}
    module = torchvision_models().get_model(name, weights=None, num_classes=CLASSES, **settings)
    if name.startswith("vgg"):
        # The same operators in the same order; the full width would take a gigabyte and most of the time.
        module.classifier[0], module.classifier[3], module.classifier[6] = (
            nn.Linear(512 * 49, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES),
        )  # fmt: skip
    return randomized(module, images(name, 4, seed=2))


@cache
def network_of(module: nn.Module) -> cs.Network:
    """The module as a network, made once: its hash and its trace are kept."""
    return cs.Network(module)


@cache
def without_biases(name: str) -> nn.Module:
    """A torchvision architecture, randomized and bias-free."""
    return bias_free(torchvision_network(name))


def torchvision_models() -> Any:
    """`torchvision.models`; the test is skipped where torchvision is not installed."""
    try:
        return import_torchvision().models
    except cs.UsageError as error:
        pytest.skip(str(error), allow_module_level=True)


def bias_free(module: nn.Module) -> nn.Module:
    """A copy whose operators add nothing of their own: every bias and every running mean is zero."""
    module = deepcopy(module)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.split(".")[-1] in ("bias", "running_mean"):
            tensor.data.zero_()
    return module


def dense(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix `(inputs, outputs)` of a linear function of `(n, *shape)`, one unit vector after the other."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (function(basis) - function(torch.zeros_like(basis[:1]))).flatten(1)


def values(module: nn.Module, x: Tensor, method: cs.Method | str, target: int = 3, **settings: object) -> Tensor:
    """The attribution of a class by a method."""
    return cs.explain(network_of(module), x, method, target, **settings).values  # type: ignore[arg-type]


def state_of(module: nn.Module) -> dict[str, object]:
    """What an explanation must leave alone; the bits of every tensor are summed as whole numbers."""
    return {
        "weights": {k: int(v.view(torch.int64).sum()) for k, v in module.state_dict().items()},
        "modes": [m.training for m in module.modules()],
        "frozen": [p.requires_grad for p in module.parameters()],
        "gradients": [p.grad is None for p in module.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in module.modules()],
        "classes": [(type(m), id(m)) for m in module.modules()],
    }


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Fails the test if the module or the global random state is different afterwards."""
    state, random = state_of(module), torch.get_rng_state()
    yield
    after = state_of(module)
    assert [k for k in state if state[k] != after[k]] == []
    assert torch.equal(torch.get_rng_state(), random)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a fraction of the largest expected magnitude."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())
