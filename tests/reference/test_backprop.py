"""RectGrad, excitation backprop and deconvnet against the published equations, unit by unit, and against zennit."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from networks import (
    bias_free,
    dense,
    images,
    network_of,
    normal,
    randomized,
    relative,
    torchvision_models,
    torchvision_network,
    values,
)
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs

SHAPE, CLASS = (2, 6, 5), 1
X = normal(3, *SHAPE, seed=1)
Array = np.ndarray


def build() -> nn.Module:
    """Convolution + batch norm -> ReLU -> linear -> ReLU -> linear."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(36, 7), nn.ReLU(),
        nn.Linear(7, 3),
    )  # fmt: skip
    return randomized(module, X)


def layers(module: nn.Module, x: Tensor) -> tuple[list[Array], list[Array]]:
    """The weights `(inputs, outputs)` of the three affine maps and the input of each, then the scores."""
    first = nn.Sequential(module[0], module[1])
    weights = [dense(first, SHAPE).numpy(), *(m.weight.detach().numpy().T for m in (module[4], module[6]))]
    with torch.no_grad():
        stages = [x[None], module[:3](x[None]), module[:6](x[None]), module(x[None])]
    return weights, [s.reshape(-1).numpy() for s in stages]


# ---------------------------------------------------------------- RectGrad
def rect_grad(module: nn.Module, x: Tensor, q: float) -> Array:
    """Kim et al. 2019: at each ReLU with activation a, R = 1[a R' > percentile of a R'] R'."""
    weights, stages = layers(module, x)
    signal = np.eye(3)[CLASS]
    for k in (2, 1):
        signal = weights[k] @ signal
        importance = stages[k] * signal
        signal = np.where(importance > np.percentile(importance, q), signal, 0)
    return weights[0] @ signal


@pytest.mark.parametrize("q", [0.0, 37.0, 80.0, 98.0])
def test_rect_grad(q: float) -> None:
    module = build()
    expected = torch.stack([torch.from_numpy(rect_grad(module, x, q)).reshape(SHAPE) for x in X])
    assert relative(values(module, X, cs.RectGrad(q=q), CLASS), expected) < 1e-12
    assert relative(values(module, X, cs.RectGrad(q=q, times_input=True), CLASS), X * expected) < 1e-12
    assert relative(values(module, X[2:], cs.RectGrad(q=q), CLASS), expected[2:]) < 1e-12  # whatever the batch


def test_rect_grad_lets_less_through_than_the_gradient() -> None:
    module, x = torchvision_network("resnet18"), images("resnet18")
    found = [values(module, x, cs.RectGrad(q=q)) for q in (50.0, 99.9)]
    assert float((found[1] != 0).double().mean()) < float((found[0] != 0).double().mean())
    with pytest.raises(cs.SpecError, match="percentile"):
        cs.RectGrad(q=101)


@pytest.mark.parametrize("method", [cs.RectGrad(q=50), cs.GuidedBackprop(), cs.Deconvnet()])
def test_activations_that_are_no_rectifiers_are_listed(method: cs.Method) -> None:
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)]
    module = randomized(nn.Sequential(*body), normal(4, 3, 8, 8))
    found = cs.explain(cs.Network(module), normal(2, 3, 8, 8), method, 0)
    assert found.diagnostics["activations with their ordinary gradient"] == ["3"]


# ---------------------------------------------------------------- excitation backprop
def winning(weights: Array, inputs: Array, probability: Array) -> Array:
    """Zhang et al. 2016, section 3.2: P(i) = sum_j x_i w_ij+ / (sum_i x_i w_ij+) P(j); negative x excite by negative w."""
    found = np.zeros_like(inputs)
    for j, p in enumerate(probability):
        parts = np.maximum(inputs * weights[:, j], 0)
        if parts.sum() > 0:
            found += parts / parts.sum() * p
    return found


def excitations(module: nn.Module, x: Tensor, contrast: bool) -> list[Array]:
    """The probabilities of the inputs of each affine map, the topmost first."""
    weights, stages = layers(module, x)
    top = winning(weights[2], stages[2], np.eye(3)[CLASS])
    found = [top - winning(-weights[2], stages[2], np.eye(3)[CLASS]) if contrast else top]
    for k in (1, 0):
        found.append(winning(weights[k], stages[k], found[-1]))
    return found


@pytest.mark.parametrize("contrast", [False, True])
def test_excitation_backprop(contrast: bool) -> None:
    module = build()
    kind = cs.ContrastiveExcitationBackprop if contrast else cs.ExcitationBackprop
    for layer, place, shape in (("2", 1, (4, 3, 3)), ("input", 2, SHAPE)):
        expected = [excitations(module, x, contrast)[place].reshape(shape).sum(0) for x in X]
        found = values(module, X, kind(layer=layer), CLASS)
        assert relative(found[:, 0], torch.from_numpy(np.stack(expected))) < 1e-7
    assert values(module, X, kind(), CLASS).shape == (3, 1, 3, 3)


