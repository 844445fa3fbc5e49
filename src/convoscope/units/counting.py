"""From the tails of a sweep and the labels of a data set to the labels of units."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.record import canonical
from convoscope.data.dataset import Concept, Dataset, segments_for
from convoscope.engine import Sweep
from convoscope.network import Network
from convoscope.units.chance import PICTURES, Chance, Points, chance
from convoscope.units.detectors import LayerLabels, Match, UnitLabel, place
from convoscope.units.tail import Tail, Thresholds
from convoscope.units.tally import Area, Labels, Tally
from convoscope.units.upsampling import Anchor, Placing

TOP, STRONGEST = 5, 9  # concepts and images listed for each unit
ACTIVE = 1 << 20  # active pixels of one layer held at once, about


@dataclass(frozen=True)
class Settings:
    """How units are labeled."""

    fraction: float
    iou: float
    area: Area
    anchor: Anchor
    nulls: tuple[str, ...]
    draws: int
    seed: int


@dataclass
class _Layer:
    """What is known of one layer so far."""

    address: str
    tail: Tail
    thresholds: Thresholds
    tally: Tally
    placing: Placing | None = None
    strongest: Tensor = field(default_factory=lambda: torch.empty(0))  # (units, STRONGEST), values falling
    images: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.tail.grid.tolist()
        return height, width

    @property
    def units(self) -> int:
        return len(self.thresholds.value)

    def active(self, cells: Tensor, levels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Active pixels (unit, picture, pixel) of pictures `rows`, from the spilled values of a shard in order."""
        places, (h, w) = self.grid[0] * self.grid[1], self.grid
        ends = torch.searchsorted(cells, torch.stack([rows[0], rows[-1] + 1]) * (self.units * places)).tolist()
        cells, levels = cells[ends[0] : ends[1]], levels[ends[0] : ends[1]]
        pairs, order = torch.unique_consecutive(cells // places, return_inverse=True)
        maps = levels.new_full((len(pairs), places), -torch.inf)
        maps[order, cells % places] = levels
        highest, thresholds = maps.amax(1), self.thresholds.value.cpu()[pairs % self.units]
        live = highest > thresholds
        pairs, thresholds = pairs[live], thresholds[live]
        units, pictures = pairs % self.units, torch.searchsorted(rows, pairs // self.units)
        self._note(units, rows[pictures], highest[live])
        assert self.placing is not None
        which, pixels = self.placing.above(maps[live].view(-1, h, w), thresholds)
        return units[which], pictures[which], pixels

    def _note(self, units: Tensor, images: Tensor, values: Tensor) -> None:
        """Keep the images with the strongest activations of each unit; of equal ones the first."""
        if not len(self.strongest):
            self.strongest = values.new_full((self.units, STRONGEST), -torch.inf)
            self.images = torch.full((self.units, STRONGEST), -1)
        here, column = images.unique(return_inverse=True)
        table = values.new_full((self.units, len(here)), -torch.inf)
        table[units, column] = values
        both = torch.sort(torch.cat([self.strongest, table], 1), dim=1, descending=True, stable=True)
        numbers = torch.cat([self.images, here.expand(self.units, -1)], 1)
        self.strongest = both.values[:, :STRONGEST]
        self.images = numbers.gather(1, both.indices[:, :STRONGEST])


def labeled_layers(
    network: Network, data: Dataset, sweep: Sweep, settings: Settings, progress: Callable[[int, int], None] | None
) -> dict[str, LayerLabels]:
    """The labels of all units, by address."""
    names = sorted({c.category for c in data.concepts}, key=place)
    category = torch.tensor([names.index(c.category) for c in data.concepts])
    layers = []
    for address in sweep.layers:
        tail = sweep[address, "tail"]
        thresholds = tail.value()
        layers.append(_Layer(address, tail, thresholds, Tally(len(thresholds.value), category, len(names), settings.area)))
    random = torch.Generator().manual_seed(settings.seed)
    half = torch.randperm(len(data), generator=random) % 2
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[torch.randperm(len(data), generator=random)[: PICTURES if settings.draws else 0]] = True
    points, done = None, 0
    for rows, shards, labels in _pictures(network, data, sweep, layers, settings):
        points = points or Points.of((labels.shape[2], labels.shape[3]), int(chosen.sum()))
        _count(layers, rows, shards, labels, half, chosen, points)
        done += len(rows)
        if progress is not None:
            progress(done, len(data))
    found = {}
    compared = points.stacked() if points is not None and points.labels else None
    for layer in layers:
        judged = None
        if settings.draws and points is not None and compared is not None:
            judged = chance(
                points, compared, layer.address, layer.units, category, len(names), settings.nulls, settings.draws,
                settings.iou, settings.seed,
            )  # fmt: skip
        found[layer.address] = _labeled(layer, data.concepts, names, settings, judged)
    return found


def _pictures(
    network: Network, data: Dataset, sweep: Sweep, layers: Sequence[_Layer], settings: Settings
) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]]:
    """Some pictures at a time: their numbers, the spilled values of each layer's shard, and the dense labels."""
    for shard in zip(*(sweep.shards(layer.address, "tail") for layer in layers), strict=True):
        if not shard[0].begun:  # none of its pictures could be read
            continue
        rows, spilled = shard[0].rows, []  # type: ignore[attr-defined]
        for tail in shard:
            order = tail.cells.argsort()  # type: ignore[attr-defined]
            spilled.append((tail.cells[order], tail.levels[order]))  # type: ignore[attr-defined]
        start = 0
        while start < len(rows):
            first = segments_for(network, data, int(rows[start]))
            size = (int(first.shape[1]), int(first.shape[2]))
            for layer in layers:
                _place(network, layer, size, settings.anchor)
            most = max(layer.units for layer in layers) * size[0] * size[1] * settings.fraction
            part = rows[start : start + max(1, min(64, int(ACTIVE / most)))]
            yield part, spilled, _stacked([first, *(segments_for(network, data, int(i)) for i in part[1:])], size)
            start += len(part)


