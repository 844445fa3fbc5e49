"""What becomes of the target as pixels are taken away in order of relevance: one queue of images and steps for all methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.evaluation.base import Case, digest, key_of, ranks
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
    key = ("removal", most_relevant_first, key_of(fill), steps, target)
    return case.once(key, lambda: Removal(_removal(case, most_relevant_first, fill, steps, target)))


def _removal(case: Case, most: bool, fill: object, steps: int, target: Target) -> Tensor:
    found = torch.empty(*case.maps.shape[:2], steps + 1, dtype=torch.float64)
    found[..., 0] = case.clean(target).cpu()
    found[..., -1] = _blank(case, fill, case.fill(fill), target).cpu()
    found[..., 1:-1] = left(case, most, fill, removed_after(steps, case.maps[0, 0].numel())[1:-1], target)
    return found


def left(
    case: Case, most_relevant_first: bool, fill: object, removed: Int64[Tensor, " steps"], target: Target
) -> Float[Tensor, "methods images steps"]:
    """The target after that many pixels of each map's order are gone; maps that rank alike are run once."""
    places = case.once("ranks", lambda: ranks(case.maps, _sorter(case.x)))
    counts = removed.to(torch.int32).to(case.x.device)
    orders = distinct(case, places)
    jobs = [(i, len(removed), _Order(places[m[0], i], counts, most_relevant_first, case.x)) for m, i in orders]
    found = torch.empty(*places.shape[:2], len(removed), dtype=torch.float64)
    for (methods, image), values in zip(orders, filled(case, case.fill(fill), jobs, target), strict=True):
        found[methods, image] = values
    return found


def removed_after(steps: int, pixels: int) -> Int64[Tensor, " points"]:
    """How many pixels are gone after each step: shares as equal as whole pixels can be, and the same from both ends."""
    k = torch.arange(steps + 1)
    half = (2 * k * pixels + steps) // (2 * steps)  # rounded half up
    mirrored = pixels - half.flip(0)
    return torch.where(2 * k <= steps, half, mirrored)


def filled(case: Case, base: Tensor, jobs: "Sequence[Job]", target: Target) -> list[Float[Tensor, " rows"]]:
    """The target of images with some of their pixels replaced by those of `base`, in one queue of full batches.

    A job is an image's number, how many versions of it there are, and what gives the masks `(some, height, width)` of some.
    """
    x, base = laid(case.x), laid(base)
    out, waiting, held = [], [], 0
    room = torch.empty((case.batch_size, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=_format(x))

    def run() -> None:
        rows = room[:held]  # the same memory for all batches
        for (image, masks), part in zip(waiting, rows.split([len(m) for _, m in waiting]), strict=True):
            torch.where(masks[:, None], base[image], x[image], out=part)
        images = torch.tensor([image for image, masks in waiting for _ in range(len(masks))])
        out.append(case.scores(rows, images, target).cpu())

    for image, count, masks in jobs:
        start = 0
        while start < count:
            some = range(start, min(count, start + case.batch_size - held))
            waiting.append((image, masks(some)))
            start, held = some.stop, held + len(some)
            if held >= case.batch_size:
                run()
                waiting, held = [], 0
    if waiting:
        run()
    return list((torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)).split([count for _, count, _ in jobs]))


Job = tuple[int, int, Callable[[range], Bool[Tensor, "rows height width"]]]


def laid(x: Tensor) -> Tensor:
    """Images in the order in which they are copied into batches fastest."""
    return x.contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.device.type == "cpu" and x.dim() == 4 else torch.contiguous_format


def _sorter(x: Tensor) -> torch.device:
    """Where maps in float64 are sorted."""
    return x.device if x.device.type == "cuda" else torch.device("cpu")


class _Order:
    """The masks of what is gone after each step of an order."""

    def __init__(self, places: Tensor, removed: Tensor, most: bool, x: Tensor) -> None:
        self.places, self.removed, self.most, self.x = places, removed, most, x

    def __call__(self, some: range) -> Tensor:
        places = self.places.to(self.x.device).view(1, *self.x.shape[2:])
        counts = self.removed[some.start : some.stop].view(-1, 1, 1)
        return places < counts if self.most else places >= places.numel() - counts


def _blank(case: Case, fill: object, base: Tensor, target: Target) -> Tensor:
    return case.once(("blank", key_of(fill), target), lambda: case.scores(base, torch.arange(len(base)), target))


def distinct(case: Case, places: Int32[Tensor, "methods images pixels"]) -> list[tuple[list[int], int]]:
    """Each distinct order of an image's pixels: the methods that have it, and the image."""
    return case.once("distinct", lambda: [(m, i) for i in range(places.shape[1]) for m in same(places[:, i])])


def same(rows: Int32[Tensor, "methods pixels"]) -> list[list[int]]:
    """The numbers of rows that are equal, together."""
    found: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(digest(row), []).append(number)
    return list(found.values())
