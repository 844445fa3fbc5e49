"""Class activation maps by their formulas."""

import pytest
import torch
from networks import images, normal, relative, torchvision_network, untouched, values
from torch import nn
from torch.nn import functional as F

import convoscope as cs

X, CLASS = normal(3, 3, 20, 24, seed=1), 1


@pytest.fixture(scope="module")
def pooled() -> nn.Module:
    """Convolutions, global average pooling, one linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 4),
    ).double().eval()  # fmt: skip


def test_cam_by_its_definition(pooled: nn.Module) -> None:
    """Zhou et al. 2016, eq. 2: M(x, y) = sum_k w_k f_k(x, y)."""
    with torch.no_grad():
        features = pooled[:4](X)
        expected = torch.einsum("k,nkhw->nhw", pooled[7].weight[CLASS], features)[:, None]
    assert relative(values(pooled, X, cs.CAM(), CLASS), expected) < 1e-13


def test_mean_of_cam_plus_bias_is_the_logit(pooled: nn.Module) -> None:
    found = values(pooled, X, cs.CAM(), CLASS)
    logit = found.mean((1, 2, 3)) + pooled[7].bias[CLASS]
    assert relative(logit, pooled(X)[:, CLASS]) < 1e-13


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "shufflenet_v2_x1_0", "efficientnet_b0"])
def test_mean_of_cam_plus_bias_is_the_logit_of_real_networks(name: str) -> None:
    module, x = torchvision_network(name), images(name)
    found = values(module, x, cs.CAM())
    bias = [m for m in module.modules() if isinstance(m, nn.Linear)][-1].bias[3]
    assert relative(found.mean((1, 2, 3)) + bias, module(x)[:, 3]) < 1e-12


def test_cam_is_grad_cam_times_the_positions(pooled: nn.Module) -> None:
    found, positions = cs.explain(cs.Network(pooled), X, cs.GradCAM(), CLASS), 10 * 12
    assert found.diagnostics["layer"] == "3"
    assert relative(found.values * positions, values(pooled, X, cs.CAM(), CLASS).relu()) < 1e-13


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_grad_cam_by_its_definition(layer: str) -> None:
    """Selvaraju et al. 2017, eq. 1 and 2, on a network whose gradients differ from place to place.

    In-place rectifiers follow the convolutions: the tensor explained is the one that the layer itself gave.
    """
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 5 * 6, 12), nn.ReLU(inplace=True), nn.Linear(12, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        features = module[: int(layer) + 1](X)
    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module[int(layer) + 1 :](leaf.clone())[:, CLASS].sum(), leaf)
    alpha = gradient.mean((2, 3))
    expected = F.relu(torch.einsum("nk,nkhw->nhw", alpha, features))[:, None]
    assert float(expected.max()) > 0
    with untouched(module):
        assert relative(values(module, X, cs.GradCAM(layer=layer), CLASS), expected) < 1e-13


def test_cam_refuses_two_linear_layers() -> None:
    head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with pytest.raises(cs.UnsupportedError, match="global average pooling and one linear layer"):
        values(module.double(), X, cs.CAM(), CLASS)


def test_cam_refuses_pooling_to_more_than_one_place() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)).double()
    with pytest.raises(cs.UnsupportedError, match="global average pooling"):
        values(module, X, cs.CAM(), CLASS)
