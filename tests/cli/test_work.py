"""What happens when a network lacks what a method needs."""

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.cli.work import Work, choose_methods, split_methods
from convoscope.core.errors import UnsupportedError


def without_relu(chosen: bool, *methods: str) -> Work:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    net = cs.Network(module, size=16)
    return Work(net, torch.rand(1, 3, 16, 16), ["noise"], choose_methods(methods, {}, []), [net.target("top")], chosen)


def test_a_default_method_that_does_not_fit_is_left_out_with_the_reason() -> None:
    work = without_relu(False)
    work.run()
    (reason,) = [reason for name, reason in work.left_out if name == "guided-backprop"]
    assert "relu" in reason.lower()
    done = [a.method.name for a in work.attributions]
    assert "guided-backprop" not in done
    assert {"grad-cam", "integrated-gradients", "occlusion"} <= set(done)


def test_a_requested_method_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match=r"(?i)relu"):
        without_relu(True, "guided-backprop").run()


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("gradient", ["gradient"]),
        ("gradient, lrp", ["gradient", "lrp"]),
        ("ig:steps=5,baseline=blur,lrp:composite=epsilon,cam", ["ig:steps=5,baseline=blur", "lrp:composite=epsilon", "cam"]),
        ("smooth-grad:of=(ig:steps=2,baseline=white),n=3,lrp", ["smooth-grad:of=(ig:steps=2,baseline=white),n=3", "lrp"]),
        ("smooth-grad:of=(a:b=(1,c:d=2)),lrp:", ["smooth-grad:of=(a:b=(1,c:d=2))", "lrp:"]),
        ("", []),
    ],
)
def test_several_methods_in_one_text(text: str, methods: list[str]) -> None:
    assert split_methods(text) == methods


def test_several_methods_and_layers_share_passes() -> None:
    net = cs.load("scenes")
    x = torch.rand(1, 3, 64, 64)
    work = Work(net, x, ["noise"], choose_methods(["gradient,grad-cam"], {}, []), [net.target(1)], True, ["layer1", "layer2"])
    work.run()
    assert [a.diagnostics.get("layer", a.at) for a in work.attributions] == ["layer1", "layer2"] * 2
    apart = cs.explain(net, x, cs.GradCAM(layer="layer2"), 1)
    assert torch.allclose(work.attributions[3].values, apart.values, atol=1e-6)
