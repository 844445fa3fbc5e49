"""A method on a network, with what the laws ask of it again and again."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convoscope.core.spec import Spec, fields_of
from convoscope.method import Method, explain, method_of
from convoscope.results import Attribution
from convoscope.targets import Logit, Target
from convoscope.testing.untouched import unchanged
from convoscope.testing.zoo import Hostile

SMALL = {
    "steps": 4,
    "samples": 3,
    "window": 4,
    "stride": 3,
    "masks": 6,
    "cells": 3,
    "segments": 12,
    "permutations": 3,
    "channels": 4,
}
FINE = {"steps": 256, "samples": 256}
CLOSE = 1e-9  # float64, relative to the largest value: another order of summation is allowed, another result is not
SEED = 3
Law = Callable[["Trial"], None]


class NotTried(Exception):
    """A law that cannot be tried here: why, and what to do about it."""


class Trial:
    """A method on a network, and what it gives there in the plainest use.

    `thorough`: laws try all they know, not a sample. `cases` counts those of the law at hand: `right`, `refused` with a reason.
    """

    def __init__(self, method: Method, hostile: Hostile, thorough: bool = False) -> None:
        self.method, self.hostile, self.thorough = method, hostile, thorough
        self.network, self.x = hostile.network(), hostile.images()
        self.cases: Counter[str] = Counter()

    def explain(
        self, x: Tensor | None = None, method: Method | None = None, target: Target | None = None, **settings: Any
    ) -> Attribution:
        settings = {"seed": SEED, **settings}
        return explain(self.network, self.x if x is None else x, method or self.method, target or Logit(1), **settings)

    def values(self, **settings: Any) -> Tensor:
        return self.explain(**settings).values

    @cached_property
    def reference(self) -> Tensor:
        return self.values().clone()

    @cached_property
    def single(self) -> tuple[Any, Tensor, Tensor]:
        """The same network in single precision, its images, and what the method gives there."""
        network, x = self.hostile.network(torch.float32), self.hostile.images(dtype=torch.float32)
        return network, x, explain(network, x, self.method, Logit(1), seed=SEED).values.clone()

    def unchanged(self, when: str) -> AbstractContextManager[None]:
        """Raises AssertionError if the network, the input or the process is not as before."""
        return unchanged(self.network.module, self.x, when)

    def with_settings(self, wanted: Mapping[str, Any], below: bool = False) -> Method:
        """The method with those of its settings that are `wanted` (where `below`, only if they are larger now)."""
        return with_settings(self.method, wanted, below)


def with_settings(method: Any, wanted: Mapping[str, Any], below: bool = False) -> Any:
    changes: dict[str, Any] = {}
    for info in fields_of(type(method)):
        value, new = getattr(method, info.name), wanted.get(info.name)
        if isinstance(value, Spec):
            changes[info.name] = with_settings(value, wanted, below)
        elif new is None or isinstance(value, tuple) or (below and isinstance(value, int | float) and value < new):
            continue  # channels of CRP are numbers of channels, not how many
        else:
            changes[info.name] = new
    return dataclasses.replace(method, **changes) if changes else method


def same(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    error, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= CLOSE * max(scale, 1e-12), f"{what}: differs by {error:.2g}, the largest value is {scale:.2g}"


def small(method: Method | type[Method] | str) -> Method:
    """The method with settings that make it cheap: few steps, samples and windows."""
    method = method() if isinstance(method, type) else method_of(method)
    return with_settings(method, SMALL, below=True)


def never_quickly(law: Law) -> Law:
    """A law that costs much, and is checked thoroughly alone."""
    return only_on()(law)


def only_on(*networks: str) -> Callable[[Law], Law]:
    """A law that is checked on these networks alone, unless thoroughly: it asks for little that differs between networks."""

    def mark(law: Law) -> Law:
        law.networks = networks  # type: ignore[attr-defined]
        return law

    return mark
