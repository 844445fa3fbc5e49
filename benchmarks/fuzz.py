"""Damaged and malicious files by the thousand: what reading them ends in.

    python -m benchmarks.fuzz pictures --count 100000
    python -m benchmarks.fuzz checkpoints --count 10000
    python -m benchmarks.fuzz table

A run stops after `--seconds` and the same command goes on where it stopped; files are read in a process of their own, so
that a crash is seen and its input kept (`build/fuzz/`). Counts are in `docs/fuzz.json`, the table in `docs/fuzz.md`.
"""

import argparse
import ast
import collections
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT, COUNTS, TABLE = ROOT / "build" / "fuzz", ROOT / "docs" / "fuzz.json", ROOT / "docs" / "fuzz.md"
SECONDS, HANG = 2.0, 30.0  # of processor time that a file may take; of the clock until it counts as a hang
ROOM = 128 * 2**20  # bytes beyond four times the decoded size
STEP = 500  # cases between two reports of a worker


def read_memory(word: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(word)), 0)


def reset_peak() -> None:
    """Let the peak of this process's memory start again."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def judged(kind: Any, data: bytes, ending: str) -> tuple[str, float, int]:
    """What came of one file ("read", an expected error, or what is wrong), its seconds, and the memory it took."""
    from convoscope.core.errors import ConvoscopeError

    before, start = read_memory("VmRSS"), time.process_time()
    reset_peak()
    try:
        kind.attempt(data, ending)
        outcome = "read"
    except ConvoscopeError as error:
        outcome = type(error).__name__ if type(error).__name__ in kind.EXPECTED else f"wrong error: {type(error).__name__}"
        if "\n" in str(error):
            outcome = "wrong error: of several lines"
    except BaseException as error:
        outcome = f"wrong error: {type(error).__name__}: {error}"[:200]
    seconds, memory = time.process_time() - start, max(read_memory("VmHWM") - before, 0)
    if seconds > SECONDS:
        outcome = f"too slow ({outcome})"
    if memory > ROOM and memory > 4 * kind.decoded_bytes(data) + len(data) + ROOM:
        outcome = f"too much memory ({outcome})"
    return outcome, seconds, memory


def work(name: str, seed: int, numbers: range, stopped: list[int], shared: Any, pipe: Any) -> None:
    """Cases one after another, reported in steps, without those that stopped a worker; `shared` says which runs since when."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C write their complaints there
    kind = importlib.import_module(f"benchmarks.fuzz_{name}")
    kind.prepare()
    found, faults, longest = collections.Counter[str](), [], (0.0, 0, "")
    peak = 0
    for number in numbers:
        shared[0], shared[1] = number, time.time()
        what, data, ending = kind.case(seed, number)
        outcome, seconds, memory = ("stopped", 0.0, 0) if number in stopped else judged(kind, data, ending)
        found[f"{what.split(':')[0]}|{outcome if outcome in ('read', *kind.EXPECTED) else 'fault'}"] += 1
        longest, peak = max(longest, (seconds, number, what)), max(peak, memory)
        if outcome != "read" and outcome not in kind.EXPECTED and number not in stopped:
            faults.append([number, what, outcome])
            keep(name, seed, number, data)
        if (number + 1) % STEP == 0 or number == numbers[-1]:
            pipe.send((number + 1, dict(found), faults, longest, peak))
            found, faults = collections.Counter(), []
    kind.finish()


