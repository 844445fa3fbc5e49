"""Rectangles of changed values, and what each operator makes of them.

A `Patch` is a tensor of many rows that all equal one clean tensor outside a rectangle. A rule turns the patches that an
operator was given into that of its result, exactly; where it gives None, the operator runs on whole tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.operators import ACTIVATIONS, LINEAR


def names(text: str) -> frozenset[str]:
    """Names of operators from a line of them."""
    return frozenset(text.split())


FULL = 0.8  # a rectangle that covers more of the map than this is not worth cutting out
Starts = tuple[Tensor, Tensor]


@dataclass
class Patch:
    """Rows that equal `clean` `(1, ...)` but for the rectangle `values` `(rows, ...)`, which starts at `y`, `x` in each row.

    `axes` are those of rows and columns. Without `values` nothing changed.
    """

    clean: Tensor
    values: Tensor | None = None
    starts: Starts = (torch.empty(0, device="cpu"), torch.empty(0, device="cpu"))
    axes: tuple[int, int] = (2, 3)

    @property
    def grid(self) -> tuple[int, int]:
        return self.clean.shape[self.axes[0]], self.clean.shape[self.axes[1]]

    @property
    def size(self) -> tuple[int, int]:
        assert self.values is not None
        return self.values.shape[self.axes[0]], self.values.shape[self.axes[1]]

    def take(self, where: Starts, outside: float = 0.0) -> Tensor:
        """The values at some rows and columns `(rows, h)`, `(rows, w)` of each; `outside` where there are none."""
        source, device = [_lines(self.clean, self.axes)], self.clean.device
        index, known = _index(where, self.grid, device)
        last = len(source[0])  # the first line after those so far
        if not bool(known.all()):
            source.append(source[0].new_full((1, source[0].shape[1]), outside))
            index, last = torch.where(known, index, last), last + 1
        if self.values is not None:
            local, inside = _index([w - s[:, None] for w, s in zip(where, self.starts, strict=True)], self.size, device)
            source.append(_lines(self.values, self.axes))
            row = last + self.size[0] * self.size[1] * torch.arange(len(self.values), device=device)[:, None, None]
            index = torch.where(inside, row + local, index)
        found = F.embedding(index, torch.cat(source))
        rest = [n for i, n in enumerate(self.clean.shape) if i and i not in self.axes]
        return (found.unflatten(3, rest) if rest else found[..., 0]).movedim((1, 2), self.axes)

    def whole(self, rows: int) -> Tensor:
        """All values."""
        if self.values is None:
            return self.clean.expand(rows, *self.clean.shape[1:])
        return self.take(tuple(torch.arange(n, device="cpu").expand(rows, n) for n in self.grid))  # type: ignore[arg-type]

    def framed(self, starts: Starts, size: tuple[int, int], axes: tuple[int, int]) -> Tensor:
        """The values in another rectangle of each row; of an unchanged map of one row and column, that one."""
        if self.values is None:
            same = replace(self, axes=axes)
            return self.clean if same.grid == (1, 1) else same.take(_ranges(starts, size))
        if self.size == size and all(torch.equal(a, b) for a, b in zip(self.starts, starts, strict=True)):
            return self.values
        return self.take(_ranges(starts, size))


def _lines(tensor: Tensor, axes: tuple[int, int]) -> Tensor:
    """A tensor `(n, ...)` as one line for each position, `(n * h * w, the rest)`."""
    moved = tensor.movedim(axes, (1, 2))
    return moved.reshape(moved.shape[:3].numel(), -1)


def _index(where: Sequence[Tensor], size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers of places `(rows, h, w)` in a map of some size, and which of them lie in it."""
    rows, columns = ((w >= 0) & (w < n) for w, n in zip(where, size, strict=True))
    index = where[0].to(device)[:, :, None] * size[1] + where[1].to(device)[:, None]
    return index, rows.to(device)[:, :, None] & columns.to(device)[:, None]


def _ranges(starts: Starts, size: Sequence[int]) -> Starts:
    return tuple(s[:, None] + torch.arange(n, device="cpu") for s, n in zip(starts, size, strict=True))  # type: ignore[return-value]


