"""DeepLIFT: how much of the target's difference from a reference each input's own difference accounts for."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.attribution.path import Baseline, note_gap
from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.rules.differences import RESCALE
from convoscope.rules.revealing import REVEAL_CANCEL

SHRIKUMAR = Paper(
    "shrikumar2017learning", "Shrikumar, Avanti and Greenside, Peyton and Kundaje, Anshul",
    "Learning Important Features Through Propagating Activation Differences", "ICML", 2017, "1704.02685",
)  # fmt: skip


class DeepLIFT(Method, name="deep-lift"):
    """The target's difference from a reference, handed back through multipliers of each operator (Shrikumar et al. 2017).

    Complete on every network: a map sums to target(x) - target(baseline). Rules are of calls, not of modules: functions and
    operators in place count, and one module called often counts each time. Beyond the paper: max pools whose windows overlap
    add up, products of two signals share evenly, and softmax, division and the normalizations by the data's own statistics
    are products and functions of one variable. Raises UnsupportedError naming the address of an operator without a rule.
    Units: those of the target.
    """

    rule: Annotated[Literal["rescale", "reveal-cancel"], "reveal-cancel: raising and lowering contributions apart"] = "rescale"
    baseline: Annotated[Baseline, "the reference: a name, a number or a tensor in input space"] = "black"

    title = "DeepLIFT"
    complete = True
    paper = SHRIKUMAR
    about = About(
        "decision", "how much each pixel changed the score from the baseline's", "1 forward + 1 backward of image and baseline",
        "networks whose operators have rules: nearly all CNNs", "depends on the baseline and on how the network is written",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        start = probe.baseline(self.baseline, x)
        maps, change = difference(probe, x, start, self.rule)
        note_gap(probe, maps, change)
        return maps

    def evaluations(self, x: Images) -> int:
        return 2 if self.rule == "rescale" else 3


class DeepLIFTSHAP(Method, name="deep-lift-shap"):
    """The mean of DeepLIFT over many references (Lundberg and Lee 2017, section 4.2, with references in place of expectations).

    Each image is compared with every reference of the data, or with `samples` of them drawn for it. A map sums to target(x)
    minus the mean target of its references; the gap is reported. Units: those of the target.
    """

    rule: Annotated[Literal["rescale", "reveal-cancel"], "reveal-cancel: raising and lowering contributions apart"] = "rescale"
    baseline: Annotated[Baseline, "references: a tensor (N, C, H, W) in input space, or uniform for noise"] = "uniform"
    samples: Annotated[int | None, "references for each image; none is all of the data, or 16", AtLeast(1)] = None

    title = "DeepLIFT SHAP"
    stochastic = True
    paper = Paper(
        "lundberg2017unified", "Lundberg, Scott M. and Lee, Su-In", "A Unified Approach to Interpreting Model Predictions",
        "NeurIPS", 2017, "1705.07874",
    )  # fmt: skip
    about = About(
        "decision", "how much each pixel sets the image apart from typical ones",
        "references x (1 forward + 1 backward of image and reference)", "as DeepLIFT",
        "depends on the choice of references; approximates Shapley values of single pixels only roughly",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        maps, change, count = torch.zeros_like(x), x.new_zeros(len(x)), self._count()
        if not count:
            raise UsageError(f"references are (N, {', '.join(map(str, x.shape[1:]))}); got {tuple(self.baseline.shape)}")  # type: ignore[union-attr]
        for block in probe.blocks(count):
            copies, repeated = probe.repeat(block), x.repeat_interleave(len(block), 0)
            found = difference(copies, repeated, self._starts(copies, repeated, block), self.rule)
            part, moved = (t.unflatten(0, (len(x), len(block))).sum(1) for t in found)
            maps, change = maps + part, change + moved
        note_gap(probe, maps / count, change / count)
        return maps / count

    def _count(self) -> int:
        return self.samples or (len(self.baseline) if isinstance(self.baseline, Tensor) else 16)

    def _starts(self, copies: Probe, repeated: Tensor, block: range) -> Tensor:
        """One reference for each row: images first, copies fastest."""
        data = self.baseline
        if not isinstance(data, Tensor) or len(data) == 1:
            return copies.baseline(data, repeated)
        if data.shape[1:] != repeated.shape[1:] or not len(data):
            raise UsageError(f"references are (N, {', '.join(map(str, repeated.shape[1:]))}); got {tuple(data.shape)}")
        if self.samples is None:
            index = torch.tensor(block, device="cpu").repeat(len(repeated) // len(block))
        else:
            index = (copies.uniform(repeated.new_zeros(len(repeated), 1).double())[:, 0] * len(data)).long()
        return data.to(repeated)[index.to(repeated.device)]

    def evaluations(self, x: Images) -> int:
        return self._count() * (2 if self.rule == "rescale" else 3)


def difference(probe: Probe, x: Images, start: Images, rule: str) -> tuple[Maps, Tensor]:
    """What each input's difference from the start accounts for, and the target's change."""
    if rule == "rescale":
        with probe.rules(RESCALE):
            multipliers, score, reference = probe.contrast(x, start)
        return (x - start) * multipliers, score - reference
    middle = torch.maximum(x, start)  # the start and what raises it
    with probe.rules(REVEAL_CANCEL):
        multipliers, score, reference = probe.contrast(x, start, middle)
    lowering, raising = multipliers[:, 0], multipliers.sum(1)
    return (x - middle) * lowering + (middle - start) * raising, score - reference