def keep(name: str, seed: int, number: int, data: bytes) -> None:
    """An input that is to be looked at."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}-{seed}-{number}").write_bytes(data)


def run(name: str, count: int, seed: int, seconds: float, fresh: bool) -> dict[str, Any]:
    """Goes on from the counts on disk until `count` cases are done or the time is over."""
    every = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
    kind, versions = importlib.import_module(f"benchmarks.fuzz_{name}"), _versions(name)
    state = every.get(name, {})
    if fresh or state.get("seed") != seed or state.get("versions") != versions:
        state = {"seed": seed, "versions": versions, "done": 0, "counts": {}, "faults": [], "longest": [0.0, 0, ""], "peak": 0}
    end, fork = time.time() + seconds, multiprocessing.get_context("fork")
    while state["done"] < count and time.time() < end:
        shared, (ours, theirs) = fork.Array("d", 2, lock=False), fork.Pipe(duplex=False)
        shared[1] = time.time()
        known = [fault[0] for fault in state["faults"]]
        worker = fork.Process(target=work, args=(name, seed, range(state["done"], count), known, shared, theirs))
        worker.start()
        theirs.close()
        stopped = follow(worker, ours, shared, state, end)
        if stopped:  # a crash or a hang; the next worker starts at the last report and passes it over
            number = int(shared[0])
            what, data, _ = kind.case(seed, number)
            keep(name, seed, number, data)
            state["faults"].append([number, what, stopped])
        every[name] = state
        COUNTS.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    return state


def follow(worker: Any, pipe: Any, shared: Any, state: dict[str, Any], end: float) -> str:
    """Adds up what a worker reports until it ends; why it did, where it should not have."""
    while True:
        try:
            if pipe.poll(0.2):
                done, found, faults, longest, peak = pipe.recv()
                state["done"] = done
                for key, n in found.items():
                    state["counts"][key] = state["counts"].get(key, 0) + n
                state["faults"] += faults
                state["longest"], state["peak"] = max(state["longest"], list(longest)), max(state["peak"], peak)
                if time.time() > end:
                    worker.kill()
                    worker.join()
                    return ""
            elif time.time() - shared[1] > HANG:
                worker.kill()
                worker.join()
                return "hang"
        except EOFError:
            worker.join()
            return "" if worker.exitcode == 0 else f"crash ({worker.exitcode})"


def _versions(name: str) -> str:
    import PIL
    import torch

    own = f"Pillow {PIL.__version__}" if name == "pictures" else f"PyTorch {torch.__version__.partition('+')[0]}"
    code = [ROOT / "benchmarks" / f"fuzz_{n}.py" for n in (name, "corpus")]
    trees = "".join(ast.dump(ast.parse(p.read_text(encoding="utf-8"))) for p in code)  # how lines break does not matter
    files = hashlib.blake2b(trees.encode(), digest_size=4).hexdigest()
    return f"{own}, Python {platform.python_version()}, cases {files}"


# ---- the table
HEAD = f"""Files that are cut, flipped, spliced or made to cost much, read one after another in a process of their own.
Each has to end in a picture (or named tensors) or in one typed line, within {SECONDS:g} seconds of processor time, in memory
of at most four times the decoded picture and {ROOM >> 20} MB beyond the file; no code of a file may run. Anything else is
counted in the last column. Written by `python -m benchmarks.fuzz`."""
OUTCOMES = {
    "read": "read",
    "ImageError": "ImageError",
    "LoadError": "LoadError",
    "UsageError": "UsageError",
    "fault": "anything else",
}


def table(every: dict[str, Any]) -> str:
    """The counts as Markdown."""
    lines = ["# Damaged and malicious files", "", HEAD, ""]
    for name, state in every.items():
        outcomes = ["read", *importlib.import_module(f"benchmarks.fuzz_{name}").EXPECTED, "fault"]
        seconds, _, slowest = state["longest"]
        versions = state["versions"].rpartition(",")[0]
        lines += [
            f"## {name.capitalize()}",
            "",
            f"`python -m benchmarks.fuzz {name} --count {state['done']}` (seed {state['seed']}; {versions}): "
            f"{state['done']:,} files;",
            f"the longest took {seconds:.2f} s ({slowest}), the largest {state['peak'] / 1e6:.0f} MB of memory.",
            "",
            "| what was done to the file | files | " + " | ".join(OUTCOMES[o] for o in outcomes) + " |",
            "|---|---:|" + "---:|" * len(outcomes),
        ]
        kinds = sorted({key.split("|")[0] for key in state["counts"]})
        rows = {k: [state["counts"].get(f"{k}|{o}", 0) for o in outcomes] for k in kinds}
        rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
        lines += [f"| {k} | {sum(r):,} | " + " | ".join(f"{n:,}" for n in r) + " |" for k, r in rows.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "checkpoints", "table"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=150.0, help="stop then; the same command goes on")
    parser.add_argument("--fresh", action="store_true", help="forget the counts on disk")
    options = parser.parse_args()
    if options.what != "table":
        state = run(options.what, options.count, options.seed, options.seconds, options.fresh)
        print(f"{state['done']} of {options.count} done, longest {state['longest']}, peak {state['peak'] / 1e6:.0f} MB")
        for fault in state["faults"]:
            print("fault:", *fault)
    TABLE.write_text(table(json.loads(COUNTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
