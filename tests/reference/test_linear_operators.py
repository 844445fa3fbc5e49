"""Relevance rules on every kind of convolution, with inputs of both signs, against dense matrices."""

import pytest
import torch
from networks import dense, normal, relative, values
from torch import Tensor, nn

import convoscope as cs
from convoscope.rules.composites import epsilon, epsilon_plus

KINDS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding="same"),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1),
    "one by one": nn.Conv2d(4, 6, 1, bias=False),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, padding=1),
    "transposed, grouped": nn.ConvTranspose2d(4, 6, 3, groups=2),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 12)),
}
X = normal(2, 4, 6, 6, seed=1)


class Alone(nn.Module):
    """One operator; its largest units are the classes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = KINDS[kind].double()

    def forward(self, x: Tensor) -> Tensor:
        return self.kind(x).flatten(1)


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> Alone:
    found = Alone(request.param)
    for k, parameter in enumerate(found.parameters()):
        parameter.data = 0.3 * normal(*parameter.shape, seed=20 + k)
    return found.eval()


def parts_of(module: Alone, x: Tensor, unit: int) -> tuple[Tensor, float]:
    """What each input value contributes to a unit, and the unit's bias."""
    weights = dense(module, tuple(x.shape))[:, unit].reshape(x.shape)
    with torch.no_grad():
        return x * weights, float(module(torch.zeros_like(x)[None])[0, unit])


@pytest.mark.parametrize("pick", ["largest", "smallest"])
def test_epsilon(module: Alone, pick: str) -> None:
    for x in X:
        scores = module(x[None])[0].detach()
        unit = int(scores.argmax() if pick == "largest" else scores.argmin())
        parts, _ = parts_of(module, x, unit)
        found = values(module, x[None], cs.LRP(composite=epsilon(0.0)), unit)[0]
        assert relative(found, parts) < 1e-10  # z / z of what arrives: the bias keeps its own part


@pytest.mark.parametrize("pick", ["largest", "smallest"])
def test_z_plus(module: Alone, pick: str) -> None:
    rule_is_epsilon = any(isinstance(m, nn.Linear) for m in module.modules())
    for x in X:
        scores = module(x[None])[0].detach()
        unit = int(scores.argmax() if pick == "largest" else scores.argmin())
        parts, bias = parts_of(module, x, unit)
        found = values(module, x[None], cs.LRP(composite=epsilon_plus(1e-13)), unit)[0]
        positive = parts.clamp(min=0)
        if bool((positive == 0).all()):  # nothing speaks for the unit, so nobody gets its relevance
            assert bool((found == 0).all()) or rule_is_epsilon
            continue
        expected = parts if rule_is_epsilon else positive / (positive.sum() + max(bias, 0)) * scores[unit]
        assert relative(found, expected) < 1e-10
