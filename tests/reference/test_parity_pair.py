"""Equal to PAIR's saliency, where it follows the papers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import network_of, normal, randomized, relative, values
from peers import method
from torch import Tensor, nn

import convoscope as cs

np = pytest.importorskip("numpy")
library = pytest.importorskip("saliency.core", reason="saliency is not installed")

CLASS, SIZE = 3, 12
X = 0.5 * normal(1, 3, SIZE, SIZE, seed=1)


def small() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    return randomized(module, normal(4, 3, SIZE, SIZE, seed=2))


def picture(x: Tensor = X) -> Any:
    return x[0].permute(1, 2, 0).numpy()


def tensor(mask: Any) -> Tensor:
    return torch.as_tensor(mask).permute(2, 0, 1)[None].double()


def asked(module: nn.Module) -> Callable[..., dict[str, Any]]:
    """The network as saliency calls it: arrays (images, height, width, channels), what it wants by key."""

    def call(x: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
        layer = module[:4](leaf)
        scores = module[4:](layer)[:, CLASS]
        found = torch.autograd.grad(scores.sum(), (leaf, layer))
        of_input, of_layer, layer = (t.detach().permute(0, 2, 3, 1).numpy() for t in (*found, layer))
        return {
            "INPUT_OUTPUT_GRADIENTS": of_input, "OUTPUT_LAYER_VALUES": scores.detach().numpy(),
            "CONVOLUTION_LAYER_VALUES": layer, "CONVOLUTION_OUTPUT_GRADIENTS": of_layer,
        }  # fmt: skip

    return call


def test_gradient() -> None:
    module = small()
    theirs = tensor(library.GradientSaliency().GetMask(picture(), asked(module)))
    assert relative(values(module, X, cs.Gradient(), CLASS), theirs) < 1e-12


def test_grad_cam() -> None:
    """Its sums are in single precision."""
    module = small()
    theirs = library.GradCam().GetMask(picture(), asked(module), should_resize=False, three_dims=False)
    found = cs.explain(network_of(module), X, cs.GradCAM(layer="3"), CLASS).values[0, 0]
    assert relative(found, torch.as_tensor(theirs).double()) < 1e-5


def test_integrated_gradients() -> None:
    """It takes both ends of the line and divides by all points: with many of them both agree."""
    module, start = small(), 0.3 * normal(1, 3, SIZE, SIZE, seed=5)
    ask, points = asked(module), {"x_steps": 2000, "batch_size": 50}
    mask = library.IntegratedGradients().GetMask(picture(), ask, x_baseline=picture(start), **points)
    found = values(module, X, cs.IntegratedGradients(steps=500, baseline=start), CLASS)
    assert relative(found, tensor(mask)) < 1e-2


def test_guided_ig(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repaired for the NumPy of today, which calls `interpolation` `method`.

    The path is the same; its steps count with the gradient where they start, ours with the mean of both ends.
    """
    quantile = np.quantile

    def repaired(values: Any, q: Any, *, interpolation: str = "linear", **rest: Any) -> Any:
        return quantile(values, q, method=interpolation, **rest)

    monkeypatch.setattr(np, "quantile", repaired)
    module, start, steps = small(), 0.3 * normal(1, 3, SIZE, SIZE, seed=5), 50
    points: list[Tensor] = []
    handle = module[0].register_forward_pre_hook(lambda _, args: points.append(args[0].detach().clone()))
    mask = library.GuidedIG().GetMask(picture(), asked(module), x_baseline=picture(start), x_steps=steps)
    path, points[:] = torch.cat(points), []
    cs.explain(cs.Network(module), X, method("GuidedIG", steps=steps, baseline=start), CLASS)
    handle.remove()
    assert relative(torch.cat(points)[-steps - 1 : -1], path) < 1e-9
    found = values(small(), X, method("GuidedIG", steps=steps, baseline=start), CLASS)
    assert relative(found, tensor(mask)) < 0.05


def test_blur_ig() -> None:
    """One point at a time, since a batch gets the last one's step; its points lie at the start of steps, ours in the middle."""
    module, errors = small(), []
    for steps in (50, 400):
        mask = library.BlurIG().GetMask(picture(), asked(module), max_sigma=4, steps=steps, grad_step=1e-4, batch_size=1)
        blur = method("BlurIG", steps=steps, sigma=4.0, spacing="linear", border="zero")
        errors.append(relative(values(module, X, blur, CLASS), tensor(mask)))
    assert errors[1] < min(0.02, errors[0] / 3)


def test_xrai() -> None:
    """The same regions and the same attribution give the same map; pictures of 224 pixels, on which both skip below 50 new."""
    from convoscope.attribution.path_regions import gathered

    density = normal(1, 224, 224, seed=4)[0]
    centers = torch.rand(30, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    axis = torch.arange(224) / 224
    distance = (axis[:, None] - centers[:, 0, None, None]) ** 2 + (axis - centers[:, 1, None, None]) ** 2
    regions = distance < (0.02 + 0.2 * centers[:, 2, None, None]) ** 2  # disks that overlap, and leave something over
    mask = library.XRAI().GetMask(
        density[..., None].numpy(), None, segments=list(regions.numpy()), base_attribution=density[..., None].numpy()
    )
    assert int((~regions.any(0)).sum()) > 50
    assert relative(gathered(density, regions), torch.as_tensor(mask)) < 1e-10
