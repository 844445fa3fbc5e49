"""Specs: frozen, registered, checked, compared, to JSON and text and back."""

import json
import pickle
import subprocess
import sys
from dataclasses import MISSING, FrozenInstanceError, field, replace
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.spec import AtLeast, Paper, Spec, describe_type, fields_of, lookup, parse_spec, parse_value, registered


class Tool(Spec, kind="test-tool", abstract=True):
    """Base of the specs of this file."""


class HTTPHammer(Tool):
    """A tool with a setting of every sort."""

    weight: Annotated[float, "in kilograms", AtLeast(0.5)] = 1.0
    blows: Annotated[int, "how many", AtLeast(1)] = 3
    grip: Annotated[Literal["wood", "steel"], "what it is held by"] = "wood"
    soft: Annotated[bool, "whether it dents"] = False
    head: Annotated[Literal["ball", "claw"] | float | Tensor, "a shape, a width or a map"] = "ball"
    other: Annotated[Tool | None, "what to use besides"] = None
    label: Annotated[str | int, "its name or number"] = "h"
    place: Annotated[int | tuple | None, "shelf, one for each, or none"] = None
    marks: Annotated[tuple, "numbers"] = field(default_factory=lambda: (1, 2))


class Box(Tool):
    """A tool that needs something."""

    size: Annotated[int, "its side"]
    lid: Annotated[Tensor | None, "what covers it"] = None


def through_json(spec: Spec) -> Spec:
    return Spec.from_dict(json.loads(json.dumps(spec.to_dict())))


# ---- the registry
def test_names_are_kebab_case() -> None:
    assert list(registered("test-tool")) == ["box", "http-hammer"]
    assert (HTTPHammer.name, HTTPHammer.kind, Tool.name) == ("http-hammer", "test-tool", "")
    assert lookup("test-tool", "box") is Box
    known = cs.methods()
    for name in ("gradient", "input-x-gradient", "grad-cam", "guided-backprop", "integrated-gradients", "cam", "lrp"):
        assert known[name].name == name


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(cs.SpecError, match=r"two test-tools are called 'box': in .*; rename one"):

        class Crate(Tool, name="box"):
            """Another box."""

    assert lookup("test-tool", "box") is Box


def test_a_class_may_be_defined_again_as_a_notebook_does() -> None:
    def define() -> type[Spec]:
        class Again(Spec, kind="test-notebook"):
            """Defined twice."""

        return Again

    assert define() is not define()
    assert list(registered("test-notebook")) == ["again"]


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(cs.SpecError, match=r"no test-tool 'http-hamer'; did you mean 'http-hammer'\? \(known: box, http"):
        lookup("test-tool", "http-hamer")
    assert issubclass(cs.SpecError, cs.UsageError)


# ---- settings
def test_fields_have_type_default_and_help() -> None:
    found = {f.name: f for f in fields_of(HTTPHammer)}
    assert found["weight"].default == 1.0
    assert found["weight"].help == "in kilograms"
    assert found["marks"].default == (1, 2)
    assert describe_type(found["grip"].type) == "'wood' or 'steel'"
    assert describe_type(found["head"].type) == "'ball' or 'claw' or a number or a tensor"
    assert describe_type(found["other"].type) == "a test-tool or none"
    assert next(f for f in fields_of(Box) if f.name == "size").default is MISSING


