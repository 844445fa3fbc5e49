"""Equal to captum, on networks and methods where captum follows the papers."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from networks import images, network_of, normal, randomized, relative, torchvision_network, untouched, values
from peers import method
from torch import Tensor, nn

import convoscope as cs

attr = pytest.importorskip("captum.attr", reason="captum is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")
CLASS = 3


@cache
def small() -> nn.Module:
    """Every operator a module of its own, no rectifier in place or used twice."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 7 * 7, 20),
        nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip
    return randomized(module, normal(4, 3, 64, 64, seed=2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small": small,
    "resnet18": lambda: torchvision_network("resnet18"),
    "vgg11": lambda: torchvision_network("vgg11"),
}
X = images("resnet18")


@pytest.fixture(scope="module", params=NETWORKS)
def module(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def agree(found: Tensor, theirs: Tensor, limit: float = 1e-5) -> None:
    assert float(found.abs().max()) > 0
    assert relative(found, theirs.detach()) < limit


def test_gradient(module: nn.Module) -> None:
    theirs = attr.Saliency(module).attribute(X.clone(), target=CLASS, abs=False)
    agree(values(module, X, cs.Gradient(), CLASS), theirs, 1e-12)


def test_input_x_gradient(module: nn.Module) -> None:
    theirs = attr.InputXGradient(module).attribute(X.clone(), target=CLASS)
    agree(values(module, X, cs.InputXGradient(), CLASS), theirs, 1e-12)


def test_integrated_gradients(module: nn.Module) -> None:
    steps, start = 5, normal(1, 3, 64, 64, seed=5)
    theirs, gap = attr.IntegratedGradients(module).attribute(
        X.clone(), start, target=CLASS, n_steps=steps, method="riemann_middle", return_convergence_delta=True
    )
    found = cs.explain(network_of(module), X, cs.IntegratedGradients(rule="midpoint", steps=steps, baseline=start), CLASS)
    agree(found.values, theirs)
    assert torch.allclose(torch.tensor(found.diagnostics["completeness gap"], dtype=torch.float64), gap.double(), rtol=1e-5)


def test_guided_backprop(module: nn.Module) -> None:
    theirs = attr.GuidedBackprop(module).attribute(X.clone(), target=CLASS)
    agree(values(module, X, cs.GuidedBackprop(), CLASS), theirs, 1e-12)


def test_deconvnet(module: nn.Module) -> None:
    theirs = attr.Deconvolution(module).attribute(X.clone(), target=CLASS)
    agree(values(module, X, cs.Deconvnet(), CLASS), theirs, 1e-12)


def test_occlusion(module: nn.Module) -> None:
    """Where the stride divides; captum cuts the last window short elsewhere, where ours ends at the edge."""
    theirs = attr.Occlusion(module).attribute(
        X.clone(), (3, 32, 32), strides=(3, 16, 16), baselines=0.25, target=CLASS, perturbations_per_eval=9
    )
    agree(values(module, X, cs.Occlusion(window=32, stride=16, fill=0.25), CLASS), theirs[:, :1])


@pytest.mark.parametrize(
    ("name", "layer"), [("small", "4"), ("resnet18", "layer3"), ("resnet18", "layer4"), ("vgg11", "features.17")]
)
def test_grad_cam(name: str, layer: str) -> None:
    network = NETWORKS[name]()
    theirs = attr.LayerGradCam(network, network.get_submodule(layer)).attribute(X.clone(), target=CLASS, relu_attributions=True)
    with untouched(network):
        agree(values(network, X, cs.GradCAM(layer=layer), CLASS), theirs)


@pytest.mark.parametrize(("name", "layer"), [("small", "3"), ("resnet18", "layer2")])
def test_integrated_gradients_of_a_layer(name: str, layer: str) -> None:
    """From the layer's value for the baseline image to that for the image, along a line in the layer's own space."""
    network, start = NETWORKS[name](), normal(1, 3, 64, 64, seed=5)
    theirs = attr.LayerIntegratedGradients(network, network.get_submodule(layer)).attribute(
        X.clone(), start.expand_as(X), target=CLASS, n_steps=5, method="riemann_middle"
    )
    with torch.no_grad():
        layer_start = attr.LayerActivation(network, network.get_submodule(layer)).attribute(start)
    method = cs.IntegratedGradients(rule="midpoint", steps=5, baseline=layer_start)
    agree(cs.explain(network_of(network), X, method, CLASS, at=layer).values, theirs)


def test_neuron_attribution() -> None:
    network = NETWORKS["resnet18"]()
    theirs = attr.NeuronGradient(network, network.layer2).attribute(X.clone(), (5, 3, 4))
    found = cs.explain(network_of(network), X, cs.Gradient(), cs.Neuron("layer2", 5, 3, 4)).values
    agree(found, theirs, 1e-12)


@cache
def plain() -> nn.Module:
    """What captum's DeepLIFT and LRP get right: no pools behind rectifiers, no functions, nothing used twice."""
    module = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 10, 7),
    )
    return randomized(module, normal(4, 3, 64, 64, seed=2))


@cache
def flat() -> nn.Module:
    return nn.Sequential(*plain(), nn.Flatten())


START = 0.5 * normal(1, 3, 64, 64, seed=5)


def test_deep_lift() -> None:
    theirs = attr.DeepLift(flat()).attribute(X.clone(), START.expand_as(X), target=CLASS)
    agree(values(flat(), X, method("DeepLIFT", baseline=START), CLASS), theirs, 1e-9)


def test_deep_lift_shap() -> None:
    data = 0.5 * normal(3, 3, 64, 64, seed=6)
    theirs = attr.DeepLiftShap(flat()).attribute(X.clone(), data, target=CLASS)
    agree(values(flat(), X, method("DeepLIFTSHAP", baseline=data), CLASS), theirs, 1e-9)


def test_lrp() -> None:
    """captum knows no Flatten; the class is a position of the last map."""
    theirs = attr.LRP(deepcopy(plain())).attribute(X.clone(), target=(CLASS, 0, 0))
    agree(values(flat(), X, cs.LRP(composite="epsilon"), CLASS), theirs, 1e-6)


@pytest.mark.parametrize(("name", "layer"), [("small", "3"), ("resnet18", "layer3")])
def test_internal_influence(name: str, layer: str) -> None:
    """By the trapezoid rule, the weights of which captum makes too small by the share of one point."""
    network, steps = NETWORKS[name](), 2
    theirs = attr.InternalInfluence(network, network.get_submodule(layer)).attribute(
        X.clone(), START.expand_as(X), target=CLASS, n_steps=steps + 1, method="riemann_trapezoid"
    )
    influence = method("InternalInfluence", layer=layer, steps=steps, baseline=START)
    agree(values(network, X, influence, CLASS), theirs * (steps + 1) / steps)


@pytest.mark.parametrize(("name", "layer"), [("small", "3"), ("resnet18", "layer3")])
def test_hires_cam(name: str, layer: str) -> None:
    network = NETWORKS[name]()
    theirs = attr.LayerGradientXActivation(network, network.get_submodule(layer)).attribute(X.clone(), target=CLASS)
    agree(values(network, X, method("HiResCAM", layer=layer), CLASS).relu(), theirs.sum(1, keepdim=True).relu())


def test_feature_ablation() -> None:
    network = small()
    regions = (torch.arange(64)[:, None] // 16 * 4 + torch.arange(64) // 16)[None]
    theirs = attr.FeatureAblation(network).attribute(X.clone(), 0.25, target=CLASS, feature_mask=regions[None])
    agree(values(network, X, method("FeatureAblation", regions=regions, fill=0.25), CLASS), theirs[:, :1])
