"""All methods on one sheet, and objects cut out: what is printed and written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import convoscope as cs
from convoscope.attribution.families import FAMILIES, families, family_of
from convoscope.cli.compare import Comparison, lowered

Cli = Callable[..., Any]
SOME = ("--method", "gradient,lrp,grad-cam,integrated-gradients,occlusion,rise")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    from convoscope.data.scenes import draw_factors, render

    Image.fromarray(render(draw_factors(0, 3)).picture).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_methods_side_by_side(cli: Cli, scene: Path, tmp_path: Path) -> None:
    words = ("--target", "top", "--target", "fish", "--effort", "quick", "--out", "c.html", "--png", "c.png")
    result = cli("compare-methods", scene, "-m", "scenes", *SOME, *words)
    assert result.code == 0, result.err
    text = (tmp_path / "c.html").read_text()
    for name in ("gradient", "lrp", "grad-cam", "integrated-gradients", "occlusion", "rise"):
        assert name in result.out
        assert cs.methods()[name].title in text
    for word in ("lost relevance", "completeness gap", "Class activation maps", "Why fish?", "passes"):
        assert word in text
    assert "http" not in text.replace("https://arxiv", "").replace("http-equiv", "")
    drawn = sorted(p.name for p in tmp_path.glob("c-*.png"))
    assert len(drawn) == 2
    assert drawn[1] == "c-2-fish.png"
    for name in drawn:
        with Image.open(tmp_path / name) as opened:
            assert opened.width > 1500


def test_methods_as_json(cli: Cli, scene: Path, tmp_path: Path) -> None:
    result = cli("compare-methods", scene, "-m", "scenes", *SOME, "--effort", "quick", "--json")
    document = json.loads(result.out)
    assert document["schema"] == "convoscope.compare/1"
    found = {a["method"]["name"]: a for a in document["attributions"]}
    assert len(found) == 6
    assert found["grad-cam"]["family"] == "Class activation maps"
    assert found["gradient"]["diagnostics"]["evaluations"] == 1
    assert all(a["diagnostics"]["evaluations"] <= 64 for a in found.values())
    assert document["wrote"] == []
    assert [p.name for p in tmp_path.iterdir()] == [scene.name]


def test_every_method_is_shown_or_named_with_its_reason() -> None:
    net = cs.load("scenes")
    x = net.read(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    job = Comparison(net, x, "noise", [cls() for cls in cs.methods().values()], [net.target(0)], most=8)
    job.run()
    assert {r.method.title for r in job.rows} | {name for name, _ in job.left_out} == {m.title for m in cs.methods().values()}
    assert [reason for _, reason in job.left_out if "unexpectedly" in reason] == []
    assert len(job.rows) > 0.6 * len(cs.methods())
    order = [list(FAMILIES).index(r.family) for r in job.rows]
    assert order == sorted(order)


def test_a_method_that_fails_costs_only_its_own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, probe: Any, x: Any) -> Any:
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr(cs.Gradient, "attribute", broken)
    net = cs.load("scenes")
    job = Comparison(net, torch.zeros(1, 3, 64, 64), "noise", [cs.Gradient(), cs.InputXGradient()], [net.target(0)])
    job.run()
    assert [r.method.name for r in job.rows] == ["input-x-gradient"]
    assert job.left_out == [("Gradient", "failed unexpectedly: RuntimeError: odd thing")]


def test_settings_are_lowered_as_far_as_needed() -> None:
    x = torch.zeros(1, 3, 64, 64)
    assert lowered(cs.IntegratedGradients(), x, None) == cs.IntegratedGradients()
    assert lowered(cs.IntegratedGradients(steps=8), x, 20) == cs.IntegratedGradients(steps=8)
    assert lowered(cs.IntegratedGradients(steps=64), x, 20) == cs.IntegratedGradients(steps=16)
    nested = lowered(cs.SmoothGrad(of=cs.IntegratedGradients(steps=64), samples=16), x, 80)
    assert nested.evaluations(x) <= 80
    assert lowered(cs.Occlusion(window=8, stride=4), x, 60).evaluations(x) <= 60
    assert lowered(cs.Gradient(), x, 0) == cs.Gradient()


def test_every_method_of_the_package_has_a_family() -> None:
    for cls in cs.methods().values():
        if cls.__module__.startswith("convoscope."):
            assert family_of(cls) in FAMILIES, f"{cls.__module__} belongs into FAMILIES"
    made = type("Made", (), {"__module__": "elsewhere.my_methods"})
    assert list(families({"made": made, "gradient": cs.Gradient})) == ["Gradient", "My methods"]


def test_methods_are_listed_with_their_families(cli: Cli) -> None:
    document = json.loads(cli("methods", "--json").out)
    for method in document["methods"]:
        assert all(method[k] for k in ("title", "family", "type", "use", "cost", "support", "drawback", "paper"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scene.png", "scene.png"), "one picture; got 2"),
        (("scene.png", "--effort", "most"), "most"),
        (("scene.png", "--method", "grad-kam"), "grad-cam"),
        (("scene.png", "--out", "no/where.html"), "no/where"),
    ],
)
def test_errors(cli: Cli, scene: Path, words: tuple[str, ...], message: str) -> None:
    result = cli("compare-methods", *words, "-m", "scenes")
    assert result.code == 2
    assert message in result.err


def test_objects_are_cut_out(cli: Cli, scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    result = cli("segment", scene, "-m", "scenes", "--target", "top", "--method", "input-x-gradient", "--out", "cut")
    assert result.code == 0, result.err
    assert "of the picture" in result.out
    whole, cutout = sorted((tmp_path / "cut").iterdir(), key=lambda p: "cutout" in p.name)
    with Image.open(cutout) as opened:
        assert opened.mode == "RGBA"
    with Image.open(whole) as opened:
        assert opened.width > 1500
    document = json.loads(cli("segment", scene, "-m", "scenes", "--method", "lrp", "--composite", "epsilon", "--json").out)
    assert document["schema"] == "convoscope.segments/1"
    (row,) = document["segments"]
    assert 0 < row["share"] < 1
    assert cli("segment", "--smooth", "0.1", "-m", "scenes").code == 2
