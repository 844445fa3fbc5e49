"""The state of a run that fools a network, in one file: whole or absent, and named by everything its result depends on."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from convoscope.data.sealed import read_sealed, write_sealed
from convoscope.files import make_folder

EVERY = 5.0  # seconds between two states written, and between two pictures for a watcher
SHOWN = 16  # classes whose pictures are kept on the way


@dataclass
class State:
    """Tensors by name, the best confidence of each class after each step (the first: at the start), and pictures on the way."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    history: list[Float[Tensor, " classes"]] = field(default_factory=list)
    frames: list[tuple[int, UInt8[Tensor, "pictures channels height width"]]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps after the first picture are done; -1 before it is there."""
        return len(self.history) - 1

    def write(self, path: Path) -> None:
        """Puts everything into the file."""
        if not self.history:
            return
        tensors = {f"tensor.{name}": t for name, t in self.tensors.items()}
        tensors |= {f"frame.{step}": frame for step, frame in self.frames}
        tensors |= {"history": torch.stack(self.history)}
        write_sealed(path, tensors)

    @classmethod
    def read(cls, path: Path) -> "State":
        """What the file holds; an empty state where there is none, or a damaged one."""
        if (read := read_sealed(path)) is None:
            return cls()
        found = read[0]
        frames = sorted((int(k.removeprefix("frame.")), t) for k, t in found.items() if k.startswith("frame."))
        tensors = {k.removeprefix("tensor."): t for k, t in found.items() if k.startswith("tensor.")}
        return cls(tensors, list(found["history"]), frames)


def place(folder: Path, said: Mapping[str, Any]) -> Path:
    """The file in a folder for what these settings make."""
    make_folder(folder)
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
    return folder / f"fool-{digest}.ascent.safetensors"


def content(tensor: Tensor) -> str:
    """A short name for the numbers in a tensor."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(memoryview(raw.numpy()), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Live:
    """How far to go, who is told on the way, and the folder where the state is kept, if any."""

    steps: int
    goal: float = 1.0
    store: Path | None = None
    progress: Callable[[int, int], Any] | None = None
    watch: Callable[[int, Tensor], Any] | None = None

    def run(
        self, said: Mapping[str, Any], begin: Callable[[], State], advance: Callable[[State], State],
        draw: Callable[[State, int], UInt8[Tensor, "pictures channels height width"]],
    ) -> State:  # fmt: skip
        """Advances a state, from `begin` or from where a run of the same settings `said` was left, until it has made all
        steps or all classes have reached the goal. `draw` gives the pictures of so many first classes."""
        path = None if self.store is None else place(self.store, said)
        state = State() if path is None else State.read(path)
        state = state if state.history else begin()
        saved = told = time.monotonic()
        try:
            while state.step < self.steps and not self.reached(state):
                state = advance(state)
                if state.step & (state.step - 1) == 0:  # 0, 1, 2, 4, 8, ...
                    state.frames.append((state.step, draw(state, SHOWN).cpu()))
                now = time.monotonic()
                if path is not None and now - saved > EVERY:
                    state.write(path)
                    saved = now
                if self.watch is not None and now - told > EVERY:
                    self.watch(state.step, draw(state, 1 << 30).cpu().float() / 255)
                    told = now
                if self.progress is not None:
                    self.progress(state.step, self.steps)
        finally:  # also where somebody interrupts
            if path is not None:
                state.write(path)
        return state

    def reached(self, state: State) -> bool:
        """Whether every class has the confidence asked for."""
        return bool(state.history) and bool((state.history[-1] >= self.goal).all())
