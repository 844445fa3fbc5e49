"""Every law for every pair of a method and a hostile network, in parts that can be run one after the other.

python -m benchmarks.faults --every-pair --store DIR                 # what is not there yet; the page, once all is there
python -m benchmarks.faults --every-pair --store DIR --seconds 150   # ends after about so long; run it again to go on
python -m benchmarks.faults --every-pair --store DIR --methods lrp lime --networks skip   # of these alone
python -m benchmarks.faults --every-pair --store DIR --seconds 0 --write                  # the page, from what is there

A store belongs to one state of the code: begin a new one after a change.
"""

import collections
import contextlib
import io
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from convoscope.method import methods
from convoscope.testing import EXCEPTIONS, FAULTS, LAWS, small, unavailable, zoo
from convoscope.testing.checking import REFUSED, verdicts_of, worst
from convoscope.testing.faults import faults_of

ENDS = ("right", "refused", "not tried", "wrong", "crashed")
PASSES = 6
Pair = dict[str, Any]  # method, network, seconds, verdicts: rows (law, how, what, excused, cases)


def pairs(store: Path) -> dict[tuple[str, str], Pair]:
    """What is in a store, by method and network; lines that a killed process left unfinished do not count."""
    found = {}
    for path in sorted(store.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                pair = json.loads(line)
                found[pair["method"], pair["network"]] = pair
    return found


def wanted(chosen: Sequence[str] | None, networks: Sequence[str] | None) -> list[tuple[str, str]]:
    """The pairs of these methods and networks that can be built here; of all where none are named.

    Their order is such that what is there early is spread evenly: each sixth method on the first network, and so on.
    """
    fine = [n for n, h in zoo().items() if not unavailable(h)]
    found = [(m, n, (i + k) % PASSES) for k, n in enumerate(networks or fine) for i, m in enumerate(chosen or methods())]
    return [(m, n) for m, n, _ in sorted(found, key=lambda pair: pair[2])]


def run(store: Path, chosen: Sequence[str] | None, networks: Sequence[str] | None, seconds: float) -> int:
    """Tries the pairs that are not in the store yet; how many are still missing."""
    store.mkdir(parents=True, exist_ok=True)
    started, known = time.monotonic(), pairs(store)
    missing = [p for p in wanted(chosen, networks) if p not in known]
    for done, (method, network) in enumerate(missing):
        if time.monotonic() - started > seconds:
            return len(missing) - done
        pair = tried(method, network)
        with (store / f"{method}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(pair) + "\n")
        for law, how, what, excused, _ in pair["verdicts"]:
            if how in ("wrong", "crashed") and not excused:
                print(f"{how}: {method} on {network!r}: {law}: {what}", flush=True)
    return 0


def tried(method: str, network: str) -> Pair:
    """How every law ends for one pair."""
    started = time.process_time()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        verdicts = verdicts_of(small(method), zoo()[network], thorough=True)
        found = [(v.law, v.how, v.what, v.excused, dict(v.cases)) for v in verdicts]
    return {"method": method, "network": network, "seconds": time.process_time() - started, "verdicts": found}


# ---------------------------------------------------------------- the page
def section(store: Path) -> str:
    """The tables of the store."""
    found = list(pairs(store).values())
    count, every, minutes = len(found), len(wanted(None, None)), sum(p["seconds"] for p in found) / 60
    names = len({p["method"] for p in found}), len({p["network"] for p in found})
    there = "" if count == every else f" ({every - count:,} pairs are not tried yet: run the command again)"
    refusing = sum(any(law == REFUSED for law, *_ in p["verdicts"]) for p in found)
    faults = "".join(
        f"| {number} | {fault.title} | {len(fault.laws)} | {_cells(_ends_of_fault(found, fault.laws))} |\n"
        for number, fault in FAULTS.items()
    )
    laws = "".join(
        f"| {law} | {', '.join(faults_of(law)) or 'a promise'} | {_quick(law)} | {_cells(_ends_of_fault(found, (law,)))} |\n"
        for law in LAWS
    )
    return f"""## Every law on every pair

{count:,} of {every:,} pairs of a method and a hostile network{there}, {names[0]} methods, {names[1]} networks: {len(LAWS)} laws
each, in double precision, in {minutes:.0f} minutes of one core (PyTorch {torch.__version__}). {refusing} pairs are refused by
the method, with a reason: they count as refused in every row. A pair is right where all laws of a fault hold, wrong or crashed
where one is broken.

| fault | what it is | laws | pairs | right | refused | not tried | wrong | crashed |
|---|---|---|---|---|---|---|---|---|
{faults}
{_shares(found)}

What is wrong here and known, each with its reason in `convoscope.testing.EXCEPTIONS`:

{_excused(found)}
What is wrong here and open:

{_open(found)}
### The laws

Tests of this repository check the quick ones: on all networks, or on those named. `convoscope.testing.check_method(MyMethod(),
thorough=True)` checks all of them for a method of your own, on the zoo or on your own network, see
[how to add one](how-to/add-a-method.md).

| law | faults | quick on | pairs | right | refused | not tried | wrong | crashed |
|---|---|---|---|---|---|---|---|---|
{laws}
Written by `python -m benchmarks.faults --every-pair --store DIR`.
"""


def _ends_of_fault(found: Sequence[Pair], laws: Sequence[str]) -> collections.Counter[str]:
    ends = ([how for law, how, *_ in p["verdicts"] if law in laws or law in (REFUSED, "")] for p in found)
    return collections.Counter(worst(e) for e in ends if e)


def _cells(ends: collections.Counter[str]) -> str:
    return " | ".join([f"{ends.total():,}", *(f"{ends[how]:,}" if ends[how] else "" for how in ENDS)])


def _quick(law: str) -> str:
    networks = getattr(LAWS[law], "networks", None)
    return "all" if networks is None else ", ".join(networks) or "-"


def _shares(found: Sequence[Pair]) -> str:
    """How the cases of laws ended that try several things, of which a method may refuse some."""
    counts: dict[str, collections.Counter[str]] = {}
    for law, _, _, _, cases in _verdicts(found):
        counts.setdefault(law, collections.Counter()).update(cases)
    said = [f"{law}: {', '.join(f'{n:,} {how}' for how, n in c.most_common())}" for law, c in counts.items() if c]
    return f"Within laws that try several things: {'; '.join(said)}." if said else ""


def _excused(found: Sequence[Pair]) -> str:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for p in found:
        for law, _, _, excused, _ in p["verdicts"]:
            if excused:
                groups.setdefault((p["method"], law, excused), []).append(p["network"])
    lines = [
        f"- {method}, {law} ({len(networks)} network{'s' * (len(networks) > 1)}): {excused}"
        for (method, law, excused), networks in groups.items()
    ]
    return "\n".join(lines) + "\n" if lines else "nothing.\n"


def _open(found: Sequence[Pair]) -> str:
    groups: dict[str, list[str]] = {}
    for p in found:
        for law, how, what, excused, _ in p["verdicts"]:
            if how in ("wrong", "crashed") and not excused:
                groups.setdefault(law, []).append(f"{p['method']} on {p['network']} ({' '.join(what.split())[:80]})")
    return "".join(f"- {law}: {'; '.join(sorted(cases))}\n" for law, cases in sorted(groups.items())) or "nothing.\n"


def _verdicts(found: Sequence[Pair]) -> Iterator[list[Any]]:
    for p in found:
        yield from p["verdicts"]


__all__ = ["EXCEPTIONS", "run", "section", "wanted"]
