"""Finished parts of an evaluation on disk: a metric on some images, whole or absent, found by all that it depends on."""

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from convoscope.engine.keys import digest
from convoscope.engine.store import write_durably
from convoscope.files import make_folder

FORMAT = "convoscope.evaluation/1"


@dataclass
class Part:
    """The scores `(methods, images)` of a metric, why some methods have none, the metric's unit and what it cost.

    `shuffled` are the scores of maps with their values at other places, `(permutations, methods, images)`.
    """

    scores: Tensor
    unit: str = ""
    passes: int = 0
    explained: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    shuffled: Tensor | None = None


class Kept:
    """A folder with a file for each metric and group of images. Damaged files count as absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        make_folder(self.folder)

    def path(self, *what: Any) -> Path:
        """The file of what depends on all of this and on nothing else."""
        return self.folder / f"{digest(FORMAT, *what)}.evaluation.safetensors"

    def find(self, path: Path) -> Part | None:
        """What `keep` was given, to the bit."""
        found = read(path)
        return None if found is None else Part(**found[1], **found[0])

    def keep(self, path: Path, part: Part) -> None:
        """Writes a part: afterwards it is on the disk."""
        about = {"unit": part.unit, "passes": part.passes, "explained": part.explained, "left_out": part.left_out}
        tensors = {"scores": part.scores} if part.shuffled is None else {"scores": part.scores, "shuffled": part.shuffled}
        write(path, about, tensors)

    def clear(self) -> None:
        """Removes the parts, and the folder if nothing else is in it."""
        for path in self.folder.glob("*.evaluation.safetensors"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `write` was given; None where the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            said, tensors = file.metadata()["said"], {key: file.get_tensor(key) for key in sorted(file.keys())}
            checked = file.metadata()["checksum"] == _checksum(said, tensors)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return (json.loads(said), tensors) if checked else None


def write(path: Path, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes JSON values and tensors; afterwards they are on the disk, whole."""
    said, tensors = json.dumps(about), {key: value.contiguous() for key, value in tensors.items()}
    write_durably(path, [save(tensors, {"said": said, "checksum": _checksum(said, tensors)})])


def _checksum(said: str, tensors: dict[str, Tensor]) -> str:
    made = hashlib.blake2b(said.encode(), digest_size=16)
    for key, value in sorted(tensors.items()):
        made.update(f"{key} {tuple(value.shape)}".encode())
        made.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return made.hexdigest()
