"""The tests with the oldest, the pinned and the newest versions of all that the package needs: `docs/versions.md`.

    python -m benchmarks.versions newest         what pip finds today; `oldest`: the lower bounds of pyproject.toml
    python -m benchmarks.versions newest --interpreter python3.13

makes an environment in `build/versions` (PyTorch takes 3 to 7 GB with CUDA), or takes the one of `--python`, and runs all tests
in it, some files at a time. A run that was stopped goes on where the same command is given again. `table` only writes the page.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NUMBERS, PAGE = ROOT / "docs" / "versions.json", ROOT / "docs" / "versions.md"
HEAD = """# Versions

The tests of this repository with other versions of what it needs. Deprecation warnings are errors, so what a library is about
to take away fails too. **oldest**: the lower bounds of `pyproject.toml`; **pinned**: `constraints.txt`, which `run.py`
installs; **newest**: what pip finds on the day. Written by `python -m benchmarks.versions oldest`, `pinned` and `newest`.

"""


def requirements() -> dict[str, str]:
    """The lower bound of each package that tests need, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in project["dependencies"] + extras["test"]]
    own = next(r for r in wanted if r.name == project["name"])
    wanted += [Requirement(line) for extra in sorted(own.extras) for line in extras[extra]]
    bounds = {r.name: s.version for r in wanted for s in r.specifier if s.operator == ">="}
    return dict(sorted(bounds.items()))


def environment(which: str, interpreter: str, folder: Path) -> str:
    """The Python of an environment with these versions, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    python, stamp = str(folder / "bin" / "python"), folder / "installed"
    if not stamp.exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
        pins = folder / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in requirements().items()))
        chosen = {"oldest": ["-c", str(pins)], "pinned": ["-c", "constraints.txt"], "newest": []}[which]
        subprocess.run([python, "-m", "pip", "install", "-q", "-e", ".[test]", *chosen], cwd=ROOT, check=True)
        stamp.touch()
    return python


def about(python: str) -> dict[str, Any]:
    """The Python of an environment, and its versions of what tests need."""
    names = list(requirements())
    code = (
        "import json, platform, sys\nfrom importlib.metadata import version\n"
        "print(json.dumps({'python': platform.python_version(), 'versions': {n: version(n) for n in sys.argv[1:]}}))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run(python: str, wanted: list[str], through: list[str]) -> dict[str, Any]:
    """How the tests of these files ended, or of as many as were through when pytest was stopped."""
    command = [*through, python, "-u", "-m", "pytest", "-v", "-rN", "--tb=no", "-p", "no:cacheprovider", *wanted]
    done = subprocess.run([*command, "--continue-on-collection-errors"], cwd=ROOT, capture_output=True, text=True)
    ends = re.findall(r"^(tests/\S+?\.py)(::.*|) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", done.stdout, re.MULTILINE)
    broken = re.findall(r"^_+ ERROR collecting (\S+) _+$", done.stdout, re.MULTILINE)
    if done.returncode in (0, 1, 5):
        through_all = wanted
    else:  # stopped: the last file that had begun is not through
        begun = [f for f in wanted if any(f == file for file, _, _ in ends)]
        through_all = begun[:-1]
        if not through_all:
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
            through_all, ends = wanted[:1], [*ends, (wanted[0], " took too long, or pytest broke", "FAILED")]
    counts = collections.Counter(end.lower() for file, _, end in ends if file in through_all)
    failures = [file + test for file, test, end in ends if file in through_all and end in ("FAILED", "ERROR")]
    return {"files": through_all, **counts, "failures": failures + [f for f in broken if f in through_all]}


def test(name: str, python: str, paths: list[str], through: list[str], size: int) -> None:
    """Run the files that have not been run with these versions, and keep what came of it."""
    said = about(python)
    key = f"{name}, Python {'.'.join(said['python'].split('.')[:2])}"
    everything = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py")}
    wanted = sorted(f for f in everything if any(f.startswith(path) for path in paths))
    while True:
        done = files(kept(key, said))
        todo = [f for f in wanted if f not in done][:size]
        if not todo:
            return
        found = run(python, todo, through)
        entry = kept(key, said)  # again: others may have written since
        entry["runs"].append(found)
        NUMBERS.write_text(json.dumps(read() | {key: entry}, indent=1) + "\n", encoding="utf-8")
        print(f"{key}: {len(files(entry))} of {len(wanted)} files", found | {"files": []}, file=sys.stderr, flush=True)


def kept(key: str, said: dict[str, Any]) -> dict[str, Any]:
    """What was measured with these versions."""
    entry = read().get(key, {})
    return entry if entry.get("versions") == said["versions"] else said | {"runs": []}


def read() -> dict[str, Any]:
    """What was measured."""
    return json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}


def files(entry: dict[str, Any]) -> set[str]:
    """The files of tests that an environment has run."""
    return {file for run in entry["runs"] for file in run["files"]}


def forget(which: str) -> None:
    """Leave out the runs in which a test failed: they are made again."""
    numbers = read()
    for key, entry in numbers.items():
        if key.startswith(which):
            entry["runs"] = [run for run in entry["runs"] if not run["failures"]]
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def counted(entry: dict[str, Any]) -> dict[str, int]:
    """How the tests of an environment ended."""
    count = {k: sum(run.get(k, 0) for run in entry["runs"]) for k in ("passed", "skipped")}
    return count | {"failed": sum(len(run["failures"]) for run in entry["runs"])}


def page() -> str:
    """The tables: how tests ended with each set of versions, and the versions."""
    runs = dict(sorted(read().items(), key=lambda item: (("oldest", "pinned", "newest").index(item[0].split(",")[0]), item[0])))
    total = len(list((ROOT / "tests").rglob("test_*.py")))
    lines = ["| versions | files | passed | failed | skipped |", "|---|---|---|---|---|"]
    for key, entry in runs.items():
        ends = counted(entry)
        lines.append(
            f"| {key} | {len(files(entry))} of {total} | {ends['passed']:,} | {ends['failed']:,} | {ends['skipped']:,} |"
        )
    names = list(requirements())
    lines += ["", f"| package | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {n} | {' | '.join(e['versions'].get(n, '') for e in runs.values())} |" for n in names]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("oldest", "pinned", "newest", "table"))
    parser.add_argument("--interpreter", default=sys.executable, help="the Python that the environment is made with")
    parser.add_argument("--python", help="the Python of an environment that is there; its versions are taken as they are")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders; default: all")
    parser.add_argument("--through", default="", help="a command that runs pytest, such as 'timeout 600'")
    parser.add_argument("--at-once", type=int, default=15, help="files in one run of pytest")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    options = parser.parse_args()
    if options.again:
        forget(options.which)
    if options.which != "table":
        folder = ROOT / "build" / "versions" / f"{options.which}-{Path(options.interpreter).name}"
        python = options.python or environment(options.which, options.interpreter, folder)
        test(options.which, python, options.tests, options.through.split(), options.at_once)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"see {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