def test_specs_are_frozen_and_own_their_tensors() -> None:
    lid = torch.zeros(3)
    box = Box(2, lid)
    before = box.to_dict()
    lid += 1
    assert box.to_dict() == before
    with pytest.raises(FrozenInstanceError):
        box.size = 3  # type: ignore[misc]
    assert replace(box, size=4).size == 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weight": 0.4}, "weight is 0.4; expected at least 0.5"),
        ({"weight": float("nan")}, "weight is nan; expected at least 0.5"),
        ({"weight": "heavy"}, "weight is 'heavy'; expected a number"),
        ({"weight": True}, "weight is True; expected a number"),
        ({"blows": 0}, "blows is 0; expected at least 1"),
        ({"blows": 1.5}, "blows is 1.5; expected a whole number"),
        ({"blows": True}, "blows is True; expected a whole number"),
        ({"grip": "bone"}, "grip is 'bone'; expected 'wood' or 'steel'"),
        ({"other": "box"}, "other is 'box'; expected a test-tool or none"),
        ({"weight": torch.zeros(2, 3)}, r"weight is tensor of shape \(2, 3\); expected a number"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(cs.SpecError, match=f"http-hammer: {reason}"):
        HTTPHammer(**settings)


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    np = pytest.importorskip("numpy")
    made = HTTPHammer(weight=np.float32(2), blows=np.int64(4), place=np.array([1, 2]).tolist(), marks=[np.int32(7)])
    assert made == HTTPHammer(weight=2, blows=torch.tensor(4), place=torch.tensor([1, 2]), marks=(7,))
    assert (type(made.weight), type(made.blows), made.place, made.marks) == (float, int, (1, 2), (7,))
    assert through_json(made) == made


def test_make_names_unknown_and_lacking_settings() -> None:
    with pytest.raises(cs.SpecError, match=r"test-tool 'http-hammer' has no setting 'blow'; did you mean 'blows'"):
        HTTPHammer.make({"blow": 3})
    with pytest.raises(cs.SpecError, match=r"has no setting 'zzz'; it has weight, blows"):
        HTTPHammer.make({"zzz": 3})
    with pytest.raises(cs.SpecError, match=r"test-tool 'box' needs size"):
        Box.make({})


# ---- equality and JSON
SPECS: dict[str, Spec] = {
    "defaults": HTTPHammer(),
    "nested": HTTPHammer(weight=2, other=HTTPHammer(other=Box(3, torch.ones(2, 2)))),
    "float64": Box(1, torch.randn(2, 3, dtype=torch.float64)),
    "bfloat16": Box(1, torch.randn(4).bfloat16()),
    "int64": Box(1, torch.tensor([[1, -2**40]])),
    "bool": Box(1, torch.tensor([True, False])),
    "scalar": Box(1, torch.tensor(2.5)),
    "empty": Box(1, torch.zeros(0, 3)),
    "strided": Box(1, torch.arange(6.0).view(2, 3).t()),
    "tuple": HTTPHammer(place=(1, 2), marks=((1, 2), ("a", None))),
    "method": cs.SmoothGrad(of=cs.IntegratedGradients(steps=3, baseline=torch.rand(1, 3, 2, 2)), samples=2),
    "target": 0.5 * cs.Channel("a", 3) - cs.Direction("b", torch.ones(2)),
}


@pytest.mark.parametrize("name", SPECS)
def test_json_and_pickle_return_an_equal_spec(name: str) -> None:
    spec = SPECS[name]
    for back in (through_json(spec), pickle.loads(pickle.dumps(spec))):
        assert back == spec
        assert hash(back) == hash(spec)
        assert back.to_dict() == spec.to_dict()
        assert repr(back) == repr(spec)


def test_tensors_come_back_bit_for_bit() -> None:
    lid = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    back = through_json(Box(1, lid))
    assert torch.equal(back.lid.view(torch.int32), lid.view(torch.int32))
    assert back.lid.dtype == lid.dtype


def test_specs_differ_by_class_and_by_every_setting() -> None:
    different = [HTTPHammer(), HTTPHammer(weight=2), HTTPHammer(soft=True), HTTPHammer(other=HTTPHammer()), Box(1), Box(2)]
    zeros = torch.zeros(2)
    different += [Box(1, lid) for lid in (zeros, zeros.double(), zeros[None], zeros + 1)]
    assert len(set(different)) == len(different)
    assert not any(a == b for i, a in enumerate(different) for b in different[i + 1 :])
    assert HTTPHammer(weight=2) == HTTPHammer(weight=2.0)
    assert hash(HTTPHammer(weight=2)) == hash(HTTPHammer(weight=2.0))
    assert HTTPHammer() != "http-hammer"


def test_hashes_are_the_same_in_every_process() -> None:
    code = "import convoscope as cs; print(hash(cs.Logit((1, 2))))"
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert found == {f"{hash(cs.Logit((1, 2)))}\n"}


def test_from_dict_says_what_is_wrong() -> None:
    for data, reason in (
        ({}, "described by kind, name and settings"),
        ({"kind": "test-tool", "name": "bax"}, "no test-tool 'bax'; did you mean 'box'"),
        ({"kind": "test-tool", "name": "box", "sise": 3}, "has no setting 'sise'; did you mean 'size'"),
        ({"kind": "test-tool", "name": "box", "size": "x"}, "expected a whole number"),
        ({"kind": "test-tool", "name": "box"}, "needs size"),
    ):
        with pytest.raises(cs.SpecError, match=reason):
            Spec.from_dict(data)


def test_specs_print_as_they_are_written() -> None:
    assert repr(Box(2)) == "Box(size=2, lid=None)"
    assert repr(Box(2, torch.zeros(2, 3))) == "Box(size=2, lid=tensor of shape (2, 3))"
    assert repr(cs.SmoothGrad(samples=2)).startswith("SmoothGrad(of=Gradient(), samples=2, sigma=0.15")


# ---- text
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http-hammer", HTTPHammer()),
        (" http-hammer : blows = 4 , soft = yes ", HTTPHammer(blows=4, soft=True)),
        ("http-hammer:weight=2,grip=steel,head=claw", HTTPHammer(weight=2, grip="steel", head="claw")),
        ("http-hammer:head=0.5", HTTPHammer(head=0.5)),
        ("http-hammer:label=7", HTTPHammer(label=7)),
        ("http-hammer:label=seven", HTTPHammer(label="seven")),
        ("http-hammer:place=(1, 2)", HTTPHammer(place=(1, 2))),
        ("http-hammer:place=none", HTTPHammer()),
        ("http-hammer:other=box:size=3", HTTPHammer(other=Box(3))),
        ("http-hammer:other=none", HTTPHammer()),
        ("http-hammer:other=(box:size=3),blows=2", HTTPHammer(other=Box(3), blows=2)),
        (
            "http-hammer:other=(http-hammer:other=(box:size=1),blows=2,weight=3),blows=5",
            HTTPHammer(other=HTTPHammer(other=Box(1), blows=2, weight=3), blows=5),
        ),
        ("http-hammer:blows=4,blows=5", HTTPHammer(blows=5)),
    ],
)
def test_specs_from_text(text: str, expected: Spec) -> None:
    assert parse_spec("test-tool", text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hammer", "no test-tool 'hammer'; did you mean 'http-hammer'"),
        ("", "no test-tool ''"),
        ("http-hammer:blow=3", "no setting 'blow'; did you mean 'blows'"),
        ("http-hammer:blows", "'blows' in .* is not a setting; write setting=value"),
        ("http-hammer:blows=many", "http-hammer:blows is 'many'; expected a whole number"),
        ("http-hammer:blows=2.5", "expected a whole number"),
        ("http-hammer:weight=nan", "expected at least 0.5"),
        ("http-hammer:head=cone", "expected 'ball' or 'claw' or a number or a tensor"),
        ("http-hammer:soft=perhaps", "expected yes or no"),
        ("http-hammer:other=(box", "parentheses do not match"),
        ("http-hammer:other=box)", "parentheses do not match"),
        ("http-hammer:other=(bax)", "no test-tool 'bax'; did you mean 'box'"),
        ("box", "test-tool 'box' needs size"),
    ],
)
def test_what_is_wrong_with_a_text(text: str, reason: str) -> None:
    with pytest.raises(cs.SpecError, match=reason):
        parse_spec("test-tool", text)


def test_texts_of_methods() -> None:
    cs.methods()
    made = parse_spec("method", "smooth-grad:samples=8,of=(integrated-gradients:steps=16,baseline=0.5),sigma=0.1")
    assert made == cs.SmoothGrad(of=cs.IntegratedGradients(steps=16, baseline=0.5), samples=8, sigma=0.1)
    assert parse_value(Annotated[int | None, "help"], "None", "x") is None


def test_every_registered_spec_says_what_its_settings_are() -> None:
    cs.methods()
    for kind in ("method", "rule", "target"):
        assert registered(kind)
        for cls in registered(kind).values():
            assert cls.__doc__
            assert all(f.help for f in fields_of(cls)), cls


def test_bibtex() -> None:
    text = Paper("key2020", "Ada L", "A Title", "ICML", 2020, "1234.5678").bibtex()
    assert text.startswith("@misc{key2020,\n")
    for line in ("author = {Ada L}", "title = {A Title}", "year = {2020}", "note = {ICML}", "eprint = {1234.5678}"):
        assert line in text
    assert text.count("{") == text.count("}")
    assert "eprint" not in Paper("k", "a", "t", "v", 1999).bibtex()
