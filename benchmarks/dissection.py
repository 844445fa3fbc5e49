"""Thresholds and overlaps of a layer of 512 units of 7 x 7, ours beside the published algorithms.

    python -m benchmarks.dissection [--rounds 7] [--images 16] [--quick]

Overlaps: all start from the same activations, thresholds and labels, and end with the same three tables: pixels where a unit
is active and a concept is labeled, active pixels of each unit in pictures that can tell of a category, labeled pixels. Two are
written anew from the papers and from what their code does:

- the original (Bau et al. 2017): all units of a picture are upsampled, one bilinear spline each (SciPy's
  `RectBivariateSpline`), and thresholded; active units are stacked, unit numbers in as many sheets as units overlap; every
  sheet is combined with every layer of labels, and one `bincount` counts units x concepts. Areas by the paper's rule.
- NetDissect-Lite: units that stay below their threshold in a picture are skipped, the others are resized by Pillow, one by
  one, and the labels below their active pixels are counted by `bincount`. Areas by its own rule ("overlap").

Ours (`Labels.of`, `Placing.above`, `Tally.add`) is timed with either rule, preparing the labels included. All three anchor maps
alike. Activations are rounded to multiples of 2 ** -8 and each unit is 16 pixels apart, so that every way of computing a
bilinear value gives exactly that value: counts must be identical to the last pixel, which is checked before anything is timed.

Thresholds: the exact tail of a data set that arrives in batches (`Tail`) beside sorting all values of every unit, which is what
the original does; they must be equal.

Rounds are paired: each runs everything, one after the other, and ratios are medians over rounds of the ratio within a round.
Times are processor time of one thread. The original runs on fewer pictures; all numbers are per picture.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convoscope.core.statistic import Samples
from convoscope.units.tail import Tail
from convoscope.units.tally import Area, Labels, Tally
from convoscope.units.upsampling import Placing

UNITS, GRID, SIZE, LAYERS, CONCEPTS, CATEGORIES = 512, 7, 112, 4, 1197, 6
LITE, ORIGINAL = 5.0, 100.0  # how many times faster ours is to be
FEW, LONG = 2, 512  # pictures of the original, pictures that thresholds are taken of
PLACING = Placing.of((GRID, GRID), (SIZE, SIZE), anchor="tiles")


@dataclass(frozen=True)
class Case:
    """Activations (images, units, 7, 7), labels (images, layers, 112, 112), thresholds (units,), category of each concept."""

    maps: Tensor
    labels: Tensor
    thresholds: Tensor
    category: Tensor

    def first(self, images: int) -> "Case":
        """The same of fewer images."""
        return Case(self.maps[:images], self.labels[:images], self.thresholds, self.category)


@dataclass(frozen=True)
class Tables:
    """What is counted: (units, concepts), (units, categories), (concepts,)."""

    both: np.ndarray
    area: np.ndarray
    label: np.ndarray

    @classmethod
    def empty(cls) -> "Tables":
        return cls(*(np.zeros(shape, np.int64) for shape in ((UNITS, CONCEPTS), (UNITS, CATEGORIES), (CONCEPTS,))))

    def same(self, tally: Tally) -> bool:
        """Whether every count is that of a tally."""
        found = (tally.both, tally.area, tally.label)
        pairs = zip((self.both, self.area, self.label), found, strict=True)
        return all(np.array_equal(mine, theirs.sum(0).numpy()) for mine, theirs in pairs)


def make(images: int, seed: int = 0) -> Case:
    """Rectified noise that differs between pictures as much as between places, and labels in patches."""
    random = torch.Generator().manual_seed(seed)
    maps = activations(images, random)
    values = maps.transpose(0, 1).flatten(1)
    thresholds = values.sort(1, descending=True).values[:, int(0.005 * values.shape[1])]
    category = torch.arange(CONCEPTS) % CATEGORIES
    patch = torch.rand(images, LAYERS, 3, GRID, GRID, generator=random).argmax(2)
    names = torch.randint(1, CONCEPTS + 1, (images, LAYERS, 3), generator=random)
    names[:, 1:, 0] = 0  # parts of most layers are unlabeled
    for layer in range(1, LAYERS):  # no concept in two layers
        again = (names[:, layer, :, None] == names[:, :layer].flatten(1)[:, None]).any(2)
        names[:, layer][again] = 0
    labels = names.gather(2, patch.flatten(2)).view(images, LAYERS, GRID, GRID)
    return Case(maps, labels.repeat_interleave(16, 2).repeat_interleave(16, 3).int(), thresholds, category)


def activations(images: int, random: torch.Generator) -> Tensor:
    """Of one batch."""
    maps = torch.randn(images, UNITS, GRID, GRID, generator=random) + torch.randn(images, UNITS, 1, 1, generator=random)
    return ((maps * 256).round() / 256).clamp(min=0)


def ours(case: Case, tally: Tally) -> None:
    """Only gaps with a unit above its threshold are interpolated, for all units and pictures at once."""
    images = len(case.maps)
    which, pixels = PLACING.above(case.maps.flatten(0, 1), case.thresholds.repeat(images))
    pictures = which // UNITS
    tally.add(which - pictures * UNITS, pictures, pixels, Labels.of(case.labels), torch.zeros(images, dtype=torch.int64))


def lite(case: Case, tables: Tables) -> None:
    """NetDissect-Lite, unit by unit."""
    from PIL import Image

    maps, labels, thresholds, member = case.maps.numpy(), case.labels.numpy(), case.thresholds.numpy(), _member(case)
    for image in range(len(maps)):
        counts = np.bincount(labels[image].reshape(-1), minlength=CONCEPTS + 1)
        tables.label[:] += counts[1:]
        for unit in range(UNITS):
            if maps[image, unit].max() <= thresholds[unit]:
                continue
            large = np.asarray(Image.fromarray(maps[image, unit]).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            active = np.argwhere(large > thresholds[unit])
            found = np.bincount(labels[image][:, active[:, 0], active[:, 1]].reshape(-1))
            found[:1] = 0
            told = np.dot(found[None], member[: len(found)])[0] > 0
            tables.both[unit, : max(len(found) - 1, 0)] += found[1:]
            tables.area[unit] += len(active) * told


def original(case: Case, tables: Tables) -> None:
    """The original, picture by picture."""
    from scipy.interpolate import RectBivariateSpline

    maps, labels, thresholds, member = case.maps.numpy(), case.labels.numpy(), case.thresholds.numpy(), _member(case)
    step = SIZE / GRID
    centers, pixels = np.arange(GRID) * step + (step - 1) / 2, np.arange(SIZE)
    for image in range(len(maps)):
        large = np.empty((UNITS, SIZE, SIZE), np.float32)
        for unit in range(UNITS):
            spline = RectBivariateSpline(centers, centers, maps[image, unit], kx=1, ky=1)
            large[unit] = spline(pixels, pixels, grid=True)
        masks = large > thresholds[:, None, None]
        areas = masks.sum((1, 2))
        sheets = _sheets(masks, areas.nonzero()[0])
        counts = np.bincount(labels[image].reshape(-1), minlength=CONCEPTS + 1)
        pairs = sheets.astype(np.int64)[:, None] * (CONCEPTS + 1) + labels[image].reshape(1, LAYERS, -1)
        found = np.bincount(pairs.reshape(-1), minlength=(UNITS + 1) * (CONCEPTS + 1)).reshape(UNITS + 1, CONCEPTS + 1)
        tables.both[:] += found[1:, 1:]
        tables.label[:] += counts[1:]
        tables.area[:] += areas[:, None] * (member[1:].T @ counts[1:] > 0)


def _sheets(masks: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Numbers from 1 of the units active at each pixel, moved up: (sheets, pixels), 0 where there are no more."""
    numbered = masks[units].reshape(len(units), -1) * (units + 1)[:, None]
    pixel, row = numbered.T.nonzero()
    count = np.bincount(pixel, minlength=numbered.shape[1])
    place = np.arange(len(pixel)) - (count.cumsum() - count)[pixel]
    sheets = np.zeros((max(int(count.max()), 1), numbered.shape[1]), numbered.dtype)
    sheets[place, pixel] = numbered[row, pixel]
    return sheets


