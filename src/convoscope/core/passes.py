"""Passes replayed for many windows of an image, or for many tensors at a layer."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convoscope.core.backward import out_of_memory
from convoscope.core.incremental import Clean, Replay, Unreplayable
from convoscope.core.record import Activations, record
from convoscope.core.replay import Patch
from convoscope.core.session import Scoring, Session

Window = tuple[slice, slice]
SMALL = 64  # windows at a time: what few windows reach together is less than what many do
# What an operator that nobody saw raises on a tensor without data; a full pass tells whether it is the network's own.
HIDDEN = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


def hidden(x: Tensor, fill: Tensor, windows: Sequence[Window]) -> Tensor:
    """Each row of `x` with each window in turn showing `fill`, `(rows, windows, C, H, W)`."""
    out = x[:, None].repeat(1, len(windows), *[1] * (x.dim() - 1))
    for k, window in enumerate(windows):
        out[:, k, :, *window] = fill[:, :, *window]
    return out


def patched(probe: Any, x: Tensor, fill: Tensor, windows: Sequence[Window]) -> Tensor | None:
    """The target of each row of `x` with `fill` shown in each window; None where the network cannot be replayed.

    A call of an operator reads and writes about `session.memory` bytes at most, by default what `batch_size` rows of a full
    pass need. One window of each image is shown to the network as ever, and is to give the same. All targets that are
    asked for at these images are answered at once.
    """
    session, shared, fill = probe.session, probe.session.shared, fill.expand_as(x)
    if not _worth(session, len(windows) * x[0].numel()) or x.dim() != 4 or len(windows) < 4:
        return None
    targets = shared.targets if x is shared.x and session.target in shared.targets else (session.target,)
    key = ("patched", targets, _content(fill), *((w.start, w.stop) for window in windows for w in window))
    with torch.no_grad():
        found = probe.once(x, key, lambda: _patched(probe, x, fill, windows, targets), target=False)
    return None if found is None else found[session.target]


def _patched(
    probe: Any, x: Tensor, fill: Tensor, windows: Sequence[Window], targets: Sequence[Any]
) -> dict[Any, Tensor] | None:
    found = {t: x.new_zeros(len(x), len(windows)) for t in targets}
    sides = x.shape[2:]

    def alike(k: int) -> list[tuple[int, int]]:  # what a window reaches ends at the border: first those as near to it
        return [(w.stop - w.start, min(w.start, n - w.stop)) for w, n in zip(windows[k], sides, strict=True)]

    order = sorted(range(len(windows)), key=alike)
    try:
        for i, row in enumerate(probe.rows.tolist()):
            passes = _Passes(probe, targets, row, x[i : i + 1])
            for block, values in passes.patched(fill[i : i + 1], [windows[k] for k in order]):
                values.rows = probe.rows[i].expand(len(block))
                for target in targets:
                    found[target][i, [order[k] for k in block]] = probe._target(values, target).to(x)
    except Unreplayable:
        probe.session.replays = False
        return None
    return found


def resumed(probe: Any, x: Tensor, layer: str, values: Tensor) -> Tensor | None:
    """The target of each row of `x` with that row of `values` at `layer`; None where that is no gain, or not possible.

    The first row of each image runs as ever, and is to give the same.
    """
    session, rows, each, groups = probe.session, probe.rows.tolist(), len(values) // len(x), []
    if not _worth(session, len(rows) * session.images[0].numel()):
        return None
    for i, row in enumerate(rows):
        group = next((g for g in groups if rows[g[0]] == row and _equal(x[g[0] // each], x[i // each])), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
    if len(rows) != len(values) or len(rows) < 3 * len(groups):
        return None
    out = values.new_zeros(len(rows))
    try:
        for group in groups:
            passes = _Passes(probe, (session.target,), rows[group[0]], x[group[0] // each][None])
            for block, found in passes.resumed(layer, values[group]):
                places = [group[k] for k in block]
                found.rows = probe.rows[places]
                out[places] = probe._target(found).to(out)
    except Unreplayable:
        session.replays = False
        return None
    return out


def _worth(session: Session, numbers: int) -> bool:
    """Whether inputs of so many numbers in all are better replayed than run."""
    return numbers >= 1 << 20 if session.replays is None else session.replays


def _content(tensor: Tensor) -> str:
    """A short name for the numbers in a tensor."""
    return hashlib.blake2b(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


class _Passes:
    """Passes of one row `x` `(1, ...)`: of the image, or what takes the place of the tensor at the session's address."""

    def __init__(self, probe: Any, targets: Sequence[Scoring], row: int, x: Tensor) -> None:
        session: Session = probe.session
        self.session, self.halve, self.x = session, probe._halve, x
        self.addresses = tuple(dict.fromkeys(a for t in targets for a in t.addresses()))
        self.image = x if session.at == "input" else session.images[row : row + 1]

    def run(self, x: Tensor, image: Tensor, **layers: Tensor) -> Activations:
        """One pass, with tensors in the places of those at some layers."""
        session = self.session
        session.evaluations += len(x)
        if session.progress is not None:
            session.progress(len(x))
        if session.at != "input":
            layers[session.at] = x
        edits = {a: lambda _, t=t: t.clone() for a, t in layers.items()}
        return record(session.module, x if session.at == "input" else image, self.addresses, edits, head=session.head)

    def clean(self, **layers: Tensor) -> tuple[Clean, Activations]:
        """A pass of the row itself, noted."""
        clean = Clean()
        x, image, layers = clean.known(self.x[:]), clean.known(self.image[:]), {a: clean.known(t) for a, t in layers.items()}
        with clean:
            return clean, self.run(x, image, **layers)

    def again(self, clean: Clean, entry: Patch, rows: int, **layers: Tensor) -> tuple[Activations, int]:
        """The noted pass for many rows, and how many bytes a call in it read and wrote at most."""
        replay = Replay(clean, rows)
        x, image = replay.stand_in(entry), replay.stand_in(Patch(self.image))
        with replay:
            held = self.run(x, image, **layers)
        return Activations({a: replay.real(t) for a, t in held.items()}), replay.largest

    def patched(self, fill: Tensor, windows: Sequence[Window]) -> Iterator[tuple[range, Activations]]:
        clean, _ = self.clean()
        number = len(windows) // 2
        expected = self.run(hidden(self.x, fill, windows[number : number + 1])[:, 0], self.image)

        def replay(block: range) -> tuple[Activations, int]:
            return self.again(clean, _shown(self.x, fill, windows[block.start : block.stop]), len(block))

        for block, found in self._batches(len(windows), clean, replay, max(SMALL, self.session.batch_size)):
            if number in block:
                _compare(found, number - block.start, expected)
            yield block, found

    def resumed(self, layer: str, values: Tensor) -> Iterator[tuple[range, Activations]]:
        clean, expected = self.clean(**{layer: values[:1]})

        def replay(block: range) -> tuple[Activations, int]:
            return self.again(clean, Patch(self.x), len(block), **{layer: values[block.start : block.stop]})

        for block, found in self._batches(len(values), clean, replay):
            if not block.start:
                _compare(found, 0, expected)
            yield block, found

    def _batches(
        self, total: int, clean: Clean, replay: Callable[[range], tuple[Activations, int]], limit: int = 1 << 30
    ) -> Iterator[tuple[range, Activations]]:
        """What `replay` finds for 0 .. total, as many at a time as fit into memory, by what the batch before took."""
        session = self.session
        most = session.batch_size * clean.largest if session.memory is None else session.memory
        start, size = 0, min(session.batch_size, max(1, most // clean.largest))
        while start < total:
            block = range(start, min(start + size, total))
            try:
                found, bytes_ = replay(block)
            except HIDDEN as error:
                if not (isinstance(error, RuntimeError) and out_of_memory(error)):
                    raise Unreplayable(str(error)) from error
                if size <= session.batch_size:
                    self.halve(error)
                most, size = 0, session.batch_size
                continue
            yield block, found
            start += size
            size = min(limit, max(1, len(block) * most // max(1, bytes_))) if most else session.batch_size


def _shown(x: Tensor, fill: Tensor, windows: Sequence[Window]) -> Patch:
    """The row with each window in turn filled."""
    size = [max(1, *(w[axis].stop - w[axis].start for w in windows)) for axis in (0, 1)]
    starts = [torch.tensor([min(w[a].start, x.shape[2 + a] - size[a]) for w in windows], device="cpu") for a in (0, 1)]
    values = Patch(x).framed((starts[0], starts[1]), (size[0], size[1]), (2, 3)).expand(len(windows), -1, -1, -1).clone()
    for k, (rows, columns) in enumerate(windows):
        top, left = rows.start - int(starts[0][k]), columns.start - int(starts[1][k])
        part = fill[0, :, rows, columns]
        values[k, :, top : top + part.shape[1], left : left + part.shape[2]] = part
    return Patch(x, values, (starts[0], starts[1]))


def _compare(found: Mapping[str, Tensor], row: int, expected: Mapping[str, Tensor]) -> None:
    for address, tensor in found.items():
        sure = expected[address][0]
        error = {torch.float64: 1e-9, torch.float32: 1e-4}.get(sure.dtype, 3e-2)
        scale = float(sure.abs().max()) if sure.numel() else 0.0
        if tensor[row].shape != sure.shape or not torch.allclose(tensor[row], sure, error, error * scale, equal_nan=True):
            raise Unreplayable(f"replaying gives other values at {address!r}")
