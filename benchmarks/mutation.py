"""Do the tests of the metrics notice when a metric is wrong? Random small changes to their code, and how many a test finds.

    pip install mutmut
    python -m benchmarks.mutation [--count 200] [--seed 0] [--files "*"] [--keep FOLDER]

mutmut (BSD) makes the changes, each alone (a comparison turned round, an argument dropped, a number moved by one), and runs the
tests of `tests/evaluation` that reach the changed line. A sample of `--count` of all of them is drawn with `--seed`. A change
is found if a test fails or never ends. It works on a copy of the last commit; with two cores 200 changes take some minutes.
"""

import argparse
import fnmatch
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRAWN = ("drawing",)  # files whose outcome is a picture, for a person to judge
MEANING = {None: "not run", 0: "survived", 5: "not reached by a test", 33: "not reached by a test", 34: "skipped", 2: "stopped"}
SETTINGS = """
[tool.mutmut]
source_paths = ["src/"]
only_mutate = ["src/convoscope/evaluation/*.py"]
do_not_mutate = ["src/convoscope/evaluation/bench/*.py"]
tests_dir = ["tests/evaluation"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "--ignore=tests/evaluation/bench"]
"""


def mutmut(folder: Path, *names: str) -> None:
    """Runs the named mutants."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(max(1, (os.cpu_count() or 2) // 2)), *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode and not any((folder / "mutants").rglob("*.meta")):
        raise SystemExit(f"mutmut failed; is it installed (pip install mutmut)?\n{(done.stderr or done.stdout)[-2000:]}")


def outcomes(folder: Path) -> dict[str, int | None]:
    """The exit code of the tests by mutant; None for those that did not run."""
    found: dict[str, int | None] = {}
    for file in sorted((folder / "mutants").rglob("*.meta")):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return {name: code for name, code in found.items() if name.split(".")[2] not in DRAWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--files", default="*", help="only files whose name fits, such as 'removal'")
    parser.add_argument("--keep", type=Path, help="a new folder to work in; `mutmut show NAME` there has the change")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary) / "copy"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(SETTINGS)
        mutmut(folder, "convoscope.evaluation.nulls*")  # makes all of them, and learns which test reaches what
        names = [n for n in outcomes(folder) if fnmatch.fnmatch(n.split(".")[2], asked.files)]
        chosen = sorted(random.Random(asked.seed).sample(sorted(names), min(asked.count, len(names))))
        mutmut(folder, *chosen)
        report({n: outcomes(folder)[n] for n in chosen}, len(names))


def report(codes: dict[str, int | None], total: int) -> None:
    """Prints what survived, and the share that was found."""
    words = {n: MEANING.get(c, "killed") for n, c in codes.items()}  # other codes: a test failed, or never ended
    for name, word in words.items():
        if word != "killed":
            print(f"{word}: {name}")
    counts = Counter(words.values())
    print(f"{len(codes)} of {total} mutants: " + ", ".join(f"{n} {word}" for word, n in counts.most_common()))
    print(f"found: {counts['killed'] / len(codes):.0%}")


if __name__ == "__main__":
    main()
