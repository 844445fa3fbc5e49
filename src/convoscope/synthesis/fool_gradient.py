"""Fooling images by gradient ascent on the probability of a class (Nguyen et al. 2015)."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.images.base import Draws
from convoscope.synthesis.fool_state import State, content
from convoscope.targets import LogProbability

if TYPE_CHECKING:
    from convoscope.synthesis.fool import Run

NOISE = 0.1  # standard deviation of the starting noise
PROGRESS, SHARE = 0.03, 0.1  # how much a step is to add to a probability: at most this, at most this share of what lacks
LARGEST = 2 / 255  # the largest step, root mean square over the pixels


def _mean(run: "Run") -> Tensor:
    return torch.tensor(run.network.mean, device=run.space.device, dtype=run.space.dtype).view(-1, 1, 1).clamp(0, 1)


def _start(run: "Run", start: Any) -> Tensor:
    """The first pictures, pixels 0..1."""
    space, network, rows = run.space, run.network, len(run.classes)
    if isinstance(start, str) and start == "noise":
        drawn = Draws(run.seed, tuple(("fool", c) for c in run.classes), space).normal((space.channels, *space.size), "start")
        return (_mean(run) + NOISE * drawn).clamp(0, 1)
    x = network.read(start).to(space.device, space.dtype)
    if tuple(x.shape[1:]) != (space.channels, *space.size) or len(x) not in (1, rows):
        raise UsageError(
            f"a start is one picture of {space.channels} x {space.size[0]} x {space.size[1]}, or {rows} of them; "
            f"got {tuple(x.shape)}"
        )
    zero = network.normalize(torch.zeros_like(x[:1]))
    return ((x - zero) * _deviation(run)).clamp(0, 1).expand(rows, -1, -1, -1).clone()


def _deviation(run: "Run") -> Tensor:
    return torch.tensor(run.network.std, device=run.space.device, dtype=run.space.dtype).view(-1, 1, 1)


def climb(run: "Run", start: Any, decay: float) -> tuple[Tensor, State]:
    """The best pictures met on the way from `start` along the gradient of each class's probability, and the state at its end.

    A step is as long as promises, to first order, to add `PROGRESS` to the probability or `SHARE` of what it lacks, but not
    longer than `LARGEST`. Gradients are those at the picture of 8 bits.
    """
    pixels = _start(run, start)
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))  # small steps add up
    said = {**run.key(), "by": "gradient", "seed": run.seed, "decay": decay, "goal": run.live.goal, "start": content(pixels)}
    state = run.live.run(
        said,
        lambda: State({"pixels": pixels.cpu(), "best": _bytes(pixels).cpu()}),
        lambda state: _stepped(run, state, decay),
        lambda state, most: state.tensors["best"][:most].clone(),
    )
    return state.tensors["best"], state


def _stepped(run: "Run", state: State, decay: float) -> State:
    """Looks at the pictures, notes the better ones, and moves those that have not reached the goal."""
    before = state.history[-1] if state.history else torch.full((len(run.classes),), -1.0, dtype=torch.float64)
    best, moved, now = state.tensors["best"].clone(), state.tensors["pixels"].clone(), before.clone()
    middle = _mean(run)
    for rows in (before < run.live.goal).nonzero()[:, 0].split(run.session.batch_size):
        pixels = moved[rows].to(run.space.device)
        rounded = _bytes(pixels)
        target = LogProbability(tuple(run.classes[int(r)] for r in rows))
        gradient, log = run.probe(len(rows), target).grad_and_score(run.normalized(rounded))
        sure, gradient = log.double().exp(), gradient.double() / _deviation(run)
        better = sure.cpu() > before[rows]
        best[rows[better]] = rounded.cpu()[better]
        now[rows] = torch.maximum(now[rows], sure.cpu())
        moved[rows] = ((pixels - middle) * (1 - decay) + middle + _step(gradient, sure)).clamp(0, 1).to(moved.dtype).cpu()
    return State({"pixels": moved, "best": best}, [*state.history, now], state.frames)


def _step(gradient: Tensor, sure: Tensor) -> Tensor:
    """Along the gradient of the log probability, as far as the progress aimed at."""
    length = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny ** 0.5)
    aim = torch.minimum(torch.full_like(sure, PROGRESS), SHARE * (1 - sure)) / sure.clamp(min=torch.finfo(sure.dtype).tiny)
    far = torch.minimum(aim / length, torch.full_like(sure, LARGEST * gradient[0].numel() ** 0.5))
    return gradient * (far / length).view(-1, 1, 1, 1)


def _bytes(pixels: Tensor) -> UInt8[Tensor, "rows channels height width"]:
    return pixels.mul(255).round().to(torch.uint8)
