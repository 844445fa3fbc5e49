"""The gradient of a target over a picture of any size: window by window, each with some of what surrounds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.probe import Probe
from convoscope.core.session import Session
from convoscope.network import Network
from convoscope.targets import Target

Picture = Float[Tensor, "1 channels height width"]


@dataclass(frozen=True)
class Axis:
    """How an axis of `length` pixels is seen: `count` windows of `side` pixels, of which `halo` at each end are context.

    What is between the halos, the core, covers the axis once; `room` is how far the grid of cores can be shifted.
    """

    length: int
    side: int
    halo: int
    count: int

    @property
    def core(self) -> int:
        return self.side - 2 * self.halo

    @property
    def room(self) -> int:
        return self.count * self.core - self.length

    def windows(self, shift: int) -> Iterator[tuple[Tensor, slice, slice]]:
        """For each window: the pixels it shows, those of the axis that are its own, and where it has these."""
        for k in range(self.count):
            start = k * self.core - shift
            own = slice(max(0, start), min(self.length, start + self.core))
            if own.stop > own.start:
                first = start - self.halo
                shown = mirrored(torch.arange(first, first + self.side), self.length)
                yield shown, own, slice(own.start - first, own.stop - first)


def axis(length: int, tile: int, halo: int, jitter: int, exact: bool = False) -> Axis:
    """As few windows of at most `tile` pixels as cover an axis at every shift up to `jitter`; `exact`: of `tile` pixels."""
    core = tile - 2 * halo
    count = -(-(length + jitter) // core)
    return Axis(length, tile if exact else -(-(length + jitter) // count) + 2 * halo, halo, count)


def mirrored(places: Tensor, length: int) -> Tensor:
    """Places on an axis that goes on beyond its ends as in mirrors."""
    period = max(1, 2 * length - 2)
    places = places % period
    return torch.where(places < length, places, period - places)


@dataclass
class Slopes:
    """Gradients of a target with respect to pixels 0..1, in windows. `count` is told how many windows were run."""

    network: Network
    target: Target
    batch_size: int
    count: Callable[[int], None]

    def __call__(self, pixels: Picture, axes: tuple[Axis, Axis], shifts: tuple[int, int]) -> tuple[Picture, float]:
        """The gradient at each pixel in the window that owns it, and the mean of the target over windows.

        Only the gradient is as large as the picture; all else is as large as `batch_size` windows.
        """
        slope, scores = torch.zeros_like(pixels), []
        places = [
            (rows, columns)
            for rows in axes[0].windows(shifts[0])
            for columns in axes[1].windows(shifts[1])
        ]  # fmt: skip
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            shown = torch.cat([pixels[:, :, y[0].to(pixels.device)][:, :, :, x[0].to(pixels.device)] for y, x in part])
            found, score = self._of(shown)
            scores += score.tolist()
            for one, (y, x) in zip(found, part, strict=True):
                slope[0, :, y[1], x[1]] = one[:, y[2], x[2]].to(slope)
        return slope, sum(scores) / len(scores)

    def _of(self, shown: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        session = Session(network.plain, torch.empty(0), self.target, batch_size=self.batch_size, adaptive=True)
        session.head, session.progress = network.head, self.count
        probe = Probe(session, torch.zeros(len(shown), dtype=torch.long), tuple((n,) for n in range(len(shown))))
        with torch.enable_grad():
            base = shown.to(network.device, network.dtype).requires_grad_()
            x = network.normalize(base)
            gradient, score = probe.grad_and_score(x.detach())
            (gradient,) = torch.autograd.grad(x, base, gradient)
        return gradient.to(shown.device), score.double()


def leveled(slope: Picture, bands: int) -> Picture:
    """The gradient with as much in each of `bands` octaves of fineness (the pyramid of Mordvintsev et al. 2015).

    In place where it can be. What remains below the last band counts as one more.
    """
    if bands < 2 or min(slope.shape[2:]) < 4:
        return _unit(slope)
    size = slope.shape[2:]
    low = F.interpolate(slope, scale_factor=0.5, mode="bilinear", antialias=True, recompute_scale_factor=True)
    _add(slope, low, size, -1)
    _unit(slope)
    _add(slope, leveled(low, bands - 1), size, 1)
    return slope


def _add(slope: Tensor, low: Tensor, size: torch.Size, sign: int) -> None:
    """In place, channel by channel: a large picture has no room for more of its kind."""
    for channel in range(slope.shape[1]):
        part = slice(channel, channel + 1)
        slope[:, part].add_(F.interpolate(low[:, part], size, mode="bilinear"), alpha=sign)


def _unit(slope: Tensor) -> Tensor:
    deviation = torch.linalg.vector_norm(slope) / slope.numel() ** 0.5
    return slope.div_(deviation.clamp_(min=torch.finfo(slope.dtype).tiny))


def resized(pixels: Picture, size: tuple[int, int]) -> Picture:
    """Another size, without aliasing."""
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)
