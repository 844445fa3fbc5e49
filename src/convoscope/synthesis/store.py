"""The state of an ascent on disk: written whole, read only by the run that it belongs to."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.data.sealed import read_sealed, write_sealed
from convoscope.files import make_folder

FORMAT = "convoscope.ascent/1"


class Stored:
    """One file for each batch of rows, named by everything that its result depends on."""

    def __init__(self, path: Path, rows: Any) -> None:
        self.path, self.rows = path, rows

    @classmethod
    def of(cls, run: Any, rows: Any) -> "Stored":
        """The state of these rows of a run, in the run's folder."""
        make_folder(run.store)
        said = run.settings() | {
            "format": FORMAT, "network": run.network.hash, "space": [run.space.channels, *run.space.size],
            "input": [run.network.mean, run.network.std], "where": [str(run.space.dtype), run.space.device.type],
            "rows": rows.rows, "batch": run.batch_size, "targets": [rows.targets[int(n)].to_dict() for n in rows.numbers],
            "start": run.start if isinstance(run.start, str) else _digest([run.start]),
        }  # fmt: skip
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
        return cls(run.store / f"{digest}.ascent.safetensors", rows)

    def save(self, step: int) -> None:
        """Writes the state after `step` steps."""
        rows = self.rows
        tensors = self._tensors() | {f"frame.{s}": f for s, f in rows.frames}
        tensors["history"] = rows.past()
        write_sealed(self.path, tensors, {"step": str(step)})

    def resume(self) -> int:
        """Puts the rows where the file says; how many steps are done. A damaged file, or none, counts as none."""
        if (read := read_sealed(self.path)) is None:
            return 0
        found, step = read[0], int(read[1]["step"])
        mine, history = self._tensors(), found.get("history", torch.zeros(0, len(self.rows.rows)))
        if any(k not in found or found[k].shape != t.shape for k, t in mine.items()) or len(history) != step:
            return 0
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(found[name])
        self.rows.frames = sorted((int(k.removeprefix("frame.")), t) for k, t in found.items() if k.startswith("frame."))
        self.rows.history = list(history)
        return step

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and the optimizer's memory: the tensors themselves."""
        parameters = {f"parameter.{k}": p.detach() for k, p in self.rows.parameters.items()}
        return parameters | {f"update.{k}": t for k, t in self.rows.update.state().items()}


def identity(thing: Any) -> Any:
    """What tells an expert from another, as JSON values: its settings, its `hash`, its weights, or else its name."""
    if thing is None:
        return None
    if hasattr(thing, "to_dict"):
        return thing.to_dict()
    if isinstance(getattr(thing, "hash", None), str):
        return [type(thing).__name__, thing.hash]
    if callable(getattr(thing, "tensors", None)):
        return [type(thing).__name__, _digest(list(thing.tensors().values()))]
    if isinstance(thing, nn.Module):
        return [type(thing).__name__, _digest(list(thing.state_dict().values()))]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()
