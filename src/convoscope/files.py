"""Files that are either whole or not there. Imports nothing but the standard library and our errors."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convoscope.core.errors import ConvoscopeError, UsageError


def check_writable(path: Path) -> None:
    """Raise, before any work is done, if `path` could not be written at its end."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise UsageError(f"cannot write {str(path)!r}: it is {what}; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    with writing(path), tempfile.TemporaryFile(dir=path.parent, prefix="."):
        pass  # others may see it for a moment on some file systems


def make_folder(path: Path) -> None:
    """Make a folder for pictures, or raise with the reason."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    check_writable(path / "picture.png")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the operating system within the block becomes one line about `path`."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {str(path)!r}: {(error.strerror or str(error)).lower()}"
        raise ConvoscopeError(said) from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write to; it becomes `path`, on the disk, if the block ends well and vanishes if it does not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            yield partial
            with partial.open("rb+") as file:  # else a machine that stops may leave the name of a file without its content
                os.fsync(file.fileno())
            if path.exists() and not path.is_file():
                raise OSError("it is no file")  # whoever may do so would put a file in the place of /dev/null
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` so that nobody ever sees half of it."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def size_text(path: Path) -> str:
    """The size of a file for people: `412 kB`."""
    count = path.stat().st_size
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{max(count // 1000, 1)} kB"
