"""The laws about what comes in: bad calls, and values, types, layouts and sizes that break methods."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from convoscope.core.errors import ConvoscopeError, NonFiniteError
from convoscope.core.spec import Spec, fields_of
from convoscope.method import explain
from convoscope.targets import Logit
from convoscope.testing.laws_calls import bad_calls
from convoscope.testing.laws_trial import SEED, Trial, only_on, same
from convoscope.testing.untouched import Watch

PLAIN = 1e-4  # what single precision may differ from double, relative to the largest value
SIZES = ((1, 1), (1, 7), (7, 1), (5, 9))


class Tagged(Tensor):
    """A tensor of another type, as those of data sets and of other libraries are."""


@only_on("skip")
def refuses_bad_calls_with_the_reason(trial: Trial) -> None:
    """An error of ours in one line, before the work begins, and nothing left behind."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    trial.reference  # noqa: B018  traces the network
    handle = trial.network.plain.register_forward_pre_hook(count)
    try:
        watch = Watch(trial.network.module, trial.x)
        for what, call in bad_calls(trial.network, trial.x, trial.method).items():
            passes, message = 0, ""
            try:
                explain(**call)
            except ConvoscopeError as error:
                message = str(error)
            except Exception as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            assert message, f"{what} was accepted"
            assert len(message) >= 20, f"{what} was refused without a reason: {message}"
            assert "\n" not in message, f"{what} was refused in several lines: {message}"
            assert passes <= 2, f"{what} was refused after {passes} passes"
        watch.check("after bad calls")
    finally:
        handle.remove()


@only_on("skip", "in-place-relu")
def names_what_is_not_finite(trial: Trial) -> None:
    """NaN and infinity in weights, and in tensors on their way, are never explained without a word."""
    for value in (float("nan"), float("inf")):
        network = trial.hostile.network()
        name, weight = list(network.plain.named_parameters())[-1]
        with torch.no_grad():
            weight.view(-1)[1] = value
        _not_finite(trial, network, f"weight {name!r} holds {value}")
        network = trial.hostile.network()
        layer = [m for m in network.plain.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        handle = layer.register_forward_hook(lambda m, a, output, value=value: _spoiled(output, value))
        try:
            _not_finite(trial, network, f"the network gives {value} at ")
        finally:
            handle.remove()


def _spoiled(output: Tensor, value: float) -> Tensor:
    spot = torch.zeros_like(output)
    spot[-1, 0, 0, 1] = value
    return output + spot


def _not_finite(trial: Trial, network: Any, expected: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # NumPy's, about the values themselves
            explain(network, trial.x, trial.method, Logit(1), seed=SEED)
    except NonFiniteError as error:
        assert str(error).startswith(expected), f"expected {expected!r}; got {error}"
    else:
        raise AssertionError(f"explained all the same: {expected}")


@only_on("skip")
def takes_any_size(trial: Trial) -> None:
    """One row, one column, one pixel, odd sides: a map of every image at its size, or an error of ours."""
    for height, width in SIZES:
        slope = torch.linspace(1, 2, height * width, dtype=torch.float64).view(height, width)
        x = trial.hostile.images(2)[:, :, :1, :1] * slope
        with trial.unchanged(f"at {height} x {width}"):
            try:
                found = trial.explain(x=x)
            except ConvoscopeError as error:
                assert len(str(error)) >= 20, f"refused {height} x {width} without a reason: {error}"
                continue
            assert found.values.numel(), f"an empty map at {height} x {width}"
            assert found.heatmap().shape == (2, height, width), f"{tuple(found.heatmap().shape)} at {height} x {width}"


@only_on("skip")
def takes_any_float(trial: Trial) -> None:
    """Half precision runs or is refused; single precision gives what double does; inputs follow the network's type."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        network, x = trial.hostile.network(dtype), trial.hostile.images(dtype=dtype)
        try:
            values = explain(network, x, trial.method, Logit(1), seed=SEED).values
        except ConvoscopeError as error:
            assert dtype != torch.float32, f"refused {dtype}: {error}"
            continue
        assert values.dtype == dtype, f"{values.dtype} for a network of {dtype}"
        if dtype == torch.float32:
            _close(values.double(), trial.reference, "in single precision")
            continue
        wide = explain(network, x.double(), trial.method, Logit(1), seed=SEED).values
        assert torch.equal(wide, values), f"inputs of another type than {dtype} give another map"


def _close(found: Tensor, expected: Tensor, what: str) -> None:
    error, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= PLAIN * scale, f"{what}: differs by {error / scale:.2g} of the largest value"


@only_on("skip", "in-place-relu")
def takes_any_layout(trial: Trial) -> None:
    """Transposed storage, expanded rows, negated views, tensors of other types, on a graph: their values alone count."""
    turned = trial.x.transpose(2, 3).contiguous().transpose(2, 3).as_subclass(Tagged)  # type: ignore[arg-type]
    one = torch._neg_view(-trial.x[:1]).expand_as(trial.x)
    leaf = trial.x.clone().requires_grad_()
    cases = {
        "transposed, of another type": (turned, trial.reference),
        "expanded, a negated view": (one, None),
        "on a graph, channels last": ((leaf * 1).contiguous(memory_format=torch.channels_last), trial.reference),
    }
    for what, (x, expected) in cases.items():
        kept = x.detach().clone()
        values = trial.values(x=x)
        assert type(values) is Tensor, f"{what}: values are a {type(values).__name__}"
        same(values, trial.values(x=kept.contiguous()) if expected is None else expected, what)
        assert torch.equal(x.detach(), kept), f"{what}: the input changed"
    assert leaf.grad is None, "the input got a gradient"


@only_on("skip", "no-pooling", "squeeze-excite")
def keeps_images_apart(trial: Trial) -> None:
    """The map of an image does not depend on those beside it."""
    others = trial.x.clone()
    others[1:] = 50 * others[1:].flip(0, 3) - 7
    same(trial.values(x=others)[:1], trial.reference[:1], "other images beside it")
    same(trial.values(x=trial.x[:1]), trial.reference[:1], "alone")


@only_on("skip", "in-place-relu", "linear")
def survives_extreme_values(trial: Trial) -> None:
    """Zeros, a constant, negative values, ties, denormal numbers and huge ones: every map is finite."""
    x = trial.hostile.images(6)
    x[0], x[1], x[2] = 0.0, 1.0, -x[2].abs()
    x[3], x[4], x[5] = x[3].sign(), x[4] * 1e-310, x[5] * 1e30
    values = trial.explain(x=x, method=trial.with_settings({"baseline": 0.0})).values
    assert values.isfinite().all(), "values are not finite"


@only_on("skip")
def leaves_tensors_in_its_settings_alone(trial: Trial) -> None:
    given = trial.hostile.images(1, seed=5)
    method = trial.with_settings({"baseline": given, "fill": given})
    known = [(t, t.clone(), t._version) for t in _tensors(method)]
    if known:
        trial.values(method=method)
    for tensor, kept, version in known:
        assert torch.equal(kept, tensor), "a tensor among its settings changed"
        assert version == tensor._version, "a tensor among its settings was written to"


def _tensors(spec: Spec) -> Iterator[Tensor]:
    for info in fields_of(type(spec)):
        value = getattr(spec, info.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Spec):
            yield from _tensors(value)


INPUTS = (
    refuses_bad_calls_with_the_reason, names_what_is_not_finite, takes_any_size, takes_any_float, takes_any_layout,
    keeps_images_apart, survives_extreme_values, leaves_tensors_in_its_settings_alone,
)  # fmt: skip
