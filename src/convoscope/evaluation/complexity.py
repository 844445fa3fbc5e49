"""How much of the picture a map marks. None of these looks at the network: a random point is as simple as the right one."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from convoscope.core.spec import Paper
from convoscope.evaluation.base import Case, Metric, Scores, rounding
from convoscope.evaluation.removal import FILL, OF, STEPS, Fill, Of
from convoscope.evaluation.sweeps import removal

BLIND = "a wrong map may be as simple as the right one"


class _Simple(Metric, abstract=True):
    """Base of what looks at absolute values alone. A map of zeros has no score."""

    family, drawback, blind = "complexity", BLIND, True

    def passes(self, case: Case) -> int:
        return 0

    def _shares(self, case: Case) -> Tensor:
        """Absolute values as shares of their sum `(methods, images, pixels)`; NaN for maps of zeros."""
        size = case.maps.flatten(2).abs().cpu()
        top = size.amax(-1, keepdim=True)
        size = size / torch.where(top > 0, top, torch.nan)
        return size / size.sum(-1, keepdim=True)


class Gini(_Simple):
    """The Gini index of absolute relevance: 0 all pixels alike, towards 1 all of it on one (Chalasani et al. 2020)."""

    title, unit, range, use = "Sparseness (Gini)", "Gini index", (0.0, 1.0), "is the map about few pixels?"
    paper: ClassVar[Paper] = Paper(
        "chalasani2020concise", "Chalasani, Prasad and Chen, Jiefeng and Chowdhury, Amrita and Wu, Xi and Jha, Somesh",
        "Concise explanations of neural networks using adversarial training", "ICML", 2020, "1810.06583",
    )  # fmt: skip

    def score(self, case: Case) -> Scores:
        shares = self._shares(case).sort(-1).values
        n = shares.shape[-1]
        place = torch.arange(1, n + 1, dtype=shares.dtype)
        return (1 - 2 * (shares * (n - place + 0.5) / n).sum(-1)).clamp(min=0)


class Entropy(_Simple):
    """The entropy of the shares of absolute relevance, in nats: few pixels have little of it (Bhatt et al. 2020, eq. 4)."""

    title, unit, range, use = "Complexity (entropy)", "nats", (0.0, float("inf")), "how many pixels does the map spread over?"
    direction = -1
    paper: ClassVar[Paper] = Paper(
        "bhatt2020evaluating", "Bhatt, Umang and Weller, Adrian and Moura, José",
        "Evaluating and aggregating feature-based model explanations", "IJCAI", 2020, "2005.00631",
    )  # fmt: skip

    def score(self, case: Case) -> Scores:
        return torch.special.entr(self._shares(case)).sum(-1)


class EffectiveComplexity(Metric):
    """The smallest share of the most relevant pixels that keeps the target within a tolerance (Nguyen and Martínez 2020).

    Pixels are shown from the most relevant down; the share is that from which on the target stays at least `keep` of the
    way from the filled picture to the picture itself. 1 where only the whole picture does, NaN where both have the same target.
    """

    title, family, unit, range = "Effective complexity", "complexity", "share of the pixels", (0.0, 1.0)
    direction, use = -1, "how few pixels are enough?"
    drawback = "depends on what the hidden pixels show"
    paper: ClassVar[Paper] = Paper(
        "nguyen2020quantitative", "Nguyen, An-phi and Martínez, María Rodríguez",
        "On quantitative aspects of model interpretability", "preprint", 2020, "2007.07584",
    )  # fmt: skip
    keep: Annotated[float, "how much of the target's rise has to be there, 0 to 1"] = 0.9
    steps: Annotated[int, STEPS] = 32
    fill: Annotated[Fill, FILL] = "blur"
    of: Annotated[Of, OF] = "probability"

    def score(self, case: Case) -> Scores:
        curve = removal(case, False, self.fill, self.steps, case.judge(self.of)).curve.flip(-1)  # shown, from nothing up
        blank, whole = curve[..., :1], curve[..., -1:]
        enough = (curve - blank) * (whole - blank).sign() >= self.keep * (whole - blank).abs() * (1 - 1e-12)
        stays = enough.flip(-1).cummin(-1).values.flip(-1)
        first = (~stays).sum(-1)
        risen = (whole - blank).abs() > rounding(case.x.dtype) * torch.maximum(whole.abs(), blank.abs())
        return torch.where(risen[..., 0], first.double() / self.steps, torch.nan)

    def passes(self, case: Case) -> int:
        return self.steps + 1
