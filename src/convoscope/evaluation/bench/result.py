"""What the benchmark with exact truth returns: every score, and tables that say how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.evaluation import tables
from convoscope.evaluation.base import seeded
from convoscope.evaluation.bench.base import Task
from convoscope.evaluation.bench.reliability import reliability
from convoscope.evaluation.statistics import RESAMPLES, adjusted, paired
from convoscope.method import Method
from convoscope.network import Images, Network
from convoscope.targets import Target

CONTROLS = {"oracle": "the right answer", "edges": "an edge detector", "random": "random maps"}
EDGES = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass
class Kept:
    """Pictures of a task, their targets, and the maps `(pictures, height, width)` of everybody who gave some, in float32."""

    network: Network
    x: Images
    target: Target
    by_name: dict[str, Float[Tensor, "pictures height width"]]

    @property
    def names(self) -> tuple[str, ...]:
        """Whose maps there are: methods, then the controls."""
        return tuple(self.by_name)

    @property
    def maps(self) -> Float[Tensor, "names pictures height width"]:
        """All maps."""
        return torch.stack(list(self.by_name.values()))


@dataclass
class Outcome:
    """The scores of everybody on one task, item by item; NaN for a method that refused, whose reason is in `reasons`.

    `chance` is the mean score of random maps on each item; `seconds` is how long each took.
    """

    task: Task
    names: tuple[str, ...]
    scores: Float[Tensor, "names items"]
    chance: Float[Tensor, " items"]
    reasons: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def skill(self) -> Float[Tensor, " names"]:
        """0 for chance, 1 for the right answer, -1 for the worst score there is.

        It is how much of the way the mean over items goes from chance to the right answer, or to the lower end of the range.
        """
        return self._skill(self.scores, self.chance)

    def reliability(self, seed: int = 0) -> float:
        """How sure the order of the methods is; see `convoscope.evaluation.bench.reliability`."""
        return reliability(self.scores[[i for i, n in enumerate(self.names) if n not in CONTROLS]], seed)

    def resampled(self, seed: int = 0) -> tuple[Float[Tensor, "names draws"], Float[Tensor, "names draws"]]:
        """Means and skills over items drawn with replacement; everybody's items are the same ones."""
        items = self.scores.shape[-1]
        drawn = torch.randint(items, (RESAMPLES, items), generator=seeded(seed, "bench", self.task.name))
        chosen = self.scores[:, drawn]
        return chosen.nanmean(-1), self._skill(chosen, self.chance[drawn].expand_as(chosen))

    def _skill(self, scores: Tensor, chance: Tensor) -> Tensor:
        known = torch.where(scores.isnan(), torch.nan, chance).nanmean(-1)
        gained = scores.nanmean(-1) - known
        down = (known - self.task.range[0]).clamp(min=torch.finfo(scores.dtype).tiny)
        return torch.where(gained < 0, gained / down, gained / (self.task.perfect - known))

    def rows(self, seed: int = 0) -> list[dict[str, Any]]:
        """One row for each name: mean and skill with 95 % bootstrap intervals, p, rank among methods, and why there are none.

        `p` says how likely so large a mean difference from random maps is by chance: signs of the differences of items flipped
        at random, Holm's correction made over all methods.
        """
        means, skills = self.resampled(seed)
        ends, skill_ends = means.nanquantile(EDGES, -1), skills.nanquantile(EDGES, -1)
        if self.scores.shape[-1] < 2:
            ends, skill_ends = torch.full_like(ends, torch.nan), torch.full_like(ends, torch.nan)
        own = [i for i, n in enumerate(self.names) if n != "random"]
        raw = torch.tensor([paired(self.scores[i], self.chance, seed) for i in own], dtype=torch.float64)
        p = dict(zip(own, adjusted(raw).tolist(), strict=True))
        ranks = _ranks(dict(zip(self.names, self.skill.tolist(), strict=True)))
        return [
            {
                "task": self.task.name, "method": name, "mean": float(self.scores[i].nanmean()), "low": float(ends[0, i]),
                "high": float(ends[1, i]), "skill": float(self.skill[i]), "skill_low": float(skill_ends[0, i]),
                "skill_high": float(skill_ends[1, i]), "p": p.get(i, float("nan")), "rank": ranks.get(name),
                "items": int((~self.scores[i].isnan()).sum()), "seconds": self.seconds.get(name, float("nan")),
                "reason": self.reasons.get(name, ""),
            }
            for i, name in enumerate(self.names)
        ]  # fmt: skip


