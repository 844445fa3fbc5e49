"""Reports, fragments and files made of real results."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import convoscope as cs
from convoscope.report import as_python, build_report, check, facts, page, pictures_of, target_text, title_of


@pytest.fixture(scope="module")
def network() -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return cs.Network(module, size=20, categories=["ant", "bee", "cat", "dog"], name="tiny")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def test_a_page_says_what_was_explained_and_how(network: cs.Network, x: torch.Tensor) -> None:
    methods = ["grad-cam", "integrated-gradients:steps=7,baseline=white", "lrp"]
    found = [cs.explain(network, x, m, t) for m in methods for t in ("bee", "dog")]
    report = build_report(network, x, ["folder/one.png", "two.png"], found, command="convoscope explain one.png")
    assert [p.name for p in report.pictures] == ["one.png", "two.png"]
    for picture in report.pictures:
        assert [m.target for m in picture.maps] == ["bee"] * 3 + ["dog"] * 3
        assert {p.category for p in picture.predictions if p.explained} == {"bee", "dog"}
        gradients = picture.maps[1]
        assert gradients.title == "Integrated gradients (steps 7, baseline white)"
        said = {f.label: f for f in gradients.facts}
        assert said["baseline"].value == "white"
        assert said["completeness gap"].mark in ("good", "", "warn")
        assert "lost relevance" in {f.label for f in picture.maps[2].facts}
    text = page(report)
    for word in ("tiny", "convoscope explain one.png", "Selvaraju", "@misc{", "steps 7"):
        assert word in text


def test_the_top_class_differs_from_image_to_image(network: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(network, x, "gradient")
    predicted = network.predict(x)
    assert [target_text(a, i) for i in range(2)] == [p[0].category for p in predicted]
    assert all(p.predictions[0].explained for p in pictures_of(network, x, ["a", "b"], [a]))


def test_targets_that_are_no_category_are_told_too(network: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(network, x, "gradient", cs.Logit("bee") - cs.Logit("dog"))
    assert "Logit" in target_text(a, 0)
    b = cs.explain(network, x, "gradient", cs.Probability("bee"))
    assert target_text(b, 1) == "probability of bee"


def test_the_python_of_a_report_makes_the_same_numbers(network: cs.Network, x: torch.Tensor) -> None:
    found = [
        cs.explain(network, x, cs.SmoothGrad(of=cs.InputXGradient(), samples=2), seed=3),
        cs.explain(network, x, cs.Gradient(), cs.Channel("1", 2), at="0"),
    ]
    lines = as_python(network, ["a.png", "b.png"], found).splitlines()
    again = [eval(line, {"cs": cs, "net": network, "x": x}) for line in lines if line.startswith("cs.explain")]
    assert len(again) == 2
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a.values, b.values)


def test_marks_follow_the_gap(network: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(network, x, "integrated-gradients")
    for relative, mark in ((0.001, "good"), (0.05, ""), (0.5, "warn")):
        a.diagnostics["completeness gap relative"] = [relative, relative]
        (picture, _) = pictures_of(network, x, ["a", "b"], [a])
        (fact,) = [f for f in picture.maps[0].facts if f.label == "completeness gap"]
        assert fact.mark == mark
    assert check(a, "lost relevance", 0) == ("", None)


def test_titles_name_unusual_settings_only() -> None:
    assert title_of(cs.GradCAM()) == "Grad-CAM"
    assert title_of(cs.GradCAM(layer="0")) == "Grad-CAM (layer 0)"
    assert title_of(cs.Occlusion(fill=torch.zeros(1, 3, 1, 1))) == "Occlusion (fill a tensor (1, 3, 1, 1))"


def test_fragments(network: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(network, x, "lrp")
    for text in (a.to_html(over=x), a._repr_html_()):
        assert "data:image/" in text
        assert "http" not in text
        assert "<html" not in text
    with pytest.raises(cs.UsageError, match="2 maps"):
        a.to_html(over=x[:1])


def test_files(network: cs.Network, x: torch.Tensor, tmp_path: Path) -> None:
    a = cs.explain(network, x, "lrp", "cat", seed=5)
    a.save(tmp_path / "a.png", over=x)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.width > opened.height > 224
    a.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as stored:
        assert torch.equal(stored.get_tensor("values"), a.values)
        made = json.loads(stored.metadata()["convoscope"])
    assert made["method"]["name"] == "lrp"
    assert made["seed"] == 5
    with pytest.raises(cs.UsageError, match="safetensors"):
        a.save(tmp_path / "a.jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.safetensors"]


def test_a_map_of_zeros_is_drawn_and_says_so(network: cs.Network) -> None:
    x = torch.zeros(1, 3, 20, 20)
    a = cs.explain(network, x, "input-x-gradient")
    assert "zero everywhere" in page(build_report(network, x, ["black"], [a]))
    assert a.image(over=x).width > 200


def test_activations_that_a_method_does_not_cover_are_named() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = cs.Network(nn.Sequential(*layers, nn.Linear(4, 2)), size=12)
    found = cs.explain(net, torch.rand(1, 3, 12, 12), "guided-backprop", 0)
    fact = next(f for f in facts(found, 0) if f.label == "not covered")
    assert (fact.value, fact.mark) == ("1 activation", "warn")
    assert fact.note.endswith("such as 3")
    assert all(f.label != "not covered" for f in facts(cs.explain(net, torch.rand(1, 3, 12, 12), "gradient", 0), 0))
