"""Addresses, captures and edits, on networks that do what networks do: in place, twice, in tuples, without a module."""

import threading
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from convoscope.core.errors import AddressError, UnsupportedError
from convoscope.core.record import Activations, record
from convoscope.core.trace import trace

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Parts by name, and what they do with a tensor."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class InPlaceSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid())


def zero(tensor: Tensor) -> Tensor:
    return tensor * 0


def addresses(module: nn.Module, x: Tensor = X) -> list[str]:
    return [e.address for e in trace(module, x[:1]).entries]


def output(module: nn.Module, edits: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
    return record(module, X, ("output",), edits)["output"]


def gradient_at(module: nn.Module, address: str) -> tuple[Tensor, Tensor]:
    found = record(module, X, (address, "output"), graph=(address,))
    weights = torch.arange(found["output"].numel(), dtype=torch.float64).cos().view_as(found["output"])
    return found[address], torch.autograd.grad((found["output"] * weights).sum(), found[address])[0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ---- addresses
def test_modules_operators_and_second_calls_have_addresses() -> None:
    net = Net(lambda s, x: s.relu(s.b(s.relu(s.a(x))) + x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), relu=nn.ReLU())
    assert addresses(net) == ["a", "relu", "b", "add", "relu_1"]


def test_an_operator_and_a_module_of_one_name_stay_apart() -> None:
    net = Net(lambda s, x: s.relu(F.relu(x) - 0.1), relu=nn.ReLU())
    assert addresses(net) == ["relu()", "sub", "relu"]
    together = record(net, X, ("relu()", "relu"))
    assert torch.equal(together["relu()"], F.relu(X))
    assert torch.equal(together["relu"], record(net, X, ("relu",))["relu"])


def test_numbers_of_calls_skip_the_names_of_modules() -> None:
    net = Net(lambda s, x: s.relu_1(s.relu(s.relu(x) - 0.1)), relu=nn.ReLU(), relu_1=nn.Softplus())
    assert addresses(net) == ["relu", "sub", "relu_2", "relu_1"]
    assert torch.equal(record(net, X, ("relu_1",))["relu_1"], F.softplus(F.relu(F.relu(X) - 0.1)))


def test_a_container_called_twice_numbers_itself_and_its_operators() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    net = Net(lambda s, x: s.block(s.block(x)), block=Block())
    assert addresses(net) == ["block.conv", "block.add", "block", "block.conv_1", "block.add_1", "block_1"]
    found = record(net, X, ("block", "block.add_1", "block_1", "output"))
    assert torch.equal(found["block"], net.block(X))
    assert torch.equal(found["block.add_1"], found["block_1"])
    assert torch.equal(found["block_1"], found["output"])


def test_a_shared_module_answers_to_all_its_names() -> None:
    shared = nn.Conv2d(3, 3, 1)
    net = Net(lambda s, x: s.b(x).relu(), a=shared, b=shared)
    found = record(net, X, ("a", "b"))
    assert torch.equal(found["a"], net.a(X))
    assert torch.equal(found["b"], net.a(X))
    assert output(net, {"b": zero}).abs().max() == 0
    assert gradient_at(net, "b")[1].shape == X.shape


Pair = namedtuple("Pair", "u v")
RETURNS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "tuple": (lambda x: (x * 1, x * 2), ["m.0", "m.1"]),
    "list": (lambda x: [x * 1, x * 2], ["m.0", "m.1"]),
    "dict": (lambda x: {"u": x * 1, "v": x * 2}, ["m.u", "m.v"]),
    "ordered": (lambda x: OrderedDict(u=x * 1, v=x * 2), ["m.u", "m.v"]),
    "named": (lambda x: Pair(x * 1, x * 2), ["m.0", "m.1"]),
    "nested": (lambda x: {"u": (x * 1, 7), "v": [x * 2]}, ["m.u.0", "m.v.0"]),
}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [t for v in values for t in flat(v)]


@pytest.mark.parametrize("kind", RETURNS)
def test_tensors_in_what_a_module_returns_can_be_read_and_edited(kind: str) -> None:
    make, names = RETURNS[kind]
    seen: list[type] = []

    def run(s: Net, x: Tensor) -> Tensor:
        found = s.m(x)
        seen.append(type(found))
        return sum(flat(found))  # type: ignore[return-value]

    net = Net(run, m=Net(lambda s, x: make(x)))
    assert [a for a in addresses(net) if a in names] == names
    assert torch.equal(record(net, X, (names[1],))[names[1]], X * 2)
    assert torch.equal(output(net, {names[0]: zero}), X * 2)
    assert len({*seen, type(make(X))}) == 1  # the network gets the type that the module returned


def test_tuples_of_operators_have_addresses() -> None:
    net = Net(lambda s, x: x.chunk(3, 1)[1] + torch.max(x, 1, keepdim=True)[0])
    assert addresses(net) == ["chunk.0", "chunk.1", "chunk.2", "max.0", "max.1", "add"]
    assert torch.equal(record(net, X, ("chunk.1",))["chunk.1"], X[:, 1:2])
    assert torch.equal(output(net, {"chunk.1": zero}), X.amax(1, keepdim=True))
    assert torch.equal(output(net, {"max.0": zero}), X[:, 1:2])


def test_an_entry_of_a_tuple_does_not_take_the_name_of_a_child() -> None:
    net = Net(lambda s, x: sum(s.seq(x)), seq=nn.Sequential(nn.Conv2d(3, 3, 1), Net(lambda s, x: (x * 1, x * 2))))
    assert torch.equal(record(net, X, ("seq.0", "output"))["seq.0"], net.seq[0](X))
    assert torch.equal(record(net, X, ("seq[0]",))["seq[0]"], net.seq[0](X) * 1)


def test_wrong_addresses_are_answered_with_the_closest() -> None:
    net = Net(lambda s, x: s.layer1(x).relu(), layer1=nn.Conv2d(3, 3, 1), unused=nn.Conv2d(3, 3, 1))
    with pytest.raises(AddressError, match=r"'layer2' does not exist; did you mean 'layer1'\?.*net\.layers\(\)"):
        record(net, X, ("layer2",))
    with pytest.raises(AddressError, match="'relu_7' does not exist; did you mean 'relu'"):
        record(net, X, ("relu_7",))
    with pytest.raises(AddressError, match="'unused' was not called in this pass"):
        record(net, X, ("unused",))
    with pytest.raises(AddressError, match="'layer2' does not exist"):
        record(net, X, ("output",), {"layer2": zero})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# ---- captures
def test_what_the_network_does_in_place_does_not_reach_what_was_captured() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.conv(x)
        s.relu(h)  # in place, its value dropped
        h += 1
        h[:, 0] = 5
        return s.swish(h) * 2

    net = Net(run, conv=nn.Conv2d(3, 3, 1), relu=nn.ReLU(inplace=True), swish=InPlaceSwish())
    names = ("input", "conv", "relu", "add", "swish", "output")
    found, clean = record(net, X, names), net.conv(X)
    assert torch.equal(found["conv"], clean)
    assert torch.equal(found["relu"], clean.relu())
    assert torch.equal(found["add"], clean.relu() + 1)
    assert torch.equal(found["output"], net(X.clone()))
    assert torch.equal(2 * found["swish"], net(X.clone()))
    for name in names:
        assert torch.equal(record(net, X, (name,))[name], found[name]), name


def test_capturing_a_view_changes_nothing() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = x * 1
        h.view(-1)[0] = 9
        return h

    found = record(Net(run), X, ("view", "output"))
    assert torch.equal(found["view"], X.view(-1))
    assert found["output"].view(-1)[0] == 9


def test_views_and_out_arguments_are_captured_as_they_were() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = torch.empty_like(x)
        torch.add(x, x, out=h)
        first = h[:, :1]
        h.sub_(100)
        return h + first

    with torch.no_grad():
        found = record(Net(run), X, ("add", "getitem", "output"))
    assert torch.equal(found["add"], 2 * X)
    assert torch.equal(found["getitem"], 2 * X[:, :1])


def test_a_captured_input_is_the_callers_and_is_not_overwritten() -> None:
    net = Net(lambda s, x: x.mul_(0))
    x = X.clone()
    assert record(net, x, ("input", "output"))["input"] is x
    assert torch.equal(x, X)


# ---- edits
@pytest.mark.parametrize("part", [nn.Identity(), nn.Dropout(), Net(lambda s, x: x)], ids=["identity", "dropout", "own"])
def test_what_returns_its_own_input_is_not_in_place(part: nn.Module) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = x * 2
        return h + s.m(h)

    net = Net(run, m=part)
    assert torch.equal(output(net, {"m": zero}), 2 * X)
    assert gradient_at(net, "m")[1].sum() == pytest.approx(gradient_at(net, "add")[1].sum().item())


def test_edits_of_operators_without_effect_stay_where_they_are() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = x * 2
        return h + h.contiguous() + h.float().double() + F.dropout(h, training=False)

    for name in ("contiguous", "double", "dropout"):
        assert torch.allclose(output(Net(run), {name: zero}), 6 * X, atol=1e-6), name


IN_PLACE: dict[str, tuple[Callable[[Net, Tensor], Tensor], str, Callable[[Tensor], Tensor]]] = {
    "method": (lambda s, h: h.relu_(), "relu", lambda h: h.relu()),
    "sum": (lambda s, h: h.add_(3), "add", lambda h: h + 3),
    "functional": (lambda s, h: F.relu(h, inplace=True), "relu", lambda h: h.relu()),
    "module": (lambda s, h: s.leaky(h), "leaky", lambda h: F.leaky_relu(h)),
    "keyword": (lambda s, h: s.leaky(input=h), "leaky", lambda h: F.leaky_relu(h)),
    "own module": (lambda s, h: s.swish(h), "swish", lambda h: h * h.sigmoid()),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_operators_in_place_whose_value_is_dropped(kind: str) -> None:
    act, name, value = IN_PLACE[kind]

    def run(s: Net, x: Tensor) -> Tensor:
        h = x * 2
        act(s, h)
        return h * 3 + 1

    net = Net(run, leaky=nn.LeakyReLU(inplace=True), swish=InPlaceSwish())
    assert torch.equal(record(net, X, (name, "output"))[name], value(X * 2))
    assert torch.equal(output(net, {name: lambda t: t * 0 + 2}), torch.full_like(X, 7))
    captured, gradient = gradient_at(net, name)
    weights = torch.arange(X.numel(), dtype=torch.float64).cos().view_as(X)
    assert torch.equal(captured, value(X * 2))
    assert torch.equal(gradient, 3 * weights)


@pytest.mark.parametrize("kind", [k for k in IN_PLACE if k != "own module"])  # that no gradient passes, whoever asks
def test_one_pass_has_gradients_before_and_behind_operators_in_place(kind: str) -> None:
    act, name, value = IN_PLACE[kind]

    def run(s: Net, x: Tensor) -> Tensor:
        h = x * 2
        act(s, h)
        return h * h

    found = record(Net(run, leaky=nn.LeakyReLU(inplace=True)), X, ("input", name, "output"), graph=("input", name))
    gradients = torch.autograd.grad(found["output"].sum(), [found["input"], found[name]])
    x = X.clone().requires_grad_()
    behind = value(x * 2)
    assert torch.equal(found["output"], behind**2)
    assert torch.allclose(gradients[1], 2 * behind)
    assert torch.allclose(gradients[0], torch.autograd.grad((behind**2).sum(), x)[0])


def test_edits_reach_the_network_at_input_modules_operators_and_output() -> None:
    net = Net(lambda s, x: s.a(x) + s.b(x), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    zeros = torch.zeros_like(X)
    assert torch.equal(output(net, {"input": zero}), net(zeros))
    assert torch.equal(output(net, {"a": zero}), net.b(X))
    assert torch.equal(output(net, {"add": lambda t: t + 1}), net(X) + 1)
    assert torch.equal(output(net, {"output": lambda t: t - 1}), net(X) - 1)
    assert torch.equal(output(net, {"a": zero, "b": zero}), zeros)


def test_what_is_captured_where_something_is_edited_is_the_edited() -> None:
    net = Net(lambda s, x: s.a(x).relu(), a=nn.Conv2d(3, 3, 1))
    found = record(net, X, ("a", "output"), {"a": lambda t: t + 1})
    assert torch.equal(found["a"], net.a(X) + 1)
    assert torch.equal(found["output"], (net.a(X) + 1).relu())


# ---- gradients
def test_gradients_at_captured_tensors_are_autograds_own() -> None:
    def run(s: Net, x: Tensor, at: str = "", new: Tensor | None = None) -> Tensor:
        a = new if at == "a" and new is not None else s.a(x)
        b = new if at == "b" and new is not None else s.b(F.relu(a))
        c = new if at == "add" and new is not None else b + a
        return s.relu(c * a) * c

    parts: dict[str, nn.Module] = {"a": nn.Conv2d(3, 3, 3, padding=1), "b": nn.Conv2d(3, 3, 1), "relu": nn.ReLU()}
    net = Net(run, **parts)
    weights = torch.arange(X.numel(), dtype=torch.float64).cos().view_as(X)
    for at in ("a", "b", "add"):
        captured, gradient = gradient_at(net, at)
        leaf = captured.detach().clone().requires_grad_()
        expected = torch.autograd.grad((run(net, X, at, leaf) * weights).sum(), leaf)[0]
        assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-13), at


def test_the_graph_starts_at_the_first_address_that_needs_it() -> None:
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)).requires_grad_(False)
    found = record(net, X, ("a", "b", "output"), graph=("b",))
    assert not found["a"].requires_grad
    assert found["b"].is_leaf
    assert found["b"].requires_grad


