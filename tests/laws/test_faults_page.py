"""The page of faults: every fault has its line, and how ends are counted."""

import re
from pathlib import Path

import pytest

from convoscope.testing import FAULTS

rows = pytest.importorskip("benchmarks.faults_rows", reason="benchmarks/ is not beside the tests")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"


def test_every_fault_of_methods_has_a_line_and_ours_ends_well() -> None:
    section = PAGE.read_text(encoding="utf-8").split("<!-- methods -->")[1].split("<!-- /methods -->")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| F\d", line)]
    assert {line[0].strip() for line in lines} == {f"F{k}" for k in (*range(1, 17), 34, 35, 36)}
    excused = {"F9"}  # where the exceptions to the laws say why
    for fault, _, ours, *_ in lines:
        good, tried = map(int, re.match(r"\s*(\d+) of (\d+)", ours.replace(",", "")).groups())  # type: ignore[union-attr]
        assert good == tried or fault.strip() in excused, f"{fault}: {ours}"


def test_every_law_of_every_pair_holds_or_is_excused() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if "<!-- pairs -->" not in text:
        pytest.skip("the page has no table of pairs yet")
    section = text.split("<!-- pairs -->")[1].split("<!-- /pairs -->")[0]
    lines = {line.split("|")[1].strip(): line.strip("|").split("|") for line in section.splitlines() if line.startswith("| F")}
    assert list(lines) == list(FAULTS)
    for fault, line in lines.items():
        *_, wrong, crashed = (cell.strip() for cell in line)
        excused = any(law in section.split("### The laws")[0] for law in FAULTS[fault].laws)
        assert (not wrong and not crashed) or excused, f"{fault}: {wrong} wrong, {crashed} crashed"


def test_counts_read_as_a_sentence() -> None:
    assert str(rows.Counts()) == ""
    assert str(rows.Counts(right=3, said=1)) == "4 of 4"
    assert str(rows.Counts(right=1000, said=234, wrong=2, crashed=1)) == "1,234 of 1,237: 2 wrong, 1 crashed"
    text = rows.table([rows.Row("F1", "something", {"convoscope": rows.Counts(right=2), "zennit": rows.Counts(wrong=1)})])
    assert text.splitlines()[0] == "| fault | tried | convoscope | zennit |"
    assert text.splitlines()[2] == "| F1 | something | 2 of 2 | 0 of 1: 1 wrong |"
