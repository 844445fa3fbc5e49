"""What the commands print and write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import convoscope as cs

Cli = Callable[..., Any]


def done(result: Any) -> Any:
    assert result.code == 0, result.err
    return result


def loads_nothing(page: str) -> None:
    """The page names no other file: no address but in links that a reader may click."""
    without_links = re.sub(r'<a\b[^>]*\bhref="https?://[^"]*"', "<a", page)
    for attribute, address in re.findall(r'\b(src|href|action|poster|data)="([^"]*)"', without_links):
        assert address.startswith(("data:", "#")), f"{attribute}={address[:80]}"
    for address in re.findall(r"url\(([^)]*)\)", without_links):
        assert address.strip("'\"").startswith(("data:", "#")), address[:80]
    assert not re.search(r"@import|<link\b[^>]*stylesheet|\bfetch\(|XMLHttpRequest|WebSocket", without_links)


def test_explain_with_the_default_methods(cli: Cli, picture: Path, tmp_path: Path) -> None:
    result = done(cli("explain", picture, "--model", "scenes", "--out", "r.html"))
    page = (tmp_path / "r.html").read_text()
    for method in ("grad-cam", "integrated-gradients", "guided-backprop", "lrp", "occlusion"):
        assert method in result.out
        assert cs.methods()[method].title in page
    assert "completeness gap" in result.out
    assert "lost relevance" in result.out
    assert "r.html" in result.out
    assert picture.name in result.out
    loads_nothing(page)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def test_explain_as_json(cli: Cli, picture: Path, tmp_path: Path) -> None:
    words = (
        "explain",
        picture,
        "--model",
        "scenes",
        "--method",
        "integrated-gradients",
        "--steps",
        "4",
        "--json",
    )
    document = json.loads(done(cli(*words)).out)
    assert document["schema"] == "convoscope.explain/1"
    (attribution,) = document["attributions"]
    assert attribution["method"]["steps"] == 4
    assert "completeness gap" in attribution["diagnostics"]
    (image,) = document["images"]
    assert 0 < image["predictions"][0]["probability"] <= 1
    assert document["report"] is None
    assert [p.name for p in tmp_path.iterdir()] == [picture.name]
    again = json.loads(done(cli(*words)).out)
    for found in (document, again):
        del found["attributions"][0]["diagnostics"]["seconds"]
    assert again == document


def test_what_stands_with_the_method_wins(cli: Cli, picture: Path) -> None:
    words = (
        "--method",
        "integrated-gradients:steps=5,baseline=blur",
        "--method",
        "integrated-gradients",
        "--steps=3",
    )
    document = json.loads(done(cli("explain", picture, "-m", "scenes", *words, "--json")).out)
    assert [a["method"]["steps"] for a in document["attributions"]] == [5, 3]
    assert document["attributions"][0]["method"]["baseline"] == "blur"


def test_several_pictures_targets_and_png(cli: Cli, picture: Path, tmp_path: Path) -> None:
    Image.open(picture).rotate(90).save(tmp_path / "second.png")
    words = ("--method", "gradient", "--target", "0", "--target", "1", "--png", "maps", "--out", "r.html")
    done(cli("explain", picture, "second.png", "-m", "scenes", *words))
    pictures = sorted((tmp_path / "maps").iterdir())
    assert len(pictures) == 4
    for path in pictures:
        with Image.open(path) as opened:
            opened.load()
            assert opened.width >= 64


def test_layers(cli: Cli) -> None:
    text = done(cli("layers", "scenes")).out
    document = json.loads(done(cli("layers", "scenes", "--json")).out)
    assert document["schema"] == "convoscope.layers/1"
    addresses = [row["address"] for row in document["layers"]]
    assert len(addresses) > 5
    for address in addresses:
        assert address in text


def test_methods(cli: Cli) -> None:
    text = done(cli("methods")).out
    document = json.loads(done(cli("methods", "--json")).out)
    assert [m["name"] for m in document["methods"]] == list(cs.methods())
    for method in document["methods"]:
        assert method["name"] in text
        assert all(method[key] for key in ("type", "use", "cost", "support", "drawback"))
        assert all(setting["help"] for setting in method["settings"])


def test_one_method_in_full(cli: Cli) -> None:
    text = done(cli("methods", "integrated-gradients")).out
    for word in ("steps", "baseline", "Sundararajan", "@"):
        assert word in text


def test_demo(cli: Cli, tmp_path: Path) -> None:
    result = done(cli("demo"))
    page = tmp_path / "convoscope-demo.html"
    assert page.name in result.out
    loads_nothing(page.read_text())


def test_demo_as_json(cli: Cli) -> None:
    document = json.loads(done(cli("demo", "--json")).out)
    assert Path(document["report"]).name == "convoscope-demo.html"


@pytest.mark.usefixtures("torchvision", "torch_home")
def test_dog_and_cat(cli: Cli, testdata: Path, tmp_path: Path) -> None:
    photograph = testdata / "classic_images" / "both.png"
    words = ("--method", "grad-cam", "--target", "boxer", "--target", "tiger cat", "--out", "r.html")
    result = done(cli("explain", photograph, "--model", "torchvision:resnet18", *words))
    assert "boxer" in result.out
    assert "tiger cat" in result.out
    loads_nothing((tmp_path / "r.html").read_text())


def test_targets_with_settings(cli: Cli, picture: Path) -> None:
    texts = ["margin:index=fish,other=car", "channel:layer=layer1,channel=2,over=max", "contrast:index=fish,others=(1,car)"]
    words = [word for text in texts for word in ("--target", text)]
    document = json.loads(done(cli("explain", picture, "-m", "scenes", "--method", "gradient", *words, "--json")).out)
    margin, channel, contrast = (a["target"] for a in document["attributions"])
    categories = cs.load("scenes").categories
    assert (margin["index"], margin["other"]) == (categories.index("fish"), categories.index("car"))
    assert (channel["layer"], channel["channel"], channel["over"]) == ("layer1", 2, "max")
    assert contrast["others"] == [1, categories.index("car")]


@pytest.mark.usefixtures("torchvision")
def test_a_network_that_segments(cli: Cli, picture: Path, tmp_path: Path) -> None:
    words = ("-m", "torchvision:lraspp_mobilenet_v3_large", "--weights", "none", "--method", "gradient")
    words += ("--target", "channel:layer=output,channel=3,over=max")
    result = done(cli("explain", picture, *words, "--out", "r.html"))
    assert "no categories" in result.out
    loads_nothing((tmp_path / "r.html").read_text())
