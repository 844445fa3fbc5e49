"""Boxes against the support of gradients; numbers against the literature."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from convoscope.core.geometry import Geometry


class Feed(TorchFunctionMode):
    """Feeds a Geometry and keeps what was made; max pools become average pools where asked."""

    def __init__(self, x: Tensor, average: bool = False) -> None:
        super().__init__()
        self.geometry, self.average, self.made = Geometry(x), average, {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = (resolve_name(func) or func.__name__).split(".")
        name = (parts[-2] if parts[-1] == "__get__" else parts[-1]).strip("_")
        if name == "max_pool2d" and self.average:
            stride, padding = kwargs.get("stride"), kwargs.get("padding", 0)
            output = F.avg_pool2d(*args[:2], stride=stride, padding=padding, ceil_mode=kwargs.get("ceil_mode", False))
        else:
            output = func(*args, **kwargs)
        self.geometry.observe(name, args, kwargs, output)
        for t in output if isinstance(output, tuple | list) else [output]:
            if isinstance(t, Tensor) and t.is_floating_point():
                self.made[id(t)] = (name, t)
        return output


def support(tensor: Tensor, x: Tensor, units: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """The box of the pixels that the unit at each place depends on; image u of the batch answers for units[u]."""
    weights = 1 + torch.arange(tensor.shape[1], dtype=tensor.dtype) / tensor.shape[1]  # so that no softmax sums to one
    total = sum((weights * tensor[u, :, i, j]).sum() for u, (i, j) in enumerate(units))
    (grad,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
    boxes = []
    for u in range(len(units)):
        hit = torch.zeros(x.shape[2:], dtype=torch.bool) if grad is None else (grad[u] != 0).any(0)
        rows, columns = hit.any(1).nonzero().flatten().tolist(), hit.any(0).nonzero().flatten().tolist()
        boxes.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1) if rows else (0, 0, 0, 0))
    return boxes


def spread(rows: int, columns: int, count: int) -> list[tuple[int, int]]:
    """Corners first, then places all over."""
    places = [(0, 0), (rows - 1, columns - 1), (0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)]
    places += [((7 * k) % rows, (5 * k + k // 3) % columns) for k in range(count)]
    return list(dict.fromkeys(places))[:count]


def positive(module: nn.Module) -> nn.Module:
    """Weights such that nothing cancels, dies or saturates."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            m.weight.data = torch.rand_like(m.weight) + 0.5
            m.weight.data /= m.weight[0].numel()
        elif getattr(m, "weight", None) is not None:
            m.weight.data = torch.rand_like(m.weight) * 0.5 + 0.75
        if getattr(m, "bias", None) is not None:
            m.bias.data = torch.rand_like(m.bias) * 0.1
        for name, p in m.named_parameters(recurse=False):
            if name == "layer_scale":
                p.data = torch.rand_like(p) + 0.5
    return module.double().eval()


def check(
    network: Callable[[Tensor], Any], shape: tuple[int, int, int], units: int = 8, average: bool = True, inner: int = 99
) -> Feed:
    """Every map that the network makes (at most `inner` of them): boxes equal to supports."""
    torch.manual_seed(0)
    x = (torch.rand(units, *shape, dtype=torch.float64) + 0.1).requires_grad_()
    feed = Feed(x, average)
    with feed:
        output = network(x)
    maps = [(n, t) for n, t in feed.made.values() if t.dim() == 4 and t.requires_grad and len(t) == units]
    step = math.ceil(len(maps) / inner)
    for name, t in maps[::-step] if isinstance(output, Tensor) else maps:
        field = feed.geometry.field(t)
        assert field is not None, name
        assert field.exact, f"{name} {tuple(t.shape)}: only a bound"
        if field.grid != tuple(t.shape[2:]):
            continue
        places = spread(*field.grid, units)
        assert [field.box(*p) for p in places] == support(t, x, places), f"{name} {tuple(t.shape)} at {places}: {field}"
    return feed


def conv(i: int = 2, o: int = 2, k: Any = 3, **settings: Any) -> nn.Module:
    return positive(nn.Conv2d(i, o, k, **settings))