LAYERS = {
    "resnet18": ("input", "conv1", "maxpool", "layer1", "layer2.0", "layer3.1", "layer4"),
    "googlenet": ("maxpool1", "inception3b", "inception4c", "inception5b"),
    "densenet121": ("features.pool0", "features.denseblock2", "features.norm5"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_probabilities_sum_to_one_at_every_layer(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    for layer in LAYERS[name]:
        result = cs.explain(network_of(module), x, cs.ExcitationBackprop(layer=layer), cs.Logit((3, 7)))
        found = result.values
        total, loss = found.flatten(1).sum(1), 0.05 if name == "densenet121" else 1e-6
        # In DenseNet a batch norm before the ReLU can lift a zero by its bias: nothing excites that unit.
        assert bool(((total > 1 - loss) & (total < 1 + 1e-6)).all()), (layer, total)
        assert float(found.min()) >= (-1e-9 if layer != "conv1" else -1)  # before a ReLU, values may be negative
        assert torch.allclose(torch.tensor(result.diagnostics["lost probability"], dtype=torch.float64), 1 - total)
        contrast = values(module, x, cs.ContrastiveExcitationBackprop(layer=layer), (3, 7))
        assert float(contrast.flatten(1).sum(1).abs().max()) < loss


def test_contrast_tells_classes_apart() -> None:
    """On a class whose weights are another's, negated, the contrast is the other's, negated."""
    module = build()
    module[6].weight.data[2] = -module[6].weight.data[CLASS]
    maps = [values(module, X, cs.ContrastiveExcitationBackprop(layer="2"), c) for c in (CLASS, 2)]
    assert relative(maps[0], -maps[1]) < 1e-9


@pytest.mark.parametrize("name", ["small", "vgg11_bn"])
def test_equal_to_zennit(name: str) -> None:
    torchvision_models()
    zennit = pytest.importorskip("zennit", reason="zennit is not installed")
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12 * 6 * 6, 20), nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip
    x, top = images("resnet18"), torch.eye(10).double()[[3, 3]]
    module = randomized(module, x) if name == "small" else bias_free(torchvision_network(name))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # release 0.5 keeps the epsilon of a merged one
            part.eps = 0.0
    merged = [zennit.canonizers.SequentialMergeBatchNorm()] if name != "small" else []
    rules = zennit.composites.ExcitationBackprop(stabilizer=1e-14, zero_params="bias", canonizers=merged)
    with zennit.attribution.Gradient(model=deepcopy(module), composite=rules) as attributor:
        theirs = attributor(x.clone(), top)[1]
    found = values(module, x, cs.ExcitationBackprop(layer="input"))
    assert relative(found, theirs.sum(1, keepdim=True)) < 1e-6


# ---------------------------------------------------------------- deconvnet
def test_deconvnet_of_a_unit_at_its_strongest_position() -> None:
    """Zeiler and Fergus 2014, section 2.1: one activation goes back by unpooling to the switches, ReLU, transposed filters."""
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 3), nn.ReLU()]
    module = randomized(nn.Sequential(*body), normal(4, 3, 16, 16))
    x, channel = normal(2, 3, 16, 16, seed=2), 4
    network = nn.Sequential(module, nn.Flatten(), nn.Linear(6 * 16, 2).double())
    found = values(network, x, cs.Deconvnet(), cs.Neuron("0", channel))  # type: ignore[arg-type]
    with torch.no_grad():
        maps = module(x)[:, channel]
        best = F.one_hot(maps.flatten(1).argmax(1), maps[0].numel()).reshape(maps.shape).double()
        signal = torch.zeros_like(module(x))
        signal[:, channel] = best
        signal = F.conv_transpose2d(signal.relu(), module[3].weight)
        before = module[:2](x)
        _, switches = F.max_pool2d(before, 3, 2, return_indices=True)
        unpooled = (
            torch.zeros_like(before).flatten(2).scatter_add_(2, switches.flatten(2), signal.flatten(2)).reshape(before.shape)
        )
        expected = F.conv_transpose2d(unpooled.relu(), module[0].weight)
    assert relative(found, expected) < 1e-12
    row, column = (int(v) for v in best[0].nonzero()[0])
    placed = values(network, x[:1], cs.Deconvnet(), cs.Neuron("0", channel, row, column))  # type: ignore[arg-type]
    assert torch.equal(placed, found[:1])


class Overwrites(nn.Module):
    """Rectifies half of the channels where they stand, or makes new tensors of them."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.inplace = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if not self.inplace:
            return self.b(torch.cat([x[:, :2].relu(), x[:, 2:].relu()], 1).mean((2, 3)))
        halves = x.chunk(2, 1)
        x = torch.cat([halves[0].clone().relu_(), halves[1]], 1)
        x[:, 2:].relu_()
        return self.b(x.mean((2, 3)))


def test_deconvnet_of_rectifiers_in_place_also_on_a_part_of_a_tensor() -> None:
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (cs.explain(Overwrites(i).double(), x, "deconvnet", 1).values for i in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found.abs().sum() > 0
