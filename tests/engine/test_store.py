"""Stores: what is finished is not computed again, what changed is; neither killed processes nor damaged files lose anything."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeping import LAYERS, Counts, Drawn, Loud, Top, all_of, network, same

import convoscope as cs
from convoscope.engine import merged
from convoscope.engine.store import Store
from convoscope.units.exemplars import RandomPatches
from convoscope.units.tail import Tail

KILLS = int(os.environ.get("CONVOSCOPE_KILLS", "6"))
SETTINGS = {"shard_size": 4, "batch_size": 3}


class Log:
    """Which pictures were read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[int]:
        found = [int(w) for w in self.path.read_text().split()] if self.path.exists() else []
        self.path.unlink(missing_ok=True)
        return sorted(found)[1:]  # the first picture is read to find the layers


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def run(log: Log, store: Path, statistics: Any = None, layers: Any = LAYERS, net: Any = None, **changes: Any) -> Any:
    data = Drawn(30, broken=(5,), log=log.path)
    data.changed = changes.pop("changed", -1)
    return cs.sweep(net or network(), data, statistics or all_of(), layers, store=store, **{**SETTINGS, **changes})


def reference() -> Any:
    return cs.sweep(network(), Drawn(30, broken=(5,)), all_of(), LAYERS, **SETTINGS)


def files(store: Path) -> list[Path]:
    return sorted((store / "shards").rglob("*.safetensors"))


ALL = list(range(30))


def test_a_rerun_reads_what_is_there(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    one = run(log, store)
    assert same(one, reference())
    assert log.read() == ALL
    assert len(files(store)) == 8
    told: list[int] = []
    assert same(run(log, store, progress=lambda d, _: told.append(d)), one)
    assert log.read() == []
    assert told == [4, 8, 12, 16, 20, 24, 28, 30]
    assert one.failed == {5: "picture 5 is damaged"}


def test_what_is_missing_is_computed_and_nothing_else(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(log, store)
    log.read()
    lost = files(store)[3]
    start = next(s.start for s in _plan(store).shards if _plan(store).shard_keys[s.number] in lost.name)
    lost.unlink()
    assert same(run(log, store), reference())
    assert log.read() == [i for i in range(start, start + 4) if i < 30]


def _plan(store: Path) -> Any:
    from convoscope.engine import plan

    return plan.load(plan.plans(Store(store))[0])


def test_statistics_and_layers_can_be_added(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(log, store, Top(), ["first"])
    log.read()
    assert same(run(log, store), reference())
    assert log.read() == ALL
    assert len(files(store)) == 16  # the second files hold what the first lack
    sizes = [p.stat().st_size for p in files(store)]
    some = run(log, store, {"other name": Top()}, ["head", "first"])
    assert log.read() == []
    assert torch.equal(some["head", "other name"].values, reference()["head", "top"].values)
    assert [p.stat().st_size for p in files(store)] == sizes


def test_what_changed_is_computed_again(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(log, store, Top(), "head")
    log.read()
    assert run(log, store, Top(k=3), "head")["head", "top"].value()[0].shape[1] == 3
    assert log.read() == ALL
    run(log, store, Top(), "head", changed=13)
    assert log.read() == [12, 13, 14, 15]
    other = network()
    with torch.no_grad():
        other.module.unused.weight[0, 0] += 1
    run(log, store, Top(), "head", other)
    assert log.read() == ALL
    run(log, store, Top(), "head", network(size=16))
    assert log.read() == ALL
    run(log, store, Top(), "head", cs.Network(network().module, 12, 0.5, 0.5))
    assert log.read() == ALL
    run(log, store, Top(), "head", shard_size=5)
    assert log.read() == ALL
    run(log, store, Top(), "head", batch_size=1)
    assert log.read() == []


def test_another_architecture_with_the_same_weights_is_noticed(log: Log, tmp_path: Path) -> None:
    for kind in (torch.nn.ReLU(), torch.nn.GELU()):
        torch.manual_seed(0)
        net = cs.Network(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), kind), 12)
        run(log, tmp_path / "store", Top(), "1", net)
        assert log.read() == ALL


@pytest.mark.parametrize("place", [0, 1, 7, 40, 0.3, 0.6, 0.9, -1])
def test_a_flipped_byte_is_noticed_and_its_shard_computed_again(log: Log, tmp_path: Path, place: float) -> None:
    store = tmp_path / "store"
    run(log, store)
    log.read()
    victim = files(store)[2]
    content = bytearray(victim.read_bytes())
    at = int(place * len(content)) if isinstance(place, float) else place
    content[at] ^= 1 << random.Random(at).randrange(8)
    victim.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="is damaged .* computed again"):
        again = run(log, store)
    assert same(again, reference())
    assert 0 < len(log.read()) <= 4
    assert same(run(log, store), again)
    assert log.read() == []


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100])
def test_a_file_that_is_none_is_noticed(log: Log, tmp_path: Path, content: bytes) -> None:
    store = tmp_path / "store"
    run(log, store)
    files(store)[0].write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(run(log, store), reference())


