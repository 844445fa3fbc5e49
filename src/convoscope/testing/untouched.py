"""What an explanation has to leave as it was."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OBJECTS = "the objects that are parameters and buffers"
TENSORS = ("values of parameters and buffers", ".grad")


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {k: list(v.items()) for k, v in vars(module).items() if k.endswith("_hooks") and v and isinstance(v, Mapping)}


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a module and about the process that an explanation has to leave as it was."""
    numpy_state = np.random.get_state()
    modules = dict(module.named_modules())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "training flags": {n: m.training for n, m in modules.items()},
        "hooks": {n: _hooks(m) for n, m in modules.items()},
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        OBJECTS: {n: id(t) for n, t in tensors.items()},
        "values of parameters and buffers": {n: t.detach().clone() for n, t in tensors.items()},
        "requires_grad": {n: t.requires_grad for n, t in tensors.items()},
        ".grad": {n: None if t.grad is None else t.grad.clone() for n, t in tensors.items()},
        "hooks of parameters": {n: _own_hooks(t) for n, t in tensors.items()},
        "random state of torch": torch.get_rng_state(),
        "random state of numpy": (np.asarray(numpy_state[1]).tobytes(), numpy_state[2]),
        "random state of python": hash(random.getstate()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function modes": torch._C._len_torch_function_stack(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "defaults of tensors": (torch.get_default_dtype(), str(torch.get_default_device())),
        "number of threads": torch.get_num_threads(),
    }


def _own_hooks(tensor: Tensor) -> tuple[list[Any], ...]:
    kinds = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)  # type: ignore[attr-defined]
    return tuple([] if hooks is None else list(hooks.items()) for hooks in kinds)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


class Watch:
    """What a module, an input and the process were like, to be compared with what they are like later."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x, self.version = module, x, None if x.is_inference() else x._version
        self.before, self.pixels, self.leaf = state(module), x.detach().clone(), x.requires_grad

    def check(self, when: str) -> None:
        """Raises AssertionError naming what has changed: of the module, of the input, or of the process."""
        after = state(self.module)
        for what, value in self.before.items():
            if what in TENSORS:
                same = value.keys() == after[what].keys() and all(_equal(v, after[what][k]) for k, v in value.items())
            else:
                same = _equal(value, after[what])
            assert same, f"{when}: {what} changed"
        assert torch.equal(self.pixels, self.x), f"{when}: the input changed"
        assert self.version in (None, self.x._version), f"{when}: the input was written to"
        assert self.x.requires_grad == self.leaf, f"{when}: whether the input requires a gradient changed"
        assert not self.x.is_leaf or self.x.grad is None, f"{when}: the input got a gradient"


@contextmanager
def unchanged(module: nn.Module, x: Tensor, when: str) -> Iterator[None]:
    """Raises AssertionError naming what has changed inside: of the module, of the input, or of the process."""
    watch = Watch(module, x)
    yield
    watch.check(when)
