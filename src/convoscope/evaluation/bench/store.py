"""What methods scored on tasks, on disk: a file for each method on each task, whole or absent, found by all it depends on."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from convoscope.engine.keys import digest
from convoscope.evaluation.kept import read, write
from convoscope.files import make_folder

FORMAT = "convoscope.bench/1"


@dataclass
class Scored:
    """The score of each item, or none and the reason; how long it took; the maps, where they are wanted later."""

    scores: Tensor | None
    reason: str = ""
    seconds: float = 0.0
    maps: Tensor | None = None


class Store:
    """A folder of scores. Another version of convoscope finds none of them; damaged files count as absent."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        make_folder(self.folder)

    def path(self, *what: Any) -> Path:
        """The file of what depends on all of this and on nothing else."""
        return self.folder / f"{digest(FORMAT, _version(), *what)}.bench.safetensors"

    def find(self, *what: Any) -> Scored | None:
        """What `keep` was given for the same."""
        found = read(self.path(*what))
        return None if found is None else Scored(found[1].get("scores"), maps=found[1].get("maps"), **found[0])

    def keep(self, scored: Scored, *what: Any) -> None:
        """Writes it: afterwards it is on the disk."""
        tensors = {"scores": scored.scores, "maps": scored.maps}
        write(
            self.path(*what), {"reason": scored.reason, "seconds": scored.seconds},
            {name: values for name, values in tensors.items() if values is not None},
        )  # fmt: skip


def _version() -> str:
    try:
        return version("convoscope")
    except PackageNotFoundError:  # run from a folder
        return ""
