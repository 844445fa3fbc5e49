"""BibTeX of what was used."""

from typing import Any

from convoscope.core.errors import UsageError
from convoscope.core.spec import Spec


def cite(*things: Any) -> str:
    """BibTeX of the papers behind attributions, methods or anything else that names one, each once."""
    found: dict[str, str] = {}
    for thing in things:
        spec = getattr(thing, "method", thing)
        for part in _parts(spec):
            if part.paper is not None:
                found[part.paper.key] = part.paper.bibtex()
    return "\n\n".join(found.values())


def _parts(spec: Any) -> list[Any]:
    if not (isinstance(spec, Spec) or (isinstance(spec, type) and issubclass(spec, Spec))):
        raise UsageError(f"nothing to cite in {spec!r}; give an attribution or a method")
    inner = vars(spec).values() if isinstance(spec, Spec) else ()
    return [spec, *(p for v in inner if isinstance(v, Spec) for p in _parts(v))]
