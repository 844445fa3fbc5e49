"""What grad-cam 1.5.7 and torchcam 0.5.0 get wrong, why, and that the same networks are explained rightly here.

The tests of a library hold for the release in which the defect was seen and are skipped elsewhere.
"""

import dataclasses
from copy import deepcopy
from typing import Any

import pytest
import torch
from networks import (
    images,
    network_of,
    normal,
    randomized,
    relative,
    state_of,
    torchvision_models,
    torchvision_network,
    untouched,
    values,
)
from peers import method, seen_in
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.probe import Probe

torchvision_models()  # the peers must find it loaded

GRAD_CAM, TORCHCAM = seen_in("grad-cam", "1.5.7"), seen_in("torchcam", "0.5.0")
CLASS, LAYER, SIZE = 3, "2", 16
X = images("resnet18")[:, :, :SIZE, :SIZE]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def small(last: nn.Module | None = None) -> nn.Module:
    """A network whose layer `2` has gradients that differ from place to place; `last` comes before it."""
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(6, 8, 3, 2), last or nn.ReLU()),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 10),
    )  # fmt: skip
    return randomized(module, normal(4, 3, SIZE, SIZE, seed=2))


def clean(module: nn.Module, x: Tensor = X) -> tuple[Tensor, Tensor]:
    """The layer's values and the gradient of the class with respect to them."""
    with torch.no_grad():
        values = module[:3](x.clone())
    leaf = values.clone().requires_grad_()
    return values, torch.autograd.grad(module[3:](leaf)[:, CLASS].sum(), leaf)[0]


def explained(module: nn.Module, cam: cs.Method, x: Tensor = X) -> Tensor:
    return cs.explain(network_of(module), x, cam, CLASS).values


def grad_cams(module: nn.Module, name: str, x: Tensor = X, layer: nn.Module | None = None) -> Any:
    """grad-cam's maps, from 0 to 1."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, name)(model=module, target_layers=[module[2] if layer is None else layer])
    return cam(input_tensor=x.clone(), targets=[ClassifierOutputTarget(CLASS)] * len(x))


class TestDenominatorOfGradCAMPlusPlus:
    """9. torchcam divides `alpha[mask]`, a copy: what it returns has no denominator. Where written it sums A g^3, not A."""

    @staticmethod
    def weights(values: Tensor, g: Tensor) -> Tensor:
        """Chattopadhay et al. 2018, eq. 19 and 11, for an exponential of the logit."""
        below = 2 * g**2 + values.sum((2, 3), keepdim=True) * g**3
        alpha = torch.where(below == 0, torch.zeros_like(g), g**2 / torch.where(below == 0, torch.ones_like(g), below))
        return (alpha * g.relu()).sum((2, 3), keepdim=True)

    @TORCHCAM
    def test_torchcam(self) -> None:
        from torchcam.methods import GradCAMpp

        module = small()
        values, g = clean(module)
        with GradCAMpp(module, LAYER, input_shape=(3, SIZE, SIZE)) as cam:
            found = cam._get_weights(CLASS, module(X.clone()))[0].detach()
        assert relative(found, (g**2 * g.relu()).sum((2, 3))) < 1e-12
        assert relative(found, self.weights(values, g)[..., 0, 0]) > 0.5

    def test_ours(self) -> None:
        module = small()
        values, g = clean(module)
        expected = (self.weights(values, g) * values).sum(1, keepdim=True).relu()
        assert relative(explained(module, method("GradCAMPlusPlus", layer=LAYER)).relu(), expected) < 1e-6


class TestMeanOfSmoothGradCAMPlusPlus:
    """10. torchcam multiplies by the gradient of the last noisy sample, not the mean: the order of the samples counts."""

    @TORCHCAM
    def test_torchcam(self) -> None:
        from torchcam.methods import SmoothGradCAMpp

        module, noise = small(), [normal(1, 3, SIZE, SIZE, seed=s) for s in (7, 8)]

        def map_of(samples: list[Tensor]) -> Tensor:
            with SmoothGradCAMpp(module, LAYER, num_samples=2, input_shape=(3, SIZE, SIZE)) as cam:
                cam._distrib.sample = lambda _: samples.pop(0)
                scores = module(X[:1].clone())
                return cam(CLASS, scores, normalized=False)[0].detach()

        assert relative(map_of(noise[::-1]), map_of(noise[:])) > 0.05

    def test_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Samples in another order give the same map, another sample another one."""
        cam, module = method("SmoothGradCAMPlusPlus", layer=LAYER, samples=4), small()
        forward, normal = explained(module, cam), Probe.normal

        def reversed_normal(self: Probe, x: Tensor, draw: int = 0) -> Tensor:
            last = dataclasses.replace(self, keys=tuple((*k[:-1], shift - k[-1]) if len(k) > 1 else k for k in self.keys))
            return normal(last, x, shift - draw if len(self.keys[0]) == 1 else draw)

        shift = 3
        monkeypatch.setattr(Probe, "normal", reversed_normal)
        assert relative(explained(module, cam), forward) < 1e-10
        shift = 4
        assert relative(explained(module, cam), forward) > 1e-3


