"""`convoscope merge`: what is there, what is missing, and the merged file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sweeping import Counts, Drawn, Top, network

import convoscope as cs
from convoscope.cli.run import run


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = run([str(w) for w in words])
    return code, *capsys.readouterr()


def part(store: Path, shard: str | None, statistics: Any = None) -> Any:
    return cs.sweep(network(), Drawn(30), statistics or [Top(), Counts()], ["head"], store=store, shard=shard, shard_size=4)


def test_parts_are_counted_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part(tmp_path, "0/2")
    code, out, err = call(capsys, "merge", tmp_path)
    assert (code, "4 of 8" in out) == (1, True)
    assert "4 shards are missing; run the jobs that did not finish again" in " ".join(err.split())
    assert not list(tmp_path.glob("merged-*"))
    whole = part(tmp_path, "1/2") and part(tmp_path, None)
    code, out, _ = call(capsys, "merge", tmp_path, "--json")
    (found,) = json.loads(out)["sweeps"]
    assert code == 0
    assert (found["finished"], found["shards"], found["images"], found["layers"]) == (8, 8, 30, ["head"])
    merged = load_file(tmp_path / found["file"])
    assert torch.equal(merged["0.places"], whole["head", "top"].places)
    assert torch.equal(merged["1.histogram"], whole["head", "counts"].histogram)
    code, out, _ = call(capsys, "merge", tmp_path)
    assert (code, "all 8" in out) == (0, True)


def test_stores_and_sweeps_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "merge", tmp_path)
    assert (code, "is no store of a sweep" in " ".join(err.split())) == (2, True)
    part(tmp_path, None, Top())
    code, _, err = call(capsys, "merge", tmp_path, "--sweep", "nothing")
    assert (code, "has no sweep 'nothing'" in " ".join(err.split())) == (2, True)
