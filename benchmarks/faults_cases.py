"""The faults of methods, tried on any library: each function tries one kind of case and yields how each ended."""

import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convoscope.testing import zoo
from convoscope.testing.laws_networks import formed
from convoscope.testing.untouched import Watch

from .faults_libraries import Explain, NothingToAskFor, on_purpose

RIGHT, SAID, WRONG, CRASHED = "right", "said", "wrong", "crashed"
CLOSE = 1e-3  # single precision, relative to the largest value
SINGLE = torch.float32


@dataclass(frozen=True)
class Tried:
    """A method of a library."""

    library: str
    name: str
    explain: Explain

    def attempt(self, module: nn.Module, x: Tensor, target: Any = 1) -> Tensor | str:
        """Its maps, or how it failed."""
        try:
            found = self.explain(module, x, target)
        except NothingToAskFor:
            raise
        except (Exception, Stopped) as error:
            return SAID if on_purpose(error, self.library) else CRASHED
        return CRASHED if found is None else found.detach().double()  # grad-cam's `with` swallows an IndexError

    def compared(self, module: nn.Module, x: Tensor, expected: Tensor, target: Any = 1, close: float = CLOSE) -> str:
        found = self.attempt(module, x, target)
        return found if isinstance(found, str) else RIGHT if alike(found, expected, close) else WRONG

    def reference(self, module: nn.Module, x: Tensor, target: Any = 1) -> Tensor | None:
        """What it gives of a network that is as plain as can be; None where it cannot."""
        found = self.attempt(module, x, target)
        return None if isinstance(found, str) or not found.isfinite().all() else found


class Stopped(BaseException):
    """As Ctrl-C is."""


def alike(found: Tensor, expected: Tensor, close: float = CLOSE) -> bool:
    if found.shape != expected.shape:
        return False
    scale = max(float(expected.abs().max()), 1e-12)
    return bool(((found - expected).abs() <= close * scale).all())


def plain() -> nn.Module:
    """Convolution, batch norm, ReLU, pooling, convolution, ReLU, average, linear: every method of every library can run it."""
    return zoo()["channels-last"].plain_module().float()


def images(count: int = 3) -> Tensor:
    return zoo()["skip"].images(count, SINGLE)


def leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if not list(m.children())]


Verdicts = Iterator[str]


# ---------------------------------------------------------------- F1, F2, F35: what is left behind
def state_after_success(t: Tried) -> Verdicts:
    module, x = plain(), images()
    watch = Watch(module, x)
    found = t.attempt(module, x)
    yield found if isinstance(found, str) else _left(watch)


def state_after_exceptions(t: Tried) -> Verdicts:
    for k in range(len(leaves(plain()))):
        module, x = plain(), images()

        def fail(*_: Any, k: int = k) -> None:
            raise (Stopped if k % 2 else RuntimeError)("on purpose")

        leaves(module)[k].register_forward_hook(fail)
        watch = Watch(module, x)
        with contextlib.suppress(Exception, Stopped):
            t.explain(module, x, 1)
        yield _left(watch)


def _left(watch: Watch) -> str:
    try:
        watch.check("afterwards")
    except AssertionError:
        return WRONG
    return RIGHT


def network_is_let_go(t: Tried) -> Verdicts:
    module, x = plain(), images()
    if isinstance(found := t.attempt(module, x), str):
        yield found
        return
    known = weakref.ref(module)
    del module, found
    gc.collect()
    yield RIGHT if known() is None else WRONG


def input_is_only_read(t: Tried) -> Verdicts:
    for x in (images(), images().requires_grad_()):
        kept, version, leaf = x.detach().clone(), x._version, x.requires_grad
        found = t.attempt(plain(), x)
        if isinstance(found, str):
            yield found
        else:
            same = torch.equal(kept, x) and version == x._version and x.requires_grad == leaf and x.grad is None
            yield RIGHT if same else WRONG


def calls_leave_nothing(t: Tried) -> Verdicts:
    module, x = plain(), images()
    for _ in range(2):
        if isinstance(found := t.attempt(module, x), str):
            yield found
            return
    gc.collect()
    gc.freeze()
    for _ in range(10):
        t.attempt(module, x)
    gc.collect()
    yield RIGHT if len(gc.get_objects()) < 20 else WRONG
    gc.unfreeze()


# ---------------------------------------------------------------- F3 to F7: networks
def other_habits(t: Tried) -> Verdicts:
    x = images()
    known = [zoo()[n] for n in ("functional-relu", "in-place-relu", "skip-in-place", "smooth")]
    pairs = [(h.plain_module().float(), h.module(SINGLE).eval()) for h in known]
    for twin, module in [*pairs, (_rectified(nn.ReLU(), nn.ReLU()), _rectified(*[nn.ReLU()] * 2))]:
        expected = t.reference(twin, x)
        if expected is not None:
            yield t.compared(module, x.clone(), expected)


