"""What a sweep is to find, and how it is cut into shards: enough to merge a store without the network or the data."""

import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoscope.core.errors import ConvoscopeError, UsageError
from convoscope.core.statistic import Statistic
from convoscope.engine.keys import digest, network_key, shard_key, statistic_key
from convoscope.engine.shards import Pair, Shard, Work
from convoscope.engine.store import Store, write_durably

SCHEMA = "convoscope.sweep/1"


@dataclass(frozen=True)
class Plan:
    """Layers, statistics and shards, with their keys in a store (empty without one)."""

    network_name: str
    network_hash: str
    dataset_name: str
    images: int
    layers: tuple[str, ...]
    statistics: Mapping[str, Statistic]
    shards: tuple[Shard, ...]
    keys: Mapping[Pair, str]  # of a layer and the name of a statistic
    shard_keys: Mapping[int, str]  # of the number of a shard

    @property
    def name(self) -> str:
        """What the plan is called in a store."""
        return digest(sorted(self.keys.values()), sorted(self.shard_keys.values()))

    def part(self, shard: tuple[int, int] | None) -> tuple[Shard, ...]:
        """Every n-th shard from the i-th on, for (i, n); all for None."""
        return self.shards if shard is None else self.shards[shard[0] :: shard[1]]


def plan_of(work: Work, layers: tuple[str, ...], shard_size: int, stored: bool) -> Plan:
    """The plan of a sweep; keys are found only if they are needed, since they look at every file of the data."""
    net, data, total = work.network, work.dataset, work.total
    shards = tuple(Shard(k, s, min(s + shard_size, total)) for k, s in enumerate(range(0, total, shard_size)))
    keys, places = {(a, n): "" for a in layers for n in work.statistics}, {s.number: "" for s in shards}
    if stored:
        kinds = {n: statistic_key(s) for n, s in work.statistics.items()}
        keys = {(a, n): digest(a, kinds[n]) for a, n in keys}
        network = network_key(net)
        places = {s.number: shard_key(network, data, s) for s in shards}
    return Plan(net.name, net.hash, data.name, total, layers, work.statistics, shards, keys, places)


def save(store: Store, plan: Plan) -> None:
    """Note a plan in its store, for `merged`."""
    path = store.folder / f"sweep-{plan.name}.json"
    if not path.exists():
        write_durably(path, [json.dumps(_document(plan), indent=1).encode()])


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "network": plan.network_name,
        "network_hash": plan.network_hash,
        "dataset": plan.dataset_name,
        "images": plan.images,
        "layers": plan.layers,
        "statistics": {n: _kind(s) for n, s in plan.statistics.items()},
        "keys": [[*pair, key] for pair, key in plan.keys.items()],
        "shards": [[s.number, s.start, s.stop, plan.shard_keys[s.number]] for s in plan.shards],
    }


def _kind(statistic: Statistic) -> dict[str, Any]:
    kind = type(statistic)
    settings = None
    with suppress(TypeError, ValueError):
        settings = json.loads(json.dumps(statistic.settings, allow_nan=False))
    return {"module": kind.__module__, "class": kind.__qualname__, "settings": settings}


def plans(store: Store) -> list[Path]:
    """The plans noted in a store, oldest first."""
    return sorted(store.folder.glob("sweep-*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))


def load(path: Path) -> Plan:
    """A plan that was noted. Raises ConvoscopeError where it cannot be read or a statistic cannot be made again."""
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(Shard(number, start, stop) for number, start, stop, _ in d["shards"])
        keys = {(address, name): key for address, name, key in d["keys"]}
        places = {number: key for number, _, _, key in d["shards"]}
        statistics = {n: _made(n, k) for n, k in d["statistics"].items()}
        return Plan(
            d["network"], d["network_hash"], d["dataset"], d["images"], tuple(d["layers"]), statistics, shards, keys, places
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConvoscopeError):
            raise
        raise ConvoscopeError(f"{str(path)!r} is no plan of a sweep: {error}") from None


def _made(name: str, kind: dict[str, Any]) -> Statistic:
    where = f"{kind['module']}.{kind['class']}"
    try:
        # A store says which module; a store from elsewhere must not choose what is imported.
        own = kind["module"].partition(".")[0] == "convoscope"
        found: Any = importlib.import_module(kind["module"]) if own else sys.modules[kind["module"]]
        for word in kind["class"].split("."):
            found = getattr(found, word)
    except (ImportError, AttributeError, KeyError):
        found = None
    if kind["settings"] is None or not (isinstance(found, type) and issubclass(found, Statistic)):
        reason = "has settings that no file holds" if kind["settings"] is None else "cannot be imported here"
        raise UsageError(f"statistic {name!r} ({where}) {reason}; merge it with the call of cs.sweep that made the store")
    return found(**kind["settings"])
