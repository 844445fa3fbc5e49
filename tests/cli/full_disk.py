"""Runs commands on a file system that is really full, out of inodes, or read-only, and says what came of it.

`unshare -rm python full_disk.py FOLDER LEVELS NAME...` mounts a file system of its own on FOLDER, which ends with the process.
`test_full_disk.py` starts it. One line of JSON on stdout for each command: on each disk, what went wrong, if anything.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096
MAKE = ["-m", "scenes"]
# What has to be there before, and the command. `in/` holds what was made before; files are written to the current folder.
COMMANDS: dict[str, str] = {
    "explain": "explain ../in/a.png -m scenes --method gradient --out r.html",
    "explain, png": "explain ../in/a.png -m scenes --method gradient --png maps --out r.html",
    "explain, folder": "explain ../in/album -m scenes --method gradient --png maps",
    "compare-methods": "compare-methods ../in/a.png -m scenes --method gradient,grad-cam --out r.html",
    "segment": "segment ../in/a.png -m scenes --out cut",
    "scan": "scan scenes scenes:12 --layers stem --draws 2 -o book",
    "unit": "unit ../in/book stem:1 -o unit.html",
    "unit, png": "unit ../in/book stem:1 -o unit.png",
    "report": "report ../in/book -o r.html",
    "dissect": "dissect scenes scenes:12 --draws 0 --store kept -o r.html -o r.json -o r.png",
    "evaluate": "evaluate scenes scenes:4 --methods gradient,grad-cam --metrics deletion --store kept -o r.html -o r.csv "
    "-o r.png",
    "properties": "properties scenes scenes:4 --methods gradient -o r.json -o r.html",
    "color": "color scenes scenes:12 --layers layer3 --store kept --out r.png",
    "maximize": "maximize scenes layer3:1 --steps 3 --size 32 --strip way.png -o r.png -o r.html -o r.safetensors",
    "dream": "dream scenes ../in/a.png --steps 2 --strip way.png -o r.png -o r.jpg -o r.html -o r.safetensors",
    "dream, jpg": "dream scenes ../in/a.png --steps 1 --octaves 1 -o r.jpg",
    "invert": "invert scenes ../in/a.png --layer layer3 --steps 4 --strip way.png -o r.png -o r.html -o r.safetensors",
    "fool": "fool scenes --classes 0 --steps 3 --pictures bare --strip way.png -o r.png -o r.html -o r.safetensors",
    "fool, evolution": "fool scenes --classes 0,1 --by evolution-cppn --steps 3 --population 6 -o r.png -o r.safetensors",
    "attack": "attack scenes ../in/a.png --steps 3 --strip way.png -o r.png -o r.html --pictures bare",
    "merge": "merge kept",
    "atlas": "atlas scenes scenes:12 --layer layer3 --samples 60 --grid 4 --store kept -o r.html",
    "concepts": "concepts scenes scenes:40 --layer layer3 --target fish --concepts 3 -o r.png",
    "sparse autoencoder": "concepts scenes scenes:12 --layer layer3 --method sparse-autoencoder --samples 300 --epochs 2 "
    "--save r.safetensors -o r.png",
    "weights": "weights scenes -o r.png",
    "feature-maps": "feature-maps ../in/a.png --model scenes -o r.html",
    "generator": "generator train ../in/album --kind dcgan --size 16 --code 3 --steps 3 --batch-size 2 --strip way.png "
    "-o r.safetensors",
    "expert": "expert train rbm ../in/album --size 16 --hidden 5 --epochs 2 -o r.safetensors",
    "scenes": "scenes --count 3 --out there",
}


class Disk:
    """A file system in memory with as little room as one likes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m,nr_inodes=9999", "none", str(folder)], check=True)

    @contextlib.contextmanager
    def left(self, room: int | None = None, inodes: int | None = None) -> Iterator[None]:
        """At most `room` bytes, rounded down to pages, or `inodes` new files."""
        ballast, told = self.folder / "ballast", os.statvfs(self.folder)
        ballast.mkdir()
        for n in range(0 if inodes is None else os.statvfs(self.folder).f_ffree - inodes):
            (ballast / str(n)).touch()
        if room is not None:
            with (ballast / "zeros").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, told.f_bavail * told.f_frsize - room // PAGE * PAGE)
        try:
            yield
        finally:
            shutil.rmtree(ballast)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written."""
        end = time.monotonic() + 60
        while subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < end, "a file is still open for writing"  # by a worker that is about to end
            time.sleep(0.1)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def call(command: str) -> tuple[int, str]:
    """The exit code of a command, and its last line on stderr."""
    from convoscope.cli.run import run

    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of a file that is damaged
        code = run(command.split())
    return code, (err.getvalue().splitlines() or [""])[-1]


def prepare(disk: Disk) -> None:
    """What commands read."""
    import numpy as np
    from PIL import Image

    (disk.folder / "in" / "album").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "album/b.png", "album/c.png")):
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(disk.folder / "in" / name)


def fresh(disk: Disk, name: str) -> dict[str, bytes]:
    """An empty folder to work in, with older files of the names that the command writes."""
    work = disk.folder / "work"
    os.chdir(disk.folder)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    os.chdir(work)
    for word in COMMANDS[name].split():
        if re.fullmatch(r"[\w]+\.(png|jpg|html|json|csv|safetensors)", word):
            Path(word).write_text("as it was")
    if name == "merge":
        assert call("color scenes scenes:12 --layers layer3 --store kept")[0] == 0
    return files(work)


def faults(disk: Disk, name: str, whole: dict[str, bytes], **left: int | None) -> str | None:
    """What went wrong where a command had so little room, and then room again; None where the room was enough."""
    before = fresh(disk, name)
    with disk.left(**left) if left else disk.read_only():
        code, said = call(COMMANDS[name])
    reason = "no space left on device" if left else "read-only file system"
    found = files(disk.folder / "work")
    if code == 0:
        wrong = different(found, whole)
        return f"said nothing, and wrote another {wrong}" if wrong else None
    if not re.fullmatch(rf"error: cannot write '[^']*': {reason}", said):
        return f"said {said!r}"
    if any(n.endswith(".partial") or n.endswith("scratch") for n in found):
        return f"left {[n for n in found if n not in before]}"
    kept = {n: found.get(n, b"") for n in before if found.get(n) != before[n]}
    if lost := different(kept, {n: whole[n] for n in kept}):
        return f"changed {lost}"
    code, said = call(COMMANDS[name])
    if code != 0:
        return f"did not go on: {said!r}"
    wrong = different(files(disk.folder / "work"), whole)
    return f"ended with another {wrong}" if wrong else ""


def different(found: dict[str, bytes], whole: dict[str, bytes]) -> list[str]:
    """Names of files that differ in more than times."""
    names = sorted(found.keys() | whole.keys())
    return [n for n in names if n not in found or n not in whole or essence(n, found[n]) != essence(n, whole[n])]


def essence(name: str, data: bytes) -> object:
    """What is the same each time. Raises where a file is cut."""
    from PIL import Image
    from safetensors.torch import load

    kind = name.rpartition(".")[2]
    if data == b"as it was":
        return data
    if kind in ("png", "jpg", "webp"):
        return Image.open(io.BytesIO(data)).tobytes()
    if kind == "safetensors":
        return {key: (value.shape, value.dtype, value.numpy().tobytes()) for key, value in load(data).items()}
    if kind == "html":
        return data.rstrip().endswith(b"</html>")
    if name.endswith("index.jsonl"):  # of a folder of maps, in any order
        return sorted(json.loads(line)["key"] for line in data.splitlines())
    return data


def tried(disk: Disk, name: str, levels: int) -> dict[str, str | None]:
    """A command on every kind of disk."""
    fresh(disk, name)
    code, said = call(COMMANDS[name])
    if code != 0:
        return {"roomy": said}
    whole = files(disk.folder / "work")
    found: dict[str, str | None] = {}
    low, high = -1, 4 * sum(map(len, whole.values())) // PAGE + 99
    while high - low > 1 and levels:  # the least room that is enough: without the last bytes, too, no file is cut
        middle = (low + high) // 2
        went = found[f"{middle} pages"] = faults(disk, name, whole, room=middle * PAGE)
        low, high = (low, middle) if went is None else (middle, high)
    for n in {high * k // levels for k in range(levels)} | {0}:
        found[f"{n} pages"] = faults(disk, name, whole, room=n * PAGE)
    found |= {f"{n} files": faults(disk, name, whole, inodes=n) for n in range(levels + 1)}
    found["read-only"] = faults(disk, name, whole)
    return found


def main() -> None:
    """The command line."""
    folder, levels, *names = sys.argv[1:]
    disk = Disk(Path(folder))
    prepare(disk)
    os.chdir(disk.folder)
    if any("in/book" in COMMANDS[n] for n in names):
        assert call("scan scenes scenes:12 --layers stem --draws 0 -o in/book")[0] == 0
    for name in names:
        print(json.dumps([name, tried(disk, name, int(levels))]), flush=True)


if __name__ == "__main__":
    main()
