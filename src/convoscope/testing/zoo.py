"""Hostile networks: tiny, and each with a habit that breaks explanation methods.

All have random non-zero biases and batch-norm statistics, since zeros hide errors. Every factory gives the same weights for
the same dtype, and draws nothing from the global random generators.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.network import Network

SIDE, CLASSES = 8, 3


@dataclass(frozen=True, eq=False)
class Hostile:
    """One network of the zoo, or `own`, with its weights. `habit` says what is hostile about it."""

    name: str
    habit: str
    build: Callable[[], nn.Module]
    channels: int = 3
    classes: int = CLASSES
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: bool = False
    channels_last: bool = False
    linear: bool = False
    wrap: Callable[[nn.Module], nn.Module] | None = None
    twin: Callable[[], nn.Module] | None = None  # the same parameters in the same order, without the habit
    side: int | tuple[int, int] = SIDE
    own: bool = False
    source: str = ""  # of one of your own, where other processes can import what builds it: "module:function"

    def plain_module(self) -> nn.Module:
        """The network without its habit, with the same weights, in float64 and in evaluation mode."""
        assert self.twin is not None, f"{self.name} has no twin"
        with torch.random.fork_rng(devices=[]):
            return randomized(self.twin().to(torch.float64)).eval()

    def module(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A fresh module, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            module = self.build().to(dtype)
            module = module if self.own else randomized(module).train(self.training)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module if self.wrap is None else self.wrap(module)

    def network(self, dtype: torch.dtype = torch.float64) -> Network:
        """A fresh network around a fresh module."""
        return self.around(self.module(dtype))

    def around(self, module: nn.Module) -> Network:
        """A network around a module that takes the same images."""
        return Network(module, self.side, channels=self.channels, name=self.name, **self.settings)

    def images(self, count: int = 3, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        """Inputs `(count, channels, height, width)` on both sides of zero; 8 x 8 in the zoo."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.channels, *((self.side,) * 2 if isinstance(self.side, int) else self.side))
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.to(memory_format=torch.channels_last) if self.channels_last else x


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights, biases and batch-norm statistics, none of them zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)

    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() > 1:
                p.copy_(normal(p) * 1.4 / p[0].numel() ** 0.5)
            elif name.endswith("bias"):
                p.copy_(0.3 * normal(p))
            else:
                p.copy_(1 + 0.3 * normal(p).tanh())
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * normal(b))
            elif name.endswith("running_var"):
                b.copy_(1 + 0.5 * normal(b).tanh())
    return module


