"""DeepLIFT: complete on every network and through every operator, and equal to the paper where that has a closed form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import (
    TEN,
    bias_free,
    images,
    network_of,
    normal,
    randomized,
    relative,
    torchvision_models,
    torchvision_network,
    values,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import convoscope as cs
from convoscope.core.operators import Rewriter
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.rules import Composite
from convoscope.rules.differences import RESCALE, chord_of_relu
from convoscope.rules.rectify import EXCITATION

RULES = ("rescale", "reveal-cancel")


def gap(found: cs.Attribution) -> float:
    return max(found.diagnostics["completeness gap relative"])


# ---------------------------------------------------------------- complete on every network
@pytest.mark.parametrize("name", TEN)
def test_complete_on_ten_families(name: str) -> None:
    """Random biases and statistics, a baseline that is not zero: captum misses by 18 % to 2000 % or raises."""
    x = images(name)
    start = 0.5 * normal(1, *x.shape[1:], seed=5)
    found = cs.explain(network_of(torchvision_network(name)), x, cs.DeepLIFT(baseline=start), cs.Logit((3, 7)))
    assert gap(found) < 1e-9
    scores = [torchvision_network(name)(v).detach()[[0, 1], [3, 7]] for v in (x, start.expand_as(x))]
    assert torch.allclose(found.values.flatten(1).sum(1), scores[0] - scores[1], rtol=1e-9)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_reveal_cancel_is_complete(name: str) -> None:
    x = images(name)
    method = cs.DeepLIFT(rule="reveal-cancel", baseline=0.5 * normal(1, *x.shape[1:], seed=5))
    assert gap(cs.explain(network_of(torchvision_network(name)), x, method, cs.Logit((3, 7)))) < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_complete_on_alexnet(rule: str) -> None:
    """Pools of 3 with stride 2 behind ReLUs in place: an unpooling that overwrites misses by 16 % and more."""
    module = torchvision_models().alexnet(num_classes=10)
    module.classifier = nn.Linear(256 * 36, 10)
    module = randomized(module, images("alexnet", 4, seed=2))
    found = cs.explain(cs.Network(module), images("alexnet"), cs.DeepLIFT(rule=rule, baseline=0.3), cs.Logit(3))
    assert gap(found) < 1e-9


def test_complete_in_single_precision() -> None:
    module = torchvision_network("squeezenet1_1")
    x = images("squeezenet1_1")
    single = torchvision_models().squeezenet1_1(num_classes=10)
    single.load_state_dict(module.state_dict())
    assert gap(cs.explain(cs.Network(single.eval()), x.float(), cs.DeepLIFT(baseline=0.3), cs.Logit((3, 7)))) < 1e-3


@pytest.mark.parametrize("target", [cs.Probability(3), cs.Logit(3) - 0.5 * cs.Logit(7), cs.Layer("features.3")])
def test_complete_for_curved_targets(target: cs.Target) -> None:
    module = torchvision_network("squeezenet1_1")
    method = cs.DeepLIFT(baseline=0.3)
    assert gap(cs.explain(network_of(module), images("squeezenet1_1"), method, target)) < 1e-6


def test_complete_for_one_number_per_image() -> None:
    """Networks that return `(images,)`, as regressors do."""
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)), normal(2, 3, 6, 6)
    for rule in RULES:
        assert gap(cs.explain(cs.Network(module.double()), x, cs.DeepLIFT(rule=rule), cs.Logit(0))) < 1e-9


def test_complete_from_a_layer() -> None:
    module = torchvision_network("squeezenet1_1")
    method = cs.DeepLIFT(baseline="mean")
    assert gap(cs.explain(network_of(module), images("squeezenet1_1"), method, 3, at="features.5")) < 1e-9


@pytest.mark.parametrize("composite", [RESCALE, EXCITATION], ids=["rescale", "excitation"])
@pytest.mark.parametrize("name", ["googlenet", "efficientnet_b0", "convnext_tiny"])
def test_rules_leave_the_forward_pass_as_it_is(name: str, composite: Composite) -> None:
    module, x = torchvision_network(name), images(name)
    with torch.no_grad():
        plain = module(x)
    with undisturbed(module), torch.enable_grad():
        ruled = record(module, x.clone().requires_grad_(), ("output",), rewriter=Rewriter(composite))["output"]
    assert torch.equal(ruled.detach(), plain)


# ---------------------------------------------------------------- complete through every operator
class Through(nn.Module):
    """Two convolutions, and any function of both."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1).double(), nn.Conv2d(3, 4, 3, padding=1).double()
        for k, p in enumerate(self.parameters()):
            p.data = 0.3 * normal(*p.shape, seed=k)
        self.function, self.scale = function, nn.Parameter(normal(4, seed=9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.a(x), self.b(x), self.scale).flatten(1)
        return (y * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype)).sum(1, keepdim=True)


