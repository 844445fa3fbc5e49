"""The lines as shap, lime and PAIR's saliency run them: one picture, arrays in and out."""

from functools import cache
from typing import Any

import torch

from .networks import Bench
from .timing import Run


def scores(b: Bench, pictures: Any) -> Any:
    """Logits of pictures (N, H, W, C)."""
    with torch.no_grad():
        return b.module(torch.as_tensor(pictures, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()


def _picture(b: Bench) -> Any:
    return b.one[0].permute(1, 2, 0).numpy()


def shap(b: Bench) -> dict[str, Run]:
    import numpy as np
    import shap as library

    @cache
    def partition() -> Any:
        """Its tree of boxes is built once, outside of the time: it belongs to the size of the picture."""
        masker = library.maskers.Image(np.zeros_like(_picture(b)))
        return library.PartitionExplainer(lambda x: scores(b, x), masker)

    def owen() -> Any:
        explainer = partition()
        return explainer(_picture(b)[None], max_evals=b.masks, batch_size=b.rows, outputs=[b.target], silent=True)

    def expected() -> Any:
        explainer = library.GradientExplainer(b.module, b.data, batch_size=b.rows)
        return explainer.shap_values(b.x, nsamples=b.samples, ranked_outputs=1)

    partition()
    return {"partition-shap": owen, "expected gradients": expected}


def lime(b: Bench) -> dict[str, Run]:
    from lime import lime_image

    regions = b.regions[0].numpy()

    def call() -> Any:
        return lime_image.LimeImageExplainer().explain_instance(
            _picture(b).astype("double"), lambda x: scores(b, x), labels=(b.target,), top_labels=None, hide_color=0,
            num_samples=b.masks, batch_size=b.rows, segmentation_fn=lambda _: regions,
        )  # fmt: skip

    return {"lime": call}


def saliency(b: Bench) -> dict[str, Run]:
    import saliency.core as library

    def ask(x: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.as_tensor(x, dtype=torch.float32).permute(0, 3, 1, 2).requires_grad_()
        gradient = torch.autograd.grad(b.module(leaf)[:, b.target].sum(), leaf)[0]
        return {"INPUT_OUTPUT_GRADIENTS": gradient.permute(0, 2, 3, 1).numpy()}

    def xrai() -> Any:
        parameters = library.XRAIParameters(steps=b.steps)
        return library.XRAI().GetMask(_picture(b), ask, extra_parameters=parameters, batch_size=b.rows)

    return {
        "guided ig": lambda: library.GuidedIG().GetMask(_picture(b), ask, x_steps=b.steps),
        "blur ig": lambda: library.BlurIG().GetMask(_picture(b), ask, steps=b.steps, batch_size=b.rows),
        "xrai": xrai,
    }
