"""Real architectures against what autograd itself can be made to say, and against conservation of relevance."""

from collections.abc import Callable, Iterator

import pytest
import torch
from networks import images, network_of, relative, torchvision_network, values, without_biases
from torch import Tensor, nn
from torch.autograd.graph import Node

import convoscope as cs
from convoscope.rules.composites import epsilon

CLASS = 3
DENSE = ("resnet18", "densenet121", "googlenet", "inception_v3", "vgg11_bn", "squeezenet1_1")
RECTIFIED = (*DENSE[:4], "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small")


def rectifiers(output: Tensor) -> Iterator[Node]:
    """Every ReLU in the graph behind a tensor, however it was called."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [n for n, _ in node.next_functions]
        if node.name() == "ReluBackward0":
            yield node


def through_the_graph(module: nn.Module, x: Tensor, attach: Callable[[Node], object]) -> tuple[Tensor, int]:
    """The gradient of the class with a hook at every ReLU of the graph, and how many there are."""
    flags = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(False)
    try:
        leaf = x.clone().requires_grad_()
        output = module(leaf.clone())
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    nodes = list(rectifiers(output))
    for node in nodes:
        attach(node)
    return torch.autograd.grad(output[:, CLASS].sum(), leaf)[0], len(nodes)


@pytest.mark.parametrize("name", RECTIFIED)
def test_guided_backprop_is_the_oracles_bit_for_bit(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    expected, count = through_the_graph(module, x, lambda n: n.register_prehook(lambda g: (g[0].clamp(min=0),)))
    found = values(module, x, cs.GuidedBackprop(), CLASS)
    assert torch.equal(found, expected)
    plain, _ = through_the_graph(module, x, lambda n: None)
    assert relative(found, plain) > 0.1
    assert count == sum_of_relu_calls(module, x)


@pytest.mark.parametrize("name", RECTIFIED)
def test_deconvnet_is_the_oracles_bit_for_bit(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    expected, _ = through_the_graph(module, x, lambda n: n.register_hook(lambda i, o: (o[0].clamp(min=0),)))
    assert torch.equal(values(module, x, cs.Deconvnet(), CLASS), expected)


def sum_of_relu_calls(module: nn.Module, x: Tensor) -> int:
    """How many ReLUs the network's trace lists."""
    return network_of(module).trace(x).operators.count("relu")


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0"])
def test_gradient_is_autograds_bit_for_bit(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    expected, _ = through_the_graph(module, x, lambda n: None)
    assert torch.equal(values(module, x, cs.Gradient(), CLASS), expected)


@pytest.mark.parametrize(("name", "composite"), [
    *((name, composite) for name in DENSE for composite in ("epsilon", "epsilon-plus")), ("shufflenet_v2_x1_0", "epsilon"),
])  # fmt: skip
def test_relevance_is_conserved_without_biases(name: str, composite: str) -> None:
    """Additions, concatenations, reused and functional operators of unmodified networks neither lose nor make relevance.

    With epsilon-plus, where every unit has a positive contribution; depthwise convolutions have units without any.
    """
    module, x = without_biases(name), images(name)
    found = cs.explain(network_of(module), x, cs.LRP(composite=composite), CLASS)
    score = module(x)[:, CLASS].detach()
    assert float(score.abs().min()) > 1e-3
    assert relative(found.values.flatten(1).sum(1), score) < 1e-6
    assert max(found.diagnostics["lost relevance relative"]) < 1e-6


@pytest.mark.parametrize("name", DENSE)
def test_epsilon_rule_without_biases_is_input_times_gradient(name: str) -> None:
    """LRP-0 of a bias-free ReLU network is input x gradient; what remains is the stabilizer's and shrinks with it."""
    module, x = without_biases(name), images(name)
    expected = values(module, x, cs.InputXGradient(), CLASS)
    assert relative(values(module, x, cs.LRP(composite="epsilon"), CLASS), expected) < 1e-4
    assert relative(values(module, x, cs.LRP(composite=epsilon(0.0)), CLASS), expected) < 1e-10


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_map_of_an_image_does_not_depend_on_its_neighbors(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    for method in (cs.LRP(), cs.GuidedBackprop()):
        together = values(module, x, method, CLASS)
        assert relative(torch.cat([values(module, x[i : i + 1], method, CLASS) for i in range(len(x))]), together) < 1e-9
