"""Gradients of scores, and how pieces of them are put together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError

T = TypeVar("T")


def joined(parts: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
    """What several batches gave, as one."""
    first, out = parts[0], {}
    for key, value in first.items():
        if isinstance(value, Tensor):
            out[key] = torch.cat([p[key] for p in parts])
        elif isinstance(value, dict):
            out[key] = {name: torch.cat([p[key][name] for p in parts]) for name in value}
        else:
            out[key] = tuple(torch.cat(pieces) for pieces in zip(*(p[key] for p in parts), strict=True))
    return out


def rows_of(parts: Sequence[Tensor]) -> Tensor:
    """Batches of rows as one; where they bring different numbers of things (boxes), the shorter end in zeros."""
    most = max((p.shape[1] for p in parts if p.dim() > 1), default=0)
    short = [p.dim() > 1 and p.shape[1] < most for p in parts]
    padded = (F.pad(p, (0, 0) * (p.dim() - 2) + (0, most - p.shape[1])) if s else p for p, s in zip(parts, short, strict=True))
    return torch.cat(list(padded))


def derivatives(scores: Tensor, leaves: Sequence[Tensor], retain: bool) -> Sequence[Tensor | None]:
    """The gradient of the sum of scores with respect to each leaf; None where there is none."""
    if not scores.requires_grad:
        return [None] * len(leaves)
    return _guarded(lambda: torch.autograd.grad(scores.sum(), leaves, allow_unused=True, retain_graph=retain))


def backward(outputs: Sequence[Tensor], leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of each leaf, given those of the outputs; None where there is none."""
    pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    found, given = zip(*pairs, strict=True)
    return _guarded(lambda: torch.autograd.grad(found, leaves, given, allow_unused=True))


def apart(address: str, composite: Any) -> UnsupportedError:
    """The error for a target on which an address has no influence, as far as gradients, or the rules, can see."""
    cut = "the network cuts the gradient in between"
    if getattr(composite, "strict", False):
        cut = (
            "something in between is a constant to the rules, as softmax and sigmoid are: explain what goes into it, "
            "such as Channel(address, class)"
        )
    return UnsupportedError(f"the target does not depend on {address!r}: it comes before, or {cut}")


def _guarded(run: Callable[[], T]) -> T:
    try:
        return run()
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        if "inplace operation" in line or "heckpoint" in line + type(error).__name__:
            message = f"the network cannot be run backwards: {line}; methods such as occlusion need not"
            raise UnsupportedError(message) from error
        raise


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on the device or on the host."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def secant(
    score: Callable[[Mapping[str, Tensor]], Tensor], starts: Mapping[str, Tensor], ends: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The mean gradient of a score on the straight line between activations, such that it accounts for all of the change.

    What quadrature misses (at kinks) is added along the line, which brings the gradient no farther from the true mean.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    total = {a: torch.zeros_like(v) for a, v in ends.items()}
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = {a: torch.lerp(starts[a], v, float(node)).requires_grad_() for a, v in ends.items()}
        found = torch.autograd.grad(score(point).sum(), list(point.values()), allow_unused=True)
        for a, g in zip(point, found, strict=True):
            if g is not None:
                total[a] += float(weight) * g
    ways = {a: ends[a] - starts[a] for a in ends}
    with torch.no_grad():
        brought = torch.stack([_sums(total[a] * d) for a, d in ways.items()]).sum(0)
        missing, length = score(ends) - score(starts) - brought, torch.stack([_sums(d.square()) for d in ways.values()]).sum(0)
        step = torch.where(length > 0, missing / torch.where(length > 0, length, 1), 0)
    return {a: t + step.view(-1, *[1] * (t.dim() - 1)) * ways[a] for a, t in total.items()}


def _sums(t: Tensor) -> Tensor:
    """The sum of each row, also where a row is one number."""
    return t.reshape(len(t), -1).sum(1)