class Body(nn.Module):
    """A network whose forward pass is a function of its layers."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


def _conv(i: int, o: int, k: int = 3, padding: Any = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=padding, **settings)


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def _plain(channels: int = 3) -> nn.Module:
    body = [_conv(channels, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), _conv(4, 4), nn.ReLU()]
    return nn.Sequential(*body, *_head(4))


def _functional_relu() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.relu(m.two(F.max_pool2d(torch.relu(m.one(x)), 2))))

    return Body(forward, one=_conv(3, 4), two=_conv(4, 4), head=_head(4))


def _functional_relu_plainly() -> nn.Module:
    return nn.Sequential(_conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), _conv(4, 4), nn.ReLU(), *_head(4))


def _inplace_relu(inplace: bool = True) -> nn.Module:
    body = [_conv(3, 4), nn.ReLU(inplace), nn.MaxPool2d(2), _conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(inplace)]
    return nn.Sequential(*body, *_head(4))


def _shared_relu() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.relu(m.norm(m.one(x)))
        return m.head(m.relu(m.two(m.relu(m.two(x)))))  # one convolution, too, is called twice

    return Body(forward, one=_conv(3, 4), norm=nn.BatchNorm2d(4), two=_conv(4, 4), relu=nn.ReLU(inplace=True), head=_head(4))


def _shared_relu_plainly() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.first(m.norm(m.one(x)))
        return m.head(m.third(m.again(m.second(m.two(x)))))

    two, again = _conv(4, 4), _conv(4, 4)
    again.weight, again.bias = two.weight, two.bias
    rectifiers = {"first": nn.ReLU(), "second": nn.ReLU(), "third": nn.ReLU()}
    return Body(forward, one=_conv(3, 4), norm=nn.BatchNorm2d(4), two=two, again=again, **rectifiers, head=_head(4))


def _skip() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        return m.head(F.relu(x + m.norm(m.two(x))))

    return Body(forward, one=_conv(3, 4), two=_conv(4, 4), norm=nn.BatchNorm2d(4), head=_head(4))


def _skip_in_place(inplace: bool = True) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.relu(m.one(x))
        identity = m.short(x)
        out = m.norm(m.two(x))
        if not inplace:
            return m.head(m.last(out + identity))
        out += identity
        return m.head(m.relu(out))

    layers = {"one": _conv(3, 4), "two": _conv(4, 4, stride=2), "norm": nn.BatchNorm2d(4), "short": _conv(4, 4, 1, 0, stride=2)}
    last = {} if inplace else {"last": nn.ReLU()}
    return Body(forward, **layers, relu=nn.ReLU(inplace), **last, head=_head(4))


def _concatenation() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        return m.head(torch.cat([F.relu(m.a(x)), F.relu(m.b(x)), F.max_pool2d(x, 3, 1, 1)], 1))

    return Body(forward, one=_conv(3, 4), a=_conv(4, 2, 1, 0), b=_conv(4, 3), head=_head(9))


def _squeeze_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.act(m.one(x))
        return m.head(m.act(m.three(x * m.gate(m.up(m.act(m.down(m.pool(x))))))))

    layers = {"one": _conv(3, 4), "pool": nn.AdaptiveAvgPool2d(1), "down": _conv(4, 2, 1, 0), "up": _conv(2, 4, 1, 0)}
    return Body(forward, **layers, gate=nn.Sigmoid(), act=nn.ReLU(inplace=True), three=_conv(4, 4), head=_head(4))


def _dict_output() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(m.one(x))
        return {"features": features, "out": m.head(features)}

    return Body(forward, one=_conv(3, 4), head=_head(4))


def _tuple_output() -> nn.Module:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(m.one(x))
        return m.aux(features), m.head(F.relu(m.two(features)))

    return Body(forward, one=_conv(3, 4), two=_conv(4, 4), aux=_head(4), head=_head(4))


def _depthwise() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu6(m.one(x))
        return m.head(x + m.project(F.relu6(m.norm(m.depth(x)))))

    layers = {"depth": _conv(4, 4, groups=4, bias=False), "norm": nn.BatchNorm2d(4), "project": _conv(4, 4, 1, 0)}
    return Body(forward, one=_conv(3, 4), **layers, head=_head(4))


def _no_pooling() -> nn.Module:
    flat = [nn.Flatten(), nn.Linear(4 * 9, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)]
    return nn.Sequential(_conv(3, 4, 4, 0, stride=2), nn.ReLU(inplace=True), *flat)


def _in_place_on_input() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x.mul_(2.0).sub_(0.5)
        x[:, :1] += 0.25
        return m.head(F.relu_(m.one(x)))

    return Body(forward, one=_conv(3, 4), head=_head(4))


def _in_place_on_input_plainly() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x * 2.0 - 0.5
        return m.head(F.relu(m.one(torch.cat([x[:, :1] + 0.25, x[:, 1:]], 1))))

    return Body(forward, one=_conv(3, 4), head=_head(4))


def _mixed_padding() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.one(F.pad(x, (2, 0, 1, 1), mode="replicate")))
        return m.head(F.relu(m.three(F.relu(m.two(x)))))

    layers = {"one": _conv(3, 4, 3, 0), "two": _conv(4, 4, 3, "same", dilation=2)}
    return Body(forward, **layers, three=_conv(4, 4, padding_mode="reflect", stride=2), head=_head(4))


def _pre_activation() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.one(x)
        x = torch.cat([x, m.two(F.relu(m.norm(x)))], 1)
        return m.head(F.relu(m.last(x), inplace=True))

    layers = {"norm": nn.BatchNorm2d(4), "two": _conv(4, 2, bias=False), "last": nn.BatchNorm2d(6)}
    return Body(forward, one=_conv(3, 4, bias=False), **layers, head=_head(6))


class _Scaled(nn.Module):
    """A residual block of ConvNeXt: depthwise, channels last, layer norm, two linear layers, a scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = _conv(channels, channels, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


def _convnext_like() -> nn.Module:
    return nn.Sequential(_conv(3, 4), _Scaled(4), *_head(4))


def _smooth(inplace: bool = True) -> nn.Module:
    body = [_conv(3, 4), nn.BatchNorm2d(4), nn.Hardswish(inplace), _conv(4, 4), nn.SiLU(inplace)]
    return nn.Sequential(*body, *_head(4))


def _shuffle() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.one(x))
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, F.relu(m.norm(m.two(b)))), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return m.fc(m.last(x).mean([2, 3]))

    return Body(
        forward, one=_conv(3, 4), two=_conv(2, 2), norm=nn.BatchNorm2d(2), last=_conv(4, 4, 1, 0), fc=nn.Linear(4, CLASSES)
    )


