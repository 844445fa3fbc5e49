"""What each library offers, as functions of a network, images and a class: the table of faults runs all of them alike."""

import functools
import linecache
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.errors import ConvoscopeError
from convoscope.testing import small

from .faults_rows import OURS

Explain = Callable[[nn.Module, Tensor, Any], Tensor]  # network, images, class(es) -> one map for each image


class NothingToAskFor(Exception):
    """The network in this form has no layer that the method could be pointed at."""


def last_convolution(module: nn.Module) -> nn.Module:
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    if not found:
        raise NothingToAskFor
    return found[-1]


def ours() -> dict[str, Explain]:
    def run(name: str) -> Explain:
        method = small(name)
        return lambda module, x, target: cs.explain(module, x, method, target, seed=3).values

    return {name: run(name) for name in cs.methods()}


def captum() -> dict[str, Explain]:
    from captum import attr

    def layered(name: str) -> Explain:
        return lambda m, x, t: getattr(attr, name)(m, last_convolution(m)).attribute(x, t)

    return {
        "Saliency": lambda m, x, t: attr.Saliency(m).attribute(x, t, abs=False),
        "InputXGradient": lambda m, x, t: attr.InputXGradient(m).attribute(x, t),
        "IntegratedGradients": lambda m, x, t: attr.IntegratedGradients(m).attribute(x, target=t, n_steps=4),
        "DeepLift": lambda m, x, t: attr.DeepLift(m).attribute(x, target=t),
        "GuidedBackprop": lambda m, x, t: attr.GuidedBackprop(m).attribute(x, t),
        "Deconvolution": lambda m, x, t: attr.Deconvolution(m).attribute(x, t),
        "LayerGradCam": layered("LayerGradCam"),
        "GuidedGradCam": layered("GuidedGradCam"),
        "Occlusion": lambda m, x, t: attr.Occlusion(m).attribute(x, (x.shape[1], 1, 1), target=t),
        "FeatureAblation": lambda m, x, t: attr.FeatureAblation(m).attribute(x, target=t),
    }


def grad_cam() -> dict[str, Explain]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def targets(x: Tensor, t: Any) -> list[Any]:
        return [ClassifierOutputTarget(k) for k in (t if isinstance(t, list) else [t] * len(x))]

    def cam(name: str) -> Explain:
        def run(m: nn.Module, x: Tensor, t: Any) -> Tensor:
            with getattr(pytorch_grad_cam, name)(model=m, target_layers=[last_convolution(m)]) as made:
                if name in ("ScoreCAM", "AblationCAM"):
                    made.batch_size = 16
                return torch.as_tensor(made(input_tensor=x, targets=targets(x, t)).copy())

        return run

    names = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "EigenCAM", "ScoreCAM", "AblationCAM")
    return {name: cam(name) for name in names}


def torchcam() -> dict[str, Explain]:
    from torchcam import methods

    def cam(name: str) -> Explain:
        def run(m: nn.Module, x: Tensor, t: Any) -> Tensor:
            layer = next(n for n, found in m.named_modules() if found is last_convolution(m))
            with getattr(methods, name)(m, layer, input_shape=tuple(x.shape[1:])) as made:
                return made(t, m(x), normalized=False)[0]

        return run

    return {name: cam(name) for name in ("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM", "ScoreCAM")}


def zennit() -> dict[str, Explain]:
    from zennit import attribution, composites

    def rule(name: str | None) -> Explain:
        def run(m: nn.Module, x: Tensor, t: Any) -> Tensor:
            composite = getattr(composites, name)() if name else None
            chosen = torch.as_tensor(t).expand(len(x))

            def start(output: Tensor) -> Tensor:
                return torch.nn.functional.one_hot(chosen, output.shape[1]).to(output) * output

            with attribution.Gradient(model=m, composite=composite) as made:
                return made(x, start)[1]

        return run

    names = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "GuidedBackprop", "DeconvNet", "ExcitationBackprop")
    return {"Gradient": rule(None), **{name: rule(name) for name in names}}


MAKERS: dict[str, Callable[[], dict[str, Explain]]] = {
    OURS: ours, "captum": captum, "grad-cam": grad_cam, "torchcam": torchcam, "zennit": zennit,
}  # fmt: skip
PACKAGES = {OURS: "convoscope", "captum": "captum", "grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "zennit": "zennit"}


@functools.cache
def explainers(library: str) -> dict[str, Explain]:
    """The methods of a library by name; none where it is not installed."""
    warnings.filterwarnings("ignore")
    try:
        return MAKERS[library]()
    except ModuleNotFoundError:
        return {}


def on_purpose(error: BaseException, library: str) -> bool:
    """Whether the library itself raised an error, in a line that says `raise` or `assert`; ours has to be of its own types."""
    if library == OURS:
        return isinstance(error, ConvoscopeError)
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"/{PACKAGES[library]}/" in last.filename.replace("\\", "/") and line.startswith(("raise", "assert"))


def version(library: str) -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(library)
    except PackageNotFoundError:
        return "not installed"


__all__ = ["Explain", "NothingToAskFor", "explainers", "on_purpose", "version"]
