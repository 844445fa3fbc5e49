"""The command line: `convoscope VERB ...`. Nothing here imports torch before a command needs it."""

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 by SIGTERM."""
    from convoscope.cli.run import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
