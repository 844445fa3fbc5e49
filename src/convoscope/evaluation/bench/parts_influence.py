"""Does a map stay off pixels that cannot matter? A network with two heads, each of which sees half of a picture."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from convoscope.core.spec import AtLeast
from convoscope.data.scenes import CATEGORIES, MEAN, STD, SceneNet, Scenes, scenes_network
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.parts import SEED
from convoscope.evaluation.bench.parts_game import drawn
from convoscope.network import Images, Network
from convoscope.targets import Logit, Target

SIDE = 64  # pixels of each of the two pictures


class Halves(nn.Module):
    """The layers of the shipped network under two heads; each reads the places of the last layer that see only its half.

    Its input is two scenes side by side, its output the logits of the left and then of the right one. The heads are one
    linear layer whose weights are zero at all other places.
    """

    def __init__(self, trained: SceneNet) -> None:
        super().__init__()
        parts = (trained.stem, trained.layer1, trained.layer2, trained.layer3, trained.layer4)
        self.features = nn.Sequential(*copy.deepcopy(parts))
        weight, bias = trained.head.weight.detach(), trained.head.bias.detach()
        channels, rows, columns = self.features(torch.zeros(1, 3, SIDE, 2 * SIDE)).shape[1:]
        read = [[c for c in range(columns) if not seen_by(self.features, c)[:, other].any()]
                for other in (slice(SIDE, None), slice(SIDE))]  # fmt: skip
        self.columns = tuple(map(tuple, read))
        full = torch.zeros(2, len(weight), channels, rows, columns)
        for half, chosen in enumerate(read):
            full[half][..., chosen] = (weight / (rows * len(chosen)))[:, :, None, None]
        self.flatten = nn.Flatten()
        self.heads = nn.Linear(channels * rows * columns, 2 * len(weight))
        self.heads.load_state_dict({"weight": full.flatten(2).flatten(0, 1), "bias": bias.repeat(2)})

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch logits"]:
        return self.heads(self.flatten(self.features(x)))


def seen_by(features: nn.Sequential, *columns: int) -> Bool[Tensor, "height width"]:
    """The pixels with a path to some columns of the last layer: where the gradient is not zero if every weight is one."""
    open_ = copy.deepcopy(features).double().requires_grad_(False).eval()
    for m in open_.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.constant_(m.weight, 1.0 / m.weight[0].numel())
        elif isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.reset_parameters()
    x = torch.ones(1, 3, SIDE, 2 * SIDE, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        open_(x)[..., list(columns)].sum().backward()
    assert x.grad is not None
    return x.grad[0].sum(0) > 0


@dataclass(frozen=True)
class Montage:
    """Pairs of scenes, for each which half is explained, and the pixels that can have influence."""

    network: Network
    x: Images
    target: Target
    reached: Bool[Tensor, "items height width"]


@lru_cache(maxsize=4)
def montage(pictures: int, seed: int) -> Montage:
    """Pairs of scenes; of the first the left one is explained, of the second the right one, and so on."""
    module = Halves(scenes_network()).eval()
    categories = [f"{side} {name}" for side in ("left", "right") for name in CATEGORIES]
    network = Network(module, (SIDE, 2 * SIDE), MEAN, STD, categories, name="two halves")
    scenes = Scenes(100_000, seed=seed)
    chosen = [scenes.factors(k) for k, _ in zip(count(), range(2 * pictures), strict=False)]
    pairs = drawn(chosen, SIDE).unflatten(0, (pictures, 2))
    x = network.normalize(torch.cat([pairs[:, 0], pairs[:, 1]], -1))
    labels = [CATEGORIES.index(chosen[2 * i + i % 2].species) + len(CATEGORIES) * (i % 2) for i in range(pictures)]
    sides = torch.stack([seen_by(module.features, *columns) for columns in module.columns])
    return Montage(network, x, Logit(tuple(labels)), sides[torch.arange(pictures) % 2])


class ZeroInfluence(Task):
    """How much of a map lies on pixels that cannot influence what is explained?

    Two scenes stand side by side. The layers of the network that ships with the package have two heads, one for each scene,
    and each reads only those places of the last layer that no pixel of the other scene has a path to; its weights
    elsewhere are zero (after Rao et al. 2022, "DiFull"). The score of a picture is the share of the magnitude of
    its map on pixels with a path to the head that is explained. A map that is zero everywhere has no score. The rest of a
    good map may still be wrong: to pass is necessary, not sufficient.
    """

    title = "Zero influence"
    exact = "the other pixels have no path to the head that is explained: its logit is the same to the last bit"
    measures = "share of a map's magnitude on pixels that can have influence"
    range = (0.0, 1.0)

    pictures: Annotated[int, "how many pairs of pictures", AtLeast(2)] = 16
    seed: Annotated[int, "of the scenes"] = SEED

    def quick(self) -> Task:
        return ZeroInfluence(pictures=min(self.pictures, 6), seed=self.seed)

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        truth = montage(self.pictures, self.seed)
        found = mapper(truth.network, truth.x, truth.target, tuple(range(len(truth.x)))).abs()
        whole = found.flatten(1).sum(1)
        inside = (found * truth.reached).flatten(1).sum(1)
        return torch.where(whole > 0, inside / whole, torch.nan)

    def oracle(self) -> Mapper:
        reached = montage(self.pictures, self.seed).reached
        return lambda network, x, target, places: reached[list(places)].double()
