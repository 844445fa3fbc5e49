"""States of long work on disk: written whole, found again only by the work that they belong to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convoscope.files import make_folder, replaced


class State:
    """One file in a folder, named by `said`: everything, as JSON values, that the result depends on."""

    def __init__(self, folder: str | Path, said: dict[str, Any]) -> None:
        make_folder(Path(folder))
        name = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.path = Path(folder) / f"{name}.ascent.safetensors"

    def save(self, tensors: dict[str, Tensor], **about: Any) -> None:
        """Writes the state; what was there before stays until all is written."""
        whole = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        with replaced(self.path) as partial:
            save_file(whole, partial, metadata={k: json.dumps(v) for k, v in about.items()})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last. A damaged file, or none, is nothing."""
        try:
            with safe_open(self.path, "pt") as file:
                about = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
                return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118  not a mapping
        except (OSError, SafetensorError, ValueError):
            return None


def digest(*tensors: Tensor) -> str:
    """Sixteen digits of the content of tensors."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        found.update(memoryview(raw.numpy()))
    return found.hexdigest()
