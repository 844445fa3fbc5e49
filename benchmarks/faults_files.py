"""The lines of the table of faults on files, jobs, untrusted models, pages and versions.

    python -m benchmarks.faults_files            measures the large pictures and runs the tests of F20 to F26
    python -m benchmarks.faults_files disks      every command on disks without room (Linux; some minutes)

Both write their numbers to `docs/faults-files.json`; those of the fuzzer are in `docs/fuzz.json`, those of other versions in
`docs/versions.json`. `rows()` reads them.
"""

import argparse
import collections
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import versions

ROOT = Path(__file__).resolve().parents[1]
NUMBERS, FUZZ = ROOT / "docs" / "faults-files.json", ROOT / "docs" / "fuzz.json"
OWN = "python -m benchmarks.faults_files"
CHILD = ROOT / "tests" / "cli" / "full_disk.py"
# What is tried of each fault, and the tests that try it.
TESTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "F20": (
        "`kill -9` at random moments of a sweep (50 times), a book's scan, an ascent: run again, it ends in the same bits",
        (
            "tests/engine/test_store.py::test_killed_at_any_moment_it_resumes_to_the_same",
            "tests/cli/test_scan.py::test_a_scan_killed_at_any_moment_ends_in_the_same_book",
            "tests/synthesis/test_ascent.py::test_a_killed_run_goes_on",
        ),
    ),
    "F21": (
        "a full disk, a folder that may not be written, every kind of file: one line, what was there stays, nothing half",
        (
            "tests/data/test_sealed.py::test_a_full_disk_is_one_line_and_leaves_what_was_there",
            "tests/data/test_sealed.py::test_a_sweep_on_a_full_disk_goes_on_when_there_is_room",
            "tests/data/test_sealed.py::test_a_folder_that_may_not_be_written_is_one_line",
            "tests/cli/test_process.py::test_a_file_is_whole_or_as_it_was",
        ),
    ),
    "F22": (
        "one byte of a state flipped, one weight, the size, the normalization or the data changed: noticed and computed again",
        (
            "tests/data/test_sealed.py::test_every_changed_byte_is_noticed",
            "tests/data/test_sealed.py::test_changed_bytes_of_a_training_are_noticed",
            "tests/data/test_sealed.py::test_an_ascent_does_not_go_on_from_a_changed_state",
            "tests/engine/test_store.py::test_a_flipped_byte_is_noticed_and_its_shard_computed_again",
            "tests/engine/test_store.py::test_a_file_that_is_none_is_noticed",
            "tests/engine/test_store.py::test_what_changed_is_computed_again",
            "tests/engine/test_store.py::test_another_architecture_with_the_same_weights_is_noticed",
        ),
    ),
    "F23": (
        "eight processes that write one file (1,000 times), two sweeps of a store, two scans of a book: nothing is lost",
        (
            "tests/data/test_sealed.py::test_eight_writers_of_one_file_leave_one_whole_file",
            "tests/engine/test_store.py::test_two_processes_on_one_store_lose_nothing",
            "tests/cli/test_scan.py::test_two_scans_of_one_folder_at_once_write_one_book",
        ),
    ),
    "F24": (
        "Ctrl-C, SIGTERM, a pipe that closes: one line, the exit code, nothing half written, the same command goes on",
        (
            "tests/cli/test_process.py::test_ctrl_c_leaves_nothing",
            "tests/cli/test_process.py::test_a_reader_that_stops_early_is_no_error",
            "tests/cli/test_maximize.py::test_ctrl_c_reaches_a_process",
            "tests/cli/test_dream.py::test_ctrl_c_keeps_the_state_and_the_same_command_goes_on",
            "tests/cli/test_invert.py::test_ctrl_c_keeps_the_state_and_the_same_command_goes_on",
        ),
    ),
    "F26": (
        "markup in names of classes, units, files, networks on every page: text, never a tag; no foreign script may run",
        ("tests/show/test_hostile.py", "tests/show/test_html.py::test_names_are_only_text"),
    ),
}


# ---- pictures
def pixels() -> dict[str, int]:
    """How many of the corpus come out right, with an error where only that is right, or wrong."""
    import numpy as np

    from benchmarks.fuzz_corpus import samples
    from convoscope.core.errors import ImageError
    from convoscope.data.pictures import read_picture

    found: collections.Counter[str] = collections.Counter()
    for sample in samples():
        try:
            picture = np.asarray(read_picture(sample.data)).astype(float)
        except ImageError:
            found["said" if sample.right is None else "wrong"] += 1
            continue
        fits = sample.right is not None and picture.shape == sample.right.shape
        error = np.abs(picture - sample.right) if fits else np.full(1, np.inf)
        found["right" if (error.mean() if sample.mean_only else error.max()) <= sample.tolerance else "wrong"] += 1
    return dict(found)


