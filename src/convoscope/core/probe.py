"""The only thing through which a method touches a network."""

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convoscope.core.backward import apart, backward, derivatives, joined, out_of_memory, rows_of, secant
from convoscope.core.errors import ConvoscopeError, UnsupportedError, UsageError
from convoscope.core.geometry import Field
from convoscope.core.operators import Rewriter, RuleTable
from convoscope.core.passes import Window, hidden, patched, resumed
from convoscope.core.placing import placed
from convoscope.core.record import Activations, Collector, Edit, Observers, record
from convoscope.core.session import Answers, Progress, Scoring, Session, Shared

__all__ = ["Answers", "Probe", "Progress", "Scoring", "Session", "Shared"]

Place = str | type[Collector]
Edits = Mapping[str, Edit] | None
T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """A network, a target and a batch of rows, each of which belongs to an image.

    Every call takes one tensor row per row of the probe, splits it into batches, and counts it. Random draws depend on the
    seed, the place of the image and the number of the draw, never on the batch size or the device. Where several methods or
    targets are explained in one call, whatever was already computed for the same input is not computed again.
    """

    session: Session
    rows: Int64[Tensor, " rows"]
    keys: tuple[tuple[int, ...], ...]

    # ---- asking the network
    def score(self, x: Tensor, edits: Edits = None) -> Float[Tensor, " rows"]:
        """The target of each row, without gradients; `edits` replace named tensors on their way."""
        answers = self._memory()
        with torch.no_grad():
            if answers is not None and not edits:
                return self._target(self._answered(x, answers))
            return torch.cat([self._target(found) for found in self._each(x, lambda b, rows: self._run(b, rows, edits=edits))])

    def shared_score(self, x: Tensor) -> Float[Tensor, " rows"]:
        """The target of each row if all rows had the one input `x` `(1, ...)`: a single evaluation."""
        if self.session.at != "input":
            return self.score(x.expand(len(self.rows), *x.shape[1:]))
        answers, one = self._memory(), replace(self, rows=self.rows[:1], keys=self.keys[:1])
        with torch.no_grad():
            found = self._run(x, self.rows[:1]) if answers is None else one._answered(x, answers)
            every = {k: v.expand(len(self.rows), *v.shape[1:]) for k, v in found.items()}
            return self._target(Activations.of(every, self.rows))

    def activations(self, x: Tensor, at: str) -> Tensor:
        """The tensor at an address, without gradients."""
        if x is self.session.shared.x:
            for found in self.session.shared.planned.values():
                if at in found:
                    return found[at][0]
        with torch.no_grad():
            found = torch.cat(list(self._each(x, lambda b, rows: self._run(b, rows, (at,), only=True)[at])))
        return self.session.watched(found)

    def grad(self, x: Tensor, at: str | None = None, edits: Edits = None) -> Tensor:
        """The gradient of the target with respect to `x`, or to the tensor at another address, row by row."""
        return self.activations_and_gradients(x, at, edits)[1]

    def activations_and_gradients(self, x: Tensor, at: str | None = None, edits: Edits = None) -> tuple[Tensor, Tensor]:
        """The tensor at an address (default: `x` itself) and the gradient of the target with respect to it."""
        at = self.session.at if at is None else at
        return self.gradients(x, (at,), edits)[at]

    def grad_and_score(self, x: Tensor, edits: Edits = None) -> tuple[Tensor, Float[Tensor, " rows"]]:
        """The gradient of the target with respect to `x`, and the target itself, from one pass."""
        found = self.gradients(x, (self.session.at,), edits)
        return found[self.session.at][1], found["score"]

    def gradients(self, x: Tensor, at: Sequence[Place], edits: Edits = None) -> dict[Any, Any]:
        """One pass there and back: (tensor, gradient of the target with respect to it) for each address in `at`.

        For a Collector among them, what it found, by name. The target itself stands under "score".
        """
        session = self.session
        planned = session.shared.planned.get(session.target, {}) if x is session.shared.x else {}
        if session.composite is None and not edits and {*at, "score"} <= planned.keys():
            return planned
        return self._gradients(x, at, (session.target,), edits)[0]

    def plan(self, x: Tensor, at: Sequence[Place], targets: Sequence[Scoring]) -> None:
        """Computes `gradients` of several targets at `x` with one pass there, for whoever asks for them later."""
        found = self._gradients(x, at, targets)
        self.session.shared.planned.update(zip(targets, found, strict=True))

    def contrast(
        self, x: Tensor, reference: Tensor, *more: Tensor
    ) -> tuple[Tensor, Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """What the rules send back from the target's difference between `x` and `reference`, and the target of each.

        All run in one pass: rules see the rows of `x`, then those of `reference`, then those of `more`. The target hands
        back its mean gradient between the two, so that its own curvature loses nothing. With `more`, what arrives at `x` and
        at each of those, `(rows, 1 + more, ...)`.
        """
        parts = self._each(x, self._contrast, reference, *more)
        multipliers, scores, references = (torch.cat(p) for p in zip(*parts, strict=True))
        return multipliers if more else multipliers[:, 0], scores, references

    def everything(self, addresses: Sequence[str], x: Tensor | None = None) -> Activations:
        """The tensors at some addresses for images, one row of the probe each, without gradients (default: all there are)."""
        images = replace(self, session=replace(self.session, at="input"))
        with torch.no_grad():
            x = self.session.images if x is None else x
            run = images._each(x, lambda b, rows: images._run(b, rows, tuple(addresses), only=True))
            parts = list(run)
        self.session.evaluations += len(self.rows)
        return Activations.of({a: rows_of([p[a] for p in parts]) for a in addresses}, self.rows)

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

    @contextlib.contextmanager
    def aiming(self, target: Scoring) -> Iterator[None]:
        """Inside, another target is asked for."""
        outer, self.session.target = self.session.target, target
        try:
            yield
        finally:
            self.session.target = outer

    # ---- many local changes
    def patched(self, x: Tensor, fill: Tensor, windows: Sequence[Window]) -> Float[Tensor, "rows windows"]:
        """The target of each row of `x` with each window in turn showing `fill` instead; of no area, that of `x` itself."""
        if (found := patched(self, x, fill, windows)) is not None:
            return found
        parts = []
        for block in self.blocks(len(windows)):
            found = self.repeat(block).score(hidden(x, fill, [windows[k] for k in block]).flatten(0, 1))
            parts.append(found.unflatten(0, (len(x), len(block))))
        return torch.cat(parts, 1)

    def score_at(self, x: Tensor, layer: str, values: Tensor) -> Float[Tensor, " rows"]:
        """The target of each row of `x` if the tensor at `layer` were `values`: many rows of an image at once cost little.

        `x` may hold one row for each image where several rows of `values` in turn belong to it.
        """
        with torch.no_grad():
            if (found := resumed(self, x, layer, values)) is not None:
                return found
            x = x.repeat_interleave(len(values) // len(x), 0)
            run = self._each(x, lambda b, rows, v: self._run(b, rows, edits={layer: lambda _: v.clone()}), values)
            return torch.cat([self._target(found) for found in run])

    # ---- what a method needs besides
    def once(self, x: Tensor, key: Hashable, make: Callable[[], T], target: bool = True) -> T:
        """What `make` gives, made once for all methods of a call that ask for `key` at the images `x` they were given.

        `target`: it depends on the target.
        """
        if x is not self.session.shared.x:
            return make()
        memo, key = self.session.shared.memo, (key, self.session.target if target else None)
        if key not in memo:
            memo[key] = make()
        return memo[key]

    def baseline(self, which: Any, x: Tensor) -> Tensor:
        """The baseline of each row by name, number or tensor, in the space of `x` (at a layer: that of the baseline image)."""
        return _known(self.session.baseline, "input space")(which, x, self)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Black and white in input space, `(1, C, 1, 1)` each."""
        return _known(self.session.bounds, "input space")()

    def picture(self, x: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """The pixels 0..1 of the rows' images, in color; of `x` itself where it is images."""
        images = x if self.session.at == "input" else self.session.images[self.rows.to(self.session.images.device)]
        return _known(self.session.picture, "input space")(images)

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
        return _known(self.session.tail, "trace of the network")(layer)

    def field(self, layer: str) -> Field | None:
        """The receptive field of the tensor at an address."""
        return _known(self.session.field, "trace of the network")(layer)

    def place(self, maps: Tensor, layer: str) -> Tensor:
        """Maps `(rows, C, h, w)` of a layer at input size, bilinear between the centers of receptive fields."""
        return placed(maps, self.field(layer), tuple(self.session.images.shape[2:]))

    def note(self, name: str, value: Any) -> None:
        """Put a diagnostic into the result: one value for each image, or one for all.

        Values of repeated rows are left out: what holds for a noisy copy says nothing of the mean over copies.
        """
        if isinstance(value, Tensor):
            if any(len(key) > 1 for key in self.keys):
                return
            value = self.session.notes.get(name, []) + value.detach().cpu().double().reshape(-1).tolist()
        self.session.notes[name] = value

    # ---- many rows for each image
    def blocks(self, total: int) -> Iterator[range]:
        """0 .. total in ranges whose copies of all rows fill about one batch."""
        start = 0
        while start < total:
            size = max(1, self.session.batch_size // max(1, len(self.rows)))
            yield range(start, min(start + size, total))
            start += size

    def repeat(self, copies: Sequence[int]) -> "Probe":
        """A probe of every row once for each number in `copies` (rows first, copies fastest), with draws of their own."""
        keys = tuple((*key, c) for key in self.keys for c in copies)
        return replace(self, rows=self.rows.repeat_interleave(len(copies)), keys=keys)

    # ---- random draws
    def normal(self, x: Tensor, draw: int = 0) -> Tensor:
        """Standard normal noise, shaped like `x`."""
        return self._draw(x, draw, lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float32, device="cpu"))

    def uniform(self, x: Tensor, draw: int = 0) -> Tensor:
        """Noise uniform in 0..1, shaped like `x`."""
        return self._draw(x, draw, lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float32, device="cpu"))

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
    def _each(self, x: Tensor, run: Callable[..., T], *others: Tensor) -> Iterator[T]:
        """`run(batch, rows, ...)` for each batch; batches are halved where memory does not suffice and that is allowed."""
        if len(x) != len(self.rows):
            raise UsageError(f"a probe of {len(self.rows)} rows got {len(x)}; use probe.repeat(copies) for several per image")
        session, start = self.session, 0
        while start < len(x):
            part = slice(start, start + session.batch_size)
            try:
                found = run(x[part], self.rows[part], *(t[part] for t in others))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(error)
                continue
            yield found
            start = part.stop

    def _halve(self, error: RuntimeError) -> None:
        session = self.session
        if not session.adaptive or session.batch_size == 1:
            advice = "use a smaller batch_size, or 'auto'" if session.batch_size > 1 else "use a smaller picture"
            raise ConvoscopeError(f"out of memory with batch_size {session.batch_size}; {advice}") from error
        session.batch_size //= 2
        session.notes["batch size halved to"] = session.batch_size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _memory(self) -> Answers | None:
        """The answers of earlier inputs, if there are any and they hold what the target reads."""
        answers = self.session.shared.answers
        return answers if answers is not None and {*self.session.target.addresses()} <= {*answers.addresses} else None

    def _answered(self, x: Tensor, answers: Answers) -> Activations:
        """Activations at the addresses of all targets, of inputs seen before from memory."""
        keys = answers.keys(x, None if self.session.at == "input" else self.rows)
        new = list({k: i for i, k in reversed(list(enumerate(keys))) if not answers.known(k)}.values())[::-1]
        fresh: dict[Hashable, Any] = {}
        if new:
            index = torch.tensor(new, device=x.device)
            some = replace(self, rows=self.rows[index.to(self.rows.device)], keys=tuple(self.keys[i] for i in new))
            run = some._each(x[index], lambda b, rows: self._run(b, rows, answers.addresses, only=True))
            parts = list(run)
            found = {a: rows_of([p[a] for p in parts]) for a in answers.addresses}
            answers.keep([keys[i] for i in new], found)
            fresh = {keys[i]: (found, k) for k, i in enumerate(new)}
        places = [fresh.get(k) or answers.place(k) for k in keys]
        every = {a: rows_of([found[a][i : i + 1] for found, i in places]) for a in answers.addresses}
        return Activations.of(every, self.rows)

    def _run(
        self, x: Tensor, rows: Tensor, capture: tuple[str, ...] = (), graph: tuple[str, ...] = (), edits: Edits = None,
        only: bool = False, observer: Observers | None = None,
    ) -> Activations:  # fmt: skip
        session = self.session
        edits = dict(edits or {})
        if session.at != "input":
            entry = x
            edits[session.at] = lambda _: entry.clone()  # the network may overwrite it
            x = session.images[rows.to(session.images.device)]
        wanted = capture if only else (*session.target.addresses(), *capture)
        rewriter = Rewriter(session.composite) if session.composite is not None and torch.is_grad_enabled() else None
        found = record(
            session.module, x, wanted, edits, graph=graph, rewriter=rewriter, head=session.head, observer=observer
        )  # fmt: skip
        found.rows = rows
        if rewriter is not None:
            session.matched += rewriter.matched
            if rewriter.plain and not rewriter.table.strict:
                session.notes["activations with their ordinary gradient"] = rewriter.plain
        session.evaluations += len(x)
        if session.progress is not None:
            session.progress(len(x))
        return found

    def _target(self, activations: Activations, target: Scoring | None = None) -> Tensor:
        scores = (target or self.session.target)(activations)
        if scores.shape != activations.rows.shape:
            raise UsageError(
                f"a target gives one number per image, shape {tuple(activations.rows.shape)}; got {tuple(scores.shape)}"
            )
        return self.session.watched(scores)

    def _gradients(
        self, x: Tensor, at: Sequence[Place], targets: Sequence[Scoring], edits: Edits = None
    ) -> list[dict[Any, Any]]:
        """For each target what `gradients` gives."""
        parts = list(self._each(x, lambda b, rows: self._pull(b, rows, at, targets, edits)))
        return parts[0] if len(parts) == 1 else [joined([p[t] for p in parts]) for t in range(len(targets))]

    def _pull(
        self, x: Tensor, rows: Tensor, at: Sequence[Place], targets: Sequence[Scoring], edits: Edits
    ) -> list[dict[Any, Any]]:
        here = self.session.at
        names = tuple(dict.fromkeys(a for a in at if isinstance(a, str)))
        collectors = [(kind, kind()) for kind in dict.fromkeys(at) if not isinstance(kind, str)]
        addresses = tuple(dict.fromkeys(a for t in targets for a in t.addresses()))
        with torch.enable_grad():
            leaf = x.detach().requires_grad_() if here in names or not names else x.detach()
            graph = names if names or here != "input" else ("input",)
            observer = Observers([c for _, c in collectors]) if collectors else None
            found = self._run(leaf, rows, (*addresses, *names), graph, edits, only=True, observer=observer)
            leaves = [leaf if a == here != "input" else found[a] for a in names] or [leaf]
            scores = [self._target(found, t) for t in targets]
            out: list[dict[Any, Any]] = []
            for k, score in enumerate(scores):
                gradients = derivatives(score, leaves, retain=k + 1 < len(scores))
                for name, gradient in zip(names, gradients, strict=False):
                    if gradient is None:
                        raise apart(name, self.session.composite)
                both = zip(names, gradients, strict=False)
                values = {a: (found[a].detach().contiguous(), g.contiguous()) for a, g in both if g is not None}
                for kind, collector in collectors:
                    values[kind], collector.found = collector.found, {}  # type: ignore[index, assignment]
                out.append({**values, "score": score.detach()})
        return out

    def _contrast(self, x: Tensor, rows: Tensor, reference: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        addresses, groups = self.session.target.addresses(), 2 + len(more)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (x, *more)]
            every = torch.cat([leaves[0], reference.detach(), *leaves[1:]])
            found = self._run(every, torch.cat([rows] * groups), addresses, only=True)
            halves = [{a: found[a].detach()[k * len(x) : (k + 1) * len(x)] for a in addresses} for k in (0, 1)]
            slopes = secant(lambda point: self._target(Activations.of(point, rows)), halves[1], halves[0])
            seeds = [torch.cat([slopes[a], *[torch.zeros_like(slopes[a])] * (groups - 1)]) for a in addresses]
            pulled = backward([found[a] for a in addresses], leaves, seeds)
        scores = [self._target(Activations.of(half, rows)).detach() for half in halves]
        if pulled[0] is None:
            raise apart(self.session.at, self.session.composite)
        return torch.stack([torch.zeros_like(x) if p is None else p for p in pulled], 1), scores[0], scores[1]


def _known(thing: Callable[..., T] | None, what: str) -> Callable[..., T]:
    if thing is None:
        raise UsageError(f"this probe knows no {what}")
    return thing
