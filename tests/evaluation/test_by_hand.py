"""Every metric of given maps, worked out by hand: four pixels in a row, of which the first two count only together."""

import math

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope import evaluation as e
from convoscope.evaluation.robustness import changed
from convoscope.evaluation.subsets import subsets
from convoscope.testing.making import made_of


class And(nn.Module):
    """0, and how far the first two pixels together surpass 1, with an offset of 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        found = (x[:, 0, 0, 0] + x[:, 0, 0, 1] - 1).relu() + self.offset
        return torch.stack([torch.zeros_like(found), found], 1)


def case(*maps: list[float], x: tuple[float, ...] = (1, 1, 1, 1)) -> cs.Case:
    """White pixels: 3/2, and 1/2 without the first or the second. The object is the first two."""
    given = torch.tensor(maps or [[2, 1, 0.5, 0]], dtype=torch.float64).view(-1, 1, 1, 4)
    picture = torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 4)
    truth = torch.tensor([[[True, True, False, False]]])
    return cs.Case(cs.Network(And(), channels=1), picture, cs.Logit(1), given, tuple(map(str, range(len(given)))), truth=truth)


T = {"of": "target"}
BY_HAND = {
    "deletion": (e.Deletion(4, 0.0, **T), (1.5 / 2 + 0.5 + 0.5 + 0.5 + 0.5 / 2) / 4),
    "insertion": (e.Insertion(4, 0.0, **T), (0.5 / 2 + 0.5 + 1.5 + 1.5 + 1.5 / 2) / 4),
    "morf": (e.MoRF(4, 0.0, **T), 1.5 - (1.5 + 4 * 0.5) / 5),
    "lerf": (e.LeRF(4, 0.0, **T), 1.5 - (3 * 1.5 + 2 * 0.5) / 5),
    "half steps": (e.Deletion(2, 0.0, **T), (1.5 / 2 + 0.5 + 0.5 / 2) / 2),
    "comprehensiveness": (e.Comprehensiveness((0.25, 0.5), 0.0, **T), 1.0),
    "sufficiency": (e.Sufficiency((0.25, 0.5), 0.0, **T), 1.5 - (0.5 + 1.5) / 2),
    "average drop, the map as a mask of 1, 1/2, 1/4, 0": (e.AverageDrop(0.0, **T), (1.5 - 1.0) / 1.5),
    "increase in confidence": (e.IncreaseInConfidence(0.0, **T), 0.0),
    "effective complexity": (e.EffectiveComplexity(0.9, 4, 0.0, **T), 0.5),
    "region perturbation, pairs of pixels": (e.RegionPerturbation(2, 2, 0.0, **T), (0 + 1 + 1) / 3),
    "road: white next to white is white": (e.ROAD((0.25, 0.5), 0.0, **T), 0.0),
    "completeness": (e.Completeness(0.0), (3.5 - 1) / 3.5),
    "non-sensitivity: the third says something": (e.NonSensitivity(4, 0.0), 1 / 4),
    "pointing game": (e.PointingGame(0), 1.0),
    "energy pointing": (e.EnergyPointing(), 3 / 3.5),
    "area under the ROC curve": (e.LocalizationAUC(), 1.0),
    "rank accuracy": (e.RankAccuracy(), 1.0),
    "top three": (e.TopK(0.75), 2 / 3),
    "iou at a half": (e.IoU(0.5), 1.0),
    "iou at a quarter": (e.IoU(0.25), 2 / 3),
    "best iou": (e.BestIoU(), 1.0),
    "gini: mean difference over twice the mean": (e.Gini(), 2 * (0.5 + 1 + 2 + 0.5 + 1.5 + 1) / 16 / (2 * 3.5 / 4)),
    "entropy of 4/7, 2/7, 1/7": (e.Entropy(), math.log(7) - 10 * math.log(2) / 7),
}


@pytest.mark.parametrize("which", BY_HAND)
def test_by_hand(which) -> None:
    metric, expected = BY_HAND[which]
    assert float(metric.score(case())) == pytest.approx(expected, abs=1e-12)


def test_probabilities_by_hand() -> None:
    """With two classes, the probability is the sigmoid of the difference; steps that change nothing cost nothing."""
    high, low = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))
    assert float(e.Deletion(4, 0.0).score(case())) == pytest.approx((high / 2 + 3 * low + low / 2) / 4)
    found = float(e.AverageDrop(0.0).score(case([2, 1.2, 0.5, 0])))  # the second pixel at 0.6
    assert found == pytest.approx((high - 1 / (1 + math.exp(-1.1))) / high)


def test_ties_by_hand() -> None:
    """Three pixels alike: the order of the picture in removal, the expectation in localization."""
    c = case([1, 1, 1, 0], [0, 1, 1, 1])
    assert e.Deletion(4, 0.0, **T).score(c)[:, 0].tolist() == pytest.approx([0.625, (1.5 / 2 + 3 * 0.5 + 0.5 / 2) / 4])
    assert e.LeRF(4, 0.0, **T).score(c)[:, 0].tolist() == pytest.approx([0.4, 1.5 - (1.5 + 4 * 0.5) / 5])
    assert e.PointingGame(0).score(c)[:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert e.RankAccuracy().score(c)[:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert e.LocalizationAUC().score(c)[:, 0].tolist() == pytest.approx([0.75, 0.25])
    assert e.TopK(0.75).score(c)[:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert e.BestIoU().score(c)[:, 0].tolist() == pytest.approx([2 / 3, 0.5])  # cut at 1; at 0 all four


def test_subsets_by_hand() -> None:
    """One pixel is worth 1 where it is of the first two; the share of subsets that hold one is all that counts."""
    c, count = case([1, 1, 0, 0], [1, 0, 0, 0], [-1, -1, 0, 0], [3, 0, 0, 1]), 30
    often = subsets(c, 1, count).double().mean(0).tolist()
    single = {"count": count, "share": 0.25, "fill": 0.0}
    found = e.FaithfulnessCorrelation(**single).score(c)[:, 0].tolist()
    a, b = often[0], often[0] + often[1]  # how often the first is drawn, and one of the two
    assert found[:3] == pytest.approx([1, (a - a * b) / math.sqrt(a * (1 - a) * b * (1 - b)), -1])
    plain = e.Infidelity(**single, shape="pixels", scale="none").score(c)[:, 0].tolist()
    assert plain == pytest.approx([0, often[1], 4 * b, 4 * often[0] + often[1] + often[3]])
    scaled = e.Infidelity(**single, shape="pixels").score(c)[:, 0].tolist()
    best = 3 * often[0] / (9 * often[0] + often[3])
    last = (often[0] * (3 * best - 1) ** 2 + often[1] + often[3] * best**2) / b
    assert scaled == pytest.approx([0, often[1] / b, 1, last])  # a map of the other sign is worth no more than zeros


def test_changes_by_hand() -> None:
    """The gradient is (1, 1, 0, 0) wherever the two are bright; input times gradient follows the first two pixels."""
    c = made_of(case(x=(0.9, 0.8, 0.7, 0.6)), "gradient", "input-x-gradient")
    count, radius = 6, 0.05
    d = (changed(c, count, radius) - c.x)[:, 0, 0, 0]
    assert d.abs().amax() <= radius
    pair, whole = d[:, :2].norm(dim=1), d.norm(dim=1)
    size = math.sqrt(0.9**2 + 0.8**2)
    expected = {
        e.MaxSensitivity: pair.max() / size, e.AverageSensitivity: pair.mean() / size, e.LocalLipschitz: (pair / whole).max(),
        e.RelativeInputStability: ((d / c.x[0, 0, 0])[:, :2].norm(dim=1) / (d / c.x[0, 0, 0]).norm(dim=1)).max(),
        e.RelativeOutputStability: ((d / c.x[0, 0, 0])[:, :2].norm(dim=1) / d[:, :2].sum(1).abs()).max(),
    }  # fmt: skip
    for metric, value in expected.items():
        found = metric(count, radius).score(c)[:, 0].tolist()
        assert found == pytest.approx([0, float(value)], abs=1e-9), metric.name
    relative = (d / c.x[0, 0, 0])[:, :2].norm(dim=1) / (d[:, :2].sum(1).abs() / (0.9 + 0.8 - 0.5))
    found = e.RelativeRepresentationStability(count, radius, "output").score(c)[1, 0]
    assert float(found) == pytest.approx(float(relative.max()))


def test_codings_by_hand() -> None:
    """Stored with 1/2 added, input times gradient sees (1.4, 1.3): the order of the first two stays, the gradient too."""
    c = made_of(case(x=(0.9, 0.8, 0.7, 0.6)), "gradient", "input-x-gradient")
    assert e.InputInvariance().score(c)[:, 0].tolist() == pytest.approx([1, 1])
    down = e.InputInvariance(shift=-1.0).score(c)[:, 0]  # now (-0.1, -0.2, 0, 0): ranks 1, 0, 2.5, 2.5 beside 3, 2, 0.5, 0.5
    a, b = torch.tensor([[3, 2, 0.5, 0.5], [1, 0, 2.5, 2.5]], dtype=torch.float64)
    assert down.tolist() == pytest.approx([1, float(torch.corrcoef(torch.stack([a, b]))[0, 1])])