def large() -> dict[str, list[float]]:
    """Of pictures of 24 megapixels full of noise: seconds, peak memory in decoded pictures, the same of Pillow by itself."""
    import numpy as np
    from PIL import Image

    side, draw = 4900, np.random.default_rng(0)
    color = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
    gray, turned = color[..., 0], Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, Callable[[str], None]] = {
        "PNG": lambda p: Image.fromarray(color).save(p, "PNG", compress_level=1),
        "PNG with transparency": lambda p: Image.fromarray(np.dstack([color, gray])).save(p, "PNG", compress_level=1),
        "JPEG": lambda p: Image.fromarray(color).save(p, "JPEG", quality=90),
        "rotated JPEG": lambda p: Image.fromarray(color).save(p, "JPEG", quality=90, exif=turned),
        "WebP": lambda p: Image.fromarray(color).save(p, "WEBP", quality=80, method=0),
        "AVIF": lambda p: Image.fromarray(color).save(p, "AVIF", quality=50, speed=10),
        "16-bit TIFF": lambda p: Image.fromarray(gray.astype(np.uint16) * 257).save(p, "TIFF"),
        "float TIFF": lambda p: Image.fromarray(gray.astype(np.float32)).save(p, "TIFF"),
        "PNG of 81 megapixels": lambda p: Image.new("L", (9000, 9000)).save(p, "PNG"),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in kinds.items():
            path = str(Path(folder, "picture"))
            write(path)
            seconds, ours = _measured("read_picture(sys.argv[1])", path)
            _, alone = _measured("PIL.Image.open(sys.argv[1]).load()", path) if "81" not in kind else (0.0, 0.0)
            found[kind] = [round(seconds, 3), round(ours / color.nbytes, 2), round(alone / color.nbytes, 2)]
    return found


def _measured(expression: str, path: str) -> tuple[float, float]:
    """Seconds and peak memory in bytes of reading a file, in a process that has read a small one before."""
    code = (
        "import sys, time, numpy, PIL.Image\nfrom benchmarks.fuzz import read_memory, reset_peak\n"
        "from convoscope import ImageError\nfrom convoscope.data.pictures import read_picture\n"
        "PIL.Image.init()\nread_picture(numpy.zeros((9, 9), numpy.uint8))\n"
        "before, start = read_memory('VmRSS'), time.process_time()\nreset_peak()\n"
        f"try:\n    {expression}\nexcept ImageError:\n    pass\n"
        "print(time.process_time() - start, read_memory('VmHWM') - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, memory = run.stdout.split()
    return float(seconds), float(memory)


# ---- tests
def tried(python: str = sys.executable) -> dict[str, dict[str, int]]:
    """How many of the tests of each fault pass and fail."""
    nodes = sorted({node for _, tests in TESTS.values() for node in tests})
    said = subprocess.run(
        [python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *nodes], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"CONVOSCOPE_KILLS": "50"},
    ).stdout  # fmt: skip
    ends = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return {
        fault: dict(collections.Counter(end for end, node in ends if node.startswith(tests)))
        for fault, (_, tests) in TESTS.items()
    }


def disks() -> None:
    """Every command that writes, on a disk with too little room for it; what was tried before is not tried again."""
    spec = importlib.util.spec_from_file_location("full_disk", CHILD)
    assert spec is not None
    assert spec.loader is not None
    full_disk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(full_disk)
    for name in full_disk.COMMANDS:
        if name in read().get("disks", {}):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = ["unshare", "-rm", sys.executable, str(CHILD), folder, "6", name]
            said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        ends = json.loads(said)[1]
        wrong = {disk: what for disk, what in ends.items() if what}
        write({"disks": read().get("disks", {}) | {name: {"tried": len(ends), "wrong": wrong}}})
        print(name, len(ends), wrong or "", file=sys.stderr, flush=True)


def read() -> dict[str, Any]:
    """What was measured."""
    return json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}


def write(found: dict[str, Any]) -> None:
    """Keep what was measured."""
    NUMBERS.write_text(json.dumps(read() | found, indent=1) + "\n", encoding="utf-8")


