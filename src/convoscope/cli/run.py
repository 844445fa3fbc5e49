"""From arguments to an exit code: every error becomes one line on stderr."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from convoscope.core.errors import ConvoscopeError, UsageError, closest

WRITE = ("--out", "-o", "--png", "--preview", "--strip")


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. `--debug` anywhere lets the traceback of an error through."""
    words = list(arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options or bool(os.environ.get("CONVOSCOPE_DEBUG"))
    if "--debug" in options:
        words.remove("--debug")
    try:
        from convoscope.cli.app import app

        _keep_inputs(options)
        with _terminable():
            code = app(args=words, prog_name="convoscope", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what some versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, EOFError):
        return _stopped()
    except (BrokenPipeError, SystemExit) as error:
        # The reader, `head` for one, has seen enough. Some versions of typer turn that into an exit of their own.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _keep_inputs(words: Sequence[str]) -> None:
    """Raises UsageError where a command would write the very file that it reads."""
    places = {i + 1 for i, word in enumerate(words[:-1]) if word in WRITE}
    written = [words[i] for i in places] + [w.partition("=")[2] for w in words if w.partition("=")[0] in WRITE]
    for out in filter(os.path.isfile, written):
        for word in (w for i, w in enumerate(words) if i not in places and os.path.isfile(w)):
            if os.path.samefile(out, word):
                raise UsageError(f"{out!r} is read and would be overwritten; name another file to write to")


class _Terminable:
    """Whether this process was told to end."""

    told = False


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers and containers send it, ends like Ctrl-C: states are kept, half-written files go."""
    owner, _Terminable.told = os.getpid(), False

    def end(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a worker, which was forked and inherited this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _Terminable.told = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(error: Exception) -> int:
    if isinstance(error, ConvoscopeError):
        return _fail(f"error: {error}", error.exit_code)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # wrong usage that typer found
        return _fail(f"error: {_usage(error)}", error.exit_code)
    if type(error).__name__ == "Abort":  # what others make of it
        return _stopped()
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _fail(f"error: {error.filename}: {error.strerror.lower()}", 1)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # files have names: this is stdout
        return _fail(f"error: cannot write the output: {os.strerror(error.errno).lower()}", 1)
    text = " ".join(str(error).split()) or "no message"
    return _fail(f"error: {type(error).__name__}: {text} (unexpected; --debug shows the traceback)", 1)


def _stopped() -> int:
    return _fail("stopped", 143 if _Terminable.told else 130)


def _usage(error: Exception) -> str:
    text = error.format_message().strip().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    if text.startswith("No such command") and "did you mean" not in text.lower():
        word = text.split("'")[1] if "'" in text else ""
        near = closest(word, context.command.list_commands(context))
        text += f"; did you mean {near[0]!r}?" if near else ""
    return f"{text[0].lower()}{text[1:]} ('{context.command_path} --help' tells more)"


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
