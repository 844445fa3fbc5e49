"""The FunnyBirds data set (Hesse et al. 2023): rendered birds, with masks of their parts and pictures without some of them."""

import itertools
import json
import os
import re
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from convoscope.core.errors import ImageError, UsageError
from convoscope.data.dataset import Concept
from convoscope.data.folders import stamp
from convoscope.data.parts import PartPictures, Rivals

# The colors of the part maps; pairs (two eyes, feet, wings) have one each.
PART_COLORS = {
    (255, 255, 253): "eye", (255, 255, 254): "eye", (255, 255, 0): "beak", (255, 0, 1): "foot", (255, 0, 2): "foot",
    (0, 255, 1): "wing", (0, 255, 2): "wing", (0, 0, 255): "tail",
}  # fmt: skip
AROUND = 50  # objects of the background that the maps have a color for: (204, 204, 204 + k)


class FunnyBirds(PartPictures):
    """The folder FunnyBirds as it is unpacked: `test` or `train`, with part maps, and interventions where there are any.

        classes.json  parts.json  dataset_test.json
        test/3/000031.png                                     picture 31, of class 3
        test_part_map/3/000031.png                            its parts, one color each
        test_interventions/3/000031/body_beak_eye.png         with beak and eye alone
        test_interventions/3/000031/background_interventions/0.png    without the first object of the background

    Rows are those of `dataset_test.json`. Masks and interventions are read when they are asked for. Raises UsageError, naming
    it, for a file that is not there, and for one that is not as it has to be.
    """

    margin = 2  # the published evaluation widens the masks by that much

    def __init__(self, root: str | os.PathLike[str], split: Literal["test", "train"] = "test") -> None:
        self.root, self.split = os.fspath(Path(root).expanduser()), split
        if split not in ("test", "train"):
            raise UsageError(f"FunnyBirds has the splits test and train; got {split!r}")
        self.name = f"FunnyBirds {split}"
        self.params = _read(self.root, f"dataset_{split}.json", list)
        self._classes = sorted(_read(self.root, "classes.json", list), key=lambda c: c["class_idx"])
        self.part_names = tuple(_read(self.root, "parts.json", dict))
        self._check()
        self.classes = tuple(f"class {c['class_idx']}" for c in self._classes)
        around = (Concept(f"background {k}", "object") for k in range(AROUND))
        self.concepts = (*(Concept(p, "part") for p in self.part_names), *around)
        self._rows = range(len(self.params))
        if self.params:
            _there(self.root, self._place(self.split, 0), "the pictures")

    def key(self, i: int) -> str:
        return stamp(self.root, self._place(self.split, self.row(i)))

    def picture(self, i: int) -> str:
        return os.path.join(self.root, self._place(self.split, self.row(i)))

    def class_of(self, i: int) -> int:
        return int(self._params(i)["class_idx"])

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        path = _there(self.root, self._place(f"{self.split}_part_map", self.row(i)), "the part maps")
        with Image.open(path, formats=["PNG"]) as opened:
            if opened.mode not in ("RGB", "RGBA"):
                raise ImageError(f"the part map {path!r} has pixels of mode {opened.mode}; expected RGB or RGBA")
            pixels = np.asarray(opened.convert("RGB")).astype(np.int32)
        code = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
        known, numbers = self._codes
        at = np.searchsorted(known, code).clip(max=len(known) - 1)
        return torch.from_numpy(np.where(known[at] == code, numbers[at], 0).astype(np.int32))[None]

    # ---- parts
    def parts(self, i: int) -> tuple[str, ...]:
        """The parts of bird `i`; in the training pictures some are left out."""
        params = self._params(i)
        return tuple(p for p in self.part_names if params.get(f"{p}_model") not in (None, "", "placeholder"))

    def surroundings(self, i: int) -> tuple[str, ...]:
        count = len(re.findall(r"\d+", str(self._params(i).get("bg_objects", ""))))
        return tuple(f"background {k}" for k in range(count))

    def without(self, i: int, names: Collection[str]) -> str:
        """The path of picture `i` without these parts, or without one object of the background."""
        self.check_names(i, names)
        if not names:
            return self.picture(i)
        folder = self._place(f"{self.split}_interventions", self.row(i)).removesuffix(".png")
        around = [n for n in names if n in self.surroundings(i)]
        if around:
            file = f"background_interventions/{around[0].removeprefix('background ')}.png"
        else:
            file = f"body_{'_'.join(sorted(set(self.parts(i)) - set(names)))}.png"
        return _there(self.root, f"{folder}/{file}", "the interventions")

    def sufficient(self, i: int) -> tuple[frozenset[str], ...]:
        """The smallest sets of parts that no other class has alike (Hesse et al. 2023)."""
        own = self._models(self.class_of(i))
        others = [self._models(k) for k in range(len(self._classes)) if k != self.class_of(i)]
        found: list[frozenset[str]] = []
        for size in range(1, len(own) + 1):
            for names in itertools.combinations(own, size):
                if any(f <= set(names) for f in found):
                    continue
                if not any(all(o[n] == own[n] for n in names) for o in others):
                    found.append(frozenset(names))
        return tuple(found)

    def rivals(self, i: int) -> Rivals | None:
        """The first two classes that share two parts each with the bird's class, no part with both; None: there are none."""
        own = self._models(self.class_of(i))
        shared = {
            k: frozenset(p for p in own if own[p] == self._models(k)[p])
            for k in range(len(self._classes))
            if k != self.class_of(i)
        }
        near = [(k, parts) for k, parts in shared.items() if len(parts) == 2]
        for (a, first), (b, second) in itertools.combinations(near, 2):
            if not first & second:
                return Rivals((a, b), (first, second))
        return None

    # ---- files
    @cached_property
    def _codes(self) -> tuple[np.ndarray, np.ndarray]:
        """The colors of the maps as whole numbers, ascending, and the concept of each."""
        numbers = {name: k + 1 for k, name in enumerate(c.name for c in self.concepts)}
        colors = {c: numbers[p] for c, p in PART_COLORS.items() if p in numbers}
        colors |= {(204, 204, 204 + k): numbers[f"background {k}"] for k in range(AROUND)}
        pairs = sorted(((r << 16) + (g << 8) + b, n) for (r, g, b), n in colors.items())
        return np.array([c for c, _ in pairs]), np.array([n for _, n in pairs])

    def _params(self, i: int) -> dict[str, Any]:
        return self.params[self._rows[self.row(i)]]

    def _models(self, k: int) -> dict[str, int]:
        return self._classes[k]["parts"]

    def _place(self, folder: str, i: int) -> str:
        row = self._rows[i]
        return f"{folder}/{self.params[row]['class_idx']}/{row:06d}.png"

    def _check(self) -> None:
        numbers = [c.get("class_idx") for c in self._classes]
        if numbers != list(range(len(numbers))):
            raise UsageError(f"classes.json in {self.root!r} numbers its classes {numbers[:5]}...; expected 0, 1, 2, ...")
        for c in self._classes:
            if set(c.get("parts", ())) != set(self.part_names):
                raise UsageError(
                    f"class {c['class_idx']} in classes.json has the parts {', '.join(c.get('parts', ()))}, "
                    f"parts.json in {self.root!r} has {', '.join(self.part_names)}"
                )
        for row, params in enumerate(self.params):
            if params.get("class_idx") not in range(len(numbers)):
                raise UsageError(
                    f"row {row} of dataset_{self.split}.json is of class {params.get('class_idx')}; classes.json in "
                    f"{self.root!r} has 0 to {len(numbers) - 1}"
                )


