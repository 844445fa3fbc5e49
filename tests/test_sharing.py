"""Several methods, targets and addresses in one call: the same numbers, fewer passes; batches that adapt to memory."""

from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.record import Collector
from convoscope.core.spec import _REGISTRY
from convoscope.testing.zoo import zoo

METHODS = [
    cs.Gradient(), cs.InputXGradient(), cs.GradCAM(), cs.CAM(), cs.IntegratedGradients(steps=3), cs.SmoothGrad(samples=2),
    cs.Occlusion(window=4), cs.LRP(), cs.GuidedBackprop(),
]  # fmt: skip
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = [cs.Logit(0), cs.Margin(1, 2), cs.Probability()]


class Counting(nn.Module):
    """Counts the rows that pass through the network it wraps, and fails where told to."""

    def __init__(self, inner: nn.Module, most: int = 1 << 30) -> None:
        super().__init__()
        self.inner, self.rows, self.most = inner, 0, most

    def forward(self, x: Tensor) -> Any:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate everything")
        self.rows += len(x)
        return self.inner(x)


def counted(name: str = "skip", most: int = 1 << 30) -> tuple[cs.Network, Tensor, Counting]:
    hostile = zoo()[name]
    module = Counting(hostile.module(), most)
    return cs.Network(module, 8), hostile.images(), module


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_list_gives_what_single_calls_give(batch_size: int) -> None:
    net, x, _ = counted()
    together = cs.explain(net, x, METHODS, TARGETS, seed=4, batch_size=batch_size)
    assert [(a.method, type(a.target)) for a in together] == [(m, type(t)) for m in METHODS for t in TARGETS]
    for a in together:
        alone = cs.explain(net, x, a.method, a.target, seed=4, batch_size=batch_size)
        assert torch.allclose(a.values, alone.values, rtol=1e-12, atol=1e-14), a
        assert a.diagnostics.keys() == alone.diagnostics.keys()
        for name in a.diagnostics.keys() - {"evaluations", "seconds", "layer"}:
            assert a.diagnostics[name] == pytest.approx(alone.diagnostics[name], rel=1e-9)


def test_gradients_at_the_images_come_from_one_pass() -> None:
    net, x, module = counted()
    cams = [cs.GradCAM(layer=f"inner.layers.{n}") for n in ("one", "two", "norm")]
    methods = [cs.Gradient(), cs.InputXGradient(), cs.CAM(), *cams]
    cs.explain(net, x, methods, [cs.Logit(0), cs.Logit(1)])
    traced = 1  # the shape of the network, once
    assert module.rows == len(x) + traced


def test_rectifiers_in_place_do_not_keep_methods_from_one_pass() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    module = Counting(nn.Sequential(*layers).double())
    cs.explain(cs.Network(module, 8), X, ["gradient", "grad-cam:layer=inner.1", "grad-cam:layer=inner.0"], 1)
    assert module.rows == len(X)


def test_every_target_is_answered_from_the_same_perturbed_passes() -> None:
    net, x, module = counted()
    cs.explain(net, x, cs.Occlusion(window=4), cs.Logit(0))
    once, module.rows = module.rows, 0
    cs.explain(net, x, [cs.Occlusion(window=4)], [cs.Logit(k) for k in range(3)])
    assert module.rows <= once


def test_a_list_of_numbers_is_one_number_per_image() -> None:
    net, x, _ = counted()
    found = cs.explain(net, x, "gradient", [0, 1, 2])
    assert torch.equal(found.values, cs.explain(net, x, "gradient", cs.Logit((0, 1, 2))).values)


def test_several_addresses() -> None:
    net, x, _ = counted()
    layers = ["inner.layers.one", "inner.layers.two"]
    cams = cs.explain(net, x, "grad-cam", 1, at=layers)
    assert [a.diagnostics["layer"] for a in cams] == layers
    for a, layer in zip(cams, layers, strict=True):
        assert torch.allclose(a.values, cs.explain(net, x, cs.GradCAM(layer=layer), 1).values)
    inputs = cs.explain(net, x, ["integrated-gradients", "gradient"], 1, at=layers)
    assert [(a.method.name, a.at) for a in inputs] == [(m, a) for m in ("integrated-gradients", "gradient") for a in layers]


