"""Replayed passes are full passes: on hostile networks, real architectures, and operator by operator."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core import passes, replay
from convoscope.core.incremental import Replay
from convoscope.core.probe import Probe, Session, Window
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.testing.zoo import randomized, unavailable, zoo

REPLAYABLE = [n for n in zoo() if n != "in-place-on-input"]
NOTHING = (slice(0, 0), slice(0, 0))


def probe_of(module: nn.Module, images: Tensor, target: Any = None, **settings: Any) -> Probe:
    session = Session(module, images, target or cs.Logit(1), **{"replays": True, "batch_size": 4, **settings})
    return Probe(session, torch.arange(len(images)), tuple((i,) for i in range(len(images))))


def windows_of(x: Tensor, size: tuple[int, int], steps: tuple[int, int]) -> list[Window]:
    places = [
        sorted({*range(0, length - side, step), length - side})
        for length, side, step in zip(x.shape[2:], size, steps, strict=True)
    ]
    return [(slice(i, i + size[0]), slice(j, j + size[1])) for i in places[0] for j in places[1]]


def agree(module: nn.Module, images: Tensor, windows: list[Window], x: Tensor | None = None, **settings: Any) -> Probe:
    """Asserts that replayed windows are what full passes give; the probe that replayed."""
    x = images if x is None else x
    fill = torch.full_like(x, 0.3)
    with undisturbed(module), torch.no_grad():
        expected = probe_of(module, images, **settings, replays=False).patched(x, fill, windows)
        probe = probe_of(module, images, **settings)
        found = probe.patched(x, fill, windows)
    error = 1e-10 if x.dtype == torch.float64 else 1e-5
    assert (found - expected).abs().max() <= error * expected.abs().max()
    return probe


# ---- networks
@pytest.mark.parametrize("name", zoo())
def test_every_hostile_network(name: str) -> None:
    hostile = zoo()[name]
    if reason := unavailable(hostile):
        pytest.skip(reason)
    net, x = hostile.network(), hostile.images(2)
    probe = agree(net.plain, x, [*windows_of(x, (2, 3), (2, 2)), NOTHING], head=net.head)
    assert probe.session.replays is (name in REPLAYABLE)
    single = hostile.network(torch.float32)
    agree(single.plain, hostile.images(1, torch.float32), windows_of(x, (3, 3), (3, 3)), head=single.head)


@pytest.mark.parametrize("name", REPLAYABLE)
def test_from_a_layer_on(name: str) -> None:
    hostile = zoo()[name]
    if reason := unavailable(hostile):
        pytest.skip(reason)
    net, x = hostile.network(), hostile.images(2)
    entries = [e for e in net.trace(x[:1]).entries if len(e.shape) == 3 and e.address != "input"][:3]
    for entry in entries[::2]:
        with undisturbed(net.plain), torch.no_grad():
            there = record(net.plain, x, (entry.address,), head=net.head)[entry.address]
            agree(net.plain, x, windows_of(there, (1, 1), (2, 2)), there, at=entry.address, head=net.head)
            values = torch.randn(10, *there.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(2))
            for target in (cs.Logit(1), cs.Layer(entries[0].address)):  # the second is known before the layer
                full = probe_of(net.plain, x, target, head=net.head, replays=False).repeat(range(5))
                probe, kept = probe_of(net.plain, x, target, head=net.head).repeat(range(5)), values.clone()
                found = probe.score_at(x, entry.address, values)
                assert torch.allclose(found, full.score_at(x, entry.address, values), rtol=1e-10, atol=1e-12)
                assert probe.session.evaluations == len(values) + len(x)
                assert torch.equal(values, kept)


FAMILIES = {
    "resnet18": 48, "squeezenet1_1": 48, "densenet121": 48, "mobilenet_v3_small": 48, "googlenet": 48, "vgg11_bn": 32,
    "efficientnet_b0": 48, "shufflenet_v2_x0_5": 48, "convnext_tiny": 32, "regnet_y_400mf": 48,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_real_architectures(torchvision: ModuleType, name: str) -> None:
    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]), skipped_initialization():
        module = getattr(torchvision.models, name)(weights=None, **settings)
    if name == "vgg11_bn":
        module.classifier = nn.Linear(512 * 49, 10)  # the network's own has a hundred million weights
    module, side = randomized(module).double(), FAMILIES[name]
    x = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    windows = [(slice(0, 8), slice(0, 6)), (slice(20, 28), slice(13, 19)), (slice(side - 8, side), slice(2, 8)), NOTHING]
    target = cs.Layer("output", "l2") + cs.Logit(7)  # SqueezeNet's classes may all be zero but some
    assert agree(module, x, windows, target=target).session.replays


@contextlib.contextmanager
def skipped_initialization() -> Iterator[None]:
    """Weights are drawn once, by `randomized`."""
    kept = {n: getattr(nn.init, n) for n in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "normal_", "uniform_")}
    try:
        for n in kept:
            setattr(nn.init, n, lambda t, *a, **k: t)
        yield
    finally:
        for n, function in kept.items():
            setattr(nn.init, n, function)


# ---- operators
class After(nn.Module):
    """A convolution, then an operator."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.operator = nn.Conv2d(3, 4, 3, padding=1), operator
        randomized(self.double())

    def forward(self, x: Tensor) -> Tensor:
        y = self.operator(self.conv(x)).flatten(2).square()
        return torch.stack([y.sum((1, 2)), (y * torch.linspace(0, 1, y.shape[2], dtype=x.dtype)).sum((1, 2))], 1)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def written(x: Tensor) -> Tensor:
    z = torch.zeros(x.shape, dtype=x.dtype)
    z[:, :2] = x[:, 1:3]
    return z


