"""The fold of all shards in the order of their images, whoever computes them and in which order they come."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from convoscope.core.statistic import Statistic
from convoscope.engine.plan import Plan
from convoscope.engine.result import Sweep
from convoscope.engine.shards import Pair, Part, Shard, Task
from convoscope.engine.store import Claim, Contents, Store, add_contents, pieces

Progress = Callable[[int, int], None]


class Fold:
    """Says what is still to be computed, takes parts in any order, and merges them in theirs.

    With a store every part is written before it counts; parts that come before their turn are read again when it comes.
    """

    def __init__(self, plan: Plan, shards: tuple[Shard, ...], store: Store | None, progress: Progress | None = None) -> None:
        self.plan, self.shards, self.store, self.progress = plan, shards, store, progress
        self.images, self.done = sum(map(len, shards)), 0
        self.places: dict[int, dict[str, Path]] = {}  # number of a shard -> key of a pair -> its file
        self.claims: dict[int, Claim] = {}
        self.deferred: list[Shard] = []  # other processes are at them
        names = tuple(plan.statistics)
        self.sweep = Sweep(plan.network_name, plan.network_hash, plan.dataset_name, plan.images, plan.layers, names)
        self.sweep.reader = self.read
        self._begin()

    def _begin(self) -> None:
        self.merged = 0
        self.ready: dict[int, Part] = {}
        self.kept: list[dict[Pair, Statistic]] = []
        self.sweep.statistics = {pair: self.plan.statistics[pair[1]].fresh() for pair in self.plan.keys}

    # ---- what is to be done
    def tasks(self, shards: Iterable[Shard]) -> Iterator[Task]:
        """What these shards lack, claimed; finished ones are taken, those that other processes are at are put off."""
        for shard in shards:
            task = self.look(shard)
            if task is None or self.store is None:
                yield from [task] if task else []
                continue
            claim = self.store.claim(task.key)
            if claim is None:
                self.deferred.append(shard)
                continue
            task = self.look(shard)  # it may have come in between
            if task is None:
                claim.release()
                continue
            self.claims[shard.number] = claim
            yield task

    def look(self, shard: Shard) -> Task | None:
        """What the shard lacks; None if nothing, and then it is taken."""
        key, pairs = self.plan.shard_keys[shard.number], tuple(self.plan.keys)
        if self.store is not None:
            found = self.store.find(key, self.plan.keys.values())
            self.places[shard.number] = {k: path for path, contents in found.items() for k in contents.numbers}
            pairs = tuple(p for p in pairs if self.plan.keys[p] not in self.places[shard.number])
            if not pairs:
                if self._next(shard):
                    self.ready[shard.number] = self._stored(shard, found)
                self.tell(len(shard))
                self._merge()
                return None
        return Task(shard, pairs, key, tuple(self.plan.keys[p] for p in pairs))

    def hints(self, pairs: Collection[Pair]) -> Mapping[Pair, Statistic]:
        """What the first shards merged to so far, for the statistics that want it."""
        found = self.sweep.statistics
        return {p: found[p] for p in pairs if found[p].begun and type(found[p]).hint is not Statistic.hint}

    def tell(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        if images and self.progress is not None:
            self.progress(self.done, self.images)

    # ---- what was done
    def take(self, task: Task, part: Part, data: bytes | None = None) -> None:
        """A part that was computed; `data` are the bytes of its file, if they are there already."""
        if self.store is not None:
            keys = dict(zip(task.pairs, task.keys, strict=True))
            path = self.store.write(task.key, pieces(task.key, part, keys) if data is None else [data], task.keys)
            self.places.setdefault(task.shard.number, {}).update(dict.fromkeys(task.keys, path))
            if claim := self.claims.pop(task.shard.number, None):
                claim.release()
        if self.store is None or self._next(task.shard):
            self.ready[task.shard.number] = part
        self._merge()

    # ---- what was done in vain
    def lacking(self) -> Iterator[Task]:
        """What to compute once more without hints: shards that left something out which counts now that others changed."""
        whole = self.sweep.statistics
        if self.store is None or self.merged < len(self.plan.shards):
            return
        wrong: dict[int, list[Pair]] = {}
        for pair in (pair for pair in self.plan.keys if whole[pair].lacks(whole[pair])):
            for shard, part in zip(self.shards, self.read(pair), strict=True):
                if whole[pair].lacks(part):
                    wrong.setdefault(shard.number, []).append(pair)
        for shard in self.shards:
            if pairs := tuple(wrong.get(shard.number, ())):
                yield Task(shard, pairs, self.plan.shard_keys[shard.number], tuple(self.plan.keys[p] for p in pairs))

    def replace(self, found: Iterable[tuple[Task, Part, bytes | None]]) -> None:
        """Put these parts in the place of what the store has, and merge all of it anew."""
        assert self.store is not None
        for task, part, _ in found:
            places = self.places[task.shard.number]
            for path in dict.fromkeys(places[key] for key in task.keys):
                mine = [p for p, key in zip(task.pairs, task.keys, strict=True) if places[key] == path]
                self.store.replace(path, {self.plan.keys[p]: part.statistics[p] for p in mine})
        self._begin()
        self._merge()

    def release(self) -> None:
        """Let other processes have what is not finished."""
        for claim in self.claims.values():
            claim.release()
        self.claims.clear()

    def _next(self, shard: Shard) -> bool:
        return self.merged < len(self.shards) and self.shards[self.merged] == shard

    def _merge(self) -> None:
        while self.merged < len(self.shards):
            part = self._part(self.shards[self.merged])
            if part is None:
                return
            kept = {}
            for pair in self.plan.keys:
                self._add(pair, part.statistics[pair])
                if self.store is None and part.statistics[pair].spilled:
                    kept[pair] = part.statistics[pair]
            self.kept.append(kept)
            self.sweep.failed |= part.failed
            self.merged += 1

    def _add(self, pair: Pair, statistic: Statistic) -> None:
        whole = self.sweep.statistics[pair]
        first = not whole.begun
        whole.merge(statistic)
        for name in statistic.spilled if first and whole.begun else ():  # the first state is taken over as it is
            setattr(whole, name, getattr(whole, name)[:0].clone())

    def _part(self, shard: Shard) -> Part | None:
        """All pairs of a shard, or None if they are not all there."""
        part = self.ready.pop(shard.number, None)
        if self.store is None or (part is not None and len(part.statistics) == len(self.plan.keys)):
            return part
        if any(key not in self.places.get(shard.number, {}) for key in self.plan.keys.values()):
            return None
        return self._stored(shard, {}, part)

    def _stored(self, shard: Shard, found: Mapping[Path, Contents], part: Part | None = None) -> Part:
        assert self.store is not None
        part = part or Part()
        places = self.places[shard.number]
        for path in dict.fromkeys(places[key] for key in self.plan.keys.values()):
            contents = found[path] if path in found else self.store.load(path)
            add_contents(part, contents, self.plan.keys, self.plan.statistics)
        return part

    def read(self, pair: Pair) -> Iterator[Statistic]:
        """Each shard's own statistic of a layer, in order."""
        if self.store is None:
            yield from (kept[pair] for kept in self.kept if pair in kept)
            return
        key = self.plan.keys[pair]
        for shard in self.shards:
            state = self.store.state(self.places[shard.number][key], key)
            yield self.plan.statistics[pair[1]].fresh().load_state_dict(state)
