"""Faults that are looked for once, not with every method: other processes, many calls, many threads, sharded networks."""

import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.testing import LAWS, small, zoo
from convoscope.testing.laws_trial import Trial


def test_another_process_with_another_hash_seed_gives_the_same_numbers() -> None:
    """Every method, to the bit."""
    for name in cs.methods():
        LAWS["gives the same numbers in another process"](Trial(small(name), zoo()["skip-in-place"]))


@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_many_calls_from_eight_threads(method: str) -> None:
    hostile = zoo()["shared-relu"]
    network, x = hostile.network(), hostile.images()
    expected = [cs.explain(network, x, method, k).values for k in range(3)]
    wrong: list[Any] = []

    def work(i: int) -> None:
        try:
            for call in range(12):
                k = (i + call) % 3
                if not torch.equal(cs.explain(network, x, method, k).values, expected[k]):
                    wrong.append((i, call))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.module.modules())


def test_a_thousand_calls_leave_nothing_behind() -> None:
    LAWS["leaves nothing after many calls"](Trial(small("gradient"), zoo()["in-place-relu"]))


def test_arrays_are_only_read() -> None:
    hostile = zoo()["skip"]
    network = hostile.network()
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    kept = picture.copy()
    picture.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("gradient", "occlusion:window=3", "lime:samples=5"):
            forward, backward = (cs.explain(network, p, method, 1).values for p in (picture, picture[::-1, ::-1]))
            assert forward.shape == backward.shape
    assert np.array_equal(picture, kept)
    reversed_ = cs.explain(network, np.ascontiguousarray(picture[::-1]), "gradient", 1).values
    assert torch.equal(cs.explain(network, picture[::-1], "gradient", 1).values, reversed_)


def test_values_that_are_not_finite_go_through_where_that_is_asked_for() -> None:
    hostile = zoo()["skip"]
    network, x = hostile.network(), hostile.images()
    spoiled = x.clone()
    spoiled[1, 0, 2, 3] = torch.nan
    for method in ("input-x-gradient", "integrated-gradients", "lrp", "occlusion:window=4"):
        found = cs.explain(network, spoiled, method, 1, nonfinite="propagate").values
        clean = cs.explain(network, x, method, 1).values
        assert torch.allclose(found[[0, 2]], clean[[0, 2]], rtol=1e-9), method
        assert not found[1].isfinite().all(), method


def test_a_weight_that_is_not_finite_is_found_after_a_change_too() -> None:
    network, x = zoo()["skip"].network(), zoo()["skip"].images()
    cs.explain(network, x, "gradient", 1)
    name, weight = next(iter(network.plain.named_parameters()))
    with torch.no_grad():
        kept = weight.clone()
        weight[0, 1, 2, 0] = torch.inf
    with pytest.raises(cs.NonFiniteError, match=rf"weight '{name}' holds inf at \(0, 1, 2, 0\)"):
        cs.explain(network, x, "gradient", 1)
    with torch.no_grad():
        weight.copy_(kept)
    cs.explain(network, x, "gradient", 1)
    masked = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    masked.register_buffer("mask", torch.full((3,), -torch.inf))
    assert cs.explain(masked, torch.rand(1, 3, 2, 2), "gradient", 1).values.isfinite().all()


def test_a_size_that_the_network_cannot_take_is_said() -> None:
    hostile = zoo()["no-pooling"]
    with pytest.raises(cs.UsageError, match="the network fails on inputs of 3 x 9 x 11; it takes 8 x 8: mat1 and mat2"):
        cs.explain(hostile.network(), torch.rand(2, 3, 9, 11, dtype=torch.float64), "gradient", 1)
