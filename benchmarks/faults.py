"""The faults that break explanation software, tried on convoscope and on its peers, side by side; writes docs/faults.md.

python -m benchmarks.faults                  # all
python -m benchmarks.faults --only methods   # or: files; the other part of the page stays
python -m benchmarks.faults --show F8        # which cases ended how, by method; writes nothing
python -m benchmarks.faults --every-pair --store DIR   # every law on every pair of a method and a network; see faults_pairs.py
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from convoscope.loading import import_torchvision
from convoscope.testing import EXCEPTIONS

from .faults_cases import CASES, CRASHED, WRONG, Tried, threads
from .faults_libraries import explainers, version
from .faults_rows import LIBRARIES, OURS, Counts, Row, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
PARTS = ("methods", "pairs", "files")
HEAD = """# Faults

What happens when something goes wrong: a network in an odd state, a picture that is none, memory that ends, a process that is
killed. What concerns methods is tried on every one of them, here and in other libraries.

**right**: the correct result, or nothing left behind. **said**: an error that the library raises itself, on purpose. Both are
good ends: `12 of 12` means that every case ended so. **wrong**: another result, or something left behind, without a word.
**crashed**: any other error, from somewhere below. Written by `python -m benchmarks.faults`.
"""


def measured(fault: str = "") -> list[Row]:
    """Every case of every library, in few minutes."""
    rows = []
    for name, tried, cases in CASES:
        if fault in ("", name):
            rows.append(Row(name, tried, {library: _counts(library, cases) for library in LIBRARIES if explainers(library)}))
            print(f"{name:4} {tried[:60]:60}", *(f"{k} {v}" for k, v in rows[-1].counts.items()), sep=" | ", flush=True)
    return rows


def _counts(library: str, cases: Callable[[Tried], Iterator[str]]) -> Counts:
    counts, names = Counts(), list(explainers(library))
    ended = _in_other_processes(library, names) if cases is threads else {n: _run(library, n, cases) for n in names}
    for method, found in ended.items():
        for how in found:
            setattr(counts, how, getattr(counts, how) + 1)
        if bad := [how for how in found if how in (WRONG, CRASHED)]:
            counts.notes[method] = ", ".join(f"{bad.count(how)} {how}" for how in (WRONG, CRASHED) if how in bad)
    return counts


def _run(library: str, method: str, cases: Callable[[Tried], Iterator[str]]) -> list[str]:
    with warnings.catch_warnings(action="ignore"), _quiet():
        return list(cases(Tried(library, method, explainers(library)[method])))


def _in_other_processes(library: str, methods: list[str]) -> dict[str, list[str]]:
    """Threads may end the whole process: what a method brought down is counted, and the others go on in another one."""
    ended: dict[str, list[str]] = {}
    while left := [m for m in methods if m not in ended]:
        command = [sys.executable, "-m", "benchmarks.faults", "--threads", library, *left]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PAGE.parents[1])
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                ended |= json.loads(line)
        if done.returncode and (rest := [m for m in left if m not in ended]):
            ended[rest[0]] = [CRASHED] * 25
    return ended


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print of errors that they swallow is counted, not shown."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def methods_section() -> str:
    """The table of methods, and what the laws of the tests add for ours."""
    rows = measured()
    known = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if name != OURS and explainers(name))
    counts = ", ".join(f"{len(explainers(name))} of {name}" for name in LIBRARIES if explainers(name))
    return f"""## Methods

Methods: {counts} ({known}; PyTorch {torch.__version__}).
Tiny networks with random weights, 3 images of 8 x 8, single precision. A case is left out where a method cannot run the plain
network to begin with. Methods of grad-cam, torchcam and zennit run inside their `with`.

{table(rows)}
### Where it went wrong

{_notes(rows)}"""


def _notes(rows: list[Row]) -> str:
    lines = []
    for r in rows:
        for library, c in r.counts.items():
            parts = []
            for end in dict.fromkeys(c.notes.values()):
                methods = [m for m, e in c.notes.items() if e == end]
                everyone = len(methods) == len(explainers(library))
                parts.append(f"{'every method' if everyone else ', '.join(methods)} {end}{' each' * (len(methods) > 1)}")
            if parts:
                lines.append(f"- {r.fault}, {library}: {'; '.join(parts)}{_reason(library, c)}")
    return "\n".join(lines) + "\n"


def _reason(library: str, counts: Counts) -> str:
    """Why ours are excused, where they are."""
    law = "refuses bad calls with the reason"
    known = {m: EXCEPTIONS[m, "skip", law] for m in counts.notes if (m, "skip", law) in EXCEPTIONS}
    return f" ({'; '.join(known.values())})" if library == OURS and known else ""


def files_section() -> str:
    """The table of files, jobs and loading, measured by the commands that it names."""
    from .faults_files import rows

    found = rows()
    lines = [f"| {r['fault']} | {r['what']} | {r['cases']:,} | {r['outcome']} |" for r in found]
    commands = "\n".join(f"- {', '.join(dict.fromkeys(r['fault'] for r in found if r['command'] == c))}: `{c}`"
                         for c in dict.fromkeys(r["command"] for r in found))  # fmt: skip
    head = "## Files, loading, jobs\n\n| fault | tried | cases | what happened |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n\nMeasured by\n\n" + commands + "\n"


def write(sections: dict[str, str], path: Path = PAGE) -> None:
    """Puts sections between their marks into the page; those not named stay."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    known = {name: found.group(1) for name in PARTS
             if (found := re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL))}  # fmt: skip
    bodies = {**known, **sections}
    parts = [f"<!-- {name} -->\n{bodies[name].rstrip()}\n<!-- /{name} -->" for name in PARTS if name in bodies]
    path.write_text(HEAD + "\n" + "\n\n".join(parts) + "\n", encoding="utf-8")


def _every_pair(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from .faults_pairs import pairs, run, section, wanted

    if options.store is None:
        parser.error("--every-pair needs --store, a folder")
    if missing := run(options.store, options.methods, options.networks, options.seconds):
        print(f"{missing:,} pairs are missing; run it again to go on")
    if options.write or all(p in pairs(options.store) for p in wanted(None, None)):
        write({"pairs": section(options.store)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", choices=("methods", "files"), help="rerun this part of the page")
    parser.add_argument("--show", default="", metavar="F8", help="print the cases of one fault")
    parser.add_argument("--every-pair", action="store_true", help="every law on every pair; run again to go on")
    parser.add_argument("--store", type=Path, help="folder of what is found of pairs")
    parser.add_argument("--methods", nargs="+", help="pairs of these methods alone")
    parser.add_argument("--networks", nargs="+", help="pairs of these networks alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long to go on with pairs")
    parser.add_argument("--write", action="store_true", help="write the page although pairs are missing")
    parser.add_argument("--threads", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_torchvision()
    if options.threads:
        for method in options.threads[1:]:
            print(json.dumps({method: _run(options.threads[0], method, threads)}), flush=True)
        return
    if options.show:
        print(_notes(measured(options.show)))
        return
    if options.every_pair:
        _every_pair(parser, options)
        return
    sections = {}
    if options.only in (None, "methods"):
        sections["methods"] = methods_section()
    if options.only in (None, "files"):
        with contextlib.suppress(ModuleNotFoundError):
            sections["files"] = files_section()
    write(sections)


if __name__ == "__main__":
    main()
