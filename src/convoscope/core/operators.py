"""Every operator a network calls, and how a rule replaces what it sends backwards.

A rule keeps the value of a call, bit for bit, and gives it another gradient. `redirect` runs the operator as it is and
asks the rule for the input's gradient only when one arrives; nothing is paid for calls that no gradient reaches.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import resolve_name
from torch.utils.weak import WeakTensorKeyDictionary

from convoscope.core.errors import UnsupportedError
from convoscope.core.redirected import Kept, Redirect, RedirectEach, Turn


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONVOLUTIONS = frozenset(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3))
LINEAR = CONVOLUTIONS | {"linear"}
PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm"})
RECTIFIERS = frozenset({"relu", "relu6", "threshold"})
ACTIVATIONS = RECTIFIERS | _names(
    "leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign hardswish hardtanh tanh clamp sigmoid hardsigmoid"
)

# Operators whose ordinary gradient already shares a value among its inputs in proportion to what each brought:
# sums, selections, rearrangements, averages, and rectifiers that are linear on each side of zero.
PROPORTIONAL = _names(
    "add sub rsub neg cat stack concat mean sum flatten ravel reshape view view_as unflatten permute transpose t T mT "
    "adjoint movedim swapaxes squeeze unsqueeze contiguous clone to type type_as float double half bfloat16 cpu cuda "
    "identity getitem chunk split tensor_split split_with_sizes unbind narrow select index_select gather take_along_dim "
    "expand expand_as repeat repeat_interleave tile pad constant_pad_nd roll flip rot90 unfold fold pixel_shuffle "
    "pixel_unshuffle channel_shuffle interpolate upsample atleast_2d positive max_pool1d max_pool2d max_pool3d "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d amax max relu leaky_relu prelu threshold dropout dropout1d dropout2d "
    "dropout3d alpha_dropout feature_dropout feature_alpha_dropout batch_norm instance_norm stochastic_depth drop_path "
    "copy_ setitem requires_grad_ copy "
)

_SAME = {"iadd": "add", "radd": "add", "concat": "cat", "concatenate": "cat", "subtract": "sub", "isub": "sub",
         "multiply": "mul", "imul": "mul", "rmul": "mul", "truediv": "div", "itruediv": "div", "true_divide": "div",
         "divide": "div", "imatmul": "matmul", "clamp_min": "clamp", "clamp_max": "clamp", "clip": "clamp"}  # fmt: skip
_LINEAR_SETTINGS = {
    "linear": (),
    "conv": ("stride", "padding", "dilation", "groups"),
    "conv_transpose": ("stride", "padding", "output_padding", "groups", "dilation"),
}


def operator_name(func: Callable[..., Any]) -> str:
    """One name for all spellings of an operator: `F.relu`, `torch.relu` and `Tensor.relu_` are `relu`, `+=` is `add`."""
    name = _spelling(func).strip("_")
    return _SAME.get(name, name)


def _spelling(func: Callable[..., Any]) -> str:
    parts = (resolve_name(func) or getattr(func, "__name__", "operator")).split(".")
    if parts[0] in ("aten", "quantized"):  # of exported and quantized networks; norms take arguments in an order of their own
        return parts[1] if parts[0] == "aten" and not parts[1].endswith("_norm") else "_".join(parts[:2])
    return parts[-2] if parts[-1] == "__get__" else parts[-1]


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(*value)
        elif isinstance(value, Mapping):
            yield from tensors_in(*value.values())


class Call:
    """One call of an operator: enough to run it again with another input, weight or bias.

    `weight` and `bias` are those of a convolution or linear operator (None for others); after `followed_by` a batch
    norm they are those of the one affine map that both make together. Nothing is merged in the user's module. `signals`
    are its tensors that carry a gradient, in the order of the arguments; `x` is the first of them. `first`: no
    linear operator comes before it on the signal's way.
    """

    def __init__(self, name: str, address: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.name, self.address, self.func, self.args, self.kwargs = name, address, func, args, kwargs
        tensors = list(tensors_in(args, kwargs))
        self.signals = [t for t in tensors if t.requires_grad]
        self.first = False
        self.x: Tensor = (self.signals or tensors)[0]
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self._operator, self._settings = func, {}
        self._keep: Callable[..., Kept] = Kept
        self.kept: Kept | None = None
        self._slot = next((i for i, a in enumerate(args) if a is self.x), 0)
        if name in LINEAR:
            self._read_linear(args, kwargs)

    def _read_linear(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        family = "linear" if self.name == "linear" else self.name[:-2]
        names = ("input", "weight", "bias", *_LINEAR_SETTINGS[family])
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self.x, self.weight, self.bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        self._settings = given

    @property
    def inplace(self) -> bool:
        """Whether the call overwrites its first argument."""
        last = _spelling(self.func)
        if (last.startswith("__i") and last not in ("__invert__", "__index__")) or (
            last.endswith("_") and not last.endswith("__")
        ):
            return True
        if last == "__setitem__" or self.kwargs.get("inplace") is True:
            return True
        return self.name in ACTIVATIONS | {"dropout"} and len(self.args) > 1 and self.args[-1] is True

    @property
    def grouped(self) -> bool:
        """Whether each output of this linear operator sees only some input channels, or its weight lists inputs first."""
        return self._settings.get("groups", 1) != 1 or "transpose" in self.name

    def native(self) -> Any:
        """The call as the network made it, with its ordinary gradient."""
        return self.func(*self.args, **self.kwargs)

    @torch.no_grad()
    def value(self) -> Tensor:
        """The value of the call, with no graph and without overwriting anything."""
        args, kwargs = self.args, self.kwargs
        if self.inplace:
            args = (args[0].clone(), *args[1:])
        return self.func(*args, **kwargs)

    def redirect(self, pull: "Pull", pointwise: bool = False) -> Tensor:
        """The value of the call; a gradient that arrives there is turned by `pull(call, value, gradient)` into that of `x`.

        `pointwise`: where no gradient arrives, `pull` does not need the value.
        """
        return Redirect.apply(self.x, self, pull, pointwise)

    def turn(self, pull: Callable[[Tensor], Tensor]) -> Tensor:
        """As `redirect` for a `pull(gradient)` that looks at neither input nor value: in place where the call is."""
        if self.inplace and (self.x._is_view() or self.args[0] is not self.x):
            return self.redirect(lambda call, value, gradient: pull(gradient))
        return Turn.apply(self.x, self, pull)

    def redirect_each(self, pull: "PullEach") -> Tensor:
        """As `redirect`, for a call with several signals: `pull` gives the gradient of each, or None."""
        return RedirectEach.apply(self, pull, *self.signals)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same convolution or linear operator on another input, weight and bias."""
        return self._operator(x, weight, bias, **self._settings)

    def pull(self, gradient: Tensor, weight: Tensor | None = None, x: Tensor | None = None) -> Tensor:
        """The gradient of the input, given that of the value, through `weight` (default: the call's own).

        Convolutions and linear operators are transposed, which runs no forward pass; others are run again at `x`.
        """
        x = self.x if x is None else x
        weight = self.weight if weight is None else weight
        if self.name == "linear" and weight is not None:
            return gradient @ weight
        settings = self._settings
        if weight is not None and not isinstance(settings.get("padding", 0), str) and x.dim() == weight.dim():
            d = weight.dim() - 2
            of = {
                k: _per_axis(settings.get(k, k in ("stride", "dilation")), d)
                for k in ("stride", "padding", "dilation", "output_padding")
            }
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, None, of["stride"], of["padding"], of["dilation"], "transpose" in self.name,
                of["output_padding"], settings.get("groups", 1), [True, False, False],
            )[0]  # fmt: skip
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            run = (
                self.linear(leaf, weight)
                if weight is not None
                else self.func(*_replaced(self.args, self._slot, leaf), **self.kwargs)
            )
        return torch.autograd.grad(run, leaf, gradient)[0]

    def followed_by(self, norm: "Call") -> "Call | None":
        """This linear call and an eval-mode batch norm of its value, as one; None where they do not make one affine map."""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = {**dict(zip(names, norm.args, strict=False)), **norm.kwargs}
        mean, variance, weight = given.get("running_mean"), given.get("running_var"), self.weight
        if given.get("training") or mean is None or variance is None or weight is None or "transpose" in self.name:
            return None
        if self.name == "linear" and norm.x.dim() != 2:  # a batch norm goes by axis 1, a linear operator by the last
            return None
        scale = torch.rsqrt(variance + given.get("eps", 1e-5))
        if given.get("weight") is not None:
            scale = scale * given["weight"]
        shift = (-mean if self.bias is None else self.bias - mean) * scale
        both = Call(self.name, self.address, self.func, self.args, self.kwargs)
        both.weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        both.bias = shift if given.get("bias") is None else shift + given["bias"]
        both.func, both.args, both.kwargs, both.first = norm.func, norm.args, norm.kwargs, self.first
        return both


