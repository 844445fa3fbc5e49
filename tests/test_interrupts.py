"""Ctrl-C and SIGTERM wait for the end of a step, so that a run can be taken up after it."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import convoscope as cs
from convoscope.interrupts import unbroken
from convoscope.synthesis import dream, invert_run, rows


def test_a_signal_waits_until_the_block_is_done() -> None:
    done, before = [], signal.getsignal(signal.SIGINT)

    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all")
        done.append("too much")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_is_not_lost() -> None:
    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("mine")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_each_handler_gets_its_own_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with unbroken():
            signal.raise_signal(signal.SIGTERM)
            assert got == []
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_nobody_answers_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with unbroken():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_pass() -> None:
    done = []

    def work() -> None:
        with unbroken():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def _maximize(network: Any, **settings: Any) -> Any:
    return cs.maximize(network, cs.Channel("layer2", 3), steps=4, size=24, transforms=[], **settings).pixels


def _invert(network: Any, **settings: Any) -> Any:
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return cs.invert(network, picture, "layer1", steps=4, **settings).pixels


def _dream(network: Any, **settings: Any) -> Any:
    picture = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return cs.dream(network, picture, "layer2", octaves=1, steps=4, **settings).pixels


class _Halfway(dream._Run):
    """A dream that says where half a step is made."""

    def half(self) -> None: ...

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if (name, value) == ("whole", False):
            self.half()


@pytest.mark.parametrize(
    ("make", "owner", "name"),
    [
        (_maximize, rows.Update, "_adaptive"),
        (_invert, invert_run.WarmedLBFGS, "tell"),
        (_dream, _Halfway, "half"),
    ],
)
def test_ctrl_c_in_the_middle_of_a_step_loses_nothing(
    make: Callable[..., Any], owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dream, "_Run", _Halfway)
    network = cs.load("scenes")
    whole = make(network)
    inner, calls = getattr(owner, name), []

    def interrupted(*given: Any, **named: Any) -> Any:
        found = inner(*given, **named)
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(network, store=tmp_path)
    assert len(list(tmp_path.glob("*.ascent.safetensors"))) == 1
    calls[:] = [1] * 2
    assert torch.equal(make(network, store=tmp_path), whole)
    before = len(calls)
    assert before < 2 + 4, "it began again"
