"""One line of the table of faults: what was tried, and what each library made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

OURS = "convoscope"
LIBRARIES = (OURS, "captum", "grad-cam", "torchcam", "zennit")


@dataclass
class Counts:
    """How cases ended: `right` (the correct result), `said` (an error that the library raises on purpose, naming the reason),
    `wrong` (another result, or something left behind, without a word), `crashed` (any other error). `notes`: how
    each method failed that did.
    """

    right: int = 0
    said: int = 0
    wrong: int = 0
    crashed: int = 0
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        return self.right + self.said + self.wrong + self.crashed

    def __str__(self) -> str:
        """`12 of 12` where nothing went wrong; else what did; nothing where nothing was tried."""
        if not self.tried:
            return ""
        good = f"{self.right + self.said:,} of {self.tried:,}"
        bad = [f"{n:,} {what}" for n, what in ((self.wrong, "wrong"), (self.crashed, "crashed")) if n]
        return f"{good}: {', '.join(bad)}" if bad else good


@dataclass
class Row:
    """A fault such as "F8", what was tried (a short phrase), and the counts of each library that it applies to."""

    fault: str
    tried: str
    counts: dict[str, Counts]


def table(rows: Sequence[Row], libraries: Sequence[str] = LIBRARIES) -> str:
    """The rows in Markdown, one column for each library that has any."""
    shown = [name for name in libraries if any(name in r.counts for r in rows)]
    lines = [f"| fault | tried | {' | '.join(shown)} |", f"|---|---|{'---|' * len(shown)}"]
    for r in rows:
        lines.append(f"| {r.fault} | {r.tried} | {' | '.join(str(r.counts.get(name, Counts())) for name in shown)} |")
    return "\n".join(lines) + "\n"
