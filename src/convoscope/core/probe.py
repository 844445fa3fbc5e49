"""The only thing through which a method touches a network."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.operators import Rewriter, RuleTable
from convoscope.core.record import Activations, Edit, record

Progress = Callable[[int], None]


class Scoring(Protocol):
    """What a session needs of a target: where it looks, one number per row, and what the clean pass is to fix."""

    @property
    def open(self) -> bool: ...
    def addresses(self) -> tuple[str, ...]: ...
    def resolve(self, activations: Activations) -> Any: ...
    def __call__(self, activations: Activations) -> Tensor: ...


@dataclass
class Session:
    """What all probes of one explanation share."""

    module: nn.Module
    images: Float[Tensor, "images channel height width"]
    target: Scoring
    at: str = "input"
    batch_size: int = 32
    seed: int = 0
    head: Callable[[Any], Tensor] | None = None
    baseline: Callable[[Any, Tensor, "Probe"], Tensor] | None = None
    last_spatial: Callable[[], str] | None = None
    tail: Callable[[str], list[str]] | None = None
    progress: Progress | None = None
    evaluations: int = 0
    composite: RuleTable | None = None
    matched: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """A network, a target and a batch of rows, each of which belongs to an image.

    Every call takes one tensor row per row of the probe, splits it into batches, and counts it. Random draws depend on the
    seed, the place of the image and the number of the draw, never on the batch size or the device.
    """

    session: Session
    rows: Int64[Tensor, " rows"]
    keys: tuple[tuple[int, ...], ...]

    # ---- asking the network
    def score(self, x: Tensor, edits: Mapping[str, Edit] | None = None) -> Float[Tensor, " rows"]:
        """The target of each row, without gradients; `edits` replace named tensors on their way."""
        with torch.no_grad():
            return torch.cat([self._target(self._run(b, rows, edits=edits)) for b, rows in self._batches(x)])

    def grad(self, x: Tensor, at: str | None = None) -> Tensor:
        """The gradient of the target with respect to `x`, or to the tensor at another address, row by row."""
        return self.activations_and_gradients(x, at)[1]

    def activations(self, x: Tensor, at: str) -> Tensor:
        """The tensor at an address, without gradients."""
        with torch.no_grad():
            return torch.cat([self._run(b, rows, (at,), only=True)[at] for b, rows in self._batches(x)])

    def activations_and_gradients(self, x: Tensor, at: str | None = None) -> tuple[Tensor, Tensor]:
        """The tensor at an address (default: `x` itself) and the gradient of the target with respect to it."""
        return self._pulled(x, at or self.session.at)[:2]

    def grad_and_score(self, x: Tensor) -> tuple[Tensor, Float[Tensor, " rows"]]:
        """The gradient of the target with respect to `x`, and the target itself, from one pass."""
        return self._pulled(x, self.session.at)[1:]

    def _pulled(self, x: Tensor, at: str) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self._pull(b, rows, at) for b, rows in self._batches(x)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]

    def shared_score(self, x: Tensor) -> Float[Tensor, " rows"]:
        """The target of each row if all rows had the one input `x` `(1, ...)`: a single evaluation."""
        if self.session.at != "input":
            return self.score(x.expand(len(self.rows), *x.shape[1:]))
        with torch.no_grad():
            found = self._run(x, self.rows[:1])
            every = Activations({k: v.expand(len(self.rows), *v.shape[1:]) for k, v in found.items()})
            every.rows = self.rows
            return self._target(every)

    @contextlib.contextmanager
    def rules(self, composite: RuleTable) -> Iterator[None]:
        """Inside, gradients follow the composite. Raises UnsupportedError if it matched no operator of the network."""
        session = self.session
        outer, session.composite, session.matched = session.composite, composite, []
        try:
            yield
            if not session.matched:
                raise UnsupportedError(getattr(composite, "unmatched", "the composite matched no operator of this network"))
        finally:
            session.composite = outer

    # ---- what a method needs besides
    def baseline(self, which: Any, x: Tensor) -> Tensor:
        """The baseline of each row by name, number or tensor, in the space of `x` (at a layer: that of the baseline image)."""
        if self.session.baseline is None:
            raise UsageError("this probe knows no input space")
        return self.session.baseline(which, x, self)

    def layer(self, layer: str | None) -> str:
        """The address itself, or for None the last spatial tensor of the network; noted in the result."""
        if layer is None:
            if self.session.last_spatial is None:
                raise UsageError("name a layer")
            layer = self.session.last_spatial()
        self.session.notes["layer"] = layer
        return layer

    def tail(self, layer: str) -> list[str]:
        """Names of the operators that run after the tensor at `layer`, in order."""
        if self.session.tail is None:
            raise UsageError("this probe knows no trace of the network")
        return self.session.tail(layer)

    def note(self, name: str, value: Any) -> None:
        """Put a diagnostic into the result: one value for each image, or one for all.

        Values of repeated rows are left out: what holds for a noisy copy says nothing of the mean over copies.
        """
        if isinstance(value, Tensor):
            if any(len(key) > 1 for key in self.keys):
                return
            value = self.session.notes.get(name, []) + value.detach().double().cpu().reshape(-1).tolist()
        self.session.notes[name] = value

    # ---- many rows for each image
    def blocks(self, total: int) -> Iterator[range]:
        """0 .. total in ranges whose copies of all rows fill about one batch."""
        size = max(1, self.session.batch_size // max(1, len(self.rows)))
        for start in range(0, total, size):
            yield range(start, min(start + size, total))

    def repeat(self, copies: Sequence[int]) -> "Probe":
        """A probe of every row once for each number in `copies` (rows first, copies fastest), with draws of their own."""
        keys = tuple((*key, c) for key in self.keys for c in copies)
        return replace(self, rows=self.rows.repeat_interleave(len(copies)), keys=keys)

    # ---- random draws
    def normal(self, x: Tensor, draw: int = 0) -> Tensor:
        """Standard normal noise, shaped like `x`."""
        return self._draw(x, draw, lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float32))

    def uniform(self, x: Tensor, draw: int = 0) -> Tensor:
        """Noise uniform in 0..1, shaped like `x`."""
        return self._draw(x, draw, lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float32))

    def bernoulli(self, x: Tensor, p: float = 0.5, draw: int = 0) -> Tensor:
        """Ones with probability `p`, else zeros, shaped like `x`."""
        return (self.uniform(x, draw) < p).to(x)

    def _draw(self, x: Tensor, draw: int, make: Callable[[torch.Size, torch.Generator], Tensor]) -> Tensor:
        out = []
        for key in self.keys:
            digest = hashlib.blake2b(repr((self.session.seed, key, draw)).encode(), digest_size=8).digest()
            out.append(make(x.shape[1:], torch.Generator().manual_seed(int.from_bytes(digest) >> 1)))
        return torch.stack(out).to(x)

    # ---- one batch
    def _batches(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if len(x) != len(self.rows):
            raise UsageError(f"a probe of {len(self.rows)} rows got {len(x)}; use probe.repeat(copies) for several per image")
        yield from zip(x.split(self.session.batch_size), self.rows.split(self.session.batch_size), strict=True)

    def _run(
        self, x: Tensor, rows: Tensor, capture: tuple[str, ...] = (), graph: tuple[str, ...] = (),
        edits: Mapping[str, Edit] | None = None, only: bool = False,
    ) -> Activations:  # fmt: skip
        session = self.session
        edits = dict(edits or {})
        if session.at != "input":
            entry = x
            edits[session.at] = lambda _: entry
            x = session.images[rows.to(session.images.device)]
        wanted = capture if only else (*session.target.addresses(), *capture)
        rewriter = Rewriter(session.composite) if session.composite is not None and torch.is_grad_enabled() else None
        found = record(session.module, x, wanted, edits, graph=graph, rewriter=rewriter, head=session.head)
        found.rows = rows
        if rewriter is not None:
            session.matched += rewriter.matched
            if rewriter.plain and not rewriter.table.strict:
                session.notes["activations with their ordinary gradient"] = rewriter.plain
        session.evaluations += len(x)
        if session.progress is not None:
            session.progress(len(x))
        return found

    def _target(self, activations: Activations) -> Tensor:
        scores = self.session.target(activations)
        if scores.shape != activations.rows.shape:
            raise UsageError(
                f"a target gives one number per image, shape {tuple(activations.rows.shape)}; got {tuple(scores.shape)}"
            )
        return scores

    def _pull(self, x: Tensor, rows: Tensor, at: str) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            here = at == self.session.at
            leaf = x.detach().requires_grad_() if here else x.detach()
            found = self._run(leaf, rows, (at,), (at,))
            leaf = leaf if here and at != "input" else found[at]
            scores = self._target(found)
        gradient = None
        if scores.requires_grad:
            gradient = _derivative(scores, leaf)
        if gradient is None:
            raise UnsupportedError(
                f"the target does not depend on {at!r}: it comes before, or the network cuts the gradient in between"
            )
        return found[at].detach(), gradient, scores.detach()


def _derivative(scores: Tensor, leaf: Tensor) -> Tensor | None:
    try:
        return torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0]
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        if "inplace operation" in line or "heckpoint" in line + type(error).__name__:
            message = f"the network cannot be run backwards: {line}; methods such as occlusion need not"
            raise UnsupportedError(message) from error
        raise
