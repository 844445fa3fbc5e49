"""What a sweep found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, overload

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.core.statistic import Statistic
from convoscope.engine.shards import Pair


@dataclass
class Sweep:
    """The merged statistics of each layer: `sweep["layer4", "top-patches"]`, or `sweep["layer4"]` for all of them by name.

    `images` is their number in the data set, `failed` says why some of them (by place) could not be read and were left out.
    """

    network_name: str
    network_hash: str
    dataset_name: str
    images: int
    layers: tuple[str, ...]
    names: tuple[str, ...]
    statistics: dict[Pair, Statistic] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    reader: Callable[[Pair], Iterator[Statistic]] | None = field(default=None, repr=False)

    @overload
    def __getitem__(self, key: tuple[str, str]) -> Any: ...
    @overload
    def __getitem__(self, key: str) -> dict[str, Any]: ...
    def __getitem__(self, key: tuple[str, str] | str) -> Any:
        address, name = key if isinstance(key, tuple) else (key, None)
        if address not in self.layers:
            raise UsageError(f"this sweep has no layer {address!r}{did_you_mean(address, self.layers)}; it has {self.layers}")
        if name is None:
            return {n: self.statistics[address, n] for n in self.names}
        if name not in self.names:
            raise UsageError(f"this sweep has no statistic {name!r}{did_you_mean(name, self.names)}; it has {self.names}")
        return self.statistics[address, name]

    def shards(self, address: str, name: str) -> Iterator[Statistic]:
        """Each shard's own statistic with its spilled tensors, one at a time, in the order of the images.

        Without a store only statistics that spill are kept by shard; there are none of the others.
        """
        self[address, name]
        yield from self.reader((address, name)) if self.reader is not None else ()