# ---- the table
def rows() -> list[dict[str, Any]]:
    """Fault, what was tried, how often, what happened, and the command that measured it."""
    numbers, fuzz = read(), json.loads(FUZZ.read_text(encoding="utf-8"))
    found = [_pixels(numbers["pixels"]), _fuzzed(fuzz["pictures"], "F18", PICTURES), _large(numbers["large"])]
    for fault, (what, _) in TESTS.items():
        if fault == "F26":
            found.append(_fuzzed(fuzz["checkpoints"], "F25", CHECKPOINTS))
        ends = numbers["tests"][fault]
        failed = sum(n for end, n in ends.items() if end != "PASSED")
        outcome = f"{ends.get('PASSED', 0)} tests pass" + (f", {failed} fail" if failed else "")
        found.append({"fault": fault, "what": what, "cases": sum(ends.values()), "outcome": outcome, "command": OWN})
        if fault == "F21" and "disks" in numbers:
            found.append(_disks(numbers["disks"]))
    return [*found, *_versions()]


PICTURES = "pictures cut, flipped, spliced, made to cost much, under other names"
CHECKPOINTS = "malicious pickles, TorchScript, `.pt2`, malformed archives and safetensors: no code runs, nothing is written"


def _pixels(ends: dict[str, int]) -> dict[str, Any]:
    outcome = f"{ends.get('right', 0)} right, {ends.get('said', 0)} refused with the reason, {ends.get('wrong', 0)} wrong"
    what = "a picture in every format, layout, depth, orientation, transparency"
    return {"fault": "F17", "what": what, "cases": sum(ends.values()), "outcome": outcome, "command": OWN}


def _fuzzed(state: dict[str, Any], fault: str, what: str) -> dict[str, Any]:
    ends: collections.Counter[str] = collections.Counter()
    for key, n in state["counts"].items():
        ends[key.split("|")[1]] += n
    refused = sum(n for end, n in ends.items() if end not in ("read", "fault"))
    longest = state["longest"][0]
    outcome = f"{ends['read']:,} read, {refused:,} refused in one line, {ends['fault']} anything else; at most {longest:.1f} s"
    kind = "pictures" if fault == "F18" else "checkpoints"
    command = f"python -m benchmarks.fuzz {kind} --count {state['done']}"
    return {"fault": fault, "what": what, "cases": state["done"], "outcome": outcome, "command": command}


def _large(found: dict[str, list[float]]) -> dict[str, Any]:
    read = [k for k in found if "81" not in k]
    outcome = "; ".join(f"{k} {found[k][0]:.1f} s, {found[k][1]:.1f} x ({found[k][2]:.1f})" for k in read)
    return {
        "fault": "F19",
        "what": "pictures of 24 megapixels full of noise",
        "cases": len(found),
        "outcome": f"memory in decoded pictures of 3 bytes a pixel, in brackets what Pillow takes to decode it: {outcome}; "
        "WebP's decoder itself keeps two pictures of 4 bytes and gives a third, beside the file. "
        f"81 megapixels are refused by the header in {1000 * found['PNG of 81 megapixels'][0]:.0f} ms",
        "command": OWN,
    }


def _disks(found: dict[str, Any]) -> dict[str, Any]:
    cases = sum(ends["tried"] for ends in found.values())
    wrong = sum(len(ends["wrong"]) for ends in found.values())
    what = f"{len(found)} commands on a file system that is full at any page, out of inodes, or read-only; then with room"
    outcome = f"{cases - wrong:,} end in one line with nothing half written, and go on to the same files; {wrong} do not"
    return {"fault": "F21", "what": what, "cases": cases, "outcome": outcome, "command": f"{OWN} disks"}


def _versions() -> list[dict[str, Any]]:
    found = []
    for key, entry in versions.read().items():
        ends = versions.counted(entry)
        what = f"{key}: " + ", ".join(f"{n} {entry['versions'][n]}" for n in ("torch", "numpy", "pillow")) + " and the others"
        tests = f"{ends['passed']:,} tests of {len(versions.files(entry))} files"
        outcome = f"{tests} pass, {ends['failed']} fail; [all versions](versions.md)"
        command = f"python -m benchmarks.versions {key.split(',')[0]}"
        found.append(
            {"fault": "F33", "what": what, "cases": ends["passed"] + ends["failed"], "outcome": outcome, "command": command}
        )
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "pictures", "tests", "disks"), default="all")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start, found = time.time(), {}
    if options.what in ("all", "pictures"):
        found |= {"pixels": pixels(), "large": large()}
    if options.what in ("all", "tests"):
        found["tests"] = tried()
    if options.what in ("all", "disks"):
        disks()
    write(found)
    print(f"{time.time() - start:.0f} s; see {NUMBERS.relative_to(ROOT)}, and python -m benchmarks.faults --only files")


if __name__ == "__main__":
    main()
