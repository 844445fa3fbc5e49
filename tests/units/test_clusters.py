"""Clusters of segments: k-means against its definition, and a planted color that moves a target."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.units.clusters import ace, k_means

SIZE = 24


class Colors(nn.Module):
    """Logit 0 rises with red, more steeply where there is more of it, and falls with blue."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1, bias=False)
        self.layer.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])[..., None, None]
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        red, _, blue, _ = self.layer(x).mean((2, 3)).unbind(1)
        score = red + red.square() - blue
        return torch.stack([score, -score], 1)


def drawn(count: int, seed: int, colors: list[tuple[float, float, float]]) -> Tensor:
    """Pictures whose stripes are of these colors, with a little noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.empty(count, 3, SIZE, SIZE, dtype=torch.float64)
    for k in range(count):
        order = torch.randperm(len(colors), generator=draw).tolist()
        for j, c in enumerate(order):
            wide = SIZE // len(colors)
            x[k, :, :, j * wide : (j + 1) * wide] = torch.tensor(colors[c], dtype=torch.float64)[:, None, None]
    return (x + 0.03 * torch.randn(x.shape, generator=draw, dtype=torch.float64)).clamp(0, 1)


def test_k_means_gives_every_row_its_nearest_center_and_every_center_its_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    planted = torch.randn(5, 3, generator=draw, dtype=torch.float64) * 20
    rows = planted.repeat(30, 1) + torch.randn(150, 3, generator=draw, dtype=torch.float64)
    centers, member = k_means(rows, 5, seed=1)
    assert torch.equal((rows[:, None] - centers).square().sum(2).argmin(1), member)
    for k in range(5):
        assert torch.allclose(centers[k], rows[member == k].mean(0))
    assert all(len(set(member[k::5].tolist())) == 1 for k in range(5))  # k-means++ finds what is far apart
    again = k_means(rows, 5, seed=1)
    assert torch.equal(again[0], centers)
    assert len(k_means(torch.ones(4, 2), 3)[0]) == 1  # there are no more


@pytest.fixture(scope="module")
def found() -> object:
    pytest.importorskip("skimage")
    net = cs.Network(Colors(), size=SIZE)
    pictures = drawn(14, 0, [(0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.1, 0.9, 0.1)])
    others = drawn(20, 1, [(0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (0.8, 0.8, 0.8)])
    return ace(net, net.normalize(pictures), net.normalize(others), "layer", cs.Logit(0), clusters=3, pieces=(6,), null=39)


def test_each_planted_color_is_a_cluster_and_those_that_matter_are_told(found: object) -> None:
    assert len(found) == 3
    red, *_, blue = list(found.segments)
    middle = {
        n: s[:, :, SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2].mean((0, 2, 3))
        for n, s in found.segments.items()
    }
    assert middle[red].argmax() == 0
    assert middle[blue].argmax() == 2
    score = {t.concept: t.score for t in found.tests}
    assert score[red] == 1
    assert score[blue] == 0
    assert list(score) == list(found.segments)
    assert all(10 <= len(s) <= 40 for s in found.segments.values())
    assert min(found.pictures.values()) >= 7
    assert "cluster" in str(found)


def test_what_cannot_be_clustered_is_refused_in_a_line() -> None:
    pytest.importorskip("skimage")
    net = cs.Network(Colors(), size=SIZE)
    x = net.normalize(drawn(12, 0, [(0.9, 0.1, 0.1), (0.1, 0.1, 0.9)]))
    with pytest.raises(cs.UsageError, match="1 or more clusters"):
        ace(net, x, x, "layer", clusters=0)
    with pytest.raises(cs.UsageError, match=r"none of .* clusters has 10 segments"):
        ace(net, x[:1], x, "layer", clusters=3, pieces=(3,))
