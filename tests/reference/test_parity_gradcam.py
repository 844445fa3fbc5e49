"""Equal to grad-cam, where it follows the papers: the maps before it resizes and stretches them, in float64."""

from copy import deepcopy

import pytest
import torch
from networks import images, network_of, normal, randomized, relative, torchvision_models, torchvision_network
from peers import method
from torch import Tensor, nn

import convoscope as cs

torchvision_models()  # grad-cam must find it loaded
library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CLASS = 3


def steep() -> nn.Module:
    """Large gradients, beside which grad-cam's stabilizers are nothing; they differ from place to place in layer `4`."""
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 10),
    )  # fmt: skip
    module = randomized(module, normal(4, 3, 32, 32, seed=2))
    module[-1].weight.data *= 1e5
    return module


NETWORKS = {"steep": (steep, "4", images("resnet18")[:, :, :32, :32]),
            "resnet18": (lambda: torchvision_network("resnet18"), "layer3", images("resnet18"))}  # fmt: skip


def theirs(name: str, module: nn.Module, layer: str, x: Tensor, targets: list | None) -> Tensor:
    """The map at the resolution of the layer, as grad-cam makes it before it takes the positive part and stretches it."""
    module, kept = deepcopy(module), []
    cam = getattr(library, name)(model=module, target_layers=[module.get_submodule(layer)])
    base = getattr(cam, "base_cam", cam)
    original = base.get_cam_image

    def keep(*args: object, **settings: object) -> object:
        kept.append(original(*args, **settings))
        found = kept[-1]
        return found if not isinstance(found, Tensor) else found.detach().cpu().numpy()

    base.get_cam_image = keep
    cam(input_tensor=x.clone(), targets=targets)
    return torch.as_tensor(kept[0])[:, None].double()


def classes(x: Tensor) -> list:
    return [library.utils.model_targets.ClassifierOutputTarget(CLASS)] * len(x)


def ours(cam: cs.Method, module: nn.Module, x: Tensor) -> Tensor:
    return cs.explain(network_of(module), x, cam, CLASS).values


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("GradCAM", "steep"), ("GradCAM", "resnet18"), ("GradCAMPlusPlus", "steep"), ("XGradCAM", "steep"),
        ("XGradCAM", "resnet18"), ("HiResCAM", "steep"), ("HiResCAM", "resnet18"), ("LayerCAM", "steep"),
        ("LayerCAM", "resnet18"),
    ],
)  # fmt: skip
def test_gradients(name: str, network: str) -> None:
    make, layer, x = NETWORKS[network]
    module = make()
    expected = theirs(name, module, layer, x, classes(x)).relu()
    found = ours(method(name, layer=layer), module, x).relu()
    assert float(expected.max()) > 0
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_principal_components(name: str) -> None:
    """Up to the sign, which grad-cam leaves to chance."""
    make, layer, x = NETWORKS["steep"]
    module = make()
    expected = theirs(name, module, layer, x, classes(x)).flatten(1)
    found = ours(method(name, layer=layer, centered=True), module, x).flatten(1)
    sign = (found * expected).sum(1, keepdim=True).sign()
    assert relative(sign * found, expected) < 1e-5


def test_ablation() -> None:
    """On a layer after a ReLU, where grad-cam too sets channels to zero; its drops are relative to the score."""
    make, layer, x = NETWORKS["steep"]
    module = make()
    with torch.no_grad():
        score = module(x)[:, CLASS].view(-1, 1, 1, 1)
    expected = (score * theirs("AblationCAM", module, layer, x, classes(x))).relu()
    found = ours(method("AblationCAM", layer=layer), module, x).relu()
    scale = expected.flatten(1).amax(1) / found.flatten(1).amax(1)
    assert relative(found * scale.view(-1, 1, 1, 1), expected) < 1e-5


def test_guided_backprop() -> None:
    module, x = torchvision_network("resnet18"), images("resnet18")[:1]
    expected = library.GuidedBackpropReLUModel(model=deepcopy(module))(x.clone(), target_category=CLASS)
    found = ours(cs.GuidedBackprop(), module, x)[0].permute(1, 2, 0)
    assert relative(found, torch.as_tensor(expected).double()) < 1e-10