LOCAL = {
    "reflect": lambda x: F.pad(x, (3, 2, 1, 4), mode="reflect"),
    "replicate": lambda x: F.pad(x, (3, 2, 1, 4), mode="replicate"),
    "padded with a number": lambda x: F.pad(x, (3, 2), value=2.0),
    "average, counting what is inside": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average": lambda x: F.avg_pool2d(x, (3, 4), (2, 3), (1, 2), ceil_mode=True),
    "largest, overlapping": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "largest, dilated": lambda x: F.max_pool2d(x, 2, 1, 0, 2),
    "stride without window": lambda x: F.max_pool2d(x, 1, 2),
    "same": lambda x: F.conv2d(x, weight(4, 1, 4, 2), padding="same", groups=4),
    "dilated": lambda x: F.conv2d(x, weight(4, 4, 3, 3), None, (2, 3), (3, 1), (2, 1)),
    "one in three": lambda x: F.conv2d(x, weight(2, 4, 1, 1), None, 3, 1),
    "leaves pixels out": lambda x: F.conv2d(x, weight(2, 4, 2, 2), None, 5, 1),
    "channels": lambda x: torch.cat([x[:, 1:], x[:, :1], x.mean(1, keepdim=True), x.softmax(1)], 1),
    "mean of channels": lambda x: x.mean(1)[:, None] * x,
    "channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).transpose(1, 3).contiguous(),
    "groups": lambda x: x.view(x.size(0), 2, 2, x.size(2), x.shape[3]).transpose(1, 2).reshape(x.shape),
    "constants": lambda x: x * torch.linspace(0, 1, 4, dtype=x.dtype).view(4, 1, 1) + torch.ones(1, dtype=x.dtype),
    "prelu": lambda x: F.prelu(x, torch.linspace(0, 1, 4, dtype=x.dtype)),
    "in place": lambda x: F.hardswish(x * 1, inplace=True).add_(1).mul_(2),
    "split": lambda x: torch.cat([a * k for k, a in enumerate(x.split([1, 3], 1))], dim=1),
    "sums of positions": lambda x: x.sum((2, 3), keepdim=True),
    "transposed": lambda x: x.transpose(2, 3) + x.mT,
    "types": lambda x: x.float().double().data,
    "swish": lambda x: (x * 1).mul_(x.sigmoid()),
}
GLOBAL = {
    "circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),  # from corner to corner
    "largest with places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3) * 2,
    "interpolated": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "sliced": lambda x: x[:, :, ::2, 1:] + 1,
    "flipped": lambda x: x.flip(3).roll(2, 2),
    "places": lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "attention": lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2),
    "group norm": lambda x: F.group_norm(x, 2),
    "written": written,
    "from nothing": lambda x: torch.cat([x, x.new_ones(x.size(0), 1, *x.shape[2:])], 1),
    "shuffled pixels": lambda x: F.pixel_shuffle(x, 2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, weight(4, 2, 3, 3), None, 2),
    "the mean of the batch, times nothing": lambda x: x - 0 * x.mean(0, keepdim=True),
    "padded, and overwritten": lambda x: (lambda h: F.relu_(F.pad(h, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1] + h)(x * 1),
}


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x


IMPOSSIBLE = {
    "looks at a number": lambda x: x * (2 if x.sum() > 0 else 3),
    "hidden": lambda x: scripted(x) + x,
    "overwrites a view": lambda x: (lambda h: (F.relu_(h.view(x.size(0), -1)), h)[1] * 1)(x * 1),
    "out": lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
}
X = torch.randn(2, 3, 12, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*LOCAL, *GLOBAL, *IMPOSSIBLE])
def test_operators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[str] = []
    run = Replay._whole
    monkeypatch.setattr(Replay, "_whole", lambda self, step, *args: (whole.append(step.name), run(self, step, *args))[1])
    module = After({**LOCAL, **GLOBAL, **IMPOSSIBLE}[name])
    probe = agree(module, X, [*windows_of(X, (1, 1), (5, 4)), NOTHING])
    assert probe.session.replays is (name not in IMPOSSIBLE)
    if name in LOCAL:
        assert set(whole) <= {"flatten"}  # nothing before it ran on whole maps
    for size in ((3, 2), (12, 13)):
        agree(module, X, [*windows_of(X, size, (6, 6)), NOTHING, NOTHING, NOTHING])


