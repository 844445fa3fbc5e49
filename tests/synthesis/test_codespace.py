"""Chains of plug and play generative networks: against a plain loop, and where they must go."""

import math

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.images.base import Draws, Space
from convoscope.images.code import Code


def linear(channels: int = 1, side: int = 4, classes: int = 3) -> cs.Network:
    torch.manual_seed(1)
    return cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes)).double(), side, channels=channels)


def gan(code: int = 5, side: int = 4) -> cs.Generator:
    torch.manual_seed(2)
    return cs.Generator(nn.Sequential(nn.Linear(code, side * side), nn.Sigmoid()).double(), code, shape=(1, side, side))


def inverse(network: cs.Network, code: int = 3) -> cs.Generator:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(code, 16), nn.Sigmoid()).double()
    made = {"layer": "1", "network_hash": network.hash, "rectified": False}
    mean, deviation = torch.zeros(code), torch.ones(code)
    return cs.Generator(module, code, shape=(1, 4, 4), prior="features", mean=mean, deviation=deviation, made=made)


def start(generator: cs.Generator, space: Space, copies: int) -> tuple[Tensor, Draws]:
    draws = Draws(0, tuple((k,) for k in range(copies)), space)
    return Code(generator, keep="nothing").begin(space, draws)["code"], draws


@pytest.mark.parametrize("features", [False, True])
def test_a_chain_is_that_of_the_paper(features: bool) -> None:
    net = linear()
    generator = inverse(net) if features else gan()
    found = cs.ppgn(net, 1, generator, copies=2, steps=5, prior=0.1, condition=0.7, noise=0.2)
    space = Space(1, (4, 4), torch.device("cpu"), torch.float64)
    code, draws = start(generator, space, 2)
    for step in range(5):
        leaf = code.clone().requires_grad_()
        logits = net.module(generator(leaf).flatten(1))
        (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 1].sum(), leaf)
        away = net.module(generator(code).flatten(1)).detach() - code if features else -code
        code = code + 0.1 * away + 0.7 * gradient + 0.2 * draws.normal(code.shape[1:], ("step", step))
        code = code.clamp(-3, 3) if features else code
    assert torch.allclose(found.pixels, generator(code).float(), atol=1e-6)
    expected = net.module(generator(code).flatten(1)).log_softmax(1)[:, 1]
    assert torch.allclose(torch.tensor(found.scores, dtype=torch.float64), expected)


def test_without_a_condition_codes_of_a_gan_are_samples_of_their_prior() -> None:
    """Langevin's dynamics of N(0, I): with prior e and noise sqrt(2 e) the variance is 1 / (1 - e / 2)."""
    step = 0.2
    wide = cs.Generator(nn.Identity(), 16, (-50, 50), shape=(1, 4, 4))
    found = cs.ppgn(
        linear(), 0, wide, copies=400, steps=40, prior=step, condition=0.0, noise=math.sqrt(2 * step), batch_size=64
    )
    codes = found.pixels.double().flatten() * 100 - 50
    assert abs(float(codes.mean())) < 0.05
    assert abs(float(codes.var()) - 1 / (1 - step / 2)) < 0.08


def test_rows_do_not_depend_on_the_batch() -> None:
    net, generator = linear(), gan()
    whole = cs.ppgn(net, [0, 2], generator, copies=3, steps=4, every=2)
    single = cs.ppgn(net, 2, generator, copies=1, steps=4, every=2)
    assert len(whole) == 12
    assert torch.allclose(whole.pixels[6:8], single.pixels, atol=1e-12)
    parts = cs.ppgn(net, [0, 2], generator, copies=3, steps=4, every=2, batch_size=2)
    assert torch.allclose(whole.pixels, parts.pixels, atol=1e-12)
    assert parts.names == whole.names


def test_the_class_comes_out() -> None:
    net = linear()
    found = cs.ppgn(net, [0, 1, 2], gan(), steps=60, condition=20.0)
    assert all(b > a for a, b in zip(found.history[0].tolist(), found.scores, strict=True))
    assert [p[0].index for p in net.predict(found.inputs)] == [0, 1, 2]


def test_a_generator_of_another_network_needs_an_encoder() -> None:
    net = linear()
    other = inverse(linear(classes=3))
    other.made["network_hash"] = "another"
    with pytest.raises(cs.UsageError, match="encoder="):
        cs.ppgn(net, 0, other, steps=1)
    cs.ppgn(net, 0, other, lambda pixels: net.module(pixels.flatten(1)), steps=1)
