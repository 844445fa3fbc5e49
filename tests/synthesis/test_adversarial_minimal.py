"""DeepFool: the closed form on affine classifiers, a solver as oracle at the ends of the pixel range, targets."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.synthesis.adversarial_minimal import least

CLASSES, SIDE = 5, 4
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)


def affine() -> cs.Network:
    draw = torch.Generator().manual_seed(2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return cs.Network(module, SIDE, MEAN, STD)


def pixels(count: int = 6) -> Tensor:
    """In the middle of the range, so that no end of it is reached."""
    return 0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def distances(net: cs.Network, p: Tensor, norm: str) -> Tensor:
    """The closed form: |f_k - f_own| / ||w_k - w_own|| in pixels, for each image and class (infinite for its own)."""
    layer = net.module[1]
    std = torch.tensor(STD, dtype=torch.float64).repeat_interleave(SIDE * SIDE)
    logits = net.module(net.normalize(p))
    own = logits.argmax(1)
    out = torch.full((len(p), CLASSES), torch.inf, dtype=torch.float64)
    for i in range(len(p)):
        for k in range(CLASSES):
            if k != own[i]:
                w = (layer.weight[k] - layer.weight[own[i]]) / std
                size = w.norm() if norm == "l2" else w.abs().sum()
                out[i, k] = (logits[i, own[i]] - logits[i, k]).detach() / size
    return out


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_on_an_affine_classifier_it_is_the_distance_to_the_nearest_boundary(norm: str) -> None:
    net, p = affine(), pixels()
    expected = distances(net, p, norm).amin(1)
    found = cs.attack(net, net.normalize(p), "deep-fool", norm=norm, overshoot=0.01, refine=0, polish=0)
    assert bool(found.success.all())
    assert torch.allclose(getattr(found, norm), 1.01 * expected, rtol=1e-4)
    refined = cs.attack(net, net.normalize(p), "deep-fool", norm=norm, overshoot=0.01, refine=20)
    assert bool(refined.success.all())
    assert torch.allclose(getattr(refined, norm), expected, rtol=1e-4)


def test_with_a_target_it_is_the_distance_to_that_class() -> None:
    """Between two classes: with more, others may lie in between."""
    net, p = affine(), pixels()
    net.module[1].weight.data[2:], net.module[1].bias.data[2:] = 0, -100
    own = net.module(net.normalize(p)).argmax(1)
    found = cs.attack(net, net.normalize(p), "deep-fool", 1 - own, refine=20)
    assert bool(found.success.all())
    assert torch.allclose(found.l2, distances(net, p, "l2")[torch.arange(len(p)), 1 - own], rtol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_smallest_step_within_bounds_is_that_of_a_slow_search(norm: str) -> None:
    """The oracle bisects the multiplier of the optimality conditions, and asks that no shorter step does."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(40, 3, 4, 4, generator=draw, dtype=torch.float64)
    w[:, :, 0] = 0
    low = -torch.rand(w.shape, generator=draw, dtype=torch.float64)
    high = 1 + low
    reach = torch.where(w > 0, w * high, w * low).flatten(1).sum(1)
    share = torch.linspace(0.01, 1.2, 40, dtype=torch.float64)
    gap = share * reach
    step, size = least(w, gap, low, high, norm)
    assert torch.equal(size.isfinite(), share <= 1)
    for i in range(40):
        under, over = 0.0, 1e4
        for _ in range(200):
            t = (under + over) / 2
            r = (t * w[i] if norm == "l2" else t * w[i].sign()).clamp(low[i], high[i])
            under, over = (t, over) if float((w[i] * r).sum()) < float(gap[i]) else (under, t)
        if share[i] <= 1:
            assert torch.allclose(step[i], r, atol=1e-9)
            assert abs(float((w[i] * step[i]).sum()) - float(gap[i])) < 1e-9
        assert bool(((step[i] >= low[i] - 1e-12) & (step[i] <= high[i] + 1e-12)).all())


def test_at_the_ends_of_the_range_it_still_crosses_the_boundary() -> None:
    net = affine()
    p = (torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) > 0.5).double()  # black and white only
    found = cs.attack(net, net.normalize(p), "deep-fool")
    assert bool(found.success.all())
    assert float(found.pixels.min()) >= 0
    assert float(found.pixels.max()) <= 1
    free = distances(net, p, "l2").amin(1)
    assert bool((found.l2 > free).all())  # the range costs something


def test_curved_networks_and_batches() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, CLASSES)]
    net = cs.Network(nn.Sequential(*parts).double(), SIDE, MEAN, STD)
    x = net.normalize(pixels(7))
    found, single = (cs.attack(net, x, "deep-fool", batch_size=b) for b in (7, 2))
    assert bool(found.success.all())
    assert torch.allclose(found.pixels, single.pixels, atol=1e-9)
    epsilon = float(found.l2.amax())
    assert bool(cs.attack(net, x, "pgd", norm="l2", epsilon=0.5 * float(found.l2.amin())).success.sum() == 0)
    assert bool(cs.attack(net, x, "pgd", norm="l2", epsilon=1.5 * epsilon, steps=40).success.all())


def test_an_image_that_is_wrong_already_is_not_changed() -> None:
    net, x = affine(), affine().normalize(pixels())
    said = net.module(x).argmax(1)
    found = cs.attack(net, x, "deep-fool", labels=(said + 1) % CLASSES)
    assert bool(found.success.all())
    assert not found.perturbation.any()
