"""What the commands that make pictures share: files checked before the work, a live preview, Ctrl-C that keeps the state."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convoscope.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

EVERY = 2.0  # seconds between two previews
LARGEST = 640  # pixels of the longer side of a picture in a preview
KINDS = (".png", ".html", ".htm", ".safetensors")


def size_of(value: Any) -> Any:
    """`128`, or height x width, `96x128`."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
    if match is None:
        raise typer.BadParameter(f"{value!r} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def rate_of(value: Any) -> Any:
    """`0.05`, or the first and the last, `0.1,0.01`."""
    try:
        found = [float(part) for part in str(value).split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 2):
        raise typer.BadParameter(f"{value!r} is neither a number nor FIRST,LAST")
    return found[0] if len(found) == 1 else (found[0], found[1])


Size = Annotated[
    Any, typer.Option(metavar="N|HxW", parser=size_of, help="Side of the pictures in pixels. Default: the network's own size.")
]
Steps = Annotated[int, typer.Option(min=0, help="Steps of the ascent.")]
Rate = Annotated[
    Any, typer.Option(metavar="R|FIRST,LAST", parser=rate_of, help="Length of a step. Default: that of the kind of image.")
]
Transforms = Annotated[
    list[str] | None,
    typer.Option("--transform", metavar="NAME[:SETTINGS]", help="How pictures are moved before the network sees them; may be "
                 "repeated; none: not at all. Default: what suits the size."),
]  # fmt: skip
Penalties = Annotated[
    list[str] | None, typer.Option("--penalty", metavar="NAME[:weight=W]", help="What a picture is to avoid; may be repeated.")
]
Store = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep the state there; the same command goes on from it. Default: a folder beside the "
                 "first --out, which is removed at the end."),
]  # fmt: skip
Preview = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"A .png that shows the pictures as they are, every {EVERY:g} seconds.")
]
Out = Annotated[
    list[Path] | None,
    typer.Option("--out", "-o", metavar="FILE", help="A picture (.png), a page with the way there and all settings (.html), or "
                 "the values (.safetensors); may be repeated. Default: a .png named after the command; none with --json."),
]  # fmt: skip
StripFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A .png of how the pictures came to be, step by step.")]


def parsed(kind: str, texts: Sequence[str] | None) -> list[Any] | None:
    """Transforms or penalties from `--transform` or `--penalty`; None where nothing was said."""
    from convoscope.images import of

    if texts is None:
        return None
    return [of(kind, text) for text in texts if text.lower() != "none"]


@dataclass
class Making:
    """One run of a command: where its files go. `strip`, `preview` and `store` may be None."""

    name: str
    out: list[Path] | None = None
    as_json: bool = False
    store: Path | None = None
    preview: Path | None = None
    strip: Path | None = None
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        from convoscope.files import check_writable

        self.out = self.out or ([] if self.as_json else [Path(f"convoscope-{self.name}.png")])
        for path, kinds in [*((p, self.kinds) for p in self.out), (self.preview, (".png",)), (self.strip, (".png",))]:
            if path is None:
                continue
            if path.suffix.lower() not in kinds:
                raise UsageError(f"cannot write {str(path)!r}: expected a file that ends in {', '.join(kinds)}")
            check_writable(path)
        self.own = self.store is None and bool(self.out)
        self.store = self.out[0].with_suffix(".state") if self.own else self.store
        self.done, self.shown = (0, 0), time.monotonic() - EVERY
        self.bar: Any = None

    def __call__(self, make: Callable[..., Any], write: Callable[[Any, Path], Any] | None = None) -> Any:
        """`make(progress=, watch=, store=)`, then the files. Ctrl-C says where the state is, and goes on its way."""
        from convoscope.cli.terminal import Progress, note
        from convoscope.files import replaced

        try:
            with Progress(self.name) as self.bar:
                made = make(progress=self.told, watch=self._watch if self.preview else None, store=self.store)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and self.done[0] and self.store is not None and _states(self.store):
                note(f"stopped at {100 * self.done[0] // self.done[1]} %; the same command goes on from there ({self.store})")
            if not self.done[0] and self.own and self.store is not None:
                _forget(self.store)
            raise
        if hasattr(made, "pixels"):
            self._show(made.pixels)
        for path in self.out or []:
            (write or (lambda thing, where: thing.save(where)))(made, path)
        if self.strip is not None:
            with replaced(self.strip) as partial:
                made.strip().save(partial, format="PNG")
        if self.own and self.store is not None:
            _forget(self.store)
        return made

    @property
    def files(self) -> list[Path]:
        """What was written, in the order of the options."""
        return [p for p in (*(self.out or []), self.strip, self.preview) if p is not None and p.is_file()]

    def told(self, done: int, total: int) -> None:
        """So much of the work is done."""
        self.done = done, total
        self.bar(done, total)

    def _watch(self, step: int, pixels: "Tensor") -> None:
        if time.monotonic() - self.shown >= EVERY:
            self._show(pixels)

    def _show(self, pixels: "Tensor") -> None:
        from torch.nn.functional import interpolate

        from convoscope.files import replaced
        from convoscope.synthesis.drawing import contact

        if self.preview is None:
            return
        pixels = pixels.detach().flatten(0, -4)
        if max(pixels.shape[2:]) > LARGEST:
            pixels = interpolate(pixels, scale_factor=LARGEST / max(pixels.shape[2:]), mode="area")
        with replaced(self.preview) as partial:
            contact(pixels).save(partial, format="PNG")
        self.shown = time.monotonic()

    def tell(self, made: Any, rows: Sequence[Sequence[Any]] = (), headings: Sequence[str] = ()) -> None:
        """One JSON document with everything but the pictures, or a table and the files that were written."""
        from importlib.metadata import version

        from convoscope.cli.terminal import console, print_json, table
        from convoscope.cli.work import jsonable
        from convoscope.files import size_text

        if self.as_json:
            head = {"schema": f"convoscope.{self.name}/1", "version": version("convoscope")}
            print_json(head | jsonable(made.to_dict()) | {"files": [str(p) for p in self.files]})
            return
        screen = console()
        if rows:
            screen.print(table(headings, rows, right=headings[1:]))
        for path in self.files:
            screen.print(f"{path} ({size_text(path)})", soft_wrap=True)


def _states(store: Path) -> list[Path]:
    return sorted(store.glob("*.ascent.safetensors"))


def _forget(store: Path) -> None:
    """The state of a run that is done, and its folder if nothing else is there."""
    for path in _states(store):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        store.rmdir()
