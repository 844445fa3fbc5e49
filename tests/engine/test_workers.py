"""Sweeps in other processes, of this machine and of a Ray cluster: the same bits, whatever happens to a worker."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sweeping import LAYERS, Deadly, Drawn, Refuses, Top, all_of, network, same

import convoscope as cs
from convoscope.engine.local import Processes, Worker, sendable
from convoscope.engine.shards import Work
from convoscope.units.book_scan import scan

SETTINGS: dict[str, Any] = {"shard_size": 4, "batch_size": 3}


def reference() -> Any:
    return cs.sweep(network(), Drawn(30, broken=(5,)), all_of(), LAYERS, **SETTINGS)


def test_processes_find_the_same_bits_and_keep_a_store(tmp_path: Path) -> None:
    told: list[int] = []
    data = Drawn(30, broken=(5,), log=tmp_path / "log")
    settings = {**SETTINGS, "workers": 2, "store": tmp_path / "store"}
    found = cs.sweep(network(), data, all_of(), LAYERS, progress=lambda d, _: told.append(d), **settings)
    assert same(found, reference())
    assert told == sorted(told)
    assert told[-1] == 30
    spilled = [torch.cat([s.where for s in x.shards("head", "loud")]) for x in (found, reference())]
    assert set(spilled[1].tolist()) <= set(spilled[0].tolist())  # hints come later here, which saves less
    before = data.log.read_text()
    assert same(cs.sweep(network(), data, all_of(), LAYERS, **settings), found)
    assert data.log.read_text() == before + "0\n"


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    net = cs.Network(network().module, 12, transform=lambda picture: torch.zeros(3, 12, 12))
    with pytest.raises(cs.UsageError, match="the network cannot be sent to other processes"):
        cs.sweep(net, Drawn(3), Top(), "head", workers=2)

    class Local(Drawn):
        pass

    with pytest.raises(cs.UsageError, match="the data set cannot be sent"):
        cs.sweep(network(), Local(3), Top(), "head", workers=2)


def test_work_that_was_sent_leaves_the_network_as_it_was() -> None:
    net = network()
    net.trace(net.read(Drawn().picture(0)))
    traces = dict(net._traces)
    worker = Worker(sendable(Work(net, Drawn(), {"top": Top()}, 50)))
    assert net._traces == traces
    assert worker.work.network.hash == net.hash
    assert Processes(Work(net, Drawn(), {}, 50), 2).pool is None


def test_without_ray_there_is_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(cs.UsageError, match=r"needs Ray; install it with: pip install 'convoscope\[ray\]'"):
        cs.sweep(network(), Drawn(3), Top(), "head", engine="ray")


def test_importing_the_engine_imports_no_ray() -> None:
    import subprocess

    code = "import sys, convoscope.engine.ray, convoscope; convoscope.sweep; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- Ray
@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of its own, which neither runs out of time to start on a busy machine nor kills workers for want of memory."""
    ray = pytest.importorskip("ray")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", "object_store_memory": 10**8}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for last in (False, False, True):
            try:
                ray.init("local", num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}, **quiet)
                break
            except Exception:
                ray.shutdown()
                if last:
                    raise
        yield ray
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_ray_finds_the_same_bits_and_survives_a_killed_worker(cluster: Any, tmp_path: Path) -> None:
    data = Deadly(30, broken=(5,), log=tmp_path / "pids")
    found = cs.sweep(network(), data, all_of(), LAYERS, engine="ray", workers=2, store=tmp_path / "store", **SETTINGS)
    assert same(found, reference())
    pids = {int(w) for w in (tmp_path / "pids").read_text().split()} - {os.getpid()}
    assert int((tmp_path / "pids.killed").read_text()) in pids
    assert len(pids) > 1  # the other, the one that took the place of the killed, or both
    assert same(cs.sweep(network(), data, all_of(), LAYERS, store=tmp_path / "store", **SETTINGS), found)


@pytest.mark.filterwarnings("ignore")
def test_an_error_in_a_worker_of_a_cluster_is_the_same_error(cluster: Any) -> None:
    with pytest.raises(cs.UsageError, match="refused at image 9"):
        cs.sweep(network(), Drawn(12), Refuses(), "head", engine="ray", **SETTINGS)
    assert cluster.is_initialized()  # a cluster that was there stays


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_cannot_start_says_why(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ModuleType("nowhere")
    exec("from sweeping import Top\nclass Hidden(Top):\n    pass", nowhere.__dict__)
    monkeypatch.setitem(sys.modules, "nowhere", nowhere)
    with pytest.raises(cs.ConvoscopeError, match="cannot start: ModuleNotFoundError: No module named 'nowhere'"):
        cs.sweep(network(), Drawn(12), nowhere.Hidden(), "head", engine="ray", **SETTINGS)


@pytest.mark.filterwarnings("ignore")
def test_a_dissection_on_a_cluster_is_the_same_to_the_last_digit(cluster: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"draws": 5, "fraction": 0.02}
    layers = ["layer2", "layer4"]
    here = cs.dissect(cs.load("scenes"), "scenes:40", layers, **settings)
    there = cs.dissect(cs.load("scenes"), "scenes:40", layers, engine="ray", workers=2, store=tmp_path / "store", **settings)
    assert any(unit.iou > 0.04 for unit in here["layer4"].units)
    assert there.to_dict() == here.to_dict()


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_writes_the_same_book(cluster: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"exemplars": 3, "crop": 16, "draws": 120, "shard_size": 4, "batch_size": 4}
    for name, engine in (("here", {}), ("there", {"engine": "ray", "workers": 2})):
        scan(cs.load("scenes"), "scenes:12", ["stem", "layer3"], tmp_path / name, **engine, **settings)
    here, there = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted((tmp_path / name).rglob("*")) if p.is_file()}
        for name in ("here", "there")
    )
    assert len(here) > 80
    assert there == here
