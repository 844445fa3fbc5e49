"""What each operator reads of its inputs: a table by the operator's name."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convoscope.core.reach import Integers, Reach, hull

Result = Reach | Sequence[Reach]


SAME = {p + b: b for p in "ir" for b in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")}
SAME |= {"concat": "cat", "concatenate": "cat", "max_pool1d_with_indices": "max_pool1d"}
SAME |= {f"{k}max_pool{d}d_with_indices": f"{k}max_pool{d}d" for k in ("", "adaptive_") for d in (1, 2, 3)}
CONSTANT = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "shape",
        "size",
    ]
)


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)


class Call:
    """An operator call, and the reaches of its inputs."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, reaches: Any) -> None:
        name = name.strip("_")
        self.name, self.args, self.kwargs, self.reaches = SAME.get(name, name), args, kwargs, reaches
        self.outputs = list(tensors_in(output))
        self.tracked = [t for t in tensors_in((args, kwargs)) if t in reaches]
        self.used: list[Tensor] = []

    def results(self) -> list[Reach]:
        """One reach per output. What the table cannot tell reads everything that any input reads."""
        shapes = [tuple(t.shape) for t in self.outputs]
        operator = OPERATORS.get(self.name)
        if operator is not None:
            try:
                found = operator(self)
                found = [found] * len(shapes) if isinstance(found, Reach) else list(found)
                rest = [t for t in self.tracked if not any(t is u for u in self.used)]
                if [r.shape for r in found] == shapes:
                    return [hull([r, *self.bound(s, rest)], s) for s, r in zip(shapes, found, strict=True)]
            except (TypeError, ValueError, IndexError, RuntimeError):
                pass  # a way of calling it that is not known
        return [replace(hull(self.bound(s, self.tracked), s), exact=False) for s in shapes]

    def bound(self, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> list[Reach]:
        return [self.reaches[t].everything(shape) for t in tensors]

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def of(self, tensor: Tensor) -> Reach:
        """The reach of an input; a tensor not derived from the image reads nothing."""
        self.used.append(tensor)
        reach = self.reaches.get(tensor)
        return self.reaches[self.tracked[0]].nothing(tensor.shape) if reach is None else reach

    @property
    def x(self) -> Reach:
        """The reach of the first input."""
        return self.of(self.args[0] if self.args else self.kwargs["input"])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.outputs[0].shape)

    @property
    def dims(self) -> int:
        """2 in `conv2d`."""
        return int(self.name[-2])


OPERATORS: dict[str, Callable[[Call], Result]] = {}


Handler = TypeVar("Handler", bound=Callable[[Call], Result])


def operator(*names: str) -> Callable[[Handler], Handler]:
    """Puts a function into the table under these names (separated by spaces)."""

    def register(function: Handler) -> Handler:
        OPERATORS.update(dict.fromkeys(" ".join(names).split(), function))
        return function

    return register


def _sizes(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, tuple | list) else (int(value),)
    return values * n if len(values) == 1 else values


def column(values: Any) -> Integers:
    return np.asarray(values, dtype=np.int64)[:, None]


# ---- one element from one position of each input
@operator(
    """relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign hardswish hardtanh hardshrink
    softshrink tanhshrink tanh sigmoid hardsigmoid logsigmoid threshold clamp clip clamp_min clamp_max exp expm1 log log1p
    log2 log10 sqrt rsqrt square reciprocal abs absolute neg negative positive sign sin cos erf floor ceil round trunc
    nan_to_num logit pow dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
    bernoulli contiguous clone detach data to type type_as float double half bfloat16 cpu cuda requires_grad identity
    fake_quantize_per_tensor_affine add sub subtract mul multiply div divide true_divide truediv floordiv floor_divide mod
    remainder fmod maximum minimum fmax fmin where lerp addcmul addcdiv masked_fill atan2 hypot logaddexp copysign
    lt le gt ge eq ne less greater less_equal greater_equal not_equal logical_and logical_or logical_not logical_xor and or
    xor invert isnan isinf isfinite long int bool"""
)
def _elementwise(call: Call) -> Reach:
    return hull([call.of(t) for t in call.tracked], call.shape)


@operator("copy")
def _copy(call: Call) -> Reach:
    call.of(call.args[0])
    return call.of(call.get(1, "src")).expand(call.shape)


@operator("zero fill")
def _fill(call: Call) -> Reach:
    return call.x.nothing(call.shape)


