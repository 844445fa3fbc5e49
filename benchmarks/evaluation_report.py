"""What came of the benchmark of evaluation: times for 20 methods and 50 images, ratios, overhead, memory."""

import argparse
import json
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

SWEEPS, ALL, STEPS = ("deletion", "insertion"), 50, 24


class Peak:
    """How many megabytes the process took at most beyond what it had at the beginning, looked at every few milliseconds."""

    megabytes = float("nan")

    def __enter__(self) -> Self:
        self._stop, self._most = threading.Event(), 0
        self._before = resident()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._before:
            self.megabytes = (max(self._most, self._before) - self._before) / 1e6

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self._most = max(self._most, resident())


def resident() -> int:
    """Bytes of memory that the process has now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def read(path: Path | None) -> list[dict[str, Any]]:
    """Rounds of earlier runs."""
    return json.loads(path.read_text()) if path is not None and path.is_file() else []


def write(path: Path | None, rounds: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(rounds, indent=1))


def report(rounds: list[dict[str, Any]], options: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds with these numbers of masks."""
    same = [r for r in rounds if (r["subsets"], r["squares"]) == (options.subsets, options.squares)]
    rows = [_round(r, options) for r in same]
    found = {key: statistics.median(r[key] for r in rows if key in r) for key in rows[0]}
    return {**about, "rounds": len(rows), "methods": same[0]["methods"], "images": ALL, "steps": STEPS,
            "subsets": options.subsets, "squares": options.squares, **found}  # fmt: skip


def _round(found: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    mine, bare, methods = found["ours"], found["bare"], found["methods"]
    row = {
        "ours, seconds": ALL * mine["seconds"], "ours, passes of an image": mine["passes"],
        "ours, milliseconds a pass": 1000 * mine["seconds"] / mine["passes"], "ours, megabytes": mine["megabytes"],
        "overhead over bare passes": mine["seconds"] / bare["seconds"] - 1,
    }  # fmt: skip
    if "deletion" not in found:
        return row
    passes = {
        **dict.fromkeys(SWEEPS, STEPS),
        "faithfulness-correlation": options.subsets + 1,
        "infidelity": options.squares + 1,
    }
    times = {name: ALL * methods * n * found[name]["seconds"] / found[name]["passes"] for name, n in passes.items()}
    total = sum(times.values())
    few = total - ALL * methods * sum(
        (passes[n] - 101) * found[n]["seconds"] / found[n]["passes"] for n in ("faithfulness-correlation", "infidelity")
    )
    fewer = ALL * (mine["passes"] - options.subsets - options.squares + 200) * mine["seconds"] / mine["passes"]
    row |= {f"Quantus, {name}, seconds": t for name, t in times.items()}
    row |= {
        "Quantus, seconds": total, "Quantus, passes of an image": methods * sum(passes.values()),
        "Quantus, milliseconds a pass": 1000 * total / (ALL * methods * sum(passes.values())),
        "times as long": total / row["ours, seconds"], "with 100 subsets and 100 squares, times as long": few / fewer,
    }  # fmt: skip
    return row


def text(report: dict[str, Any]) -> str:
    """The report as lines."""
    width = max(map(len, report))
    return "\n".join(f"{k.ljust(width)}  {v if not isinstance(v, float) else f'{v:.4g}'}" for k, v in report.items())


PAGE = """# What judging maps costs

Written by `python -m benchmarks.evaluation --quantus FOLDER --save FILE --write docs/evaluation-cost.md`, whose beginning says
how to get Quantus and exactly what is compared. ResNet-18 at 224 pixels, {methods} methods, {images} images, {steps} steps of
deletion and of insertion, {subsets} random subsets for faithfulness correlation, {squares} squares for infidelity. Seconds of
processor time on one thread, Python {python}, PyTorch {torch}, medians of {rounds} rounds; both sides are measured on a sample
and multiplied up: Quantus on one method and eight images, ours on all methods and one image.

| | ours | Quantus 0.6.0 |
| --- | ---: | ---: |
| passes of one image, all methods | {ours, passes of an image:,.0f} | {Quantus, passes of an image:,.0f} |
| milliseconds a pass, all told | {ours, milliseconds a pass:.1f} | {Quantus, milliseconds a pass:.1f} |
| seconds for {images} images | {ours, seconds:,.0f} | {Quantus, seconds:,.0f} |

**Quantus takes {times as long:.1f} times as long**, and {with 100 subsets and 100 squares, times as long:.1f} times with 100
subsets and 100 squares. Its sweeps take {Quantus, deletion, seconds:,.0f} and {Quantus, insertion, seconds:,.0f} seconds, its
correlation {Quantus, faithfulness-correlation, seconds:,.0f}, its infidelity {Quantus, infidelity, seconds:,.0f} (one of the
ten repetitions it makes by default, which all give the same). Curves have to be run for each method by anyone, so that the two
sweeps alone differ by what a pass costs; what random masks do to the network does not depend on the map, and is asked once here
for all methods: the more masks a score needs, the larger the ratio. Maps that rank the pixels alike are run once: of these 20
methods two do.

Beside as many bare forward passes in batches of the same sizes, of the same network with batch norms folded and on inputs that
are ready, an evaluation takes **{overhead over bare passes:.1%} longer**.

## Memory

`memory=` of `cs.evaluate`, `--memory` of the command, bounds what is taken beside the network and the images: how many images
have their maps held, how many rows the network runs on at once, and how many random masks are held follow from it. Measured by
`python -m benchmarks.evaluation_memory`, each in a process of its own: 4 images, 25 maps of each, three methods that are run.

| allowed | peak | at once |
| --- | ---: | --- |
{memory}
"""


def page(report: dict[str, Any]) -> str:
    """The page about it, with the memory measured anew."""
    found = subprocess.run([sys.executable, "-m", "benchmarks.evaluation_memory"], capture_output=True, text=True, check=True)
    return PAGE.format(**{**report, "memory": found.stdout.strip()})
