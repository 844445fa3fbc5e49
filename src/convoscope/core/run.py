"""The state in which a network is run: evaluation mode, no gradients for parameters, everything as it was afterwards."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from convoscope.core.errors import UnsupportedError

_lock = threading.Lock()
AT_ONCE = 8 * 224 * 224  # pixels: on a CPU, fresh memory for larger activations costs more than larger batches gain


def rows_at_once(x: torch.Tensor) -> int:
    """How many rows like those of `x` `(B, C, ...)` to run at once where nobody says: 8 of 224 x 224 pixels, 128 on a GPU."""
    if x.device.type != "cpu":
        return 128
    return min(128, max(4, AT_ONCE // max(1, x[0, 0].numel())))


_held: dict[int, tuple[Any, str, bool, int]] = {}  # id -> (module or parameter, attribute, value before, holders)


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and frozen parameters inside; every flag as it was outside, whatever happens.

    Several threads may hold the same network: the first saves, the last restores. Gradients can be computed inside
    whatever mode the caller is in (`no_grad`, `inference_mode`, autocast).
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        parameters = dict(module.named_parameters())
        for device in {p.device.type for p in parameters.values()} | {"cpu"}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        taken: list[int] = []
        stack.callback(_release, taken)
        with _lock:
            for part in module.modules():
                if hasattr(part, "training"):  # frozen TorchScript has no modes
                    _take(part, "training", taken)
            for name, parameter in parameters.items():
                if parameter.is_inference():
                    raise UnsupportedError(
                        f"parameter {name!r} was made inside torch.inference_mode(), so nothing that uses it can have a "
                        "gradient; build or load the network outside of it"
                    )
                _take(parameter, "requires_grad", taken)
            for key in taken:  # all are read before any is set: a compiled module's flag is that of the module inside
                thing, attribute, before, _ = _held[key]
                if before:
                    setattr(thing, attribute, False)
        if "torch._dynamo" in sys.modules and _compiled(module):
            stack.enter_context(_eager())
        yield module


def _take(thing: Any, attribute: str, taken: list[int]) -> None:
    _, _, before, holders = _held.get(id(thing), (thing, attribute, getattr(thing, attribute), 0))
    _held[id(thing)] = (thing, attribute, before, holders + 1)
    taken.append(id(thing))


def _release(taken: list[int]) -> None:
    with _lock:
        for key in taken:
            thing, attribute, before, holders = _held[key]
            if holders > 1:
                _held[key] = (thing, attribute, before, holders - 1)
                continue
            del _held[key]
            if getattr(thing, attribute) != before:
                setattr(thing, attribute, before)


def _compiled(module: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in module.modules())


class _Eager:
    """`torch.compiler.set_stance` is one switch for the process; the last holder turns it back."""

    holders = 0
    stance: Any = None


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    with _lock:
        if _Eager.holders == 0:
            _Eager.stance = torch.compiler.set_stance("force_eager")
            _Eager.stance.__enter__()
        _Eager.holders += 1
    try:
        yield
    finally:
        with _lock:
            _Eager.holders -= 1
            if _Eager.holders == 0:
                _Eager.stance.__exit__(None, None, None)
