"""What the commands that draw small pictures share: where they write, in which form, and what they say."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoscope.core.errors import UsageError

if TYPE_CHECKING:
    from convoscope.show.strip import Strip


PICTURE, PAGE = (".png",), (".html", ".htm")


def check_out(out: Path | None, kinds: tuple[str, ...] = (*PICTURE, *PAGE), option: str = "--out") -> None:
    """Raises UsageError, before any work, for a file that could not be written or of another kind than these."""
    from convoscope.files import check_writable

    if out is None:
        return
    check_writable(out)
    if out.suffix.lower() not in kinds:
        said = [text for found, text in ((PICTURE, "a picture, .png"), (PAGE, "a page, .html")) if found[0] in kinds]
        raise UsageError(f"{option} {str(out)!r}: expected {', or '.join(said)}")


def write_strip(drawn: "Strip", out: Path, lede: str = "") -> None:
    """Write it as a picture or a page, by the ending of the file's name."""
    from convoscope.cli.work import command_line
    from convoscope.files import replaced, write_text
    from convoscope.show import strip

    if out.suffix.lower() == ".png":
        with replaced(out) as partial:
            strip.figure(drawn).save(partial, format="PNG")
    else:
        write_text(out, strip.page(drawn, lede, command_line()))


def tell(document: dict[str, Any], out: Path | None, as_json: bool, line: str) -> None:
    """One JSON document, or a line that says what there is and where it was drawn."""
    from convoscope.cli.terminal import console, print_json
    from convoscope.files import size_text

    if as_json:
        print_json(document | {"file": str(out) if out else None})
        return
    console().print(line)
    if out is not None:
        console().print(f"drawn in {out} ({size_text(out)})")
