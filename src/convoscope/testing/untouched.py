"""What an explanation has to leave as it was."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {k: list(v.items()) for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, Mapping)}


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a module and about the process that an explanation has to leave as it was."""
    numpy_state = np.random.get_state()
    modules = dict(module.named_modules())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "training flags": {n: m.training for n, m in modules.items()},
        "hooks": {n: _hooks(m) for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "the objects that are parameters and buffers": {n: id(t) for n, t in tensors.items()},
        "values of parameters and buffers": {n: t.detach().clone() for n, t in tensors.items()},
        "requires_grad": {n: t.requires_grad for n, t in tensors.items()},
        ".grad": {n: None if t.grad is None else t.grad.clone() for n, t in tensors.items()},
        "hooks of parameters": {n: (t._backward_hooks, t._post_accumulate_grad_hooks) for n, t in tensors.items()},  # type: ignore[attr-defined]
        "random state of torch": torch.get_rng_state(),
        "random state of numpy": (np.asarray(numpy_state[1]).tobytes(), numpy_state[2]),
        "random state of python": hash(random.getstate()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch._C._len_torch_function_stack(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


@contextmanager
def unchanged(module: nn.Module, x: Tensor, when: str) -> Iterator[None]:
    """Raises AssertionError naming what has changed inside: of the module, of the input, or of the process."""
    before, pixels, version = state(module), x.clone(), None if x.is_inference() else x._version
    try:
        yield
    finally:
        after = state(module)
    for what, value in before.items():
        assert _equal(value, after[what]), f"{when}: {what} changed"
    assert torch.equal(pixels, x), f"{when}: the input changed"
    assert version is None or version == x._version, f"{when}: the input was written to"
    assert not x.requires_grad, f"{when}: the input now requires a gradient"
