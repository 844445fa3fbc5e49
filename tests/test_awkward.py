"""Networks that are awkward to run: a right map, or one line that says what the network does not do. Nothing left behind."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.core.errors import ConvoscopeError, UnsupportedError, UsageError
from convoscope.core.operators import operator_name
from convoscope.testing.untouched import unchanged

SIDE = 8


class Net(nn.Module):
    """A small network that ends as `forward(network, x)` says."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self.ends = forward

    def forward(self, x: Tensor) -> Any:
        return self.ends(self, x)


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def explained(module: nn.Module, method: Any, **settings: Any) -> cs.Attribution:
    module, x = module.double().eval(), pictures()
    with unchanged(module, x, "after an explanation"):
        return cs.explain(cs.Network(module), x, method, cs.Logit(1), **settings)


def plain() -> Net:
    return Net(lambda net, x: net.head(net.body(x)))


def one_by_one() -> Net:
    return Net(lambda net, x: torch.cat([net.head(net.body(image[None])) for image in x]))


LOOKS_AT_LAYERS = ("grad-cam", "eigen-cam", "score-cam", "ablation-cam", "recipro-cam", "smooth-grad-cam-plus-plus",
                   "conductance", "internal-influence")  # fmt: skip


@pytest.mark.parametrize("method", LOOKS_AT_LAYERS)
def test_a_layer_that_runs_once_for_each_image_is_refused_for_many_and_right_for_one(method: str) -> None:
    with pytest.raises(UnsupportedError, match=r"'body' holds 1 rows for \d+ images.* batch_size=1"):
        explained(one_by_one(), method)
    expected = explained(plain(), cs.methods()[method](layer="body")).values
    found = explained(one_by_one(), cs.methods()[method](layer="body"), batch_size=1).values
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["grad-cam", "occlusion", "integrated-gradients"])
def test_a_batch_size_written_into_the_network_is_named(method: str) -> None:
    fixed = Net(lambda net, x: net.head(net.body(x).view(2, 4, SIDE, SIDE)))
    with pytest.raises(UnsupportedError, match=r"runs on 2 images at once and not on .* any number"):
        explained(fixed, method, batch_size=5)


def test_what_fails_only_inside_the_network_is_told_apart_from_our_mistakes() -> None:
    outside = Net(lambda net, x: net.head(torch.from_numpy(net.body(x).detach().cpu().numpy())))
    with pytest.raises(UnsupportedError, match=r"fails where a method changes them .* numpy"):
        explained(outside, "grad-cam")


@pytest.mark.parametrize("kind", [torch.long, torch.complex128])
def test_outputs_that_are_not_real_numbers_are_refused(kind: torch.dtype) -> None:
    network = Net(lambda net, x: net.head(net.body(x)).to(kind))
    with pytest.raises(UsageError, match=str(kind).removeprefix("torch.")):
        explained(network, "occlusion")
    with pytest.raises(UsageError, match="of real numbers"):
        cs.Network(network).predict(pictures())


def test_a_dataclass_with_slots_is_an_output() -> None:
    @dataclasses.dataclass(slots=True)
    class Output:
        logits: Tensor
        features: Tensor

    def ends(net: Net, x: Tensor) -> Output:
        features = net.body(x)
        return Output(net.head(features), features)

    assert torch.equal(explained(Net(ends), "gradient").values, explained(plain(), "gradient").values)


def test_a_batch_norm_that_always_goes_by_the_batch_keeps_its_statistics() -> None:
    network = plain()
    mean = nn.Buffer(torch.zeros(4))
    network.register_buffer("mean", mean)
    network.register_buffer("variance", torch.ones(4))
    network.ends = lambda net, x: net.head(F.batch_norm(net.body(x), net.mean, net.variance, training=True))
    before = network.double().mean.clone()
    explained(network, "gradient")  # checks that buffers are as they were
    cs.Network(network.eval()).predict(pictures())
    assert torch.equal(network.mean, before)
    network(pictures())
    assert not torch.equal(network.mean, before)  # as its own runs do


