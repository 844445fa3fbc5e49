"""Pages stand alone, tell the truth without scripts, and cannot be broken by names."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from convoscope.show.colormap import ZERO, diverging
from convoscope.show.html import Fact, Map, Picture, Prediction, Report, fragment, page, table

rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
EVIL = "<script>alert(1)</script>\"' onerror=alert(2) {{ 7*7 }} &amp;"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.found if tag == name]


def report(n=2, values=None, **options):
    values = rng.normal(size=(48, 64)) if values is None else values
    maps = [
        Map(
            "Integrated gradients",
            values,
            signed=True,
            target="tabby",
            unit="logits",
            shows="What each pixel adds.",
            facts=[Fact("Completeness gap", "0.02", "good"), Fact("Lost relevance", "90 %", "warn", "too much")],
            drawback="Black gets nothing.",
            citation="Sundararajan et al. 2017",
        ),
        Map("Grad-CAM", np.arange(49.0).reshape(7, 7), signed=False, target="tabby"),
        Map("Occlusion", values, signed=True, target="tiger cat"),
    ]
    pictures = [
        Picture(f"cat {i}.jpg", PHOTO, [Prediction("tabby", 0.71, True), Prediction("lynx", 1e-9)], maps) for i in range(n)
    ]
    return Report("Why?", pictures, [Fact("Network", "resnet18")], command="convoscope explain", **options)


def test_page_needs_no_other_file_and_no_network():
    text = page(report())
    tags = Tags(text)
    for tag, attrs in tags.found:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert not re.findall(r"@import|url\((?!data:)|https?://", text)
    assert "fetch(" not in text


def test_every_picture_has_words_and_every_link_a_place():
    tags = Tags(page(report()))
    images = tags.all("img")
    assert len(images) == 2 * (1 + 3 * 2)
    assert all(attrs["alt"] and attrs["width"] and attrs["height"] for attrs in images)
    assert any("Grad-CAM of cat 1.jpg for tabby" in a["alt"] and "bottom right" in a["alt"] for a in images)
    ids = [attrs["id"] for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in tags.all("a")} <= set(ids)


def test_everything_said_is_there_without_a_script():
    tags = Tags(re.sub(r"<script.*?</script>", "", page(report()), flags=re.S))
    words = " ".join(" ".join(tags.words).split())
    for said in ["Why?", "resnet18", "71.0 %", "< 0.1 %", "explained below", "What each pixel adds.", "90 %", "too much"]:
        assert said in words
    for said in ["Black gets nothing.", "Sundararajan et al. 2017", "convoscope explain", "smoothed from 7 x 7", "tiger cat"]:
        assert said in words


def test_every_map_has_a_scale_with_zero_in_the_middle_of_signed_ones():
    text = page(report(1))
    scales = [a for a in Tags(text).all("div") if a.get("class") == "ramp"]
    assert len(scales) == 3
    signed = [a for a in scales if "over zero (white)" in a["aria-label"]]
    assert len(signed) == 2
    colors = re.findall(r"#[0-9a-f]{6}", signed[0]["style"])
    assert len(colors) % 2 == 1
    assert colors[len(colors) // 2] == "#{:02x}{:02x}{:02x}".format(*diverging()[ZERO])
    assert 'left:50%;transform:translateX(-50%)">0</span>' in text


def test_values_can_be_read_back_from_the_map():
    values = rng.normal(size=(48, 64))
    tags = Tags(page(Report("t", [Picture("n", np.zeros((48, 64, 3)), maps=[Map("m", values, True, limit=3.0)])])))
    source = next(a["src"] for a in tags.all("img") if a["src"].startswith("data:image/png"))
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
        places = np.asarray(picture).astype(int)
        assert picture.getpalette() == diverging().ravel().tolist()
    assert places.shape == (336, 448)  # few pixels are enlarged, so that encoding keeps fine colors
    inside = places[3::7, 3::7]  # the middles of the pixels
    assert np.abs((inside - ZERO) / 127 * 3.0 - np.clip(values, -3, 3)).max() <= 3.0 / 127


def test_a_map_of_zeros_is_drawn_and_said():
    text = page(report(1, values=np.zeros((48, 64))))
    assert "0 everywhere" in text
    assert "It is zero everywhere." in text


@pytest.mark.parametrize("make", [page, fragment])
def test_names_are_only_text(make):
    picture = Picture(EVIL, PHOTO, [Prediction(EVIL, 0.5, True)], [Map(EVIL, PHOTO[..., 0], True, EVIL, EVIL, EVIL)], EVIL)
    facts = [Fact(EVIL, EVIL, "", EVIL)]
    text = make(Report(EVIL, [picture], facts, EVIL, [EVIL], EVIL, EVIL, facts, EVIL, EVIL))
    assert "<script>alert" not in text
    assert "onerror=alert(2) {{ 7*7 }}" in text
    assert not any("onerror" in attrs for _, attrs in Tags(text).found)
    assert "<script>alert" not in table([EVIL], [[EVIL]])


def test_fragment_is_small_and_says_what_it_leaves_out():
    text = fragment(report(1))
    assert len(text) < 200_000
    assert "<script" not in text
    assert not re.findall(r"https?://|id=", text)
    style = text.partition("<style>")[2].partition("</style>")[0]
    selectors = [s for rule in re.findall(r"([^{}]+){", style) for s in rule.split(",")]
    assert len(selectors) > 20
    assert all(selector.strip().startswith(".convoscope") for selector in selectors)
    noise = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
    many = [Picture(str(i), noise, maps=[Map("m", rng.normal(size=(320, 320)), True)]) for i in range(9)]
    text = fragment(Report("", many))
    assert len(text) < 1_200_000
    assert re.search(r"\d more pictures not shown", text)


def test_pictures_of_every_size():
    shapes = [(2, 2, 3), (32, 32), (900, 300, 3)]
    pictures = [Picture("n", rng.random(s), maps=[Map("m", rng.random((5, 5)), False)]) for s in shapes]
    sizes = [(int(a["width"]), int(a["height"])) for a in Tags(page(Report("t", pictures))).all("img")]
    assert {(32, 32), (448, 448), (213, 640)} == set(sizes)
    assert "No pictures" in page(Report("No pictures"))


def test_probabilities():
    said = [Prediction("a", p) for p in (1.0, 0.9999, 0.5, 0.0001, 0.0, float("nan"))]
    words = Tags(page(Report("t", [Picture("n", PHOTO, said)]))).words
    for text in ("100.0 %", "> 99.9 %", "50.0 %", "< 0.1 %", "0.0 %", "not a number"):
        assert text in words


def test_table():
    text = table(["layer", "parameters"], [["conv1", "9,408"], ["add", ""]])
    tags = Tags(text)
    assert [a.get("class") for a in tags.all("th")] == [None, "cv-right"]
    assert "9,408" in tags.words
    assert table(["a"], []).count("<tr>") == 1


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_scripts_run_without_complaint(tmp_path):
    (tmp_path / "r.html").write_text(page(report()), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-dev-shm-usage", "--dump-dom", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        ["chromium", *flags, f"file://{tmp_path / 'r.html'}"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    tags = Tags(done.stdout)
    controls = [a for a in tags.all("div") if a.get("class") == "controls"]
    assert len(controls) == 2
    assert all("hidden" not in a for a in controls)
    assert len([a for a in tags.all("img") if a.get("class") == "under"]) == 6


def test_a_page_runs_its_own_script_and_no_other() -> None:
    text = page(report())
    (policy,) = [a["content"] for a in Tags(text).all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
