"""Pictures that raise targets, by gradient ascent on the parameters of an image."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.images import of
from convoscope.images.base import Image, Penalty, Space, Transform, image_size
from convoscope.images.transforms import standard
from convoscope.network import Network
from convoscope.synthesis.objective import settled
from convoscope.synthesis.result import Synthesis
from convoscope.synthesis.rows import Rows
from convoscope.synthesis.store import identity
from convoscope.synthesis.updates import Rate
from convoscope.targets import Target

Expert = Callable[[Tensor], Tensor]
Watch = Callable[[int, Tensor], None]


@dataclass
class Ascent:
    """The settings of a run, and what its rows share. `ascend` says what they mean."""

    network: Network
    image: Image
    space: Space
    steps: int
    rate: Rate
    optimizer: str
    transforms: tuple[Transform, ...]
    penalties: tuple[Penalty, ...]
    expert: Expert | None
    expert_weight: float
    views: int
    redirect: int
    seed: int
    batch_size: int
    adaptive: bool
    start: Any
    watch: Watch | None
    progress: Any
    store: Path | None
    held_out: tuple[Transform, ...]
    pictures: int
    done: int = 0
    evaluations: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the pictures were made with, as JSON values."""
        return {
            "image": self.image.to_dict(), "steps": self.steps, "rate": self.rate, "optimizer": self.optimizer,
            "transforms": [t.to_dict() for t in self.transforms], "penalties": [p.to_dict() for p in self.penalties],
            "expert": identity(self.expert), "expert_weight": self.expert_weight, "views": self.views,
            "start": self.start if isinstance(self.start, str) else "pixels", "redirect": self.redirect, "seed": self.seed,
        }  # fmt: skip

    def begun(self, step: int, rows: int) -> None:
        """Some rows begin, or go on after `step` steps."""
        if step:
            self.notes["continued from step"] = min(step, self.notes.get("continued from step", step))
            self.told(rows * step)

    def told(self, steps: int) -> None:
        """So many steps of single pictures were done."""
        self.done += steps
        if self.progress is not None:
            self.progress(self.done, self.pictures * self.steps)


def ascend(
    network: Network | nn.Module, targets: Target | Sequence[Target], image: Image | str, *, copies: int = 1,
    start: Literal["noise", "gray", "black", "random"] | Tensor = "noise", steps: int = 256, rate: Rate | None = None,
    optimizer: str | None = None, transforms: Sequence[Transform | str] = (), penalties: Sequence[Penalty | str] = (),
    expert: Expert | None = None, expert_weight: float = 1.0, views: int = 1, redirect: int = 16, seed: int = 0,
    batch_size: int | Literal["auto"] = "auto", progress: Any = None, watch: Watch | None = None,
    store: str | Path | None = None, held_out: Sequence[Transform | str] | None = None,
) -> Synthesis:  # fmt: skip
    """One picture for each target and copy, raised step by step; a picture does not depend on what else is in its batch.

    Each step shows every picture `views` times, moved by the `transforms`, and follows the gradient of the target less the
    weighted penalties plus `expert_weight` times the expert's log density (nats). `start` is the image's own noise, a gray,
    black or random picture, or pixels `(1 or rows, C, H, W)`. Where a picture's gradient is zero in the first `redirect`
    steps, rectifiers pass what would open them (`rules/redirected.py`). A pass stops at the targets' addresses; a Neuron
    without a position is the one in the middle of its map.

    `watch(step, pixels)` is shown the pictures of the running batch after so many steps, `progress(done, total)` counts steps
    of single pictures; what either raises ends the run. `store` is a folder that keeps the state: the same call goes on where
    it was interrupted, with the same result to the bit. Scores are those of the pictures as they are and, as the mean over
    eight views, under `held_out` transforms (default: the standard ones for the size).
    """
    network = network if isinstance(network, Network) else Network(network)
    targets = [targets] if isinstance(targets, Target) else list(targets)
    image = of("image", image)
    _check(targets, copies, steps, views, redirect, seed, batch_size)
    began = time.perf_counter()
    dtype = torch.promote_types(network.dtype, torch.float32)  # the steps of half precision are too coarse
    space = Space(network.channels, image_size(getattr(image, "size", None), network.size), network.device, dtype)
    size = rows_at_once(torch.empty(1, 1, *space.size, device=space.device)) if batch_size == "auto" else int(batch_size)
    if held_out is None:
        held_out = standard(space.size) if min(space.size) > 4 else ()
    moves, penalized, held = ([of(kind, t) for t in ts] for kind, ts in
                              (("transform", transforms), ("penalty", penalties), ("transform", held_out)))  # fmt: skip
    run = Ascent(
        network, image, space, steps, image.rate if rate is None else rate, optimizer or image.optimizer, tuple(moves),
        tuple(penalized), expert, expert_weight, views, redirect, seed, size, batch_size == "auto", start, watch, progress,
        None if store is None else Path(store), tuple(held), len(targets) * copies,
    )  # fmt: skip
    made: dict[int, Any] = {}
    with undisturbed(network.plain):
        named = settled([network.target(t) for t in targets], network, space)
        for numbers in _batches(named, copies, max(1, size // views)):
            made.update(zip(numbers, Rows(run, named, numbers, copies).climb(), strict=True))
    return _result(run, named, copies, [made[k] for k in range(len(named) * copies)], time.perf_counter() - began)


def _check(
    targets: Sequence[Target], copies: int, steps: int, views: int, redirect: int, seed: int, batch_size: int | str
) -> None:
    if not targets or not all(isinstance(t, Target) for t in targets):
        raise UsageError("name the targets to raise, such as Channel('layer4', 42) or Logit(281)")
    bounds = {"copies": (copies, 1), "steps": (steps, 0), "views": (views, 1), "redirect": (redirect, 0)}
    bounds |= {} if batch_size == "auto" else {"batch_size": (batch_size, 1)}
    for name, (value, least) in bounds.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} is {value!r}; expected a whole number of at least {least}")
    if not isinstance(seed, int):
        raise UsageError(f"seed is {seed!r}; expected a whole number")


def _batches(targets: Sequence[Target], copies: int, most: int) -> list[list[int]]:
    """Rows (target x copies + copy) that run together: those that look at the same addresses, copies side by side."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, target in enumerate(targets):
        groups.setdefault(target.addresses(), []).append(number)
    each = max(1, most // copies)  # targets in a batch
    parts = [g[i : i + each] for g in groups.values() for i in range(0, len(g), each)]
    return [[number * copies + c for number in part for c in range(copies)] for part in parts]


def _result(run: Ascent, targets: Sequence[Target], copies: int, rows: list[Any], seconds: float) -> Synthesis:
    frames = [(s, torch.stack([r["frames"][k][1] for r in rows])) for k, (s, _) in enumerate(rows[0]["frames"])]
    return Synthesis(
        network=run.network,
        targets=tuple(t for t in targets for _ in range(copies)),
        pixels=torch.stack([r["pixels"] for r in rows]),
        scores=[r["score"] for r in rows],
        held_out=[r["held out"] for r in rows],
        history=torch.stack([r["history"] for r in rows], 1),
        frames=frames,
        settings=run.settings() | {"copies": copies, "held_out": [t.to_dict() for t in run.held_out]},
        diagnostics={"evaluations": run.evaluations, "seconds": seconds, **run.notes},
    )