# ---- windows
def _windows(call: Call, x: Reach, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Reach:
    n = call.dims
    k, s, d = _sizes(kernel, n), _sizes(stride, n), _sizes(dilation, n)
    p = (
        tuple(d[i] * (k[i] - 1) // 2 for i in range(n))
        if padding == "same"
        else _sizes(0 if padding == "valid" else padding, n)
    )
    for i in range(n):
        if (k[i], s[i], p[i]) != (1, 1, 0):
            x = x.window(i - n, column(np.arange(call.shape[i - n]) * s[i] - p[i]) + np.arange(k[i]) * d[i], factor=s[i])
    return x


@operator("conv1d conv2d conv3d")
def _convolution(call: Call) -> Reach:
    weight: Tensor = call.get(1, "weight")
    stride, padding, dilation = call.get(3, "stride", 1), call.get(4, "padding", 0), call.get(5, "dilation", 1)
    x = call.x.mix(-1 - call.dims, call.get(6, "groups", 1), call.shape[-1 - call.dims])
    return _windows(call, x, tuple(weight.shape[2:]), stride, padding, dilation)


@operator("conv_transpose1d conv_transpose2d conv_transpose3d")
def _transposed_convolution(call: Call) -> Reach:
    weight: Tensor = call.get(1, "weight")
    n = call.dims
    s, p, d = (_sizes(call.get(i, a, v), n) for i, a, v in ((3, "stride", 1), (4, "padding", 0), (7, "dilation", 1)))
    x = call.x.mix(-1 - n, call.get(6, "groups", 1), call.shape[-1 - n])
    for i in range(n):
        reached = column(np.arange(call.shape[i - n]) + p[i]) - np.arange(weight.shape[2 + i]) * d[i]
        x = x.window(i - n, reached // s[i], reached % s[i] == 0, factor=1 / s[i])
    return x


@operator("max_pool1d max_pool2d max_pool3d")
def _max_pool(call: Call) -> Reach:
    kernel = call.get(1, "kernel_size")
    stride = call.get(2, "stride") or kernel
    return _windows(call, call.x, kernel, stride, call.get(3, "padding", 0), call.get(4, "dilation", 1))


@operator("avg_pool1d avg_pool2d avg_pool3d")
def _average_pool(call: Call) -> Reach:
    kernel = call.get(1, "kernel_size")
    return _windows(call, call.x, kernel, call.get(2, "stride") or kernel, call.get(3, "padding", 0), 1)


@operator("lp_pool1d lp_pool2d lp_pool3d")
def _power_pool(call: Call) -> Reach:
    kernel = call.get(2, "kernel_size")
    return _windows(call, call.x, kernel, call.get(3, "stride") or kernel, 0, 1)


def _adaptive(x: Reach, dim: int, m: int) -> Reach:
    n = x.shape[dim]
    if m == 1:
        return x.reduce([dim])
    o = np.arange(m)
    first, end = o * n // m, -(-(o + 1) * n // m)
    taps = column(first) + np.arange((end - first).max())
    return x.window(dim, taps, taps < column(end), factor=n / m)


@operator(" ".join(f"adaptive_{k}_pool{d}d" for k in ("avg", "max") for d in (1, 2, 3)))
def _adaptive_pool(call: Call) -> Reach:
    x = call.x
    for dim in range(-call.dims, 0):
        x = _adaptive(x, dim, call.shape[dim])
    return x


@functools.lru_cache(256)
def _resized(
    n: int, m: int, scale: float | None, mode: str, align: bool | None, antialias: bool, double: bool
) -> tuple[Integers, Any]:
    """The positions that each output of `F.interpolate` weights, and which of them count: read off its own weights."""
    ones = torch.eye(n, dtype=torch.float64 if double else torch.float32, device="cpu")
    ones = ones.reshape(1, n, n, 1).expand(1, n, n, 2)  # antialiasing errs on pictures of width 1
    to: dict[str, Any] = {"size": (m, 2)} if scale is None else {"scale_factor": (scale, 1.0)}
    with torch.no_grad():
        weights = F.interpolate(ones, **to, mode=mode, align_corners=align, antialias=antialias)[0, :, :, 0]
    used = weights.T.numpy() != 0
    taps = np.argsort(~used, axis=1, kind="stable")[:, : used.sum(1).max()]
    return taps, np.take_along_axis(used, taps, 1)


@operator("interpolate upsample")
def _interpolate(call: Call) -> Reach:
    x, scale, mode = call.x, call.get(2, "scale_factor"), call.get(3, "mode", "nearest")
    n = len(call.shape) - 2
    scales = scale if isinstance(scale, tuple | list) else [scale] * n
    mode = {"linear": "bilinear", "trilinear": "bilinear"}.get(mode, mode)
    for dim, s in zip(range(-n, 0), scales, strict=True):
        if mode == "area":
            x = _adaptive(x, dim, call.shape[dim])
            continue
        s = None if s is None or call.get(5, "recompute_scale_factor") else float(s)
        flags = call.get(4, "align_corners"), bool(call.get(6, "antialias", False)), call.outputs[0].dtype == torch.float64
        taps, used = _resized(x.shape[dim], call.shape[dim], s, mode, *flags)
        x = x.window(dim, taps, used, factor=x.shape[dim] / call.shape[dim])
    return x


@operator("pad constant_pad_nd")
def _pad(call: Call) -> Reach:
    x, amounts, mode = call.x, call.get(1, "pad"), call.get(2, "mode", "constant")
    for i in range(len(amounts) // 2):
        dim, before = -1 - i, amounts[2 * i]
        n, plain = x.shape[dim], column(np.arange(call.shape[-1 - i]) - before)
        taps = plain
        if mode == "reflect":
            taps = n - 1 - abs(n - 1 - abs(plain))
        elif mode == "replicate":
            taps = plain.clip(0, n - 1)
        elif mode == "circular":
            taps = plain % n
        x = x.window(dim, taps, virtual=plain)
    return x


# ---- reductions, and what mixes positions
def axes_of(x: Reach, value: Any) -> list[int]:
    if value is None or value == ():
        return list(range(len(x.shape)))
    return [x.at(int(d)) for d in (value if isinstance(value, tuple | list) else [value])]


@operator(
    "mean sum prod amax amin max min argmax argmin logsumexp std var all any median nanmean nansum count_nonzero var_mean"
    " std_mean aminmax norm vector_norm"
)
def _reduction(call: Call) -> Reach:
    value = call.get(2 if "norm" in call.name else 1, "dim")
    if isinstance(value, Tensor):
        return _elementwise(call)
    if isinstance(value, bool | torch.dtype):
        raise TypeError("not an axis")
    x = call.x
    return x.reduce(axes_of(x, value), len(call.shape) == len(x.shape))


def _spread(x: Reach, dims: Sequence[int]) -> Reach:
    """Every element reads all others along these axes."""
    return hull([x, x.reduce(dims)], x.shape)


@operator("softmax log_softmax softmin normalize")
def _along(call: Call) -> Reach:
    return _spread(call.x, [int(call.get(2, "dim", 1) if call.name == "normalize" else call.get(1, "dim"))])


@operator("batch_norm")
def _batch_norm(call: Call) -> Reach:
    x = call.x
    return _spread(x, [d for d in range(len(x.shape)) if d != 1]) if call.get(5, "training", False) else x


@operator("instance_norm")
def _instance_norm(call: Call) -> Reach:
    x = call.x
    return _spread(x, range(2, len(x.shape))) if call.get(5, "use_input_stats", True) else x


@operator("group_norm")
def _group_norm(call: Call) -> Reach:
    x = call.x
    return _spread(x, range(2, len(x.shape))).mix(1, call.get(1, "num_groups"), x.shape[1])


@operator("layer_norm rms_norm")
def _layer_norm(call: Call) -> Reach:
    shape = call.get(1, "normalized_shape")
    return _spread(call.x, range(-len(shape), 0))


@operator("local_response_norm")
def _local_response_norm(call: Call) -> Reach:
    x, size = call.x, int(call.get(1, "size"))
    return x.window(1, column(np.arange(x.shape[1]) - size // 2) + np.arange(size))


@operator("glu")
def _gated(call: Call) -> Reach:
    x, dim = call.x, int(call.get(1, "dim", -1))
    half = x.shape[dim] // 2
    return x.window(dim, column(np.arange(half)) + np.array([0, half]))


@operator("linear")
def _linear(call: Call) -> Reach:
    return call.x.reduce([-1]).expand(call.shape)


@operator("matmul bmm mm")
def _matmul(call: Call) -> Reach:
    a, b = call.of(call.args[0]), call.of(call.args[1])
    return hull([a.reduce([-1]), b.reduce([-2])], call.shape)


@operator("scaled_dot_product_attention")
def _attention(call: Call) -> Reach:
    if call.get(3, "attn_mask") is not None or call.get(5, "is_causal", False):
        raise ValueError("a mask")
    query, key, value = (call.of(call.get(i, name)) for i, name in enumerate(("query", "key", "value")))
    return hull([query.reduce([-1]), key.reduce([-1, -2]), value.reduce([-2])], call.shape)
