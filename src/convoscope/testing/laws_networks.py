"""The laws about networks: other forms of one, memory that does not suffice, and that nothing of it stays behind."""

import contextlib
import functools
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError
from convoscope.method import explain
from convoscope.targets import Logit
from convoscope.testing.laws_trial import SEED, Trial, only_on, same
from convoscope.testing.zoo import Hostile

CALLS = 4


def gives_what_its_plain_twin_gives(trial: Trial) -> None:
    """A network rewritten without its habit, with the same weights, gets the same map."""
    if trial.hostile.twin is not None:
        network = trial.hostile.around(trial.hostile.plain_module())
        x = trial.x.contiguous()
        plain = explain(network, x, trial.method, Logit(1), seed=SEED).values
        same(trial.reference, plain, "the same network, written plainly")


# ---------------------------------------------------------------- other forms of a network
def _parametrized(module: nn.Module, x: Tensor) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(_weighted(module)) and module


def _pruned(module: nn.Module, x: Tensor) -> nn.Module:
    from torch.nn.utils import prune

    return prune.identity(_weighted(module), "weight") and module


def _weighted(module: nn.Module) -> nn.Module:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def _exported(module: nn.Module, x: Tensor) -> nn.Module:
    return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},)).module()


FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "scripted": lambda module, x: torch.jit.script(module),
    "traced": lambda module, x: torch.jit.trace(module, x),
    "frozen": lambda module, x: torch.jit.freeze(torch.jit.script(module)),
    "exported": _exported,
    "an FX graph": lambda module, x: torch.fx.symbolic_trace(module),
    "data parallel": lambda module, x: nn.DataParallel(module),
    "with weight norm": _parametrized,
    "pruned": _pruned,
    "quantized": lambda module, x: torch.ao.quantization.quantize_dynamic(module.float(), {nn.Linear}),
}


def formed(form: str, hostile: Hostile) -> nn.Module | str:
    """A network in another form, or why it cannot be made here; those of the zoo, which are small, are kept."""
    return _form(form, hostile) if hostile.own else _kept_form(form, hostile)


def _form(form: str, hostile: Hostile) -> nn.Module | str:
    module, x = hostile.module().eval(), hostile.images()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FORMS[form](module, x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


_kept_form = functools.cache(_form)


@only_on("in-place-relu")
def takes_other_forms_or_refuses(trial: Trial) -> None:
    """TorchScript, exported, parallel, pruned, quantized: the map of the network itself, or an error that says why not."""
    for form in FORMS:
        module = formed(form, trial.hostile)
        if isinstance(module, str):
            trial.cases["not made"] += 1
            continue
        network, expected, close = trial.hostile.around(module), trial.reference, 1e-6
        try:
            with trial.unchanged(form), warnings.catch_warnings(action="ignore"):  # PyTorch's, of gradients it lacks
                values = explain(network, trial.x, trial.method, Logit(1), seed=SEED).values.double()
        except ConvoscopeError as error:
            assert len(str(error)) >= 20, f"{form}: refused without a reason: {error}"
            trial.cases["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"{form}: {type(error).__name__}: {error}") from error
        if form == "quantized":
            close = 0.25  # weights of 8 bits, and activations rounded by the range of their batch
        assert values.shape == expected.shape, f"{form}: shape {tuple(values.shape)}, not {tuple(expected.shape)}"
        error, scale = (values - expected).abs().max().item(), expected.abs().max().item()
        assert error <= close * scale, f"{form}: differs by {error / scale:.2g} of the largest value, without a word"
        trial.cases["right"] += 1


# ---------------------------------------------------------------- memory
@only_on("skip")
def halves_batches_where_memory_ends(trial: Trial) -> None:
    """With memory for half as many rows as it takes at once, the same maps."""
    x, taken, limit = trial.hostile.images(9), 0, 1 << 30

    def guard(module: nn.Module, args: Any) -> None:
        nonlocal taken
        if len(args[0]) > limit:
            raise (torch.OutOfMemoryError if taken % 2 else RuntimeError)("DefaultCPUAllocator: not enough memory")
        taken = max(taken, len(args[0]))

    handle = trial.network.plain.register_forward_pre_hook(guard)
    try:
        expected = trial.values(x=x)
        limit, taken = taken // 2, 0
        with trial.unchanged("after memory did not suffice"):
            same(trial.values(x=x), expected, f"memory for {limit} rows")
    finally:
        handle.remove()


@only_on("skip")
def leaves_nothing_in_memory(trial: Trial) -> None:
    """Calls leave nothing behind, and the network is gone with its last name."""
    trial.reference  # noqa: B018
    gc.freeze()  # what is there already is not looked at
    try:
        before = _objects(trial, 2)
        left = _objects(trial, CALLS) - before
        assert left < CALLS, f"{CALLS} calls leave {left} objects behind"
        network = trial.hostile.network()
        known = weakref.ref(network.module)
        explain(network, trial.x, trial.method, Logit(1), seed=SEED)
        with contextlib.suppress(ConvoscopeError):
            explain(network, trial.x, trial.method, Logit(trial.hostile.classes), seed=SEED)
        del network
        if known() is not None:
            gc.collect()
        assert known() is None, "the network is still held after all that used it is gone"
    finally:
        gc.unfreeze()


def _objects(trial: Trial, calls: int) -> int:
    for _ in range(calls):
        trial.values()
    gc.collect()
    return len(gc.get_objects())


NETWORKS = (
    gives_what_its_plain_twin_gives, takes_other_forms_or_refuses, halves_batches_where_memory_ends, leaves_nothing_in_memory,
)  # fmt: skip
