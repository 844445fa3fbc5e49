"""Fooling images: pictures that mean nothing to people and that a network is sure of.

Nguyen, Yosinski and Clune, "Deep Neural Networks are Easily Fooled: High Confidence Predictions for Unrecognizable Images",
CVPR 2015: by gradient ascent, and by evolution with a gene for each pixel or with pattern-producing networks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.probe import Probe
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.session import Session
from convoscope.images.base import Space, image_size
from convoscope.network import Network
from convoscope.synthesis.cppn_genome import Compositional
from convoscope.synthesis.evolution import Direct, Genomes, map_elites
from convoscope.synthesis.fool_gradient import climb
from convoscope.synthesis.fool_result import Fooled
from convoscope.synthesis.fool_state import SHOWN, Live, State
from convoscope.targets import Logit
from convoscope.targets.classes import probabilities

Way = Literal["gradient", "evolution-direct", "evolution-cppn"]
WAYS = ("gradient", "evolution-direct", "evolution-cppn")
STEPS = {"gradient": 300, "evolution-direct": 500, "evolution-cppn": 200}


@dataclass
class Run:
    """What `fool` was told, and how the network is asked."""

    network: Network
    classes: tuple[int, ...]
    space: Space
    seed: int
    session: Session
    live: Live

    def probe(self, rows: int, target: Any = None) -> Probe:
        """A probe of that many pictures; `target`, what to look at."""
        if target is not None:
            self.session.target = target
        return Probe(self.session, torch.arange(rows), tuple((i,) for i in range(rows)))

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels 0..1, or bytes, in the network's input space, on its device."""
        pixels = pixels.to(self.space.device)
        return self.network.normalize(pixels.to(self.space.dtype) / (1 if pixels.is_floating_point() else 255))

    def confidences(self, pixels: UInt8[Tensor, "rows channels height width"]) -> Float[Tensor, "rows classes"]:
        """The probabilities of the chosen classes."""
        outputs = self.probe(len(pixels)).activations(self.normalized(pixels), "output")
        return probabilities(outputs.double())[:, list(self.classes)]

    def key(self) -> dict[str, Any]:
        """What a result depends on, whatever the way."""
        return {
            "network": self.network.hash, "classes": self.classes, "size": self.space.size, "dtype": str(self.space.dtype),
        }  # fmt: skip


def fool(
    network: Network | nn.Module, classes: Sequence[int | str] | int | str | None = None, by: Way = "gradient", *,
    steps: int | None = None, start: Any = "noise", decay: float = 0.0, population: int = 200, goal: float = 0.9999,
    size: int | tuple[int, int] | None = None, batch_size: int | Literal["auto"] = "auto", seed: int = 0,
    progress: Any = None, watch: Any = None, store: str | Path | None = None,
) -> Fooled:  # fmt: skip
    """A picture for each class that the network takes for it with high confidence (Nguyen et al. 2015).

    `classes` are numbers or names, None for all. By "gradient", each picture starts from `start` ("noise" around the mean
    color, or anything `network.read` takes: one picture, or one for each class) and climbs the gradient of its class's
    probability for `steps` steps; `decay` pulls it back to the mean color by that share at each step. By "evolution-direct" or
    "evolution-cppn", MAP-Elites breeds `population` children in each of `steps` generations, for all classes at once. A picture
    that has reached the confidence `goal` is left alone; where all have, it ends early (1: hardly ever).

    Every picture on the way is rounded to 8 bits before the network sees it, so confidences are those of the saved file, and
    of the best picture met. `size` is needed where the network takes any. `watch(step, pixels)` is shown the pictures now and
    then; `store` is a folder that keeps the state: the same call goes on where it was interrupted, with the same result to the
    bit, and so does one of more steps.
    """
    network = network if isinstance(network, Network) else Network(network)
    _check(
        by, decay, goal, steps=(steps, 0), population=(population, 1), batch_size=(1 if batch_size == "auto" else batch_size, 1)
    )
    began = time.perf_counter()
    space = Space(network.channels, image_size(size, network.size), network.device, network.dtype)
    steps = STEPS[by] if steps is None else steps
    live = Live(steps, goal, None if store is None else Path(store), progress, watch)
    run = Run(network, (), space, seed, _session(network, space, batch_size, seed), live)
    settings = {"by": by, "steps": steps, "goal": goal, "seed": seed}
    with undisturbed(network.plain):
        run.classes = _classes(run, classes)
        if by == "gradient":
            settings |= {"start": start if isinstance(start, str) else "pixels", "decay": decay}
            pixels, state = climb(run, start, decay)
        else:
            settings |= {"population": population}
            pixels, state = _evolve(run, by, population)
        sure = _each(run, pixels)
    notes = {"evaluations": run.session.evaluations, "seconds": time.perf_counter() - began, **run.session.notes}
    frames = [(s, f) for s, f in state.frames if s < state.step] + [(state.step, pixels[:SHOWN])]
    return Fooled(network, by, run.classes, pixels, sure, torch.stack(state.history), frames, settings, notes)