def _place(network: Network, layer: _Layer, size: tuple[int, int], anchor: Anchor) -> None:
    if layer.placing is not None:
        return
    x = torch.zeros(1, network.channels, *size, device=network.device, dtype=network.dtype)
    field = network.trace(x).field_of(canonical(network.plain, layer.address))
    layer.placing = Placing.of(layer.grid, size, field, anchor)


def _stacked(labels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Labels of several pictures as one tensor; those with fewer layers have empty ones."""
    whole = torch.zeros(len(labels), max(len(found) for found in labels), *size, dtype=torch.int32)
    for picture, found in zip(whole, labels, strict=True):
        if tuple(found.shape[1:]) != size:
            raise UsageError(
                f"pictures of {size[0]} x {size[1]} and {found.shape[1]} x {found.shape[2]} pixels: dissection needs one size; "
                "give the network one"
            )
        picture[: len(found)] = found
    return whole


def _count(
    layers: Sequence[_Layer], rows: Tensor, spilled: list[tuple[Tensor, Tensor]], dense: Tensor, half: Tensor, chosen: Tensor,
    points: Points,
) -> None:  # fmt: skip
    labels = Labels.of(dense)
    numbers = torch.full((len(rows),), -1)
    for k in chosen[rows].nonzero()[:, 0].tolist():
        numbers[k] = points.take_labels(dense[k])
    for layer, (cells, levels) in zip(layers, spilled, strict=True):
        units, pictures, pixels = layer.active(cells, levels, rows)
        layer.tally.add(units, pictures, pixels, labels, half[rows])
        on = numbers[pictures] >= 0
        points.take_active(layer.address, units[on], numbers[pictures[on]], pixels[on])


def _labeled(
    layer: _Layer, concepts: Sequence[Concept], names: Sequence[str], settings: Settings, judged: Chance | None
) -> LayerLabels:
    whole, halves = layer.tally.iou(), [layer.tally.iou(h) for h in (0, 1)]
    best = [h.argmax(1) for h in halves]
    held_out = (halves[1].gather(1, best[0][:, None]) + halves[0].gather(1, best[1][:, None]))[:, 0] / 2
    order = torch.sort(whole, dim=1, descending=True, stable=True).indices[:, :TOP]
    of = torch.tensor([names.index(c.category) for c in concepts])
    per_category = [(c, (of == c).nonzero()[:, 0]) for c in range(len(names))]
    found, thresholds = [], layer.thresholds
    for u in range(layer.units):
        top = [Match(concepts[k].name, concepts[k].category, float(whole[u, k])) for k in order[u].tolist() if whole[u, k] > 0]
        best_of = []
        for c, members in per_category:
            k = int(members[whole[u, members].argmax()])
            p = None if judged is None else float(next(iter(judged.p_of.values()))[u, c])
            best_of += [Match(concepts[k].name, names[c], float(whole[u, k]), p)] if whole[u, k] > 0 else []
        first = top[0] if top else Match("", "", 0.0)
        found.append(UnitLabel(
            unit=u, label=first.label, category=first.category, iou=first.iou, held_out=float(held_out[u]),
            stable=bool(best[0][u] == best[1][u]), p={} if judged is None else {n: float(p[u]) for n, p in judged.p.items()},
            usual=None if judged is None or judged.usual is None else float(judged.usual[u]),
            threshold=float(thresholds.value[u]), exceedance=float(thresholds.exceedance[u]),
            note="dead" if thresholds.dead[u] else "sparse" if thresholds.sparse[u] else "", top=tuple(top),
            best_of=tuple(best_of), images=tuple(i for i in _row(layer.images, u) if i >= 0),
        ))  # fmt: skip
    shape = (layer.units, *layer.grid)
    anchor = layer.placing.anchor if layer.placing is not None else settings.anchor
    return LayerLabels(layer.address, shape, anchor, settings.iou, tuple(found), judged.detectors if judged is not None else {})


def _row(table: Tensor, unit: int) -> list[int]:
    return table[unit].tolist() if len(table) else []