def _member(case: Case) -> np.ndarray:
    """(concepts + 1, categories): which category a label is of."""
    member = np.zeros((CONCEPTS + 1, CATEGORIES), np.int64)
    member[np.arange(1, CONCEPTS + 1), case.category.numpy()] = 1
    return member


def spent(run: Callable[[], object], pictures: int) -> float:
    """Milliseconds of processor time per picture."""
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start) / pictures


def thresholds(pictures: int, rounds: int) -> tuple[list[float], list[float], bool]:
    """Milliseconds per picture of the tail and of sorting, and whether they agree."""
    random = torch.Generator().manual_seed(1)
    batches = [activations(16, random) for _ in range(pictures // 16)]
    classes, mine, theirs, equal = torch.full((16,), -1), [], [], True
    for _ in range(rounds):
        tail = Tail(fraction=0.005)

        def fold(tail: Tail = tail) -> None:
            for k, batch in enumerate(batches):
                tail.update(batch, Samples(torch.arange(16) + 16 * k, batch[:, :1], classes, pictures))
            tail.value()

        mine.append(spent(fold, pictures))
        whole = torch.cat(batches).transpose(0, 1).flatten(1).numpy()
        found: list[np.ndarray] = []
        theirs.append(spent(lambda found=found, whole=whole: found.append(np.sort(whole, 1)), pictures))
        equal &= np.array_equal(found[0][:, -1 - int(0.005 * whole.shape[1])], tail.value().value.numpy())
    return mine, theirs, equal


def overlaps(case: Case, rounds: int) -> dict[str, tuple[list[float], list[float], bool]]:
    """For each published algorithm its milliseconds, ours by the same rule of areas, and whether all counts are the same."""
    few, found = case.first(FEW), {}
    for name, run, part, rule in (("NetDissect-Lite", lite, case, "overlap"), ("original", original, few, "category")):
        tables, tally = Tables.empty(), _tally(case, rule)  # type: ignore[arg-type]
        run(part, tables)
        ours(part, tally)
        found[name] = ([], [], tables.same(tally))
    big, wide = Tables.empty(), {rule: _tally(case, rule) for rule in ("overlap", "category")}  # type: ignore[arg-type]
    for _ in range(rounds):
        for name, run, part, rule in (("NetDissect-Lite", lite, case, "overlap"), ("original", original, few, "category")):
            found[name][0].append(spent(lambda run=run, part=part: run(part, big), len(part.maps)))
            found[name][1].append(spent(lambda rule=rule: ours(case, wide[rule]), len(case.maps)))
    return found


def _tally(case: Case, rule: Area) -> Tally:
    return Tally(UNITS, case.category, CATEGORIES, rule)


def main(words: list[str] | None = None) -> int:
    """Print the table; 1 where a count differs or a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dissection", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="one round on few pictures: that it runs, and counts the same")
    given = parser.parse_args(words)
    rounds, images, long = (1, 4, 32) if given.quick else (given.rounds, max(given.images, FEW), LONG)
    torch.set_num_threads(1)
    case = make(max(images, 16)).first(images)  # thresholds need some pictures
    active = float((case.maps.amax((2, 3)) > case.thresholds).float().mean())
    print(f"{UNITS} units of {GRID} x {GRID} over {SIZE} x {SIZE} pixels, {LAYERS} layers of labels, {CONCEPTS} concepts; "
          f"{100 * active:.1f} % of units active in a picture; {rounds} rounds of {images} pictures")  # fmt: skip
    print(f"{'':28}  ms/picture    ours   ratio  goal  result")
    missed = False
    lines = [(f"overlaps, {name}", *found, LITE if name != "original" else ORIGINAL, "counts")
             for name, found in overlaps(case, rounds).items()]  # fmt: skip
    mine, theirs, equal = thresholds(long, min(rounds, 3))
    lines.append(("thresholds, sorting", theirs, mine, equal, 0.0, "values"))
    for name, theirs, mine, right, goal, what in lines:
        ratio = statistics.median(a / b for a, b in zip(theirs, mine, strict=True))
        missed |= not right or (not given.quick and ratio < goal)
        goals = f"{goal:4.0f}" if goal else "    "
        said = f"identical {what}" if right else f"DIFFERENT {what}"
        print(f"{name:28}  {statistics.median(theirs):10.2f}  {statistics.median(mine):6.2f}  {ratio:6.1f}  {goals}  {said}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
