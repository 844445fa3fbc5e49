"""Sets convoscope up in a local .venv, then runs it: `python3 run.py demo`, `python3 run.py test`.

Needs Python 3.11 or later and a package index that pip can reach, nothing else; a second call starts at once.
`test` runs the tests (what follows is handed to pytest); every other word is handed to `convoscope`.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")


def say(text):
    print(text, file=sys.stderr, flush=True)


def fingerprint():
    """What the environment was installed from: another hash means another installation."""
    files = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256("\n".join([sys.version, str(ROOT), *files]).encode()).hexdigest()


def pip_command():
    """pip inside .venv or, where Python came without ensurepip (as on Debian), pip from outside."""
    outer = [sys.executable, "-m", "pip"]
    if not PYTHON.exists():
        try:
            venv.create(VENV, with_pip=True, symlinks=os.name != "nt")
        except subprocess.CalledProcessError:
            venv.create(VENV, with_pip=False, clear=True, symlinks=os.name != "nt")
    for command in ([str(PYTHON), "-m", "pip"], [*outer, "--python", str(PYTHON)]):
        if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return command
    sys.exit(
        "error: this Python has neither ensurepip nor pip; install either (Debian: apt install python3-venv)"
    )


def set_up(extras):
    """Install convoscope with `extras` into .venv, unless exactly that was done before."""
    stamp = VENV / f".installed{extras.replace(',', '-')}"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == fingerprint():
        return
    say("setting up .venv (once; PyTorch is large, so this takes a few minutes) ...")
    command = [*pip_command(), "install", "--editable", f".{extras}", "--constraint", "constraints.txt", "--no-compile"]
    if not sys.stderr.isatty():
        command.append("-qq")
    # pip's own lines go to stderr, so that stdout holds nothing but what the command itself prints.
    if subprocess.run(command, cwd=ROOT, stdout=2).returncode:
        sys.exit("error: pip could not install convoscope; its message above says why")
    # What pip would do on one core; tests of libraries are left out.
    compiling = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", "-x", r"[\\/]tests?[\\/]", str(VENV)]
    subprocess.run(compiling, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamp.write_text(fingerprint())


def main():
    if sys.version_info < (3, 11):
        sys.exit("error: convoscope needs Python 3.11 or later; this is %d.%d" % sys.version_info[:2])
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    word, *rest = sys.argv[1:]
    try:
        if word == "test":
            set_up("[test]")
            command = [str(PYTHON), "-m", "pytest", "-q", "-n", "2", str(ROOT / "tests"), *rest]
        else:
            set_up("[torchvision]")
            command = [str(PYTHON), "-m", "convoscope", word, *rest]
        sys.exit(subprocess.run(command).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
