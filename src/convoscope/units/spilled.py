"""Values of maps above a floor that rises, with their neighbors: what a second look at a few places of many maps needs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MOST = 1 << 20  # values beyond those known to stay, and as many times these, before all are looked at again
TIMES = 3


def where(mask: Bool[Tensor, "..."]) -> Int64[Tensor, " places"]:
    """Places of what is true, in order, in the flattened mask."""
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":  # NumPy's is several times as fast
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return flat.nonzero()[:, 0]


def near(mask: Bool[Tensor, "maps height width"]) -> Bool[Tensor, "maps height width"]:
    """Where the mask is true at a place or at one of its eight neighbors."""
    height, width = mask.shape[1:]
    flat = mask.reshape(-1)
    found = flat.clone()
    found[1:] |= flat[:-1]  # shifts of all maps at once are far faster than maps one by one: what got over an edge goes after
    found[:-1] |= flat[1:]
    rows = found.view(-1, width)
    if width > 1:
        whole = mask.view(-1, width)
        rows[:, 0] = whole[:, 0] | whole[:, 1]
        rows[:, -1] = whole[:, -1] | whole[:, -2]
    else:
        rows.copy_(mask.view(-1, 1))
    if height == 1:
        return found.view_as(mask)
    whole = found.clone()
    found[width:] |= whole[:-width]
    found[:-width] |= whole[width:]
    maps, before = found.view_as(mask), whole.view_as(mask)
    maps[:, 0] = before[:, 0] | before[:, 1]
    maps[:, -1] = before[:, -1] | before[:, -2]
    return maps


@dataclass
class _Batch:
    """What one batch of maps left: places among its values, and which images these are."""

    shape: torch.Size
    index: Int64[Tensor, " images"]
    places: Int64[Tensor, "cells"]
    levels: Float[Tensor, "cells"]

    def left(self, floor: Float[Tensor, " units"]) -> "_Batch":
        """What is above the floor, and around it."""
        _, units, height, width = self.shape
        above = torch.zeros(self.shape.numel(), dtype=torch.bool)
        above[self.places[self.levels > floor[self.places // (height * width) % units]].long()] = True
        stays = near(above.view(-1, height, width)).view(-1)[self.places.long()]
        return _Batch(self.shape, self.index, self.places[stays], self.levels[stays])

    def cells(self) -> Int64[Tensor, "cells"]:
        """((image * units + unit) * height + row) * width + column."""
        size, first, places = self.shape[1:].numel(), int(self.index[0]), self.places.long()
        if bool((self.index == torch.arange(first, first + len(self.index))).all()):
            return places + first * size
        return places + ((self.index - torch.arange(len(self.index))) * size)[places // size]


@dataclass
class Spilled:
    """Values above a floor and around them, on the CPU. What the floor has risen above goes, so that memory is bounded by what
    will stay, whatever came in."""

    cells: list[Tensor] = field(default_factory=list)
    levels: list[Tensor] = field(default_factory=list)
    batches: list[_Batch] = field(default_factory=list)
    count: int = 0  # of values in batches
    stays: int = 0  # of them, those that the last look left

    def add(self, maps: Float[Tensor, "images units height width"], above: Tensor, index: Tensor, floor: Tensor) -> None:
        """Take in what is above in a batch of maps."""
        places = where(near(above.flatten(0, 1)))
        levels = maps.reshape(-1)[places] + 0.0  # no negative zero
        if len(places) or not self.batches:  # of no values too there is a type
            narrow = torch.int32 if maps.numel() < 1 << 31 else torch.int64
            self.batches.append(_Batch(maps.shape, index.cpu(), places.cpu().to(narrow), levels.cpu()))
            self.count += len(places)
        if self.count > MOST + (1 + TIMES) * self.stays:
            self._look(floor.cpu())

    def _look(self, floor: Tensor) -> None:
        self.batches = [batch.left(floor) for batch in self.batches]
        self.count = self.stays = sum(len(batch.places) for batch in self.batches)

    def settle(self, floor: Float[Tensor, " units"]) -> None:
        """Put together what stays."""
        self._look(floor.cpu())
        batches, size, at = self.batches[::-1], self.count, 0
        self.batches, self.count, self.stays = [], 0, 0
        cells, levels = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=batches[0].levels.dtype)
        while batches:  # each goes as soon as it is copied
            batch = batches.pop()
            here = slice(at, at := at + len(batch.places))
            cells[here], levels[here] = batch.cells(), batch.levels
        self.cells.append(cells)
        self.levels.append(levels)