# ---- stopping and cleaning up
class Count(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[(resolve_name(func) or "").split(".")[-1]] += 1
        return func(*args, **(kwargs or {}))


def test_a_run_stops_where_the_answer_is_known(torchvision: ModuleType) -> None:
    net = torchvision.models.resnet18(weights=None).eval().requires_grad_(False)
    x, convolutions = torch.zeros(1, 3, 16, 16), {}
    for at in ("conv1", "layer1", "layer2", "layer2.0.relu", "output"):
        with Count() as count:
            record(net, x, (at,))
        convolutions[at] = count.names["conv2d"]
    assert convolutions == {"conv1": 1, "layer1": 5, "layer2": 10, "layer2.0.relu": 6, "output": 20}


def test_several_captures_run_to_the_deepest() -> None:
    reached = []

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.b(s.a(x))
        reached.append(1)
        return s.c(x)

    net = Net(run, a=nn.ReLU(), b=nn.ReLU(), c=nn.ReLU())
    record(net, X, ("a",))
    assert not reached
    assert set(record(net, X, ("b", "a"))) == {"a", "b"}
    assert not reached
    record(net, X, ("c",))
    assert reached


def test_no_hook_stays_after_an_exception_anywhere() -> None:
    def fail(tensor: Tensor) -> Tensor:
        raise KeyboardInterrupt

    net = Net(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    for where in ("input", "a", "relu", "b", "output"):
        with pytest.raises(KeyboardInterrupt):
            record(net, X, ("output",), {where: fail})
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()), where
    with pytest.raises(RuntimeError):
        record(net, X[:, :2], ("relu", "output"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(record(net, X, ("output",))["output"], net(X))


def test_the_users_own_hooks_still_work() -> None:
    net = Net(lambda s, x: s.a(x), a=nn.ReLU())
    handle = net.a.register_forward_hook(lambda m, a, o: o + 1)
    assert torch.equal(record(net, X, ("a",))["a"], X.relu() + 1)
    assert len(net.a._forward_hooks) == 1
    handle.remove()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_only_where_it_hides_what_is_asked() -> None:
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).double())
    net = Net(lambda s, x: s.inner(x) + 1, inner=inner)
    assert torch.equal(record(net, X, ("output",))["output"], net(X))
    for asked in ("add", "inner.0", "inner"):
        with pytest.raises(UnsupportedError, match="TorchScript"):
            record(net, X, (asked,))


def test_activations_know_their_rows() -> None:
    found = Activations({"a": X})
    found.rows = torch.tensor([3, 4])
    assert found["a"] is X
    assert found.rows.tolist() == [3, 4]


# ---- the same names as torchvision's
NETWORKS = [
    "resnet18", "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "vgg11_bn", "mobilenet_v3_small",
    "efficientnet_b0", "convnext_tiny", "shufflenet_v2_x1_0",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_addresses_are_those_of_torchvisions_feature_extraction(name: str, torchvision: ModuleType) -> None:
    """Each of its nodes that is a tensor of the pass is an address of ours, by the same name, with the same values.

    Its other nodes are the input (`x`, here `input`), parameters that are fetched, and the tensors of a chunk, which are
    `chunk.0` and `chunk.1` here and getitems there. Ours go on inside the modules that it takes as leaves (squeeze-excite,
    layer norm over channels).
    """
    from torchvision.models.feature_extraction import NodePathTracer

    class Copies(torch.fx.Interpreter):
        """The tensors of each node, before an operator in place overwrites them."""

        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                theirs[tracer.node_to_qualname.get(n, n.op)] = value.clone()
            return value

    settings: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(name, weights=None, **settings).eval().requires_grad_(False)
    x = torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    theirs: dict[str, Tensor] = {}
    tracer = NodePathTracer()
    graph = tracer.trace(net)
    Copies(torch.fx.GraphModule(tracer.root, graph)).run(x.clone(memory_format=torch.channels_last))  # as record runs it
    ours = {e.address for e in trace(net, x).entries}
    parameters = ("_layer_scale", "_weight", "_bias")
    unnamed = {n for n in theirs if n not in ours and not n.endswith(parameters)}
    unnamed = {n for n in unnamed if n.removesuffix(".stochastic_depth") not in ours}  # in eval mode it calls no operator
    assert {n.rsplit(".", 1)[-1].split("_")[0] for n in unnamed} <= {"x", "output", "getitem"}
    shared = sorted(set(theirs) & ours)
    found = record(net, x, shared)
    assert not [n for n in shared if not torch.equal(found[n], theirs[n])]
    assert len(shared) > 30


def test_a_pass_that_ends_while_another_thread_is_between_its_hooks_disturbs_neither() -> None:
    """PyTorch lists a module's hooks first, and asks only at each one's turn whether it takes keywords: a hook removed in
    between is still called, without them."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    waiting, go = threading.Event(), threading.Event()
    ended: list[Activations] = []

    def between(*_: object) -> None:
        if threading.current_thread() is other:
            waiting.set()
            assert go.wait(120)
        else:
            go.set()
            other.join(120)

    other = threading.Thread(target=lambda: ended.append(record(module, X, ("0",))))
    with module[0].register_forward_hook(between):
        other.start()
        assert waiting.wait(120)
        found = record(module, X, ("0",))
    torch.testing.assert_close(found["0"], ended[0]["0"])


# ---- the order of numbers in memory
class Viewing(nn.Module):
    """Takes its feature map apart with `view`, which needs the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 40 * 40, 5)
        self.strides: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.strides.append(x.stride())
        return self.fc(self.conv(x).view(len(x), -1))


def test_channels_go_last_in_memory_where_the_network_takes_that() -> None:
    x = torch.randn(2, 3, 40, 40)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen: list[tuple[int, ...]] = []
    with flat.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride())):
        for _ in range(2):
            found = record(flat, x, ("0", "output"))
    assert seen[-2:] == [(4800, 1, 120, 3)] * 2
    assert len(seen) == 4  # tried once with one row in either order
    assert found["0"].is_contiguous()
    torch.testing.assert_close(found["output"], flat(x))
    viewing = Viewing()
    for _ in range(2):
        torch.testing.assert_close(record(viewing, x, ("output",))["output"], viewing(x))
    assert viewing.strides[-2:] == [(4800, 1600, 40, 1)] * 2
    double = record(flat.double(), x.double(), ("output",))["output"]
    torch.testing.assert_close(double, flat(x.double()), rtol=0, atol=0)
