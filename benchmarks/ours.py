"""Our side of each line."""

from typing import Any

import convoscope as cs

from .networks import DEEPER, Bench
from .timing import Run

CAMS = {
    "grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "xgrad-cam": "XGradCAM", "hires-cam": "HiResCAM",
    "layer-cam": "LayerCAM", "eigen-cam": "EigenCAM", "eigen-grad-cam": "EigenGradCAM", "shapley-cam": "ShapleyCAM",
}  # fmt: skip


def runs(b: Bench) -> dict[str, Run]:
    """What to run for each line; a line whose method this release lacks is left out."""
    net, found = b.network(), {}
    for images in (b.x, b.one):  # traced once, as a network in use is
        cs.explain(net, images, [cs.Gradient(), cs.GradCAM()], b.target)

    def add(line: str, name: str, x: Any = None, at: Any = None, **settings: Any) -> None:
        if (kind := getattr(cs, name, None)) is None:
            return
        images, method = b.x if x is None else x, kind(**settings)
        found[line] = lambda: cs.explain(net, images, method, b.target, at=at, batch_size=b.rows)

    _gradients(b, add)
    for line, name in CAMS.items():
        add(line, name, layer=b.layer)
    every = [getattr(cs, name)(layer=b.layer) for name in CAMS.values() if hasattr(cs, name)]
    if len(every) == 8:
        found["eight cams"] = lambda: cs.explain(net, b.x, every, b.target, batch_size=b.rows)
    add("finer-cam", "FinerCAM", layer=b.layer)
    add("smooth grad-cam++", "SmoothGradCAMPlusPlus", layer=b.layer, samples=b.samples)
    add("guided grad-cam", "GuidedGradCAM", layer=b.layer)
    add("full-grad", "FullGrad")
    _masks(b, add)
    return found


def _gradients(b: Bench, add: Any) -> None:
    add("gradient", "Gradient")
    add("input x gradient", "InputXGradient")
    add("guided backprop", "GuidedBackprop")
    add("deconvnet", "Deconvnet")
    add("smooth-grad", "SmoothGrad", samples=b.samples)
    add("integrated gradients", "IntegratedGradients", steps=b.steps, baseline=0.0)
    add("expected gradients", "ExpectedGradients", samples=b.samples, baseline=b.data)
    add("conductance", "Conductance", at=b.layer, steps=b.steps, baseline=0.0)
    add("conductance, several layers", "Conductance", at=list(DEEPER[b.name]), steps=b.steps, baseline=0.0)
    add("internal influence", "InternalInfluence", at=b.layer, steps=b.steps - 1, baseline=0.0)
    add("deep-lift", "DeepLIFT", baseline=b.start)
    add("deep-lift-shap", "DeepLIFTSHAP", baseline=b.data)
    for composite in ("epsilon", "epsilon-plus", "epsilon-gamma-box", "epsilon-alpha2beta1"):
        from convoscope.rules.composites import COMPOSITES

        if composite in COMPOSITES:
            add(f"lrp {composite}", "LRP", composite=composite)
    add("excitation backprop", "ExcitationBackprop", layer="input")


def _masks(b: Bench, add: Any) -> None:
    add("ablation-cam", "AblationCAM", b.one, layer=b.layer)
    add("score-cam", "ScoreCAM", b.one, layer=b.layer)
    add("occlusion", "Occlusion", b.one, window=b.window, stride=b.stride, fill=0.0)
    add("rise", "RISE", b.one, masks=b.masks)
    add("lime", "LIME", b.one, samples=b.masks, regions=b.regions, fill=0.0)
    add("kernel-shap", "KernelSHAP", b.one, samples=b.masks, regions=b.regions, baseline=0.0)
    add("feature ablation", "FeatureAblation", b.one, regions=b.regions, fill=0.0)
    add("shapley sampling", "ShapleySampling", b.one, permutations=4, regions=b.regions, baseline=0.0)
    add("partition-shap", "PartitionSHAP", b.one, samples=b.masks, baseline=0.0)
    add("guided ig", "GuidedIG", b.one, steps=b.steps, baseline=0.0)
    add("blur ig", "BlurIG", b.one, steps=b.steps)
    add("xrai", "XRAI", b.one)