def _set_item(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    a = a.clone()
    a[:, :2] = b[:, :2].relu()
    return a


OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "in place": lambda a, b, w: a.add_(b).relu_().mul_(b.sigmoid()),
    "in place, by keyword": lambda a, b, w: F.relu(input=a, inplace=True),
    "own swish, in place": lambda a, b, w: a.mul_(a.sigmoid()),
    "set item": _set_item,
    "leaky, parametric": lambda a, b, w: F.prelu(F.leaky_relu(a, 0.2) - 0.1, w),
    "clamp, relu6": lambda a, b, w: a.clamp(-0.2, 0.3) + F.relu6(9 * b),
    "smooth": lambda a, b, w: F.gelu(a) + F.silu(b) * F.mish(a) + F.hardswish(b),
    "power, root, logarithm": lambda a, b, w: a**3 + (b * b + 0.1).sqrt() + (a.exp() + 1).log() + 2**b,
    "product": lambda a, b, w: a * b + a * a + torch.addcmul(a, a, b),
    "quotient": lambda a, b, w: a / (b.sigmoid() + 0.1) + 2 / (a.sigmoid() + 1) + a.div_(b.exp() + 1),
    "matrix products": lambda a, b, w: torch.einsum("nchw,ndhw->ncd", a, b) @ torch.ones(4, 2).double(),
    "softmax": lambda a, b, w: a.softmax(1) * b,
    "confident softmax": lambda a, b, w: F.softmax(50 * a, 1) + F.softmax(a + 1000 * b.sum((1, 2, 3), keepdim=True), 1),
    "log softmax": lambda a, b, w: F.log_softmax(a, 1) + b.logsumexp(1, keepdim=True),
    "attention": lambda a, b, w: (a @ b.transpose(-1, -2)).softmax(-1) @ a + F.scaled_dot_product_attention(a, b, a),
    "layer norm": lambda a, b, w: F.layer_norm(a.permute(0, 2, 3, 1), (4,), w, w),
    "group, instance norm": lambda a, b, w: F.group_norm(a, 2, w, w) + F.instance_norm(b, weight=w, bias=w),
    "batch norm": lambda a, b, w: F.batch_norm(a.relu(), -w.abs(), w.abs() + 1, w, w),
    "root mean square norm": lambda a, b, w: F.rms_norm(a, (8, 8)),
    "local response norm": lambda a, b, w: F.local_response_norm(a, 3, 1.0, 0.75, 1.0),
    "lengths": lambda a, b, w: F.normalize(a) * b.norm(dim=(2, 3), keepdim=True) + torch.linalg.vector_norm(a, dim=1)[:, None],
    "moments": lambda a, b, w: a.std((2, 3)) + b.var((2, 3)),
    "gated linear unit": lambda a, b, w: F.glu(a, 1),
    "larger and smaller": lambda a, b, w: torch.maximum(a, b) + torch.min(a, b),
    "largest along an axis": lambda a, b, w: a.max(1)[0] + b.max(dim=1).values + b.min(1).values,
    "largest over axes": lambda a, b, w: a.amax((2, 3), keepdim=True) * b.amin(dim=(2, 3), keepdim=True),
    "overlapping pool": lambda a, b, w: F.max_pool2d(a, 3, 2, 1) + nn.MaxPool2d(3, 2, 1, ceil_mode=True)(b)[..., :4, :4],
    "dilated pool": lambda a, b, w: F.max_pool2d(a, 3, 1, 0, 2),
    "pools of other dimensions": lambda a, b, w: F.max_pool1d(a.flatten(2), 3, 2).sum(-1)
    + F.max_pool3d(b, 2, 1).sum((1, 2, 3))[:, None],
    "adaptive pools": lambda a, b, w: F.adaptive_max_pool2d(a, 3).flatten(2) + F.adaptive_max_pool1d(b.flatten(2), 9),
    "transposed, interpolated": lambda a, b, w: F.conv_transpose2d(a, torch.ones(4, 1, 2, 2).double(), stride=2)
    + F.interpolate(b, scale_factor=2, mode="bilinear"),
    "running sum": lambda a, b, w: a.cumsum(1).lerp(b, 0.3),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_complete_through_every_operator(operator: str, rule: str) -> None:
    """And what an image gets does not depend on the others of its batch."""
    network, method = cs.Network(Through(OPERATORS[operator])), cs.DeepLIFT(rule=rule, baseline=0.3)
    x = normal(3, 3, 8, 8, seed=1)
    x[0, :, :4] = 0.3  # no difference at all
    found = cs.explain(network, x, method, 0)
    assert gap(found) < 1e-9
    assert bool(found.values.isfinite().all())
    assert float(found.values.abs().max()) < 1e3
    alone = cs.explain(network, x[1:2], method, 0).values
    assert relative(found.values[1:2], alone) < 1e-10


REFUSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "'where' at 'where'": lambda a, b, w: torch.where(a > 0, a, b),
    "'batch_norm' at 'batch_norm'": lambda a, b, w: F.batch_norm(a, None, None, training=True),
    "'conv2d' at 'conv2d'": lambda a, b, w: F.conv2d(a.flatten(0, 1)[None], b.flatten(0, 1)[:, None], groups=4 * len(a))[0],
    "'max' at 'max'": lambda a, b, w: a + a.max(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("message", REFUSED)
def test_refuses_naming_the_address(message: str, rule: str) -> None:
    with pytest.raises(cs.UnsupportedError, match=message):
        cs.explain(cs.Network(Through(REFUSED[message])), normal(2, 3, 8, 8), cs.DeepLIFT(rule=rule), 0)


# ---------------------------------------------------------------- closed forms
class Neuron(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sum, self.function = nn.Linear(12, 1).double(), function
        self.sum.weight.data, self.sum.bias.data = normal(1, 12, seed=2), normal(1, seed=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.sum(x.flatten(1)))


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, F.gelu, torch.exp], ids=lambda f: f.__name__)
def test_one_neuron_is_integrated_gradients(function: Callable[[Tensor], Tensor]) -> None:
    """Of a function of one sum, Aumann and Shapley's share is that of the sum: R_i = w_i dx_i (f(z) - f(z0)) / (z - z0)."""
    module, x, start = Neuron(function), normal(4, 3, 2, 2, seed=1), normal(1, 3, 2, 2, seed=4)
    z, z0 = module.sum(x.flatten(1)).detach(), module.sum(start.flatten(1)).detach()
    expected = (
        (x - start)
        * module.sum.weight.detach().reshape(1, 3, 2, 2)
        * ((function(z) - function(z0)) / (z - z0))[..., None, None]
    )
    found = values(module, x, cs.DeepLIFT(baseline=start), 0)
    assert relative(found, expected) < 1e-12
    assert relative(values(module, x, cs.IntegratedGradients(steps=512, baseline=start), 0), expected) < 1e-2


@pytest.mark.parametrize("function", [torch.relu, torch.tanh, F.silu], ids=lambda f: f.__name__)
def test_reveal_cancel_is_shapley_of_two_groups(function: Callable[[Tensor], Tensor]) -> None:
    """Of one neuron: the inputs that raise its sum are one player, those that lower it the other (section 3.5.3)."""
    module, x, start = Neuron(function), normal(4, 3, 2, 2, seed=1), normal(1, 3, 2, 2, seed=4)
    parts = ((x - start) * module.sum.weight.detach().reshape(1, 3, 2, 2)).flatten(1)
    z0 = module.sum(start.flatten(1)).detach()[:, 0]
    up, down = parts.clamp(min=0).sum(1), parts.clamp(max=0).sum(1)

    def worth(raised: bool, lowered: bool) -> Tensor:
        return function(z0 + raised * up + lowered * down)

    raising = (worth(True, False) - worth(False, False) + worth(True, True) - worth(False, True)) / 2
    lowering = (worth(False, True) - worth(False, False) + worth(True, True) - worth(True, False)) / 2
    expected = parts.clamp(min=0) * (raising / up)[:, None] + parts.clamp(max=0) * (lowering / down)[:, None]
    found = values(module, x, cs.DeepLIFT(rule="reveal-cancel", baseline=start), 0)
    assert relative(found.flatten(1), expected) < 1e-12


@pytest.mark.parametrize(("rule", "shares"), [("rescale", (0.0, 1.0)), ("reveal-cancel", (0.5, 0.5))])
def test_the_smaller_of_two(rule: str, shares: tuple[float, float]) -> None:
    """min(a, b) = a - relu(a - b), with a > b: rescale gives all to b, reveal-cancel half to each."""

    class Smaller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.difference, self.last = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double()
            self.difference.weight.data = torch.tensor([[1.0, 0.0], [1.0, -1.0]]).double()
            self.last.weight.data = torch.tensor([[1.0, -1.0]]).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.difference(x.flatten(1)).relu())

    x = torch.tensor([5.0, 3.0]).double().reshape(1, 1, 1, 2)
    found = values(Smaller(), x, cs.DeepLIFT(rule=rule, baseline=0.0), 0)
    assert torch.allclose(found.reshape(-1), 3 * torch.tensor(shares).double())


