"""Tensors in a file that is whole or absent, with a checksum: what was read is what was written, to the bit, or nothing."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from convoscope.core.errors import LoadError
from convoscope.files import replaced

CHECKSUM = "checksum"
DAMAGE = (SafetensorError, ValueError, TypeError, OverflowError, AttributeError, KeyError)  # of what a damaged file is read as


def write_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name and texts by name to a .safetensors file. Raises ConvoscopeError where that cannot be done."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    said = dict(metadata or {})
    data = safetensors.torch.save(plain, said | {CHECKSUM: _checksum(plain, said)})
    with replaced(path) as partial:
        partial.write_bytes(data)


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `write_sealed` was given; nothing where there is no such file, or any of its bytes is another."""
    try:
        tensors, said = _read(path)
    except (OSError, *DAMAGE):
        return None
    return (tensors, said) if said.pop(CHECKSUM, "") == _checksum(tensors, said) else None


def open_sealed(path: str | Path, what: str, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_sealed` was given, with `form` as its text "format".

    Raises LoadError where there is no such file, it holds something else than `what`, or any of its bytes is another.
    """
    try:
        tensors, said = _read(Path(path))
    except OSError as error:
        raise LoadError(f"cannot read {str(path)!r}: {(error.strerror or str(error)).lower()}") from None
    except DAMAGE as error:
        raise LoadError(f"cannot read {str(path)!r}, it is damaged or no .safetensors file: {error}") from None
    if said.get("format") != form:
        raise LoadError(f"{str(path)!r} holds no {what} (its format is {said.get('format')!r}, expected {form!r})")
    if said.pop(CHECKSUM, "") != _checksum(tensors, said):
        raise LoadError(f"{str(path)!r} is damaged: its checksum is another; take another copy or make it again")
    return tensors, said


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    data = path.read_bytes()  # once: another process may put another file in its place at any moment
    said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return safetensors.torch.load(data), dict(said)


def _checksum(tensors: Mapping[str, Tensor], said: Mapping[str, str]) -> str:
    found = hashlib.blake2b(repr(sorted(said.items())).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()


def write_state(path: Path, state: Any) -> None:
    """Write anything that torch.save takes. Raises ConvoscopeError where that cannot be done."""
    data = io.BytesIO()
    torch.save(state, data)
    with replaced(path) as partial:
        partial.write_bytes(data.getbuffer())


def read_state(path: Path) -> Any:
    """What `write_state` was given, of tensors, numbers, texts, lists and dictionaries.

    Raises OSError, or ValueError where the file is damaged: PyTorch itself does not look at the checksums in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)
