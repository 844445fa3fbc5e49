"""States on disk: whole or absent, to the bit or nothing, and one line where a disk is full."""

import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.errors import ConvoscopeError
from convoscope.data.sealed import read_sealed, read_state, write_sealed, write_state
from convoscope.engine.store import Store
from convoscope.evaluation.kept import Kept, Part
from convoscope.files import write_text

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "empty": torch.zeros(0, 2), "flags": torch.ones(3) > 0}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_sealed(tmp_path / "x", TENSORS | {"turned": torch.eye(3).T}, {"step": "3"})
    found, said = read_sealed(tmp_path / "x") or ({}, {})
    assert said == {"step": "3"}
    assert found.keys() == {*TENSORS, "turned"}
    assert all(torch.equal(found[k], t) for k, t in TENSORS.items())
    assert read_sealed(tmp_path / "y") is None
    write_state(tmp_path / "z", {"key": "k", "deep": [{"a": torch.ones(2)}]})
    assert torch.equal(read_state(tmp_path / "z")["deep"][0]["a"], torch.ones(2))


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_sealed(path, TENSORS, {"step": "3"})
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        found = read_sealed(path)  # a blank in the header may be another kind of blank: then all is as it was
        assert found is None or (found[1] == {"step": "3"} and all(torch.equal(found[0][k], t) for k, t in TENSORS.items()))
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert read_sealed(path) is None


def test_changed_bytes_of_a_training_are_noticed(tmp_path: Path) -> None:
    path, values = tmp_path / "x", torch.arange(40.0)
    write_state(path, {"key": "k", "values": values})
    whole, draw = path.read_bytes(), random.Random(0)
    for at in draw.sample(range(len(whole)), 150):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = read_state(path)
        except Exception:  # whoever reads says so in one line
            continue
        assert torch.equal(found["values"], values)


# ---- a run whose state was changed
def small() -> cs.Network:
    torch.manual_seed(0)
    return cs.Network(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double(), 12
    )


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 0.99])
def test_an_ascent_does_not_go_on_from_a_changed_state(tmp_path: Path, place: float) -> None:
    settings: dict[str, Any] = {"steps": 4, "transforms": [], "store": tmp_path}
    whole = cs.ascend(small(), cs.Logit(1), "pixels", **settings)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(bytes(data))
    again = cs.ascend(small(), cs.Logit(1), "pixels", **settings)
    assert "continued from step" not in again.diagnostics
    assert torch.equal(again.pixels, whole.pixels)


# ---- disks
@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does: bytes beyond `size` are refused."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


big = torch.zeros(100, 100)
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda p: write_text(p, "x" * 9999),
    "sealed": lambda p: write_sealed(p, {"a": big}),
    "training": lambda p: write_state(p, {"a": big}),
    "shard": lambda p: Store(p.parent).write("ab" * 8, [bytes(9999)], ["k"]),
    "evaluation": lambda p: Kept(p.parent).keep(p, Part(big)),
    "map": lambda p: cs.explain(small(), torch.rand(1, 3, 40, 40).double(), "gradient").save(p.with_suffix(".safetensors")),
    "picture": lambda p: cs.explain(small(), torch.rand(1, 3, 40, 40).double(), "gradient").save(p.with_suffix(".png")),
    "ascent": lambda p: cs.ascend(cs.Network(small().module, 40), cs.Logit(1), "pixels", steps=1).save(
        p.with_suffix(".safetensors")
    ),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(what: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    for name in ("result", "result.safetensors", "result.png"):
        (tmp_path / name).write_text("as it was")
    with files_of_at_most(1000), pytest.raises(ConvoscopeError, match=r"^cannot write '.*': file too large$"):
        WRITERS[what](path)
    assert all((tmp_path / n).read_text() == "as it was" for n in ("result", "result.safetensors", "result.png"))
    assert not list(tmp_path.rglob("*.partial"))
    WRITERS[what](path)


def test_a_sweep_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    from convoscope.units.exemplars import TopPatches

    pictures = torch.rand(12, 3, 12, 12).double()
    settings: dict[str, Any] = {"layers": ["0"], "shard_size": 3, "store": tmp_path}
    whole = cs.sweep(small(), pictures, TopPatches(k=2), layers=["0"], shard_size=3)
    with pytest.raises(ConvoscopeError, match=r"^cannot write "), files_of_at_most(600):
        cs.sweep(small(), pictures, TopPatches(k=2), **settings)
    assert not list(tmp_path.rglob("*.partial"))
    again = cs.sweep(small(), pictures, TopPatches(k=2), **settings)
    ours, theirs = (next(iter(found["0"].values())).state_dict() for found in (again, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    """Root may write anywhere, so a folder of the kernel's is taken."""
    for target in (Path("/proc/result.json"), Path("/dev/null/result.json")):
        if target.parent.exists():
            with pytest.raises(ConvoscopeError, match="cannot write"):
                write_text(target, "x")
            with pytest.raises(ConvoscopeError, match="cannot write"):
                write_sealed(target, TENSORS)


# ---- signals and many writers
def test_eight_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    forks = []
    for n in range(8):
        if (child := os.fork()) == 0:
            failed = 1
            try:
                for _ in range(125):
                    write_sealed(path, {"a": torch.full((500,), float(10 + n))})
                    found = read_sealed(path)
                    failed = int(found is None or len(set(found[0]["a"].tolist())) != 1)
                    if failed:
                        break
            finally:
                os._exit(failed)
        forks.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in forks] == [0] * 8
    assert list(tmp_path.iterdir()) == [path]
