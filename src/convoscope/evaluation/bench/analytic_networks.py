"""Small convolutional networks whose weights are set by hand, so that what each pixel does is known by algebra."""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.evaluation.base import seeded

Kind = Literal["linear", "additive", "and", "xor", "max"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDE, PATCH, COLORS, TEMPLATES = 24, 5, 3, 3
AREA = PATCH * PATCH
CHANCE = 13  # pixels in which a template may agree with another, or with itself at another place
GAIN = 0.2


def templates(seed: int) -> Int[Tensor, "templates height width"]:
    """The color of each pixel of each template; two of them, shifted in any way, agree in at most CHANCE pixels."""
    g = seeded(seed, "templates")
    while True:
        found = torch.randint(COLORS, (TEMPLATES, PATCH, PATCH), generator=g)
        agree = F.conv2d(one_hot(found), one_hot(found), padding=PATCH - 1)
        agree[range(TEMPLATES), range(TEMPLATES), PATCH - 1, PATCH - 1] = 0
        if agree.max() <= CHANCE:
            return found


def one_hot(colors: Int[Tensor, "templates height width"]) -> Float[Tensor, "templates colors height width"]:
    """Pixels of full strength in one color each."""
    return F.one_hot(colors, COLORS).movedim(-1, 1).double()


def kernels(colors: Int[Tensor, "templates height width"], seed: int) -> Float[Tensor, "templates colors height width"]:
    """Detectors: a pixel of the right color adds its strength, its other colors take some away, drawn by the seed."""
    right = one_hot(colors)
    return right - (1 - right) * torch.rand(right.shape, generator=seeded(seed, "kernels"), dtype=torch.float64)


class Settings:
    """The biases of a network, drawn by its seed.

    `threshold`: how many of the AREA pixels have to be there before a detector answers. `joint`: what both answers of an AND
    must surpass together, more than one alone can give. `first` and `second`: the weights of the two templates.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        drawn = torch.rand(6, generator=seeded(seed, "settings", kind), dtype=torch.float64).tolist()
        self.threshold = CHANCE + 0.5 + drawn[0]
        self.joint = GAIN * (AREA - self.threshold) + 0.1 * drawn[1]
        self.first, self.second = (1.0, 1.0) if kind in ("and", "xor") else (0.8 + 0.4 * drawn[2], -0.5 - 0.3 * drawn[3])
        self.offset, self.other = 1 - 2 * drawn[4], 0.5 + drawn[5]


def network_of(kind: Kind, seed: int = 0, norm: bool = False) -> nn.Module:
    """The network, in float64 and eval mode: its second output is what `kind` says, its first answers to the third template.

    With `norm` a batch norm with other numbers of its own follows the convolution, and what the network computes is the same.
    """
    with torch.random.fork_rng(devices=[]):  # making layers draws numbers
        module = (_linear(seed) if kind == "linear" else _detecting(kind, seed)).double()
    if norm:
        module.features.insert(1, _behind(module.features[0], seeded(seed, "norm", kind)))
    return module.eval().requires_grad_(False)


class Plain(nn.Module):
    """Features, a pool, a head."""

    def __init__(self, features: nn.Sequential, pool: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.head = features, pool, head

    def forward(self, x: Tensor) -> Tensor:
        """The scores of two classes."""
        return self.head(self.pool(self.features(x)).flatten(1))


def _linear(seed: int) -> Plain:
    """A weighted sum of pixels between 0 and 1: its rectifiers never close, for the biases outweigh all that is negative."""
    g = seeded(seed, "linear")
    conv, head = nn.Conv2d(COLORS, 4, PATCH, padding=PATCH // 2), nn.Linear(4 * (SIDE // 2) ** 2, 2)
    weight = torch.randn(conv.weight.shape, generator=g, dtype=torch.float64) / AREA
    below = weight.clamp(max=0).sum((1, 2, 3)).abs()
    coarse = torch.randn(2, 4, 4, 4, generator=g, dtype=torch.float64)
    smooth = F.interpolate(coarse, size=(SIDE // 2, SIDE // 2), mode="bicubic", align_corners=False)
    conv.weight.data, conv.bias.data = weight, below + 0.1 + 0.4 * torch.rand(4, generator=g)  # type: ignore[union-attr]
    head.weight.data, head.bias.data = smooth.flatten(1) / SIDE, torch.randn(2, generator=g)
    return Plain(nn.Sequential(conv, nn.ReLU()), nn.AvgPool2d(2), head)


def _detecting(kind: Kind, seed: int) -> Plain:
    settings = Settings(kind, seed)
    conv = nn.Conv2d(COLORS, TEMPLATES, PATCH, padding=PATCH // 2)
    conv.weight.data = GAIN * kernels(templates(seed), seed)
    conv.bias.data = torch.full((TEMPLATES,), -GAIN * settings.threshold, dtype=torch.float64)  # type: ignore[union-attr]
    features = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2))
    pool: nn.Module = nn.AdaptiveMaxPool2d(1) if kind == "max" else nn.AdaptiveAvgPool2d(1)
    cells = 1 if kind == "max" else (SIDE // 2) ** 2  # an average times the number of cells is a sum
    return Plain(features, pool, _head(kind, settings, cells))


def _head(kind: Kind, s: Settings, cells: int) -> nn.Module:
    """From the three sums (or maxima) to two classes."""
    if kind in ("additive", "max"):
        return _filled([[0, 0, s.other * cells], [s.first * cells, s.second * cells, 0]], [s.other, s.offset])
    if kind == "and":
        first = _filled([[0, 0, cells], [cells, cells, 0]], [0.1, -s.joint])
        return nn.Sequential(first, nn.ReLU(), _filled([[s.other, 0], [0, 1]], [s.other, s.offset]))
    first = _filled([[0, 0, cells], [cells, -cells, 0], [-cells, cells, 0]], [0.1, 0, 0])
    return nn.Sequential(first, nn.ReLU(), _filled([[s.other, 0, 0], [0, 1, 1]], [s.other, s.offset]))


def _filled(weight: list, bias: list) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    return layer


def _behind(conv: nn.Conv2d, g: torch.Generator) -> nn.BatchNorm2d:
    """A batch norm with numbers of its own; the convolution before it is changed so that both compute what it alone did."""
    norm = nn.BatchNorm2d(conv.out_channels).double()
    drawn = torch.rand(4, conv.out_channels, generator=g, dtype=torch.float64)
    norm.running_mean, norm.running_var = drawn[0] - 0.5, drawn[1] + 0.5
    norm.weight.data, norm.bias.data = drawn[2] + 0.5, drawn[3] - 0.5
    scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
    assert conv.bias is not None
    conv.weight.data = conv.weight.data / scale[:, None, None, None]
    conv.bias.data = (conv.bias.data - norm.bias.data) / scale + norm.running_mean
    return norm
