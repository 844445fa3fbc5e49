"""`convoscope report`: the summary of a book as a page, or all of it as a folder of pages."""

from pathlib import Path
from typing import Annotated

import typer

from convoscope.cli import options as opt
from convoscope.cli.units import BookArgument


def report(
    book: BookArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The page. Default: convoscope-report.html.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a folder with the summary and a page for every unit instead.")
    ] = None,
    best: Annotated[int, typer.Option(min=1, help="Units shown of each layer.")] = 10,
    as_json: opt.JSON = False,
) -> None:
    """Write the summary of a book: detectors by category and layer, dead units, color, the best units of each layer."""
    from convoscope.cli.terminal import Progress, console, print_json
    from convoscope.cli.work import command_line
    from convoscope.files import check_writable, make_folder, size_text, write_text
    from convoscope.units.book import open_book
    from convoscope.units.book_pages import export, report_page, summary

    opened = open_book(book)
    wrote = []
    if site:
        make_folder(site)
        with Progress("pages") as progress:
            pages = export(opened, site, best, progress)
        wrote.append(f"{site / 'index.html'} ({pages:,} pages, open offline)")
    if out or not (site or as_json):
        path = out or Path("convoscope-report.html")
        check_writable(path)
        write_text(path, report_page(opened, best, command=command_line()))
        wrote.append(f"{path} ({size_text(path)}, one file, opens offline)")
    if as_json:
        print_json({"schema": "convoscope.report/1", "book": str(book), **summary(opened), "wrote": wrote})
        return
    for line in wrote:
        console().print(line, soft_wrap=True)