def field_of(network: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> Any:
    x = torch.rand(1, *shape, dtype=torch.float64)
    with torch.no_grad(), Feed(x) as feed:
        y = network(x)
    return feed.geometry.field(y)


# ---------------------------------------------------------------- operators, one by one
def crop(x: Tensor) -> Tensor:
    return conv()(x[:, :, 1:-2, 3::2])


def nhwc(x: Tensor) -> Tensor:
    y = positive(nn.Linear(2, 4))(F.layer_norm(conv(stride=2)(x).permute(0, 2, 3, 1), (2,)))
    return conv(4, 2)(F.gelu(y).permute(0, 3, 1, 2))


def turned(x: Tensor) -> Tensor:
    return conv(k=(1, 5))(conv(k=(1, 3), stride=(1, 2))(x).transpose(2, 3))


def shuffled(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    y = torch.cat([a, conv(1, 1, 5, padding=2)(b)], 1)
    b_, c, h, w = y.shape
    y = y.view(b_, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b_, c, h, w)
    return conv(2, 2, 3, groups=2)(y)


def pixel_shuffle(x: Tensor) -> Tensor:
    return conv(1, 1)(F.pixel_shuffle(torch.cat([x, conv(padding=1)(x)], 1), 2))


def pixel_shuffle_by_hand(x: Tensor) -> Tensor:
    y = torch.cat([x, x], 1)
    b, _, h, w = y.shape
    return conv(1, 1)(y.reshape(b, 1, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, 1, 2 * h, 2 * w))


def beside(x: Tensor) -> Tensor:
    return conv(padding=1)(torch.cat([x, conv(padding=1)(x).flip(3)], 3))


def rolled(x: Tensor) -> Tensor:
    return conv()(torch.roll(x, (2, -3), (2, 3)))


def pools(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (3, 4))


def bottleneck(x: Tensor) -> Tensor:
    return F.conv_transpose2d(conv(stride=2)(x), conv(2, 2, 4).weight, stride=3, padding=1, output_padding=1, dilation=2)


def holes(x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, conv(2, 2, 1).weight, stride=2)


def in_place(x: Tensor) -> Tensor:
    out = conv(padding=1)(x)
    identity = out.clone()
    out = conv(padding=2, k=5)(out)
    out += identity
    F.relu(out, inplace=True)
    return conv()(out)


def written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :1] = conv(2, 1, padding=1)(x)
    out[:, 1:, 2:] = x[:, 1:, :-2]
    return conv()(out)


def steps(x: Tensor) -> Tensor:
    return conv()(x.unfold(2, 3, 2).sum(-1))


def tokens(x: Tensor) -> Tensor:
    y = conv(padding=1)(x)
    b, c, h, w = y.shape
    y = y.flatten(2).transpose(1, 2)
    y = positive(nn.Linear(2, 2))(y)
    return conv()(y.transpose(1, 2).reshape(b, c, h, w))


def gated(x: Tensor) -> Tensor:
    y = conv(padding=1)(x)
    return y * torch.sigmoid(conv(k=1)(F.adaptive_avg_pool2d(y, 1)))


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, conv(padding=1)(x)], 2).flatten(1, 2)[:, [0, 1]]


def windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 16)
    y = positive(nn.Linear(16, 16))(y)
    return y.view(b, h // 4, w // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w) * 1.0


def resized(**settings: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: conv(padding=1)(F.interpolate(conv(stride=2)(x), **settings))


def padded(mode: str) -> Callable[[Tensor], Tensor]:
    return lambda x: conv(k=3, dilation=2)(F.pad(conv()(x), (1, 2, 3, 0), mode))


NETWORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: conv(k=(3, 2), stride=(2, 1))(conv(k=5, stride=2, padding=2)(x)),
    "dilated": lambda x: conv(dilation=(2, 3), padding=(2, 1))(conv(padding=1)(x)),
    "same": lambda x: conv(k=4, padding="same", dilation=(1, 2))(x),
    "reflect module": lambda x: conv(k=5, padding=2, padding_mode="reflect")(conv(stride=2)(x)),
    "circular module": lambda x: conv(k=5, padding=2, padding_mode="circular")(conv()(x)),
    "max pool, ceil": lambda x: F.max_pool2d(F.max_pool2d(x, 3, 2, ceil_mode=True), 2, 2, 1, ceil_mode=True),
    "padding wider than the kernel": lambda x: conv(k=3)(conv(k=1, padding=2)(x)),
    "local response": lambda x: F.local_response_norm(conv(padding=1)(x), 2),
    "instance norm": lambda x: F.instance_norm(conv()(x)),
    "group norm": lambda x: F.group_norm(conv()(x), 1),
    "nearest": resized(scale_factor=2),
    "nearest, odd": resized(scale_factor=1.7),
    "nearest exact": resized(size=(9, 5), mode="nearest-exact"),
    "bilinear": resized(scale_factor=2, mode="bilinear"),
    "bilinear, corners": resized(size=(11, 17), mode="bilinear", align_corners=True),
    "bicubic": resized(scale_factor=(1.5, 2), mode="bicubic"),
    "antialias": resized(size=(3, 4), mode="bilinear", antialias=True),
    "area": resized(size=(3, 4), mode="area"),
    **{f"pad {mode}": padded(mode) for mode in ("constant", "reflect", "replicate", "circular")},
    **{
        f.__name__: f
        for f in (crop, nhwc, turned, shuffled, pixel_shuffle, pixel_shuffle_by_hand, beside, rolled, pools, bottleneck, holes)
    },
    **{f.__name__: f for f in (in_place, written, steps, tokens, gated, stacked, windows)},
    "unshuffled": lambda x: conv(8, 2, 2)(F.pixel_unshuffle(x, 2)),
    "skip of two lengths": lambda x: conv(k=5, padding=2)(x) + conv(k=1)(x) * 0.5,
    "repeated": lambda x: conv()(x.repeat(1, 1, 2, 1).repeat_interleave(2, 3)),
    "narrowed": lambda x: conv()(x.narrow(2, 3, 7).select(3, 2).unsqueeze(3).expand(-1, -1, -1, 5)),
    "gated linear": lambda x: F.glu(torch.cat([x, conv(padding=1)(x)], 1), 1),
    "softmax over channels": lambda x: conv(padding=1)(x).softmax(1) * conv(padding=1)(x).mean(1, keepdim=True),
    "split in space": lambda x: conv()(torch.cat(x.split([5, 7], 2)[::-1], 2)),
    "spatial mean": lambda x: conv(k=(1, 3))(x.mean(2, keepdim=True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_boxes_are_the_support(name: str) -> None:
    check(NETWORKS[name], (2, 12, 16))


@pytest.mark.parametrize("seed", range(24))
def test_random_networks(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    def network(x: Tensor) -> Tensor:
        for _ in range(pick(2, 3, 4)):
            kind = pick("conv", "conv", "pool", "skip", "cat", "up", "crop", "flip", "transpose", "pad")
            if min(x.shape[2:]) < 6:
                x = F.interpolate(x, scale_factor=2)
            if kind == "conv":
                k, d = (pick(1, 2, 3), pick(1, 3)), (pick(1, 2), 1)
                x = conv(k=k, stride=(pick(1, 2), pick(1, 3)), padding=(pick(0, 1), pick(0, 2)), dilation=d)(x)
            elif kind == "pool":
                x = F.avg_pool2d(x, pick(2, 3), pick(1, 2), pick(0, 1), ceil_mode=pick(False, True))
            elif kind == "skip":
                x = x + conv(k=pick(3, 5), padding="same", dilation=pick(1, 2))(x)
            elif kind == "cat":
                x = conv(4, 2, 1)(torch.cat([x, conv(padding=1)(x)], 1))
            elif kind == "up":
                x = F.interpolate(x, scale_factor=pick(1.5, 2), mode=pick("nearest", "bilinear"))
            elif kind == "crop":
                x = x[:, :, pick(0, 1) :, : pick(None, -1) : pick(1, 2)]
            elif kind == "flip":
                x = x.flip(pick(2, 3))
            elif kind == "transpose":
                x = F.conv_transpose2d(x, conv(k=pick(2, 3)).weight, stride=pick(1, 2), padding=pick(0, 1))
            else:
                x = F.pad(x, (pick(0, 2), 1, 1, pick(0, 1)), pick("constant", "reflect", "circular"))
        return x

    check(network, (2, 13, 11))


# ---------------------------------------------------------------- networks of torchvision
def torchvision_network(name: str) -> nn.Module:
    network = pytest.importorskip("convoscope.loading")
    models = network.import_torchvision().models
    settings = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        module = models.get_model(name, weights=None, **settings)
        if name in ("vgg11_bn", "alexnet"):  # the real ones have a hundred million weights, and nothing to add
            module.classifier = nn.Linear(module.classifier[1 if name == "alexnet" else 0].in_features, 1000)
    module = module.to_empty(device="cpu")
    for b in module.modules():
        if isinstance(b, nn.BatchNorm2d):
            b.reset_running_stats()
    return positive(module)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 96), ("densenet121", 64), ("googlenet", 64), ("inception_v3", 139), ("shufflenet_v2_x1_0", 96),
        ("squeezenet1_1", 64), ("mobilenet_v3_small", 64), ("efficientnet_b0", 64), ("convnext_tiny", 64), ("vgg11_bn", 64),
        ("alexnet", 80),
    ],
)  # fmt: skip
def test_boxes_of_real_networks(name: str, size: int) -> None:
    network = torchvision_network(name)
    for p in network.parameters():
        p.requires_grad_(False)
    feed = check(network, (3, size, size + 6), units=4, inner=10)
    last = list(feed.made.values())[-1][1]
    assert last.shape == (4, 1000)
    assert feed.geometry.field(last).whole


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [
        ("resnet18", (64, 112, 112), "7/2"),
        ("resnet18", (512, 7, 7), "435/32"),
        ("vgg11_bn", (512, 14, 14), "134/16"),
        ("alexnet", (256, 13, 13), "163/16"),
        ("densenet121", (1024, 7, 7), "2071/32"),
        ("googlenet", (1024, 7, 7), "379/32"),
        ("squeezenet1_1", (1000, 13, 13), "207/16"),
        ("mobilenet_v3_small", (576, 7, 7), "whole image"),
    ],
)
def test_numbers_of_the_literature(name: str, shape: tuple[int, ...], numbers: str) -> None:
    network = torchvision_network(name)
    x = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad(), Feed(x) as feed:
        network(x)
    fields = [str(feed.geometry.field(t)) for _, t in feed.made.values() if tuple(t.shape[1:]) == shape]
    assert fields[-1] == numbers


def test_vgg16_by_hand() -> None:
    layers: list[nn.Module] = []
    for block, count in enumerate((2, 2, 3, 3, 3)):
        layers += [nn.MaxPool2d(2)] * (block > 0) + [nn.Conv2d(1, 1, 3, padding=1) for _ in range(count)]
    field = field_of(nn.Sequential(*layers).double(), (1, 224, 224))
    assert (field.size, field.stride, field.offset) == ((196, 196), (16, 16), (-90, -90))
    assert field.grid == (14, 14)
    assert field.box(0, 13) == (0, 118, 106, 224)


# ---------------------------------------------------------------- what a field says
def test_each_axis_has_its_own_numbers() -> None:
    field = field_of(lambda x: conv(1, 1, (7, 1), stride=(2, 1), padding=(3, 0))(x), (1, 20, 30))
    assert (field.size, field.stride, field.offset, field.grid) == ((7, 1), (2, 1), (-3, 0), (10, 30))
    assert str(field) == "7/2 x 1/1"


def test_a_map_of_one_position_keeps_its_numbers() -> None:
    network = nn.Sequential(*[nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(5)]).double()
    assert str(field_of(network, (1, 16, 16))) == str(field_of(network, (1, 200, 200))) == "63/32"


@pytest.mark.parametrize(
    "network",
    [
        lambda x: conv(1, 1)(x).mean((2, 3)),
        lambda x: F.adaptive_max_pool2d(conv(1, 1)(x), 1),
        lambda x: positive(nn.Linear(100, 3))(conv(1, 1)(x).flatten(1)),
        lambda x: x * conv(1, 1, 1)(F.adaptive_avg_pool2d(x, 1)),
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3),
        lambda x: F.layer_norm(x, (1, 12, 12)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.adaptive_avg_pool2d(torch.cat([x, conv(1, 1, padding=1)(x)], 1), 1),
        lambda x: F.interpolate(conv(1, 1, 1)(x.mean((2, 3), keepdim=True)), size=(12, 12), mode="bilinear"),
    ],
)
def test_the_whole_image(network: Callable[[Tensor], Tensor]) -> None:
    field = field_of(network, (1, 12, 12))
    assert field.whole
    assert field.exact
    assert str(field) == "whole image"
    assert field.box(0, 0) == (0, 0, 12, 12)


def test_not_the_whole_image() -> None:
    assert not field_of(lambda x: conv()(x).amax(1, keepdim=True), (2, 12, 12)).whole
    assert not field_of(lambda x: x.mean(3), (2, 12, 12)).whole
    assert not field_of(nhwc, (2, 12, 12)).whole


def test_an_unknown_operator_is_a_bound() -> None:
    field = field_of(lambda x: torch.linalg.pinv(x[:, :, 2:9, 1:8]), (1, 12, 12))
    assert not field.exact
    assert field.box(3, 3) == (2, 1, 9, 8)
    assert str(field) == "at most the whole image"


def test_views_of_what_was_overwritten() -> None:
    x = torch.rand(1, 4, 8, 8)
    with torch.no_grad(), Feed(x) as feed:
        y = x * 1.0
        part = y[:, :2]
        part += conv(4, 2, padding=1).float()(x)
        buffer = torch.zeros(1, 4, 8, 8)
        buffer[:, 1:3].copy_(x[:, 1:3])
    assert feed.geometry.field(part).box(4, 4) == (3, 3, 6, 6)
    for t in (y, buffer):
        field = feed.geometry.field(t)
        assert not field.exact
        assert field.box(4, 4) == (0, 0, 8, 8)


def test_what_was_not_derived_from_the_input() -> None:
    x = torch.rand(1, 2, 8, 8)
    with torch.no_grad(), Feed(x) as feed:
        constant = torch.ones(1, 2, 8, 8) + torch.zeros_like(x)
    assert feed.geometry.field(constant) is None
    assert feed.geometry.field(x).box(3, 4) == (3, 4, 4, 5)
    with pytest.raises(IndexError):
        feed.geometry.field(x).box(8, 0)


def test_observing_calls_no_operator_that_others_see() -> None:
    seen: list[Any] = []

    class Outer(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.rand(1, 2, 8, 8)
    y = F.interpolate(x, scale_factor=1.3)
    with Outer():
        Geometry(x).observe("interpolate", (x,), {"scale_factor": 1.3}, y)
    assert not seen
