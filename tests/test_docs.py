"""The code in the documents runs, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target
