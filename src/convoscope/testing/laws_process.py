"""The laws about the process: its defaults, other processes, many calls, arrays that may not be written to."""

import gc
import sys
import threading
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convoscope.method import explain
from convoscope.targets import Logit
from convoscope.testing.laws_trial import SEED, Trial, never_quickly, only_on, same
from convoscope.testing.workers import SHARED, Reply, answers

MANY, SOME, ROUNDS = 1000, 48, 4  # calls: on the network named here, and on others; in so many rounds
MANY_ON = ("in-place-relu",)
PER_CALL = 1024  # bytes of resident memory


@never_quickly
def works_with_other_defaults(trial: Trial) -> None:
    """Another default type, another default device: what a tensor is made of is that of the network, not of the process."""
    network, x, expected = trial.single
    cases: dict[str, tuple[Callable[..., None], Any, Any]] = {
        f"default type {dtype}": (torch.set_default_dtype, dtype, torch.get_default_dtype())
        for dtype in (torch.float64, torch.float16, torch.bfloat16)
    }
    cases["default device meta"] = torch.set_default_device, "meta", None
    for name, (change, there, back) in cases.items():
        change(there)
        try:
            with trial.unchanged(name):
                found = explain(network, x, trial.method, Logit(1), seed=SEED)
            heat = found.heatmap()
        finally:
            change(back)
        assert found.values.dtype == expected.dtype, f"{name}: {found.values.dtype}, not {expected.dtype}"
        same(found.values, expected, name)
        assert heat.device == expected.device, f"{name}: a map on {heat.device}"


@never_quickly
def works_in_deterministic_mode(trial: Trial) -> None:
    """Where PyTorch allows deterministic algorithms alone, the same map."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with trial.unchanged("deterministic algorithms"):
            same(trial.values(), trial.reference, "deterministic algorithms")
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@only_on("skip-in-place")
def gives_the_same_numbers_with_two_threads(trial: Trial) -> None:
    """Operators that share their work among threads: the same map, and as many threads afterwards."""
    before, expected = torch.get_num_threads(), trial.reference
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        with trial.unchanged("another number of threads"):
            same(trial.values(), expected, f"{torch.get_num_threads()} threads instead of {before}")
    finally:
        torch.set_num_threads(before)


@never_quickly
def only_reads_arrays(trial: Trial) -> None:
    """Arrays that may not be written to, as pictures and as the memory of tensors: the same map, the same bytes."""
    locked = trial.x.contiguous().numpy().copy()
    locked.flags.writeable = False
    with warnings.catch_warnings(action="ignore"):  # PyTorch's, that such a tensor must not be written to
        same(trial.values(x=torch.from_numpy(locked)), trial.reference, "an array that may not be written to")
    assert np.array_equal(locked, trial.x.numpy()), "an array that may not be written to has changed"
    if trial.hostile.channels not in (1, 3):
        return
    height, width = trial.x.shape[2:]
    picture = np.random.default_rng(0).integers(0, 256, (height, width, trial.hostile.channels), dtype=np.uint8)
    kept = picture.copy()
    picture.flags.writeable = False
    turned, plainly = picture[::-1, ::-1], kept[::-1, ::-1].copy()
    with trial.unchanged("after arrays"):
        same(trial.values(x=turned), trial.values(x=plainly), "an array with negative strides")  # type: ignore[arg-type]
        trial.values(x=picture)  # type: ignore[arg-type]
    assert np.array_equal(picture, kept), "the array of a picture has changed"


# ---------------------------------------------------------------- many calls
@never_quickly
def leaves_nothing_after_many_calls(trial: Trial) -> None:
    """Calls leave no object, block of memory, hook or thread behind; a thousand, on one network, no resident memory either.

    What Python keeps for later goes up and down: a leak grows in each round of calls.
    """
    many = trial.hostile.name in MANY_ON
    calls = (MANY if many else SOME) // ROUNDS
    for _ in range(calls // 4):
        trial.values()
    gc.collect()
    gc.freeze()
    try:
        held = [_held(trial.network.plain)]
        for _ in range(ROUNDS):
            for _ in range(calls):
                trial.values()
            gc.collect()
            held.append(_held(trial.network.plain))
    finally:
        gc.unfreeze()
    limits = {"objects": 0.8, "blocks of memory": PER_CALL / 128, "hooks": 1 / calls, "threads": 1 / calls}
    limits |= {"bytes of resident memory": PER_CALL, "blocks of memory": 0.8} if many else {}
    for what, limit in limits.items():
        least = min(b[what] - a[what] for a, b in pairwise(held))
        assert least < limit * calls, f"every {calls} calls leave at least {least:,} {what} behind"


def _held(module: torch.nn.Module) -> dict[str, int]:
    statm = Path("/proc/self/statm")
    return {
        "objects": len(gc.get_objects()),
        "blocks of memory": sys.getallocatedblocks(),
        "hooks": sum(len(v) for m in module.modules() for k, v in vars(m).items() if k.endswith("_hooks") and v),
        "threads": threading.active_count(),
        "bytes of resident memory": int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0,
    }


# ---------------------------------------------------------------- other processes
@never_quickly
def gives_the_same_numbers_in_another_process(trial: Trial) -> None:
    """Another process, with another hash seed: the same map to the last bit."""
    (reply,) = answers("alone", trial.method, trial.hostile)
    _compare(trial, reply, "in another process", exact=True)


@never_quickly
def follows_networks_that_processes_share(trial: Trial) -> None:
    """Data parallel and fully sharded over two processes: the map of the whole network in both, or an error that says why."""
    for form in SHARED:
        for rank, reply in enumerate(answers(form, trial.method, trial.hostile)):
            _compare(trial, reply, f"{form} over two processes, in process {rank}")


def _compare(trial: Trial, reply: Reply, where: str, exact: bool = False) -> None:
    if reply.how == "not made":
        trial.cases["not made"] += 1
        return
    assert reply.how != "crashed", f"{where}: {reply.what}"
    if reply.how == "refused":
        assert len(reply.what) >= 20, f"{where}: refused without a reason: {reply.what}"
        assert not exact, f"{where}: refused, though not in this one: {reply.what}"
        trial.cases["refused"] += 1
        return
    assert reply.values is not None
    if exact:
        assert torch.equal(reply.values, trial.reference), f"{where}: other numbers"
    same(reply.values, trial.reference, where)
    trial.cases["right"] += 1


PROCESS = (
    works_with_other_defaults, works_in_deterministic_mode, gives_the_same_numbers_with_two_threads, only_reads_arrays,
    leaves_nothing_after_many_calls, gives_the_same_numbers_in_another_process, follows_networks_that_processes_share,
)  # fmt: skip
