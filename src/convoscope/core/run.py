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


_held: dict[tuple[int, str], tuple[Any, str, Any, int]] = {}  # of a module, parameter or buffer: value before, holders


class _Compiler:
    """Whether what torch.compile made runs, or the Python it was made from: one switch for the process."""

    eager: Any = None

    @property
    def runs(self) -> bool:
        return self.eager is None

    @runs.setter
    def runs(self, wanted: bool) -> None:
        eager, self.eager = self.eager, None if wanted else torch.compiler.set_stance("force_eager")
        (eager.__exit__(None, None, None) if wanted else self.eager.__enter__())


_COMPILER = _Compiler()


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and frozen parameters inside; every flag as it was outside, whatever happens.

    Several threads may hold the same network: the first saves, the last restores. Gradients can be computed inside
    whatever mode the caller is in (`no_grad`, `inference_mode`, autocast).
    """
    with torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
        parameters = dict(module.named_parameters())
        for device in {p.device.type for p in parameters.values()} | {"cpu"}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        taken: list[tuple[int, str]] = []
        stack.callback(_release, taken)
        with _lock:
            for part in module.modules():
                if hasattr(part, "training"):  # frozen TorchScript has no modes
                    _take(part, "training", taken)
                for buffer in () if type(part).__module__.startswith("torch.nn.") else part.buffers(recurse=False):
                    _take(buffer, "data", taken)  # it may go by the batch, or count, also in evaluation mode
            for name, parameter in parameters.items():
                if parameter.is_inference():
                    raise UnsupportedError(
                        f"parameter {name!r} was made inside torch.inference_mode(), so nothing that uses it can have a "
                        "gradient; build or load the network outside of it"
                    )
                _take(parameter, "requires_grad", taken)
            if "torch._dynamo" in sys.modules:  # a function that the network calls may be compiled, too
                _take(_COMPILER, "runs", taken)
            for key in taken:  # all are read before any is set: a compiled module's flag is that of the module inside
                thing, attribute, before, _ = _held[key]
                if before is True and getattr(thing, attribute):
                    setattr(thing, attribute, False)
        yield module


def _take(thing: Any, attribute: str, taken: list[tuple[int, str]]) -> None:
    key = id(thing), attribute
    if key not in _held:
        now = getattr(thing, attribute)
        _held[key] = (thing, attribute, now.clone() if attribute == "data" else now, 0)
    _held[key] = (*_held[key][:3], _held[key][3] + 1)
    taken.append(key)


def _release(taken: list[tuple[int, str]]) -> None:
    with _lock, torch._C.DisableTorchFunction():  # nobody's mode comes between
        ended = []
        for key in taken:
            thing, attribute, before, holders = _held.pop(key)
            if holders > 1:
                _held[key] = (thing, attribute, before, holders - 1)
            else:
                ended.append((thing, attribute, before))
        for thing, attribute, before in sorted(ended, key=lambda e: e[1] == "data"):  # what could fail comes last
            if attribute == "data" and not torch.equal(thing.data, before):
                thing.data.copy_(before)
            elif attribute != "data" and getattr(thing, attribute) != before:
                setattr(thing, attribute, before)
