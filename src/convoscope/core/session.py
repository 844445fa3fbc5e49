"""What the probes of one explanation share, and what the explanations of one call share with each other."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from convoscope.core.geometry import Field
from convoscope.core.operators import RuleTable
from convoscope.core.record import Activations

Progress = Callable[[int], None]


class Scoring(Protocol):
    """What a session needs of a target: where it looks, one number per row, and what the clean pass is to fix."""

    @property
    def open(self) -> bool: ...
    def addresses(self) -> tuple[str, ...]: ...
    def resolve(self, activations: Activations) -> Any: ...
    def __call__(self, activations: Activations) -> Tensor: ...


class Answers:
    """What the network said of inputs it has seen, found again by content: two random projections in double precision.

    Keeps at most `limit` bytes; what comes after that is not kept.
    """

    def __init__(self, addresses: Iterable[str], limit: int = 1 << 30) -> None:
        self.addresses, self.limit, self.bytes = tuple(dict.fromkeys(addresses)), limit, 0
        self._found: dict[Hashable, tuple[Mapping[str, Tensor], int]] = {}
        self._directions: dict[Any, Tensor] = {}

    def keys(self, x: Tensor, rows: Tensor | None = None) -> list[Hashable]:
        """A key for each row of `x`; with `rows`, the answer depends on the image as well."""
        shape = (tuple(x.shape[1:]), x.device)
        if shape not in self._directions:
            settings: dict = {"generator": torch.Generator().manual_seed(20161121), "dtype": torch.float64, "device": "cpu"}
            self._directions[shape] = torch.randn(x[0].numel(), 2, **settings).to(x.device)
        found = [(row.reshape(1, -1).double() @ self._directions[shape])[0] for row in x]
        numbers = torch.stack(found).tolist() if found else []
        images = [None] * len(x) if rows is None else rows.tolist()
        return [(shape[0], image, *n) for image, n in zip(images, numbers, strict=True)]

    def known(self, key: Hashable) -> bool:
        return key in self._found

    def keep(self, keys: Sequence[Hashable], found: Mapping[str, Tensor]) -> None:
        """Notes the activations of some rows, all or none of them."""
        self.bytes += sum(t.numel() * t.element_size() for t in found.values())
        if self.bytes <= self.limit:
            self._found.update({key: (found, i) for i, key in enumerate(keys)})

    def place(self, key: Hashable) -> tuple[Mapping[str, Tensor], int]:
        """The activations among which those of a known row are, and its place there."""
        return self._found[key]


@dataclass
class Shared:
    """What explanations of the same images (or of the same layer of theirs) share while a batch of images is worked on.

    `x` is the tensor that methods are given, `targets` all that are asked for. `planned` holds, for each target, activations
    and gradients that were computed at once for all methods; `answers` is there where several explanations are made.
    """

    x: Tensor | None = None
    targets: tuple[Any, ...] = ()
    planned: dict[Hashable, dict[Any, Any]] = dataclasses.field(default_factory=dict)
    memo: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    answers: Answers | None = None


@dataclass
class Session:
    """What all probes of one explanation share.

    `replays`: many local changes are replayed instead of run; where None, if they are large enough to gain. `memory`: bytes
    that an operator may read and write in a replayed pass.
    """

    module: nn.Module
    images: Tensor
    target: Scoring
    at: str = "input"
    batch_size: int = 32
    seed: int = 0
    head: Callable[[Any], Tensor] | None = None
    baseline: Callable[[Any, Tensor, Any], Tensor] | None = None
    last_spatial: Callable[[], str] | None = None
    tail: Callable[[str], list[str]] | None = None
    field: Callable[[str], Field | None] | None = None
    picture: Callable[[Tensor], Tensor] | None = None
    bounds: Callable[[], tuple[Tensor, Tensor]] | None = None
    progress: Progress | None = None
    adaptive: bool = False
    memory: int | None = None
    replays: bool | None = None
    evaluations: int = 0
    suspect: Tensor | None = None  # whether something was not finite, on its device
    composite: RuleTable | None = None
    matched: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    shared: Shared = dataclasses.field(default_factory=Shared)

    def watched(self, found: Tensor) -> Tensor:
        """The tensor itself; notes whether it is finite, to be asked once at the end, so that a GPU need not wait."""
        bad = ~found.detach().isfinite().all()
        self.suspect = bad if self.suspect is None else self.suspect | bad
        return found