def test_a_function_that_is_compiled_inside_the_network_runs_as_it_is_written() -> None:
    twice = torch.compile(lambda t: 2 * t, backend="eager")
    inside = Net(lambda net, x: net.head(twice(net.body(x))))
    same = Net(lambda net, x: net.head(2 * net.body(x)))
    for method in ("lrp-epsilon", "grad-cam"):
        assert torch.equal(explained(inside, method).values, explained(same, method).values)
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("method", ["lrp-epsilon", "guided-backprop", "grad-cam", "occlusion"])
def test_exported_networks_are_explained_as_those_they_were_made_from(method: str) -> None:
    module, batch = plain().double().eval(), torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (pictures(),), dynamic_shapes=({0: batch},), strict=False).module()
    found = cs.explain(cs.Network(exported, channels=3), pictures(), method, cs.Logit(1)).values
    torch.testing.assert_close(found, explained(module, method).values, rtol=1e-9, atol=1e-12)


def test_overloads_of_operators_have_the_names_of_the_operators() -> None:
    assert operator_name(torch.ops.aten.conv2d.default) == operator_name(F.conv2d)
    assert operator_name(torch.ops.aten.relu_.default) == "relu"
    assert operator_name(torch.ops.aten.batch_norm.default) != operator_name(F.batch_norm)  # other arguments, other order


def quantized() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    module[4] = packed()
    return module


def packed() -> nn.Module:
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch quantizes no modules")
    with warnings.catch_warnings(action="ignore"):  # newer ones say that it is to go
        return quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)).eval(), {nn.Linear})[0]


@pytest.mark.parametrize("method", ["occlusion", "score-cam", "grad-cam", "lrp", "gradient"])
def test_quantized_networks_are_explained_or_refused_in_one_line(method: str) -> None:
    network, x = cs.Network(quantized()), pictures().float()
    if method in ("occlusion", "score-cam"):
        assert cs.explain(network, x, method, cs.Logit(1)).values.isfinite().all()
        return
    with pytest.raises(ConvoscopeError, match=r"^.{20,}$"):
        cs.explain(network, x, method, cs.Logit(1))


def test_the_digits_of_a_quantized_network_change_with_its_packed_weights() -> None:
    torch.manual_seed(0)
    one = quantized()
    torch.manual_seed(0)
    assert cs.Network(one).hash == cs.Network(quantized()).hash
    before = cs.Network(one).hash
    one[4] = packed()
    assert cs.Network(one).hash != before


def test_full_gradients_of_attention_in_batches_are_those_of_images_alone() -> None:
    def ends(net: Net, x: Tensor) -> Tensor:
        tokens = net.body(x).flatten(2).transpose(1, 2)
        return net.head((tokens + net.attention(tokens, tokens, tokens)[0]).transpose(1, 2).unflatten(2, (SIDE, SIDE)))

    network = Net(ends)
    network.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    together = explained(network, "full-grad")
    for i in range(2):
        alone = cs.explain(cs.Network(network), pictures()[i : i + 1], "full-grad", cs.Logit(1))
        torch.testing.assert_close(together.values[i : i + 1], alone.values, rtol=1e-9, atol=1e-12)
        assert together.diagnostics["completeness gap of the parts"][i] == pytest.approx(
            alone.diagnostics["completeness gap of the parts"][0], abs=1e-12
        )


@pytest.mark.parametrize("method", ["is-cam", "score-cam", "ss-cam"])
def test_layers_of_another_type_than_the_images_are_weighted(method: str) -> None:
    network = Net(lambda net, x: net.head(net.body(x).float()))
    network.body.half()
    x = pictures().half()
    values = cs.explain(cs.Network(network.eval()), x, method, cs.Logit(1)).values
    assert values.isfinite().all()
    assert values.abs().max() > 0


@pytest.mark.parametrize("method", ["excitation-backprop", "lrp-epsilon"])
def test_scores_that_hang_on_one_number_of_all_images_are_divided_by_it(method: str) -> None:
    network = Net(lambda net, x: net.head[2].bias.expand(len(x), 3) + 3 * net.body(x).mean())
    assert explained(network, method).values.isfinite().all()
