"""Equal to torchcam, where it follows the papers: maps at the resolution of the layer, not stretched, in float64."""

from copy import deepcopy

import pytest
import torch
from networks import images, network_of, relative, torchvision_models, torchvision_network
from peers import method
from torch import Tensor, nn

import convoscope as cs

torchvision_models()  # torchcam must find it loaded
library = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CLASS, X = 3, images("resnet18")


def theirs(name: str, module: nn.Module, layer: str, **settings: object) -> Tensor:
    module = deepcopy(module)
    with getattr(library, name)(module, layer, input_shape=(3, 64, 64), **settings) as cam:
        return cam(CLASS, module(X.clone()), normalized=False)[0].detach()[:, None]


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
@pytest.mark.parametrize("name", ["GradCAM", "XGradCAM", "LayerCAM"])
def test_gradients(name: str, layer: str) -> None:
    module = torchvision_network("resnet18")
    expected = theirs(name, module, layer).relu()
    found = cs.explain(network_of(module), X, method(name, layer=layer), CLASS).values.relu()
    assert float(expected.max()) > 0
    assert relative(found, expected) < 1e-5


def test_cam() -> None:
    """torchcam's CAM is a mean away from ours: both are the classifier's weights."""
    module = torchvision_network("resnet18")
    expected = theirs("CAM", module, "layer4", fc_layer="fc").relu()
    found = cs.explain(network_of(module), X, cs.CAM(), CLASS).values.relu()
    assert relative(found / found.amax(), expected / expected.amax()) < 1e-10


def test_the_noise_free_case_of_smooth_grad_cam() -> None:
    """Without noise all samples are one, and torchcam's formula is Grad-CAM++ but for a sum: it sums A g^3, the paper A.

    Where gradients are the same everywhere in a channel, as after the last layer of ResNets, both are one.
    """
    module = torchvision_network("resnet18")
    expected = theirs("SmoothGradCAMpp", module, "layer4", num_samples=1, std=1e-12).relu()
    found = cs.explain(network_of(module), X, method("GradCAMPlusPlus", layer="layer4"), CLASS).values.relu()
    assert relative(found, expected) < 1e-3  # its stabilizer is 1e-8, a gradient's square about 1e-5


def test_gradients_are_left_alone() -> None:
    module = torchvision_network("resnet18")
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(X, images("resnet18"))