def test_a_file_under_another_shards_name_is_noticed(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(log, store)
    a, b = files(store)[:2]
    a.write_bytes(b.read_bytes())
    with pytest.warns(UserWarning, match="belongs to another shard"):
        assert same(run(log, store), reference())


def test_shards_are_read_one_at_a_time(log: Log, tmp_path: Path) -> None:
    found = run(log, tmp_path / "store")
    plain = reference()
    for layer in LAYERS:
        ours, theirs = list(found.shards(layer, "loud")), list(plain.shards(layer, "loud"))
        assert len(ours) == len(theirs) == 8
        assert all(torch.equal(a.rows, b.rows) and torch.equal(a.where, b.where) for a, b in zip(ours, theirs, strict=True))
    whole = Top()
    for part in found.shards("head", "top"):
        whole.merge(part)
    assert torch.equal(whole.places, found["head", "top"].places)


class Fading(Drawn):
    """Its first four pictures are bright, until they `fade` or are `lost`."""

    def __init__(self, log: Path, state: str) -> None:
        super().__init__(30, broken=(1, 2, 3) if state == "lost" else (), log=log)
        self.state = state

    def key(self, i: int) -> str:
        return f"{super().key(i)} {self.state if i < 4 else ''}"

    def picture(self, i: int) -> torch.Tensor:
        return super().picture(i) / (1 if i < 4 and self.state == "bright" else 8)


@pytest.mark.parametrize("state", ["fades", "lost"])
def test_what_knew_of_a_shard_that_changed_is_computed_again(log: Log, tmp_path: Path, state: str) -> None:
    """The largest values and the first of a sample were in shard 0, and others were left out for it."""
    store, statistics = tmp_path / "store", {"tail": Tail(fraction=0.05), "few": RandomPatches(k=4, seed=10), "top": Top()}
    settings: dict[str, Any] = {"layers": ["input", "head"], **SETTINGS}
    cs.sweep(network(), Fading(log.path, "bright"), statistics, store=store, **settings)
    log.read()
    data = Fading(log.path, state)
    found = cs.sweep(network(), data, statistics, store=store, **settings)
    again = log.read()
    assert [i for i in again if i > 3]
    fresh = cs.sweep(network(), Fading(tmp_path / "other", state), statistics, **settings)
    for layer in found.layers:
        for name, of in (("tail", lambda t: t.largest), ("few", lambda r: r.value().images), ("top", lambda t: t.places)):
            assert torch.equal(of(found[layer, name]), of(fresh[layer, name])), name
        assert torch.equal(found[layer, "tail"].value().value, fresh[layer, "tail"].value().value)
        ours, theirs = ([set(zip(t.cells.tolist(), t.levels.tolist(), strict=True)) for t in s.shards(layer, "tail") if t.begun]
                        for s in (found, fresh))  # fmt: skip
        assert all(a >= b for a, b in zip(ours[1:], theirs[1:], strict=True))
    assert len(files(store)) == 8 + 1  # that of the first state stays
    rest = cs.sweep(network(), data, statistics, store=store, **settings)
    assert same(rest, found)
    assert log.read() == []


# ---- parts
def test_parts_of_an_array_of_jobs_are_merged(log: Log, tmp_path: Path) -> None:
    store = tmp_path / "store"
    part = run(log, store, shard=(1, 3))
    assert log.read() == [i for k in (1, 4, 7) for i in ALL[4 * k : 4 * k + 4]]
    assert int(part["head", "counts"].classes.sum()) == len([i for i in (*range(4, 8), *range(16, 20), 28, 29) if i != 5])
    with pytest.raises(cs.UsageError, match="5 of 8 shards are missing, first images 0 to 3"):
        merged(store)
    run(log, store, shard="0/3")
    run(log, store, shard="2/3")
    log.read()
    assert same(merged(store), reference())
    assert same(run(log, store), reference())
    assert log.read() == []
    assert merged(store).dataset_name == "drawn"


def test_stores_that_cannot_be_merged(log: Log, tmp_path: Path) -> None:
    with pytest.raises(cs.UsageError, match="is no store of a sweep"):
        merged(tmp_path)
    run(log, tmp_path, Top(), "head")
    run(log, tmp_path, Counts(), "head")
    with pytest.raises(cs.UsageError, match="2 sweeps; name one of"):
        merged(tmp_path)

    class Local(Top):
        pass

    run(log, tmp_path / "other", Local(), "head")
    with pytest.raises(cs.UsageError, match=r"statistic 'local' .* cannot be imported here"):
        merged(tmp_path / "other")


# ---- other processes
fork = multiprocessing.get_context("fork")


def _sweep(log: Log, store: Path, moment: int, touched: Any) -> None:
    """Sweep, counting how often a file or a folder of the test is opened, listed, renamed or removed; killed at one moment."""
    count = itertools.count(1)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if arguments and str(arguments[0]).startswith(str(log.path.parent)):
            touched.value = now = next(count)
            if now == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(look)
    run(log, store)
    os._exit(0)


def _child(log: Log, store: Path, moment: int = -1, touched: Any = None) -> Any:
    child = fork.Process(target=_sweep, args=(log, store, moment, touched or fork.Value("i")))
    child.start()
    return child


def test_killed_at_any_moment_it_resumes_to_the_same(log: Log, tmp_path: Path) -> None:
    expected, draw, touched = reference(), random.Random(0), fork.Value("i")
    _child(log, tmp_path / "whole", touched=touched).join()
    whole = touched.value
    assert whole > 60  # 30 pictures, and for each of 8 shards at least a claim, a file and its name
    for k in range(KILLS):
        store, log.path = tmp_path / f"store {k}", tmp_path / f"log {k}"
        child = _child(log, store, 1 + int(whole * (k + draw.random()) / KILLS))
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        assert same(run(log, store), expected), k
        assert len(files(store)) == 8
        assert not list(store.rglob("*.partial"))


def test_two_processes_on_one_store_lose_nothing(log: Log, tmp_path: Path) -> None:
    for k in range(3):
        store, logs = tmp_path / f"store {k}", [Log(tmp_path / f"log {k} {i}") for i in range(2)]
        children = [_child(mine, store) for mine in logs]
        for child in children:
            child.join(120)
            assert child.exitcode == 0
        read = [mine.read() for mine in logs]
        assert set(read[0]) | set(read[1]) == set(ALL)
        assert same(run(log, store), reference())
        assert len(files(store)) == 8
        log.read()


def test_a_shard_that_another_process_is_at_is_waited_for(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    run(log, store)
    shard = _plan(store).shards[2]
    key = _plan(store).shard_keys[2]
    file = next(p for p in files(store) if key in p.name)
    content = file.read_bytes()
    file.unlink()
    held, ordinary, refused = Store(store).claim(key), Store.claim, []
    assert held is not None
    assert Store(store).claim(key) is None
    log.read()

    def claim(self: Store, shard: str) -> Any:
        found = ordinary(self, shard)
        refused.extend([shard] if found is None else [])
        if len(refused) == 3:  # the other process has finished it
            file.write_bytes(content)
            held.release()
        return found

    monkeypatch.setattr(Store, "claim", claim)
    assert same(run(log, store), reference())
    assert refused == [key] * 3
    assert log.read() == []
    assert shard.start == 8
    assert Loud().label() == "loud"
