"""The laws that every attribution method keeps on every network: one function per law, and `check_method` for all of them."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convoscope.core.errors import UnsupportedError
from convoscope.core.spec import Spec, fields_of
from convoscope.method import Method, explain, method_of
from convoscope.results import Attribution
from convoscope.targets import Logit, Target
from convoscope.testing.exceptions import EXCEPTIONS
from convoscope.testing.untouched import unchanged
from convoscope.testing.zoo import Hostile, unavailable, zoo

SMALL = {"steps": 4, "samples": 3, "window": 4, "stride": 3, "masks": 6, "cells": 3, "segments": 12,
         "permutations": 3, "channels": 4}
FINE = {"steps": 256, "samples": 256}
CLOSE = 1e-9  # float64, relative to the largest value: another order of summation is allowed, another result is not
SEED = 3


class Trial:
    """A method on a network, and what it gives there in the plainest use."""

    def __init__(self, method: Method, hostile: Hostile) -> None:
        self.method, self.hostile = method, hostile
        self.network, self.x = hostile.network(), hostile.images()

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

    def unchanged(self, when: str) -> AbstractContextManager[None]:
        """Raises AssertionError if the network, the input or the process is not as before."""
        return unchanged(self.network.module, self.x, when)

    def with_settings(self, wanted: Mapping[str, Any], below: bool = False) -> Method:
        """The method with those of its settings that are `wanted` (where `below`, only if they are larger now)."""
        return _with(self.method, wanted, below)


def _with(method: Any, wanted: Mapping[str, Any], below: bool = False) -> Any:
    changes: dict[str, Any] = {}
    for info in fields_of(type(method)):
        value, new = getattr(method, info.name), wanted.get(info.name)
        if isinstance(value, Spec):
            changes[info.name] = _with(value, wanted, below)
        elif new is None or isinstance(value, tuple) or (below and isinstance(value, int | float) and value < new):
            continue  # channels of CRP are numbers of channels, not how many
        else:
            changes[info.name] = new
    return dataclasses.replace(method, **changes) if changes else method


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    error, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= CLOSE * max(scale, 1e-12), f"{what}: differs by {error:.2g}, the largest value is {scale:.2g}"


# ---------------------------------------------------------------- the laws
def keeps_shape_dtype_device(trial: Trial) -> None:
    for dtype in (torch.float64, torch.float32):
        network, x = trial.hostile.network(dtype), trial.hostile.images(dtype=dtype)
        values = explain(network, x, trial.method, Logit(1), seed=SEED).values
        assert values.dim() == 4, f"values of shape {tuple(values.shape)}; expected (images, channels, rows, columns)"
        assert len(values) == len(x), f"{len(values)} maps for {len(x)} images"
        assert values.shape[1] in (1, x.shape[1]), f"{values.shape[1]} channels; the input has {x.shape[1]}"
        assert values.dtype == dtype, f"{values.dtype} for inputs of {dtype}"
        assert values.device == x.device, f"on {values.device} for inputs on {x.device}"
        assert not values.requires_grad, "values still hang on the graph"
        assert values.isfinite().all(), "values are not finite"


def repeats_with_a_seed(trial: Trial) -> None:
    assert torch.equal(trial.values(), trial.reference), "the same seed gave other values"
    if trial.method.stochastic:
        assert not torch.equal(trial.values(seed=SEED + 1), trial.reference), "another seed gave the same values"


def takes_any_batch_size(trial: Trial) -> None:
    for size in (1, 2):
        _same(trial.values(batch_size=size), trial.reference, f"batch_size={size}")


def leaves_the_network_untouched(trial: Trial) -> None:
    for p in trial.network.module.parameters():
        p.grad = torch.full_like(p, 0.5)
    with trial.unchanged("after an explanation"):
        trial.values()


def is_complete(trial: Trial) -> None:
    if not trial.method.complete:
        return
    method = trial.with_settings(FINE)
    found = trial.explain(method=method)
    with torch.no_grad():
        change = _logit(trial, trial.x) - _logit(trial, trial.network.baseline(getattr(method, "baseline", 0.0), trial.x))
    gap = found.values.flatten(1).sum(1) - change
    scale = torch.maximum(change.abs(), found.values.flatten(1).abs().sum(1))
    assert (gap.abs() <= 0.02 * scale).all(), f"maps miss the change of the target by {(gap.abs() / scale).max():.2%}"
    if "completeness gap" in found.diagnostics:
        reported = torch.tensor(found.diagnostics["completeness gap"], dtype=gap.dtype)
        assert torch.allclose(reported, gap, rtol=1e-6, atol=1e-9), (
            f"reported gaps {reported.tolist()}, true ones {gap.tolist()}"
        )


def _logit(trial: Trial, x: Tensor) -> Tensor:
    module = trial.hostile.network().plain.eval()
    return trial.network.head(module(x.clone()))[:, 1]


def is_exact_on_linear_networks(trial: Trial) -> None:
    if not (trial.method.complete and trial.hostile.linear):
        return
    x = trial.x.clone().requires_grad_()
    (weights,) = torch.autograd.grad(_logit(trial, x).sum(), x)
    _same(trial.values(method=trial.with_settings({"baseline": 0.0})), weights * trial.x, "w * x on a linear network")


def tells_targets_apart(trial: Trial) -> None:
    maps = [trial.reference, *(trial.values(target=Logit(k)) for k in range(trial.hostile.classes) if k != 1)]
    assert any(not torch.equal(maps[0], m) for m in maps[1:]), "all classes get the same map"


def survives_json(trial: Trial) -> None:
    again = Spec.from_dict(json.loads(json.dumps(trial.method.to_dict())))
    assert again == trial.method, f"{trial.method} came back as {again}"
    assert type(again) is type(trial.method)


def works_in_every_mode(trial: Trial) -> None:
    """Under no_grad, inference mode (with inputs made there), autocast, and with gradients switched off for weights."""
    modes: dict[str, AbstractContextManager[Any]] = {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }
    for name, mode in modes.items():
        with mode, trial.unchanged(name):
            made = trial.x.clone()
            assert made.is_inference() == (name == "inference_mode")
            _same(trial.values(x=made), trial.reference, name)


def works_with_any_flags(trial: Trial) -> None:
    """In train mode, with some modules in it, and with frozen parameters."""
    modules, parameters = list(trial.network.module.modules()), list(trial.network.module.parameters())
    before = [m.training for m in modules], [p.requires_grad for p in parameters]
    try:
        for name, training, grad in (("train mode", (True,), True), ("part of it in train mode", (True, False), True),
                                     ("frozen", (False,), False)):  # fmt: skip
            for i, m in enumerate(modules):
                m.training = training[i % len(training)]
            for p in parameters:
                p.requires_grad_(grad)
            with trial.unchanged(name):
                _same(trial.values(), trial.reference, name)
    finally:
        for m, flag in zip(modules, before[0], strict=True):
            m.training = flag
        for p, flag in zip(parameters, before[1], strict=True):
            p.requires_grad_(flag)


def works_in_two_threads(trial: Trial) -> None:
    targets = [Logit(0), Logit(1)]
    expected = [trial.values(target=t) for t in targets]
    barrier, found, errors = threading.Barrier(2), [[], []], []  # type: ignore[var-annotated]

    def work(i: int) -> None:
        try:
            barrier.wait(60)
            for _ in range(2):
                found[i].append(trial.values(target=targets[i]))
        except Exception as error:
            errors.append(error)

    with trial.unchanged("after two threads at once"):
        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    if errors:
        raise AssertionError(f"in a thread: {errors[0]!r}") from errors[0]
    for i in (0, 1):
        for values in found[i]:
            _same(values, expected[i], f"thread {i}")


def counts_its_evaluations(trial: Trial) -> None:
    rows = 0

    def count(module: nn.Module, args: Any) -> None:
        nonlocal rows
        rows += len(args[0])

    trial.reference  # noqa: B018  traces the network, once for each shape of input
    handle = trial.network.plain.register_forward_pre_hook(count)
    try:
        reported = trial.explain().diagnostics["evaluations"]
    finally:
        handle.remove()
    declared = len(trial.x) * trial.method.evaluations(trial.x)
    assert reported == rows, f"reports {reported} evaluations; the network ran {rows}"
    assert rows <= declared, f"declares at most {declared} evaluations; the network ran {rows}"


def is_documented(trial: Trial) -> None:
    cls = type(trial.method)
    text = cls.__doc__ or ""
    assert text, "no docstring"
    assert not text.startswith(f"{cls.__name__}("), "no docstring"  # but the one that dataclasses write
    assert cls.paper is not None, "no paper"
    for thing in (cls.paper, getattr(cls, "about", None)):
        assert thing is not None, "no row for the table of methods; set about = About(...)"
        gaps = [f.name for f in dataclasses.fields(thing) if f.name != "arxiv" and not getattr(thing, f.name)]
        assert not gaps, f"{type(thing).__name__} has no {', '.join(gaps)}"
    for info in fields_of(cls):
        assert info.help, f"setting {info.name!r} has no help; write Annotated[type, 'help']"


# ---------------------------------------------------------------- an exception at every operator
MOMENTS = 24


class Interrupted(BaseException):
    """Not an Exception, as Ctrl-C is not."""


class Failed(Exception):
    """An operator that went wrong."""


class _RaiseAt(TorchFunctionMode):
    """Raises at operator `k` of those called inside the module (or anywhere, where `everywhere`)."""

    def __init__(self, k: int, everywhere: bool, inside: list[int]) -> None:
        super().__init__()
        self.k, self.everywhere, self.inside, self.seen = k, everywhere, inside, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("__get__", "__set__") and (self.everywhere or self.inside):
            self.seen += 1
            if self.seen == self.k:
                raise (Failed if self.k % 2 else Interrupted)(f"operator {self.k}")
        return func(*args, **(kwargs or {}))


@contextmanager
def _entered(module: nn.Module) -> Iterator[list[int]]:
    """A list that holds something while the module runs."""
    inside: list[int] = []
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        inside.append(1)
        try:
            return forward(*args, **kwargs)
        finally:
            inside.pop()

    module.forward = watched
    try:
        yield inside
    finally:
        del module.forward


def leaves_the_network_untouched_when_interrupted(trial: Trial) -> None:
    """An exception at every operator of every forward pass; on the network `skip`, at every operator at all.

    Of very many operators, at as many as MOMENTS, evenly spread from the first to the last.
    """
    expected = trial.reference
    everywhere = trial.hostile.name == "skip"
    with _entered(trial.network.plain) as inside:
        with (counting := _RaiseAt(0, everywhere, inside)):
            trial.values()
        assert counting.seen > 0, "no operator was called in the forward pass"
        for k in _spread(counting.seen):
            with trial.unchanged(f"after operator {k} of {counting.seen} raised"):
                try:
                    with _RaiseAt(k, everywhere, inside) as mode:
                        trial.values()
                except (Failed, Interrupted):
                    continue
                assert mode.seen < k, f"what operator {k} of {counting.seen} raised was swallowed"
    assert torch.equal(trial.values(), expected), "other values after exceptions"


def _spread(count: int) -> list[int]:
    """1 .. count, or MOMENTS of them."""
    if count <= MOMENTS:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (MOMENTS - 1)) for i in range(MOMENTS)})


LAWS: dict[str, Callable[[Trial], None]] = {
    f.__name__.replace("_", " "): f
    for f in (
        keeps_shape_dtype_device, repeats_with_a_seed, takes_any_batch_size, leaves_the_network_untouched,
        leaves_the_network_untouched_when_interrupted, is_complete, is_exact_on_linear_networks, tells_targets_apart,
        survives_json, works_in_every_mode, works_with_any_flags, works_in_two_threads, counts_its_evaluations, is_documented,
    )
}  # fmt: skip
REFUSED = "refuses the network"
Exceptions = Mapping[tuple[str, str, str], str]


def small(method: Method | type[Method] | str) -> Method:
    """The method with settings that make it cheap: few steps, samples and windows."""
    method = method() if isinstance(method, type) else method_of(method)
    return _with(method, SMALL, below=True)


def check_method(method: Method | type[Method] | str, networks: Iterable[str] | None = None) -> None:
    """Checks all laws for one method, on the named networks of the zoo or on all that can be built here.

    A method may refuse a network with UnsupportedError. Raises AssertionError naming the law, the method and the network.
    """
    known = zoo()
    for name in known if networks is None else networks:
        if not unavailable(known[name]):
            check_on(small(method), known[name])


def check_on(method: Method, hostile: Hostile, exceptions: Exceptions = EXCEPTIONS) -> str:
    """Checks all laws for one method, with its settings as they are, on one network; what it said if it refused that."""
    trial = Trial(method, hostile)
    where = f"{method.name} on {hostile.name!r}"
    listed = {law: reason for (m, n, law), reason in exceptions.items() if m == method.name and n in (hostile.name, "*")}
    if refusal := _refusal(trial, where):
        return refusal
    assert REFUSED not in listed, f"{where}: listed as refused ({listed[REFUSED]}), and runs; strike it from the exceptions"
    for law, check in LAWS.items():
        try:
            check(trial)
        except Exception as error:
            if law not in listed:
                name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                raise AssertionError(f"{where} breaks the law {law!r}: {name}{error}") from error
        else:
            assert law not in listed, f"{where}: {law!r} holds, and is listed as an exception ({listed[law]}); strike it"
    return ""


def _refusal(trial: Trial, where: str) -> str:
    refusal = ""
    try:
        with trial.unchanged("after refusing"):
            trial.reference  # noqa: B018
    except UnsupportedError as error:
        refusal = str(error)
        if len(refusal) < 20 or "\n" in refusal:
            raise AssertionError(f"{where} {REFUSED} without saying in one line what it lacks: {refusal}") from error
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return refusal
