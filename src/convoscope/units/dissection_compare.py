"""Dissections beside each other: networks, checkpoints of a training run, before and after fine-tuning."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced, write_text
from convoscope.show.bars import Bar, Histogram, chart
from convoscope.units.detectors import Rule, UnitLabel, place
from convoscope.units.dissection import Dissection

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = "convoscope.dissection-comparison/1"


@dataclass(frozen=True)
class Comparison:
    """Dissections by name, in order. `counts` follows categories, `unit` one channel, `moved` the labels that changed."""

    of: Mapping[str, Dissection]

    @property
    def addresses(self) -> list[str]:
        """The layers of any of them."""
        return list(dict.fromkeys(a for d in self.of.values() for a in d.layers))

    @property
    def categories(self) -> list[str]:
        """The categories of any of them, objects first."""
        return sorted({c for d in self.of.values() for c in d.concepts}, key=place)

    def counts(self, address: str, rule: Rule = "top", p: float | None = None) -> dict[str, dict[str, int]]:
        """Unique detectors by category of a layer, for each dissection that has it."""
        return {n: d.layers[address].unique(rule, p) for n, d in self._with(address).items()}

    def unit(self, name: str) -> list[tuple[str, UnitLabel]]:
        """One channel, `layer4:42`, in each dissection that has it: its label and its intersection over union over time."""
        address, _, number = name.rpartition(":")
        if not number.isdecimal():
            raise UsageError(f"a unit is named layer:channel, such as layer4:42; got {name!r}")
        with_layer = self._with(address).items()
        return [(n, d.layers[address].units[int(number)]) for n, d in with_layer if int(number) < len(d.layers[address].units)]

    def moved(self, address: str) -> list[tuple[int, str, str]]:
        """Units that are detectors in the first or the last dissection, and of something else: unit, first, last label."""
        all_of = list(self._with(address).values())
        first, last, found = all_of[0].layers[address], all_of[-1].layers[address], []
        for a, b in zip(first.units, last.units, strict=False):
            before, after = (u.label if u.iou > layer.iou else "" for u, layer in ((a, first), (b, last)))
            if before != after:
                found.append((a.unit, before, after))
        return found

    def _with(self, address: str) -> dict[str, Dissection]:
        found = {n: d for n, d in self.of.items() if address in d.layers}
        if not found:
            raise UsageError(f"none of these dissections has a layer {address!r}; they have {', '.join(self.addresses)}")
        return found

    def rows(self, rule: Rule = "top", p: float | None = None) -> tuple[list[str], list[list[str]]]:
        """A table as text: for each layer and dissection detectors and unique detectors by category."""
        header = ["layer", "dissection", "units", "detectors", "unique", *self.categories]
        lines = []
        for address in self.addresses:
            for name, d in self._with(address).items():
                layer, unique = d.layers[address], d.layers[address].unique(rule, p)
                counts = [str(unique.get(c, 0)) for c in self.categories]
                found = str(layer.interpretable(rule, p))
                lines.append([address, name, str(len(layer.units)), found, str(sum(unique.values())), *counts])
        return header, lines

    def __str__(self) -> str:
        header, lines = self.rows()
        widths = [max(len(row[i]) for row in (header, *lines)) for i in range(len(header))]
        padded = [[c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
                  for row in (header, *lines)]  # fmt: skip
        return "\n".join("  ".join(row) for row in padded)

    def image(self, rule: Rule = "top") -> "Image.Image":
        """The chart of unique detectors by category, for each layer and dissection."""
        bars = []
        for address in self.addresses:
            for name, d in self._with(address).items():
                layer = d.layers[address]
                note = f"unique, of {layer.interpretable(rule)} detectors in {len(layer.units)} units"
                bars.append(Bar(f"{address}  {name}", list(layer.unique(rule).items()), note))
        none: list[Histogram] = []
        return chart("Unique detectors by category", " / ".join(self.of), bars, none, self.categories)

    def to_dict(self) -> dict[str, Any]:
        """Counts by category and layer, and the labels that changed, as JSON values."""
        return {
            "schema": SCHEMA,
            "dissections": list(self.of),
            "unique": {a: {r: self.counts(a, r) for r in ("top", "per-category")} for a in self.addresses},
            "moved": {a: [{"unit": u, "first": b, "last": c} for u, b, c in self.moved(a)] for a in self.addresses},
        }

    def save(self, path: str | Path) -> Path:
        """Writes the counts (`.json`), the report (`.html`) or the chart (`.png`). The file is whole or absent."""
        path = Path(path)
        check_writable(path)
        if path.suffix == ".json":
            write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False))
        elif path.suffix == ".html":
            from convoscope.units.dissection_report import comparison_page

            write_text(path, comparison_page(self))
        elif path.suffix == ".png":
            with replaced(path) as partial:
                self.image().save(partial, "png")
        else:
            raise UsageError(f"a comparison is saved as .json, .html or .png; got {path.name!r}")
        return path


def compare_dissections(dissections: Mapping[str, Dissection] | Sequence[Dissection]) -> Comparison:
    """Dissections beside each other, by name or by the names of their networks (numbered where these are the same).

    They may be of different networks; units are followed by layer and channel, which means something for checkpoints of one
    network. Raises UsageError unless there are at least two, measured by the same rules on the same concepts.
    """
    named = dict(dissections) if isinstance(dissections, Mapping) else {}
    for d in () if named else dissections:
        name, k = d.network_name, 2
        while name in named:
            name, k = f"{d.network_name} {k}", k + 1
        named[name] = d  # type: ignore[index]
    if len(named) < 2:
        raise UsageError("a comparison needs at least two dissections")
    first_name, first = next(iter(named.items()))
    for name, d in named.items():
        for what in ("fraction", "iou", "area", "anchor"):
            if d.settings[what] != first.settings[what]:
                mine, theirs = first.settings[what], d.settings[what]
                raise UsageError(f"{first_name} was measured with {what}={mine} and {name} with {theirs}: not comparable")
        if d.concepts != first.concepts:
            raise UsageError(f"{first_name} and {name} were measured with different concepts: not comparable")
    return Comparison(named)