# ---- what is asked at once
def test_all_targets_from_the_same_passes() -> None:
    hostile = zoo()["skip"]
    net, x = hostile.network(), hostile.images(2)
    windows = windows_of(x, (3, 3), (2, 2))
    targets = (cs.Logit(0), cs.Logit(1), cs.Logit(2), cs.Channel("layers.one", 1, over="max"))
    counts, memo = [], {}
    for target in targets:
        session = Session(net.plain, x, target, batch_size=4, replays=True)
        session.shared.x, session.shared.targets, session.shared.memo = x, targets, memo
        with undisturbed(net.plain):
            found = Probe(session, torch.arange(2), ((0,), (1,))).patched(x, torch.zeros_like(x), windows)
            alone = probe_of(net.plain, x, target, replays=False).patched(x, torch.zeros_like(x), windows)
        counts.append(session.evaluations)
        assert torch.allclose(found, alone, rtol=1e-10, atol=1e-12)
    assert counts == [2 * (len(windows) + 2), 0, 0, 0]


def test_windows_of_any_size_in_any_order() -> None:
    net, x = zoo()["concatenation"].network(), zoo()["concatenation"].images(2)
    sides = ((0, 8, 3, 4), (5, 6, 0, 2), (0, 0, 0, 0), (2, 7, 6, 8), (7, 8, 7, 8))
    windows = [(slice(i, j), slice(k, m)) for i, j, k, m in sides]
    for batch_size in (1, 2, 99):
        agree(net.plain, x, windows, batch_size=batch_size)


def test_few_small_windows_are_not_worth_it() -> None:
    net, x = zoo()["skip"].network(), zoo()["skip"].images(1)
    probe = probe_of(net.plain, x, replays=None)
    windows = windows_of(x, (3, 3), (2, 2))
    with undisturbed(net.plain):
        probe.patched(x, x * 0, windows)
    assert probe.session.evaluations == len(windows)


# ---- guards
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(8 * 900, 3))
    randomized(module)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    windows, taken = windows_of(x, (4, 4), (3, 3)), []
    again = passes._Passes.again

    def watched(self: Any, clean: Any, entry: Any, rows: int, **layers: Any) -> Any:
        found, bytes_ = again(self, clean, entry, rows, **layers)
        taken.append((rows, bytes_, clean.largest))
        return found, bytes_

    monkeypatch.setattr(passes._Passes, "again", watched)
    rows = {}
    for memory in (1 << 18, 1 << 20, 1 << 22, None):
        taken.clear()
        agree(module, x, windows, memory=memory)
        rows[memory] = max(n for n, _, _ in taken)
        assert sum(n for n, _, _ in taken) == len(windows)
        assert max(b for _, b, _ in taken) <= max(memory or 4 * taken[0][2], taken[0][1])
    assert rows[1 << 18] < rows[1 << 20] < rows[1 << 22]
    assert rows[None] > 4  # four whole rows make room for more windows


def test_a_wrong_rule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(call: Any, changed: Any) -> Any:
        return [replay.Patch(call.clean[0], changed[0].values * 0.999, changed[0].starts)]

    net, x = zoo()["functional-relu"].network(), zoo()["functional-relu"].images(1)
    monkeypatch.setitem(replay.RULES, "relu", wrong)
    assert agree(net.plain, x, windows_of(x, (3, 3), (1, 1))).session.replays is False


def test_the_networks_own_errors_are_its_own() -> None:
    def three_rows_at_most(x: Tensor) -> Tensor:
        if len(x) > 3:
            raise RuntimeError("cannot count beyond three")
        return x

    module = After(three_rows_at_most)
    windows = windows_of(X, (3, 3), (3, 3))
    with undisturbed(module), pytest.raises(RuntimeError, match="cannot count beyond three"):
        probe_of(module, X).patched(X, X * 0, windows)
    agree(module, X, windows, batch_size=2)


def test_out_of_memory_makes_batches_smaller() -> None:
    def two_rows_at_most(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("out of memory")
        return x

    module, windows = After(two_rows_at_most), windows_of(X, (3, 3), (3, 3))
    with undisturbed(module):
        probe = probe_of(module, X, batch_size=8, adaptive=True)
        found = probe.patched(X, X * 0, windows)
        expected = probe_of(module, X, replays=False, batch_size=2).patched(X, X * 0, windows)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert probe.session.batch_size == 2
    assert probe.session.replays
