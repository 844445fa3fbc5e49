"""The full gradient: what the input and every bias contribute, and nothing else."""

import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from convoscope.core.errors import UsageError
from convoscope.core.operators import ACTIVATIONS, LINEAR, PRODUCTS, PROPORTIONAL, tensors_in
from convoscope.core.probe import Place, Probe
from convoscope.core.record import Activations, Collector
from convoscope.core.spec import About, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images

_JOINT = frozenset({"add", "sub", "cat", "stack", "copy", "setitem", "max"})  # homogeneous where every tensor is a signal
_SCALING = PRODUCTS - {"addmm"} | {"mul", "div"}  # homogeneous in one signal
_ADDING = _JOINT | {"rsub", "pad", "constant_pad_nd", "threshold", "batch_norm", "instance_norm", "prelu"}
HOMOGENEOUS = (PROPORTIONAL | {"abs", "norm"}) - _ADDING  # op(k x) = k op(x) for k > 0


class _Given(NamedTuple):
    """A signal as it was before a call: where its gradient goes, what it held, itself and its version."""

    edge: GradientEdge
    value: Tensor
    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "list[_Given]":
        single = {id(t): t for t in tensors}.values()
        return [cls(get_gradient_edge(t), t.detach().clone(), t, t._version) for t in single]


