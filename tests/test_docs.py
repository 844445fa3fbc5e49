"""The code in the documents runs, and their links lead somewhere."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from convoscope.cli.app import app
from convoscope.core.spec import _REGISTRY

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_add_a_method_runs() -> None:
    text = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    try:
        exec(compile("\n".join(blocks), "add-a-method.md", "exec"), {"__name__": "add_a_method"})
    finally:
        _REGISTRY["method"].pop("squared-gradient", None)  # other tests see the package's own methods only


def test_a_metric_of_your_own_passes_its_check() -> None:
    text = (ROOT / "docs" / "how-to" / "evaluate.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    try:
        exec(compile("import convoscope as cs\n" + block, "evaluate.md", "exec"), {"__name__": "evaluate"})
    finally:
        _REGISTRY["metric"].pop("contrast", None)


def commands(text: str) -> list[list[str]]:
    """The words of each `convoscope ...` in the blocks of code of a document."""
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in blocks.splitlines()]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("convoscope ")]
    return [list(itertools.takewhile(lambda w: w not in ("|", ">", "&&", ";"), words)) for words in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_have_the_options_they_are_shown_with(document: Path) -> None:
    for words in commands(document.read_text(encoding="utf-8")):
        command, name = get_command(app), "convoscope"
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)  # raises where words do not fit


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target
