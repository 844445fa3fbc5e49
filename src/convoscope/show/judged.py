"""Methods judged by metrics, as a page: a table at a glance, and each metric with its intervals and groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convoscope.show import html
from convoscope.show.figure import ticks
from convoscope.show.html import Fact

ROW, LINE = 26, 9  # pixels: the height of a method, the width of a group


@dataclass(frozen=True)
class Mark:
    """A method by a metric: its mean and interval. NaN: no score.

    `kind` says how it stands beside maps that know nothing: "both" better than random maps and edges, "random" better than
    random maps, "none" not shown to be better, "worse", "null" one of those itself, or "" where nothing can be said. `best`: no
    method is shown to be better. `groups` are numbers of the groups it is in, `note` is told when one points at it.
    """

    name: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""
    best: bool = False
    groups: Sequence[int] = ()
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """One metric, its marks from best to worst. `null` is what random maps reach, `images` where it is defined."""

    name: str
    title: str
    family: str
    unit: str
    better: str
    asks: str
    but: str
    images: str
    marks: Sequence[Mark]
    null: float = math.nan
    said: str = ""

    @property
    def arrow(self) -> str:
        return {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}.get(self.better, "")

    @property
    def ticks(self) -> list[float]:
        return ticks([v for m in self.marks for v in (m.mean, m.low, m.high)])

    def at(self, value: float) -> float:
        """Where a value is between the first tick and the last, in percent."""
        low, high = self.ticks[0], self.ticks[-1]
        return round(min(max((value - low) / (high - low), 0.0), 1.0) * 100, 2)

    def text(self, value: float) -> str:
        """A value with as many digits as all of this metric."""
        return fixed(value, max((abs(m.mean) for m in self.marks if not math.isnan(m.mean)), default=1.0))

    def tick(self, value: float) -> str:
        return f"{value:.10g}".replace("-", "\N{MINUS SIGN}")

    @property
    def groups(self) -> int:
        return max((g + 1 for m in self.marks for g in m.groups), default=0)

    def lines(self, row: int) -> list[tuple[int, bool, bool, bool]]:
        """The groups whose line passes a row: number, whether it comes from above, goes on below, and has the row's method."""
        found = []
        for g in range(self.groups):
            rows = [i for i, m in enumerate(self.marks) if g in m.groups]
            if rows and rows[0] <= row <= rows[-1]:
                found.append((g, row > rows[0], row < rows[-1], row in rows))
        return found

    def of(self, name: str) -> Mark:
        return next(m for m in self.marks if m.name == name)


@dataclass(frozen=True)
class Judgment:
    """The whole page; `names` are all rows, those in `nulls` know nothing of the network."""

    title: str
    lede: str
    names: Sequence[str]
    nulls: Sequence[str]
    metrics: Sequence[Judged]
    kinds: Sequence[tuple[str, str]] = ()
    facts: Sequence[Fact] = ()
    notes: Sequence[str] = ()
    refused: Sequence[tuple[str, str]] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    settings: Sequence[Fact] = ()
    command: str = ""


def page(found: Judgment) -> str:
    """One page that loads nothing."""
    return html.render(
        "judged.html", title=found.title, found=found, row=ROW, line=LINE, command=found.command,
        families=len({m.family for m in found.metrics}) > 1, style=html.style("page.css", "judged.css"),
    )  # fmt: skip


def fixed(value: float, largest: float) -> str:
    """A number with three digits of the largest of its kind, so that numbers below one another can be compared."""
    if math.isnan(value):
        return "\N{EN DASH}"
    power = math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    text = f"{value:z.{min(max(2 - power, 0), 6)}f}" if -4 <= power < 7 else f"{value:.2e}"
    return text.replace("-", "\N{MINUS SIGN}")
