"""Tetrominoes in noise, after XAI-TRIS: whether maps find the pixels that tell two classes apart, and leave suppressors out."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.spec import AtLeast, Paper
from convoscope.evaluation.base import seeded
from convoscope.evaluation.bench.base import Mapper, Task
from convoscope.evaluation.bench.tris_pictures import NOISES, SCENARIOS, SIDE, SIGNAL, Noise, Scenario, draw
from convoscope.files import replaced
from convoscope.network import Network
from convoscope.targets import Logit, Target

WEIGHTS = Path(__file__).with_name("weights") / "tris.safetensors"
STEPS, BATCH = 600, 256


class Tris(Task):
    """Which share of the most relevant pixels are those of the tetrominoes that tell two classes apart?

    Pictures of 8 x 8 pixels: a T or an L in noise, in four scenarios (linear, multiplicative, rigid, xor; see
    `tris_pictures.draw`), in white and in correlated noise, for which small networks that ship with the package were trained
    (`train()` makes them again). In correlated noise pixels beside a tetromino tell the network what the noise on it is: they
    have weight and know nothing of the class (suppressors), and maps that show them are counted as wrong.

    The number is the precision of Clark et al.: of the k pixels of largest magnitude, k being how many the truth has, the
    share that belong to it, equal values in expectation. Only pictures that the network gets right are asked for.
    """

    title: ClassVar[str] = "Tetrominoes in noise"
    exact: ClassVar[str] = "the generator put the tetrominoes there, and nothing else depends on the class"
    measures: ClassVar[str] = "precision of the top pixels"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    paper: ClassVar[Paper] = Paper(
        "clark2023xaitris", "Clark, Benedict and Wilming, Rick and Haufe, Stefan",
        "XAI-TRIS: Non-linear image benchmarks to quantify false positive post-hoc attribution of feature importance",
        "Machine Learning 113", 2024, "2306.12816",
    )  # fmt: skip

    scenario: Annotated[Literal["all", "linear", "multiplicative", "rigid", "xor"], "how the class is told"] = "all"
    noise: Annotated[Literal["both", "white", "correlated"], "the noise"] = "both"
    pictures: Annotated[int, "pictures for each network", AtLeast(1)] = 32
    seed: Annotated[int, "of the pictures"] = 0

    def quick(self) -> "Tris":
        """Correlated noise, sixteen pictures for each scenario."""
        return Tris(scenario=self.scenario, noise="correlated", pictures=min(self.pictures, 16), seed=self.seed)

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        """The precision of each picture's map."""
        scores = []
        for number, cell in enumerate(self.cells()):
            places = tuple(range(number * self.pictures, (number + 1) * self.pictures))
            scores.append(precision(mapper(cell.network, cell.x, cell.target, places).double(), cell.truth))
        return torch.cat(scores)

    def oracle(self) -> Mapper:
        """The tetrominoes themselves."""
        truth = torch.cat([cell.truth for cell in self.cells()]).double()
        return lambda network, x, target, places: truth[list(places)]

    def cells(self) -> "tuple[Cell, ...]":
        """The networks with their pictures and the truth, in the order of the items."""
        scenarios = SCENARIOS if self.scenario == "all" else (self.scenario,)
        noises = NOISES if self.noise == "both" else (self.noise,)
        return tuple(_cell(scenario, noise, self.pictures, self.seed) for scenario in scenarios for noise in noises)


@dataclass(frozen=True)
class Cell:
    """A network, pictures that it gets right, and which pixels tell their class."""

    scenario: Scenario
    noise: Noise
    network: Network
    target: Target
    x: Float[Tensor, "pictures 1 8 8"]
    truth: Bool[Tensor, "pictures 8 8"]


@lru_cache(maxsize=64)
def _cell(scenario: Scenario, noise: Noise, pictures: int, seed: int) -> Cell:
    module = weighted(scenario, noise)
    found = draw(scenario, noise, 2 * pictures + 16, seeded(seed, "tris", scenario, noise))
    x = found.x.float()
    with torch.no_grad():
        right = (module(x).argmax(1) == found.labels).nonzero()[:pictures, 0]
    network = Network(module, size=SIDE, channels=1, categories=("T", "L"), name=f"{scenario}, {noise} noise")
    return Cell(scenario, noise, network, Logit(tuple(found.labels[right].tolist())), x[right], found.truth[right])


def precision(maps: Float[Tensor, "rows height width"], truth: Bool[Tensor, "rows height width"]) -> Float[Tensor, " rows"]:
    """The share of the truth among as many pixels of largest magnitude as it has; equal ones count in expectation."""
    values, true = maps.abs().flatten(1), truth.flatten(1)
    count = true.sum(1, keepdim=True)
    least = values.sort(1, descending=True).values.gather(1, count - 1)
    above, equal = values > least, values == least
    left = count - above.sum(1, keepdim=True)
    share = (equal & true).sum(1, keepdim=True).double() / equal.sum(1, keepdim=True)
    return (((above & true).sum(1, keepdim=True) + left * share) / count)[:, 0]


# ---------------------------------------------------------------- networks
class Net(nn.Module):
    """Two convolutions, a pool, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(16 * (SIDE // 2) ** 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of T and L."""
        return self.head(self.features(x).flatten(1))


def _new() -> Net:
    """A network whose weights are to be set: the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        return Net()


def weighted(scenario: Scenario, noise: Noise) -> nn.Module:
    """The network that ships for a scenario and noise."""
    from safetensors import safe_open

    prefix = f"{scenario}.{noise}."
    with safe_open(str(WEIGHTS), "pt") as file:
        state = {k.removeprefix(prefix): file.get_tensor(k).float() for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    module = _new()
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def fit(scenario: Scenario, noise: Noise, steps: int = STEPS, seed: int = 0) -> nn.Module:
    """A network trained on pictures drawn anew at every step, in float32."""
    g = seeded(seed, "tris fit", scenario, noise)
    module = _new()
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=g) * (2 / fan) ** 0.5 * (parameter.dim() > 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, weight_decay=1e-3)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = draw(scenario, noise, BATCH, g)
        loss = F.cross_entropy(module(drawn.x.float()), drawn.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    return module.eval().requires_grad_(False)


def accuracy(module: nn.Module, scenario: Scenario, noise: Noise, count: int = 4000) -> float:
    """The share of pictures never seen that a network gets right."""
    drawn = draw(scenario, noise, count, seeded(1, "tris held out", scenario, noise))
    with torch.no_grad():
        return float((module(drawn.x.float()).argmax(1) == drawn.labels).double().mean())


def train(path: str | Path = WEIGHTS, steps: int = STEPS) -> dict[tuple[Scenario, Noise], float]:
    """Trains the eight networks and writes them in half precision; gives their held-out accuracy.

    Takes about half a minute on one core.
    """
    from safetensors.torch import save_file

    tensors, found = {}, {}
    for scenario, noise in SIGNAL:
        module = fit(scenario, noise, steps).half().float()
        tensors |= {f"{scenario}.{noise}.{k}": v.half() for k, v in module.state_dict().items()}
        found[scenario, noise] = accuracy(module, scenario, noise)
    with replaced(Path(path)) as partial:
        save_file(tensors, partial, {"accuracy": str({".".join(k): round(v, 4) for k, v in found.items()})})
    return found
