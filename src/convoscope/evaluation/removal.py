"""Faithfulness by taking pixels away, or showing them: deletion, insertion, pixel flipping, sufficiency, average drop."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, key_of
from convoscope.evaluation.sweeps import left, removal

FILL = "what stands in for removed pixels: black, white, mean, blur, uniform, a number or a tensor in input space"
OF = "judge by the target itself, or by the probability of its class where it is a logit"
STEPS = "how many equal shares of the pixels are taken in turn"
Fill = str | int | float | Tensor
Of = Literal["target", "probability"]

_RISE = Paper("petsiuk2018rise", "Petsiuk, Vitali and Das, Abir and Saenko, Kate",
              "RISE: Randomized input sampling for explanation of black-box models", "BMVC", 2018, "1806.07421")  # fmt: skip


class Deletion(Metric):
    """The area under the target as pixels are removed, the most relevant first (Petsiuk et al. 2018, section 4.1)."""

    title, family, unit, paper = "Deletion", "faithfulness", "{target}", _RISE
    direction = -1
    use, drawback = "does the target fall as what counts is removed?", "removed pixels make pictures the network never saw"
    steps: Annotated[int, STEPS, AtLeast(1)] = 32
    fill: Annotated[Fill, FILL] = 0.0
    of: Annotated[Of, OF] = "probability"

    def score(self, case: Case) -> Scores:
        return removal(case, True, self.fill, self.steps, case.judge(self.of)).area

    def passes(self, case: Case) -> int:
        return self.steps + 1


class Insertion(Metric):
    """The area under the target as pixels are shown on a filled picture, the most relevant first (Petsiuk et al. 2018)."""

    title, family, unit, paper = "Insertion", "faithfulness", "{target}", _RISE
    use, drawback = "does what counts suffice for the target?", "depends on what the hidden pixels show"
    steps: Annotated[int, STEPS, AtLeast(1)] = 32
    fill: Annotated[Fill, FILL] = "blur"
    of: Annotated[Of, OF] = "probability"

    def score(self, case: Case) -> Scores:
        return removal(case, False, self.fill, self.steps, case.judge(self.of)).area  # the same curve, read from its end

    def passes(self, case: Case) -> int:
        return self.steps + 1


class _Flipping(Metric, abstract=True):
    """Base of pixel flipping: the mean fall of the target along the way."""

    family, unit = "faithfulness", "{target}"
    paper: ClassVar[Paper] = Paper(
        "samek2017evaluating", "Samek, Wojciech and Binder, Alexander and others",
        "Evaluating the visualization of what a deep neural network has learned", "IEEE TNNLS", 2017, "1509.06321",
    )  # fmt: skip
    steps: Annotated[int, STEPS, AtLeast(1)] = 32
    fill: Annotated[Fill, FILL] = 0.0
    of: Annotated[Of, OF] = "probability"

    def passes(self, case: Case) -> int:
        return self.steps + 1

    def _fall(self, case: Case, most: bool) -> Scores:
        curve = removal(case, most, self.fill, self.steps, case.judge(self.of)).curve
        return curve[..., 0] - curve.mean(-1)


class MoRF(_Flipping, name="morf"):
    """The mean fall of the target as pixels are removed, the most relevant first (AOPC; Samek et al. 2017, eq. 12)."""

    title = "Pixel flipping, most relevant first"
    use, drawback = "how fast the target falls along the ranking", "removed pixels make pictures the network never saw"

    def score(self, case: Case) -> Scores:
        return self._fall(case, most=True)


class LeRF(_Flipping, name="lerf"):
    """The mean fall of the target as pixels are removed, the least relevant first: the less the better (Samek et al. 2017)."""

    title, direction = "Pixel flipping, least relevant first", -1
    use, drawback = "does the target last while what does not count goes?", "removed pixels make pictures never seen"

    def score(self, case: Case) -> Scores:
        return self._fall(case, most=False)


class _Shares(Metric, abstract=True):
    """Base of what is asked at a few shares of the pixels."""

    family, unit = "faithfulness", "{target}"
    shares: Annotated[tuple, "fractions of the pixels, the most relevant ones"] = (0.01, 0.05, 0.1, 0.2, 0.5)
    fill: Annotated[Fill, FILL] = "mean"
    of: Annotated[Of, OF] = "probability"

    def passes(self, case: Case) -> int:
        return len(self.shares) + 1

    def _left(self, case: Case, keep: bool) -> Scores:
        """The target where the most relevant shares alone are kept, or taken away: their mean."""
        pixels = case.maps[0, 0].numel()
        top = torch.tensor([min(pixels, max(1, round(s * pixels))) for s in self.shares])
        return left(case, not keep, self.fill, pixels - top if keep else top, case.judge(self.of)).mean(-1)


class Comprehensiveness(_Shares):
    """How much the target falls without the most relevant shares of the pixels (DeYoung et al. 2020, eq. 1), mean over shares.

    The picture with nothing taken away is not counted among these.
    """

    title = "Comprehensiveness"
    use, drawback = "is everything that counts marked?", "removed pixels make pictures the network never saw"
    paper: ClassVar[Paper] = Paper(
        "deyoung2020eraser", "DeYoung, Jay and Jain, Sarthak and Rajani, Nazneen and others",
        "ERASER: A benchmark to evaluate rationalized NLP models", "ACL", 2020, "1911.03429",
    )  # fmt: skip

    def score(self, case: Case) -> Scores:
        return case.clean(case.judge(self.of)).cpu() - self._left(case, keep=False)


class Sufficiency(_Shares):
    """How much the target falls if only the most relevant shares of the pixels are left (DeYoung et al. 2020, eq. 2), mean over
    shares."""

    title = "Sufficiency"
    direction = -1
    use, drawback = "is what is marked enough?", "a few pixels on a filled picture are no picture"
    paper: ClassVar[Paper] = Comprehensiveness.paper

    def score(self, case: Case) -> Scores:
        return case.clean(case.judge(self.of)).cpu() - self._left(case, keep=True)


class _Shown(Metric, abstract=True):
    """Base of what multiplies the picture by the map."""

    family = "faithfulness"
    fill: Annotated[Fill, FILL] = "black"
    of: Annotated[Of, OF] = "probability"

    def passes(self, case: Case) -> int:
        return 2

    def _shown(self, case: Case) -> tuple[Tensor, Tensor]:
        """The target of the picture, and of the picture seen through the positive part of the map, scaled to 1."""
        target, base = case.judge(self.of), case.fill(self.fill)
        key = ("shown", key_of(self.fill), target)
        return case.clean(target).cpu(), case.once(key, lambda: self._through(case, base, target))

    def _known(self, case: Case) -> Scores:
        """0, or NaN for maps that are constant: they hide all or nothing, and explain nothing."""
        constant = case.maps.amax((-2, -1)) == case.maps.amin((-2, -1))
        return torch.where(constant.cpu(), torch.nan, 0.0)

    def _through(self, case: Case, base: Tensor, target: Any) -> Tensor:
        masks = case.maps.clamp(min=0)
        masks = masks / masks.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(masks.dtype).tiny)
        everyone = torch.arange(len(case.x))
        rows = [torch.lerp(base, case.x, m[:, None].to(case.x)) for m in masks]
        return torch.stack([case.scores(r, everyone, target).cpu() for r in rows])


class AverageDrop(_Shown):
    """The share of the target that is lost where the picture is seen through the map (Chattopadhay et al. 2018, eq. 13)."""

    title, unit, range = "Average drop", "share of the target", (0.0, float("inf"))  # above 1 where a logit falls below 0
    direction = -1
    use, drawback = "is what the map shows enough?", "a map that is bright everywhere loses nothing"
    paper: ClassVar[Paper] = Paper(
        "chattopadhay2018gradcampp", "Chattopadhay, Aditya and Sarkar, Anirban and Howlader, Prantik and others",
        "Grad-CAM++: Generalized gradient-based visual explanations", "WACV", 2018, "1710.11063",
    )  # fmt: skip

    def score(self, case: Case) -> Scores:
        clean, shown = self._shown(case)
        lost = (clean - shown).clamp(min=0) / clean.clamp(min=torch.finfo(clean.dtype).tiny)
        return torch.where(clean > 0, lost, torch.nan) + self._known(case)


class IncreaseInConfidence(_Shown):
    """Whether the target rises where the picture is seen through the map, 0 or 1 (Chattopadhay et al. 2018, eq. 14).

    A map that is constant hides all or nothing, and has no score.
    """

    title, unit, range = "Increase in confidence", "share of the images", (0.0, 1.0)
    use, drawback = "does the map hide what speaks against?", "one bit of each image"
    paper: ClassVar[Paper] = AverageDrop.paper

    def score(self, case: Case) -> Scores:
        clean, shown = self._shown(case)
        return (shown > clean).double() + self._known(case)
