"""DeepDream: what a network sees in a picture, shown ever more of."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError, UsageError
from convoscope.core.run import undisturbed
from convoscope.images.base import Draws, Space
from convoscope.interrupts import unbroken
from convoscope.network import Network
from convoscope.synthesis.dream_picture import at_once, codes, full_size
from convoscope.synthesis.dream_result import Dream
from convoscope.synthesis.dream_state import State, digest
from convoscope.synthesis.dream_tiles import Axis, Slopes, axis, leveled, resized
from convoscope.targets import Layer, Target
from convoscope.targets.features import BestMatch
from convoscope.targets.text import read_target

Watch = Callable[[int, Tensor], None]
EVERY = 5.0  # seconds between two states written to the store
SMALL = 256  # pixels of the longer side of a picture kept on the way
LEAST = 16  # pixels of the shorter side of an octave


def dream(
    network: Network | nn.Module, picture: Any, target: Target | int | str | None = None, *, octaves: int = 4,
    scale: float = 1.4, steps: int = 10, rate: float = 1.5 / 255, jitter: int = 32, bands: int = 4, tile: int | None = None,
    halo: int | None = None, guide: Any = None, size: int | None = None, seed: int = 0, batch_size: int | str = "auto",
    progress: Any = None, watch: Watch | None = None, store: str | Path | None = None,
) -> Dream:  # fmt: skip
    """The picture, changed until the target sees more of what it sees in it (Mordvintsev, Olah and Tyka 2015).

    From small to large, `octaves` sizes of the picture by the factor `scale`: at each, what was dreamt at the last is added
    and `steps` steps are taken that change a pixel by `rate` on average (pixels are 0..1). Each step sees the picture moved
    by up to `jitter` pixels; a gradient is evened out over `bands` octaves of fineness (1: taken as it is).

    `target` is any Target, one in words such as "layer3" (its energy), "layer4:42" or "tabby", or None: the energy of the last
    layer with rows and columns. With a `guide`, a second picture, each place of the layer is drawn to what matches it best in
    the guide's.

    The picture may be of any size, and keeps it, unless `size` says how long its longer side is to be. It is seen through
    windows of at most `tile` pixels a side (default 512, or the network's own size where it takes no other), of which `halo`
    at each side are only looked at; memory depends on them, not on the picture. Beyond its borders it goes on as in a mirror.

    `watch(step, pixels)` is shown the picture on the way. `store` is a folder that keeps the state: the same call goes on
    where it was interrupted, with the same result to the bit.
    """
    network = network if isinstance(network, Network) else Network(network)
    _check(octaves=octaves, steps=steps, bands=bands)
    if not scale > 1 or not rate > 0 or jitter < 0:
        raise UsageError(f"scale is above 1, rate above 0, jitter at least 0; got {scale}, {rate} and {jitter}")
    began = time.perf_counter()
    pixels = full_size(network, picture, size)
    with undisturbed(network.plain):
        aim = _aim(network, target, guide, pixels)
        tile, halo, exact = _windows(network, aim, tile, halo, jitter, pixels)
        run = _Run(network, pixels, aim, _sizes(pixels, octaves, scale), steps, rate, jitter, bands, tile, halo, exact, seed)
        run.batch_size = at_once(network, (tile, tile)) if batch_size == "auto" else int(batch_size)
        run.progress, run.watch = progress, watch
        made = run.go(None if store is None else Path(store))
    settings = {
        "target": aim.to_dict() if guide is None else {"kind": "target", "name": aim.name, "layer": aim.addresses()[0]},
        "octaves": octaves, "scale": scale, "steps": steps, "rate": rate, "jitter": jitter, "bands": bands, "tile": tile,
        "halo": halo, "guide": guide is not None, "size": size, "seed": seed,
    }  # fmt: skip
    diagnostics = {"seconds": time.perf_counter() - began, "evaluations": run.evaluations, "octave sizes": run.sizes}
    return Dream(network, aim, made.cpu(), pixels.cpu(), run.history, run.frames, settings, diagnostics)


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name} is {value!r}; expected a whole number of at least 1")


def _sizes(pixels: Tensor, octaves: int, scale: float) -> list[tuple[int, int]]:
    """Height and width of each octave, from small to large; those too small to show anything are left out."""
    height, width = pixels.shape[2:]
    found = [(max(1, round(height / scale**k)), max(1, round(width / scale**k))) for k in range(octaves)]
    return [s for k, s in enumerate(found) if k == 0 or min(s) >= LEAST][::-1]


def _aim(network: Network, target: Any, guide: Any, pixels: Tensor) -> Target:
    """The target of a window: nothing open, and drawn to the guide where there is one."""
    if target is None:
        layer = network.trace(network.normalize(_seen(network, pixels))).last_spatial()
        if layer is None:
            raise UsageError(f"{network.name} makes no tensor with rows and columns; name a target")
        target = Layer(layer)
    if isinstance(target, str):
        target = read_target(target, network.categories, {name for name, _ in network.plain.named_modules() if name})
    found = network.target(target)
    if guide is not None:
        layer = getattr(found, "layer", None)
        if layer is None:
            raise UsageError(f"a guide needs the layer whose features are matched, such as 'layer3'; got {found}")
        whole = codes(network, network.normalize(_seen(network, full_size(network, guide))), [layer])[layer]
        if whole.dim() != 4:
            raise UsageError(f"a guide is matched place by place; {layer!r} has shape {tuple(whole.shape[1:])}")
        return BestMatch(layer, whole[0].flatten(1))
    if found.open:
        from convoscope.core.record import Activations

        seen = codes(network, network.normalize(_seen(network, pixels)), found.addresses())
        found = found.resolve(Activations.of(seen, torch.zeros(1, dtype=torch.long)))
    return found


def _seen(network: Network, pixels: Tensor, most: int = 384) -> Tensor:
    """A picture at a size the network takes in one go."""
    from convoscope.data.tensors import fit

    scale = most / max(pixels.shape[2:])
    if network.size is not None:
        pixels = fit(pixels, network.size)
    elif scale < 1:
        pixels = resized(pixels, (max(1, round(pixels.shape[2] * scale)), max(1, round(pixels.shape[3] * scale))))
    return pixels.to(network.device, network.dtype)


def _windows(
    network: Network, target: Target, tile: int | None, halo: int | None, jitter: int, pixels: Tensor
) -> tuple[int, int, bool]:
    """Side and halo of windows, and whether the network takes windows of this side only."""
    exact = False
    if network.size is not None and not _takes_any(network, target):
        if tile not in (None, network.size[0]) or network.size[0] != network.size[1]:
            raise UsageError(f"{network.name} takes {network.size[0]} x {network.size[1]} for this target; leave the tile out")
        tile, exact = network.size[0], True
    tile = 512 if tile is None else tile
    halo = min(48, tile // 8) if halo is None else halo
    if tile - 2 * halo < 1 or halo < 0:
        raise UsageError(f"a window of {tile} pixels has nothing between two halos of {halo}; use a larger tile")
    return tile, halo, exact


def _takes_any(network: Network, target: Target) -> bool:
    """Whether a run up to the target takes pictures of another size than the network's."""
    size = [n + 32 for n in network.size or (0, 0)]
    try:
        codes(network, torch.zeros(1, network.channels, *size, device=network.device, dtype=network.dtype), target.addresses())
    except ConvoscopeError:
        raise
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


@dataclass
class _Run:
    """The picture on its way through the octaves."""

    network: Network
    picture: Tensor
    target: Target
    sizes: list[tuple[int, int]]
    steps: int
    rate: float
    jitter: int
    bands: int
    tile: int
    halo: int
    exact: bool
    seed: int
    batch_size: int = 1
    progress: Any = None
    watch: Watch | None = None
    octave: int = 0
    step: int = 0
    evaluations: int = 0
    whole: bool = True
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))
    history: list[float] = field(default_factory=list)
    frames: list[tuple[str, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def go(self, store: Path | None) -> Tensor:
        """From the first octave, or from the state in the store, to the last."""
        self.pixels = resized(self.picture, self.sizes[0]).clone()
        state = State(store, self._said()) if store is not None else None
        saved = time.monotonic()
        if state is None or not self._resume(state):
            self._keep_frame()
        try:
            while not self._done():
                if self.step == self.steps:
                    self._next_octave()
                self._step()
                if state and time.monotonic() - saved > EVERY:
                    self._save(state)
                    saved = time.monotonic()
        except BaseException:
            if state and self.whole:
                self._save(state)
            raise
        if state:
            self._save(state)
        return self.pixels

    def _said(self) -> dict[str, Any]:
        """What the result depends on."""
        return {
            "network": self.network.hash, "input": [self.network.mean, self.network.std], "picture": digest(self.picture),
            "target": self.target.to_dict(), "sizes": self.sizes, "steps": self.steps, "rate": self.rate,
            "jitter": self.jitter, "bands": self.bands, "tile": self.tile, "halo": self.halo, "exact": self.exact,
            "seed": self.seed, "batch": self.batch_size, "where": [str(self.picture.dtype), self.picture.device.type],
        }  # fmt: skip

    def _save(self, state: State) -> None:
        frames = {f"frame.{k}.{name}": frame for k, (name, frame) in enumerate(self.frames)}
        history = torch.tensor(self.history, dtype=torch.float64)
        done = {"octave": self.octave, "step": self.step, "evaluations": self.evaluations}
        state.save({"pixels": self.pixels, "history": history, **frames}, **done)

    def _resume(self, state: State) -> bool:
        found = state.load()
        if found is None:
            return False
        tensors, done = found
        self.pixels, self.history = tensors["pixels"].to(self.picture), tensors["history"].tolist()
        keys = sorted((k for k in tensors if k.startswith("frame.")), key=lambda k: int(k.split(".")[1]))
        self.frames = [(key.split(".", 2)[2], tensors[key]) for key in keys]
        self.octave, self.step, self.evaluations = (done[k] for k in ("octave", "step", "evaluations"))
        return True

    def _done(self) -> bool:
        return self.octave == len(self.sizes) - 1 and self.step == self.steps

    def _next_octave(self) -> None:
        """What was dreamt so far, enlarged and laid over the next size of the picture."""
        with unbroken():
            self.whole = False
            size = self.sizes[self.octave + 1]
            dreamt = self.pixels.sub_(resized(self.picture, self.sizes[self.octave]))
            dreamt = resized(dreamt, size)
            self.pixels = resized(self.picture, size).add(dreamt).clamp_(0, 1)
            self.octave, self.step = self.octave + 1, 0
            self.whole = True

    def _step(self) -> None:
        slopes = Slopes(self.network, self.target, self.batch_size, self._count)
        axes = self._axes()
        slope, score = slopes(self.pixels, axes, self._shifts(axes))
        leveled(slope, self.bands)
        mean = torch.linalg.vector_norm(slope, 1) / slope.numel()
        scale = self.rate / mean.clamp(min=torch.finfo(slope.dtype).tiny)
        with unbroken():
            self.whole = False  # an error from here on leaves half a step, which is not to be kept
            self.pixels.add_(slope.mul_(scale)).clamp_(0, 1)
            self.history.append(score)
            self.step += 1
            self.whole = True
        done, total = self.octave * self.steps + self.step, len(self.sizes) * self.steps
        if self.step == self.steps:
            self._keep_frame()
        if self.progress is not None:
            self.progress(done, total)
        if self.watch is not None:
            self.watch(done, self.pixels)

    def _axes(self) -> tuple[Axis, Axis]:
        y, x = (axis(n, self.tile, self.halo, min(self.jitter, n), self.exact) for n in self.pixels.shape[2:])
        return y, x

    def _shifts(self, axes: tuple[Axis, Axis]) -> tuple[int, int]:
        space = Space(1, (1, 1), torch.device("cpu"), torch.float64)
        y, x = Draws(self.seed, ((0,),), space).uniform((2,), ("shift", self.octave, self.step))[0].tolist()
        return int(y * (axes[0].room + 1)), int(x * (axes[1].room + 1))

    def _count(self, windows: int) -> None:
        self.evaluations += windows

    def _keep_frame(self) -> None:
        scale = min(1.0, SMALL / max(self.pixels.shape[2:]))
        small = resized(self.pixels, tuple(max(1, round(n * scale)) for n in self.pixels.shape[2:]))  # type: ignore[arg-type]
        name = " x ".join(map(str, reversed(self.pixels.shape[2:]))) if self.history else "start"
        self.frames.append((name, small.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()))
