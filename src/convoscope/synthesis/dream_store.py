"""The state of a dream on disk: written whole, read only by the dream that it belongs to."""

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
    """One file, named by everything that the result depends on."""

    def __init__(self, path: Path, run: Any) -> None:
        self.path, self.run = path, run

    @classmethod
    def of(cls, run: Any, folder: Path) -> "Stored":
        """The state of a dream in a folder."""
        make_folder(folder)
        said = {
            "network": run.network.hash, "picture": digest(run.picture), "target": run.target.to_dict(), "sizes": run.sizes,
            "steps": run.steps, "rate": run.rate, "jitter": run.jitter, "bands": run.bands, "tile": run.tile,
            "halo": run.halo, "exact": run.exact, "seed": run.seed, "batch": run.batch_size,
        }  # fmt: skip
        name = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
        return cls(folder / f"dream-{name}.safetensors", run)

    def save(self) -> None:
        """Writes where the dream is now."""
        run = self.run
        tensors = {"pixels": run.pixels.cpu().contiguous(), "history": torch.tensor(run.history, dtype=torch.float64)}
        tensors |= {f"frame.{k}.{name}": f.contiguous() for k, (name, f) in enumerate(run.frames)}
        about = {"octave": str(run.octave), "step": str(run.step), "evaluations": str(run.evaluations)}
        with replaced(self.path) as partial:
            save_file(tensors, partial, metadata=about)

    def resume(self) -> bool:
        """Puts the dream where the file says, if there is one. A damaged file counts as none."""
        if not self.path.is_file():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        except (OSError, SafetensorError):
            return False
        run = self.run
        run.pixels = found["pixels"].to(run.picture)
        run.history = found["history"].tolist()
        keys = sorted((k for k in found if k.startswith("frame.")), key=lambda k: int(k.split(".")[1]))
        run.frames = [(key.split(".", 2)[2], found[key]) for key in keys]
        run.octave, run.step, run.evaluations = (int(about[k]) for k in ("octave", "step", "evaluations"))
        return True


def digest(pixels: Tensor) -> str:
    """Sixteen digits of the content of a tensor."""
    raw = pixels.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(memoryview(raw.numpy()), digest_size=8).hexdigest()
