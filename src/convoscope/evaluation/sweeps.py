"""What becomes of the target as pixels are taken away in order of relevance: one queue of images and steps for all methods."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.evaluation.base import Case, digest, ranks
from convoscope.targets import Target


@dataclass(frozen=True)
class Removal:
    """The target `(methods, images, steps + 1)` after 0, 1, ... `steps` equal shares of the pixels are gone, in float64."""

    curve: Float[Tensor, "methods images points"]

    @property
    def area(self) -> Float[Tensor, "methods images"]:
        """The mean height of the curve over the fraction removed, by trapezoids: independent of the number of steps."""
        return torch.trapezoid(self.curve, dim=-1) / (self.curve.shape[-1] - 1)


def removal(case: Case, most_relevant_first: bool, fill: object, steps: int, target: Target) -> Removal:
    """Pixels replaced by `fill` step by step, the most relevant first (MoRF) or the least (LeRF; Samek et al. 2017).

    Shown the other way round, the least relevant first is insertion: step k of the one is step `steps - k` of the other.
    """
    pixels = case.maps[0, 0].numel()
    if steps < 1 or steps > pixels:
        raise UsageError(f"steps is {steps}; expected 1 to the number of pixels, {pixels}")
    key = ("removal", most_relevant_first, fill if not isinstance(fill, Tensor) else id(fill), steps, target)
    return case.once(key, lambda: Removal(_removal(case, most_relevant_first, fill, steps, target)))


def _removal(case: Case, most: bool, fill: object, steps: int, target: Target) -> Tensor:
    places = case.once("ranks", lambda: ranks(case.maps))
    pixels, base = places.shape[-1], case.fill(fill)
    if not most:
        places = pixels - 1 - places
    found = torch.empty(*places.shape[:2], steps + 1, dtype=torch.float64)
    found[..., 0] = case.clean(target).cpu()
    found[..., -1] = _blank(case, fill, base, target).cpu()
    removed = removed_after(steps, pixels)
    for (methods, image), values in _queue(case, places, base, removed[1:-1], target):
        found[methods, image, 1:-1] = values
    return found


def removed_after(steps: int, pixels: int) -> Int64[Tensor, " points"]:
    """How many pixels are gone after each step: shares as equal as whole pixels can be, and the same from both ends."""
    k = torch.arange(steps + 1)
    half = (2 * k * pixels + steps) // (2 * steps)  # rounded half up
    mirrored = pixels - half.flip(0)
    return torch.where(2 * k <= steps, half, mirrored)


def _blank(case: Case, fill: object, base: Tensor, target: Target) -> Tensor:
    key = ("blank", fill if not isinstance(fill, Tensor) else id(fill), target)
    return case.once(key, lambda: case.scores(base, torch.arange(len(base)), target))


def _queue(
    case: Case, places: Tensor, base: Tensor, removed: Tensor, target: Target
) -> Iterator[tuple[tuple[list[int], int], Tensor]]:
    """The scores of each distinct order of an image's pixels, with the methods that have it."""
    for image in range(places.shape[1]):
        same: dict[bytes, list[int]] = {}
        for method in range(places.shape[0]):
            same.setdefault(digest(places[method, image]), []).append(method)
        for methods in same.values():
            yield (methods, image), _along(case, places[methods[0], image], image, base, removed, target)


def _along(case: Case, places: Tensor, image: int, base: Tensor, removed: Tensor, target: Target) -> Tensor:
    x, blank = case.x[image], base[image]
    places = places.view(1, 1, *x.shape[1:]).to(x.device)
    out = []
    for counts in removed.split(case.batch_size):
        gone = places < counts.view(-1, 1, 1, 1).to(x.device)
        rows = torch.where(gone, blank, x)
        out.append(case.scores(rows, torch.full((len(counts),), image), target).cpu())
    return torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)
