"""`convoscope units`: questions to a book."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.cli import options as opt

if TYPE_CHECKING:
    from convoscope.units.book import Book

BookArgument = Annotated[Path, typer.Argument(metavar="BOOK", help="The folder that 'convoscope scan' wrote.")]
SHOWN = ("label", "category", "iou", "p_value", "class", "class_selectivity", "color_index", "maximum")


def units(
    book: BookArgument,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="label=dog, 'iou>0.04', layer='layer4*', label~dog (contains); all must hold."),
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Numbers largest first, words from a to z.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many. Default: 20, all with --json.")] = None,
    columns: Annotated[bool, typer.Option("--columns", help="List the columns of the book, and what they mean.")] = False,
    as_json: opt.JSON = False,
) -> None:
    """Find units in a book: by label, class, selectivity or any other column."""
    from convoscope.cli.terminal import console, print_json
    from convoscope.units.book import open_book

    opened = open_book(book)
    if columns:
        _columns(opened, as_json)
        return
    most = limit if limit is not None or as_json else 20
    found = opened.units(where, sort, reverse=reverse, limit=most)
    if as_json:
        rows = [{"name": f"{r['layer']}:{r['unit']}", **r} for r in found]
        print_json({"schema": "convoscope.units/1", "book": str(book), "units": rows})
        return
    console().print(_table(opened, found, sort, where or []))
    if limit is None and len(found) == most:
        console().print(f"the first {most} of {len(opened.units(where)):,}; --limit shows more", style="dim")


def _table(book: "Book", rows: list[dict[str, Any]], sort: str | None, where: list[str]) -> Any:
    from convoscope.cli.terminal import table
    from convoscope.units.book_index import find_column, parse_condition

    words = (*([sort] if sort else []), *(parse_condition(w).column for w in where))
    asked = [find_column(word, book.columns).name for word in words]
    known = {c.name: c for c in book.columns}
    names = [n for n in dict.fromkeys((*SHOWN, *asked)) if n in known]
    titles = [n.replace("_", "-") for n in names]
    right = [t for n, t in zip(names, titles, strict=True) if known[n].kind != "text"]
    return table(("unit", *titles), [(f"{r['layer']}:{r['unit']}", *(cell(r[n]) for n in names)) for r in rows], right)


def cell(value: Any) -> str:
    """A value of a column for people."""
    from convoscope.show.figure import number

    return "" if value is None else number(value) if isinstance(value, float) else str(value)


def _columns(book: "Book", as_json: bool) -> None:
    from convoscope.cli.terminal import console, print_json, table
    from convoscope.units.book_files import as_dict
    from convoscope.units.book_index import ALWAYS

    found = [*ALWAYS, *book.columns]
    if as_json:
        print_json({"schema": "convoscope.columns/1", "columns": [as_dict(c) for c in found]})
        return
    console().print(table(("column", "kind", "meaning"), [(c.name.replace("_", "-"), c.kind, c.help) for c in found]))
