"""What results of evaluations share: a table of their rows, and files that are whole or absent."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, replaced, write_text

Rows = Sequence[dict[str, Any]]


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