@dataclass
class Local:
    """One call of an operator that was given patches: its arguments with patches in their places, and its clean results."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    clean: list[Tensor]
    rows: int
    patches: list[Patch]
    others: list[Tensor]

    def given(self, order: str, **default: Any) -> dict[str, Any]:
        """The arguments by name."""
        return {**default, **dict(zip(order.split(), self.args, strict=False)), **self.kwargs}

    def shaped(self) -> list[Tensor] | None:
        """The results' shapes and strides, were the first argument laid out in order, without data; None if rows move."""
        first = self.args[0] if self.args else None
        if not isinstance(first, Patch) or self.others or len(self.patches) > 1:
            return None
        held = torch.empty((self.rows, *first.clean.shape[1:]), dtype=first.clean.dtype, device="meta")
        out = self.func(held, *self.args[1:], **self.kwargs)
        found = [out] if isinstance(out, Tensor) else list(out)
        same = all(t.shape == (self.rows, *c.shape[1:]) for t, c in zip(found, self.clean, strict=True))
        return found if same else None


def replayed(call: Local) -> list[Patch] | Tensor | None:
    """What a call makes of patches; None where it has to run on whole tensors."""
    changed = [p for p in call.patches if p.values is not None]
    if not all(c.dim() and c.shape[0] == 1 for c in call.clean):
        return None
    if not changed:
        safe = call.name in ROWWISE or (call.name in RULES and (call.name not in SHAPED or call.shaped() is not None))
        return [Patch(c) for c in call.clean] if safe else None
    rule = RULES.get(call.name)
    if rule is None or any(p.axes != changed[0].axes for p in changed):
        return None
    return rule(call, changed)


def filled(value: Any, turn: Callable[[Any], Any]) -> Any:
    """Nested arguments with what `turn` makes of their tensors and patches."""
    if type(value) in (tuple, list, torch.Size):
        return type(value)([filled(v, turn) for v in value])
    if isinstance(value, dict):
        return {k: filled(v, turn) for k, v in value.items()}
    return turn(value) if isinstance(value, Patch | Tensor) else value


def _together(changed: list[Patch]) -> tuple[Starts, tuple[int, int]] | None:
    """The smallest rectangle of each row around all patches, of one size for all; None where that is nearly everything."""
    if len(changed) == 1:
        return changed[0].starts, changed[0].size
    if len({p.grid for p in changed}) > 1:
        return None
    starts, size = [], []
    for axis, total in enumerate(changed[0].grid):
        low = torch.stack([p.starts[axis] for p in changed]).amin(0)
        high = torch.stack([p.starts[axis] + p.size[axis] for p in changed]).amax(0)
        size.append(int((high - low).max()))
        starts.append(low.clamp(max=total - size[-1]))
    return None if _nearly_all(size, changed[0].grid) else ((starts[0], starts[1]), (size[0], size[1]))


def _nearly_all(size: Sequence[int], grid: Sequence[int]) -> bool:
    return size[0] * size[1] > FULL * grid[0] * grid[1]


# ---- rules
def _pointwise(call: Local, changed: list[Patch]) -> list[Patch] | None:
    """Operators that go by single positions, of one or more tensors that are broadcast."""
    axes, dims = changed[0].axes, changed[0].clean.dim()
    frame = _together(changed)
    if frame is None or any(t.dim() != dims for t in (call.clean[0], *(p.clean for p in call.patches))):
        return None
    grids = [Patch(p.clean, axes=axes).grid for p in call.patches if p.values is None] + [Patch(call.clean[0], axes=axes).grid]
    if grids[-1] != changed[0].grid or any(g not in ((1, 1), changed[0].grid) for g in grids):
        return None
    if any(c.dim() > dims or any(c.dim() >= dims - a and c.shape[a - dims] > 1 for a in axes) for c in call.others):
        return None
    return _local(call, frame, axes)


def _local(call: Local, frame: tuple[Starts, tuple[int, int]], axes: tuple[int, int]) -> list[Patch] | None:
    """The call itself, on the rectangles."""

    def turn(value: Any) -> Any:
        return value.framed(*frame, axes) if isinstance(value, Patch) else value

    out = call.func(*filled(call.args, turn), **filled(call.kwargs, turn))
    return [Patch(call.clean[0], out, frame[0], axes)]


