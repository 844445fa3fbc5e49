"""Pictures that raise targets, by gradient ascent on the parameters of an image."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.core.session import Session
from convoscope.images.base import Draws, Image, Parameters, Penalty, Space, Transform, image_size
from convoscope.network import Network
from convoscope.rules.redirected import REDIRECTED
from convoscope.synthesis.objective import Objective
from convoscope.synthesis.result import Synthesis
from convoscope.synthesis.store import Stored
from convoscope.synthesis.updates import Rate, Update
from convoscope.targets import Target

Expert = Callable[[Tensor], Tensor]
Watch = Callable[[int, Tensor], None]
EVERY = 5.0  # seconds between two states written to the store
SMALL = 128  # pixels of the longer side of a picture kept on the way


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
    evaluations: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


def ascend(
    network: Network | nn.Module, targets: Target | Sequence[Target], image: Image, *, copies: int = 1,
    start: Literal["noise", "gray", "black", "random"] | Tensor = "noise", steps: int = 256, rate: Rate | None = None,
    optimizer: str | None = None, transforms: Sequence[Transform] = (), penalties: Sequence[Penalty] = (),
    expert: Expert | None = None, expert_weight: float = 1.0, views: int = 1, redirect: int = 16, seed: int = 0,
    batch_size: int | Literal["auto"] = "auto", progress: Any = None, watch: Watch | None = None,
    store: str | Path | None = None, held_out: Sequence[Transform] = (),
) -> Synthesis:  # fmt: skip
    """One picture for each target and copy, raised step by step; a picture does not depend on what else is in its batch.

    Each step shows every picture `views` times, moved by the `transforms`, and follows the gradient of the target less the
    weighted penalties plus `expert_weight` times the expert's log density. `start` is the image's own noise, a gray, black or
    random picture, or pixels `(1 or rows, C, H, W)`. Where a picture's gradient is zero at the start, rectifiers are
    redirected for `redirect` steps (`rules/redirected.py`). A pass stops at the targets' addresses.

    `watch(step, pixels)` is shown the pictures on the way; `store` is a folder that keeps the state: the same call goes on
    where it was interrupted, with the same result to the bit. Scores come without transforms and, as the mean over eight
    views by other draws, under `held_out` ones (default: the transforms themselves).
    """
    network = network if isinstance(network, Network) else Network(network)
    targets = [targets] if isinstance(targets, Target) else list(targets)
    _check(targets, copies, steps, views)
    began = time.perf_counter()
    space = Space(network.channels, image_size(getattr(image, "size", None), network.size), network.device, network.dtype)
    size = rows_at_once(torch.empty(1, 1, *space.size, device=space.device)) if batch_size == "auto" else int(batch_size)
    run = Ascent(
        network, image, space, steps, image.rate if rate is None else rate, optimizer or image.optimizer, tuple(transforms),
        tuple(penalties), expert, expert_weight, views, redirect, seed, size, batch_size == "auto", start, watch, progress,
        None if store is None else Path(store), tuple(held_out) or tuple(transforms),
    )  # fmt: skip
    named = [network.target(t) for t in targets]
    made: dict[int, Any] = {}
    with undisturbed(network.plain):
        for numbers in _batches(named, copies, max(1, size // views)):
            made.update(_Rows(run, named, numbers, copies).run(len(named) * copies))
    order = [made[k] for k in range(len(named) * copies)]
    return _result(run, named, copies, order, time.perf_counter() - began)


def _check(targets: Sequence[Target], copies: int, steps: int, views: int) -> None:
    if not targets or not all(isinstance(t, Target) for t in targets):
        raise UsageError("name the targets to raise, such as Channel('layer4', 42) or Logit(281)")
    for name, value, least in (("copies", copies, 1), ("steps", steps, 0), ("views", views, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} is {value!r}; expected a whole number of at least {least}")


def _batches(targets: Sequence[Target], copies: int, most: int) -> list[list[int]]:
    """Rows (target x copies + copy) that run together: those that look at the same addresses, copies side by side."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, target in enumerate(targets):
        groups.setdefault(target.addresses(), []).append(number)
    each = max(1, most // copies)  # targets in a batch
    parts = [g[i : i + each] for g in groups.values() for i in range(0, len(g), each)]
    return [[number * copies + c for number in part for c in range(copies)] for part in parts]


class _Rows:
    """The pictures of one batch on their way up."""

    def __init__(self, run: Ascent, targets: Sequence[Target], rows: list[int], copies: int) -> None:
        self.ascent, self.rows = run, rows
        self.keys = tuple((row % copies,) for row in rows)
        self.numbers = torch.tensor([row // copies for row in rows])
        self.targets = tuple(targets)
        self.draws = Draws(run.seed, self.keys, run.space)
        self.parameters = self._begin()
        self.update = Update(run.optimizer, list(self.parameters.values()), run.rate, run.steps)
        self.dead, self.whole = False, True
        self.history: list[Tensor] = []
        self.frames: list[tuple[int, Tensor]] = []
        self.saved = time.monotonic()

    def _begin(self) -> Parameters:
        run, space = self.ascent, self.ascent.space
        if isinstance(run.start, str) and run.start == "noise":
            found = run.image.begin(space, self.draws)
        else:
            found = run.image.encode(self._start_pixels(), space)
        return {name: p.detach().to(space.device, space.dtype).clone().requires_grad_() for name, p in found.items()}

    def _start_pixels(self) -> Tensor:
        space, start = self.ascent.space, self.ascent.start
        shape = (len(self.rows), space.channels, *space.size)
        if isinstance(start, Tensor):
            if start.dim() != 4 or start.shape[1:] != shape[1:]:
                raise UsageError(
                    f"a start is pixels 0..1 (1 or rows, {', '.join(map(str, shape[1:]))}); got {tuple(start.shape)}"
                )
            found = start if len(start) == 1 else start[self.rows] if len(start) > max(self.rows) else None
            if found is None:
                raise UsageError(f"a start is one picture or one for each of them; got {len(start)}")
            return found.expand(shape).to(space.device, space.dtype)
        if start == "random":
            return self.draws.uniform(shape[1:], "start")
        constant = {"gray": 0.5, "black": 0.0}
        if start not in constant:
            raise UsageError(f"no start {start!r}; expected noise, gray, black, random, or pixels")
        return torch.full(shape, constant[start], device=space.device, dtype=space.dtype)

    # ---- the way up
    def run(self, total: int) -> dict[int, Any]:
        run = self.ascent
        stored = Stored.of(run, self) if run.store is not None else None
        first = stored.resume() if stored else 0
        try:
            for step in range(first, run.steps):
                self._keep_frame(step)
                self._step(step)
                if run.progress is not None:
                    run.progress(self.rows[0] * run.steps + (step + 1) * len(self.rows), total * run.steps)
                if run.watch is not None:
                    run.watch(step + 1, self.shown())
                if stored and time.monotonic() - self.saved > EVERY:
                    self._save(stored, step + 1)
        except BaseException:
            if stored and self.whole:
                self._save(stored, len(self.history))
            raise
        self._keep_frame(run.steps)
        if stored and first < run.steps:
            self._save(stored, run.steps)
        return self._finished()

    def _save(self, stored: Stored, step: int) -> None:
        stored.save(step)
        self.saved = time.monotonic()

    def _step(self, step: int) -> None:
        run = self.ascent
        leaves = list(self.parameters.values())
        pixels = run.image.pixels(self.parameters, run.space)
        gradient, scores = self._pulled(pixels, step)
        own = self._own(pixels)
        goal = (pixels * gradient).sum() if own is None else (pixels * gradient).sum() + own.sum()
        gradients = torch.autograd.grad(goal, leaves, allow_unused=True)
        self.whole = False  # an interruption from here on leaves half a step, which is not to be kept
        self.update(step, [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)])
        with torch.no_grad():
            run.image.settle(self.parameters, run.space, step)
        self.history.append(scores.detach().cpu().double())
        self.whole = True

    def _own(self, pixels: Tensor) -> Tensor | None:
        """What the picture is worth beside the target, for each row."""
        run = self.ascent
        found = None if run.expert is None else run.expert_weight * run.expert(pixels)
        for penalty in run.penalties:
            worth = -penalty.weight * penalty(pixels)
            found = worth if found is None else found + worth
        return found

    def _pulled(self, pixels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The gradient of the target at the pixels, and the target, both the mean over views of each row."""
        run = self.ascent
        base = pixels.detach().requires_grad_()
        x = self._seen(base, run.transforms, run.views, step, self.draws)
        probe = self._probe(run.views)
        gradient, scores = self._gradient(probe, x.detach(), step)
        (gradient,) = torch.autograd.grad(x, base, gradient / run.views)
        return gradient, scores.view(-1, run.views).mean(1)

    def _gradient(self, probe: Probe, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        run = self.ascent
        if step == 0 and run.redirect:
            gradient, scores = probe.grad_and_score(x)
            self.dead = bool((gradient.flatten(1) == 0).all(1).any())
            if not self.dead:
                return gradient, scores
        if not self.dead or step >= run.redirect:
            return probe.grad_and_score(x)
        try:
            with probe.rules(REDIRECTED):
                return probe.grad_and_score(x)
        except UnsupportedError:  # no rectifier to blame
            self.dead = False
            return probe.grad_and_score(x)

    def _seen(self, pixels: Tensor, transforms: Sequence[Transform], views: int, step: int, draws: Draws) -> Tensor:
        """What the network is shown: `views` of each row, moved, in input space."""
        if views > 1:
            pixels = pixels.repeat_interleave(views, 0)
            draws = Draws(draws.seed, tuple((*key, v) for key in draws.keys for v in range(views)), draws.space)
        for transform in transforms:
            pixels = transform(pixels, draws, step)
        return self.ascent.network.normalize(pixels)

    def _probe(self, views: int) -> Probe:
        run = self.ascent
        numbers = torch.arange(len(self.rows)).repeat_interleave(views)
        objective = Objective(self.targets, self.numbers)
        session = Session(run.network.plain, torch.empty(0), objective, batch_size=run.batch_size, seed=run.seed)
        session.head, session.adaptive, session.notes = run.network.head, run.adaptive, run.notes
        session.progress = self._count
        return Probe(session, numbers, tuple((int(n),) for n in numbers))

    def _count(self, passes: int) -> None:
        self.ascent.evaluations += passes

    # ---- what is kept
    @torch.no_grad()
    def shown(self) -> Tensor:
        """The pixels 0..1 of the rows now."""
        return self.ascent.image.pixels(self.parameters, self.ascent.space).clamp(0, 1)

    def _keep_frame(self, step: int) -> None:
        steps = self.ascent.steps
        wanted = {0, steps, *(2**k for k in range(20))}
        if step in wanted and step not in [s for s, _ in self.frames]:
            pixels = self.shown()
            scale = SMALL / max(pixels.shape[2:])
            if scale < 1:
                pixels = nn.functional.interpolate(pixels, scale_factor=scale, mode="area")
            self.frames.append((step, pixels.mul(255).round().to(torch.uint8).cpu()))

    @torch.no_grad()
    def _finished(self) -> dict[int, Any]:
        run = self.ascent
        pixels = self.shown()
        plain = self._probe(1).score(run.network.normalize(pixels))
        seen = self._seen(pixels, run.held_out, 8, 0, Draws(run.seed, tuple(("held out", *k) for k in self.keys), run.space))
        moved = self._probe(8).score(seen).view(-1, 8).mean(1)
        history = torch.stack(self.history) if self.history else torch.zeros(0, len(self.rows), dtype=torch.float64)
        return {
            row: {
                "pixels": pixels[i].float().cpu(), "score": float(plain[i]), "held out": float(moved[i]),
                "history": history[:, i], "frames": [(s, f[i]) for s, f in self.frames],
            }
            for i, row in enumerate(self.rows)
        }  # fmt: skip


def _result(run: Ascent, targets: Sequence[Target], copies: int, rows: list[Any], seconds: float) -> Synthesis:
    frames = [(s, torch.stack([r["frames"][k][1] for r in rows])) for k, (s, _) in enumerate(rows[0]["frames"])]
    settings = {
        "image": run.image.to_dict(), "steps": run.steps, "rate": run.rate, "optimizer": run.optimizer,
        "transforms": [t.to_dict() for t in run.transforms], "penalties": [p.to_dict() for p in run.penalties],
        "expert": None if run.expert is None else str(run.expert), "expert_weight": run.expert_weight, "views": run.views,
        "start": run.start if isinstance(run.start, str) else "pixels", "redirect": run.redirect, "copies": copies,
        "seed": run.seed,
    }  # fmt: skip
    return Synthesis(
        network=run.network,
        targets=tuple(t for t in targets for _ in range(copies)),
        pixels=torch.stack([r["pixels"] for r in rows]),
        scores=[r["score"] for r in rows],
        held_out=[r["held out"] for r in rows],
        history=torch.stack([r["history"] for r in rows], 1),
        frames=frames,
        settings=settings,
        diagnostics={"evaluations": run.evaluations, "seconds": seconds, **run.notes},
    )
