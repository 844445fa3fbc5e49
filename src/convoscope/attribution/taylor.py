"""First-order expansions of the score: at one root point, and layer by layer."""

from typing import Annotated

import torch

from convoscope.attribution.path import Baseline
from convoscope.attribution.relevance import relevance, table
from convoscope.core.probe import Probe
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images


class SimpleTaylor(Method):
    """The gradient at a root point times the way from there: the first term of the expansion of the target around it.

    R = grad(root) (x - root), Bach et al. 2015. What the target is at the root, and what the expansion leaves out, is reported.
    A root near the image, on which the target is zero, makes it a decomposition of the score; a color is far away.
    Units: those of the target.
    """

    root: Annotated[Baseline, "root point: black, white, mean, blur, uniform, a number or a tensor (1, C, H, W)"] = "blur"

    title = "Simple Taylor"
    paper = Paper(
        "bach2015pixel", "Bach, Sebastian and Binder, Alexander and Montavon, Gregoire and Klauschen, Frederick and Mueller, "
        "Klaus-Robert and Samek, Wojciech",
        "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", "PLOS ONE", 2015,
    )  # fmt: skip
    about = About(
        "decision", "what sets the image apart from a root point, to first order", "2 forward + 1 backward",
        "any differentiable network", "the gradient at the root may say little about the image",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        root = probe.baseline(self.root, x)
        gradient, start = probe.grad_and_score(root.contiguous())
        maps = gradient * (x - root)
        probe.note("target at the root", start)
        probe.note("left out by the expansion", probe.score(x) - start - maps.flatten(1).sum(1))
        return maps

    def evaluations(self, x: Images) -> int:
        return 2


class DeepTaylor(Method):
    """Deep Taylor decomposition: z+ inside, z-B at the pixels, which for positive scores gives nothing but positive relevance.

    Montavon et al. 2017. Each unit is expanded at a root point of its own, in networks whose only activation is ReLU; others
    are refused. Sums share by the positive parts of their terms. Where no bias is positive the score is conserved; what
    positive biases take is reported. Units: those of the target.
    """

    title = "Deep Taylor"
    paper = Paper(
        "montavon2017explaining", "Montavon, Gregoire and Lapuschkin, Sebastian and Binder, Alexander and Samek, Wojciech and "
        "Mueller, Klaus-Robert",
        "Explaining NonLinear Classification Decisions with Deep Taylor Decomposition", "Pattern Recognition 65", 2017,
        "1512.02479",
    )  # fmt: skip
    about = About(
        "decision", "smooth positive maps of what excites", "1 forward + about 2 backward", "networks with ReLU alone",
        "shows no evidence against; hardly depends on the class",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        maps, lost = relevance(probe, x, table("deep-taylor", probe))
        score = lost + maps.flatten(1).sum(1)
        probe.note("positive biases", lost / torch.where(score == 0, 1, score))
        return maps

    def evaluations(self, x: Images) -> int:
        return 1
