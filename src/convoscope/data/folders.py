"""Pictures in folders: one sub folder per class, without classes, or named one by one."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.data.dataset import Dataset

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".avif", ".jp2", ".tga"}
)
_COMMON = SUFFIXES | {".JPEG", ".JPG", ".PNG"}  # asking for lower case only of the rest saves time
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_ENOUGH = 64  # entries looked at to tell a folder of classes from one of pictures


class Files(Dataset):
    """Picture files below a folder; `places` are their names relative to `root`, `of` the class of each (none if empty)."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        places: Sequence[str],
        of: Sequence[int] = (),
        classes: Sequence[str] = (),
        name: str = "",
    ) -> None:
        self.root, self.places, self.of = os.fspath(root), list(places), list(of)
        self.classes = tuple(classes)
        self.name = name or os.path.basename(os.path.abspath(self.root)) or "data"

    def __len__(self) -> int:
        return len(self.places)

    def key(self, i: int) -> str:
        """The place, size and time of change of the file, to the nanosecond. Raises UsageError where the file is gone."""
        return stamp(self.root, self.places[self.row(i)])

    def picture(self, i: int) -> str:
        return os.path.join(self.root, self.places[self.row(i)])

    def class_of(self, i: int) -> int:
        return self.of[self.row(i)] if self.of else -1


def stamp(root: str, place: str) -> str:
    """What changes with a file: its place below `root`, its size, and when it was changed in nanoseconds."""
    path = os.path.join(root, place)
    try:
        found = os.stat(path)
    except OSError:
        raise UsageError(f"no file {path!r}; it was there when the data set was listed, or is named in it") from None
    return f"{place}:{found.st_size}:{found.st_mtime_ns}"


def pictures_below(root: str, under: str = "") -> list[str]:
    """Places of all picture files below `root`/`under`, relative to `root`, sorted, nothing hidden; links are followed."""
    found: list[str] = []
    linked: set[tuple[int, int]] = set()
    waiting = [under]
    while waiting:
        place = waiting.pop()
        with os.scandir(os.path.join(root, place) if place else root) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                inside = f"{place}/{name}" if place else name
                suffix = os.path.splitext(name)[1]
                if suffix in _COMMON or suffix.lower() in SUFFIXES:
                    if not entry.is_dir():
                        found.append(inside)
                        continue
                elif not entry.is_dir():
                    continue
                if entry.is_symlink():  # a link to a folder above would never end
                    which = entry.stat()
                    if (which.st_dev, which.st_ino) in linked:
                        continue
                    linked.add((which.st_dev, which.st_ino))
                waiting.append(inside)
    return sorted(found)


def open_path(path: Path, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Who opens a path, with the settings and what it is given. Raises UsageError for a path that leads nowhere."""
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no folder {str(path)!r}{did_you_mean(path.name, near)}")
    opener = _layout(path)
    return opener, settings, path


def _layout(path: Path) -> Callable[..., Dataset]:
    """What the files in it say that a folder is; anything else is a folder of pictures."""
    from convoscope.data import broden, coco, funny_birds
    from convoscope.data.scenes import labeled

    if path.is_file():
        if path.suffix.lower() != ".json":
            return open_file
        listed = not path.name.startswith("panoptic_") and "mask_classes" in coco.read_json(path)
        return coco.open_listed if listed else coco.open_panoptic
    there = set(os.listdir(path))
    if {"index.csv", "label.csv"} <= there:
        return broden.open_broden
    if {"factors.jsonl", "maps", "pictures"} <= there:
        return labeled.open_written
    if {"classes.json", "parts.json"} <= there:
        return funny_birds.open_funny_birds
    if "index.json" in there and "mask_classes" in coco.read_json(path / "index.json"):
        return coco.open_listed
    named = {*there, *(os.listdir(path / "annotations") if (path / "annotations").is_dir() else ())}
    if any(n.startswith("panoptic_") and n.endswith(".json") for n in named):
        return coco.open_panoptic
    return open_folder


def open_file(path: Path, name: str = "") -> Dataset:
    """One picture."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{str(path)!r} is no picture and no list of pictures; a data set is a folder, a list or 'scenes:500'")
    return Files(path.parent, [path.name], name=name or path.name)


def open_folder(path: Path, classes: Sequence[str] | bool | None = None, name: str = "") -> Dataset:
    """A folder of pictures. Its sub folders are the classes, in the order of their names, if all pictures lie in them.

    `classes` names them in another order, or leaves some out; False: no classes, True: even if pictures lie beside them.
    Raises UsageError for a folder without pictures.
    """
    if isinstance(classes, str):
        raise UsageError(f"classes are a list of names; got the text {classes!r}")
    root = str(path)
    with os.scandir(root) as entries:
        listed = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    folders = [n for n, folder in listed if folder]
    loose = any(not folder and Path(n).suffix.lower() in SUFFIXES for n, folder in listed)
    if classes is False or not folders or (loose and classes is None):
        return _filled(Files(root, pictures_below(root), name=name), root)
    names = folders if classes is None or classes is True else list(classes)
    _check_classes(root, names, folders, classes is None)
    places: list[str] = []
    of: list[int] = []
    for k, folder in enumerate(names):
        inside = pictures_below(root, folder)
        places += inside
        of += [k] * len(inside)
    return _filled(Files(root, places, of, names, name), root)


def _check_classes(root: str, names: Sequence[str], folders: Sequence[str], found: bool) -> None:
    for n in names:
        if n not in folders:
            raise UsageError(f"{root!r} has no sub folder {n!r} for a class{did_you_mean(n, folders)}")
    if found and {n.lower() for n in names} <= SPLITS:
        with os.scandir(os.path.join(root, names[0])) as entries:
            deeper = any(e.is_dir() for e, _ in zip(entries, range(_ENOUGH), strict=False))
        if deeper:
            raise UsageError(f"{root!r} holds {', '.join(names)}: open one of them, or give classes=True if those are classes")


def _filled(dataset: Files, root: str) -> Dataset:
    if not len(dataset):
        raise UsageError(f"no pictures in folder {root!r}; looked for {', '.join(sorted(SUFFIXES))}")
    return dataset


def open_paths(
    paths: Iterable[str | os.PathLike[str]], labels: Sequence[int] = (), classes: Sequence[str] = (), name: str = ""
) -> Dataset:
    """Files named one by one, with the number of the class of each where there are classes.

    Raises UsageError naming the first that is not there.
    """
    given = [os.path.abspath(os.path.expanduser(p)) for p in paths]
    if labels and len(labels) != len(given):
        raise UsageError(f"{len(labels)} labels for {len(given)} pictures; give one number for each")
    for path in given:
        if not os.path.isfile(path):
            raise UsageError(f"no file {path!r}" + ("; it is a folder: open it by itself" if os.path.isdir(path) else ""))
    root = os.path.commonpath([os.path.dirname(p) for p in given])
    places = [os.path.relpath(p, root).replace(os.sep, "/") for p in given]
    return Files(root, places, [int(k) for k in labels], classes, name or f"{len(given)} pictures")
