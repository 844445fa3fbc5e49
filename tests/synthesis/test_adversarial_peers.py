"""The attacks of torchattacks and foolbox: the same numbers where they are right, and theirs through our door."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.synthesis.adversarial_peers import Foolbox, Torchattacks, parsed

SIDE, CLASSES = 8, 5
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.3, 0.25)


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, CLASSES))


def network() -> cs.Network:
    return cs.Network(module(), SIDE, MEAN, STD)


def pixels(count: int = 6) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class Normalized(nn.Module):
    """What torchattacks needs: pixels in, logits out."""

    def __init__(self, net: cs.Network) -> None:
        super().__init__()
        self.module, self.net = net.module, net

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self.net.normalize(x))


@pytest.fixture(scope="module")
def torchattacks() -> Any:
    from convoscope.loading import import_torchvision

    import_torchvision()
    return pytest.importorskip("torchattacks", reason="torchattacks is not installed: pip install 'convoscope[attacks]'")


def test_one_step_and_many_are_the_same_as_theirs(torchattacks: Any) -> None:
    net, p = network(), pixels()
    x, seen = net.normalize(p), Normalized(net)
    own = net.module(x).argmax(1)
    ours = cs.attack(net, x, "fgsm", epsilon=0.05)
    assert torch.allclose(ours.pixels, torchattacks.FGSM(seen, eps=0.05)(p, own), atol=1e-6)
    settings: dict[str, Any] = {"epsilon": 0.06, "steps": 5, "step_size": 0.02, "random_start": False, "keep": "last"}
    theirs = torchattacks.PGD(seen, eps=0.06, alpha=0.02, steps=5, random_start=False)(p, own)
    assert torch.allclose(cs.attack(net, x, "pgd", **settings).pixels, theirs, atol=1e-5)
    settings |= {"epsilon": 0.6, "step_size": 0.2, "norm": "l2"}
    theirs = torchattacks.PGDL2(seen, eps=0.6, alpha=0.2, steps=5, random_start=False)(p, own)
    assert torch.allclose(cs.attack(net, x, "pgd", **settings).pixels, theirs, atol=1e-5)


def test_the_smallest_change_is_no_larger_than_theirs(torchattacks: Any) -> None:
    net, p = network(), pixels(12)
    x = net.normalize(p)
    theirs = torchattacks.DeepFool(Normalized(net), overshoot=0.02)(p, net.module(x).argmax(1))
    ours = cs.attack(net, x, "deep-fool")
    done = net.module(net.normalize(theirs)).argmax(1) != ours.goal
    assert bool(ours.success.all())
    size = (theirs - p).flatten(1).norm(dim=1)
    assert bool((ours.l2 <= size * 1.001)[done].all())


@pytest.mark.parametrize("target", [None, 2])
def test_theirs_through_our_door(torchattacks: Any, target: int | None) -> None:
    net, p = network(), pixels()
    before = copy.deepcopy(net.module.state_dict())
    found = cs.attack(net, net.normalize(p), "torchattacks:CW,c=5,steps=60,lr=0.02", target)
    assert int(found.success.sum()) >= 4  # it stops all images when the sum of their losses rises
    assert float(found.pixels.min()) >= 0
    assert float(found.pixels.max()) <= 1
    assert found.evaluations > 60
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert net.module.training
    assert all(q.requires_grad and q.grad is None for q in net.module.parameters())
    again = cs.attack(net, net.normalize(p), "torchattacks:PGD,eps=0.05,steps=3", seed=1)
    assert torch.equal(again.pixels, cs.attack(net, net.normalize(p), "torchattacks:PGD,eps=0.05,steps=3", seed=1).pixels)
    assert float(again.linf.max()) <= 0.05 + 1e-6


def test_what_torchattacks_has_not(torchattacks: Any) -> None:
    net = network()
    with pytest.raises(cs.UsageError, match="no attack 'CWW'; did you mean 'CW'"):
        cs.attack(net, net.normalize(pixels()), "torchattacks:CWW")
    with pytest.raises(cs.UsageError, match="unexpected keyword"):
        cs.attack(net, net.normalize(pixels()), "torchattacks:CW,epsilon=3")


def test_foolbox_through_our_door() -> None:
    pytest.importorskip("foolbox", reason="foolbox is not installed: pip install 'convoscope[attacks]'")
    net = network()
    x = net.normalize(pixels())
    found = cs.attack(net, x, "foolbox:LinfPGD,epsilon=0.1,steps=10")
    assert float(found.linf.max()) <= 0.1 + 1e-6
    assert int(found.success.sum()) >= 5
    to_one = cs.attack(net, x, "foolbox:L2PGD,epsilon=8,steps=30", 1)
    assert int(to_one.success.sum()) >= 5


def test_they_are_named_in_text() -> None:
    assert parsed("torchattacks:CW,c=1,steps=50") == Torchattacks(attack="CW", settings=(("c", 1), ("steps", 50)))
    assert parsed("foolbox:LinfPGD,epsilon=0.5") == Foolbox(attack="LinfPGD", epsilon=0.5)
    assert parsed("pgd") is None
    with pytest.raises(cs.UsageError, match="is not a setting"):
        parsed("torchattacks:CW,fast")
