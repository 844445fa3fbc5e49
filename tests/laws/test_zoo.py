"""The hostile networks are what they say."""

import pytest
import torch
from torch import nn

from convoscope.testing import unavailable, zoo


@pytest.mark.parametrize("name", [n for n, h in zoo().items() if h.wrap is None])
def test_networks_are_the_same_every_time_and_draw_nothing(name: str) -> None:
    hostile, before = zoo()[name], torch.get_rng_state()
    first, second = hostile.module().eval(), hostile.module().eval()
    assert torch.equal(torch.get_rng_state(), before)
    x = hostile.images()
    with torch.no_grad():
        a, b = (hostile.network().head(m(x.clone())) for m in (first, second))
    assert a.shape == (3, 3)
    assert a.dtype == torch.float64
    assert torch.equal(a, b)
    assert all(t.abs().min() > 0 for n, t in first.named_parameters() if t.dim() == 1)
    assert any(n.endswith("bias") for n, _ in first.named_parameters())


def test_habits() -> None:
    networks = {n: h.module() for n, h in zoo().items() if not unavailable(h)}
    assert not any(isinstance(m, nn.ReLU) for m in networks["functional-relu"].modules())
    assert networks["dropout"].training
    x = zoo()["in-place-on-input"].images()
    kept = x.clone()
    networks["in-place-on-input"](x)
    assert not torch.equal(x, kept)
    buffers = [b.clone() for b in networks["updated-buffers"].buffers()]
    networks["updated-buffers"](zoo()["updated-buffers"].images())
    assert not any(torch.equal(a, b) for a, b in zip(buffers, networks["updated-buffers"].buffers(), strict=True))
    linear, x = networks["linear"].eval(), zoo()["linear"].images()
    assert torch.allclose(linear(x) - linear(0 * x), (linear(3 * x) - linear(0 * x)) / 3)
    assert zoo()["channels-last"].images().is_contiguous(memory_format=torch.channels_last)
