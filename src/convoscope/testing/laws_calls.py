"""Calls of `explain` that make no sense, each with one thing wrong."""

from typing import Any

import torch
from torch import Tensor

from convoscope.method import Method
from convoscope.network import Network
from convoscope.targets import Channel, Logit, Margin, Neuron


def bad_calls(network: Network, x: Tensor, method: Method, beyond: int = 99) -> dict[str, dict[str, Any]]:
    """What is wrong, and the arguments of the call, for a network with at most `beyond` classes."""
    right = {"network": network, "x": x, "method": method, "target": Logit(1)}
    layer = next((name for name, m in network.plain.named_modules() if isinstance(m, torch.nn.Conv2d)), "nowhere at all")
    wrong = {"x": _images(x), "target": _targets(len(x), layer, beyond), **_settings()}
    return {f"{key}: {what}": {**right, key: value} for key, cases in wrong.items() for what, value in cases.items()}


def _images(x: Tensor) -> dict[str, Any]:
    spoiled, endless = x.clone(), x.clone()
    spoiled[1, 0, 2, 3], endless[0, 0, 0, 0] = torch.nan, -torch.inf
    return {
        "two axes": x[0, 0], "three axes": x[0], "five axes": x[None], "no images": x[:0], "no rows": x[:, :, :0],
        "a channel too many": torch.cat([x, x[:, :1]], 1), "a channel too few": x[:, 1:],
        "bytes": x.to(torch.uint8), "whole numbers": x.long(), "true and false": x > 0, "complex": x.to(torch.complex64),
        "NaN": spoiled, "infinity": endless, "no values": x.to("meta"), "sparse": x.to_sparse(),
        "nothing": None, "a number": 3, "a list of numbers": [1, 2], "an empty list": [], "no such file": "no-such-file.png",
        "a dictionary": {"x": x},
    }  # fmt: skip


def _targets(images: int, layer: str, beyond: int) -> dict[str, Any]:
    return {
        "no such class": beyond, "a negative class": -1, "no such class among several": [*[0] * (images - 1), beyond],
        "true": True, "a fraction": 1.5, "a name of no category": "no-such-category", "a list too long": [0] * (images + 1),
        "a tensor too short": torch.zeros(images - 1, dtype=torch.long), "a table of classes": torch.zeros(images, 2),
        "fractions for each": torch.full((images,), 0.5), "true for each": [True] * images, "an empty list": [],
        "an object": object(), "no such rival": Margin(1, beyond), "no such layer": Channel("nowhere", 0),
        "no such channel": Channel(layer, 99_999), "no such place": Neuron(layer, 0, 999, 999),
    }  # fmt: skip


def _settings() -> dict[str, dict[str, Any]]:
    return {
        "method": {"no such method": "no-such-method", "a class": Method, "nothing": None, "an empty list": []},
        "at": {"no such layer": "nowhere", "an empty list": [], "a number": 3},
        "batch_size": {"zero": 0, "negative": -1, "a fraction": 2.5, "a word": "all", "true": True},
        "network": {"a name": "resnet18", "nothing": None},
        "nonfinite": {"another word": "ignore"},
    }
