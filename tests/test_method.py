"""Methods by name, what explain takes, and the public names of the package."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.method import method_of

X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


NET = Net()


# ---- the public face
def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, convoscope as cs; dir(cs); print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_every_public_name_resolves() -> None:
    assert cs.__all__ == sorted(set(cs.__all__))
    assert set(cs.__all__) <= set(dir(cs))
    for name in cs.__all__:
        thing = getattr(cs, name)
        assert callable(thing), name
        assert thing.__doc__, name
        assert thing.__name__ == name
    for name in ("load", "Network", "explain", "methods", "cite", "Attribution", "Target", "Logit", "GradCAM", "Statistic"):
        assert name in cs.__all__
    with pytest.raises(AttributeError, match="module 'convoscope' has no attribute 'explian'"):
        cs.explian  # type: ignore[attr-defined]  # noqa: B018


def test_public_functions_are_not_hidden_by_modules_whatever_is_imported_first() -> None:
    """`convoscope.load` must stay the function when a module of that name is imported, before or after."""
    code = """
import importlib, pkgutil, types, sys
import convoscope as cs
early = [getattr(cs, n) for n in cs.__all__] if sys.argv[1:] == ['early'] else []
for found in pkgutil.walk_packages(cs.__path__, 'convoscope.'):
    if '.cli' not in found.name and '__main__' not in found.name:
        importlib.import_module(found.name)