class Watching(nn.Module):
    """A network that remembers the largest magnitude it was ever shown."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.largest = module, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, float(x.detach().abs().max()))
        return self.module(x)


class TestPathOfISCAM:
    """11. torchcam adds up the path's coefficients: ten steps show the network 5.5 times the masked image."""

    @TORCHCAM
    def test_torchcam(self) -> None:
        from torchcam.methods import ISCAM

        module = Watching(small())
        with ISCAM(module, "module.2", num_samples=10, input_shape=(3, SIZE, SIZE)) as cam, torch.no_grad():
            module(X.clone())
            cam(CLASS)
        assert module.largest > 2 * float(X.abs().max())

    def test_ours(self) -> None:
        cam, module = method("ISCAM", layer="module.2"), Watching(small())
        network = cs.Network(module)
        module.largest = 0.0
        cs.explain(network, X, cam, CLASS)
        assert 0 < module.largest <= float(X.abs().max()) * (1 + 1e-6)


class TestAblationOfSignedLayers:
    """12. grad-cam ablates a signed layer to its minimum less 1e7, taken anew in the loop over the batch: 1e7, 2e7, 3e7...

    An exception leaves its own layer in the network, and all instances share one such layer.
    """

    @GRAD_CAM
    def test_grad_cam(self) -> None:
        from pytorch_grad_cam import AblationCAM, AblationLayer
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layer, signed = AblationLayer(), normal(1, 4, 3, 3)
        layer.activations_to_be_ablated(signed[0].numpy())
        layer.set_next_batch(0, signed, 4)
        found = layer(signed)
        depth = torch.stack([found[k, k].max() for k in range(4)]) / -1e7
        assert torch.allclose(depth, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=depth.dtype), atol=1e-6)

        module = small()
        cams = [AblationCAM(model=module, target_layers=[module[2]]) for _ in range(2)]
        assert cams[0].ablation_layer is cams[1].ablation_layer
        cams[0].batch_size = 0
        with pytest.raises(Exception):  # noqa: B017,PT011  whatever it is
            cams[0](input_tensor=X.clone(), targets=[ClassifierOutputTarget(CLASS)] * 2)
        assert isinstance(module[2], AblationLayer)

    @pytest.mark.parametrize("batch", [1, 3, 32])
    def test_ours(self, batch: int) -> None:
        """Every channel at zero, one by one, whatever the batch (Desai and Ramaswamy 2020, eq. 4)."""
        module = small(nn.Identity())
        values, _ = clean(module)
        with torch.no_grad():
            score, drops = module(X)[:, CLASS], []
            for k in range(values.shape[1]):
                without = values.clone()
                without[:, k] = 0
                drops.append((score - module[3:](without)[:, CLASS]) / score.abs())
        drop = torch.stack(drops, 1)[:, :, None, None]
        expected = (drop * values).sum(1, keepdim=True).relu()
        with untouched(module):
            found = cs.explain(network_of(module), X, method("AblationCAM", layer=LAYER), CLASS, batch_size=batch).values.relu()
        scale = (expected.flatten(1).amax(1) / found.flatten(1).amax(1)).view(-1, 1, 1, 1)  # ours is in units of the target
        assert relative(found * scale, expected) < 1e-9


