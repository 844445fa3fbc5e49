"""What results of evaluations share: a table of their rows, and files that are whole or absent."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import Spec
from convoscope.files import check_writable, replaced, write_text

Rows = Sequence[dict[str, Any]]


def called(specs: Sequence[Spec]) -> list[str]:
    """Their names; where several are alike, with the settings in which they differ, or else numbered."""
    names = [s.name for s in specs]
    for name in {n for n in names if names.count(n) > 1}:
        same = {i: s.to_dict() for i, s in enumerate(specs) if s.name == name}
        differ = [k for k in next(iter(same.values())) if len({str(d.get(k)) for d in same.values()}) > 1]
        for i in same:
            words = [f"{k}={_word(getattr(specs[i], k))}" for k in differ]
            names[i] = f"{name}:{','.join(words)}" if words else name
    return [n if n not in names[:i] else f"{n} {names[:i].count(n) + 1}" for i, n in enumerate(names)]


def _word(value: Any) -> str:
    if isinstance(value, Spec):
        return f"({value.name})"
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)


def frame(rows: Rows) -> Any:
    """The rows as a pandas DataFrame. Raises UsageError without pandas."""
    try:
        import pandas
    except ImportError:
        raise UsageError("tables need pandas (pip install convoscope[tables]); rows() gives the same without") from None
    return pandas.DataFrame(rows)


def plain(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def save(
    path: str | Path, found: Any, image: Callable[[], Any] | None = None, page: Callable[[], str] | None = None
) -> Path:
    """Writes `found.to_dict()` (`.json`), `found.rows()` (`.csv`), a picture (`.png`) or a page (`.html`), if there are any."""
    path = Path(path)
    kind = ".html" if path.suffix.lower() == ".htm" else path.suffix.lower()
    known = [".json", ".csv", *([".html"] if page else ()), *([".png"] if image else ())]
    if kind not in known:
        raise UsageError(f"cannot save {str(path)!r}: expected {', '.join(known[:-1])} or {known[-1]}")
    check_writable(path)
    if kind == ".png" and image is not None:
        with replaced(path) as partial:
            image().save(partial, format="PNG")
    elif kind == ".html" and page is not None:
        write_text(path, page())
    else:
        write_text(path, _csv(found.rows()) if kind == ".csv" else json.dumps(found.to_dict(), indent=1))
    return path


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