print([n for n in cs.__all__ if isinstance(getattr(cs, n), types.ModuleType)])
"""
    for order in ("early", "late"):
        done = subprocess.run([sys.executable, "-c", code, order], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr


def test_star_import_gives_all() -> None:
    assert run("from convoscope import *; print(load.__name__, explain.__name__, GradCAM.name)").split() == [
        "load", "explain", "grad-cam",
    ]  # fmt: skip


# ---- methods
def test_methods_are_listed_by_name_and_say_what_they_are() -> None:
    found = cs.methods()
    assert list(found) == sorted(found)
    assert {
        "gradient", "input-x-gradient", "integrated-gradients", "smooth-grad", "deconvnet", "guided-backprop", "lrp", "cam",
        "grad-cam", "occlusion",
    } <= set(found)  # fmt: skip
    for name, cls in found.items():
        assert cls.name == name
        assert cls.paper is not None
        assert cls.about.type == "decision"
        assert all((cls.about.use, cls.about.cost, cls.about.support, cls.about.drawback))


def test_a_method_by_name_by_text_or_itself() -> None:
    assert method_of("grad-cam") == cs.GradCAM()
    assert method_of("integrated-gradients:steps=3") == cs.IntegratedGradients(steps=3)
    assert method_of(cs.LRP()) == cs.LRP()
    with pytest.raises(cs.SpecError, match="no method 'grad-camm'; did you mean 'grad-cam'"):
        method_of("grad-camm")
    for wrong in (cs.GradCAM, None, 3):
        with pytest.raises(cs.UsageError, match="a method is its name or a Method such as GradCAM"):
            method_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(cs.methods()))
def test_every_method_runs_by_name_with_nothing_else_said(name: str) -> None:
    a = cs.explain(NET, X[:2], name)
    assert a.values.shape[0] == 2
    assert a.values.isfinite().all()
    assert a.heatmap().shape == (2, 16, 16)
    assert a.diagnostics["evaluations"] > 0
    assert a.target == cs.Logit(tuple(NET(X[:2]).argmax(1).tolist()))


# ---- what explain takes
def test_the_target_may_be_given_in_every_way() -> None:
    net = cs.Network(NET, 16, categories=["a", "b", "c", "d"])
    expected = cs.explain(net, X, "gradient", cs.Logit(2)).values
    for given in (2, "2", "c", "C", torch.tensor(2), [2] * 5, torch.full((5,), 2)):
        assert torch.equal(cs.explain(net, X, "gradient", given).values, expected)
    top = NET(X).argmax(1)
    assert torch.equal(cs.explain(net, X, "gradient").values, cs.explain(net, X, "gradient", top).values)
    assert torch.equal(cs.explain(net, X, "gradient", "top").values, cs.explain(net, X, "gradient", None).values)


def test_gradients_of_targets_are_autograds_own() -> None:
    x = X.clone().requires_grad_()
    hidden = NET.layer1(x)
    score = 0.8 * NET.layer2(hidden)[:, 5].mean((1, 2)) - 0.2 * hidden[:, 1, 3, 4]
    expected = torch.autograd.grad(score.sum(), x)[0]
    target = 0.8 * cs.Channel("layer2", 5) - 0.2 * cs.Neuron("layer1", 1, 3, 4)
    assert torch.allclose(cs.explain(NET, X, "gradient", target).values, expected, rtol=1e-5, atol=1e-8)


def test_open_targets_are_fixed_once_for_all_batches() -> None:
    a = cs.explain(NET, X, cs.IntegratedGradients(steps=4), cs.Neuron("layer2", 3) + cs.Logit(), batch_size=2)
    assert not a.target.open
    b = cs.explain(NET, X, cs.IntegratedGradients(steps=4), a.target, batch_size=32)
    assert torch.allclose(a.values, b.values, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_and_seed(batch_size: int) -> None:
    method = cs.SmoothGrad(samples=5)
    one = cs.explain(NET, X, method, 1, seed=3)
    assert torch.equal(one.values, cs.explain(NET, X, method, 1, seed=3).values)
    assert torch.allclose(one.values, cs.explain(NET, X, method, 1, seed=3, batch_size=batch_size).values, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(one.values, cs.explain(NET, X, method, 1, seed=4).values)
    with pytest.raises(cs.UsageError, match="batch_size is 0"):
        cs.explain(NET, X, method, 1, batch_size=0)


def test_a_layer_may_be_explained_instead_of_the_input() -> None:
    values = NET.layer1(X).detach()
    a = cs.explain(NET, X, "gradient", 2, at="layer1")
    leaf = values.clone().requires_grad_()
    expected = torch.autograd.grad(NET.fc(NET.layer2(leaf).mean((2, 3)))[:, 2].sum(), leaf)[0]
    assert a.at == "layer1"
    assert torch.allclose(a.values, expected, rtol=1e-5)
    with pytest.raises(cs.AddressError, match="'layer9' does not exist; did you mean 'layer"):
        cs.explain(NET, X, "gradient", 2, at="layer9")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_baseline_for_each_image(batch_size: int) -> None:
    given = torch.rand(5, 3, 16, 16)
    found = cs.explain(NET, X, cs.DeepLIFT(baseline=given), 1, batch_size=batch_size).values
    for i in range(5):
        alone = cs.explain(NET, X[i : i + 1], cs.DeepLIFT(baseline=given[i : i + 1]), 1).values
        assert torch.allclose(found[i : i + 1], alone, atol=1e-6)


def test_a_network_may_return_one_number_for_each_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0))
    for name in ("gradient", "grad-cam", "deep-lift", "full-grad", "integrated-gradients", "lrp", "occlusion:window=9"):
        values = cs.explain(net, X, name).values
        assert values.isfinite().all(), name
        assert torch.allclose(values, cs.explain(net, X, name, cs.Logit(0), batch_size=2).values, atol=1e-6), name


@pytest.mark.parametrize("name", ["grad-cam", "guided-grad-cam", "ablation-cam", "recipro-cam", "shapley-cam", "conductance"])
def test_a_layer_that_does_not_exist_is_refused_by_name(name: str) -> None:
    for layer in ("layer3", "output.boxes", ""):
        with pytest.raises(cs.AddressError, match=f"layer '{layer}' does not exist"):
            cs.explain(NET, X, name, 1, at=layer)


def test_either_name_of_a_shared_module_will_do() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Conv2d(3, 4, 5, stride=3)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(x).relu().mean((2, 3)))

    net = Shared()
    for name in ("grad-cam", "guided-grad-cam", "hires-cam"):
        one, other = (cs.explain(net, X, name, 1, at=layer) for layer in "ab")
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.heatmap(), other.heatmap())


def test_rules_that_end_at_a_softmax_say_where_to_start() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4), nn.Softmax(1))
    x = torch.rand(2, 3, 3, 3)
    with pytest.raises(cs.UnsupportedError, match=r"as softmax and sigmoid are: explain .* such as Channel\(address, class\)"):
        cs.explain(net, x, "lrp", 1)
    assert cs.explain(net, x, "lrp", cs.Channel("3", 1)).values.abs().sum() > 0


def test_a_target_of_zero_has_finite_diagnostics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))
    net[0].bias.data[1] = -99
    for name in cs.methods():
        if name.startswith(("deep", "lrp", "full", "integrated")):
            diagnostics = cs.explain(net, torch.rand(2, 3, 3, 3), name, cs.Channel("1", 1)).diagnostics
            assert all(math.isfinite(v) for values in diagnostics.values() if isinstance(values, list) for v in values), name


def test_progress_counts_up_to_the_total() -> None:
    seen: list[tuple[int, int | None]] = []
    cs.explain(NET, X, cs.IntegratedGradients(steps=8), 1, batch_size=4, progress=lambda *counts: seen.append(counts))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert all(t is not None and d <= t for d, t in seen)


def test_explaining_leaves_input_and_network_alone() -> None:
    x = X.clone().requires_grad_()
    NET.train()
    before = {k: v.clone() for k, v in NET.state_dict().items()}
    state = torch.get_rng_state()
    a = cs.explain(NET, x, "smooth-grad", 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in NET.state_dict().items())
    assert all(m.training for m in NET.modules())
    NET.eval()
    assert torch.equal(x, X)
    assert x.grad is None
    assert not a.values.requires_grad
    assert all(p.grad is None and p.requires_grad for p in NET.parameters())


def test_pictures_are_read_on_the_way() -> None:
    net = cs.Network(NET, 16)
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    assert torch.equal(cs.explain(net, pixels, "gradient", 1).values, cs.explain(net, net.read(pixels), "gradient", 1).values)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"target": 9}, cs.UsageError, "no class 9; there are 4"),
        ({"target": "tabby"}, cs.UsageError, "no category names"),
        ({"target": [0, 1]}, cs.UsageError, "2 entries for"),
        ({"target": cs.Channel("layer7", 0)}, cs.AddressError, "'layer7' does not exist; did you mean 'layer"),
        ({"target": cs.Channel("layer1", 77)}, cs.UsageError, "no channel of 'layer1' 77; there are 6"),
        ({"x": torch.zeros(3, 16, 16)}, cs.UsageError, "got shape"),
        ({"x": "nope.png"}, cs.UsageError, "no file 'nope.png'"),
        ({"method": "gradients"}, cs.SpecError, "did you mean 'gradient"),
        ({"network": "resnet18"}, cs.UsageError, "Module"),
        ({"batch_size": "all"}, cs.UsageError, "batch_size is 'all'; expected a whole number"),
        ({"batch_size": 2.5}, cs.UsageError, "batch_size is 2.5"),
        ({"target": []}, cs.UsageError, "empty list of methods, targets or addresses"),
        ({"x": X / X[:, :1, :1, :1] * torch.tensor([1, 1, torch.nan, 1, 1])[:, None, None, None]}, cs.UsageError, "image 2"),
        ({"method": cs.DeepLIFT(baseline=torch.zeros(1, 3, 5, 5))}, cs.UsageError, r"\(1 or 5, 3, 16, 16\); got \(1, 3, 5, "),
        ({"method": cs.DeepLIFT(baseline=torch.zeros(1, 3, 1, 1)), "at": "fc"}, cs.UsageError, r"'fc' is \(1 or 5, 4\); got"),
        ({"method": cs.Occlusion(fill=torch.zeros(2, 3, 16, 16)), "batch_size": 2}, cs.UsageError, r"got \(2, 3, 16, 16\)"),
        ({"method": cs.DeepLIFTSHAP(baseline=torch.zeros(0, 3, 16, 16))}, cs.UsageError, r"references are \(N, 3, 16, 16\)"),
        ({"method": cs.ExpectedGradients(baseline=torch.zeros(4, 3, 5, 5))}, cs.UsageError, r"baselines are \(N, 3, 16, 16\)"),
    ],
)
def test_what_cannot_be_explained_says_why(arguments: dict[str, Any], error: type[Exception], reason: str) -> None:
    given = {"network": NET, "x": X, "method": "gradient", **arguments}
    with pytest.raises(error, match=reason) as caught:
        cs.explain(**given)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in NET.modules())
