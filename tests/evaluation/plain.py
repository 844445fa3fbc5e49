"""A small network on colored pictures that are not square, and what metrics say of it, slowly and plainly."""

from itertools import pairwise

import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.evaluation.base import seeded

HEIGHT, WIDTH, CLASSES = 9, 11, 4
PIXELS = HEIGHT * WIDTH
TARGETS, PLACES, SEED = (0, 2, 1), (5, 2, 9), 3
MEAN, STD = (0.4, 0.5, 0.45), (0.3, 0.25, 0.2)


def network() -> cs.Network:
    torch.manual_seed(11)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, CLASSES),
    ).double()  # fmt: skip
    for parameter in module.parameters():
        parameter.data *= 2.5
    return cs.Network(module.eval(), size=(HEIGHT, WIDTH), mean=MEAN, std=STD, categories=list("abcd"))


def case(**changes: object) -> cs.Case:
    """Three pictures, two maps of each, one with ties."""
    g = torch.Generator().manual_seed(21)
    net = network()
    x = net.normalize(torch.rand(3, 3, HEIGHT, WIDTH, generator=g, dtype=torch.float64))
    maps = torch.randn(2, 3, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
    maps[1] = (2 * maps[1]).round()
    truth = torch.rand(3, HEIGHT, WIDTH, generator=g) > 0.7
    settings = {"truth": truth, "places": PLACES, "seed": SEED, "batch_size": 4, **changes}
    return cs.Case(net, x, cs.Logit(TARGETS), maps, ("fine", "coarse"), **settings)


TENSOR = torch.linspace(-1, 1, 3 * PIXELS, dtype=torch.float64).view(1, 3, HEIGHT, WIDTH)


def fill(x: Tensor, which: object) -> Tensor:
    """What stands in for the pixels of one picture `(3, height, width)`."""
    column = torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1), torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
    if isinstance(which, Tensor):
        return which[0]
    if isinstance(which, float):
        return torch.full_like(x, which)
    if which == "mean":
        return torch.stack([torch.full_like(c, float(c.sum()) / PIXELS) for c in x])
    return torch.ones_like(x) * ({"black": 0.0, "white": 1.0}[str(which)] - column[0]) / column[1]


def answer(c: cs.Case, x: Tensor, image: int, of: str) -> float:
    """The target of one picture."""
    with torch.no_grad():
        output = c.network.module(x[None])[0]
    return float((output.softmax(0) if of == "probability" else output)[TARGETS[image]])


def ordered(values: Tensor) -> list[int]:
    """Pixels from the most relevant down; of equal ones the first comes first."""
    flat = values.flatten().tolist()
    return sorted(range(len(flat)), key=lambda k: (-flat[k], k))


def without(x: Tensor, base: Tensor, pixels: list[int]) -> Tensor:
    """A picture with some pixels filled."""
    out = x.clone().flatten(1)
    out[:, pixels] = base.flatten(1)[:, pixels]
    return out.view_as(x)


def curve(c: cs.Case, m: int, i: int, steps: int, which: object, of: str, most: bool = True) -> list[float]:
    """The target as more and more pixels are filled."""
    order = ordered(c.maps[m, i])
    order = order if most else order[::-1]
    base = fill(c.x[i], which)
    first = [int(k * PIXELS / steps + 0.5) for k in range(steps + 1)]
    counts = [n if 2 * k <= steps else PIXELS - first[steps - k] for k, n in enumerate(first)]
    return [answer(c, without(c.x[i], base, order[:n]), i, of) for n in counts]


def area(values: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(values)) / (len(values) - 1)


def subset(c: cs.Case, size: int, k: int, shape: str) -> list[int]:
    """The pixels of random subset k."""
    g = seeded(c.seed, "subset", shape, size, k)
    if shape == "pixels":
        return torch.randperm(PIXELS, generator=g)[:size].tolist()
    side = round(size**0.5)
    top = int(torch.randint(HEIGHT - side + 1, (), generator=g))
    left = int(torch.randint(WIDTH - side + 1, (), generator=g))
    return [r * WIDTH + q for r in range(top, top + side) for q in range(left, left + side)]


def said_and_lost(
    c: cs.Case, m: int, i: int, size: int, count: int, shape: str, which: object, of: str
) -> tuple[Tensor, Tensor]:
    """What a map says of random subsets, and what the target loses."""
    base, clean = fill(c.x[i], which), answer(c, c.x[i], i, of)
    subsets = [subset(c, size, k, shape) for k in range(count)]
    said = [float(c.maps[m, i].flatten()[s].sum()) for s in subsets]
    lost = [clean - answer(c, without(c.x[i], base, s), i, of) for s in subsets]
    return torch.tensor(said, dtype=torch.float64), torch.tensor(lost, dtype=torch.float64)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def ranks_of(values: Tensor) -> Tensor:
    """Ranks with ties at their mean."""
    flat = values.flatten()
    return torch.stack([((flat < v).sum() + (flat <= v).sum() - 1) / 2 for v in flat]).double()


def alike(a: Tensor, b: Tensor) -> float:
    return correlation(ranks_of(a), ranks_of(b))


def every(c: cs.Case, one) -> Tensor:
    """`one(method, image)` of all."""
    return torch.tensor([[one(m, i) for i in range(len(c.x))] for m in range(len(c.maps))], dtype=torch.float64)
