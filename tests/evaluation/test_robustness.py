"""Steadiness of maps, against closed forms on networks whose maps are known."""

import torch
from torch import nn

import convoscope as cs
from convoscope.evaluation import AverageSensitivity, LocalLipschitz, MaxSensitivity, RelativeInputStability
from convoscope.evaluation.robustness import changed
from convoscope.testing.making import made_of
from convoscope.testing.metrics import oracle


class Square(nn.Module):
    """Half the squared norm: its gradient is the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.one * x.square().flatten(1).sum(1) / 2
        return torch.stack([-score, score], 1)


def square() -> cs.Case:
    case, _ = oracle()
    case.network = cs.Network(Square(), size=12, channels=1)
    return made_of(case, "gradient")


def test_a_map_that_is_the_picture_changes_as_it_does() -> None:
    case = square()
    moved = (changed(case, 10, 0.02) - case.x).flatten(2).norm(dim=-1) / case.x.flatten(1).norm(dim=1)
    assert torch.allclose(MaxSensitivity().score(case)[0], moved.amax(0))
    assert torch.allclose(AverageSensitivity().score(case)[0], moved.mean(0))
    assert torch.allclose(LocalLipschitz().score(case)[0], torch.ones(3, dtype=torch.float64))
    assert torch.allclose(RelativeInputStability().score(case)[0], torch.ones(3, dtype=torch.float64))


def test_changes_stay_within_the_radius_and_the_range_of_pixels() -> None:
    case, _ = oracle(3)
    net = cs.Network(case.network.module, size=12, channels=3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.1])
    case.network, case.x = net, net.normalize(case.x)
    pixels = changed(case, 6, 0.1) * torch.tensor(net.std).view(-1, 1, 1) + torch.tensor(net.mean).view(-1, 1, 1)
    before = case.x * torch.tensor(net.std).view(-1, 1, 1) + torch.tensor(net.mean).view(-1, 1, 1)
    assert float((pixels - before).abs().max()) <= 0.1 + 1e-6
    assert float((pixels - before).abs().max()) > 0.09
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
