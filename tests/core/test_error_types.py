"""Errors: one tree, exit codes, and the closest names."""

import pytest

import convoscope as cs
from convoscope.core.errors import closest, did_you_mean


def test_usage_errors_exit_with_two_and_failures_with_one() -> None:
    codes = {e: getattr(cs, e).exit_code for e in dir(cs) if e.endswith("Error")}
    assert codes == {
        "ConvoscopeError": 1, "ImageError": 1, "LoadError": 1, "UnsupportedError": 1, "UsageError": 2, "AddressError": 2,
        "NonFiniteError": 2, "SpecError": 2,
    }  # fmt: skip
    assert all(issubclass(getattr(cs, e), cs.ConvoscopeError) for e in codes)


def test_they_are_what_python_expects() -> None:
    assert issubclass(cs.UsageError, ValueError)
    assert issubclass(cs.AddressError, KeyError)
    assert str(cs.AddressError("no layer 'a'")) == "no layer 'a'"  # without the quotes of a KeyError


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        ("layer5", ["layer4", "conv1", "fc"], ["layer4"]),
        ("LAYER4", ["layer4", "conv1"], ["layer4"]),
        ("tabby", ["tiger cat", "tabby, tabby cat"], ["tabby, tabby cat"]),
        ("zzz", ["layer4", "conv1"], []),
        ("", ["layer4"], []),
        ("layer", ["layer4", "layer3", "layer2", "layer1"], None),
    ],
)
def test_the_closest_names(name: str, names: list[str], expected: list[str] | None) -> None:
    found = closest(name, names)
    assert len(found) <= 3
    assert found == expected if expected is not None else set(found) <= set(names) and len(found) == 3


def test_no_hint_where_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["layer4"]) == ""
    assert did_you_mean("layer5", iter(["layer4", "layer3"])) == "; did you mean 'layer4', 'layer3'?"
