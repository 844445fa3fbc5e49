"""What units respond to. `convoscope.units.dissect` and the other functions below are loaded when they are first used."""

from importlib import import_module
from typing import Any

_HOME = {
    "dissect": "dissection",
    "image_box": "fields",
    "kernels": "filters",
    "patch": "fields",
    "project": "zeiler",
    "unit_name": "fields",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoscope.units' has no attribute {name!r}")
    return getattr(import_module(f"convoscope.units.{_HOME[name]}"), name)
