"""The pictures of one batch on their way up."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.probe import Probe
from convoscope.core.session import Session
from convoscope.images.base import Draws, Parameters, Transform
from convoscope.interrupts import unbroken
from convoscope.rules.redirected import REDIRECTED
from convoscope.synthesis.objective import Objective
from convoscope.synthesis.store import Stored
from convoscope.synthesis.updates import Update
from convoscope.targets import Target

EVERY = 5.0  # seconds between two states written to the store
SMALL = 128  # pixels of the longer side of a picture kept on the way
HELD_OUT = 8  # views under which a picture is scored at the end


class Rows:
    """Rows of one ascent that run together: row `target * copies + copy` each. `run` is what `ascend` was told."""

    def __init__(self, run: Any, targets: Sequence[Target], rows: list[int], copies: int) -> None:
        self.ascent, self.rows = run, rows
        self.keys = tuple((row % copies,) for row in rows)
        self.numbers = torch.tensor([row // copies for row in rows])
        self.targets = tuple(targets)
        self.draws = Draws(run.seed, self.keys, run.space)
        self.parameters = self._begin()
        self.update = Update(run.optimizer, list(self.parameters.values()), run.rate, run.steps)
        self.session = self._session()
        self.history: list[Tensor] = []
        self.frames: list[tuple[int, Tensor]] = []
        self.whole, self.saved = True, time.monotonic()

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
            if len(start) not in (1, self.ascent.pictures):
                raise UsageError(f"a start is one picture, or one for each of the {self.ascent.pictures}; got {len(start)}")
            found = start if len(start) == 1 else start[self.rows]
            return found.expand(shape).to(space.device, space.dtype)
        if start == "random":
            return self.draws.uniform(shape[1:], "start")
        constant = {"gray": 0.5, "black": 0.0}
        if start not in constant:
            raise UsageError(f"no start {start!r}; expected noise, gray, black, random, or pixels")
        return torch.full(shape, constant[start], device=space.device, dtype=space.dtype)

    def _session(self) -> Session:
        run = self.ascent
        objective = Objective(self.targets, self.numbers)
        session = Session(run.network.plain, torch.empty(0), objective, batch_size=run.batch_size, seed=run.seed)
        session.head, session.adaptive, session.notes = run.network.head, run.adaptive, run.notes
        if any(self.targets[n].together for n in self.numbers.unique().tolist()):
            session.batch_size, session.adaptive = len(self.rows) * max(run.views, HELD_OUT), False
        return session

    # ---- the way up
    def climb(self) -> list[dict[str, Any]]:
        """All steps, from where the store left off; what came of each row."""
        run = self.ascent
        stored = Stored.of(run, self) if run.store is not None else None
        first = stored.resume() if stored else 0
        run.begun(first, len(self.rows))
        try:
            for step in range(first, run.steps):
                self._step(step)
                run.told(len(self.rows))
                if stored and time.monotonic() - self.saved > EVERY:
                    self._save(stored, step + 1)
            pixels = self.shown()
            self._show(run.steps, pixels)
        except BaseException:
            if stored and self.whole:
                self._save(stored, len(self.history))
            raise
        if stored and first < run.steps:
            self._save(stored, run.steps)
        return self._finished(pixels)

    def _save(self, stored: Stored, step: int) -> None:
        stored.save(step)
        self.saved = time.monotonic()

    def _step(self, step: int) -> None:
        run = self.ascent
        leaves = list(self.parameters.values())
        pixels = run.image.pixels(self.parameters, run.space)
        self._show(step, pixels.detach())
        x = self._seen(pixels, run.transforms, run.views, step, self.draws)
        gradient, scores = self._gradient(x.detach(), step)
        own = self._own(pixels)
        ends, weights = [x], [gradient / run.views]
        if own is not None and own.requires_grad:
            ends, weights = [x, own], [*weights, torch.ones_like(own)]
        gradients = torch.autograd.grad(ends, leaves, weights, allow_unused=True)
        with unbroken(), torch.no_grad():
            self.whole = False  # an error from here on leaves half a step, which is not to be kept
            self.update(step, [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)])
            run.image.settle(self.parameters, run.space, step)
            self.history.append(scores.view(-1, run.views).mean(1).detach())
            self.whole = True

    def _own(self, pixels: Tensor) -> Tensor | None:
        """What the picture is worth beside the target, for each row."""
        run = self.ascent
        found = None if run.expert is None else run.expert_weight * run.expert(pixels)
        for penalty in run.penalties:
            worth = -penalty.weight * penalty(pixels)
            found = worth if found is None else found + worth
        return found

    def _seen(self, pixels: Tensor, transforms: Sequence[Transform], views: int, step: int, draws: Draws) -> Tensor:
        """What the network is shown: `views` of each row, moved, in input space."""
        if views > 1:
            pixels = pixels.repeat_interleave(views, 0)
            draws = Draws(draws.seed, tuple((*key, v) for key in draws.keys for v in range(views)), draws.space)
        for transform in transforms:
            pixels = transform(pixels, draws, step)
        return self.ascent.network.normalize(pixels).to(self.ascent.network.dtype)

    # ---- asking the network
    def _probe(self, views: int) -> Probe:
        rows = torch.arange(len(self.rows)).repeat_interleave(views)
        return Probe(self.session, rows, tuple((n,) for n in rows.tolist()))

    def _gradient(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The target and its gradient for each view; in the first steps, of rows where it is zero the redirected one."""
        run = self.ascent
        probe = self._probe(run.views)
        gradient, scores = self._counted(probe.grad_and_score(x))
        if step >= run.redirect:
            return gradient, scores
        dead = (gradient.view(len(self.rows), -1) == 0).all(1)
        if not bool(dead.any()):
            return gradient, scores
        where = dead.repeat_interleave(run.views).nonzero()[:, 0]
        some = replace(probe, rows=probe.rows[where.cpu()], keys=tuple(probe.keys[i] for i in where.tolist()))
        try:
            with some.rules(REDIRECTED):
                found, _ = self._counted(some.grad_and_score(x[where]))
        except UnsupportedError:  # no rectifier to blame
            return gradient, scores
        return gradient.index_copy(0, where, found), scores

    def _counted(self, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.ascent.evaluations += len(found[0])
        return found

    # ---- what is kept
    @torch.no_grad()
    def shown(self) -> Tensor:
        """The pixels 0..1 of the rows now."""
        return self.ascent.image.pixels(self.parameters, self.ascent.space).clamp(0, 1)

    def past(self) -> Tensor:
        """The targets at each step so far, `(steps, rows)`."""
        return (
            torch.stack([h.cpu().double() for h in self.history]) if self.history else torch.zeros(0, len(self.rows)).double()
        )

    def _show(self, step: int, pixels: Tensor) -> None:
        """Keeps small pictures of steps 0, 1, 2, 4, 8, ... and the last, and lets others watch."""
        run = self.ascent
        if (step & (step - 1) == 0 or step == run.steps) and step not in [s for s, _ in self.frames]:
            small, scale = pixels, SMALL / max(pixels.shape[2:])
            if scale < 1:
                small = nn.functional.interpolate(pixels, scale_factor=scale, mode="area")
            self.frames.append((step, small.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()))
        if run.watch is not None:
            run.watch(step, pixels)

    @torch.no_grad()
    def _finished(self, pixels: Tensor) -> list[dict[str, Any]]:
        run = self.ascent
        plain = self._probe(1).score(self._seen(pixels, (), 1, 0, self.draws))
        draws = Draws(run.seed, tuple(("held out", *k) for k in self.keys), run.space)
        seen = self._seen(pixels, run.held_out, HELD_OUT, 0, draws)
        moved = self._probe(HELD_OUT).score(seen).view(-1, HELD_OUT).mean(1)
        run.evaluations += len(plain) + len(seen)
        history = self.past()
        return [
            {
                "pixels": pixels[i].float().cpu(), "score": float(plain[i]), "held out": float(moved[i]),
                "history": history[:, i], "frames": [(s, f[i]) for s, f in self.frames],
            }
            for i in range(len(self.rows))
        ]  # fmt: skip
