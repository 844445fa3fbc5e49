"""The state in which networks run, and that it is gone afterwards."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import convoscope as cs
from convoscope.core.run import rows_at_once, undisturbed


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    net.train()
    net[1].eval()
    net[4].bias.requires_grad_(False)
    return net


def flags(net: nn.Module) -> list[bool]:
    return [m.training for m in net.modules()] + [p.requires_grad for p in net.parameters()]


def test_inside_everything_is_in_evaluation_and_frozen_and_outside_as_before() -> None:
    net = network()
    before = flags(net)
    with undisturbed(net) as same:
        assert same is net
        assert not any(flags(net))
        assert torch.is_grad_enabled()
    assert flags(net) == before
    with pytest.raises(KeyboardInterrupt), undisturbed(net):
        raise KeyboardInterrupt
    assert flags(net) == before


def test_it_may_be_nested() -> None:
    net = network()
    before = flags(net)
    with undisturbed(net):
        with undisturbed(net):
            pass
        assert not any(flags(net))
    assert flags(net) == before


def test_shared_parameters_and_modules_return_to_their_own_flags() -> None:
    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    net[0].weight.requires_grad_(False)
    net.append(nn.Conv2d(3, 3, 1))
    net[3].weight = shared.weight
    before = flags(net)
    with undisturbed(net):
        assert not any(flags(net))
    assert flags(net) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_gradients_in_whatever_mode_the_caller_is(mode: Any) -> None:
    net = network()
    x = torch.randn(2, 3, 8, 8)
    expected = cs.explain(net, x, "gradient", 1).values
    with mode():
        found = cs.explain(net, x, "gradient", 1).values
    assert torch.equal(found, expected)


def test_an_input_made_in_inference_mode_will_do() -> None:
    with torch.inference_mode():
        x = torch.ones(1, 3, 8, 8)
    assert cs.explain(network(), x, "gradient", 1).values.abs().sum() > 0


def test_weights_made_in_inference_mode_are_refused_with_the_reason() -> None:
    with torch.inference_mode():
        net = network()
    before = flags(net)
    with pytest.raises(cs.UnsupportedError, match=r"parameter '0.weight' was made inside torch.inference_mode"):
        cs.explain(net, torch.ones(1, 3, 8, 8), "gradient", 1)
    assert flags(net) == before


def test_two_threads_share_a_network_and_the_last_restores_it() -> None:
    net = network()
    before = flags(net)
    x = torch.randn(4, 3, 8, 8)
    expected = cs.explain(net, x, "guided-backprop", 1).values
    inside, done = threading.Barrier(3, timeout=120), threading.Event()
    found: list[Tensor] = []

    def work() -> None:
        with undisturbed(net):
            inside.wait()
            found.append(cs.explain(net, x, "guided-backprop", 1).values)
            done.wait(120)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    with undisturbed(net):
        inside.wait()
    assert not any(flags(net))  # the others are still inside
    done.set()
    for t in threads:
        t.join(120)
    assert flags(net) == before
    assert len(found) == 2
    assert all(torch.equal(f, expected) for f in found)


@pytest.mark.parametrize(("size", "rows"), [((224, 224), 8), ((96, 96), 43), ((12, 12), 128), ((2000, 2000), 4), ((448,), 128)])
def test_as_many_rows_at_once_as_keep_activations_small(size: tuple[int, ...], rows: int) -> None:
    assert rows_at_once(torch.empty(1, 3, *size)) == rows
    assert rows_at_once(torch.empty(1, 3, *size, device="meta")) == 128


@pytest.mark.parametrize("method", ["gradient", "guided-backprop", "lrp", "grad-cam"])
@pytest.mark.parametrize("way", ["whole", "parts", "in place"])
def test_compiled_networks_give_what_plain_ones_give(way: str, method: str) -> None:
    net = network().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = cs.explain(net, x, method, 1).values
    compiled: nn.Module = net
    if way == "whole":
        compiled = torch.compile(net, backend="eager")  # type: ignore[assignment]
    elif way == "parts":
        net[0], net[2] = (torch.compile(net[i], backend="eager") for i in (0, 2))  # type: ignore[assignment]
    else:
        net.compile(backend="eager")
    compiled.train()
    before = flags(compiled)
    assert torch.equal(cs.explain(compiled, x, method, 1).values, expected)
    assert flags(compiled) == before
    assert torch.equal(compiled.eval()(x), net(x))


class Interrupts(TorchFunctionMode):
    """Raises where two tensors are compared or copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("equal", "copy_"):
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def test_flags_and_buffers_come_back_though_a_mode_of_the_caller_raises() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(()))

    module = Counts().train()
    with Interrupts(), undisturbed(module):
        module.calls.add_(1)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert float(module.calls) == 0
