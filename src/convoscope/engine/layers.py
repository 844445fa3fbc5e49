"""Which layers are meant: addresses and patterns, checked by one pass of one picture."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import AddressError, ImageError, UsageError, did_you_mean
from convoscope.core.record import Observer, canonical, record
from convoscope.core.run import undisturbed
from convoscope.engine.shards import check_layer
from convoscope.network import Network


class _Seen(Observer):
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        self.shapes[address] = tuple(output.shape)


def find_layers(network: Network, x: Tensor, asked: Any) -> tuple[str, ...]:
    """The addresses that `asked` names, in its order, those of a pattern in the order they run.

    `*` in a pattern stands for anything but a dot, `**` for anything. Patterns leave out what has no channels. Raises
    AddressError for what the network does not have, UnsupportedError for a named layer that has no channels.
    """
    words = [asked] if isinstance(asked, str) else list(asked)
    if not words or not all(isinstance(w, str) for w in words):
        raise UsageError(f"layers are addresses or patterns such as 'layer4' or 'layer*'; got {asked!r}")
    seen = _Seen()
    with undisturbed(network.plain), torch.no_grad():
        output = record(network.plain, x, ("output",), observer=seen, head=network.head)["output"]
    shapes = {"input": tuple(x.shape), **seen.shapes, "output": tuple(output.shape)}
    found = [layer for word in words for layer in _meant(network, word, shapes)]
    for layer in found:
        check_layer(layer, torch.empty(shapes[canonical(network.plain, layer)], device="meta"), len(x))
    return tuple(dict.fromkeys(found))


def _meant(network: Network, word: str, shapes: dict[str, tuple[int, ...]]) -> Sequence[str]:
    if canonical(network.plain, word) in shapes:
        return [word]
    if "*" in word or "?" in word:
        parts = [{"**": ".*", "*": r"[^.]*", "?": r"[^.]"}.get(p, re.escape(p)) for p in re.split(r"(\*\*|\*|\?)", word)]
        pattern = re.compile("".join(parts))
        matching = [a for a, s in shapes.items() if pattern.fullmatch(a) and len(s) in (2, 4) and a not in ("input", "output")]
        if not matching:
            raise AddressError(f"no layer matches {word!r} (net.layers() lists them all)")
        return matching
    state = "was not called in this pass" if word in dict(network.plain.named_modules()) else "does not exist"
    raise AddressError(f"layer {word!r} {state}{did_you_mean(word, shapes)} (net.layers() lists them all)")


def first_input(network: Network, dataset: Any) -> Tensor:
    """The first picture that can be read, as an input. Raises ImageError where none of them can."""
    from convoscope.engine.shards import Work, read

    work, reason = Work(network, dataset, {}, len(dataset)), ""
    for i in range(len(dataset)):
        found = read(work, i)
        if isinstance(found, Tensor):
            return found
        reason = reason or found
    raise ImageError(f"none of the {len(dataset)} pictures of {dataset.name} can be read; the first: {reason}")
