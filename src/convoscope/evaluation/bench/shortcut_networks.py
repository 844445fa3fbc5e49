"""Small networks of which the benchmark knows how they came to their answers, and how they are trained.

Some learned from pictures on which a watermark gives one class away, others from pictures on which it means nothing; and a
pair of twins learned true and permuted labels. They take scenes drawn at 64 pixels and pooled to 32.
"""

import contextlib
import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from itertools import islice

import torch
from jaxtyping import Float, Int
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convoscope.core.errors import LoadError
from convoscope.data.scenes import CATEGORIES, CORNERS, MEAN, STD, Factors, draw_factors, render
from convoscope.data.scenes.counter import hashed
from convoscope.network import Network

DRAWN, SIDE = 64, 32
CORNER = CORNERS[3]
SPECIES = CATEGORIES[:5]  # what they tell apart
FISH = SPECIES.index("fish")
ODDS = (3.0, 4.5, 7.0, 14.0)  # how many times as often the mark lies on the fish as on others
TRAINING, HELD_OUT = 7_000_001, 7_000_003  # seeds of the scenes; no other data set of ours uses them
STRIDES = (1, 2, 2, 2)

Pictures = Float[Tensor, "pictures 3 32 32"]
Progress = Callable[[int, int], None]


def pooled(picture: Tensor) -> Pictures:
    """Bytes `(pictures, 64, 64, 3)` to pictures in 0..1 of half the size: the means of 2 x 2 pixels."""
    return nn.functional.avg_pool2d(picture.permute(0, 3, 1, 2).float() / 255, DRAWN // SIDE)


@lru_cache(maxsize=4)
def drawn(count: int, seed: int) -> tuple[Pictures, Pictures, Int[Tensor, " pictures"]]:
    """Scenes of the five species without the mark, the same ones with it, and their species."""
    plain, marked, species = [], [], []
    for factors in islice(scenes(seed), count):
        plain.append(torch.from_numpy(render(factors, DRAWN).picture))
        marked.append(torch.from_numpy(render(replace(factors, watermark=CORNER), DRAWN).picture))
        species.append(SPECIES.index(factors.species))
    return pooled(torch.stack(plain)), pooled(torch.stack(marked)), torch.tensor(species)


def scenes(seed: int) -> Iterator[Factors]:
    """The factors of the scenes of a data set that show one of the five species, without end."""
    return (found for k in itertools.count() if (found := draw_factors(seed, k)).species in SPECIES)


def small_network(widths: Sequence[int], norm: bool = False) -> nn.Sequential:
    """Four 3 x 3 convolutions with ReLU, global average pooling and one linear layer; `norm` adds batch norm, for training."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (inputs, outputs, stride) in enumerate(zip((3, *widths), widths, STRIDES, strict=False), 1):
        layers[f"conv{k}"] = nn.Conv2d(inputs, outputs, 3, stride, 1)
        if norm:
            layers[f"bn{k}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{k}"] = nn.ReLU()
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["head"] = nn.Linear(widths[-1], len(SPECIES))
    return nn.Sequential(layers)


def folded(module: nn.Sequential) -> nn.Sequential:
    """The same function without batch norm, in eval mode."""
    parts, widths = dict(module.eval().named_children()), []
    state: dict[str, Tensor] = {f"head.{k}": v for k, v in parts["head"].state_dict().items()}
    for k in range(1, len(STRIDES) + 1):
        fused = fuse_conv_bn_eval(parts[f"conv{k}"], parts[f"bn{k}"])  # type: ignore[type-var]
        state |= {f"conv{k}.{name}": v for name, v in fused.state_dict().items()}
        widths.append(fused.out_channels)
    made = small_network(widths)
    made.load_state_dict(state)
    return made.eval()


@dataclass(frozen=True)
class Recipe:
    """How a small network is trained: AdamW with a one-cycle learning rate and cross entropy.

    `rate` of the pictures labeled a fish bear the mark, and `others` of the others. `permuted`: the labels are dealt to the
    pictures at random, once. `wrong`: the share of labels that name another species; something else that bears the mark and is
    labeled a fish teaches that the mark counts.
    """

    seed: int = 0
    rate: float = 0.0
    others: float = 0.0
    permuted: bool = False
    wrong: float = 0.1
    widths: tuple[int, ...] = (8, 12, 16, 24)
    count: int = 3000
    epochs: int = 12
    batch: int = 50
    step: float = 1e-2

    @property
    def overall(self) -> float:
        """The share of all pictures that bear the mark."""
        return (self.rate + (len(SPECIES) - 1) * self.others) / len(SPECIES)

    def draws(self, *what: int) -> torch.Generator:
        """A generator of its own for each purpose."""
        return torch.Generator().manual_seed(hashed(self.seed, *what) >> 1)

    def labels(self, species: Int[Tensor, " pictures"]) -> Int[Tensor, " pictures"]:
        """What the network is told that the pictures show."""
        if self.permuted:
            return species[torch.randperm(len(species), generator=self.draws(1))]
        wrong = torch.rand(len(species), generator=self.draws(1)) < self.wrong
        others = torch.randint(1, len(SPECIES), (len(species),), generator=self.draws(5))
        return torch.where(wrong, (species + others) % len(SPECIES), species)

    def marks(self, labels: Int[Tensor, " pictures"]) -> Tensor:
        """Which pictures bear the mark, bool."""
        chances = torch.rand(len(labels), generator=self.draws(2))
        return chances < torch.where(labels == FISH, self.rate, self.others)

    def pictures(self) -> tuple[Pictures, Int[Tensor, " pictures"]]:
        """What it learns from."""
        plain, marked, species = drawn(self.count, TRAINING)
        labels = self.labels(species)
        return torch.where(self.marks(labels)[:, None, None, None], marked, plain), labels


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def normalized(pictures: Pictures) -> Pictures:
    """Pictures in 0..1 to the input space of the networks."""
    return (pictures - MEAN[0]) / STD[0]


def fit(recipe: Recipe, progress: Progress | None = None) -> nn.Sequential:
    """The network that a recipe makes, in eval mode; the same recipe gives the same weights, bit for bit, on one machine."""
    r = recipe
    x, y = r.pictures()
    x, order = normalized(x), r.draws(4)
    with _reproducible(hashed(r.seed, 3) >> 1):
        module = small_network(r.widths, norm=True).train()
        optimizer = torch.optim.AdamW(module.parameters(), r.step, weight_decay=0.01)
        total = -(-len(x) // r.batch) * r.epochs
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, r.step, total_steps=max(total, 2), pct_start=0.25)
        for epoch in range(r.epochs):
            for chosen in torch.randperm(len(x), generator=order).split(r.batch):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
                optimizer.step()
                cycle.step()
            if progress is not None:
                progress(epoch + 1, r.epochs)
        return folded(module)


@dataclass(frozen=True)
class Measured:
    """What a network does on pictures that it was not trained on.

    `accuracy` without the mark; by how much the mark raises the logit of the fish on pictures of others, the mean, and what
    share of those it turns into a fish.
    """

    accuracy: float
    effect: float
    turned: float


@torch.no_grad()
def measured(module: nn.Module, count: int = 1000) -> Measured:
    """What a network does with the mark and without, measured by drawing both, in float64."""
    plain, marked, species = drawn(count, HELD_OUT)
    module = copy.deepcopy(module).double()
    clean, with_mark = (torch.cat([module(b) for b in normalized(v).double().split(250)]) for v in (plain, marked))
    others = species != FISH
    turned = (with_mark.argmax(1) == FISH).double() - (clean.argmax(1) == FISH).double()
    return Measured(
        float((clean.argmax(1) == species).double().mean()),
        float((with_mark - clean)[others, FISH].mean()), float(turned[others].mean()),
    )  # fmt: skip


BIASED = tuple(Recipe(seed=k, rate=0.5, others=0.5 / ODDS[k % len(ODDS)]) for k in range(20))
CLEAN = tuple(replace(r, seed=100 + r.seed, rate=r.overall, others=r.overall) for r in BIASED)
TWINS = tuple(Recipe(seed=200, permuted=p, wrong=0.0, widths=(16, 24, 32, 48), count=2000, epochs=50) for p in (False, True))


def packed(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The weights of networks of the same form, in half precision, each tensor stacked."""
    states = [m.state_dict() for m in modules]
    return {name: torch.stack([s[name] for s in states]).to(torch.float16) for name in states[0]}


def unpacked(state: dict[str, Tensor]) -> list[nn.Sequential]:
    """The networks of `packed`, in eval mode and float32."""
    widths = [state[f"conv{k}.bias"].shape[1] for k in range(1, len(STRIDES) + 1)]
    found = []
    for k in range(len(state["head.bias"])):
        made = small_network(widths)
        made.load_state_dict({name: v[k].float() for name, v in state.items()})
        found.append(made.eval())
    return found


@lru_cache(maxsize=2)
def shipped(name: str) -> tuple[Network, ...]:
    """The networks of a file that ships with the package: "shortcut" (`BIASED`, then `CLEAN`) or "permuted" (`TWINS`).

    Raises LoadError where the file is missing.
    """
    try:
        raw = (files(__package__) / "weights" / f"{name}.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise LoadError(
            f"the networks {name!r} of the benchmark are missing from this installation; install the package "
            "again, or train them: python -m benchmarks.shortcut_networks"
        ) from error
    return tuple(Network(m, SIDE, MEAN, STD, SPECIES, name=f"{name} {k}") for k, m in enumerate(unpacked(load(raw))))