def _along_axes(call: Local, changed: list[Patch]) -> list[Patch] | None:
    """Operators with settings for axis 1 (a batch norm, PReLU) or the last axes (linear, layer norm), none of them moving."""
    patch, shape = changed[0], call.given("input shape").get("normalized_shape", call.given("input shape").get("shape"))
    last = {"linear": 1, "layer_norm": len(shape) if isinstance(shape, tuple | list) else 1}.get(call.name, 0)
    own = {1} if not last else set(range(patch.clean.dim() - last, patch.clean.dim()))
    if own & {*patch.axes} or len(changed) > 1 or call.given("input m v w b training", training=False)["training"] is True:
        return None
    return _local(call, (patch.starts, patch.size), patch.axes)


def _joined(call: Local, changed: list[Patch]) -> list[Patch] | None:
    """Concatenation along an axis other than rows and columns."""
    given, frame, axes = call.given("tensors dim", dim=0), _together(changed), changed[0].axes
    dim = given.get("axis", given["dim"]) % changed[0].clean.dim()
    if frame is None or dim in (0, *axes) or call.others:
        return None
    if any(Patch(p.clean, axes=axes).grid != changed[0].grid for p in call.patches):
        return None
    return _local(call, frame, axes)


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value] * (2 // len(value))


@dataclass
class Sliding:
    """How a kernel slides along rows and columns."""

    kernel: list[int]
    stride: list[int]
    before: list[int]
    dilation: list[int]

    def reached(self, patch: Patch, grid: Sequence[int]) -> tuple[Starts, tuple[int, int]] | None:
        """The rectangle of outputs that read the patch; None where it is nearly all of them."""
        starts, size = [], []
        for k, s, p, d, start, side, total in zip(
            self.kernel, self.stride, self.before, self.dilation, patch.starts, patch.size, grid, strict=True
        ):
            low = -torch.div((k - 1) * d - p - start, s, rounding_mode="floor")
            high = torch.div(start + side - 1 + p, s, rounding_mode="floor")
            low, high = low.clamp(0, total - 1), high.clamp(0, total - 1)
            size.append(max(1, int((high - low).max()) + 1))
            starts.append(low.clamp(max=total - size[-1]))
        return None if _nearly_all(size, grid) else ((starts[0], starts[1]), (size[0], size[1]))

    def read(self, patch: Patch, starts: Starts, size: Sequence[int], outside: float = 0.0) -> tuple[Tensor, list[int]]:
        """What those outputs read, and the stride with which a kernel slides over it."""
        where, strides = [], []
        for k, s, p, d, start, n in zip(self.kernel, self.stride, self.before, self.dilation, starts, size, strict=True):
            step = s if k == 1 else 1  # what a kernel of one never reads is left out
            length = n if k == 1 else (n - 1) * s + (k - 1) * d + 1
            where.append((start * s - p)[:, None] + step * torch.arange(length, device="cpu"))
            strides.append(1 if k == 1 else s)
        if self.kernel == self.stride == [1, 1] and self.before == [0, 0]:
            return patch.framed(starts, (size[0], size[1]), patch.axes), strides
        return patch.take((where[0], where[1]), outside), strides


def _convolved(call: Local, changed: list[Patch]) -> list[Patch] | None:
    given = call.given("input weight bias stride padding dilation groups", bias=None, stride=1, padding=0, dilation=1, groups=1)
    patch, weight = given["input"], given["weight"]
    if not isinstance(patch, Patch) or patch.axes != (2, 3) or len(call.patches) > 1 or patch.clean.dim() != 4:
        return None
    kernel, dilation = list(weight.shape[2:]), _pair(given["dilation"])
    if given["padding"] == "same":
        before = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    else:
        before = [0, 0] if given["padding"] == "valid" else _pair(given["padding"])
    sliding, clean = Sliding(kernel, _pair(given["stride"]), before, dilation), call.clean[0]
    if (frame := sliding.reached(patch, clean.shape[2:])) is None:
        return None
    read, stride = sliding.read(patch, *frame)
    return [Patch(clean, torch.conv2d(read, weight, given["bias"], stride, 0, dilation, given["groups"]), frame[0])]


def _pooled(call: Local, changed: list[Patch]) -> list[Patch] | None:
    largest, patch, clean = call.name == "max_pool2d", changed[0], call.clean[0]
    if patch.axes != (2, 3) or clean.dim() != 4 or len(call.clean) > 1:
        return None
    order = "stride padding dilation" if largest else "stride padding ceil_mode count_include_pad divisor_override"
    given = call.given(f"input kernel_size {order}", stride=None, padding=0, dilation=1, count_include_pad=True)
    kernel = _pair(given["kernel_size"])
    if given.get("divisor_override"):
        return None
    sliding = Sliding(kernel, _pair(given["stride"] or kernel), _pair(given["padding"]), _pair(given["dilation"]))
    if (frame := sliding.reached(patch, clean.shape[2:])) is None:
        return None
    read, stride = sliding.read(patch, *frame, outside=-torch.inf if largest else 0.0)
    if largest:
        return [Patch(clean, F.max_pool2d(read, kernel, stride, 0, sliding.dilation), frame[0])]
    sums = F.avg_pool2d(read, kernel, stride, divisor_override=1)
    counts = []
    for k, s, p, total, places in zip(kernel, sliding.stride, sliding.before, patch.grid, _ranges(*frame), strict=True):
        low = places * s - p
        high = (low + k).clamp(max=total + p)
        counts.append(high - low if given["count_include_pad"] else high.clamp(max=total) - low.clamp(min=0))
    area = (counts[0][:, None, :, None] * counts[1][:, None, None, :]).to(sums)
    return [Patch(clean, sums / area, frame[0])]


def _padded(call: Local, changed: list[Patch]) -> list[Patch] | None:
    given, patch = call.given("input pad mode value", mode="constant"), changed[0]
    dims, pad, mode = patch.clean.dim(), [*given["pad"], 0, 0], given["mode"]
    if min(pad) < 0 or len(pad) > 6 or patch.axes != (dims - 2, dims - 1):
        return None
    if mode == "constant":
        return [replace(patch, clean=call.clean[0], starts=(patch.starts[0] + pad[2], patch.starts[1] + pad[0]))]
    starts, where, size = [], [], []
    for n, both, start, side in zip(patch.grid, (pad[2:4], pad[:2]), patch.starts, patch.size, strict=True):
        source = F.pad(torch.arange(n, dtype=torch.float64, device="cpu")[None, None], both, mode)[0, 0].long()
        hit, place = (source >= start[:, None]) & (source < start[:, None] + side), torch.arange(len(source), device="cpu")
        low, high = torch.where(hit, place, len(source) - 1).amin(1), torch.where(hit, place, 0).amax(1)
        size.append(int((high - low).max()) + 1)
        starts.append(low.clamp(max=len(source) - size[-1]))
        where.append(source[starts[-1][:, None] + torch.arange(size[-1], device="cpu")])
    if _nearly_all(size, call.clean[0].shape[-2:]):
        return None
    return [Patch(call.clean[0], patch.take((where[0], where[1])), (starts[0], starts[1]), patch.axes)]


def _rearranged(call: Local, changed: list[Patch]) -> list[Patch] | None:
    """Views that leave rows and columns whole: permutations, parts of the channels, channels in groups.

    Where rows and columns are afterwards is read off the strides of an empty tensor.
    """
    patch, empty = changed[0], call.shaped()
    if empty is None or min(patch.grid) < 2:
        return None
    strides, out = torch.empty(patch.clean.shape, device="meta").stride(), []
    asked = [(strides[a], n) for a, n in zip(patch.axes, patch.grid, strict=True)]
    for tensor in empty:
        places = list(zip(tensor.stride(), tensor.shape, strict=True))
        if any(places.count(a) != 1 for a in asked):
            return None
        out.append((places.index(asked[0]), places.index(asked[1])))
    if call.name in SIZED:
        side = dict(zip(out[0], patch.size, strict=True))
        made: Any = patch.values.reshape([side.get(i, n) for i, n in enumerate(empty[0].shape)])  # type: ignore[union-attr]
    else:
        made = call.func(patch.values, *call.args[1:], **call.kwargs)
    values = [made] if isinstance(made, Tensor) else made
    return [Patch(c, v, patch.starts, axes) for c, v, axes in zip(call.clean, values, out, strict=True)]


def _reduced(call: Local, changed: list[Patch]) -> list[Patch] | Tensor | None:
    """Sums and means over all positions, by what changed; operators along other axes, position by position."""
    given, patch = call.given("input dim keepdim", dim=None, keepdim=False), changed[0]
    dims, dim = patch.clean.dim(), given["dim"]
    if dim is None or len(call.clean) > 1:
        return None
    over = {d % dims for d in ([dim] if isinstance(dim, int) else dim)}
    if over == set(patch.axes) and call.name in ("mean", "sum"):
        return _total(call, patch, given["keepdim"], call.name == "mean")
    if not over or over & {0, *patch.axes}:
        return None
    out = call.func(patch.values, *call.args[1:], **call.kwargs)
    gone = dims - out.dim()
    axes = tuple(a - sum(d < a for d in over) if gone else a for a in patch.axes)
    return [Patch(call.clean[0], out, patch.starts, axes)]  # type: ignore[arg-type]


def _total(call: Local, patch: Patch, keepdim: bool, mean: bool) -> Tensor:
    before = replace(patch, values=None).framed(patch.starts, patch.size, patch.axes)
    gain = patch.values.sum(patch.axes, keepdim=keepdim) - before.sum(patch.axes, keepdim=keepdim)  # type: ignore[union-attr]
    return call.clean[0] + (gain / (patch.grid[0] * patch.grid[1]) if mean else gain)


def _averaged(call: Local, changed: list[Patch]) -> list[Patch] | Tensor | None:
    patch, wanted = changed[0], call.clean[0].shape[2:]
    if patch.axes != (2, 3) or patch.clean.dim() != 4 or wanted not in ((1, 1), patch.grid):
        return None
    return _total(call, patch, True, True) if wanted == (1, 1) else [replace(patch, clean=call.clean[0])]


SIZED = names("view reshape flatten unflatten view_as reshape_as")
_VIEWS = SIZED | names(
    "permute transpose t T mT movedim swapaxes squeeze unsqueeze getitem chunk split tensor_split split_with_sizes unbind "
    "narrow select channel_shuffle"
)
_REDUCTIONS = names("mean sum amax amin softmax log_softmax logsumexp")
SHAPED = _VIEWS | _REDUCTIONS
RULES: dict[str, Callable[[Local, list[Patch]], list[Patch] | Tensor | None]] = {
    **dict.fromkeys(
        (ACTIVATIONS - {"prelu", "rrelu"})
        | names(
            "add sub rsub mul div rtruediv neg abs exp exp2 log log2 log1p expm1 sqrt rsqrt square pow erf sin cos atan "
            "reciprocal maximum minimum where lerp addcmul addcdiv clone contiguous detach data to type float double half "
            "bfloat16 dropout dropout2d alpha_dropout feature_alpha_dropout logsigmoid hardshrink softshrink tanhshrink copy "
            "sign"
        ),
        _pointwise,
    ),
    **dict.fromkeys(("batch_norm", "prelu", "linear", "layer_norm"), _along_axes),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pooled),
    **dict.fromkeys(_VIEWS, _rearranged),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    "conv2d": _convolved, "cat": _joined, "pad": _padded, "adaptive_avg_pool2d": _averaged,
}  # fmt: skip
# Operators without a rule that keep rows apart: where nothing changed, nothing does after them.
ROWWISE = LINEAR | names(
    "group_norm instance_norm interpolate upsample adaptive_max_pool2d avg_pool1d max_pool1d adaptive_avg_pool1d pixel_shuffle "
    "pixel_unshuffle lp_pool2d local_response_norm normalize scaled_dot_product_attention bmm matmul glu unfold"
)