def _overlapping_pools() -> nn.Module:
    body = [_conv(3, 4), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), _conv(4, 4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * 4, CLASSES))


def _dropout(share: float = 0.5) -> nn.Module:
    body = [_conv(3, 4), nn.ReLU(), nn.Dropout2d(share), _conv(4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Dropout(share), nn.Linear(4, CLASSES))


class _Counting(nn.Module):
    """Updates buffers of its own, and those of a batch norm, whenever it is called in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = _conv(3, 4), nn.BatchNorm2d(4, momentum=None), _head(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("center", torch.full((1, 3, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.center.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.1)
        return self.head(F.relu(self.norm(self.one(x - self.center))))


def _linear() -> nn.Module:
    return nn.Sequential(_conv(3, 4, stride=2), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))


def _compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def _partly_compiled(module: nn.Module) -> nn.Module:
    module[0] = torch.compile(module[0], backend="eager")  # type: ignore[index,operator]
    return module


_ALL = (
    Hostile("functional-relu", "no ReLU is a module", _functional_relu, twin=_functional_relu_plainly),
    Hostile("in-place-relu", "ReLUs overwrite what comes before them", _inplace_relu, twin=lambda: _inplace_relu(False)),
    Hostile("shared-relu", "one ReLU and one convolution are called many times", _shared_relu, twin=_shared_relu_plainly),
    Hostile("skip", "a residual addition", _skip),
    Hostile("skip-in-place", "`out += identity` with a strided shortcut", _skip_in_place, twin=lambda: _skip_in_place(False)),
    Hostile("concatenation", "parallel branches, concatenated", _concatenation),
    Hostile("squeeze-excite", "a gate computed from the whole map", _squeeze_excite),
    Hostile("dict-output", "returns a dictionary", _dict_output),
    Hostile("tuple-output", "returns a tuple, the logits last", _tuple_output, settings={"output": 1}),
    Hostile("channels-last", "weights and inputs in channels-last memory", _plain, channels_last=True, twin=_plain),
    Hostile("depthwise", "depthwise convolutions and ReLU6", _depthwise),
    Hostile("no-pooling", "flattens the map into linear layers", _no_pooling),
    Hostile("in-place-on-input", "overwrites its own input", _in_place_on_input, twin=_in_place_on_input_plainly),
    Hostile("one-channel", "gray input", lambda: _plain(1), channels=1),
    Hostile("five-channel", "multispectral input", lambda: _plain(5), channels=5),
    Hostile("mixed-padding", "asymmetric, dilated, replicated and reflected borders", _mixed_padding),
    Hostile("pre-activation", "batch norm before the convolution, as in DenseNet", _pre_activation),
    Hostile("convnext-like", "GELU, layer norm, linear layers on channels", _convnext_like),
    Hostile("smooth", "hardswish and SiLU, in place", _smooth, twin=lambda: _smooth(False)),
    Hostile("channel-shuffle", "chunk, concatenate, shuffle channels, as in ShuffleNet", _shuffle),
    Hostile("overlapping-pools", "max pools that overlap, with ceil_mode", _overlapping_pools),
    Hostile("dropout", "left in training mode, with dropout", _dropout, training=True, twin=lambda: _dropout(0.0)),
    Hostile(
        "updated-buffers", "left in training mode, with buffers that calls update", _Counting, training=True, twin=_Counting
    ),
    Hostile("linear", "a linear map with bias", _linear, linear=True),
    Hostile("compiled", "compiled by torch.compile", _plain, wrap=_compiled, twin=_plain),
    Hostile("partly-compiled", "one layer of it compiled by torch.compile", _plain, wrap=_partly_compiled, twin=_plain),
)  # fmt: skip


def zoo() -> dict[str, Hostile]:
    """All hostile networks by name."""
    return {h.name: h for h in _ALL}


def unavailable(hostile: Hostile) -> str:
    """Why this network cannot be built here, or nothing."""
    return _no_compiler() if hostile.wrap is not None else ""


@functools.cache
def _no_compiler() -> str:
    try:
        torch.compile(nn.Identity(), backend="eager")(torch.zeros(1))
    except Exception as error:
        return f"torch.compile does not work here: {error}"
    return ""
