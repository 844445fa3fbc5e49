"""Pictures to optimize: their parametrizations, transforms and penalties."""

from importlib import import_module
from typing import Any

from convoscope.core.errors import UsageError
from convoscope.core.spec import parse_spec, registered
from convoscope.images.base import Image, Penalty, Transform

_MODULES = ("code", "cppn", "fourier", "laplacian", "maco", "penalties", "pixels", "transforms")
_BASES = {"image": Image, "transform": Transform, "penalty": Penalty}


def known(kind: str) -> dict[str, type]:
    """All images, transforms or penalties by name."""
    for module in _MODULES:
        import_module(f"convoscope.images.{module}")
    return registered(kind)  # type: ignore[return-value]


def of(kind: str, which: Any) -> Any:
    """One from its name, `name:setting=value`, or itself. Raises SpecError with the closest names."""
    known(kind)
    if isinstance(which, str):
        return parse_spec(kind, which)
    if not isinstance(which, _BASES[kind]):
        raise UsageError(f"expected a {kind} or its name ({', '.join(known(kind))}); got {type(which).__name__}")
    return which