def _rectified(one: nn.Module, two: nn.Module) -> nn.Module:
    first, second, *head = (m for m in plain() if isinstance(m, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.Flatten | nn.Linear))  # type: ignore[attr-defined]
    return nn.Sequential(first, one, second, two, *head)


def other_forms(t: Tried) -> Verdicts:
    x = images()
    expected = t.reference(zoo()["in-place-relu"].module().eval(), x.double())
    for form in ("scripted", "traced", "exported", "an FX graph", "data parallel", "with weight norm", "pruned"):
        module = formed(form, zoo()["in-place-relu"])
        if isinstance(module, nn.Module) and expected is not None:
            with contextlib.suppress(NothingToAskFor):
                yield t.compared(module, x.double(), expected)


def train_mode(t: Tried) -> Verdicts:
    expected = t.reference(plain(), images())
    for parts in ("all", "batch norm"):
        module = plain()
        for m in module.modules():
            m.training = parts == "all" or isinstance(m, nn.BatchNorm2d)
        watch = Watch(module, images())
        if expected is not None:
            ended = t.compared(module, images(), expected)
            yield WRONG if _left(watch) == WRONG else ended


def modes(t: Tried) -> Verdicts:
    """The same map; under autocast, which rounds, a finite one."""
    expected = t.reference(plain(), images())
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        if expected is not None:
            module = plain()
            with mode:
                rounded = isinstance(mode, torch.autocast)
                yield _finite(t, module, images()) if rounded else t.compared(module, images(), expected)


def _finite(t: Tried, module: nn.Module, x: Tensor) -> str:
    found = t.attempt(module, x)
    return found if isinstance(found, str) else RIGHT if found.isfinite().all() else WRONG


def frozen_parameters(t: Tried) -> Verdicts:
    if (expected := t.reference(plain(), images())) is not None:
        module = plain().requires_grad_(False)
        yield t.compared(module, images(), expected)
        half = plain()
        half[0].requires_grad_(False)  # type: ignore[index]
        yield t.compared(half, images(), expected)


# ---------------------------------------------------------------- F8 to F12, F36: what comes in
def not_finite(t: Tried) -> Verdicts:
    """Silence is wrong, whatever the numbers."""
    if t.reference(plain(), images()) is None:
        return
    for value in (float("nan"), float("inf")):
        x = images()
        x[1, 0, 2, 3] = value
        yield _refused(t, plain(), x)
        for spot in ("weight", "activation"):
            module = plain()
            if spot == "weight":
                module[4].weight.data[0, 0, 0, 0] = value  # type: ignore[index]
            else:
                module[4].register_forward_hook(lambda m, a, o, v=value: o + torch.full_like(o[:, :, :1, :1], v))  # type: ignore[index]
            yield _refused(t, module, images())


def _refused(t: Tried, module: nn.Module, x: Tensor, target: Any = 1) -> str:
    found = t.attempt(module, x, target)
    return found if isinstance(found, str) else WRONG


def bad_calls(t: Tried) -> Verdicts:
    x = images()
    calls: list[tuple[Tensor, Any]] = [
        (torch.cat([x, x[:, :1]], 1), 1), (x[:, 1:], 1), (x[0, 0], 1), (x[None], 1), (x[:0], 1), (x, 99), (x, [0, 1]),
        (x, 1.5), (x, "tabby"), (x.to(torch.uint8), 1), (x.long(), 1), (x.to(torch.complex64), 1), (x > 0, 1),
        (x.to("meta"), 1), (x[:, :, :0], 1),
    ]  # fmt: skip
    for wrong, target in calls:
        yield _refused(t, plain(), wrong, target)


def sizes(t: Tried) -> Verdicts:
    for height, width in ((1, 1), (1, 7), (7, 1), (5, 9), (8, 8)):
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        found = t.attempt(zoo()["functional-relu"].plain_module().float() if height > 7 else _without_pools(), x)
        yield found if isinstance(found, str) else RIGHT if len(found) == 1 and found.isfinite().all() else WRONG


def _without_pools() -> nn.Module:
    return nn.Sequential(*[nn.Identity() if isinstance(m, nn.MaxPool2d) else m for m in plain()])  # type: ignore[attr-defined]


def types(t: Tried) -> Verdicts:
    """Double as single precision; half precision finite; images of another type than the network's."""
    expected = t.reference(plain(), images())
    if expected is None:
        return
    yield t.compared(plain().double(), images().double(), expected)
    yield t.compared(plain(), images().double(), expected)
    for dtype in (torch.bfloat16, torch.float16):
        yield _finite(t, plain().to(dtype), images().to(dtype))


