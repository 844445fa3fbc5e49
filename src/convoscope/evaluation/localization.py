"""Whether maps point where the evidence is known to be: from one sort of each map.

Where a network looks and where the thing is are two questions: a faithful map of a network that looks elsewhere scores badly.
"""

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import Case, Metric, Scores, mean_ranks

ELSEWHERE = "a faithful map of a network that looks elsewhere scores badly"


class _Located(Metric, abstract=True):
    """Base of what compares maps with a mask. An image whose mask is empty, or full, has no score."""

    family, needs = "localization", ("truth",)
    drawback = ELSEWHERE

    def passes(self, case: Case) -> int:
        return 0

    def score(self, case: Case) -> Scores:
        truth = _truth(case)
        found = self._compared(case, truth)
        share = truth.mean(-1)
        return torch.where((share > 0) & (share < 1), found, torch.nan)

    def _compared(self, case: Case, truth: Float[Tensor, "images pixels"]) -> Scores:
        raise NotImplementedError


def _truth(case: Case) -> Float[Tensor, "images pixels"]:
    assert case.truth is not None
    return case.truth.flatten(1).double().cpu()


def _flat(case: Case) -> Float[Tensor, "methods images pixels"]:
    return case.maps.flatten(2).cpu()


def _inside(case: Case, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The truth at each pixel from the most relevant down, and how much of it is met on the way; ties in expectation."""
    return case.once("inside", lambda: _sorted(_flat(case), truth))


def _sorted(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    ordered, order = maps.sort(dim=-1, descending=True, stable=True)
    hits = truth.expand_as(maps).gather(-1, order)
    # Equal values share what they hold, as if their order were drawn at random.
    last = torch.ones_like(hits, dtype=torch.bool)
    last[..., :-1] = ordered[..., 1:] != ordered[..., :-1]
    group = torch.cat([torch.zeros_like(last[..., :1]), last[..., :-1]], -1).cumsum(-1)
    size = torch.zeros_like(hits).scatter_add_(-1, group, torch.ones_like(hits))
    held = torch.zeros_like(hits).scatter_add_(-1, group, hits)
    shared = (held / size.clamp(min=1)).gather(-1, group)
    return ordered, shared.cumsum(-1)


class PointingGame(_Located):
    """Whether the strongest pixel lies on the object, or within `tolerance` pixels of it (Zhang et al. 2016, section 4.1).

    Of several strongest pixels, the share that does; a map without any structure has no score.
    """

    title, unit, range, use = "Pointing game", "share of the images", (0.0, 1.0), "does the strongest pixel hit?"
    paper: ClassVar[Paper] = Paper(
        "zhang2016excitation", "Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan",
        "Top-down neural attention by excitation backprop", "ECCV", 2016, "1608.00507",
    )  # fmt: skip
    tolerance: Annotated[int, "pixels beyond the object that count as a hit", AtLeast(0)] = 15

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        assert case.truth is not None
        near = _dilated(case.truth.cpu(), self.tolerance).flatten(1).double()
        maps = _flat(case)
        best = maps == maps.amax(-1, keepdim=True)
        hits = (best * near).sum(-1) / best.sum(-1)
        return torch.where(maps.amax(-1) > maps.amin(-1), hits, torch.nan)


def _dilated(masks: Tensor, radius: int) -> Tensor:
    """Masks grown by a disk of a radius in pixels."""
    if radius == 0:
        return masks
    out = torch.zeros_like(masks)
    height, width = masks.shape[1:]
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reach = min(int((radius**2 - down**2) ** 0.5), width - 1)
        counts = torch.nn.functional.max_pool2d(masks[:, None].float(), (1, 2 * reach + 1), 1, (0, reach))[:, 0] > 0
        source = counts[:, max(0, -down) : height - max(0, down)]
        out[:, max(0, down) : height - max(0, -down)] |= source
    return out


class EnergyPointing(_Located):
    """The share of the positive relevance that lies on the object (Wang et al. 2020, section 4.4)."""

    title, unit, range, use = "Energy pointing", "share of the relevance", (0.0, 1.0), "how much of the map lies on the object?"
    paper: ClassVar[Paper] = Paper(
        "wang2020scorecam", "Wang, Haofan and Wang, Zifan and Du, Mengnan and others",
        "Score-CAM: Score-weighted visual explanations for convolutional neural networks", "CVPR workshops", 2020, "1910.01279",
    )  # fmt: skip

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        positive = _flat(case).clamp(min=0)
        whole = positive.amax(-1, keepdim=True)
        positive = positive / whole.clamp(min=torch.finfo(positive.dtype).tiny)  # so that sums of large maps stay finite
        return torch.where(whole[..., 0] > 0, (positive * truth).sum(-1) / positive.sum(-1).clamp(min=1e-300), torch.nan)


class LocalizationAUC(_Located, name="localization-auc"):
    """The probability that a pixel of the object is more relevant than one beside it (area under the ROC curve)."""

    title, unit, range, use = "Area under the ROC curve", "probability", (0.0, 1.0), "is the object more relevant?"
    paper: ClassVar[Paper] = Paper(
        "fawcett2006roc", "Fawcett, Tom", "An introduction to ROC analysis", "Pattern Recognition Letters", 2006
    )

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        inside = truth.sum(-1)
        higher = (mean_ranks(_flat(case)) * truth).sum(-1) - inside * (inside - 1) / 2  # Mann and Whitney 1947
        return higher / (inside * (truth.shape[-1] - inside)).clamp(min=1)


class RankAccuracy(_Located):
    """The share of the object among as many of the most relevant pixels as it has (Arras et al. 2022, eq. 2)."""

    title, unit, range, use = "Relevance rank accuracy", "share of the pixels", (0.0, 1.0), "are the top pixels the object?"
    paper: ClassVar[Paper] = Paper(
        "arras2022clevr", "Arras, Leila and Osman, Ahmed and Samek, Wojciech",
        "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network explanations",
        "Information Fusion", 2022, "2003.07258",
    )  # fmt: skip

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        met, inside = _inside(case, truth)[1], truth.sum(-1)
        place = (inside.long() - 1).clamp(min=0).expand(met.shape[:2])[..., None]
        return met.gather(-1, place)[..., 0] / inside.clamp(min=1)


class TopK(_Located, name="top-k"):
    """The share of the most relevant pixels that lies on the object (Theiner et al. 2022)."""

    title, unit, range, use = "Top-k intersection", "share of the pixels", (0.0, 1.0), "do the very top pixels hit?"
    paper: ClassVar[Paper] = Paper(
        "theiner2022geolocation", "Theiner, Jonas and Müller-Budack, Eric and Ewerth, Ralph",
        "Interpretable semantic photo geolocation", "WACV", 2022, "2104.14995",
    )  # fmt: skip
    share: Annotated[float, "the part of all pixels that are the top"] = 0.02

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        met = _inside(case, truth)[1]
        k = max(1, min(met.shape[-1], round(self.share * met.shape[-1])))
        return met[..., k - 1] / k


class IoU(_Located, name="iou"):
    """The intersection over union of the object with what reaches a share of the map's largest value, at any threshold.

    `best-iou` takes the best of all thresholds. NaN where nothing is positive.
    """

    title, unit, range, use = "IoU", "intersection over union", (0.0, 1.0), "does the map, cut there, show the object?"
    drawback = "maps of other shapes have other thresholds that suit them"
    paper: ClassVar[Paper] = Paper(
        "everingham2010pascal", "Everingham, Mark and Van Gool, Luc and Williams, Christopher and others",
        "The PASCAL visual object classes (VOC) challenge", "International Journal of Computer Vision", 2010,
    )  # fmt: skip
    threshold: Annotated[float, "which share of the largest value counts, above 0 and at most 1"] = 0.5

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        if not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; expected a share of the largest value, above 0 and at most 1")
        maps = _flat(case)
        most = maps.amax(-1, keepdim=True)
        marked = (maps >= self.threshold * most).double()
        met = (marked * truth).sum(-1)
        iou = met / (marked.sum(-1) + truth.sum(-1) - met).clamp(min=1)
        return torch.where(most[..., 0] > 0, iou, torch.nan)


class BestIoU(_Located, name="best-iou"):
    """The largest intersection over union of the object with what lies above a threshold, over all thresholds.

    As mean IoU of saliency at its best threshold (Simonyan et al. 2014, section 3.2, cut once and for all); ties stay together.
    """

    title, unit, range, use = "Best IoU", "intersection over union", (0.0, 1.0), "could the map be cut to the object?"
    drawback = "the threshold is chosen knowing the truth"
    paper: ClassVar[Paper] = Paper(
        "choe2020evaluating", "Choe, Junsuk and Oh, Seong Joon and Lee, Seungho and others",
        "Evaluating weakly supervised object localization methods right", "CVPR", 2020, "2001.07437",
    )  # fmt: skip

    def _compared(self, case: Case, truth: Tensor) -> Scores:
        ordered, met = _inside(case, truth)
        inside, count = truth.sum(-1, keepdim=True), torch.arange(1, met.shape[-1] + 1, dtype=met.dtype)
        iou = met / (count + inside - met)
        last = torch.ones_like(ordered, dtype=torch.bool)
        last[..., :-1] = ordered[..., 1:] != ordered[..., :-1]
        return torch.where(last, iou, 0).amax(-1)
