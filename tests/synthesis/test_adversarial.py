"""Adversarial examples: closed forms on linear networks, plain loops as oracles, the valid range, the 8-bit picture."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope import attack, attacks
from convoscope.synthesis.adversarial import LogOdds, attack_of
from convoscope.synthesis.adversarial_methods import FGSM, PGD

CLASSES, SIDE = 4, 6


def linear(channels: int = 3, seed: int = 0, scale: float = 1.0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(channels * SIDE * SIDE, CLASSES)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return module


def curved(channels: int = 3) -> nn.Module:
    torch.manual_seed(3)
    parts = [nn.Conv2d(channels, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(8 * 16, CLASSES)).double().eval()


MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)


def network(module: nn.Module | None = None, **settings: Any) -> cs.Network:
    return cs.Network(module or curved(), SIDE, MEAN, STD, categories=["ant", "bee", "cat", "dog"], **settings)


def pixels(count: int = 5, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_fgsm_is_the_sign_of_the_gradient_of_the_cross_entropy_in_pixels() -> None:
    net, p = network(), pixels()
    x = net.normalize(p)
    found = attack(net, x, "fgsm", epsilon=0.03)
    own = net.module(x).argmax(1)
    leaf = p.clone().requires_grad_()
    loss = F.cross_entropy(net.module((leaf - column(MEAN)) / column(STD)), own, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = (p + 0.03 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(found.pixels, expected, atol=1e-12)
    assert torch.allclose(found.inputs, net.normalize(expected), atol=1e-12)
    assert torch.equal(found.goal, own)
    assert float(found.linf.max()) <= 0.03 + 1e-12


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", [None, [2, 0, 1, 3, 2]])
def test_pgd_is_the_plain_loop(norm: str, target: Any) -> None:
    net, p, epsilon, size, steps = network(), pixels(), 0.1, 0.03, 4
    x = net.normalize(p)
    method = PGD(epsilon=epsilon, norm=norm, steps=steps, step_size=size, random_start=False, keep="last")
    found = attack(net, x, method, target, batch_size=2)
    own = net.module(x).argmax(1) if target is None else torch.tensor(target)
    sign = 1 if target is None else -1
    for i in range(len(p)):
        delta = torch.zeros_like(p[i : i + 1])
        for _ in range(steps):
            leaf = (p[i : i + 1] + delta).requires_grad_()
            loss = sign * F.cross_entropy(net.module((leaf - column(MEAN)) / column(STD)), own[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, leaf)
            delta = delta + size * (gradient.sign() if norm == "linf" else gradient / gradient.norm())
            delta = delta.clamp(-epsilon, epsilon) if norm == "linf" else delta * min(1, epsilon / float(delta.norm()))
            delta = (p[i : i + 1] + delta).clamp(0, 1) - p[i : i + 1]
        assert torch.allclose(found.perturbation[i], delta[0], atol=1e-10)
    assert torch.equal(found.success, (net.module(found.inputs).argmax(1) == own) == (target is not None))


def test_the_log_odds_have_the_direction_of_the_cross_entropy() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = torch.arange(6) % 5
    for targeted in (False, True):
        from convoscope.core.record import Activations
        from convoscope.synthesis.adversarial import Goal

        leaf = logits.clone().requires_grad_()
        score = LogOdds(Goal(own, targeted))(Activations.of({"output": leaf}, torch.arange(6)))
        (ours,) = torch.autograd.grad(score.sum(), leaf)
        other = logits.clone().requires_grad_()
        loss = F.cross_entropy(other, own, reduction="sum")
        (theirs,) = torch.autograd.grad(-loss if targeted else loss, other)
        assert torch.allclose(F.normalize(ours, dim=1), F.normalize(theirs, dim=1), atol=1e-12)
        odds = logits.softmax(1).gather(1, own[:, None])[:, 0]
        expected = (odds / (1 - odds)).log() * (1 if targeted else -1)
        assert torch.allclose(score.detach(), expected, atol=1e-12)


@pytest.mark.parametrize("end", [nn.Identity(), nn.LogSoftmax(1)])
def test_a_network_that_is_sure_is_attacked_all_the_same(end: nn.Module) -> None:
    """In float32 its cross-entropy is exactly zero, and so is the gradient of that."""
    module = nn.Sequential(linear(scale=5000), end).float()
    net = network(module)
    x = net.normalize(pixels().float())
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(module(leaf), module(x).argmax(1)), leaf)
    assert not gradient.any()
    assert bool(attack(net, x, "fgsm", epsilon=0.3).success.all())


def test_a_network_that_ends_in_softmax_is_attacked_as_one_without() -> None:
    x = network().normalize(pixels())
    plain, ended = (attack(network(m), x, "fgsm") for m in (linear(), nn.Sequential(linear(), nn.Softmax(1))))
    assert torch.allclose(plain.pixels, ended.pixels, atol=1e-12)
    assert torch.allclose(plain.after, ended.after, atol=1e-12)


def test_all_stays_in_the_valid_range_and_in_the_ball() -> None:
    net = network()
    p = pixels()
    p[0] = 0.0
    p[1] = 1.0
    x = net.normalize(p)
    for norm, epsilon in (("linf", 0.3), ("l2", 2.0)):
        for method in ("fgsm", "pgd"):
            found = attack(net, x, method, epsilon=epsilon, norm=norm)
            assert float(found.pixels.min()) >= 0
            assert float(found.pixels.max()) <= 1
            size = found.perturbation.abs().flatten(1).amax(1) if norm == "linf" else found.perturbation.flatten(1).norm(dim=1)
            assert float(size.max()) <= epsilon * (1 + 1e-12)
            assert torch.allclose(getattr(found, norm), size)
            assert torch.allclose(net.normalize(found.pixels), found.inputs, atol=1e-12)


def test_no_change_gives_the_very_inputs() -> None:
    net = cs.Network(curved().float(), SIDE, MEAN, STD)
    x = net.read(list((pixels() * 255).round().to(torch.uint8)))
    found = attack(net, x, "pgd", epsilon=0.0)
    assert torch.equal(found.inputs, x)
    assert torch.equal(found.before, found.after)
    assert not found.success.any()


def test_success_is_what_the_network_says_of_the_picture_as_saved() -> None:
    net = network()
    x = net.normalize((pixels(12) * 255).round() / 255)
    found = attack(net, x, "pgd", epsilon=0.05)
    from PIL import Image

    for i in range(len(found)):
        picture = found.picture(i)
        assert isinstance(picture, Image.Image)
        again = net.module(net.read(picture)).softmax(1)[0]
        assert torch.allclose(again, found.saved[i], atol=1e-12)
        assert bool(found.saved_success[i]) == (int(again.argmax()) != int(found.goal[i]))


def test_a_change_of_less_than_half_a_level_is_lost_when_saved() -> None:
    net = network(linear(scale=0.05))
    p = (pixels(8) * 255).round() / 255
    found = attack(net, net.normalize(p), "fgsm", epsilon=0.4 / 255)
    assert torch.allclose(found.saved, found.before, atol=1e-12)
    assert not found.saved_success.any()


def test_targets_by_number_name_and_list() -> None:
    net, x = network(), network().normalize(pixels(3))
    by_name, by_number = attack(net, x, target="cat", epsilon=0.5), attack(net, x, target=2, epsilon=0.5)
    assert torch.equal(by_name.pixels, by_number.pixels)
    assert bool(by_name.success.all())
    assert all(row[0].category == "cat" for row in by_name.predictions("after"))
    each = attack(net, x, target=["ant", 1, "dog"], epsilon=0.5)
    assert each.goal.tolist() == [0, 1, 3]


def test_labels_are_what_is_left() -> None:
    """An image that the network gets wrong has reached the goal before anything is changed."""
    net, x = network(), network().normalize(pixels(3))
    said = net.module(x).argmax(1)
    found = attack(net, x, labels=(said + 1) % CLASSES, epsilon=1e-9)
    assert bool(found.success.all())
    assert not found.targeted


def test_restarts_help_and_a_seed_gives_the_same_bits() -> None:
    net, x = network(), network().normalize(pixels(6))
    one = attack(net, x, "pgd", epsilon=0.02, steps=2, seed=5)
    many = attack(net, x, "pgd", epsilon=0.02, steps=2, restarts=6, seed=5)
    assert int(many.success.sum()) >= int(one.success.sum())
    assert torch.equal(one.pixels, attack(net, x, "pgd", epsilon=0.02, steps=2, seed=5).pixels)
    assert torch.allclose(one.pixels, attack(net, x, "pgd", epsilon=0.02, steps=2, seed=5, batch_size=1).pixels, atol=1e-12)
    assert not torch.equal(one.pixels, attack(net, x, "pgd", epsilon=0.02, steps=2, seed=6).pixels)
    assert torch.equal(one.pixels[2:3], attack(net, x, "pgd", epsilon=0.02, steps=2, seed=5).pixels[2:3])


def test_the_best_is_no_worse_than_the_last() -> None:
    net, x = network(), network().normalize(pixels(8))
    settings: dict[str, Any] = {"epsilon": 0.05, "steps": 6, "step_size": 0.05, "seed": 1}
    best, last = (attack(net, x, "pgd", keep=k, **settings) for k in ("best", "last"))
    assert bool((best.success | ~last.success).all())
    own = best.goal[:, None]
    both = best.success == last.success
    odds = [a.after.gather(1, own)[:, 0] for a in (best, last)]
    assert bool((odds[0] <= odds[1] + 1e-12)[both].all())


def test_the_network_is_untouched() -> None:
    module = curved().train()
    before = copy.deepcopy(module.state_dict())
    net = network(module)
    state = torch.get_rng_state()
    attack(net, net.normalize(pixels()), "pgd", steps=2)
    assert module.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._backward_hooks for m in module.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_in_any_mode(mode: Any) -> None:
    net, x = network(), network().normalize(pixels())
    expected = attack(net, x, "fgsm")
    with mode():
        assert torch.equal(attack(net, x, "fgsm").pixels, expected.pixels)


def test_one_channel_many_channels_and_any_size() -> None:
    for channels in (1, 5):
        net = cs.Network(curved(channels), SIDE, categories=None)
        found = attack(net, pixels(2, channels), "pgd", epsilon=0.5)
        assert found.perturbation.shape == (2, channels, SIDE, SIDE)
        assert found.image().size[0] > 100
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    found = attack(cs.Network(convolutional), torch.rand(1, 3, 9, 17, dtype=torch.float64), "fgsm")
    assert found.pixels.shape == (1, 3, 9, 17)


def test_half_precision() -> None:
    net = cs.Network(curved().to(torch.bfloat16), SIDE, MEAN, STD)
    found = attack(net, net.read(pixels()), "pgd", epsilon=0.2)
    assert found.inputs.dtype == torch.bfloat16
    assert found.pixels.dtype == torch.float32


class Dense(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attack(network(), pixels() * 7, "fgsm"), "pixels of x go from"),
        (lambda: attack(network(), torch.full((1, 3, SIDE, SIDE), torch.nan), "fgsm"), "not finite"),
        (lambda: attack(network(nn.Sequential(linear(), nn.Linear(4, 1).double())), pixels() * 0), "one output"),
        (lambda: attack(cs.Network(Dense(), SIDE, channels=3), pixels()), "(images, classes)"),
        (lambda: attack(network(), pixels() * 0, target="cow"), "no category 'cow'"),
        (lambda: attack(network(), pixels() * 0, target=9), "no class 9"),
        (lambda: attack(network(), pixels() * 0, target=[1, 2]), "2 classes for 5 images"),
        (lambda: attack(network(), pixels() * 0, target=1.5), "classes are numbers or names"),
        (lambda: attack(network(), pixels() * 0, target=1, labels=2), "not both"),
        (lambda: attack(network(), pixels() * 0, "pdg"), "no attack 'pdg'; did you mean 'pgd'"),
        (lambda: attack(network(), pixels() * 0, "pgd", eps=1.0), "no setting 'eps'"),
        (lambda: attack(network(), pixels() * 0, "pgd", norm="l1"), "norm is 'l1'"),
        (lambda: attack(network(), pixels() * 0, "pgd", epsilon=8.0), None),
        (lambda: attack(network(), pixels() * 0, "pgd", epsilon=-1.0), "at least 0"),
        (lambda: attack(network(), pixels() * 0, "pgd", epsilon=20.0), "no change can be larger"),
        (lambda: attack(network(), pixels() * 0, batch_size=0), "batch_size"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make: Any, words: str | None) -> None:
    if words is None:
        make()
        return
    with pytest.raises(cs.ConvoscopeError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        make()
    assert "\n" not in str(error.value)


def test_an_attack_is_a_spec() -> None:
    assert {"fgsm", "pgd"} <= set(attacks())
    made = attack_of("pgd:steps=3,norm=l2,epsilon=0.5")
    assert made == PGD(steps=3, norm="l2", epsilon=0.5)
    assert type(made).from_dict(made.to_dict()) == made
    assert attack_of(FGSM(), {"epsilon": 0.25}) == FGSM(epsilon=0.25)
    assert all(cls.__doc__ and cls.title for cls in attacks().values())


def test_the_result_is_written_and_read(tmp_path: Any) -> None:
    import json

    from safetensors import safe_open

    net = network()
    found = attack(net, net.normalize(pixels(2)), "pgd", target="dog", epsilon=0.3)
    for name in ("a.png", "a.html", "a.safetensors"):
        assert found.save(tmp_path / name).stat().st_size > 1000
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        made = json.loads(file.metadata()["made"])
        assert torch.equal(file.get_tensor("pixels"), found.pixels)
    assert made == json.loads(json.dumps(found.to_dict()))
    assert made["images"][0]["goal"] == {"index": 3, "category": "dog"}
    with pytest.raises(cs.UsageError, match="expected a picture"):
        found.save(tmp_path / "a.gif")
    assert found._repr_html_().startswith("<img")
