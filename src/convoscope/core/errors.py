"""Every error convoscope raises on purpose.

ConvoscopeError
├── UsageError          what was asked for does not exist or makes no sense (exit code 2)
│   ├── AddressError    no such layer or operator
│   ├── SpecError       no such method, or a field it does not have
│   └── NonFiniteError  NaN or infinite values, where numbers are needed
├── ImageError          a picture that cannot be read or used
├── LoadError           weights that cannot be loaded
└── UnsupportedError    the network lacks what the method needs

Each message says what was given, what was expected and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ConvoscopeError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(ConvoscopeError, ValueError):
    """What was asked for does not exist or makes no sense."""

    exit_code = 2


class AddressError(UsageError, KeyError):
    """A network does not have this layer or operator."""

    __str__ = Exception.__str__  # KeyError would print the message in quotes


class SpecError(UsageError):
    """No such method, rule or target, or a field it does not have."""


class NonFiniteError(UsageError):
    """Values of an image, a weight or a tensor of the network that are NaN or infinite."""


class ImageError(ConvoscopeError, ValueError):
    """A picture that cannot be read or used."""


class LoadError(ConvoscopeError):
    """Weights that cannot be loaded."""


class UnsupportedError(ConvoscopeError):
    """The network lacks what the method needs."""


def closest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` of `names` that look most like `name`, best first."""
    names = list(names)
    found = get_close_matches(name, names, limit, cutoff=0.6)
    folded = {n.lower(): n for n in names}
    found += [folded[n] for n in get_close_matches(name.lower(), folded, limit, cutoff=0.6)]
    found += sorted((n for n in names if name and name.lower() in n.lower()), key=len)
    return list(dict.fromkeys(found))[:limit]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a sentence that offers the closest names, or nothing when none is close."""
    found = closest(name, names)
    return "; did you mean " + ", ".join(repr(n) for n in found) + "?" if found else ""
