"""`convoscope unit`: everything a book knows of one unit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convoscope.cli import options as opt
from convoscope.cli.units import BookArgument, cell

if TYPE_CHECKING:
    from convoscope.units.book import Unit


def unit(
    book: BookArgument,
    name: Annotated[str, typer.Argument(metavar="UNIT", help="Layer and number: layer4:42.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write its page (.html) or a picture of it (.png).")
    ] = None,
    as_json: opt.JSON = False,
) -> None:
    """Show one unit of a book: what it responds to, with all numbers."""
    from convoscope.cli.terminal import console, print_json
    from convoscope.cli.work import jsonable
    from convoscope.files import size_text
    from convoscope.units.book import open_book

    found = open_book(book).unit(name)
    if out:
        found.save(out)
    if as_json:
        made = {"schema": "convoscope.unit/1", "book": str(book), **jsonable(found.to_dict())}
        print_json(made | {"wrote": [str(out)] if out else []})
        return
    _tell(found)
    if out:
        console().print(f"{out} ({size_text(out)})", soft_wrap=True)


def _tell(unit: "Unit") -> None:
    from convoscope.cli.terminal import console, table
    from convoscope.show.figure import number
    from convoscope.units.book_pages import unit_lede, unit_title

    screen = console()
    screen.print(unit_title(unit), style="bold")
    if lede := unit_lede(unit):
        screen.print(lede)
    if unit.labels:
        rows = [(x.concept, x.category, *map(cell, x[2:])) for x in unit.labels]
        screen.print(table(("concept", "category", "IoU", "held out", "p"), rows, right=("IoU", "held out", "p")))
    if unit.classes:
        screen.print(table(("class", "share"), [(s.name, f"{100 * s.share:.0f} %") for s in unit.classes], right=("share",)))
    told = ("label", "category", "iou", "held_out_iou", "p_value", "class")
    known = [(c, unit.values.get(c.name)) for c in unit.book.columns if c.name not in told]
    shown = [(c.name.replace("_", "-"), cell(v), c.help) for c, v in known if v is not None]
    screen.print(table(("measure", "value", "meaning"), shown, right=("value",)))
    rows = []
    for sort, several in unit.exemplars.items():
        for e in several[:3]:
            box = f"{e.box[0]}:{e.box[2]}, {e.box[1]}:{e.box[3]}"
            kind = unit.book.image_class(e.image) or ""
            rows.append((sort, e.rank + 1, number(e.value), unit.image_name(e), kind, f"{e.row}, {e.column}", box))
    headings = ("exemplar", "rank", "value", "image", "class", "place", "pixels (rows, columns)")
    screen.print(table(headings, rows, right=("rank", "value")))
