"""The CAM family by its formulas, each beside a plain loop or a closed form, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import images, network_of, normal, randomized, relative, torchvision_network, values
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs

CLASS, SIDE, LAYER = 1, 12, "2"
X = normal(2, 3, SIDE, SIDE, seed=3)


def pooled() -> nn.Module:
    """A network in network: rectified maps, pooled, one linear layer."""
    return randomized(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5),
        ),
        normal(4, 3, SIDE, SIDE, seed=5),
    )  # fmt: skip


def bent(activation: nn.Module | None = None) -> nn.Module:
    """What follows the layer `2` is not linear, and its gradients differ from place to place; no map here is zero."""
    return randomized(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(6, 7, 3, 2), nn.ReLU()),
            nn.Conv2d(7, 6, 3), activation or nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 5),
        ),
        normal(4, 3, SIDE, SIDE, seed=5), seed=6,
    )  # fmt: skip


def at_layer(module: nn.Module, target: Callable[[Tensor], Tensor] = lambda z: z[:, CLASS]) -> tuple[Tensor, Tensor]:
    """The layer of `bent` and the gradient of a target of the output."""
    with torch.no_grad():
        found = module[:3](X)
    leaf = found.clone().requires_grad_()
    return found, torch.autograd.grad(target(module[3:](leaf)).sum(), leaf)[0]


def map_of(module: nn.Module, method: cs.Method, target: Any = CLASS, **settings: Any) -> Tensor:
    return cs.explain(network_of(module), X, method, target, **settings).values


@pytest.mark.parametrize("name", ["pooled", "resnet18", "densenet121"])
def test_on_pooling_and_a_linear_layer_all_are_cam(name: str) -> None:
    module, x = (pooled(), X) if name == "pooled" else (torchvision_network(name), images(name))
    methods = [cs.CAM(), cs.HiResCAM(), cs.XGradCAM(), cs.GradCAM(), cs.AblationCAM(relative="activation"),
               cs.ReciproCAM(mask="place")]  # fmt: skip
    cam, hires, xgrad, grad, ablation, places = [a.values for a in cs.explain(network_of(module), x, methods, CLASS)]
    positions = cam.shape[2] * cam.shape[3]
    assert positions > 1
    for signed in (hires, xgrad, places):
        assert relative(signed * positions, cam) < 1e-10
    assert relative(grad * positions, cam.relu()) < 1e-10
    assert relative(ablation, cam.relu()) < 1e-10


def test_ablation_in_closed_form_is_what_the_network_says() -> None:
    """All channels of the last layer of a ResNet, set to zero one by one."""
    module, x = torchvision_network("resnet18"), images("resnet18")[:1]
    found = cs.explain(network_of(module), x, cs.AblationCAM(), CLASS)
    assert found.diagnostics["evaluations"] == 1
    with torch.no_grad():
        layer = nn.Sequential(*list(module.children())[:-2])(x)
        without = layer * (1 - torch.eye(512, dtype=x.dtype)[:, :, None, None])
        lost = module(x)[:, CLASS] - module.fc(module.avgpool(without).flatten(1))[:, CLASS]
        handle = module.layer4.register_forward_hook(lambda m, i, out: without[7:8])
        try:
            seventh = module(x)[0, CLASS]
        finally:
            handle.remove()
        assert abs(float(module(x)[0, CLASS] - seventh - lost[7])) < 1e-12
    expected = (lost[None, :, None, None] * layer).sum(1, keepdim=True).relu()
    assert relative(found.values, expected) < 1e-10


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_ablation_one_by_one(activation: nn.Module) -> None:
    module = bent(activation)
    layer, _ = at_layer(module)
    with torch.no_grad():
        score, lost = module(X)[:, CLASS], []
        for k in range(layer.shape[1]):
            left = layer.clone()
            left[:, k] = 0
            lost.append(score - module[3:](left)[:, CLASS])
    weights = torch.stack(lost, 1)[..., None, None]
    assert relative(map_of(module, cs.AblationCAM(layer=LAYER)), (weights * layer).sum(1, keepdim=True).relu()) < 1e-12
    weights = weights / score.abs().view(-1, 1, 1, 1)
    found = map_of(module, cs.AblationCAM(layer=LAYER, relative="score"))
    assert relative(found, (weights * layer).sum(1, keepdim=True).relu()) < 1e-12


def masked_scores(module: nn.Module, layer: Tensor, score: str, strength: float = 1.0) -> Tensor:
    """What the network says of each image through each channel: `(images, channels)`."""
    net, rows = network_of(module), []
    for image, maps in zip(X, layer, strict=True):
        row = []
        for channel in maps:
            large = cs.Attribution(channel[None, None], cs.GradCAM(layer=LAYER), cs.Logit(0), "input", 0, net, X[:1],
                                   {"layer": LAYER}).heatmap()[0]  # fmt: skip
            mask = (large - large.min()) / (large.max() - large.min())
            with torch.no_grad():
                logits = module((strength * mask * image)[None])
            row.append((logits if score == "logit" else logits.softmax(1))[0, CLASS])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize(("score", "norm"), [("logit", "softmax"), ("logit", "none"), ("probability", "none")])
def test_score_cam_by_a_plain_loop(score: str, norm: str) -> None:
    module = bent()
    layer, _ = at_layer(module)
    weights = masked_scores(module, layer, score)
    weights = weights.softmax(1) if norm == "softmax" else weights
    expected = (weights[..., None, None] * layer).sum(1, keepdim=True).relu()
    found = map_of(module, cs.ScoreCAM(layer=LAYER, score=score, norm=norm))
    assert relative(found, expected) < 1e-12
    one = {"layer": LAYER, "score": score, "norm": norm}
    assert relative(map_of(module, cs.ISCAM(steps=1, **one)), expected) < 1e-12
    assert relative(map_of(module, cs.SSCAM(samples=2, sigma=0.0, **one)), expected) < 1e-12


def test_is_cam_is_a_mean_over_strengths() -> None:
    module = bent()
    layer, _ = at_layer(module)
    weights = torch.stack([masked_scores(module, layer, "probability", s) for s in (1 / 3, 2 / 3, 1)]).mean(0)
    expected = (weights[..., None, None] * layer).sum(1, keepdim=True).relu()
    assert relative(map_of(module, cs.ISCAM(layer=LAYER, steps=3, score="probability", norm="none")), expected) < 1e-12


def test_recipro_cam_by_a_plain_loop() -> None:
    module = bent()
    layer, _ = at_layer(module)
    rows, columns = layer.shape[2:]
    with torch.no_grad():
        nothing = module[3:](torch.zeros_like(layer))[:, CLASS]
        for mask in ("place", "gaussian"):
            expected = torch.zeros(len(X), 1, rows, columns, dtype=X.dtype)
            for i in range(rows):
                for j in range(columns):
                    shown = torch.zeros_like(layer)
                    for a in range(rows):
                        for b in range(columns):
                            near = abs(a - i) + abs(b - j) if max(abs(a - i), abs(b - j)) < 2 else 9
                            weight = {0: 0.25, 1: 0.125, 2: 0.0625}.get(near, 0) if mask == "gaussian" else float(near == 0)
                            shown[..., a, b] = weight * layer[..., a, b]
                    expected[:, 0, i, j] = module[3:](shown)[:, CLASS] - nothing
            assert relative(map_of(module, cs.ReciproCAM(layer=LAYER, mask=mask)), expected) < 1e-12


def test_layer_and_hires_and_xgrad_by_their_definitions() -> None:
    module = bent()
    a, g = at_layer(module)
    assert relative(map_of(module, cs.HiResCAM(layer=LAYER)), (g * a).sum(1, keepdim=True)) < 1e-12
    assert relative(map_of(module, cs.LayerCAM(layer=LAYER)), (g.clamp(min=0) * a).sum(1, keepdim=True)) < 1e-12
    weights = (g * a).sum((2, 3)) / a.sum((2, 3))
    assert relative(map_of(module, cs.XGradCAM(layer=LAYER)), torch.einsum("nk,nkhw->nhw", weights, a)[:, None]) < 1e-12


def test_sums_of_xgrad_and_hires_cam_are_those_of_gradient_times_activation() -> None:
    module = bent()
    a, g = at_layer(module)
    total = (a * g).flatten(1).sum(1)
    for method in (cs.XGradCAM(layer=LAYER), cs.HiResCAM(layer=LAYER)):
        assert relative(map_of(module, method).flatten(1).sum(1), total) < 1e-12


def test_grad_cam_plus_plus_survives_small_gradients() -> None:
    """Weights scale with the logit as long as gradients are far below 1 / sum(A): nothing underflows in float32."""
    module = bent().float()
    module[-1].weight.data *= 1e-8
    tiny = cs.explain(cs.Network(module), X.float(), cs.GradCAMPlusPlus(layer=LAYER), CLASS).values
    module[-1].weight.data *= 10
    assert float(tiny.max()) > 0
    assert relative(cs.explain(cs.Network(module), X.float(), cs.GradCAMPlusPlus(layer=LAYER), CLASS).values, 10 * tiny) < 1e-4


def test_smooth_grad_cam_plus_plus_without_noise_is_grad_cam_plus_plus() -> None:
    module = bent()
    smooth = map_of(module, cs.SmoothGradCAMPlusPlus(layer=LAYER, samples=3, sigma=0.0))
    assert relative(smooth, map_of(module, cs.GradCAMPlusPlus(layer=LAYER))) < 1e-12


@pytest.mark.parametrize("layer", ["0", "2"])  # as many positions as channels, or more
@pytest.mark.parametrize("centered", [False, True])
def test_eigen_cam_is_the_projection_on_the_first_singular_vector(layer: str, centered: bool) -> None:
    module = bent()
    with torch.no_grad():
        a = module[: int(layer) + 1](X).flatten(2)
    rows = (a - a.mean(2, keepdim=True) if centered else a).mT
    _, _, vt = torch.linalg.svd(rows, full_matrices=False)
    expected = (rows @ vt[:, :1].mT)[..., 0]
    expected = expected * torch.sign((expected * a.mean(1)).sum(1, keepdim=True))
    found = map_of(module, cs.EigenCAM(layer=layer, centered=centered)).flatten(1)
    assert relative(found, expected) < 1e-9


def test_eigen_grad_cam_leans_to_the_evidence() -> None:
    module = bent()
    a, g = at_layer(module)
    found, hires = map_of(module, cs.EigenGradCAM(layer=LAYER)), (a * g).sum(1, keepdim=True)
    assert bool(((found * hires).sum((1, 2, 3)) > 0).all())
    singular = torch.linalg.svdvals((a * g).flatten(2))[:, 0]
    assert relative(found.flatten(1).norm(dim=1), singular) < 1e-12


@pytest.mark.parametrize("target", ["logit", "probability"])
@pytest.mark.parametrize("activation", [nn.Softplus(), nn.GELU()])
def test_shapley_cam_by_double_backward(activation: nn.Module, target: str) -> None:
    module = bent(activation)
    with torch.no_grad():
        a = module[:3](X)
    leaf = a.clone().requires_grad_()
    out = module[3:](leaf)
    score = (out if target == "logit" else out.softmax(1))[:, CLASS].sum()
    (g,) = torch.autograd.grad(score, leaf, create_graph=True)
    (curved,) = torch.autograd.grad(g, leaf, a)
    weights = (g.detach() - curved / 2).mean((2, 3), keepdim=True)
    expected = (weights * a).sum(1, keepdim=True).relu()
    chosen = cs.Logit(CLASS) if target == "logit" else cs.Probability(CLASS)
    found = map_of(module, cs.ShapleyCAM(layer=LAYER), chosen)
    assert relative(found, expected) < 1e-6
    assert relative(map_of(module, cs.GradCAM(layer=LAYER), chosen), expected) > 1e-2  # the curvature counts


def test_shapley_cam_of_a_logit_behind_relus_is_grad_cam() -> None:
    module = bent()
    found = cs.explain(network_of(module), X, cs.ShapleyCAM(layer=LAYER), CLASS)
    assert torch.equal(found.values, map_of(module, cs.GradCAM(layer=LAYER)))
    assert found.diagnostics["evaluations"] == len(X)


@pytest.mark.parametrize("similar", [1, 3, 9])
def test_finer_cam_is_the_map_of_a_difference_of_logits(similar: int) -> None:
    module = bent()
    with torch.no_grad():
        logits = module(X)
    for of in (cs.GradCAM(layer=LAYER), cs.HiResCAM(layer=LAYER)):
        found = map_of(module, cs.FinerCAM(of=of, similar=similar, alpha=0.7))
        for i in range(len(X)):
            order = [k for k in (logits[i] - logits[i, CLASS]).abs().argsort().tolist() if k != CLASS][:similar]
            target = cs.Logit(CLASS) - sum(cs.Logit(k) * (0.7 / len(order)) for k in order)
            assert relative(found[i : i + 1], cs.explain(network_of(module), X[i : i + 1], of, target).values) < 1e-12


@pytest.mark.parametrize("layer", [None, LAYER, "0"])
def test_guided_grad_cam_is_the_product(layer: str | None) -> None:
    module = bent()
    cam = cs.explain(network_of(module), X, cs.GradCAM(layer=layer), CLASS).heatmap()[:, None]
    found = map_of(module, cs.GuidedGradCAM(layer=layer))
    assert relative(found, cam * map_of(module, cs.GuidedBackprop())) < 1e-12


def test_guided_grad_cam_of_captum() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    module, x = torchvision_network("resnet18"), images("resnet18")[:1]
    peer = captum.GuidedGradCam(module, module.layer4).attribute(x.clone(), CLASS, interpolate_mode="bilinear")
    found = values(module, x, cs.GuidedGradCAM(layer="layer4"), CLASS)
    # captum interpolates between equal tiles, we between the centers of what units see: the factor in common is guided backprop
    cam = values(module, x, cs.GradCAM(layer="layer4"), CLASS)
    tiles = F.interpolate(cam, x.shape[2:], mode="bilinear", align_corners=False)
    guided = values(module, x, cs.GuidedBackprop(), CLASS)
    assert relative(tiles * guided, peer.detach()) < 1e-10
    placed = cs.explain(network_of(module), x, cs.GradCAM(layer="layer4"), CLASS).heatmap()[:, None]
    assert relative(found, placed * guided) < 1e-12
