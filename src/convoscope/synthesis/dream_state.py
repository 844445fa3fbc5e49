"""States of long work on disk: written whole, found again only by the work that they belong to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convoscope.data.sealed import read_sealed, write_sealed
from convoscope.files import make_folder


class State:
    """One file in a folder, named by `said`: everything, as JSON values, that the result depends on."""

    def __init__(self, folder: str | Path, said: dict[str, Any]) -> None:
        make_folder(Path(folder))
        name = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.path = Path(folder) / f"{name}.ascent.safetensors"

    def save(self, tensors: dict[str, Tensor], **about: Any) -> None:
        """Writes the state; what was there before stays until all is written."""
        write_sealed(self.path, tensors, {k: json.dumps(v) for k, v in about.items()})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last. A damaged file, or none, is nothing."""
        found = read_sealed(self.path)
        return None if found is None else (found[0], {k: json.loads(v) for k, v in found[1].items()})


def digest(*tensors: Tensor) -> str:
    """Sixteen digits of the content of tensors."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        found.update(memoryview(raw.numpy()))
    return found.hexdigest()