def open_funny_birds(path: Path, split: Literal["test", "train"] = "test") -> FunnyBirds:
    """The data set in a folder, for `open_dataset`."""
    return FunnyBirds(path, split)


def _read(root: str, file: str, kind: type) -> Any:
    path = os.path.join(root, file)
    try:
        with open(path, encoding="utf-8") as opened:
            found = json.load(opened)
    except FileNotFoundError:
        raise UsageError(
            f"no {file} in {root!r}; expected the unpacked folder FunnyBirds, with classes.json and parts.json"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path!r} cannot be read as JSON: {error}") from None
    entries = found if kind is list else found.values() if isinstance(found, dict) else ()
    if not isinstance(found, kind) or not all(isinstance(e, dict if kind is list else list) for e in entries):
        expected = "a list of mappings" if kind is list else "lists by name"
        raise UsageError(f"{path!r} holds no {expected}; is it that of FunnyBirds?")
    return found


def _there(root: str, place: str, what: str) -> str:
    path = os.path.join(root, place)
    if not os.path.isfile(path):
        folder = place.partition("/")[0]
        have = sorted(e.name for e in os.scandir(root) if e.is_dir())
        why = f"the folder {folder!r} is not there" if folder not in have else "the folder is there, the file is not"
        raise UsageError(
            f"no {path!r}: {why}; {what} of FunnyBirds are in {folder}/, and {root!r} has {', '.join(have) or 'none'}"
        )
    return path
