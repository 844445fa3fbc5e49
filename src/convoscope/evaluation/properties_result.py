"""The five properties of some methods: tables with intervals, and a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import Paper
from convoscope.evaluation import tables
from convoscope.evaluation.statistics import interval
from convoscope.show import scores as show
from convoscope.show.figure import number

PROPERTIES = ("exactness", "consistency", "completeness", "universality", "reward")
DEFINITIONS = {
    "exactness": "how much more the probability of the class rises as the marked pixels are shown, and falls as they are "
    "removed, than with random maps: insertion less deletion, blurred pixels in their place, mean over images; 0 for chance",
    "consistency": "no contradiction: rank correlation of the map with that of another run, of the picture with changes "
    "nobody sees, and of the same function of pictures stored in another way; mean of the three, 1 is best",
    "completeness": "for how many images and kinds of images (as they are, gray, dark) there is a map that beats four random "
    "maps by insertion less deletion; 0.2 for chance",
    "universality": "how many of the other networks it explains at all: a map that is finite and not constant for every input",
    "reward": "how many more of the network's mistakes are mended by filling the 2, 5 and 10 % of the pixels that are marked "
    "most for the wrong class, than with random maps; 0 for chance",
}
NOTES = {
    "exactness": "gain over random maps", "consistency": "rank correlation", "completeness": "share of images and kinds",
    "universality": "share of networks", "reward": "mistakes mended, over random",
}  # fmt: skip
CHANCE = {"exactness": 0.0, "consistency": 0.0, "completeness": 0.2, "universality": math.nan, "reward": 0.0}


@dataclass(frozen=True, repr=False)
class Properties:
    """Exactness, consistency, completeness, universality and reward; higher is better. `definitions` says what each is.

    `items[property]` are the numbers of each name, by image (by network for universality, by mistake for reward). `missing`
    says why there is no such number for anybody, `left_out` why one has none: by name and network.
    """

    definitions: ClassVar[Mapping[str, str]] = DEFINITIONS
    paper: ClassVar[Paper] = Paper(
        "fan2021interpretability", "Fan, Feng-Lei and Xiong, Jinjun and Li, Mengzhou and Wang, Ge",
        "On interpretability of artificial neural networks: a survey", "IEEE TRPMS", 2021, "2001.02522",
    )  # fmt: skip

    names: tuple[str, ...]
    items: Mapping[str, tuple[Float[Tensor, " items"], ...]]
    missing: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)
    network: str = ""
    seed: int = 0

    def __repr__(self) -> str:
        return f"Properties({len(self.names)} methods on {self.network})"

    def value(self, name: str, which: str) -> float:
        """One number; NaN where there is none. Raises UsageError for another name or property."""
        for known, given, what in ((self.names, name, "method"), (PROPERTIES, which, "property")):
            if given not in known:
                raise UsageError(f"no {what} {given!r} here; there are {', '.join(known)}")
        return float(self.items[which][self.names.index(name)].nanmean())

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method and property: mean, 95 % bootstrap interval, and over how many items."""
        found = []
        for k, name in enumerate(self.names):
            for which in PROPERTIES:
                values = self.items[which][k]
                low, high = interval(values, self.seed) if len(values) else (torch.nan, torch.nan)
                found.append({
                    "method": name, "property": which, "value": self.value(name, which), "low": float(low),
                    "high": float(high), "items": int((~values.isnan()).sum()),
                })  # fmt: skip
        return found

    def table(self) -> Any:
        """A pandas DataFrame with a row for each method and a column for each property. Raises UsageError without pandas."""
        return tables.frame([{"method": n, **{p: self.value(n, p) for p in PROPERTIES}} for n in self.names])

    def to_dict(self) -> dict[str, Any]:
        """The rows, what they mean and why some are missing, as JSON values."""
        rows = tables.plain(self.rows())
        return {
            "network": self.network, "definitions": dict(DEFINITIONS), "rows": rows, "missing": dict(self.missing),
            "left_out": [{"method": m, "network": n, "reason": r} for (m, n), r in self.left_out.items()], "seed": self.seed,
        }  # fmt: skip

    def image(self) -> Any:
        """One panel for each property, a row for each method."""
        return show.figure(self._scores())

    def save(self, path: str | Path, command: str = "") -> Path:
        """Writes rows (`.csv`), everything (`.json`), a picture (`.png`) or a page (`.html`); the file is whole or absent."""
        return tables.save(path, self, self.image, lambda: self._page(command))

    # ---- drawing
    def _scores(self) -> show.Scores:
        rows = {(r["method"], r["property"]): r for r in self.rows()}
        panels = []
        for which in PROPERTIES:
            points = []
            for name in self.names:
                r, chance = rows[name, which], CHANCE[which]
                sure = math.isnan(r["low"]) or math.isnan(chance) or r["low"] > chance
                points.append(show.Point(r["value"], r["low"], r["high"], sure))
            panels.append(show.Panel(which.capitalize(), NOTES[which], points, CHANCE[which]))
        about = [f"{self.network}; higher is better, 95 % bootstrap intervals; dashed: chance, filled: above it"]
        about += [f"No {which}: {why}." for which, why in self.missing.items()]
        nulls = [n for n in self.names if n in ("random", "edges")]
        return show.Scores("Five properties of explanations", about, self.names, panels, nulls)

    def _page(self, command: str) -> str:
        cells = [
            (r["method"], r["property"], number(r["value"]), f"{number(r['low'])} to {number(r['high'])}", str(r["items"]))
            for r in self.rows()
        ]
        cells = [tuple("" if c in ("nan", "nan to nan") else c for c in row) for row in cells]
        notes = [f"{which.capitalize()}: {what}." for which, what in DEFINITIONS.items()]
        notes += [f"Left out {name} on {where}: {reason}" for (name, where), reason in self.left_out.items()]
        return show.page(self._scores(), cells, ("method", "property", "value", "95 % interval", "items"), notes, command)
