"""Targets in words, as people type them: `tabby`, `layer4:42`, `0.8*layer4:7 - 0.2*layer3:5`."""

import re
from collections.abc import Callable, Collection, Sequence

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.core.spec import fields_of, parse_spec, registered
from convoscope.targets.base import Target
from convoscope.targets.classes import Logit
from convoscope.targets.units import Channel, Layer, Neuron

HELP = "layer4:42 (a channel), layer4:42@3,5 or layer4:42@center (one position), layer4, tabby or class:281 (a class)"
_NUMBER = r"[0-9]*\.?[0-9]+(?:e-?[0-9]+)?"
_UNIT = re.compile(r"(?P<layer>.+):(?P<channel>\d+)(?:@(?P<place>\d+,\d+|center|max))?")
_TERM = re.compile(rf"(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<atom>.+?)(?:\s*\*\s*(?P<after>{_NUMBER}))?")


def read_target(text: str, categories: Sequence[str] = (), layers: Collection[str] = ()) -> Target:
    """The target that a text names: one, or a sum such as `0.8*layer4:7 - layer3:5*0.2` (spaces around + and -).

    `class:X` is the logit of a class, `log-probability:X` and any other target of classes by name likewise;
    `name:setting=value` is a target with its settings. A layer alone is all of it. Raises UsageError with the closest names.
    """
    pieces = re.split(r"\s+([+-])\s+", text.strip())
    if pieces[0].startswith(("-", "+")) and not pieces[0][1:2].isspace():
        pieces = [pieces[0][0], pieces[0][1:], *pieces[1:]]
    else:
        pieces = ["+", *pieces]
    terms = []
    for sign, term in zip(pieces[::2], pieces[1::2], strict=True):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise UsageError(f"an empty target in {text!r}; expected {HELP}, or a sum of these")
        weight = float(match["before"] or 1) * float(match["after"] or 1) * (-1 if sign == "-" else 1)
        terms.append((weight, _atom(match["atom"], categories, layers)))
    weighted = [t if w == 1 else w * t for w, t in terms]
    return weighted[0] if len(weighted) == 1 else sum(weighted[1:], weighted[0])


def _atom(text: str, categories: Sequence[str], layers: Collection[str]) -> Target:
    kind, colon, rest = text.partition(":")
    known = registered("target")
    if colon and kind in known and "=" in rest:
        return parse_spec("target", text).named(categories)  # type: ignore[attr-defined]
    if colon and kind not in layers and (make := _of_class(kind)) is not None:
        return make(rest).named(categories)
    if (match := _UNIT.fullmatch(text)) is not None:
        layer, channel, place = match["layer"], int(match["channel"]), match["place"]
        if place in (None, "max"):
            return Channel(layer, channel, over="max" if place else "mean")
        row, _, column = place.partition(",")
        return Neuron(layer, channel) if place == "center" else Neuron(layer, channel, int(row), int(column))
    if text in layers:
        return Layer(text)
    try:
        return Logit(text).named(categories) if categories or not text.isdecimal() else Logit(int(text))
    except UsageError as error:
        if near := did_you_mean(text, layers):
            raise UsageError(f"no target {text!r}{near} (expected {HELP})") from None
        raise error


def _of_class(kind: str) -> Callable[[str], Target] | None:
    """A target of a class by its name (`class` is the logit), made of the class alone."""
    cls = registered("target").get("logit" if kind == "class" else kind)
    if cls is None or "index" not in {f.name for f in fields_of(cls)}:
        return None
    return lambda which: cls.make({"index": which})  # type: ignore[return-value]
