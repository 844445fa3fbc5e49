"""The scenes as a data set whose every pixel is known: labels come from the renderer, not from looking."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.data.dataset import Concept, Dataset
from convoscope.data.folders import Files, open_folder, stamp
from convoscope.data.masks import check_there, read_numbers

from .dataset import Scenes
from .factors import CATEGORIES
from .rendering import MAPS, NAMES

NOTHING = {"texture": ("plain",)}  # names that say that there is none of the category


@lru_cache(maxsize=1)
def _numbers() -> tuple[tuple[Concept, ...], np.ndarray]:
    """All concepts, and the number of each value of each map `(maps, values)`."""
    concepts: list[Concept] = []
    table = np.zeros((len(MAPS), max(len(names) for names in NAMES.values())), np.int32)
    for row, kind in enumerate(MAPS):
        for value, name in enumerate(NAMES[kind]):
            if name and name not in NOTHING.get(kind, ()):
                concepts.append(Concept(name, kind))
                table[row, value] = len(concepts)
    return tuple(concepts), table


class LabeledScenes(Dataset):
    """Pictures drawn by rule with six layers of labels: scene, object, part, material, texture and color.

    Each layer says what the topmost form that covers at least half of the pixel is, as it was painted, before light: the scene
    is labeled where it is seen, parts are those of objects and distractors, scenery has a material and a color too. A plain
    surface has no texture. Classes are the ten species, as labeled (planted faults included).
    """

    def __init__(self, scenes: Scenes) -> None:
        if scenes.transform is not None:
            raise UsageError("scenes with a transform have no labels at their pixels; give Scenes without one")
        self.scenes = scenes
        self.name = f"scenes:{len(scenes)}"
        self.classes = tuple(scenes.categories)
        self.concepts, self._table = _numbers()
        self._made = hashlib.blake2b(repr((scenes.seed, scenes.size, scenes.faults)).encode(), digest_size=6).hexdigest()

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, i: int) -> str:
        return f"scenes:{self._made}:{self.scenes._indices[self.row(i)]}"

    def picture(self, i: int) -> Image.Image:
        return Image.fromarray(self.scenes.sample(self.row(i)).picture)

    def class_of(self, i: int) -> int:
        return self.scenes.label(self.row(i))

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        maps = self.scenes.sample(self.row(i)).maps
        return torch.from_numpy(np.stack([self._table[k][maps[kind]] for k, kind in enumerate(MAPS)]))


def open_scenes(
    source: str | Scenes,
    seed: int = 0,
    size: int = 96,
    watermark: float | Mapping[str, float] = 0.0,
    background: float | Mapping[str, tuple[str, float]] = 0.0,
    wrong_labels: float = 0.0,
    random_labels: bool = False,
    corner: str = "bottom right",
) -> LabeledScenes:
    """`"scenes"` (1,000 pictures) or `"scenes:COUNT"`; the settings are those of `Scenes`. Raises UsageError for others."""
    count = source.partition(":")[2] or "1000" if isinstance(source, str) else ""
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"the scenes are opened as 'scenes:500', with the number of pictures; got {source!r}")
    faults: dict[str, Any] = {"watermark": watermark, "background": background, "wrong_labels": wrong_labels}
    return LabeledScenes(Scenes(int(count), seed, size, **faults, random_labels=random_labels, corner=corner))


class WrittenScenes(Files):
    """A folder of scenes that `write_folder` made: the pictures as they lie there, labels from the maps beside them."""

    def __init__(self, root: str, places: Sequence[str], of: Sequence[int], classes: Sequence[str], name: str) -> None:
        Files.__init__(self, root, places, of, classes, name)
        self.concepts, self._table = _numbers()

    def _maps(self, i: int) -> list[str]:
        file = os.path.basename(self.places[self.row(i)])
        return [f"maps/{kind}/{file}" for kind in MAPS]

    def key(self, i: int) -> str:
        return "|".join([Files.key(self, i), *(stamp(self.root, m) for m in self._maps(i))])

    def segments(self, i: int) -> Int[Tensor, "layers height width"]:
        maps = [read_numbers(os.path.join(self.root, m)) for m in self._maps(i)]
        return torch.from_numpy(np.stack([row.take(m, mode="clip") for row, m in zip(self._table, maps, strict=True)]))


def open_written(path: Path, name: str = "") -> WrittenScenes:
    """A folder that `convoscope scenes` wrote. Raises UsageError naming a map that is missing."""
    found = open_folder(path / "pictures")
    assert isinstance(found, Files)
    names = CATEGORIES if set(found.classes) <= set(CATEGORIES) else found.classes
    of = [names.index(found.classes[k]) for k in found.of]
    rows = sorted(zip(found.places, of, strict=True), key=lambda r: os.path.basename(r[0]))
    places = [f"pictures/{p}" for p, _ in rows]
    made = WrittenScenes(str(path), places, [k for _, k in rows], names, name or os.path.basename(os.path.abspath(path)))
    check_there(str(path), (m for i in range(len(made)) for m in made._maps(i)), "the folder of scenes")
    return made
