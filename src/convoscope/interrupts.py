"""Steps that Ctrl-C does not cut in two. Imports nothing but the standard library."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM, where Python answers them, wait until the block is done, which should take no more than a step.

    What a block changes is then changed as a whole or not at all, and can be kept. Python answers signals on its main
    thread: on others there is nothing to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[Any] = []
    before: dict[int, Callable[..., Any]] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, lambda *signaled: waiting.append(signaled))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting[:1]:
            before[number](number, frame)
