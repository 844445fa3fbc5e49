"""The law that an exception anywhere leaves everything as it was."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convoscope.testing.laws_trial import Trial, never_quickly, only_on, same
from convoscope.testing.untouched import Watch

MOMENTS = 8


class Interrupted(BaseException):
    """Not an Exception, as Ctrl-C is not."""


class Failed(Exception):
    """An operator that went wrong."""


class _RaiseAt(TorchFunctionMode):
    """Raises at operator `k` of those called inside the module (or anywhere, where `everywhere`)."""

    def __init__(self, k: int, everywhere: bool, inside: list[int]) -> None:
        super().__init__()
        self.k, self.everywhere, self.inside, self.seen = k, everywhere, inside, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("__get__", "__set__") and (self.everywhere or self.inside):
            self.seen += 1
            if self.seen == self.k:
                raise (Failed if self.k % 2 else Interrupted)(f"operator {self.k}")
        return func(*args, **(kwargs or {}))


@contextmanager
def _entered(module: nn.Module) -> Iterator[list[int]]:
    """A list that holds something while the module runs."""
    inside: list[int] = []
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        inside.append(1)
        try:
            return forward(*args, **kwargs)
        finally:
            inside.pop()

    module.forward = watched
    try:
        yield inside
    finally:
        del module.forward


def leaves_the_network_untouched_when_interrupted(trial: Trial) -> None:
    """An exception at operators of the forward passes; on the network `skip`, and thoroughly, at more, of all there are.

    Of many operators, at some that are evenly spread, and lie elsewhere on every network of the zoo.
    """
    expected = trial.reference
    everywhere = trial.thorough or trial.hostile.name == "skip"
    moments = 4 * MOMENTS if trial.thorough else 3 * MOMENTS if everywhere else MOMENTS
    with _entered(trial.network.plain) as inside:
        with (counting := _RaiseAt(0, everywhere, inside)):
            trial.values()
        assert counting.seen > 0, "no operator was called in the forward pass"
        watch = Watch(trial.network.module, trial.x)
        for k in _spread(counting.seen, moments, trial.hostile.name):
            try:
                with _RaiseAt(k, everywhere, inside) as mode:
                    trial.values()
            except (Failed, Interrupted):
                watch.check(f"after operator {k} of {counting.seen} raised")
                continue
            assert mode.seen < k, f"what operator {k} of {counting.seen} raised was swallowed"
    assert torch.equal(trial.values(), expected), "other values after exceptions"


def _spread(count: int, moments: int, name: str) -> list[int]:
    """1 .. count, or as many as `moments` of them, shifted by the name."""
    if count <= moments:
        return list(range(1, count + 1))
    shift = zlib.crc32(name.encode()) % 997 / 997
    return [1 + int((i + shift) * count / moments) for i in range(moments)]


@never_quickly
def leaves_the_network_untouched_when_a_layer_raises(trial: Trial) -> None:
    """An exception in a hook of the user's at calls of the layers, each in its turn; these hooks stay as they are."""
    expected, calls, fatal = trial.reference, 0, 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise (Failed if fatal % 2 else Interrupted)(f"call {fatal}")

    handles = [m.register_forward_hook(hook) for m in trial.network.plain.modules()]
    try:
        watch = Watch(trial.network.module, trial.x)
        same(trial.values(), expected, "with hooks of the user's")
        watch.check("with hooks of the user's")
        count = calls
        for fatal in _spread(count, 3 * MOMENTS, trial.hostile.name):
            calls = 0
            try:
                trial.values()
            except (Failed, Interrupted):
                watch.check(f"after call {fatal} of {count} of a layer raised")
                continue
            assert calls < fatal, f"what call {fatal} of {count} of a layer raised was swallowed"
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(trial.values(), expected), "other values after exceptions"


@only_on("skip")
def leaves_the_network_untouched_when_a_callback_raises(trial: Trial) -> None:
    expected = trial.reference

    def fail(done: int, total: int) -> None:
        raise Interrupted(f"after {done} of {total}")

    with trial.unchanged("after the callback of the progress raised"):
        try:
            trial.explain(progress=fail)
        except Interrupted:
            pass
        else:
            raise AssertionError("the callback of the progress was not called, or what it raised was swallowed")
    assert torch.equal(trial.values(), expected), "other values after exceptions"


INTERRUPTED = (
    leaves_the_network_untouched_when_interrupted, leaves_the_network_untouched_when_a_layer_raises,
    leaves_the_network_untouched_when_a_callback_raises,
)  # fmt: skip