class BiasGradients(Collector):
    """The share of every bias: the gradient that arrives at an operator's value, times the part of it that no signal brought.

    That part is the bias of a convolution or linear operator, shift - scale * mean of a batch norm, and y - J x of any operator
    that is not homogeneous (SiLU, the product of two signals, layer norm, an added constant), where J is its Jacobian at x.
    By address: `sum`, the share of an image; for maps, `map`, magnitudes scaled to 0..1 over an image's channels and
    positions and summed over channels, and `last`, the same where channels are the last axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.addresses: dict[int, str] = {}
        self.latest: Any = lambda: None
        self.given: list[_Given] = []
        self.wholes: list[_Given] = []  # what those are views of

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given = self.wholes = []
        if not torch.is_grad_enabled() or name in HOMOGENEOUS:
            return
        signals = list({id(t): t for t in tensors_in(args, kwargs) if t.requires_grad}.values())
        if signals and not _affine(name, args, kwargs, len(signals)):
            self.given = _Given.of(signals)
            self.wholes = _Given.of(map(_whole, signals)) if any(t._is_view() for t in signals) else self.given

    def operator(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, wholes = self.given, self.wholes
        self.given = self.wholes = []
        for value in tensors_in(args[0] if name == "setitem" else output):
            self.count += 1
            if not value.requires_grad or not value.is_floating_point():
                continue
            latest = weakref.ref(value)
            if any(g.tensor is _whole(value) and g.tensor._version > g.version for g in wholes):
                value, given = _whole(value), wholes  # written through a view: gradients arrive at what it is a view of
            bias = _unbrought(name, value, given) if given else _bias(name, args, kwargs, value)
            if bias is not None:
                self.latest = latest
                self._watch(value, bias, self.count)

    def value(self, address: str, operator: str, module: Any, output: Tensor) -> None:
        if self.latest() is output:
            self.addresses[self.count] = address

    def _watch(self, value: Tensor, bias: Tensor, number: int) -> None:
        def arrived(gradient: Tensor) -> None:
            share = gradient * bias
            address = self.addresses.get(number, f"operator {number}")
            self.found[f"sum {address}"] = share.reshape(len(share) if share.dim() else 1, -1).sum(1, dtype=torch.float64)
            if share.dim() == 4 and share.shape[2] * share.shape[3] > 1:
                self.found[f"map {address}"], self.found[f"last {address}"] = _scaled(share, 1), _scaled(share, 3)

        value.register_hook(arrived)


def _affine(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], signals: int) -> bool:
    """Whether the call is homogeneous, or its bias stands among its arguments."""
    tensors = list(tensors_in(args, kwargs))
    if name == "batch_norm":
        return signals == 1 and not _argument(args, kwargs, 5, "training") and args[0].requires_grad
    if name in LINEAR:
        return signals == 1 and _argument(args, kwargs, 0, "input").requires_grad
    if name in _SCALING:
        above = name != "div" or (isinstance(args[0], Tensor) and args[0].requires_grad and not kwargs)
        return above and sum(t.requires_grad for t in tensors) == 1
    if name in _JOINT:
        number = name in ("add", "sub") and not all(isinstance(a, Tensor) for a in args[:2])
        return not number and "other" not in kwargs and len(tensors) > 1 and all(t.requires_grad for t in tensors)
    return False


def _bias(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Tensor | None:
    """The bias of a linear operator or batch norm, shaped to multiply its value."""
    if name == "batch_norm":
        mean, variance, weight, shift = (
            _argument(args, kwargs, i, k) for i, k in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
        )
        scale = torch.rsqrt(variance + kwargs.get("eps", args[7] if len(args) > 7 else 1e-5))
        bias = -mean * (scale if weight is None else scale * weight)
        bias = bias if shift is None else bias + shift
    else:
        bias = _argument(args, kwargs, 2, "bias") if name in LINEAR else None
    if bias is None or name == "linear":
        return bias
    return bias.view(-1, *[1] * (value.dim() - 2))


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _whole(t: Tensor) -> Tensor:
    """What `t` is a view of, or itself: what a view is overwritten with goes there."""
    return t._base if t._is_view() and t._base is not None and t._base.requires_grad else t


def _unbrought(name: str, value: Tensor, given: list[_Given]) -> Tensor | None:
    """y - J x of a call; None where PyTorch cannot find J x.

    Signals are as they were, so calls may have overwritten them. J x comes from differentiating v -> <J^T v, x>.
    """
    if len(given) == 2 and name in ("mul", "matmul", "mm", "bmm"):
        return -value.detach()  # J x = 2 y
    if len(given) == 1 and name in ACTIVATIONS and given[0].value.shape == value.shape:
        (slope,) = torch.autograd.grad(value, given[0].edge, torch.ones_like(value), retain_graph=True)
        return value.detach() - slope * given[0].value
    seed = torch.zeros_like(value).requires_grad_()
    try:
        pairs = zip(_direct(value, given, seed), given, strict=True)
        brought = [(g * signal.value).sum() for g, signal in pairs if g is not None and g.requires_grad]
        if not brought:
            return value.detach().clone()
        return value.detach() - torch.autograd.grad(sum(brought[1:], brought[0]), seed)[0]
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return None


def _direct(value: Tensor, given: list[_Given], seed: Tensor) -> list[Tensor | None]:
    """J^T seed for each signal alone, where one may have been computed from another: latest first, less what came that way."""

    def pulled(end: Any, start: GradientEdge, gradient: Tensor) -> Tensor | None:
        return torch.autograd.grad(end, start, gradient, create_graph=True, allow_unused=True)[0]

    def age(i: int) -> tuple[bool, int]:
        node = given[i].edge.node
        leaf = type(node).__name__ == "AccumulateGrad"
        return leaf, 0 if leaf else -node._sequence_nr()

    found: dict[int, Tensor | None] = {}
    for i in sorted(range(len(given)), key=age):
        whole = pulled(value, given[i].edge, seed)
        for j, direct in found.items():
            part = None if direct is None else pulled(given[j].edge, given[i].edge, direct)
            whole = whole - part if whole is not None and part is not None else whole
        found[i] = whole
    return [found[i] for i in range(len(given))]


def _scaled(share: Tensor, channels: int) -> Tensor:
    """Magnitudes, brought to 0..1 within each image, summed over channels: `(B, 1, h, w)`."""
    size = share.abs()
    least, most = size.flatten(1).amin(1), size.flatten(1).amax(1)
    span = (most - least).clamp(min=torch.finfo(size.dtype).tiny).view(-1, 1, 1)
    return ((size.sum(channels) - size.shape[channels] * least.view(-1, 1, 1)) / span)[:, None]


class FullGrad(Method):
    """The input's and all biases' contributions, each layer's scaled to 0..1 and laid over the image.

    Srinivas and Fleuret 2019: f(x) = <x, gradient> + the sum over all biases of bias times the gradient that arrives there.
    This is exact for every network, since whatever an operator's value has beyond its Jacobian times its input counts as its
    bias; the completeness gap of the parts is reported (not zero where PyTorch cannot differentiate an operator twice: fused
    attention). Of the parts, those with rows and columns are shown: magnitudes,
    scaled within each layer and image, summed over channels, enlarged between the centers of receptive fields.
    """

    title, unit = "FullGrad", "scaled contributions, summed"
    signed = False
    paper = Paper(
        "srinivas2019full", "Srinivas, Suraj and Fleuret, Francois",
        "Full-Gradient Representation for Neural Network Visualization", "NeurIPS", 2019, "1905.00780",
    )  # fmt: skip
    about = About(
        "decision", "everything that adds up to the score, on all scales", "1 forward + 1 backward, or 2",
        "any differentiable network", "the scaling of layers for display is a convention; no sign",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        if x.dim() != 4:
            raise UsageError(f"full gradients are drawn for (images, channels, rows, columns); got shape {tuple(x.shape)}")
        found = probe.gradients(x, self.needs(probe))
        values, gradient = found[probe.session.at]
        own, shares = values * gradient, found[BiasGradients]
        if any(len(share) != len(x) for share in shares.values()):  # rows that are positions, or windows of images
            if len(x) > 1:
                alone = [replace(probe, rows=probe.rows[i : i + 1], keys=probe.keys[i : i + 1]) for i in range(len(x))]
                return torch.cat([self.attribute(one, x[i : i + 1]) for i, one in enumerate(alone)])
            shares = {k: v.sum(0, keepdim=True) for k, v in shares.items() if k.startswith("sum ") or len(v) == 1}
        total = own.flatten(1).sum(1, dtype=torch.float64) + _target_share(probe, found)
        total = total + sum((v for k, v in shares.items() if k.startswith("sum ")), torch.zeros_like(total))
        gap = total - found["score"].double()
        probe.note("completeness gap of the parts", gap)
        probe.note("completeness gap of the parts relative", gap.abs() / found["score"].double().abs().clamp(min=1e-30))
        maps = _scaled(own, 1)
        for key in shares:
            if key.startswith("map "):
                maps = maps + _laid(probe, key[4:], shares, x)
        return maps

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.session.at, *probe.session.target.addresses(), BiasGradients)

    def evaluations(self, x: Images) -> int:
        return 2  # the second where rows of some tensor are not images


def _laid(probe: Probe, address: str, shares: dict[str, Tensor], x: Tensor) -> Tensor:
    """The map of the biases at an address, at the size of `x`."""
    field, found = probe.field(address), shares[f"map {address}"]
    if field is not None and field.grid != tuple(found.shape[2:]) and field.grid == tuple(shares[f"last {address}"].shape[2:]):
        found = shares[f"last {address}"]
    if probe.session.at == "input":
        return probe.place(found, address)
    return torch.nn.functional.interpolate(found, tuple(x.shape[2:]), mode="bilinear", align_corners=False)


def _target_share(probe: Probe, found: dict[Any, Any]) -> Tensor:
    """What the target itself adds to its gradient times what it reads: nothing for a logit."""
    point = Activations({a: found[a][0].detach().requires_grad_() for a in probe.session.target.addresses()})
    point.rows = probe.rows
    with torch.enable_grad():
        score = probe.session.target(point)
        pulled = torch.autograd.grad(score.sum(), list(point.values()), allow_unused=True)
    pairs = zip(pulled, point.values(), strict=True)
    brought = [(g * v.detach()).reshape(len(g), -1).sum(1, dtype=torch.float64) for g, v in pairs if g is not None]
    return score.detach().double() - sum(brought, torch.zeros_like(score, dtype=torch.float64))
