"""The state of an ascent on disk: written whole, read only by the run that it belongs to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convoscope.files import make_folder, replaced


class Stored:
    """One file for each batch of rows, named by everything that its result depends on."""

    def __init__(self, path: Path, rows: Any) -> None:
        self.path, self.rows = path, rows

    @classmethod
    def of(cls, run: Any, rows: Any) -> "Stored":
        """The state of these rows of a run, in the run's folder."""
        make_folder(run.store)
        said = {
            "network": run.network.hash, "image": run.image.to_dict(), "space": [run.space.channels, *run.space.size],
            "dtype": str(run.space.dtype), "steps": run.steps, "rate": run.rate, "optimizer": run.optimizer,
            "transforms": [t.to_dict() for t in run.transforms], "penalties": [p.to_dict() for p in run.penalties],
            "expert": repr(run.expert), "weight": run.expert_weight, "views": run.views, "redirect": run.redirect,
            "seed": run.seed, "rows": rows.rows, "batch": run.batch_size,
            "targets": [rows.targets[int(n)].to_dict() for n in rows.numbers],
            "start": run.start if isinstance(run.start, str) else _digest(run.start),
        }  # fmt: skip
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
        return cls(run.store / f"{digest}.ascent.safetensors", rows)

    def save(self, step: int) -> None:
        """Writes the state after `step` steps."""
        rows = self.rows
        tensors: dict[str, Tensor] = {f"parameter.{k}": p.detach() for k, p in rows.parameters.items()}
        tensors |= {f"update.{k}": t for k, t in rows.update.state().items()}
        tensors |= {f"frame.{s}": f for s, f in rows.frames}
        if rows.history:
            tensors["history"] = torch.stack(rows.history)
        about = {"step": str(step), "dead": str(int(rows.dead))}
        with replaced(self.path) as partial:
            save_file({k: t.cpu().contiguous().clone() for k, t in tensors.items()}, partial, metadata=about)

    def resume(self) -> int:
        """Puts the rows where the file says; how many steps are done. A damaged file counts as none."""
        if not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        except (OSError, SafetensorError):
            return 0
        rows, space = self.rows, self.rows.ascent.space
        with torch.no_grad():
            for name, p in rows.parameters.items():
                p.copy_(found[f"parameter.{name}"])
        update = {k.removeprefix("update."): t for k, t in found.items() if k.startswith("update.")}
        rows.update.restore({k: t.to(space.device) if t.dim() else t for k, t in update.items()})
        rows.frames = sorted((int(k.removeprefix("frame.")), t) for k, t in found.items() if k.startswith("frame."))
        rows.history = list(found["history"]) if "history" in found else []
        rows.dead = about.get("dead") == "1"
        return int(about["step"])


def _digest(pixels: Tensor) -> str:
    raw = pixels.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(memoryview(raw.numpy()), digest_size=8).hexdigest()