def test_the_chord_of_a_rectifier() -> None:
    """Exactly 0 or 1 on one side of zero, however close the points; the derivative where they are equal; else the slope."""
    pairs = {(1 + 2**-52, 1.0): 1, (1.0, 1.0): 1, (-1.0, -1 - 2**-52): 0, (-1.0, -1.0): 0, (0.0, 0.0): 0, (1e-300, 0.0): 1,
             (3e-9, -1e-9): 0.75, (-1.0, 3.0): 0.75, (0.0, -2.0): 0, (-3.0, 1e5): 1e5 / (1e5 + 3)}  # fmt: skip
    end, start = torch.tensor(list(pairs), dtype=torch.float64).T
    expected = torch.tensor(list(pairs.values()), dtype=torch.float64)
    assert torch.allclose(chord_of_relu(end, start), expected, rtol=1e-14, atol=0)
    assert torch.equal(chord_of_relu(end, start), chord_of_relu(start, end))


def test_linear_operators_run_backwards_for_the_images_alone() -> None:
    rows = []

    class Rows(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution_backward" in str(func):
                rows.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Flatten()
    ).double()
    with Rows():
        values(module, normal(5, 3, 10, 10), cs.DeepLIFT(baseline=0.3))
    assert rows == [5, 5]


def test_overlapping_pools_add_up() -> None:
    """Window by window: the rise from y0 to max(y, y0) is the image's winner's, from there to y the reference's."""
    x, start = normal(1, 1, 5, 5, seed=1), normal(1, 1, 5, 5, seed=2)
    weights = normal(1, 4, seed=3)

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(weights)

        def forward(self, x: Tensor) -> Tensor:
            return (F.max_pool2d(x, 3, 2).flatten(1) * self.weights).sum(1, keepdim=True)

    expected = torch.zeros(5, 5).double()
    for k, (i, j) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        a, b = x[0, 0, i : i + 3, j : j + 3], start[0, 0, i : i + 3, j : j + 3]
        top = max(a.max(), b.max())
        for window, share in ((a, top - b.max()), (b, a.max() - top)):
            place = int(window.argmax())
            expected[i + place // 3, j + place % 3] += share * weights[0, k]
    found = values(Pool(), x, cs.DeepLIFT(baseline=start), 0)
    assert relative(found[0, 0], expected) < 1e-12


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_without_biases_it_is_input_times_gradient(name: str) -> None:
    """LRP-0 = input x gradient = DeepLIFT from zero where the network is linear on each ray from zero."""
    module, x = bias_free(torchvision_network(name)), images(name)
    found = values(module, x, cs.DeepLIFT(baseline=0.0))
    assert relative(found, values(module, x, cs.InputXGradient())) < 1e-9
    assert relative(found, values(module, x, cs.LRP(composite="epsilon"))) < 1e-5


def test_softmax_shares_do_not_depend_on_what_all_have_in_common() -> None:
    plain = Through(lambda a, b, w: a.softmax(1))
    shifted = Through(lambda a, b, w: (a + 30 * b.mean((1, 2, 3), keepdim=True)).softmax(1))
    x, method = normal(2, 3, 8, 8, seed=1), cs.DeepLIFT(baseline=0.3)
    assert relative(values(plain, x, method, 0), values(shifted, x, method, 0)) < 1e-9


# ---------------------------------------------------------------- peers
def test_equal_to_captum_where_that_is_right() -> None:
    """Modules used once, none in place, pools that do not overlap and do not follow a ReLU."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, groups=3), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 6 * 6, 20), nn.Sigmoid(),
        nn.Linear(20, 10),
    )  # fmt: skip
    module, x, start = randomized(module, normal(4, 3, 64, 64, seed=2)), images("small"), normal(1, 3, 64, 64, seed=5)
    with pytest.warns(UserWarning, match="hooks"):
        theirs = attr.DeepLift(module).attribute(x.clone(), start, target=3).detach()
    assert relative(values(module, x, cs.DeepLIFT(baseline=start), 3), theirs) < 1e-9


# ---------------------------------------------------------------- many references
@pytest.mark.parametrize("rule", RULES)
def test_shap_is_the_mean_over_references(rule: str) -> None:
    module, x, data = torchvision_network("squeezenet1_1"), images("squeezenet1_1"), normal(3, 3, 64, 64, seed=8)
    found = cs.explain(network_of(module), x, cs.DeepLIFTSHAP(rule=rule, baseline=data), 3, batch_size=4)
    each = [values(module, x, cs.DeepLIFT(rule=rule, baseline=d[None]), 3) for d in data]
    assert relative(found.values, torch.stack(each).mean(0)) < 1e-10
    assert gap(found) < 1e-9


def test_shap_draws_references_for_each_image() -> None:
    module, x, data = Neuron(torch.relu), normal(3, 3, 2, 2, seed=1), normal(40, 3, 2, 2, seed=8)
    method = cs.DeepLIFTSHAP(baseline=data, samples=5)
    found = values(module, x, method, 0)
    assert torch.allclose(found, values(module, x, method, 0, batch_size=2), rtol=1e-12)
    assert not torch.allclose(found, values(module, x, method, 0, seed=1))
    many = values(module, x, cs.DeepLIFTSHAP(baseline=data, samples=4000), 0)
    assert relative(many, values(module, x, cs.DeepLIFTSHAP(baseline=data), 0)) < 0.1
    with pytest.raises(cs.UsageError, match="references are"):
        values(module, x, cs.DeepLIFTSHAP(baseline=normal(4, 3, 3, 3)), 0)