class TestNetworkAfterGuidedBackprop:
    """13. grad-cam replaces every ReLU, and afterwards again by one new `nn.ReLU()`: hooks and `inplace` are gone for good."""

    @GRAD_CAM
    def test_grad_cam(self) -> None:
        from pytorch_grad_cam import GuidedBackpropReLUModel

        module = deepcopy(torchvision_network("resnet18"))
        before = [m for m in module.modules() if isinstance(m, nn.ReLU)]
        assert len(before) == 9
        assert all(m.inplace for m in before)
        theirs = GuidedBackpropReLUModel(model=module)(images("resnet18")[:1].clone(), target_category=CLASS)
        after = [m for m in module.modules() if isinstance(m, nn.ReLU)]  # modules() names a shared one once
        assert len(after) == 1
        assert not after[0].inplace
        ours = values(module, images("resnet18")[:1], cs.GuidedBackprop(), CLASS)[0].permute(1, 2, 0)
        assert relative(torch.tensor(theirs), ours) < 1e-10  # the map itself is right

    def test_ours(self) -> None:
        module = torchvision_network("resnet18")
        with untouched(module):
            values(module, images("resnet18"), cs.GuidedBackprop(), CLASS)


class TestNetworkAfterGradCAM:
    """14. grad-cam calls `eval()`, `zero_grad()` and `backward()` on the user's network, and swallows an IndexError."""

    @GRAD_CAM
    def test_grad_cam(self, capsys: pytest.CaptureFixture[str]) -> None:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        module = small().train()
        mine = torch.ones_like(module[0].weight)
        module[0].weight.grad = mine.clone()
        with GradCAM(model=module, target_layers=[module[2]]) as cam:
            assert not module.training
            cam(input_tensor=X.clone(), targets=[ClassifierOutputTarget(CLASS)] * 2)
        assert not torch.equal(module[0].weight.grad, mine)
        assert all(p.grad is not None for p in module.parameters())
        with GradCAM(model=module, target_layers=[module[2]]):
            raise IndexError("an error of the user's own")
        assert "an error of the user's own" in capsys.readouterr().out

    def test_ours(self) -> None:
        module = small().train()
        module[0].weight.grad = torch.ones_like(module[0].weight)
        before = state_of(module)
        explained(module, cs.GradCAM(layer=LAYER))
        assert state_of(module) == before
        assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
        with pytest.raises(cs.UsageError, match="there are 10"):
            cs.explain(network_of(module), X, cs.GradCAM(layer=LAYER), 99)


def permuted(order: Tensor) -> nn.Module:
    """The same function as `small()`, its layer's channels in another order."""
    module = small()
    convolution, following = module[2][0], module[3]
    convolution.weight.data, convolution.bias.data = convolution.weight.data[order], convolution.bias.data[order]
    following.weight.data = following.weight.data[:, order]
    return module


class TestSignOfEigenCAM:
    """15. The sign of a singular vector is arbitrary: grad-cam's map is turned inside out by the order of the channels."""

    orders = [torch.randperm(8, generator=torch.Generator().manual_seed(s)) for s in range(6)]

    @GRAD_CAM
    def test_grad_cam(self) -> None:
        import numpy as np
        from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

        activations = clean(small())[0].numpy()
        first = get_2d_projection(activations)[0].ravel()
        found = [get_2d_projection(activations[:, order.numpy()])[0].ravel() for order in self.orders]
        signs = {round(float(np.corrcoef(first, other)[0, 1])) for other in found}
        assert signs == {-1, 1}

    def test_ours(self) -> None:
        cam = method("EigenCAM", layer=LAYER)
        first = explained(small(), cam)
        for order in self.orders:
            assert relative(explained(permuted(order), cam), first) < 1e-8
        mean = clean(small())[0].mean(1, keepdim=True)
        centered = [m - m.mean((2, 3), keepdim=True) for m in (first, mean)]
        assert bool(((centered[0] * centered[1]).sum((1, 2, 3)) > 0).all())  # it is high where the activations are
