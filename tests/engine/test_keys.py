"""Keys: another for whatever changes a result, the same in every process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweeping import Counts, Drawn, Loud, Top, network

from convoscope.engine.keys import described, digest, network_key, shard_key, statistic_key
from convoscope.engine.shards import Shard


def scaled(by: float) -> Callable[[Any], Any]:
    return lambda picture: picture * by


class Scale:
    """A transform that does not say what it does."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, picture: Any) -> Any:
        return picture * self.by

    def other(self, picture: Any) -> Any:
        return picture


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torch.ones(3), torch.ones(3), torch.ones(3).double()),
        (np.ones(2000), np.ones(2000), np.concatenate([np.ones(1000), [2.0], np.ones(999)])),
        (scaled(2), scaled(2), scaled(3)),
        (Scale(2), Scale(2), Scale(3)),
        (Scale(2).other, Scale(2).other, Scale(2).__call__),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}),
        ({3, 1, 2}, {1, 2, 3}, {1, 2}),
        (Path("a"), Path("a"), Path("b")),
        (Drawn(3), Drawn(3), Drawn(4)),
    ],
)
def test_settings(one: Any, same: Any, other: Any) -> None:
    assert digest(one) == digest(same)
    assert digest(one) != digest(other)


def test_networks_statistics_and_rows() -> None:
    keys = {
        network_key(network(**s)) for s in ({}, {"size": 16}, {"output": 0}, {"transform": scaled(1)}, {"transform": scaled(2)})
    }
    assert len(keys) == 5
    assert network_key(network()) in keys
    assert len({statistic_key(s) for s in (Top(), Top(k=5), Counts(), Loud())}) == 4
    changed = Drawn(30)
    changed.changed = 7
    assert shard_key("", Drawn(30), Shard(0, 0, 7)) == shard_key("", changed, Shard(0, 0, 7))
    assert shard_key("", Drawn(30), Shard(0, 0, 8)) != shard_key("", changed, Shard(0, 0, 8))
    assert shard_key("", Drawn(30), Shard(0, 0, 7)) != shard_key("", Drawn(31), Shard(0, 0, 7))


def test_a_file_that_is_not_there_has_a_key(tmp_path: Path) -> None:
    class Files(Drawn):
        def key(self, i: int) -> str:
            return str((tmp_path / f"{i}").stat().st_size)

    missing = shard_key("", Files(2), Shard(0, 0, 2))
    (tmp_path / "0").write_text("there")
    assert shard_key("", Files(2), Shard(0, 0, 2)) != missing


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from sweeping import *; import convoscope as cs;"
        "from convoscope.engine.keys import *; from convoscope.engine.shards import Shard;"
        "print(network_key(network(transform=Drawn)), statistic_key(Top()), shard_key('', Drawn(), Shard(0, 0, 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    here = network_key(network(transform=Drawn)), statistic_key(Top()), shard_key("", Drawn(), Shard(0, 0, 9))
    assert done.stdout.split() == list(here)
    assert described(None) is None
