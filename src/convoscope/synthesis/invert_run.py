"""The pictures of some codes on their way there, each row on its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.probe import Probe
from convoscope.core.session import Session
from convoscope.images.base import Draws, Space
from convoscope.interrupts import unbroken
from convoscope.network import Network
from convoscope.synthesis.dream_state import State, digest
from convoscope.synthesis.invert_descent import Momentum, WarmedLBFGS
from convoscope.targets.features import FeatureDistance

EVERY = 5.0  # seconds between two states written to the store
SMALL = 128  # pixels of the longer side of a picture kept on the way


@dataclass
class Run:
    """What all rows of an inversion share, and what they have come to, by layer."""

    network: Network
    space: Space
    seed: int
    progress: Any = None
    watch: Any = None
    store: Path | None = None
    batch_size: int = 1
    total: int = 1
    done: int = 0
    evaluations: int = 0
    made: dict[str, Tensor] = field(default_factory=dict)
    ways: dict[str, list["Rows"]] = field(default_factory=dict)

    def finished(self, rows: "Rows", pixels: Tensor) -> None:
        """Keeps what rows have come to."""
        before = [self.made[rows.layer]] if rows.layer in self.made else []
        self.made[rows.layer] = torch.cat([*before, pixels])
        self.ways.setdefault(rows.layer, []).append(rows)

    def history(self, layers: Sequence[str]) -> Tensor:
        """The error at each step, `(steps, layers, pictures)`; no steps for a generator."""
        if not self.ways:
            return torch.zeros(0, len(layers), 0, dtype=torch.float64)
        return torch.stack([torch.cat([torch.stack(r.history) for r in self.ways[a]], 1) for a in layers], 1)

    def frames(self, layers: Sequence[str]) -> list[tuple[int, Tensor]]:
        """Small pictures of some steps, `(layers, pictures, C, H, W)` bytes each."""
        if not self.ways:
            return []
        steps = [s for s, _ in self.ways[layers[0]][0].frames]
        return [
            (s, torch.stack([torch.cat([r.frames[k][1] for r in self.ways[a]]) for a in layers])) for k, s in enumerate(steps)
        ]


class Rows:
    """Some pictures for codes of one layer. `image` has begin and pixels, a prior a `weight` and a call, as in images/base."""

    def __init__(
        self, run: Run, layer: str, target: FeatureDistance, numbers: range, image: Any, priors: Sequence[Any],
        make: Callable[[Tensor], Momentum | WarmedLBFGS], draws: Draws, steps: int,
    ) -> None:  # fmt: skip
        self.run, self.layer, self.target, self.numbers = run, layer, target, numbers
        self.image, self.priors, self.steps = image, priors, steps
        begun = image.begin(run.space, draws)
        self.shapes = {name: p.shape[1:] for name, p in begun.items()}
        self.descent = make(torch.cat([p.flatten(1) for p in begun.values()], 1).to(run.space.device, run.space.dtype))
        self.history: list[Tensor] = []
        self.frames: list[tuple[int, Tensor]] = []

    def go(self) -> None:
        """From the start, or from the state in the store, to the last step."""
        state = State(self.run.store, self._said()) if self.run.store is not None else None
        if state:
            self._resume(state)
        resumed = len(self.history)
        self.run.done += resumed * len(self.numbers)
        saved, whole = time.monotonic(), True
        try:
            for step in range(resumed, self.steps):
                values, slopes, errors = self._look()
                self._keep_frame(step)
                with unbroken():
                    whole = False  # an error from here on leaves half a step, which is not to be kept
                    self.descent.tell(values, slopes)
                    self.history.append(errors)
                    whole = True
                self._told(step + 1)
                if state and time.monotonic() - saved > EVERY:
                    self._save(state)
                    saved = time.monotonic()
        except BaseException:
            if state and whole:
                self._save(state)
            raise
        self._keep_frame(self.steps)
        if state:
            self._save(state)
        self.run.finished(self, self.shown())

    def _told(self, step: int) -> None:
        run = self.run
        run.done += len(self.numbers)
        if run.progress is not None:
            run.progress(run.done, run.total)
        if run.watch is not None:
            run.watch(step, self.shown())

    def _pixels(self, flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        named = {name: p.unflatten(1, shape) for (name, shape), p in zip(self.shapes.items(), parts, strict=True)}
        return self.image.pixels(named, self.run.space)

    @torch.no_grad()
    def shown(self) -> Tensor:
        """The pixels 0..1 of the best so far."""
        return self._pixels(self.descent.best).clamp(0, 1)

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        """At the trial: what is to be made small, its gradient, and the error of the code alone."""
        run = self.run
        flat = self.descent.trial.detach().requires_grad_()
        with torch.enable_grad():
            pixels = self._pixels(flat)
            x = run.network.normalize(pixels)
            slope, errors = self._probe().grad_and_score(x.detach())
            own = torch.zeros(len(flat), dtype=flat.dtype, device=flat.device)
            for prior in self.priors:
                own = own + prior.weight * prior(pixels)
            (found,) = torch.autograd.grad((x * slope).sum() + own.sum(), flat)
        run.evaluations += len(flat)
        return errors.detach() + own.detach(), found, errors.detach().double().cpu()

    def _probe(self) -> Probe:
        run = self.run
        session = Session(run.network.plain, torch.empty(0), self.target, batch_size=run.batch_size, adaptive=True)
        session.head = run.network.head
        return Probe(session, torch.arange(len(self.numbers)), tuple((n,) for n in self.numbers))

    # ---- what is kept
    def _keep_frame(self, step: int) -> None:
        if step not in {0, self.steps, *(2**k for k in range(20))} or step in [s for s, _ in self.frames]:
            return
        pixels = self.shown()
        scale = SMALL / max(pixels.shape[2:])
        if scale < 1:
            pixels = F.interpolate(pixels, scale_factor=scale, mode="area")
        self.frames.append((step, pixels.mul(255).round().to(torch.uint8).cpu()))

    def _said(self) -> dict[str, Any]:
        run = self.run
        return {
            "network": run.network.hash, "input": [run.network.mean, run.network.std], "layer": self.layer,
            "codes": digest(self.target.code), "image": self.image.to_dict(), "priors": [p.to_dict() for p in self.priors],
            "descent": type(self.descent).__name__, "rows": list(self.numbers), "batch": run.batch_size, "seed": run.seed,
            "steps": self.steps, "space": [str(run.space.dtype), run.space.device.type, *run.space.size],
        }  # fmt: skip

    def _save(self, state: State) -> None:
        tensors = {f"descent.{k}": t for k, t in self.descent.state().items()} | {f"frame.{s}": f for s, f in self.frames}
        if self.history:
            tensors["history"] = torch.stack(self.history)
        state.save(tensors)

    def _resume(self, state: State) -> None:
        found = state.load()
        if found is None or "history" not in found[0]:
            return
        tensors = found[0]
        self.descent.restore({k.removeprefix("descent."): t for k, t in tensors.items() if k.startswith("descent.")})
        self.history = list(tensors["history"])
        self.frames = sorted((int(k.removeprefix("frame.")), t) for k, t in tensors.items() if k.startswith("frame."))