def layouts(t: Tried) -> Verdicts:
    from torchvision.tv_tensors import Image

    x = images()
    expected = t.reference(plain(), x)
    if expected is None:
        return
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for given in (x.contiguous(memory_format=torch.channels_last), turned, torch._neg_view(-x), Image(x), nn.Parameter(x)):
        yield t.compared(plain(), given, expected)
    one = t.reference(plain(), x[:1].repeat(3, 1, 1, 1))
    if one is not None:
        yield t.compared(plain(), x[:1].expand(3, -1, -1, -1), one)


def extremes(t: Tried) -> Verdicts:
    """Zeros, a constant, negative values, ties, denormal numbers: finite maps."""
    x = images(5)
    x[0], x[1], x[2], x[3], x[4] = 0.0, 1.0, -x[2].abs(), x[3].sign(), x[4] * 1e-42
    for one in x.split(1):
        yield _finite(t, plain(), one)


# ---------------------------------------------------------------- F13 to F16
def determinism(t: Tried) -> Verdicts:
    """The same numbers twice, and the random generators of torch, NumPy and Python as they were."""
    first = t.reference(plain(), images())
    if first is None:
        return
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index, union-attr]
    yield t.compared(plain(), images(), first, close=0.0)
    after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index, union-attr]
    yield RIGHT if torch.equal(before[0], after[0]) and before[1:] == after[1:] else WRONG


def images_apart(t: Tried) -> Verdicts:
    x = images()
    expected = t.reference(plain(), x)
    if expected is not None:
        others = x.clone()
        others[1:] = 50 * others[1:].flip(0, 3) - 7
        for given in (others, x[:1]):
            found = t.attempt(plain(), given)
            yield found if isinstance(found, str) else RIGHT if alike(found[:1], expected[:1]) else WRONG


def threads(t: Tried, count: int = 8, calls: int = 3) -> Verdicts:
    """Eight threads, each with classes of its own."""
    module, x, ended = plain(), images(), []  # type: ignore[var-annotated]
    expected = [t.reference(plain(), x, k) for k in range(3)]
    if any(e is None for e in expected):
        return
    watch, barrier = Watch(module, x), threading.Barrier(count)

    def work(i: int) -> None:
        barrier.wait(60)
        for call in range(calls):
            k = (i + call) % 3
            ended.append(t.compared(module, x.clone(), expected[k], k))  # type: ignore[arg-type]

    running = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    yield from [*ended, _left(watch)]


def memory_ends(t: Tried) -> Verdicts:
    x = images(9)
    expected = t.reference(plain(), x)
    if expected is None:
        return
    for limit in (4, 8):
        module = plain()

        def guard(m: nn.Module, args: Any, limit: int = limit) -> None:
            if len(args[0]) > limit:
                raise torch.OutOfMemoryError("DefaultCPUAllocator: not enough memory")

        module.register_forward_pre_hook(guard)
        yield t.compared(module, x, expected)


CASES: tuple[tuple[str, str, Callable[[Tried], Verdicts]], ...] = (
    ("F1", "the network, its flags, gradients and hooks, the input and the process are as before", state_after_success),
    ("F1", "the same after an error or Ctrl-C in each layer", state_after_exceptions),
    ("F2", "the network is freed with its last name", network_is_let_go),
    ("F3", "in-place, shared and functional activations: the map of the same network written plainly",
     other_habits),
    ("F4", "scripted, traced, exported, FX, data parallel, weight norm, pruned: the map of the network itself", other_forms),
    ("F5", "train mode, of all or of batch norm: the map of evaluation mode, statistics as before", train_mode),
    ("F6", "inside `no_grad`, `inference_mode`: the same map; inside `autocast`: a finite one", modes),
    ("F7", "all or some parameters frozen", frozen_parameters),
    ("F8", "NaN or infinity in image, weight, activation: an error, not a map", not_finite),
    ("F9", "15 bad calls: channels, rank, class, types, no images: an error, not a map", bad_calls),
    ("F10", "one image; one pixel, one row, one column, odd sides", sizes),
    ("F11", "double network, double images for a single one: the same map; half and bfloat16 networks: finite", types),
    ("F12", "channels last, transposed, negated view, tensor subclass, parameter, expanded", layouts),
    ("F13", "the same twice; global random generators as before", determinism),
    ("F14", "other images beside it; alone", images_apart),
    ("F15", "8 threads, 3 calls each, one network", threads),
    ("F16", "memory for 4 or 8 of 9 rows: the same maps", memory_ends),
    ("F34", "10 calls leave no objects behind", calls_leave_nothing),
    ("F35", "images are only read", input_is_only_read),
    ("F36", "zeros, constants, negative values, ties, denormal numbers: finite maps", extremes),
)  # fmt: skip
__all__ = ["CASES", "Tried"]
