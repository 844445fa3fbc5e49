"""Measuring beside each other: what a line of the table is, its rounds, and what came of it."""

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[], Any]
OURS = "convoscope"
EQUAL = 0.95  # a ratio above this, and below 1, is called equal: the noise of a quiet machine


@dataclass
class Case:
    """One line of the table: what runs, in how many rounds, and how many times faster than whom ours is to be.

    `than` names the libraries of the goal; none are all that ran.
    """

    name: str
    network: str
    unit: Run
    runs: dict[str, Run]
    rounds: int
    warm: bool = True
    least: float = 1.0
    than: tuple[str, ...] = ()
    note: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    units: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, library: str) -> float:
        """Seconds of a library."""
        return statistics.median(self.seconds[library])

    def passes(self) -> float:
        """Ours in units of one forward and backward pass of the same images."""
        return statistics.median(a / b for a, b in zip(self.seconds[OURS], self.units, strict=True))

    def ratio(self, library: str) -> float:
        """How many times longer a library takes than ours: the median over rounds of the ratio within a round."""
        return statistics.median(a / b for a, b in zip(self.seconds[library], self.seconds[OURS], strict=True))

    @property
    def peers(self) -> list[str]:
        return [library for library in self.seconds if library != OURS]

    def verdict(self) -> str:
        """met, equal or missed, or nothing where there is no peer to compare with."""
        if OURS not in self.seconds:
            return "missed" if OURS in self.failed else ""
        found = [self.ratio(p) for p in self.peers if p in self.than or not self.than]
        if not found:
            return ""
        share = min(found) / self.least
        return "met" if share >= 1 else "equal" if share >= EQUAL and self.least == 1 else "missed"


@contextlib.contextmanager
def quiet() -> Any:
    """Without the progress bars of peers."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def attempt(case: Case, library: str) -> float | None:
    """Seconds of one run; None where it raises, which is noted and not tried again."""
    try:
        with quiet():
            return seconds(case.runs[library])
    except Exception as error:
        case.failed[library] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90] if str(error) else ''}"
        return None


def measure(case: Case, say: Callable[[str], None]) -> None:
    """Rounds in which all libraries run once, in turns, between two units; where `warm`, all run once before.

    A library that raises in one round is left out of all, so that ratios stay within rounds.
    """
    case.unit()
    for library in case.runs if case.warm else ():
        attempt(case, library)
    for turn in range(case.rounds):
        order = [library for library in case.runs if library not in case.failed]
        order = order[turn % max(len(order), 1) :] + order[: turn % max(len(order), 1)]
        before = seconds(case.unit)
        for library in order:
            if (found := attempt(case, library)) is not None:
                case.seconds.setdefault(library, []).append(found)
        case.units.append((before + seconds(case.unit)) / 2)
        say(f"{case.network}: {case.name}, round {turn + 1} of {case.rounds}")
    for library in case.failed:
        case.seconds.pop(library, None)


def _time(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def line(case: Case) -> list[str]:
    """The cells of a case."""
    peers = [f"{p} {case.ratio(p):.3g}x" if OURS in case.seconds else f"{p} {_time(case.median(p))}" for p in case.peers]
    peers += [f"{p} fails ({why})" for p, why in case.failed.items() if p != OURS]
    ours = _time(case.median(OURS)) if OURS in case.seconds else f"fails ({case.failed[OURS]})" if OURS in case.failed else "-"
    goal = f">= {case.least:g}x" + (f" {', '.join(case.than)}" if case.than else "") if case.peers else ""
    units = f"{case.passes():.2f}" if OURS in case.seconds else ""
    return [case.name, ours, units, ", ".join(peers) or "-", goal, case.verdict(), case.note]


HEADINGS = ["method", "ours", "units", "times as long", "goal", "", ""]


def table(cases: list[Case]) -> str:
    """A table for each network."""
    out = []
    for network in dict.fromkeys(c.network for c in cases):
        rows = [HEADINGS, *(line(c) for c in cases if c.network == network)]
        widths = [max(len(r[i]) for r in rows) for i in range(len(HEADINGS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        out.append("\n".join(["", network, *lines]))
    return "\n".join(out)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
