"""The lines as captum and zennit run them."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .networks import DEEPER, MEAN, STD, Bench
from .timing import Run


def captum(b: Bench) -> dict[str, Run]:
    from captum import attr

    warnings.filterwarnings("ignore", module="captum")
    m, t = b.module, b.target
    path, middle = attr.IntegratedGradients(m), {"n_steps": b.steps, "internal_batch_size": b.rows}

    def gradients() -> Any:
        return path.attribute(b.x, 0.0, target=t, method="riemann_middle", return_convergence_delta=True, **middle)

    def conductance(layer: str) -> Any:
        return attr.LayerConductance(m, m.get_submodule(layer)).attribute(b.x, 0.0, target=t, **middle)

    noisy = {"nt_samples": b.samples, "nt_samples_batch_size": max(1, b.rows // len(b.x)), "stdevs": 0.5, "abs": False}
    black = b.start.expand_as(b.x)
    return {
        "gradient": lambda: attr.Saliency(m).attribute(b.x, t, abs=False),
        "input x gradient": lambda: attr.InputXGradient(m).attribute(b.x, t),
        "guided backprop": lambda: attr.GuidedBackprop(m).attribute(b.x, t),
        "deconvnet": lambda: attr.Deconvolution(m).attribute(b.x, t),
        "smooth-grad": lambda: attr.NoiseTunnel(attr.Saliency(m)).attribute(b.x, target=t, **noisy),
        "integrated gradients": gradients,
        "expected gradients": lambda: attr.GradientShap(m).attribute(b.x, b.data, n_samples=b.samples, target=t),
        "conductance": lambda: conductance(b.layer),
        "conductance, several layers": lambda: [conductance(layer) for layer in DEEPER[b.name]],
        "internal influence": lambda: attr.InternalInfluence(m, b.place).attribute(b.x, 0.0, target=t, **middle),
        "deep-lift": lambda: attr.DeepLift(m).attribute(b.x, black, target=t),
        "deep-lift-shap": lambda: attr.DeepLiftShap(m).attribute(b.x, b.data, target=t),
        "grad-cam": lambda: attr.LayerGradCam(m, b.place).attribute(b.x, t, relu_attributions=True),
        "guided grad-cam": lambda: attr.GuidedGradCam(m, b.place).attribute(b.x, t),
        **_captums_masks(b),
    }


def _captums_masks(b: Bench) -> dict[str, Run]:
    from captum import attr

    m, t, regions = b.module, b.target, {"feature_mask": b.regions[None], "baselines": 0.0, "perturbations_per_eval": b.rows}
    return {
        "occlusion": lambda: occlusion(b, b.stride, best_setting(b)),
        "lime": lambda: attr.Lime(m).attribute(b.one, target=t, n_samples=b.masks, **regions),
        "kernel-shap": lambda: attr.KernelShap(m).attribute(b.one, target=t, n_samples=b.masks, **regions),
        "feature ablation": lambda: attr.FeatureAblation(m).attribute(b.one, target=t, **regions),
        "shapley sampling": lambda: attr.ShapleyValueSampling(m).attribute(b.one, target=t, n_samples=4, **regions),
    }


def occlusion(b: Bench, stride: int, together: int) -> Any:
    """captum's occlusion with `together` windows per pass."""
    from captum import attr

    place = (3, max(b.window, stride), max(b.window, stride))  # captum takes no stride above the window
    return attr.Occlusion(b.module).attribute(
        b.one, place, strides=(3, stride, stride), baselines=0.0, target=b.target, perturbations_per_eval=together
    )


def best_setting(b: Bench) -> int:
    """The fastest `perturbations_per_eval`, found once on about 50 windows."""
    if "occlusion" not in b.best:
        stride, found = max(b.stride, (b.x.shape[-1] - b.window) // 6), {}
        for together in (1, 4, 8, 16, 32, 64):
            started = time.perf_counter()
            occlusion(b, stride, together)
            found[together] = time.perf_counter() - started
        b.best["occlusion"] = min(found, key=found.get)  # type: ignore[arg-type]
    return b.best["occlusion"]


def zennit(b: Bench) -> dict[str, Run]:
    from zennit import attribution, composites, rules, types
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    mask = torch.zeros(1000)
    mask[b.target] = 1
    canonizer = ResNetCanonizer if b.name.startswith("resnet") else VGGCanonizer
    low, high = (torch.tensor([(v - m) / s for m, s in zip(MEAN, STD, strict=True)]).view(1, 3, 1, 1) for v in (0, 1))

    def run(kind: Any, composite: Callable[[], Any] | None = None, **settings: Any) -> Run:
        def call() -> Any:
            with kind(model=b.module, composite=composite() if composite else None, **settings) as attributor:
                return attributor(b.x.clone(), lambda output: output * mask)[1]

        return call

    def relevance(kind: Any, **settings: Any) -> Run:
        return run(attribution.Gradient, lambda: kind(canonizers=[canonizer()], **settings))

    def epsilon(canonizers: list[Any]) -> Any:
        linear = [(kind, rules.Epsilon(1e-9)) for kind in (types.Convolution, types.Linear)]
        return composites.LayerMapComposite([*linear, *composites.layer_map_base()], canonizers=canonizers)

    return {
        "gradient": run(attribution.Gradient),
        "guided backprop": run(attribution.Gradient, composites.GuidedBackprop),
        "deconvnet": run(attribution.Gradient, composites.DeconvNet),
        "smooth-grad": run(attribution.SmoothGrad, n_iter=b.samples),
        "integrated gradients": run(attribution.IntegratedGradients, n_iter=b.steps),
        "lrp epsilon": relevance(epsilon),
        "lrp epsilon-plus": relevance(composites.EpsilonPlus),
        "lrp epsilon-gamma-box": relevance(composites.EpsilonGammaBox, low=low, high=high),
        "lrp epsilon-alpha2beta1": relevance(composites.EpsilonAlpha2Beta1),
        "excitation backprop": relevance(composites.ExcitationBackprop),
    }
