"""The benchmark with exact truth: tasks of which the answer is known, for every method and for the metrics themselves."""

import importlib

from convoscope.core.spec import registered
from convoscope.evaluation.bench.base import Mapper, Task

# The files that hold tasks.
_MODULES: tuple[str, ...] = (
    "parts", "parts_interventions", "parts_influence", "analytic", "tris", "shortcut", "permuted", "birds",
)  # fmt: skip

__all__ = ["Mapper", "Task", "tasks"]


def tasks() -> dict[str, type[Task]]:
    """All registered tasks by name."""
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return registered("task")  # type: ignore[return-value]
