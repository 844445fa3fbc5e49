"""Diversity against a loop over pairs, directions against their formula, log-probabilities, and pictures for differences."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.record import Activations
from convoscope.core.spec import Spec

G = torch.Generator().manual_seed(0)
MAPS = torch.randn(5, 3, 4, 6, generator=G, dtype=torch.float64)
OUTPUT = torch.randn(5, 4, generator=G, dtype=torch.float64)
VECTOR = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def activations(**tensors: Tensor) -> Activations:
    given = {"maps": MAPS, "output": OUTPUT} | tensors
    return Activations.of(given, torch.arange(len(next(iter(tensors.values()), MAPS))))


def gram(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return (flat @ flat.T).flatten()


def alike(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(gram(a), gram(b), dim=0)


def test_diversity_is_the_sum_over_pairs() -> None:
    found = cs.Diversity("maps")(activations())
    expected = torch.stack([sum(alike(MAPS[i], MAPS[j]) for j in range(5) if j != i) for i in range(5)])  # type: ignore[misc]
    assert torch.allclose(found, expected, rtol=1e-12)
    styles = torch.nn.functional.normalize(torch.stack([gram(m) for m in MAPS]), dim=1)
    assert torch.allclose(found.sum(), styles.sum(0).square().sum() - 5, rtol=1e-12)


def test_alike_pictures_are_alike_wherever_things_are() -> None:
    rolled = torch.stack([MAPS[0].roll(k, 2) for k in range(3)])
    assert torch.allclose(cs.Diversity("maps")(activations(maps=rolled)), torch.full((3,), 2.0).double())
    apart = torch.zeros(2, 2, 4, 4).double()
    apart[0, 0], apart[1, 1] = 1, 1
    assert torch.equal(cs.Diversity("maps")(activations(maps=apart)), torch.zeros(2).double())
    assert torch.equal(cs.Diversity("maps")(activations(maps=MAPS[:1])), torch.zeros(1).double())


def test_what_responds_nowhere_is_like_nothing_and_has_a_gradient() -> None:
    dead = torch.zeros(3, 2, 4, 4).double().requires_grad_()
    found = cs.Diversity("maps")(activations(maps=dead))
    assert torch.equal(found, torch.zeros(3).double())
    assert torch.autograd.grad(found.sum(), dead)[0].isfinite().all()


def test_views_of_a_picture_are_not_compared_with_each_other() -> None:
    given = activations()
    given.pictures = torch.tensor([7, 7, 2, 2, 2])
    found = cs.Diversity("maps")(given)
    for row, (own, others) in enumerate([((0, 1), (2, 3, 4))] * 2 + [((2, 3, 4), (0, 1))] * 3):
        assert row in own
        styles = [gram(MAPS[j]) / gram(MAPS[j]).norm() for j in others]
        expected = (gram(MAPS[row]) / gram(MAPS[row]).norm()) @ torch.stack(styles).mean(0)
        assert torch.allclose(found[row], expected)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_direction_counts_the_angle(power: float) -> None:
    found = cs.CosineDirection("maps", VECTOR, power=power)(activations())
    v = VECTOR / VECTOR.norm()
    expected = torch.zeros(5).double()
    for i in range(5):
        for y in range(4):
            for x in range(6):
                a = MAPS[i, :, y, x]
                expected[i] += (a @ v) * max(0.1, float(a @ v / a.norm())) ** power / 24
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(cs.CosineDirection("maps", 7 * VECTOR, power=power)(activations()), found)
    flat = MAPS[:, :, 0, 0]
    assert torch.allclose(
        cs.CosineDirection("maps", VECTOR, power=power)(activations(maps=flat)),
        cs.CosineDirection("maps", VECTOR, power=power)(activations(maps=flat[:, :, None, None])),
    )


def test_log_probabilities() -> None:
    expected = OUTPUT.log_softmax(1)
    assert torch.allclose(cs.LogProbability(2)(activations()), expected[:, 2])
    assert torch.allclose(cs.LogProbability(2)(activations(output=OUTPUT.softmax(1))), expected[:, 2])
    assert torch.allclose(cs.LogProbability(2)(activations(output=expected)), expected[:, 2])
    one = OUTPUT[:, :1]
    assert torch.allclose(cs.LogProbability(0)(activations(output=one)), one[:, 0].sigmoid().log())
    assert torch.allclose(cs.LogProbability()(activations()), expected.amax(1))
    fixed = cs.LogProbability().resolve(activations())
    assert fixed == cs.LogProbability(tuple(OUTPUT.argmax(1).tolist()))
    assert cs.LogProbability("bee").named(("ant", "bee")) == cs.LogProbability(1)


def test_log_probabilities_keep_their_gradient_where_probabilities_lose_it() -> None:
    for output in (torch.tensor([[0.0, 2000.0]]).double(), torch.tensor([[0.0, 1.0]]).double()):
        leaf = output.requires_grad_()
        score = cs.LogProbability(0)(activations(output=leaf))
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
        assert score.item() < -700
        assert gradient.isfinite().all()
    unlikely = torch.tensor([[0.0, 2000.0]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(cs.LogProbability(0)(activations(output=unlikely)).sum(), unlikely)
    assert torch.allclose(gradient, torch.tensor([[1.0, -1.0]]).double())
    assert cs.LogProbability(0)(activations(output=OUTPUT.softmax(1).float())).dtype == torch.float32


@pytest.mark.parametrize(
    "target", [cs.Diversity("maps"), cs.CosineDirection("maps", VECTOR, power=1), cs.LogProbability(3)], ids=lambda t: t.name
)
def test_to_json_and_back(target: cs.Target) -> None:
    back = Spec.from_dict(json.loads(json.dumps(target.to_dict())))
    assert back == target
    assert torch.equal(back(activations()), target(activations()))  # type: ignore[operator]
    less = {k: v for k, v in activations().items() if k in target.addresses()}
    assert torch.equal(target(Activations.of(less, torch.arange(5))), target(activations()))


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(cs.UsageError, match="no places to compare"):
        cs.Diversity("output")(activations())
    with pytest.raises(cs.UsageError, match=r"'maps' has 3 channels; got a direction of shape \(2,\)"):
        cs.CosineDirection("maps", VECTOR[:2])(activations())


# ---- pictures
class Pair(nn.Module):
    """A linear layer whose first channel sees only red, its second only blue."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1).double()
        with torch.no_grad():
            self.body.weight[:2] = 0
            self.body.weight[0, 0] = self.body.weight[1, 2] = 0.2

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def network() -> cs.Network:
    torch.manual_seed(0)
    return cs.Network(Pair(), size=12)


