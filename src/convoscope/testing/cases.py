"""Cases of which the answer is known: a linear network, and one that knows pictures by their brightness."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.evaluation import Case
from convoscope.network import Network
from convoscope.targets import Logit

IMAGES, SIDE = 3, 12
CLOSE = 1e-9


class Linear(nn.Module):
    """Two classes, the second the sum of each pixel times its weight: all that a map can say of it is known."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def oracle(channels: int = 1, images: int = IMAGES, side: int = SIDE) -> tuple[Case, Tensor]:
    """A case of a linear network on pictures of a bright object, and the one true map of each image from a baseline of zeros.

    The weights are positive on an object, negative around it and zero at the bottom, the true map is weight times input, the
    truth the object.
    """
    g = torch.Generator().manual_seed(5)
    truth = torch.zeros(images, side, side, dtype=torch.bool)
    weights = torch.zeros(channels, side, side, dtype=torch.float64)
    truth[:, side // 4 : side // 4 * 3, side // 3 : side // 3 * 2] = True
    weights[:, truth[0]] = torch.rand(channels, int(truth[0].sum()), generator=g, dtype=torch.float64) + 0.5
    weights[:, ~truth[0]] = -1.0  # the ground speaks against,
    weights[:, -side // 6 :] = 0  # but for the lowest rows, which say nothing
    x = 0.05 + 0.1 * torch.rand(images, channels, side, side, generator=g, dtype=torch.float64)
    x += 0.7 * truth[:, None]
    share = (x * weights.clamp(min=0)).sum() / (x * weights.clamp(max=0)).sum().abs()
    weights = torch.where(weights < 0, 0.7 * share * weights, weights)
    weights *= 3 / (x * weights).sum((1, 2, 3)).mean()
    exact = (x * weights).sum(1)
    network = Network(Linear(weights), size=side, channels=channels, name="linear")
    case = Case(network, x, Logit(1), exact[None], ("exact",), truth=truth, batch_size=7)
    return case, exact


def with_maps(case: Case, maps: Tensor, **changes: object) -> Case:
    """The case with other maps `(methods, images, height, width)`, and other settings."""
    kept = ("network", "x", "target", "truth", "places", "seed", "batch_size")
    settings: dict = {name: getattr(case, name) for name in kept} | changes
    return Case(maps=maps, names=tuple(map(str, range(len(maps)))), **settings)


class Blocks(nn.Module):
    """Two classes, the second what a filter finds within a block: an orderly network that disorder changes visibly."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, 1, 3, padding=1, bias=False, dtype=torch.float64)
        self.filter.weight.data = torch.linspace(0.1, 1, 9 * channels, dtype=torch.float64).square().view(1, channels, 3, 3)
        self.block = nn.Parameter(torch.zeros(side, side, dtype=torch.float64))
        self.block.data[side // 4 : -(side // 4), side // 4 : -(side // 4)] = 1

    def forward(self, x: Tensor) -> Tensor:
        score = (self.filter(x)[:, 0] * self.block).sum((1, 2))
        return torch.stack([-score, score], 1)


class Levels(nn.Module):
    """Four classes, each the number of pixels of about its brightness: it takes pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        off = (x.mean(1, keepdim=True) - self.levels.view(1, -1, 1, 1)) / 0.1
        return (F.relu(off + 1) - 2 * F.relu(off) + F.relu(off - 1)).sum((2, 3))


def levels(channels: int = 1, images: int = 8, side: int = 6) -> Case:
    """A case of pictures of one brightness each, of four in turn: what speaks for a class lies on its pictures alone.

    All pixels are a little darker than the brightness of their class, so that the gradient is positive on them and zero on
    pictures of other classes.
    """
    g = torch.Generator().manual_seed(7)
    index = tuple(i % 4 for i in range(images))
    level = torch.tensor(index, dtype=torch.float64).view(-1, 1, 1, 1) * 0.2 + 0.15
    x = level + 0.02 * torch.rand(images, channels, side, side, generator=g, dtype=torch.float64)
    network = Network(Levels(), channels=channels, name="levels")
    return Case(network, x, Logit(index), torch.zeros(1, images, side, side, dtype=torch.float64), ("none",), batch_size=7)


def same(found: Tensor, expected: Tensor, what: str, close: float = CLOSE) -> None:
    """Raises AssertionError unless scores are equal but for rounding, and missing in the same places."""
    both = torch.isnan(found) & torch.isnan(expected)
    error = torch.where(both, 0, (found - expected).abs() / expected.abs().clamp(min=1))
    assert (error <= close).all(), f"{what}: {found.tolist()}, not {expected.tolist()}"
