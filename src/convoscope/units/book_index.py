"""The index of a book: one SQLite file, written in one go, and questions to it. No text of a question becomes SQL."""

import errno
import math
import os
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.files import replaced
from convoscope.units.book_files import Column, LayerEntry

ALWAYS = (
    Column("layer", "text", "layer", "the address of the layer"),
    Column("unit", "integer", "unit", "the number of the unit in its layer, from 0"),
)
TABLES = """
CREATE TABLE layers (
  layer INTEGER PRIMARY KEY, address TEXT NOT NULL, units INTEGER NOT NULL,
  grid_rows INTEGER NOT NULL, grid_columns INTEGER NOT NULL, field_height INTEGER, field_width INTEGER);
CREATE TABLE images (image INTEGER PRIMARY KEY, name TEXT NOT NULL, class TEXT);
CREATE TABLE exemplars (
  layer INTEGER NOT NULL, unit INTEGER NOT NULL, sort TEXT NOT NULL, rank INTEGER NOT NULL, value REAL NOT NULL,
  image INTEGER NOT NULL, grid_row INTEGER NOT NULL, grid_column INTEGER NOT NULL,
  top INTEGER NOT NULL, left INTEGER NOT NULL, bottom INTEGER NOT NULL, right INTEGER NOT NULL,
  peak_y REAL NOT NULL, peak_x REAL NOT NULL, PRIMARY KEY (layer, unit, sort, rank)) WITHOUT ROWID;
CREATE TABLE labels (
  layer INTEGER NOT NULL, unit INTEGER NOT NULL, rank INTEGER NOT NULL, concept TEXT NOT NULL, category TEXT NOT NULL,
  iou REAL NOT NULL, held_out_iou REAL, p_value REAL, PRIMARY KEY (layer, unit, rank)) WITHOUT ROWID;
CREATE TABLE classes (
  layer INTEGER NOT NULL, unit INTEGER NOT NULL, rank INTEGER NOT NULL, class TEXT NOT NULL, share REAL NOT NULL,
  PRIMARY KEY (layer, unit, rank)) WITHOUT ROWID;
"""


class Exemplar(NamedTuple):
    """One place in one image: `value` of the unit there, its receptive field `box` (top, left, bottom, right) within the
    input, and the middle of the field before it was clipped (y, x), all in input pixels."""

    sort: str
    rank: int
    value: float
    image: int
    row: int
    column: int
    box: tuple[int, int, int, int]
    peak: tuple[float, float]


class Label(NamedTuple):
    """One concept a unit was found to detect."""

    concept: str
    category: str
    iou: float
    held_out_iou: float | None
    p_value: float | None


@dataclass
class LayerRows:
    """Everything the index has to know of one layer: for each unit its columns, exemplars, labels and classes."""

    entry: LayerEntry
    values: Mapping[str, Sequence[Any]]
    exemplars: Sequence[Sequence[Exemplar]]
    labels: Sequence[Sequence[Label]]
    classes: Sequence[Sequence[tuple[str, float]]]


# ---- writing


def write_index(
    path: Path, columns: Sequence[Column], layers: Iterable[LayerRows], images: Iterable[tuple[int, str, str | None]]
) -> None:
    """Write the whole index; the same content gives the same bytes. `layers` may be made one at a time."""
    declared = "".join(f", {_quoted(c.name)} {c.kind.upper()}" for c in columns)
    with replaced(path) as partial:
        partial.unlink(missing_ok=True)
        connection = sqlite3.connect(partial, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=OFF")  # a file that is renamed when whole needs no journal
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN")
            for statement in TABLES.split(";"):
                connection.execute(statement)
            key = "PRIMARY KEY (layer, unit)"
            connection.execute(f"CREATE TABLE units (layer INTEGER, unit INTEGER{declared}, {key}) WITHOUT ROWID")
            for number, layer in enumerate(layers):
                _insert(connection, number, layer, columns)
            connection.executemany("INSERT INTO images VALUES (?, ?, ?)", sorted(images))
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            code = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(code, os.strerror(code)) from error
        finally:
            connection.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())


def _insert(connection: sqlite3.Connection, number: int, layer: LayerRows, columns: Sequence[Column]) -> None:
    e = layer.entry
    connection.execute(
        "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?)", (number, e.address, e.units, *e.grid, *(e.field or (None, None)))
    )
    marks = ", ".join("?" * (2 + len(columns)))
    rows = ((number, u, *(_cell(layer.values[c.name][u], c.kind) for c in columns)) for u in range(e.units))
    connection.executemany(f"INSERT INTO units VALUES ({marks})", rows)
    found = (
        (number, u, x.sort, x.rank, x.value, x.image, x.row, x.column, *x.box, *x.peak)
        for u, several in enumerate(layer.exemplars)
        for x in several
    )
    connection.executemany(f"INSERT INTO exemplars VALUES ({', '.join('?' * 14)})", found)
    labels = ((number, u, k, *x) for u, several in enumerate(layer.labels) for k, x in enumerate(several))
    connection.executemany(f"INSERT INTO labels VALUES ({', '.join('?' * 8)})", labels)
    classes = ((number, u, k, *x) for u, several in enumerate(layer.classes) for k, x in enumerate(several))
    connection.executemany(f"INSERT INTO classes VALUES ({', '.join('?' * 5)})", classes)


