"""Quantus' side of the benchmark of evaluation: what it takes for a pass of each metric."""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from .timing import quiet

INSTALL = "without Quantus: pip install --no-deps --target FOLDER quantus==0.6.0, and give --quantus FOLDER"
RUNS, PATCH, DEEP = 48, 32, 150528 // 24  # random subsets and patches that are measured; values of 24 steps


def quantus(folder: Path | None) -> Any:
    """The library from a folder it was installed to, or from the environment; None where it is not there."""
    import numpy as np

    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]  # gone in numpy 2.4, and Quantus calls it
    if folder is not None:
        sys.path.append(str(folder))
    try:
        with quiet():
            import quantus as found  # type: ignore[import-not-found]
    except ImportError:
        return None
    return found


def measured(quantus: Any, given: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each metric the seconds of one method on one image, and of how many passes."""
    images = len(given["x"])
    maps = given["first"].detach().numpy()[:, None]
    x, y = given["x"].numpy(), given["classes"].numpy()
    plain = {"disable_warnings": True, "display_progressbar": False, "abs": False, "normalise": False}
    random = {**plain, "return_aggregate": False, "perturb_baseline": "mean"}
    side = x.shape[-1]
    flipping = quantus.PixelFlipping(features_in_step=DEEP, perturb_baseline=0.0, **plain)
    correlation = quantus.FaithfulnessCorrelation(nr_runs=RUNS, subset_size=x[0, 0].size // 20, **random)
    infidelity = quantus.Infidelity(perturb_patch_sizes=[PATCH], n_perturb_samples=1, perturb_baseline="mean", **plain)
    squares = (side // PATCH) ** 2
    found = {}
    for name, metric, values, passes, softmax in (
        ("deletion", flipping, maps, 24, True), ("insertion", flipping, -maps, 24, True),
        ("faithfulness-correlation", correlation, maps, RUNS + 1, False), ("infidelity", infidelity, maps, squares + 1, False),
    ):  # fmt: skip
        started = time.process_time()
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric(
                model=given["module"], x_batch=x, y_batch=y, a_batch=values, softmax=softmax, batch_size=8, channel_first=True
            )
        found[name] = {"seconds": (time.process_time() - started) / images, "passes": passes}
    return found
