"""What identifies a network: digits that change with any of its weights."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.operators import tensors_in


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers as plain tensors: those of FSDP put together, packed and quantized ones as real numbers."""
    found: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        for i, t in enumerate(tensors_in(value)):
            t = t.full_tensor() if hasattr(t, "full_tensor") else t
            found[key if isinstance(value, Tensor) else f"{key}.{i}"] = t.dequantize() if t.is_quantized else t
    return found


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Sixteen digits of the names, types, shapes and values of tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for key, tensor in state.items():
        raw = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(raw.view(torch.uint8).numpy()))
    return digest.hexdigest()


def version_of(state: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What any change of one value changes, also through `.data`, at the speed of memory and read from the device at once."""
    sums = [s for t in state.values() for s in _sums(t.detach().reshape(-1))]
    spread = len({s.device for s in sums}) > 1
    counts = torch.stack([s.cpu() for s in sums] if spread else sums).tolist() if sums else []
    places = tuple((k, t.data_ptr(), 0 if t.is_inference() else t._version) for k, t in state.items())
    return (*places, *counts)


def _sums(values: Tensor) -> Iterator[Tensor]:
    size = values.element_size()
    whole = len(values) * size // 8 * 8 // size
    words = values[:whole]
    yield (words.clone() if words.storage_offset() * size % 8 else words).view(torch.int64).sum()
    if whole < len(values):
        yield values[whole:].clone().view(torch.uint8).sum()
