"""What a person sees: results on stdout, progress on stderr."""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.table import Table

WIDTH = 160  # of tables that go to a file or a pipe
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


def console() -> Console:
    """Where results go: as wide as the terminal, or wide enough for a table if there is none."""
    made = Console(highlight=False, soft_wrap=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH
    return made


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A remark for people, on stderr."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text, style="dim")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = (), gap: int = 0) -> Table:
    """A plain table: columns in `right` hold numbers, the first is never broken, `gap` empty lines part the rows."""
    padding = (0, 2, gap, 0)
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headings), padding=padding)
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


class Progress:
    """Calls of `progress(done, total)` become a bar on a terminal, or a line every ten seconds (`EVERY`) elsewhere.

    Nothing appears within the first second. `label` may be changed on the way.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.told = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self.started < 1:
            return
        if not sys.stderr.isatty():
            if now - self.told >= EVERY:
                self.told = now
                print(f"{self.label}: {done}" + (f" of {total}" if total else ""), file=sys.stderr, flush=True)
            return
        if self.bar is None:
            self._show(total)
        self.bar.update(self.task, description=self.label, completed=done, total=total)

    def _show(self, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=total)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
