"""Names of classes, units, files and networks are text on every page: what they say is never done."""

import base64
import collections.abc
import dataclasses
import hashlib
import re
import types
import typing
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.show import atlas, bench, book, html, judged, scores, sheet, strip

EVIL = "</title></style></script><x-evil onload=alert(1)>\"'><x-evil a=`b`>{{ 7*7 }}{% raw %} javascript:alert(2)"
TEMPLATES = sorted(Path(html.__file__).parent.joinpath("templates").glob("*.html"))


class Tags(HTMLParser):
    """The tags of a page with their attributes, and what its scripts say."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check(text: str, whole: bool = True) -> None:
    """Nothing of EVIL became a tag or an attribute, though it is on the page; only the page's own script may run."""
    found = Tags(text)
    said = [*found.words, *(a.get("alt") or "" for _, a in found.tags)]
    assert any("x-evil" in words for words in said), "the page does not show the names at all"
    assert not [t for t in found.tags if "evil" in t[0]]
    for tag, attributes in found.tags:
        assert not [a for a in attributes if a.startswith("on") or "evil" in a], (tag, attributes)
        for name in ("href", "src", "action", "srcdoc"):
            assert re.match(
                r"#|data:(image/[a-z]+;base64,|,$)|[\w/.%-]*$|https://(doi\.org|arxiv\.org)/", attributes.get(name) or ""
            )
        assert "evil" not in (attributes.get("style") or "")
    assert not any("49" in words and "alert" in words for words in said)  # templates in texts are not rendered
    if whole:
        policy = next(a["content"] or "" for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'")
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
        allowed = re.search(r"script-src ([^;]*)", policy)
        assert allowed
        assert allowed[1] == " ".join(f"'sha256-{d}'" for d in digests) if digests else allowed[1] == "'none'"
    else:
        assert "<script" not in text


# ---- every kind of page, with EVIL in every text of what it is made of
GIVEN = {"edges": [0.0, 0.5, 1.0], "links": [(EVIL, "next.html")]}  # one edge more than counts; links are files of our own


def hostile(kind: Any, name: str = "") -> Any:
    """A value of a type, with EVIL for every text in it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return "" if name == "language" else EVIL
    if origin is typing.Literal:
        return inner[0]
    if origin in (typing.Union, types.UnionType):
        return hostile(next(t for t in inner if t is not type(None)), name)
    if origin is tuple:
        return tuple(hostile(t, name) for t in inner if t is not Ellipsis)
    if name in GIVEN:
        return GIVEN[name]
    if origin in (list, collections.abc.Sequence):
        return [hostile(inner[0], name)] * 2
    if origin in (dict, collections.abc.Mapping):
        return {hostile(inner[0]): hostile(inner[1])}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: hostile(hints[f.name], f.name) for f in dataclasses.fields(kind) if f.name != "link"})
    if kind is Image.Image:
        return Image.new("RGB", (8, 8))
    return {int: 2, float: 0.5, bool: True, Any: np.zeros((8, 8)) if name == "values" else np.zeros((8, 8, 3), np.uint8)}[kind]


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: html.page(hostile(html.Report)),
    "strip": lambda: strip.page(hostile(strip.Strip), EVIL, EVIL),
    "scores": lambda: scores.page(hostile(scores.Scores), [[EVIL]], [EVIL], [EVIL], EVIL),
    "judgment": lambda: judged.page(hostile(judged.Judgment)),
    "benchmark": lambda: bench.page(dataclasses.replace(hostile(bench.Benchmark))),
    "atlas": lambda: atlas.page(hostile(atlas.Sheet)),
    "methods side by side": lambda: sheet.page(hostile(html.Report), [hostile(sheet.Sheet)]),
    "unit": lambda: book.unit_page(hostile(book.UnitPage)),
    "book": lambda: book.book_page(hostile(book.BookPage)),
}


@pytest.mark.parametrize("kind", PAGES)
def test_texts_stay_texts(kind: str) -> None:
    check(PAGES[kind]())


def test_fragments_too() -> None:
    check(html.fragment(hostile(html.Report)), whole=False)
    check(html.table([EVIL], [[EVIL]]), whole=False)


# ---- results of a network with such names
@pytest.fixture(scope="module")
def net() -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return cs.Network(module, 12, categories=[f"{EVIL} {k}" for k in range(3)], name=EVIL)


RESULTS: dict[str, Callable[[cs.Network, torch.Tensor], Any]] = {
    "explained": lambda net, x: cs.explain(net, x, "gradient"),
    "judged": lambda net, x: cs.evaluate(net, x, ["gradient"], ["deletion"]),
    "maximized": lambda net, x: cs.ascend(net, cs.Logit(1), "pixels", steps=1),
    "attacked": lambda net, x: cs.attack(net, x[:1]),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_of_a_network_with_such_names(kind: str, net: cs.Network, tmp_path: Path) -> None:
    found = RESULTS[kind](net, torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    check(found._repr_html_(), whole=False)
    if kind != "explained":
        found.save(tmp_path / "page.html")
        check((tmp_path / "page.html").read_text(encoding="utf-8"))


# ---- all templates
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_templates_have_no_way_around(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|<[^>]*\son\w+=", text)
    for value in re.findall(r"=(\S?)\{\{", text):
        assert value in ('"', " ", ""), path.name  # attributes stand in quotes
    assert not re.search(r"[a-z]=\{\{", text), "an attribute without quotes"
    if "<!doctype" not in text and "{% block" in text:
        assert '{% extends "base.html" %}' in text
