"""The laws that every attribution method keeps on every network.

Those about faults of inputs, of networks, of threads, of processes and after exceptions are in files of their own.
"""

import dataclasses
import json
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.spec import Spec, fields_of
from convoscope.method import explain
from convoscope.targets import Logit
from convoscope.testing.laws_inputs import INPUTS
from convoscope.testing.laws_interrupted import INTERRUPTED
from convoscope.testing.laws_networks import NETWORKS
from convoscope.testing.laws_process import PROCESS
from convoscope.testing.laws_threads import works_in_eight_threads, works_in_two_threads
from convoscope.testing.laws_trial import FINE, SEED, Law, Trial, same
from convoscope.testing.untouched import unchanged


# ---------------------------------------------------------------- the laws
def keeps_shape_dtype_device(trial: Trial) -> None:
    for values, x in ((trial.reference, trial.x), (trial.single[2], trial.single[1])):
        assert values.dim() == 4, f"values of shape {tuple(values.shape)}; expected (images, channels, rows, columns)"
        assert len(values) == len(x), f"{len(values)} maps for {len(x)} images"
        assert values.shape[1] in (1, x.shape[1]), f"{values.shape[1]} channels; the input has {x.shape[1]}"
        assert values.dtype == x.dtype, f"{values.dtype} for inputs of {x.dtype}"
        assert values.device == x.device, f"on {values.device} for inputs on {x.device}"
        assert not values.requires_grad, "values still hang on the graph"
        assert values.isfinite().all(), "values are not finite"


def repeats_with_a_seed(trial: Trial) -> None:
    assert torch.equal(trial.values(), trial.reference), "the same seed gave other values"
    if trial.method.stochastic:
        assert not torch.equal(trial.values(seed=SEED + 1), trial.reference), "another seed gave the same values"


def takes_any_batch_size(trial: Trial) -> None:
    for size in (1, 2):
        same(trial.values(batch_size=size), trial.reference, f"batch_size={size}")


def leaves_the_network_untouched(trial: Trial) -> None:
    """A fresh one, of which no earlier call has left anything."""
    network = trial.hostile.network()
    for p in network.module.parameters():
        p.grad = torch.full_like(p, 0.5)
    with unchanged(network.module, trial.x, "after an explanation"):
        explain(network, trial.x, trial.method, Logit(1), seed=SEED)


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
    same(trial.values(method=trial.with_settings({"baseline": 0.0})), weights * trial.x, "w * x on a linear network")


def tells_targets_apart(trial: Trial) -> None:
    maps = [trial.reference, *(trial.values(target=Logit(k)) for k in range(trial.hostile.classes) if k != 1)]
    assert any(not torch.equal(maps[0], m) for m in maps[1:]), "all classes get the same map"


def survives_json(trial: Trial) -> None:
    again = Spec.from_dict(json.loads(json.dumps(trial.method.to_dict())))
    assert again == trial.method, f"{trial.method} came back as {again}"
    assert type(again) is type(trial.method)


def works_in_every_mode(trial: Trial) -> None:
    """Under no_grad, inference mode (with inputs made there), and autocast, which leaves double precision alone."""
    network, single, expected = trial.single
    with torch.autocast("cpu", torch.bfloat16), unchanged(network.module, single, "autocast"):
        values = explain(network, single, trial.method, Logit(1), seed=SEED).values
    assert values.dtype == expected.dtype, f"{values.dtype} inside autocast, {expected.dtype} outside"
    same(values, expected, "autocast")
    modes: dict[str, AbstractContextManager[Any]] = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode()}
    for name, mode in modes.items():
        with mode, trial.unchanged(name):
            made = trial.x.clone()
            assert made.is_inference() == (name == "inference_mode")
            same(trial.values(x=made), trial.reference, name)


def works_in_train_mode(trial: Trial) -> None:
    """All of the network, and every other module: the map of evaluation mode, and no statistics are updated."""
    modules = list(trial.network.module.modules())
    _flagged(trial, modules, "training", {"train mode": (True,), "part of it in train mode": (True, False)})


def works_with_frozen_parameters(trial: Trial) -> None:
    cases = {"frozen": (False,)} | ({"partly frozen": (True, False), "trainable": (True,)} if trial.thorough else {})
    _flagged(trial, list(trial.network.module.parameters()), "requires_grad", cases)


def _flagged(trial: Trial, things: list[Any], attribute: str, cases: dict[str, tuple[bool, ...]]) -> None:
    before = [getattr(t, attribute) for t in things]
    try:
        for name, flags in cases.items():
            for i, thing in enumerate(things):
                setattr(thing, attribute, flags[i % len(flags)])
            with trial.unchanged(name):
                same(trial.values(), trial.reference, name)
    finally:
        for thing, flag in zip(things, before, strict=True):
            setattr(thing, attribute, flag)


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


LAWS: dict[str, Law] = {
    f.__name__.replace("_", " "): f
    for f in (
        keeps_shape_dtype_device, repeats_with_a_seed, takes_any_batch_size, leaves_the_network_untouched, *INTERRUPTED,
        is_complete, is_exact_on_linear_networks, tells_targets_apart, survives_json, works_in_every_mode, works_in_train_mode,
        works_with_frozen_parameters, works_in_two_threads, works_in_eight_threads, counts_its_evaluations, is_documented,
        *INPUTS, *NETWORKS, *PROCESS,
    )
}  # fmt: skip
