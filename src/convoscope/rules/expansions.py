"""Differences between images and references, sent back through functions: exact for one variable and for products.

Tensors hold images in the first half of their rows and their references in the second. A gradient that arrives counts in the
first half only, as the multiplier of a difference, and so does what is sent back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.errors import UnsupportedError
from convoscope.core.operators import surrogate

Function = Callable[..., Tensor]


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the images and of their references."""
    return t[: len(t) // 2], t[len(t) // 2 :]


def middle(t: Tensor) -> Tensor:
    """Halfway between images and references."""
    first, second = halves(t)
    return (first + second) / 2


def first_half(multipliers: Tensor) -> Tensor:
    """Multipliers as a gradient of all rows."""
    return torch.cat([multipliers, torch.zeros_like(multipliers)])


def of_images(like: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient of all rows, shaped like `like`, zero for the references; and its rows of the images, to be written."""
    every = torch.empty_like(like)
    halves(every)[1].zero_()
    return every, halves(every)[0]


def secant(function: Function, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Rescale: an elementwise function hands back the slope of its chord, (f(x) - f(x0)) / (x - x0).

    Where both are as good as equal, its derivative halfway between them.
    """
    (x1, x0), (y1, y0), m = halves(x), halves(value), halves(gradient)[0]
    step = x1 - x0
    near = step.abs() <= torch.finfo(x.dtype).eps ** 0.5 * (x1.abs() + x0.abs())
    found = m * ((y1 - y0) / step.masked_fill(near, 1))
    if bool(near.any()):
        slope = halves(midpoint(function, [x], gradient)[0])[0]
        found = torch.where(near, slope.nan_to_num(0, 0, 0), found)
    return first_half(found)


def midpoint(function: Function, signals: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """The gradient halfway between images and references: exact for products of two signals and all that is quadratic."""
    middles = [middle(s) for s in signals]
    with torch.enable_grad():
        leaves = [torch.cat([t, t]).requires_grad_() for t in middles]
        value = function(*leaves)
    m = halves(gradient)[0] / 2
    found = torch.autograd.grad(value, leaves, torch.cat([m, m]), allow_unused=True)
    return [torch.zeros_like(s) if g is None else first_half(2 * middle(g)) for s, g in zip(signals, found, strict=True)]


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, x: Tensor) -> Tensor:
        ctx.function, value = function, function(x)
        ctx.save_for_backward(x, value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, value = ctx.saved_tensors
        return None, secant(ctx.function, x, value, gradients[0])


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, *signals: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*signals)
        return function(*signals)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *midpoint(ctx.function, ctx.saved_tensors, gradients[0])


def elementwise(function: Function, x: Tensor) -> Tensor:
    """An elementwise function that sends back differences."""
    return _Elementwise.apply(function, x)


def quadratic(function: Function, *signals: Tensor) -> Tensor:
    """A product, or another function of second degree, that sends back differences."""
    return _Quadratic.apply(function, *signals)


# ---------------------------------------------------------------- operators as sums, products and functions of one variable
def _divided(a: Any, b: Any) -> Tensor:
    if not (isinstance(b, Tensor) and b.requires_grad):
        return a / b
    inverse = elementwise(torch.reciprocal, b)
    return quadratic(torch.mul, a, inverse) if isinstance(a, Tensor) and a.requires_grad else a * inverse


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return (a + b + elementwise(torch.abs, a - b)) / 2


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return (a + b - elementwise(torch.abs, a - b)) / 2


def _log_total(x: Tensor, dim: Any = -1, keepdim: bool = False, *_: Any, **__: Any) -> Tensor:
    """log sum exp: inputs share in proportion to the logarithmic means of their probabilities, which is exact.

    With the chords l of the exponential, sum l (du) = sum (dp) = 0 for u = log p = x - L, hence dL = sum l dx / sum l.
    """
    logs = x.detach().log_softmax(dim)
    (u1, u0), (p1, p0) = halves(logs), halves(logs.exp())
    near = (u1 - u0).abs() <= torch.finfo(x.dtype).eps ** 0.5
    chords = torch.where(near, ((u1 + u0) / 2).exp(), (p1 - p0) / (u1 - u0).masked_fill(near, 1))
    shares = (chords / chords.sum(dim, keepdim=True)).repeat(2, *[1] * (x.dim() - 1))
    return surrogate(x.detach().logsumexp(dim, keepdim), (shares * x).sum(dim, keepdim))


def _log_softmax(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
    return x - _log_total(x, dim, keepdim=True)


def _softmax(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
    return elementwise(torch.exp, _log_softmax(x, dim))


def _standardized(x: Tensor, axes: tuple[int, ...], eps: float, center: bool = True) -> Tensor:
    x = x - x.mean(axes, keepdim=True) if center else x
    variance = quadratic(torch.square, x).mean(axes, keepdim=True)
    return quadratic(torch.mul, x, elementwise(lambda v: torch.rsqrt(v + eps), variance))


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.view(-1, *[1] * (x.dim() - 2))


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    axes = range(-len(normalized_shape), 0)
    return _scaled(_standardized(input, tuple(axes), eps), weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _scaled(_standardized(input, tuple(range(-len(normalized_shape), 0)), eps, center=False), weight, None)


def _group_norm(input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    grouped = input.reshape(len(input), num_groups, -1)
    found = _standardized(grouped, (2,), eps).reshape(input.shape)
    return _scaled(found, _per_channel(weight, input), _per_channel(bias, input))


def _instance_norm(
    input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        found = _standardized(input, tuple(range(2, input.dim())), eps)
    else:
        found = (input - _per_channel(running_mean, input)) * torch.rsqrt(_per_channel(running_var, input) + eps)  # type: ignore[operator]
    return _scaled(found, _per_channel(weight, input), _per_channel(bias, input))


def _norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *, ord: Any = 2, **_: Any) -> Tensor:
    if dim is None or p not in (2, "fro", None) or ord != 2:
        raise UnsupportedError("differences pass norms of axes other than the rows, of order 2")
    return elementwise(torch.sqrt, quadratic(torch.square, x).sum(dim, keepdim=keepdim))


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, *_: Any, **__: Any) -> Tensor:
    length = elementwise(lambda v: v.clamp(min=eps), _norm(input, p, dim, keepdim=True))
    return _divided(input, length)


def _std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return elementwise(torch.sqrt, quadratic(lambda t: torch.var(t, *args, **kwargs), x))


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return quadratic(torch.mul, a, elementwise(torch.sigmoid, b))


def _local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    squares = quadratic(torch.square, input).flatten(2)[:, None]
    means = F.avg_pool2d(F.pad(squares, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    scale = elementwise(lambda v: (k + alpha * v) ** -beta, means[:, 0].reshape(input.shape))
    return quadratic(torch.mul, input, scale)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    if attn_mask is not None or is_causal or key.shape[-3:-2] != query.shape[-3:-2]:
        raise UnsupportedError("differences pass attention without a mask and with as many keys as queries have heads")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = quadratic(lambda q, k: q @ k.transpose(-2, -1), query, key) * factor
    return quadratic(torch.matmul, _softmax(scores, -1), value)


EXPANSIONS: dict[str, Function] = {
    "div": _divided, "maximum": _larger, "fmax": _larger, "minimum": _smaller, "fmin": _smaller, "softmax": _softmax,
    "log_softmax": _log_softmax, "logsumexp": _log_total, "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    "group_norm": _group_norm, "instance_norm": _instance_norm, "norm": _norm, "vector_norm": _norm, "normalize": _normalize,
    "std": _std, "glu": _glu, "local_response_norm": _local_response_norm, "scaled_dot_product_attention": _attention,
}  # fmt: skip
