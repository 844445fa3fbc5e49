"""Relevance through chosen channels: the parts sum to the whole, and nothing goes around."""

import pytest
import torch
from networks import normal, relative, values
from torch import Tensor, nn

import convoscope as cs
from convoscope.rules import COMPOSITES

X = normal(3, 3, 10, 10, seed=1)


class Residual(nn.Module):
    """A stem, a block with a skip connection, a block without; `severed` cuts the gradient of the skip."""

    def __init__(self, severed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.severed, self.relu = severed, nn.ReLU(inplace=True)
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.last, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.norm.weight.data, self.norm.bias.data = normal(6, seed=5), normal(6, seed=6)
        self.norm.running_mean = normal(6, seed=7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        branch = self.norm(self.two(self.relu(self.one(x))))
        branch += x.detach() if self.severed else x
        return self.head(self.relu(self.last(self.relu(branch))).mean((2, 3)))


MODULE = Residual().double().eval()


@pytest.mark.parametrize("composite", ["epsilon-plus", "epsilon-gamma-box", "epsilon"])
@pytest.mark.parametrize(("layer", "count"), [("add", 6), ("relu", 6), ("last", 5), ("input", 3)])
def test_channels_sum_to_the_whole(layer: str, count: int, composite: str) -> None:
    """Behind sums, and where everything passes through: the maps of all channels sum to the map of LRP."""
    maps = sum(values(MODULE, X, cs.CRP(through=layer, channels=(k,), composite=composite), 2) for k in range(count))
    assert isinstance(maps, Tensor)
    assert relative(maps, values(MODULE, X, cs.LRP(composite=composite), 2)) < 1e-9
    together = values(MODULE, X, cs.CRP(through=layer, channels=tuple(range(count)), composite=composite), 2)
    assert relative(together, maps) < 1e-9


@pytest.mark.parametrize(("layer", "count"), [("norm", 6), ("relu_1", 4)])
def test_a_skip_connection_does_not_leak(layer: str, count: int) -> None:
    """In a branch, what goes around it is left out: the sum is that of a network whose skip sends nothing back."""
    severed = Residual(severed=True).double().eval()
    expected = values(severed, X, cs.LRP(composite="epsilon"), 2)
    found = values(MODULE, X, cs.CRP(through=layer, channels=tuple(range(count)), composite="epsilon"), 2)
    assert relative(found, expected) < 1e-9
    assert relative(values(MODULE, X, cs.LRP(composite="epsilon"), 2), expected) > 0.1


def test_only_the_chosen_channels_count() -> None:
    """With all other channels silenced behind the layer, the conditional map is the ordinary one."""
    alone = Residual().double().eval()
    alone.last.weight.data[:, [0, 1, 3, 4, 5]] = 0
    rule = "lrp-0"
    same = values(alone, X, cs.InputXGradient(), cs.Channel("last", 2))
    found = values(MODULE, X, cs.CRP(through="add", channels=(2,), composite=rule), cs.Channel("last", 2))
    assert relative(found, same) < 1e-9


def test_the_most_relevant_channels_of_each_image() -> None:
    found = cs.explain(MODULE, X, cs.CRP(through="add", count=2), 2, batch_size=2)
    named = torch.tensor(found.diagnostics["channels"]).long().view(3, 2)
    parts = [values(MODULE, X, cs.CRP(through="add", channels=(k,)), 2) for k in range(6)]
    at_layer = cs.explain(MODULE, X, cs.LRP(), 2, at="add").values.flatten(2).sum(2)
    assert torch.equal(named, at_layer.topk(2).indices)
    for i, pair in enumerate(named.tolist()):
        assert relative(found.values[i], parts[pair[0]][i] + parts[pair[1]][i]) < 1e-9


def test_what_cannot_be_asked() -> None:
    with pytest.raises(cs.UnsupportedError, match=r"no relevance arrives at 'two'.*name that"):
        values(MODULE, X, cs.CRP(through="two", channels=(1,)), 2)
    with pytest.raises(cs.UsageError, match="no channels"):
        values(MODULE, X, cs.CRP(through="norm", channels=(6,)), 2)
    with pytest.raises(cs.AddressError, match="did you mean"):
        values(MODULE, X, cs.CRP(through="nrm"), 2)


def test_composites_by_name_survive_json() -> None:
    for name, composite in COMPOSITES.items():
        method = cs.CRP(composite=composite, channels=(1,))
        assert cs.Method.from_dict(method.to_dict()) == method, name