class Layered(cs.Method):
    """One sweep for all layers: how many it was called with."""

    layer: Annotated[str | None, "address"] = None
    title = "Layered"

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return self.attribute_layers(probe, x, (self.layer or "",))[0]

    def attribute_layers(self, probe: Any, x: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
        found = probe.gradients(x, layers)
        return [found[a][1] for a in layers]

    def evaluations(self, x: Tensor) -> int:
        return 1


del _REGISTRY["method"]["layered"]  # it is no method of the package


def test_one_sweep_serves_all_layers() -> None:
    net, x, module = counted()
    layers = ["inner.layers.one", "inner.layers.two"]
    found = cs.explain(net, x, Layered(), 1, at=layers)
    assert module.rows == len(x)
    for a, layer in zip(found, layers, strict=True):
        assert a.method.layer == layer
        assert torch.equal(a.values, cs.explain(net, x, Layered(layer=layer), 1).values)


def test_an_address_may_be_open_or_come_twice() -> None:
    net, x, _ = counted()
    one, two = "inner.layers.one", "inner.layers.two"
    found = cs.explain(net, x, cs.Conductance(steps=2), 1, at=[two, None, one, two])
    last = cs.explain(net, x, cs.Conductance(steps=2), 1)
    assert [a.diagnostics["layer"] for a in found] == [two, last.diagnostics["layer"], one, two]
    assert torch.allclose(found[1].values, last.values)
    assert torch.equal(found[0].values, found[3].values)


class Means(Collector):
    """The mean gradient at each ReLU."""

    def operator(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        if name == "relu" and output.requires_grad:
            key = f"relu {len(self.found)} {id(self)}"
            output.register_hook(lambda g: self.found.__setitem__(f"relu{key[4:6]}", g.flatten(1).mean(1)))


def test_collectors_ride_on_the_shared_pass_for_each_target() -> None:
    from convoscope.core.probe import Probe, Session

    hostile = zoo()["functional-relu"]
    x, module = hostile.images(), hostile.module().eval()
    session = Session(module, x, cs.Logit(0), batch_size=2)
    probe = Probe(session, torch.arange(3), ((0,), (1,), (2,)))
    found = probe.gradients(x, ("input", Means))
    assert len(found[Means]) > 0
    assert all(v.shape == (3,) for v in found[Means].values())
    session.shared.x = x
    probe.plan(x, ("input", Means), (cs.Logit(0), cs.Logit(1)))
    again = probe.gradients(x, ("input", Means))
    assert torch.allclose(again["input"][1], found["input"][1])
    assert all(torch.allclose(again[Means][k], found[Means][k]) for k in found[Means])
    assert session.evaluations == 6


# ---- memory
def test_batches_are_halved_until_they_fit() -> None:
    net, x, _ = counted(most=2)
    found = cs.explain(net, x, ["integrated-gradients", "occlusion"], 1, batch_size="auto")
    plain, _, _ = counted()
    for a in found:
        assert a.diagnostics["batch size halved to"] == 2
        assert torch.allclose(a.values, cs.explain(plain, x, a.method, 1).values)


def test_a_batch_that_does_not_fit_says_what_to_do() -> None:
    net, x, _ = counted(most=2)
    with pytest.raises(cs.ConvoscopeError, match="out of memory with batch_size 32; use a smaller batch_size, or 'auto'"):
        cs.explain(net, x, "gradient", 1, batch_size=32)
    net, x, _ = counted(most=0)
    with pytest.raises(cs.ConvoscopeError, match="out of memory with batch_size 1; use a smaller picture"):
        cs.explain(net, x, "gradient", 1, batch_size="auto")