def _session(network: Network, space: Space, batch_size: int | str, seed: int) -> Session:
    auto = batch_size == "auto"
    at_once = rows_at_once(torch.empty(1, 1, *space.size, device=space.device)) if auto else int(batch_size)
    session = Session(network.plain, torch.empty(0), Logit(0), batch_size=at_once, seed=seed, head=network.head)
    session.adaptive = auto
    return session


def _check(by: str, decay: float, goal: float, **given: tuple[Any, int]) -> None:
    if by not in WAYS:
        raise UsageError(f"no way to fool by {by!r}; expected one of {', '.join(WAYS)}")
    if not 0 <= decay < 1:
        raise UsageError(f"decay is {decay}; expected a share of at least 0 and below 1")
    if not 0 < goal <= 1:
        raise UsageError(f"goal is {goal}; expected a confidence, above 0 and at most 1")
    for name, (value, least) in given.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _classes(run: Run, classes: Any) -> tuple[int, ...]:
    """The numbers of the classes; asks the network how many there are."""
    blank = torch.zeros(1, run.space.channels, *run.space.size, device=run.space.device, dtype=run.space.dtype)
    output = run.probe(1).activations(blank, "output")
    if output.dim() != 2:
        raise UsageError(f"the output has shape {tuple(output.shape)}, not (images, classes); there is no class to be sure of")
    if classes is None:
        return tuple(range(output.shape[1]))
    listed = [classes] if isinstance(classes, int | str) else list(classes)
    if not listed:
        raise UsageError("name at least one class, or None for all")
    chosen = tuple(run.network.target(c).index for c in listed)
    for asked, index in zip(listed, chosen, strict=True):
        if not isinstance(index, int) or not 0 <= index < output.shape[1]:
            raise UsageError(f"no class {asked!r}; the network has {output.shape[1]}, counted from 0")
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"a class is named twice in {', '.join(map(str, listed))}")
    return chosen


def _each(run: Run, pixels: Tensor) -> list[float]:
    """The confidence of each picture in its own class."""
    parts, first = [], 0
    for some in pixels.split(max(1, run.session.batch_size)):
        found = run.confidences(some)
        parts += found.diagonal(first).tolist()
        first += len(some)
    return parts


# ---- by evolution


def _evolve(run: Run, by: str, population: int) -> tuple[Tensor, State]:
    encoding = (Direct if by == "evolution-direct" else Compositional)(run.space.channels, run.space.size)

    def judge(genomes: Genomes) -> Tensor:
        """All confidences; pictures are drawn only as many at once as the network is shown."""
        rows = len(next(iter(genomes.values())))
        parts, first = [], 0
        while first < rows:
            count = run.session.batch_size
            some = {name: genes[first : first + count].to(run.space.device) for name, genes in genomes.items()}
            parts.append(run.confidences(encoding.pixels(some)).cpu())
            first += count
        return torch.cat(parts)

    state = map_elites(judge, encoding, len(run.classes), run.live, population=population, seed=run.seed, key=run.key())
    every = [{n: genes[i : i + SHOWN] for n, genes in state.tensors.items()} for i in range(0, len(run.classes), SHOWN)]
    return torch.cat([encoding.pixels(some) for some in every]), state