def _per_axis(value: Any, axes: int) -> list[int]:
    return [int(value)] * axes if isinstance(value, int | bool) else [int(v) for v in value] * (axes // len(value))


def _replaced(args: tuple[Any, ...], slot: int, new: Tensor) -> tuple[Any, ...]:
    return (*args[:slot], new, *args[slot + 1 :])


Pull = Callable[[Call, Tensor, Tensor], Tensor]
PullEach = Callable[[Call, Tensor, Tensor], Sequence[Tensor | None]]


def surrogate(value: Tensor, path: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """`value` forwards, `scale * d path` backwards: a rule written as an expression."""
    factor = scale.detach() if isinstance(scale, Tensor) else scale
    return value.detach() + (path - path.detach()) * factor


class RuleTable(Protocol):
    """What the rewriting needs to know of a composite."""

    strict: bool

    def rule_for(self, name: str, address: str, first: bool = False) -> Callable[[Call], Tensor] | None: ...


class Rewriter:
    """Applies a table of rules to the operator calls of one forward pass."""

    def __init__(self, table: RuleTable) -> None:
        self.table = table
        self.matched: list[str] = []
        self.plain: list[str] = []
        self._linear = WeakTensorKeyDictionary()  # value of a linear call -> (the call, version of the value)
        self._seen = WeakTensorKeyDictionary()
        self._behind = WeakTensorKeyDictionary()  # what came through a linear operator
        self._values = WeakTensorKeyDictionary()  # value of a redirected call -> what is kept of it
        self._kept: dict[int, list[weakref.ref[Kept]]] = {}

    def apply(self, name: str, address: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of the call, with the gradient of the rule that covers it."""
        call = Call(name, address, func, args, kwargs)
        if call.inplace:
            self._protect(args[0], name)
        carriers = call.signals
        self._require_seen(carriers, name, address)
        behind, linear = any(t in self._behind for t in carriers), name in LINEAR or name in PRODUCTS
        call.first = not behind
        output = self._applied(call, carriers) if carriers else call.native()
        self.saw(output, args, kwargs)
        if carriers and (behind or linear):
            for tensor in tensors_in(output):
                self._behind[tensor] = True
        return output

    def saw(self, *values: Any, like: Tensor | None = None) -> None:
        """Tensors that came out of operators that were seen; any other that carries a gradient came from a hidden one.

        `like`: the tensor whose place they take.
        """
        behind = like is not None and like in self._behind
        for tensor in tensors_in(*values):
            if tensor.requires_grad:
                self._seen[tensor] = True
                if behind:
                    self._behind[tensor] = True

    def _applied(self, call: Call, carriers: list[Tensor]) -> Any:
        name, address, func, args, kwargs = call.name, call.address, call.func, call.args, call.kwargs
        call = self._fused(call)
        rule = self.table.rule_for(call.name, call.address, call.first)
        if rule is None:
            output = call.native()
            self._note_plain(call, len(carriers), output)
            return output
        self.matched.append(address)
        if len(carriers) > 1 and not getattr(rule, "several", False):
            raise UnsupportedError(
                f"{call.name!r} at {address!r} combines two signals; no rule can share its value between them"
            )
        inplace, again = call.inplace, Call(name, address, func, args, kwargs) if name in LINEAR else None
        if again is not None:
            again.first = call.first
        call._keep = self._keep
        output = rule(call)
        if inplace and output is not args[0]:
            self._protect(args[0], "copy_")  # what the rule itself kept
            args[0].copy_(output)
            return args[0]
        if again is not None:
            self._linear[output] = (again, output._version)
        if call.kept is not None and isinstance(output, Tensor):
            self._values[output] = call.kept
        return output

    def _fused(self, call: Call) -> Call:
        if call.name != "batch_norm" or not isinstance(call.x, Tensor) or call.x not in self._linear:
            return call
        linear, version = self._linear[call.x]
        return (linear.followed_by(call) if call.x._version == version else None) or call

    def _note_plain(self, call: Call, carriers: int, output: Any) -> None:
        if call.name in ACTIVATIONS:
            self.plain.append(call.address)
        if not self.table.strict or call.name in PROPORTIONAL or not any(t.requires_grad for t in tensors_in(output)):
            return
        divides = len(call.args) > 1 and isinstance(call.args[1], Tensor) and call.args[1].requires_grad
        scaled = call.name == "mul" or (call.name == "div" and not divides)
        if scaled and carriers == 1:
            return
        what = f"a product of two signals, {call.name!r}," if scaled else f"{call.name!r}"
        raise UnsupportedError(
            f"the composite has no rule for {what} at {call.address!r}; add a rule for it, or use a method without rules "
            "(gradient, integrated-gradients)"
        )

    def _keep(self, tensor: Tensor, pointwise: bool = False) -> Kept:
        kept = Kept(tensor, pointwise)
        self._kept.setdefault(tensor.untyped_storage().data_ptr(), []).append(weakref.ref(kept))
        return kept

    def _require_seen(self, carriers: Iterable[Tensor], name: str, address: str) -> None:
        for tensor in carriers:
            if tensor not in self._seen:
                raise UnsupportedError(
                    f"what {name!r} at {address!r} receives comes from an operator that cannot be seen (TorchScript, a custom "
                    "autograd.Function, checkpointing, a backward hook); rules would miss it. Methods without rules may work"
                )
            if tensor in self._values:
                self._values[tensor].read = True

    def _protect(self, tensor: Any, name: str) -> None:
        if not isinstance(tensor, Tensor):
            return
        for reference in self._kept.pop(tensor.untyped_storage().data_ptr(), []):
            kept = reference()
            # A value that only a ReLU reads gets no gradient where it is negative, so its positive part will do.
            if kept is not None and not (name == "relu" and kept.pointwise and not kept.read):
                kept.tensor = kept.tensor.clone()


def step_from_zero(z: Tensor, epsilon: float) -> Tensor:
    """How far to move values from zero before dividing by them, for each row: `epsilon` times their root mean square.

    At least a few rounding errors, so that what should be zero and is not quite divides nothing.
    """
    rows, limits = z.reshape(len(z) if z.dim() else 1, -1), torch.finfo(z.dtype)
    root = torch.linalg.vector_norm(rows, dim=1) / rows.shape[1] ** 0.5
    return (max(epsilon, 8 * limits.eps) * root + limits.tiny).view(z.shape[:1] + (1,) * (z.dim() - 1))
