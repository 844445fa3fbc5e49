"""FunnyBirds' protocols for a network and methods of your own, on any pictures whose parts can be taken away."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.data.parts import PartPictures
from convoscope.evaluation import tables
from convoscope.evaluation.base import seeded
from convoscope.evaluation.bench import birds_protocols as protocols
from convoscope.evaluation.bench.base import Mapper
from convoscope.evaluation.bench.birds_truth import Bird, of_picture
from convoscope.evaluation.nulls import NULLS
from convoscope.evaluation.statistics import RESAMPLES
from convoscope.method import Method, explain, method_of
from convoscope.network import Images, Network
from convoscope.targets import Logit, Target

AT_ONCE = 8  # pictures whose maps are held
OF_MAPS = ("CSDC", "PC", "DC", "D", "SD", "TS", "balanced")
DIMENSIONS = ("completeness", "correctness", "contrastivity", "mean")


@dataclass(frozen=True, repr=False)
class BirdsResult:
    """What the protocols say, picture by picture; NaN where a picture has no answer.

    `of_maps` are `(methods, protocols, pictures)` for CSDC, PC, DC, D, SD and TS, all 0..1, higher is better, and for
    "balanced", which is SD without what size explains. `right` says of each picture whether the network knows it (A),
    `independent` what share of its surroundings it does without (BI).
    `thresholds` are those from which on a thing counted as marked, `(methods, pictures)`. `left_out`: why a method is missing.
    """

    names: tuple[str, ...]
    of_maps: Float[Tensor, "methods protocols pictures"]
    right: Float[Tensor, " pictures"]
    independent: Float[Tensor, " pictures"]
    thresholds: Float[Tensor, "methods pictures"]
    left_out: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    data: str = ""
    as_published: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        return f"BirdsResult({len(self.names)} methods on {len(self.right)} pictures of {self.data}, {self.network})"

    @property
    def accuracy(self) -> float:
        """A: the share of the pictures whose class the network knows."""
        return float(self.right.mean())

    @property
    def background_independence(self) -> float:
        """BI: the share of the surroundings that the network does without, the mean over pictures."""
        return float(self.independent.nanmean())

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method: every protocol, the three dimensions of the paper, their mean, and its 95 % interval.

        Completeness is the mean of D and of the mean of CSDC, PC and DC; correctness is SD, contrastivity TS. "balanced" is
        ours, and no part of the mean.
        """
        pictures, rows = self.of_maps.shape[-1], []
        drawn = torch.randint(pictures, (RESAMPLES, pictures), generator=seeded(self.seed, "bootstrap"))
        edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
        for name, scores in zip(self.names, self.of_maps, strict=True):
            found = dict(zip(OF_MAPS, scores.nanmean(1).tolist(), strict=True))
            found |= dict(zip(DIMENSIONS, dimensions(scores.nanmean(1)).tolist(), strict=True))
            low, high = dimensions(scores[:, drawn].nanmean(-1))[-1].nanquantile(edges).tolist()
            rows.append({"method": name, **found, "low": low, "high": high})
        return rows

    def table(self) -> Any:
        """The rows as a pandas DataFrame. Raises UsageError without pandas."""
        return tables.frame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """The rows and what they were computed on, as JSON values."""
        rows = tables.plain(self.rows())
        return {
            "network": self.network, "data": self.data, "pictures": len(self.right), "accuracy": self.accuracy,
            "background_independence": self.background_independence, "rows": rows, "left_out": dict(self.left_out),
            "as_published": self.as_published, "seed": self.seed,
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Writes the rows as `.csv`, or all of `to_dict` as `.json`; the file is whole or absent."""
        return tables.save(path, self)


def dimensions(means: Float[Tensor, " protocols *some"]) -> Float[Tensor, " dimensions *some"]:
    """Completeness, correctness, contrastivity and the mean of the three, from CSDC, PC, DC, D, SD and TS."""
    three = torch.stack([protocols.complete(means[:4]), means[4], means[5]])
    return torch.cat([three, three.nanmean(0, keepdim=True)])


def birds_protocols(
    network: Network | nn.Module, dataset: PartPictures, methods: Sequence[Method | str] = (), *,
    mappers: Mapping[str, Mapper] | None = None, nulls: Sequence[str] = ("random", "edges"), as_published: bool = False,
    batch_size: int | Literal["auto"] = "auto", seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> BirdsResult:  # fmt: skip
    """The eight protocols of FunnyBirds (Hesse et al. 2023), for the predicted class of each picture.

    `dataset` is `FunnyBirds`, or any data set whose parts can be taken away. `mappers` give maps of your own by name, called
    with (network, images, target, rows); "random" and "edges" are maps that know nothing. A part counts as marked where it
    holds more of a map than a threshold: one for the even rows, chosen on the odd ones, and the other way round.
    `as_published` does as the published evaluation: the one threshold that is best on the very pictures it is judged on, shares
    of the plain sum of a map, ties in TS lost. Raises UsageError for pictures without masks or without interventions.
    """
    network = network if isinstance(network, Network) else Network(network)
    if not isinstance(dataset, PartPictures):
        raise UsageError(f"the protocols need pictures whose parts can be taken away, such as FunnyBirds; got {dataset!r}")
    if len(dataset) < 2:
        raise UsageError(f"the protocols need two pictures or more; got {len(dataset)}")
    made = [method_of(m) for m in methods]
    who = {m.name: _explainer(m, batch_size, seed) for m in made} | dict(mappers or {}) | {n: _null(n, seed) for n in nulls}
    if len(who) != len(made) + len(mappers or {}) + len(nulls):
        raise UsageError(f"two maps have one name: {', '.join([*(m.name for m in made), *(mappers or {}), *nulls])}")
    run = _Run(network, who, as_published)
    for first in range(0, len(dataset), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, len(dataset)))
        run.add(rows, [of_picture(network, dataset, i) for i in rows])
        if progress is not None:
            progress(rows[-1] + 1, len(dataset))
    return run.result(dataset.name, seed)


class _Run:
    """What the protocols have said so far."""

    def __init__(self, network: Network, who: Mapping[str, Mapper], as_published: bool) -> None:
        self.network, self.who, self.plain = network, dict(who), as_published
        self.tables: dict[str, list[Tensor]] = {name: [] for name in who}  # (4, thresholds) of each picture
        self.others: dict[str, list[Tensor]] = {name: [] for name in who}  # SD, TS and balanced
        self.left_out: dict[str, str] = {}
        self.birds: list[tuple[float, float]] = []  # whether it is known, and how many surroundings it does without

    def add(self, rows: range, known: list[tuple[Images, Bird]]) -> None:
        """Some more pictures, by their rows in the data set."""
        birds = [b for _, b in known]
        if len({x.shape for x, _ in known}) > 1:
            raise UsageError("pictures of different sizes make no batch; give the Network a size")
        x = torch.cat([x for x, _ in known])
        pairs = [k for k, b in enumerate(birds) if b.contrast is not None]
        at = [*range(len(birds)), *(k for k in pairs for _ in (0, 1))]
        classes = [*(b.predicted for b in birds), *(c for k in pairs for c in birds[k].contrast.classes)]  # type: ignore[union-attr]
        for name, mapper in self.who.items():
            if name in self.left_out:
                continue
            try:
                maps = mapper(self.network, x[at], Logit(tuple(classes)), tuple(rows[k] for k in at))
            except UnsupportedError as error:
                self.left_out[name] = str(error)
                continue
            self._score(name, birds, maps[: len(birds)], dict(zip(pairs, maps[len(birds) :].split(2), strict=True)))
        self.birds += [(float(b.predicted == b.label), float(protocols.background_independence(b).mean())) for b in birds]

    def _score(self, name: str, birds: list[Bird], maps: Tensor, pairs: dict[int, Tensor]) -> None:
        for k, (bird, values) in enumerate(zip(birds, maps, strict=True)):
            self.tables[name].append(protocols.checks(bird, protocols.marked(values, bird, self.plain)))
            said = protocols.importances(values, bird)
            deleted, balanced = protocols.single_deletion(bird, said), protocols.balanced_deletion(bird, said)
            target = torch.tensor(torch.nan, dtype=torch.float64)
            if k in pairs:
                first, second = protocols.importances(pairs[k], bird)
                target = protocols.target_sensitivity(bird.contrast, first, second, 0.0 if self.plain else 0.5)  # type: ignore[arg-type]
            self.others[name].append(torch.stack([deleted, target, balanced]))

    def result(self, data: str, seed: int) -> BirdsResult:
        right, independent = torch.tensor(self.birds, dtype=torch.float64).T
        count = len(right)
        scores = torch.full((len(self.who), len(OF_MAPS), count), torch.nan, dtype=torch.float64)
        thresholds = torch.full((len(self.who), count), torch.nan, dtype=torch.float64)
        for k, name in enumerate(self.who):
            if name in self.left_out:
                continue
            table = torch.stack(self.tables[name], 1)  # (4, pictures, thresholds)
            chosen = self._chosen(table)
            scores[k, :4] = table.gather(2, chosen.expand(4, -1)[..., None])[..., 0]
            scores[k, 4:] = torch.stack(self.others[name], 1)
            thresholds[k] = protocols.THRESHOLDS[chosen]
        return BirdsResult(
            tuple(self.who), scores, right, independent, thresholds, self.left_out, self.network.name, data, self.plain, seed
        )

    def _chosen(self, table: Float[Tensor, "protocols pictures thresholds"]) -> Tensor:
        if not self.plain:
            return protocols.crossed(protocols.complete(table))
        return protocols.complete(table.nanmean(1)).argmax().expand(table.shape[1])


def _explainer(method: Method, batch_size: int | Literal["auto"], seed: int) -> Mapper:
    def mapper(network: Network, x: Images, target: Target, places: tuple[int, ...]) -> Tensor:
        made = explain(network, x, method, target, batch_size=batch_size, seed=seed, places=places)
        return made.heatmap().detach().cpu().double()

    return mapper


def _null(name: str, seed: int) -> Mapper:
    if name not in NULLS:
        raise UsageError(f"no null {name!r}; expected {', '.join(NULLS)}")
    return lambda network, x, target, places: NULLS[name](x, places, seed)
