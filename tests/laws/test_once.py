"""Faults that are looked for once, not with every method: other processes, many calls, many threads, sharded networks."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.testing import small, zoo

HASHES = """
import hashlib, json, sys, torch
torch.set_num_threads(int(sys.argv[1]))
import convoscope as cs
from convoscope.testing import small, zoo
hostile = zoo()["skip-in-place"]
network, x, found = hostile.network(), hostile.images(), {}
for name in cs.methods():
    values = cs.explain(network, x, small(name), 1, seed=3).values
    found[name] = [hashlib.sha256(values.numpy().tobytes()).hexdigest(), float(values.double().square().sum())]
print(json.dumps(found))
"""


def test_other_processes_hash_seeds_and_threads_give_the_same_numbers() -> None:
    """Every method, to the bit: the one process has one thread and a hash seed of 1, this one its own."""
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", HASHES, "2"], capture_output=True, text=True, env=environment, check=True)
    hostile = zoo()["skip-in-place"]
    network, x = hostile.network(), hostile.images()
    for name, (digest, norm) in json.loads(done.stdout).items():
        values = cs.explain(network, x, small(name), 1, seed=3).values
        assert float(values.square().sum()) == pytest.approx(norm, rel=1e-9), name
        assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == digest, name


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory a process holds")
def test_a_thousand_calls_leave_nothing_behind() -> None:
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    hostile = zoo()["in-place-relu"]
    network, x = hostile.network(), hostile.images()
    for _ in range(200):
        cs.explain(network, x, "gradient", 1)
    before = held()
    for _ in range(1000):
        cs.explain(network, x, "gradient", 1)
    assert (held() - before) / 1000 < 1024


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


def test_a_network_sharded_over_processes_gets_the_map_of_the_whole_or_is_refused(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    from torch.distributed.fsdp import fully_shard

    hostile = zoo()["in-place-relu"]
    x = hostile.images(dtype=torch.float32)
    plain, methods = hostile.network(torch.float32), ("gradient", "grad-cam", "occlusion:window=4")
    expected = {m: cs.explain(plain, x, m, 1).values for m in methods}
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = fully_shard(hostile.module(torch.float32).eval(), mesh=mesh)
        for method, values in expected.items():
            found = cs.explain(cs.Network(module, 8), x, method, 1).values
            assert torch.allclose(found, values, rtol=1e-4, atol=1e-6), method
        with pytest.raises(cs.UnsupportedError, match="rules would miss it"):  # the wrapper is a function of its own
            cs.explain(cs.Network(module, 8), x, "lrp", 1)
    finally:
        distributed.destroy_process_group()