@dataclass
class Bench:
    """The outcomes of all tasks. `names` are the methods and then the controls "oracle", "edges" and "random"."""

    outcomes: tuple[Outcome, ...]
    names: tuple[str, ...]
    titles: tuple[str, ...]
    methods: tuple[Method, ...]
    kept: Mapping[str, Kept] = field(default_factory=dict)
    quick: bool = True
    seed: int = 0
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"Bench({len(self.methods)} methods on {', '.join(o.task.name for o in self.outcomes)})"

    def of(self, task: str) -> Outcome:
        """The outcome of a task. Raises UsageError for one that was not run."""
        for outcome in self.outcomes:
            if outcome.task.name == task:
                return outcome
        raise UsageError(f"no task {task!r} here; there are {', '.join(o.task.name for o in self.outcomes)}")

    def rows(self) -> list[dict[str, Any]]:
        """One row for each task and name; see `Outcome.rows`."""
        return [row for outcome in self.outcomes for row in self._rows_of(outcome)]

    def ranking(self) -> list[dict[str, Any]]:
        """One row for each name, best first: the mean skill over tasks with its 95 % bootstrap interval, and the rank.

        A task that a method refuses counts 0, what guessing gets: refusing is no worse than
        guessing, and better than being wrong. `tasks` is how many it did not refuse.
        """
        draws = torch.stack([o.resampled(self.seed)[1] for o in self.outcomes])
        skills = torch.stack([o.skill for o in self.outcomes])
        ends = draws.nan_to_num(0.0).mean(0).quantile(EDGES, -1)
        means = dict(zip(self.names, skills.nan_to_num(0.0).mean(0).tolist(), strict=True))
        counts = (~skills.isnan()).sum(0).tolist()
        ranks = _ranks({n: v if c else float("nan") for (n, v), c in zip(means.items(), counts, strict=True)})
        found = [
            {
                "method": name, "title": self.titles[i], "rank": ranks.get(name), "skill": means[name],
                "low": float(ends[0, i]), "high": float(ends[1, i]), "tasks": counts[i], "control": name in CONTROLS,
            }
            for i, name in enumerate(self.names)
        ]  # fmt: skip
        return sorted(found, key=lambda r: (r["tasks"] == 0, -r["skill"]))

    def table(self) -> Any:
        """The rows as a pandas DataFrame. Raises UsageError without pandas."""
        return tables.frame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """The ranking, the rows, every score, and all settings, as JSON values."""
        return tables.plain({
            "quick": self.quick, "seed": self.seed, "seconds": self.seconds,
            "tasks": [{**o.task.to_dict(), "title": o.task.title, "exact": o.task.exact, "measures": o.task.measures,
                       "perfect": o.task.perfect, "chance": float(o.chance.nanmean()),
                       "reliability": o.reliability(self.seed)} for o in self.outcomes],
            "methods": [{"called": n, **m.to_dict()} for n, m in zip(self.names, self.methods, strict=False)],
            "ranking": self.ranking(),
            "rows": self.rows(),
            "scores": {o.task.name: dict(zip(o.names, o.scores.tolist(), strict=True)) for o in self.outcomes},
            "chance": {o.task.name: o.chance.tolist() for o in self.outcomes},
        })  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Writes the scores (`.json`), the rows (`.csv`), a page or a picture (`.html`, `.png`); whole or not at all."""
        from convoscope.evaluation.bench import drawing

        return tables.save(path, self, self.image, lambda: drawing.page(self))

    def image(self) -> Any:
        """The ranking as a picture: every task a column, every method a row, with intervals."""
        from convoscope.evaluation.bench import drawing

        return drawing.picture(self)

    def _rows_of(self, outcome: Outcome) -> list[dict[str, Any]]:
        memo = self.__dict__.setdefault("_rows", {})
        if outcome.task.name not in memo:
            memo[outcome.task.name] = outcome.rows(self.seed)
        return memo[outcome.task.name]


def _ranks(skills: Mapping[str, float]) -> dict[str, int]:
    """1 for the best method; equal skills share a rank. Controls and those without a skill have none."""
    own = {n: s for n, s in skills.items() if n not in CONTROLS and s == s}
    return {n: 1 + sum(other > s + 1e-6 for other in own.values()) for n, s in own.items()}
