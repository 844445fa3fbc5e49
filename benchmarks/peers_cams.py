"""The lines as grad-cam and torchcam run them."""

from typing import Any

from .networks import Bench
from .timing import Run


def grad_cam(b: Bench) -> dict[str, Run]:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def run(name: str, x: Any = None, **settings: Any) -> Run:
        images = b.x if x is None else x

        def call() -> Any:
            targets = None if name == "FinerCAM" else [ClassifierOutputTarget(b.target)] * len(images)
            with getattr(pytorch_grad_cam, name)(model=b.module, target_layers=[b.place]) as cam:
                vars(cam).update(settings)
                return cam(input_tensor=images, targets=targets)

        return call

    def guided() -> Any:
        return pytorch_grad_cam.GuidedBackpropReLUModel(model=b.copy().module)(b.one.clone(), target_category=b.target)

    found = {
        "grad-cam": run("GradCAM"), "grad-cam++": run("GradCAMPlusPlus"), "xgrad-cam": run("XGradCAM"),
        "hires-cam": run("HiResCAM"), "layer-cam": run("LayerCAM"), "eigen-cam": run("EigenCAM"),
        "eigen-grad-cam": run("EigenGradCAM"), "shapley-cam": run("ShapleyCAM"),
    }  # fmt: skip
    eight = list(found.values())
    return {
        **found,
        "eight cams": lambda: [call() for call in eight],
        "finer-cam": run("FinerCAM"),
        "full-grad": run("FullGrad"),
        "ablation-cam": run("AblationCAM", b.one, batch_size=b.rows),
        "score-cam": run("ScoreCAM", b.one, batch_size=b.rows),
    }


def torchcam(b: Bench) -> dict[str, Run]:
    from torchcam import methods

    def run(name: str, x: Any = None, **settings: Any) -> Run:
        images = b.x if x is None else x

        def call() -> Any:
            with getattr(methods, name)(b.module, b.layer, input_shape=tuple(images.shape[1:]), **settings) as cam:
                return cam(b.target, b.module(images), normalized=False)

        return call

    return {
        "grad-cam": run("GradCAM"),
        "grad-cam++": run("GradCAMpp"),
        "xgrad-cam": run("XGradCAM"),
        "layer-cam": run("LayerCAM"),
        "smooth grad-cam++": run("SmoothGradCAMpp", num_samples=b.samples),
        "score-cam": run("ScoreCAM", b.one, batch_size=b.rows),
    }