def _cell(value: Any, kind: str) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return str(value) if kind == "text" else int(value) if kind == "integer" else float(value)


def _quoted(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"a column is named by small letters, digits and underscores; got {name!r}")
    return f'"{name}"'


# ---- asking


def connect(path: Path) -> sqlite3.Connection:
    """The index, to be read only. Raises UsageError where it is missing or damaged."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        connection.execute("SELECT count(*) FROM layers").fetchone()
    except sqlite3.Error:
        raise UsageError(f"{str(path)!r} is missing or damaged; remove it and run the same scan again") from None
    connection.create_function("folded", 1, lambda text: None if text is None else str(text).casefold(), deterministic=True)
    return connection


class Condition(NamedTuple):
    """`iou>0.04` in its parts."""

    column: str
    sign: str
    value: str


SIGNS = ("=", "!=", "<", "<=", ">", ">=", "~")
_CONDITION = re.compile(r"\s*([A-Za-z][\w-]*)\s*(!=|<=|>=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)


def parse_condition(text: str) -> Condition:
    """`label=dog`, `iou>0.04`, `label~dog` (contains), `layer=layer4*`. Raises UsageError for anything else."""
    found = _CONDITION.fullmatch(text)
    if not found or not found[3]:
        signs = " ".join(SIGNS)
        raise UsageError(f"{text!r} is no condition; expected a column, one of {signs}, and a value: label=dog, iou>0.04")
    return Condition(found[1], "=" if found[2] == "==" else found[2], found[3])


def conditions_of(where: Any) -> list[Condition]:
    """Conditions from a text, a list of texts, or a mapping of columns to values."""
    if where is None:
        return []
    if isinstance(where, str):
        return [parse_condition(where)]
    if isinstance(where, Mapping):
        return [Condition(str(k), "=", str(v)) for k, v in where.items()]
    return [w if isinstance(w, Condition) else parse_condition(w) for w in where]


def find_column(name: str, columns: Sequence[Column]) -> Column:
    """A column by its name, `class-selectivity` as well as `class_selectivity`. Raises UsageError with the closest."""
    known = {c.name: c for c in (*ALWAYS, *columns)}
    asked = name.strip().lower().replace("-", "_")
    if asked not in known:
        names = [n.replace("_", "-") for n in known]
        near = did_you_mean(name.replace("_", "-"), names)
        raise UsageError(f"the book has no column {name!r}{near or '; it has ' + ', '.join(names)}")
    return known[asked]


def _clause(condition: Condition, columns: Sequence[Column]) -> tuple[str, Any]:
    """SQL with one placeholder, and what to put there."""
    column = find_column(condition.column, columns)
    place = "layers.address" if column.name == "layer" else f"units.{_quoted(column.name)}"
    if column.kind == "text":
        if condition.sign == "~":
            return f"instr(folded({place}), folded(?)) > 0", condition.value
        if condition.sign not in ("=", "!="):
            raise UsageError(f"{column.name} is a text: compare it by =, != or ~ (contains), not by {condition.sign}")
        if "*" in condition.value:
            pattern = re.sub(r"([\[?])", r"[\1]", condition.value.casefold())
            return f"folded({place}) {'NOT ' if condition.sign == '!=' else ''}GLOB ?", pattern
        return f"folded({place}) {condition.sign} folded(?)", condition.value
    if condition.sign == "~":
        raise UsageError(f"{column.name} is a number: compare it by = != < <= > >=, not by ~")
    try:
        number = float(condition.value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"{column.name} is a number; {condition.value!r} is none")
    return f"{place} {condition.sign} ?", number


def select(
    connection: sqlite3.Connection, columns: Sequence[Column], where: Any = None, sort: str | None = None,
    reverse: bool = False, limit: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The units that all conditions hold for, sorted by a column (numbers largest first, words from a to z, or the reverse),
    and in the order of the network where that leaves it open.

    A unit that has no value in a column fails every condition on it, and comes last when sorted by it. Letters compare
    without regard to case.
    """
    if limit is not None and limit < 0:
        raise UsageError(f"limit is {limit}; expected 0 or more")
    clauses = [_clause(c, columns) for c in conditions_of(where)]
    order = "units.layer, units.unit"
    if sort:
        by = find_column(sort, columns)
        place = "units.layer" if by.name == "layer" else f"units.{_quoted(by.name)}"
        upwards = (by.kind == "text" or by in ALWAYS) != reverse
        order = f"{place} IS NULL, {place} {'ASC' if upwards else 'DESC'}, {order}"
    names = ", ".join(f"units.{_quoted(c.name)}" for c in columns)
    text = f"SELECT layers.address AS layer, units.unit{', ' + names if names else ''} FROM units JOIN layers USING (layer)"
    text += (" WHERE " + " AND ".join(c for c, _ in clauses)) if clauses else ""
    text += f" ORDER BY {order} LIMIT ?"
    found = connection.execute(text, [*(v for _, v in clauses), -1 if limit is None else limit])
    keys = [d[0] for d in found.description]
    return [dict(zip(keys, row, strict=True)) for row in found]
