"""The score handed back layer by layer, by rules that keep its sum."""

from typing import Annotated

import torch

from convoscope.core.probe import Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.rules.composites import Composite, composite


class LRP(Method):
    """Layer-wise relevance propagation, in its gradient-times-input form.

    Each operator shares the relevance of its value among its inputs by the rule its composite gives; skip additions and
    concatenations share in proportion, and a convolution with the batch norm behind it counts as one. What biases and
    stabilizers absorb is reported as lost relevance. Units: those of the target. Bach et al. 2015; Montavon et al. 2019.
    """

    composite: Annotated[str | Composite, "rules by name (epsilon, epsilon-plus) or a Composite"] = "epsilon-plus"

    title = "LRP"
    default = True
    paper = Paper(
        "bach2015pixel", "Bach, Sebastian and Binder, Alexander and Montavon, Gregoire and Klauschen, Frederick and Mueller, "
        "Klaus-Robert and Samek, Wojciech",
        "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", "PLOS ONE", 2015,
    )  # fmt: skip
    about = About(
        "decision", "which pixels the score is made of", "1 forward + about 2 backward", "networks whose operators have rules",
        "the choice of rules shapes the map",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        with probe.rules(composite(self.composite)):
            gradient, score = probe.grad_and_score(x)
        relevance = x * gradient
        lost = score - relevance.flatten(1).sum(1)
        probe.note("lost relevance", lost)
        probe.note("lost relevance relative", lost.abs() / score.abs().clamp(min=torch.finfo(score.dtype).tiny))
        return relevance

    def evaluations(self, x: Images) -> int:
        return 1