A, B = cs.Channel("body", 0), cs.Channel("body", 1)


@pytest.mark.parametrize("image", [cs.Pixels(), cs.Fourier()], ids=lambda i: i.name)
def test_pictures_for_a_difference_raise_one_and_lower_the_other(image: cs.Image) -> None:
    net = network()
    start = cs.ascend(net, [A, B], image, steps=0)
    alone = cs.ascend(net, [A, B, A - B, B - A], image, steps=40)
    found = {name: [float(s) for s in _scores(net, alone.pixels[k])] for k, name in enumerate(("a", "b", "a-b", "b-a"))}
    assert found["a-b"][0] > start.scores[0] + 0.01
    assert found["a-b"][1] < start.scores[1] - 0.01
    assert found["b-a"][1] > start.scores[1] + 0.01
    assert found["b-a"][0] < start.scores[0] - 0.01
    assert alone.scores[2] == pytest.approx(found["a-b"][0] - found["a-b"][1], abs=1e-6)


def _scores(net: cs.Network, pixels: Tensor) -> Tensor:
    return net.module(net.normalize(pixels[None].to(net.dtype))).mean((2, 3))[0, :2].detach()


def test_the_algebra_of_objectives_holds_on_the_way_up() -> None:
    """Sums in any order, and factors spread over them, are the same ascent; a factor is a rate."""
    net, same = network(), [2 * (A + B), 2 * B + 2 * A, A + B + A + B, 3 * A - (A - 2 * B)]
    made = cs.ascend(net, same, cs.Pixels(), steps=12, optimizer="sgd", rate=5.0)
    for k in range(1, 4):
        assert torch.allclose(made.pixels[k], made.pixels[0], atol=1e-6)
    doubled = cs.ascend(net, [A + B], cs.Pixels(), steps=12, optimizer="sgd", rate=10.0)
    assert torch.allclose(doubled.pixels[0], made.pixels[0], atol=1e-6)
    assert made.scores[0] == pytest.approx(2 * doubled.scores[0], rel=1e-5)
    wrong = cs.ascend(net, [-(A + B)], cs.Pixels(), steps=12, optimizer="sgd", rate=5.0)
    difference = cs.ascend(net, [A - B], cs.Pixels(), steps=12, optimizer="sgd", rate=5.0)
    assert not torch.allclose(wrong.pixels, difference.pixels, atol=1e-3)


def test_diversity_makes_copies_less_alike() -> None:
    net, target = network(), cs.Channel("body", 0)
    alike = cs.ascend(net, [target], cs.Pixels(), copies=3, steps=30, start="noise")
    apart = cs.ascend(net, [target - 5 * cs.Diversity("body")], cs.Pixels(), copies=3, steps=30)
    given = [
        Activations.of({"body": net.module(net.normalize(s.pixels.double())).detach()}, torch.arange(3)) for s in (alike, apart)
    ]
    before, after = (float(cs.Diversity("body")(g).detach().mean()) for g in given)
    assert after < before - 0.1
    assert math.isclose(
        apart.scores[0] + 5 * float(cs.Diversity("body")(given[1])[0]), float(target(given[1])[0]), abs_tol=1e-5
    )
    assert not torch.equal(apart.pixels[0], apart.pixels[1])


def test_copies_are_compared_however_small_the_batches_and_many_the_views() -> None:
    net, target = network(), cs.Channel("body", 0) - 5 * cs.Diversity("body")
    made = [cs.ascend(net, [target, A], cs.Pixels(), copies=3, steps=4, views=v, batch_size=n) for n, v in ((2, 1), (64, 1))]
    assert torch.equal(made[0].pixels, made[1].pixels)
    assert made[0].scores == made[1].scores
    given = Activations.of({"body": net.module(net.normalize(made[0].pixels[:3].double()))}, torch.arange(3))
    assert made[0].scores[:3] == pytest.approx(target(given).tolist(), rel=1e-5)
    seen = [cs.ascend(net, target, cs.Pixels(), copies=3, steps=4, views=v) for v in (1, 3)]  # without transforms: the same
    assert torch.allclose(seen[0].pixels, seen[1].pixels, atol=1e-6)
    assert (2 * target - A).together
    assert not (A - B).together
