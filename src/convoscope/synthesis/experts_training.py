"""Training experts on pictures: `train_expert`, whose runs go on where they were stopped."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError, LoadError, UsageError
from convoscope.core.spec import AtLeast, Paper, Spec, fields_of, parse_spec, registered
from convoscope.data.dataset import Dataset, open_dataset
from convoscope.data.sealed import read_state, write_state
from convoscope.network import Network
from convoscope.synthesis.experts import Expert
from convoscope.synthesis.experts_denoising import Denoiser, DenoisingExpert
from convoscope.synthesis.experts_gaussian import LARGEST, GaussianExpert, WindowMoments
from convoscope.synthesis.experts_rbm import RBMExpert, gibbs
from convoscope.synthesis.updates import Update

Progress = Callable[[int, int], None]
Windows = Float[Tensor, "count channels height width"]
State = dict[str, Any]
SMALL = 16  # pixels of a window of pictures that are too large to be one


@dataclass(frozen=True)
class Source:
    """Pictures as pixels: a data set read at one size."""

    dataset: Dataset
    reader: Network
    window: tuple[int, int, int]
    stride: int
    seed: int

    def moments(self, progress: Progress | None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of all windows of all pictures, from one pass over them."""
        from convoscope.engine import sweep

        statistic = WindowMoments(height=self.window[1], width=self.window[2], stride=max(1, self.stride))
        found: Any = sweep(self.reader, self.dataset, {"moments": statistic}, ["input"], progress=progress)
        return found["input", "moments"].value()

    def windows(self, count: int, progress: Progress | None) -> Windows:
        """Up to `count` windows at random places of pictures in random order, as many of each picture."""
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.dataset), generator=draw)[:count].tolist()
        each, parts = -(-count // len(order)), list[Tensor]()
        for n, i in enumerate(order):
            picture = self.reader.read(self.dataset.picture(i))[0]
            self._check(picture)
            room = [a - b + 1 for a, b in zip(picture.shape[1:], self.window[1:], strict=True)]
            for _ in range(min(each, room[0] * room[1])):
                top, left = (int(torch.randint(0, r, (), generator=draw)) for r in room)
                parts.append(picture[:, top : top + self.window[1], left : left + self.window[2]])
            if progress is not None:
                progress(n + 1, len(order))
        return torch.stack(parts)[:count]

    def _check(self, picture: Tensor) -> None:
        if picture.shape[1] < self.window[1] or picture.shape[2] < self.window[2]:
            raise UsageError(f"a picture of {tuple(picture.shape[1:])} has no window of {self.window[1:]}; give a size")


@dataclass
class Run:
    """One training, and where its state is kept between interruptions."""

    seed: int
    key: str
    store: Path | None
    progress: Progress | None

    def earlier(self) -> State | None:
        """The state that an interrupted run of the same settings left. Raises UsageError where it is of others."""
        if self.store is None or not self.store.is_file():
            return None
        try:
            found = read_state(self.store)
        except Exception as error:
            raise LoadError(f"cannot go on from {str(self.store)!r}: {type(error).__name__}; delete it to start anew") from None
        if found.get("key") != self.key:
            raise UsageError(f"{str(self.store)!r} is of a training with other settings or data; delete it to start anew")
        return found

    def keep(self, state: State) -> None:
        """Keeps a state; the file is the old one or the new one."""
        if self.store is not None:
            write_state(self.store, state | {"key": self.key})

    def tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


class Recipe(Spec, kind="expert", abstract=True):
    """Base of what trains an expert. `title`: its name in the literature."""

    title: ClassVar[str]

    def train(self, source: Source, run: Run) -> Expert:
        """The expert of a source."""
        raise NotImplementedError


class Gaussian(Recipe):
    """The Gaussian with the mean and covariance of the data; exact, from one pass over all pictures."""

    title = "Gaussian with the data's covariance"
    noise: Annotated[float, "deviation of noise added to the covariance, in pixels 0..1", AtLeast(0)] = 0.1
    rank: Annotated[int | None, "axes kept, the rest alike in all directions; none: all", AtLeast(1)] = None

    def train(self, source: Source, run: Run) -> Expert:
        mean, covariance = source.moments(run.progress)
        return GaussianExpert.fitted(mean, covariance, source.window, noise=self.noise, rank=self.rank, stride=source.stride)


class RBM(Recipe, name="rbm"):
    """A restricted Boltzmann machine with Gaussian pixels, by contrastive divergence, with chains that persist or not."""

    title = "Gaussian-Bernoulli restricted Boltzmann machine"
    paper = Paper(
        "hinton2002training", "Hinton, Geoffrey E.", "Training Products of Experts by Minimizing Contrastive Divergence",
        "Neural Computation", 2002,
    )  # fmt: skip
    hidden: Annotated[int, "hidden units", AtLeast(1)] = 256
    deviation: Annotated[float, "deviation of a pixel given the hidden units, in pixels 0..1", AtLeast(1e-3)] = 0.3
    gibbs: Annotated[int, "steps of Gibbs sampling for each update", AtLeast(1)] = 1
    persistent: Annotated[bool, "chains go on from update to update (PCD) instead of starting at the data"] = True
    epochs: Annotated[int, "how often to see every window", AtLeast(1)] = 30
    count: Annotated[int, "windows to train on at most", AtLeast(2)] = 20_000
    batch: Annotated[int, "windows of one update", AtLeast(1)] = 100
    rate: Annotated[float, "learning rate; without persistent chains ten times as much does", AtLeast(0)] = 3e-4
    decay: Annotated[float, "weight decay", AtLeast(0)] = 1e-3

    def train(self, source: Source, run: Run) -> Expert:
        rows = source.windows(self.count, None).flatten(1)
        machine = _Machine(rows, self, run.seed)
        started = machine.restored(run.earlier())
        for epoch in range(started, self.epochs):
            machine.epoch(rows, self, epoch, run.seed)
            if not math.isfinite(machine.error) or machine.error > 10:
                raise ConvoscopeError(f"training diverged in epoch {epoch + 1}; use a smaller rate than {self.rate:g}")
            run.keep(machine.state(epoch + 1))
            run.tell(epoch + 1, self.epochs)
        report = {"hidden": self.hidden, "reconstruction error": machine.error}
        tensors = {"weight": machine.weight, "visible": machine.visible, "hidden": machine.hidden}
        return RBMExpert(window=source.window, stride=source.stride, report=report, deviation=self.deviation, **tensors)


class _Machine:
    """Weights, their momenta and the chains of a machine in training."""

    def __init__(self, rows: Tensor, recipe: RBM, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.visible = rows.mean(0)
        self.weight = 0.01 * torch.randn(recipe.hidden, rows.shape[1], generator=draw)
        self.hidden = torch.full((recipe.hidden,), -1.0) - self.weight @ self.visible / recipe.deviation**2
        self.chains = rows[: recipe.batch].clone()
        self.momenta = [torch.zeros_like(t) for t in self._parameters()]
        self.error = 0.0

    def _parameters(self) -> list[Tensor]:
        return [self.weight, self.visible, self.hidden]

    def epoch(self, rows: Tensor, recipe: RBM, epoch: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
        fade = min(1.0, 2 * (1 - epoch / recipe.epochs))  # down to nothing over the second half
        momentum = 0.5 if epoch < 2 else 0.9
        for part in torch.randperm(len(rows), generator=draw).split(recipe.batch):
            data = rows[part]
            start = self.chains[: len(data)] if recipe.persistent else data
            model = start
            for _ in range(recipe.gibbs):
                _, model = gibbs(model, self.weight, self.visible, self.hidden, recipe.deviation, draw)
            if recipe.persistent:
                self.chains[: len(data)] = model
            self._update(self._slopes(data, recipe.deviation), self._slopes(model, recipe.deviation), recipe, fade, momentum)
        mean, _ = gibbs(rows[:1000], self.weight, self.visible, self.hidden, recipe.deviation, draw)
        self.error = float((rows[:1000] - mean).square().mean())

    def _slopes(self, v: Tensor, deviation: float) -> list[Tensor]:
        """The mean gradient of `-F`, in units in which pixels have deviation one."""
        chance = torch.addmm(self.hidden, v / deviation**2, self.weight.T).sigmoid()
        return [chance.T @ v / len(v) / deviation, (v - self.visible).mean(0) / deviation, chance.mean(0)]

    def _update(self, data: list[Tensor], model: list[Tensor], recipe: RBM, fade: float, momentum: float) -> None:
        for parameter, kept, a, b in zip(self._parameters(), self.momenta, data, model, strict=True):
            slope = a - b - (recipe.decay * parameter if parameter is self.weight else 0)
            kept.mul_(momentum).add_(slope, alpha=recipe.rate * fade)
            parameter.add_(kept)

    def state(self, epoch: int) -> State:
        return {
            "epoch": epoch,
            "parameters": self._parameters(),
            "momenta": self.momenta,
            "chains": self.chains,
            "error": self.error,
        }

    def restored(self, state: State | None) -> int:
        """Takes a state over; how many epochs it has had."""
        if state is None:
            return 0
        self.weight, self.visible, self.hidden = state["parameters"]
        self.momenta, self.chains, self.error = state["momenta"], state["chains"], state["error"]
        return int(state["epoch"])


class Denoising(Recipe):
    """A denoising autoencoder: what it takes away from a picture is the gradient of the log density of the noisy data."""

    title = "Denoising autoencoder"
    paper = Paper(
        "alain2014regularized", "Alain, Guillaume and Bengio, Yoshua",
        "What Regularized Auto-Encoders Learn from the Data-Generating Distribution", "JMLR", 2014, "1211.4246",
    )  # fmt: skip
    noise: Annotated[float, "deviation of the noise, in pixels 0..1", AtLeast(1e-3)] = 0.3
    width: Annotated[int, "channels of the first level; each further one has twice as many", AtLeast(1)] = 24
    levels: Annotated[int, "levels of the U-Net, each half the size of the one before", AtLeast(1)] = 3
    epochs: Annotated[int, "how often to see every window", AtLeast(1)] = 10
    count: Annotated[int, "windows to train on at most", AtLeast(2)] = 20_000
    batch: Annotated[int, "windows of one update", AtLeast(1)] = 64
    rate: Annotated[float, "learning rate of Adam", AtLeast(0)] = 2e-3

    def train(self, source: Source, run: Run) -> Expert:
        rows = source.windows(self.count, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            model = Denoiser(source.window[0], self.width, self.levels)
        weights = list(model.parameters())
        batches = -(-len(rows) // self.batch)
        update = Update("adam", weights, (self.rate, 0.02 * self.rate), self.epochs * batches)
        state, error = run.earlier(), 0.0
        if state is not None:
            model.load_state_dict(state["model"])
            update.restore(state["moments"])
            error = state["error"]
        for epoch in range(0 if state is None else state["epoch"], self.epochs):
            error = self._epoch(model, update, rows, epoch, run)
            run.keep({"model": model.state_dict(), "moments": update.state(), "error": error, "epoch": epoch + 1})
        report = {"error left": error, "error of the noise": self.noise**2}
        model.eval().requires_grad_(False)
        return DenoisingExpert(window=source.window, stride=source.stride, report=report, denoiser=model, deviation=self.noise)

    def _epoch(self, model: nn.Module, update: Update, rows: Tensor, epoch: int, run: Run) -> float:
        draw, weights = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch + 1), list(model.parameters())
        parts, errors = torch.randperm(len(rows), generator=draw).split(self.batch), []
        for n, part in enumerate(parts):
            clean = rows[part]
            with torch.enable_grad():
                noisy = clean + self.noise * torch.randn(clean.shape, generator=draw)
                loss = (model(noisy) - clean).square().mean()
                slopes = torch.autograd.grad(loss, weights)
            step = epoch * len(parts) + n
            update(step, [-slope for slope in slopes])
            errors.append(float(loss.detach()))
            if not math.isfinite(errors[-1]):
                raise ConvoscopeError(f"training diverged in epoch {epoch + 1}; use a smaller rate than {self.rate:g}")
            run.tell(step + 1, self.epochs * len(parts))
        return sum(errors) / len(errors)


def experts() -> dict[str, type[Recipe]]:
    """All recipes of experts by name."""
    return registered("expert")  # type: ignore[return-value]


def train_expert(
    kind: Recipe | str, data: Any, *, size: int | tuple[int, int] | None = None, channels: int | None = None,
    window: int | tuple[int, int] | None = None, stride: int | None = None, seed: int = 0, store: str | Path | None = None,
    progress: Progress | None = None, **settings: Any,
) -> Expert:  # fmt: skip
    """An expert on `data`, anything `open_dataset` takes, read at `size` with `channels` (default: those of the first picture).

    `kind` is "gaussian", "rbm" or "denoising", `kind:setting=value` or a recipe; `settings` replace its own. `window` is what
    the expert knows at once: by default the whole picture where it has at most 4096 values, else 16 pixels; windows of a
    larger picture, every `stride` pixels (default: a quarter of the window), make a product of experts. `store` is a file in
    which an interrupted training waits; the same call goes on from there with the same result. The same seed gives the same
    expert on one machine.
    """
    made = parse_spec("expert", kind) if isinstance(kind, str) else kind
    if not isinstance(made, Recipe):
        raise UsageError(f"an expert's kind is its name or a recipe such as RBM(); got {type(kind).__name__}")
    before = {f.name: getattr(made, f.name) for f in fields_of(type(made))}
    made = type(made).make(before | settings)
    source = source_of(open_dataset(data), size, channels, window, stride, seed)
    told = {"recipe": made.to_dict(), "data": source.dataset.name, "pictures": len(source.dataset), "seed": seed}
    sides = None if source.reader.size is None else list(source.reader.size)
    told |= {"size": sides, "window": list(source.window), "stride": source.stride}
    keys = [source.dataset.key(i) for i in range(len(source.dataset))]
    key = hashlib.blake2b(json.dumps([told, keys], sort_keys=True).encode(), digest_size=12).hexdigest()
    run = Run(seed, key, None if store is None else Path(store), progress)
    expert = made.train(source, run)
    return replace(expert, settings=told)


def source_of(dataset: Dataset, size: Any, channels: Any, window: Any, stride: int | None, seed: int) -> Source:
    """How a data set is read."""
    if len(dataset) == 0:
        raise UsageError(f"{dataset.name} has no pictures")
    first = dataset.picture(0)
    channels = channels or _channels(first)
    reader = Network(nn.Identity(), size, channels=channels, name="pixels")
    picture = reader.read(first)
    tall, wide = picture.shape[2:]
    if window is None:
        window = (tall, wide) if channels * tall * wide <= LARGEST else (min(SMALL, tall), min(SMALL, wide))
    window = (window, window) if isinstance(window, int) else tuple(window)
    if not (1 <= window[0] <= tall and 1 <= window[1] <= wide):
        raise UsageError(f"a window of {window} does not lie in pictures of {(tall, wide)}")
    return Source(dataset, reader, (channels, *window), stride or max(1, min(window) // 4), seed)


def _channels(picture: Any) -> int:
    if isinstance(picture, Tensor):
        return int(picture.shape[-3])
    gray = getattr(picture, "mode", "RGB") in ("1", "L", "I", "F", "I;16") or len(getattr(picture, "shape", (0, 0, 3))) == 2
    return 1 if gray else 3
