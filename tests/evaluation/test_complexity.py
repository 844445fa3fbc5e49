"""How much of a picture a map marks, against closed forms."""

import math

import torch

import convoscope as cs
from convoscope.evaluation import EffectiveComplexity, Entropy, Gini
from convoscope.evaluation.removal import Insertion
from convoscope.testing.metrics import oracle


def test_gini_and_entropy_of_known_maps() -> None:
    case, _ = oracle(images=1)
    pixels = 144
    maps = torch.zeros(3, 1, 12, 12, dtype=torch.float64)
    maps[0] = -2.0  # all alike
    maps[1, 0, 5, 5] = 7.0  # one pixel
    maps[2, 0, :6] = 1.0  # half of them
    case = cs.Case(case.network, case.x, case.target, maps, ("flat", "one", "half"))
    assert torch.allclose(Gini().score(case)[:, 0], torch.tensor([0.0, 1 - 1 / pixels, 0.5], dtype=torch.float64))
    assert torch.allclose(
        Entropy().score(case)[:, 0], torch.tensor([math.log(pixels), 0.0, math.log(72)], dtype=torch.float64)
    )  # fmt: skip
    case = cs.Case(case.network, case.x, case.target, torch.zeros(1, 1, 12, 12, dtype=torch.float64), ("nothing",))
    assert Gini().score(case).isnan().all()
    assert Entropy().score(case).isnan().all()


def test_effective_complexity_of_a_linear_network() -> None:
    """The pixels in the order of their share of the target: the first step from which on 90 % is there to stay."""
    case, exact = oracle(images=2)
    metric = EffectiveComplexity(keep=0.9, steps=144, fill=0.0, of="target")
    found = metric.score(case)[0]
    for i in range(2):
        running = torch.cat([torch.zeros(1), exact[i].flatten().sort(descending=True).values.cumsum(0)])
        below = (running < 0.9 * running[-1] * (1 - 1e-9)).nonzero().max() + 1
        assert abs(float(found[i]) - float(below) / 144) < 1e-12
    assert metric.score(case).shape == Insertion(steps=144, fill=0.0, of="target").score(case).shape
