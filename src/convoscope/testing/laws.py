"""The laws that every attribution method keeps on every network, and `check_method` for all of them.

Those about faults of inputs, of networks, of threads and after exceptions are in files of their own.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError
from convoscope.core.spec import Spec, fields_of
from convoscope.method import Method, explain
from convoscope.targets import Logit
from convoscope.testing.exceptions import EXCEPTIONS
from convoscope.testing.laws_inputs import INPUTS
from convoscope.testing.laws_interrupted import (
    leaves_the_network_untouched_when_a_callback_raises,
    leaves_the_network_untouched_when_interrupted,
)
from convoscope.testing.laws_networks import NETWORKS
from convoscope.testing.laws_threads import works_in_eight_threads, works_in_two_threads
from convoscope.testing.laws_trial import FINE, SEED, Trial, same, small
from convoscope.testing.untouched import Watch
from convoscope.testing.zoo import Hostile, unavailable, zoo


# ---------------------------------------------------------------- the laws
def keeps_shape_dtype_device(trial: Trial) -> None:
    single = trial.hostile.network(torch.float32), trial.hostile.images(dtype=torch.float32)
    for values, x in ((trial.reference, trial.x), (explain(*single, trial.method, Logit(1), seed=SEED).values, single[1])):
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
    same(trial.values(method=trial.with_settings({"baseline": 0.0})), weights * trial.x, "w * x on a linear network")


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
            same(trial.values(x=made), trial.reference, name)


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
                same(trial.values(), trial.reference, name)
    finally:
        for m, flag in zip(modules, before[0], strict=True):
            m.training = flag
        for p, flag in zip(parameters, before[1], strict=True):
            p.requires_grad_(flag)


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


LAWS: dict[str, Callable[[Trial], None]] = {
    f.__name__.replace("_", " "): f
    for f in (
        keeps_shape_dtype_device, repeats_with_a_seed, takes_any_batch_size, leaves_the_network_untouched,
        leaves_the_network_untouched_when_interrupted, leaves_the_network_untouched_when_a_callback_raises, is_complete,
        is_exact_on_linear_networks, tells_targets_apart, survives_json, works_in_every_mode, works_with_any_flags,
        works_in_two_threads, works_in_eight_threads, counts_its_evaluations, is_documented, *INPUTS, *NETWORKS,
    )
}  # fmt: skip
REFUSED = "refuses the network"
Exceptions = Mapping[tuple[str, str, str], str]


def check_method(method: Method | type[Method] | str, networks: Iterable[str] | None = None) -> None:
    """Checks all laws for one method, on the named networks of the zoo or on all that can be built here.

    A method may refuse a network with UnsupportedError. Prints how many networks it was checked on and which it refused;
    raises AssertionError naming the laws it breaks, on which network and how: the first law of each network.
    """
    known, checked = zoo(), small(method)
    broken: list[AssertionError] = []
    refused: dict[str, str] = {}
    names = [n for n in (known if networks is None else networks) if not unavailable(known[n])]
    for name in names:
        try:
            if reason := check_on(checked, known[name]):
                refused[name] = reason
        except AssertionError as error:
            broken.append(error)
    if broken:
        counted = f"\n({len(broken)} of {len(names)} networks)" if len(names) > 1 else ""
        raise AssertionError("\n".join(map(str, broken)) + counted) from broken[0]
    kept = len(names) - len(refused)
    said = [f"{checked.name} keeps all laws on {kept} network{'s' * (kept != 1)}"]
    print("; ".join(said + [f"refuses {n}: {r}" for n, r in refused.items()]))


def check_on(method: Method, hostile: Hostile, exceptions: Exceptions = EXCEPTIONS) -> str:
    """Checks all laws for one method, with its settings as they are, on one network; what it said if it refused that."""
    trial = Trial(method, hostile)
    where = f"{method.name} on {hostile.name!r}"
    listed = {law: reason for (m, n, law), reason in exceptions.items() if m == method.name and n in (hostile.name, "*")}
    if refusal := _refusal(trial, where):
        return refusal
    assert REFUSED not in listed, f"{where}: listed as refused ({listed[REFUSED]}), and runs; strike it from the exceptions"
    for law, check in LAWS.items():
        if hostile.name not in getattr(check, "networks", (hostile.name,)):
            continue
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
    refusal, watch = "", Watch(trial.network.module, trial.x)
    try:
        trial.reference  # noqa: B018
    except UnsupportedError as error:
        watch.check(f"{where}, after refusing")
        refusal = str(error)
        if len(refusal) < 20 or "\n" in refusal:
            raise AssertionError(f"{where} {REFUSED} without saying in one line what it lacks: {refusal}") from error
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return refusal
