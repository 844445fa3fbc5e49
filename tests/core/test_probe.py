"""The probe: batches that nobody notices, draws that depend on the image alone, edits, rules, counts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.probe import Answers, Probe, Session
from convoscope.rules import GUIDED, Composite
from convoscope.rules.composites import Entry
from convoscope.rules.rules import Guided

X = torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.head = nn.Linear(4, 5)
        self.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.relu(self.conv(x)) * 2).mean((2, 3)).tanh())


NET = Net()


def session(**settings: Any) -> Session:
    return Session(images=X, **{"module": NET, "target": cs.Logit((0, 1, 2, 3, 4, 0, 1)), **settings})


def probe(rows: list[int] | None = None, **settings: Any) -> Probe:
    rows = list(range(7)) if rows is None else rows
    return Probe(session(**settings), torch.tensor(rows), tuple((r,) for r in rows))


# ---- asking the network
def test_scores_and_gradients_are_the_networks_own() -> None:
    x = X.clone().requires_grad_()
    scores = NET(x)[torch.arange(7), [0, 1, 2, 3, 4, 0, 1]]
    expected = torch.autograd.grad(scores.sum(), x)[0]
    p = probe()
    assert torch.equal(p.score(X), scores.detach())
    assert torch.equal(p.grad(X), expected)
    gradient, score = p.grad_and_score(X)
    assert torch.equal(gradient, expected)
    assert torch.equal(score, scores.detach())
    values, at_conv = p.activations_and_gradients(X, "conv")
    assert torch.equal(values, NET.conv(X))
    leaf = values.clone().requires_grad_()
    later = NET.head((leaf.relu() * 2).mean((2, 3)).tanh())[torch.arange(7), [0, 1, 2, 3, 4, 0, 1]]
    assert torch.allclose(at_conv, torch.autograd.grad(later.sum(), leaf)[0], rtol=1e-12)
    assert torch.equal(p.activations(X, "mul"), 2 * NET.conv(X).relu())
    for tensor in (gradient, score, values, at_conv):
        assert not tensor.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 99])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    one, p = probe(), probe(batch_size=batch_size)
    for ask in (
        lambda q: q.score(X),
        lambda q: q.grad(X),
        lambda q: q.activations(X, "conv"),
        lambda q: q.grad(X, "mul"),
        lambda q: q.score(X, edits={"conv": lambda t: t[:, :1].expand_as(t)}),
        lambda q: q.normal(X),
        lambda q: q.bernoulli(X, 0.3),
        lambda q: q.repeat(range(3)).grad(X.repeat_interleave(3, 0)),
    ):
        assert torch.allclose(ask(p), ask(one), rtol=1e-12, atol=1e-15)


def test_a_probe_of_some_images_scores_their_targets() -> None:
    assert torch.equal(probe([5, 2]).score(X[[5, 2]]), probe().score(X)[[5, 2]])
    repeated = probe([5, 2]).repeat(range(3))
    assert torch.equal(repeated.score(X[[5, 2]].repeat_interleave(3, 0)), probe().score(X)[[5, 5, 5, 2, 2, 2]])
    with pytest.raises(cs.UsageError, match=r"a probe of 2 rows got 3; use probe.repeat"):
        probe([5, 2]).score(X[:3])


def test_every_row_that_runs_is_counted() -> None:
    told: list[int] = []
    p = probe(batch_size=3, progress=told.append)
    p.score(X)
    p.grad(X)
    p.shared_score(X[:1])
    assert p.session.evaluations == sum(told) == 15
    assert told[:3] == [3, 3, 1]


def test_shared_scores_run_once() -> None:
    p = probe()
    assert torch.allclose(p.shared_score(X[3:4]), p.score(X[3:4].expand_as(X)), rtol=1e-12)


def test_edits_replace_what_the_network_goes_on_with() -> None:
    expected = NET.head(torch.zeros(7, 4, dtype=torch.float64))[torch.arange(7), [0, 1, 2, 3, 4, 0, 1]]
    for at in ("conv", "relu", "mul", "mean", "tanh"):
        assert torch.allclose(probe().score(X, edits={at: lambda t: t * 0}), expected), at
    with pytest.raises(cs.AddressError, match="'convv' does not exist; did you mean 'conv'"):
        probe().score(X, edits={"convv": lambda t: t})


def test_explaining_at_a_layer_feeds_the_tensor_there() -> None:
    values = NET.conv(X)
    p = probe(at="conv")
    assert torch.allclose(p.score(values), probe().score(X), rtol=1e-12)
    assert torch.allclose(p.grad(values), probe().grad(X, "conv"), rtol=1e-12)
    assert torch.allclose(p.score(values * 0), probe().score(X, edits={"conv": lambda t: t * 0}), rtol=1e-12)
    assert torch.allclose(p.shared_score(values[:1] * 0), p.score(values * 0), rtol=1e-12)


class Overwriting(nn.Module):
    """Changes the tensor of a layer in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = NET.conv

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return h.mul_(2).add_(1).mean((2, 3))


def test_a_network_may_overwrite_the_layer_explained() -> None:
    values = NET.conv(X).detach()
    before, p = values.clone(), probe(at="conv", module=Overwriting().double(), target=cs.Logit(1))
    expected = (2 * before[:, 1] + 1).mean((1, 2))
    assert torch.allclose(p.score(values), expected, rtol=1e-12)
    assert torch.allclose(p.grad_and_score(values)[1], expected, rtol=1e-12)
    assert torch.allclose(p.shared_score(values[:1]), expected[:1].expand(len(X)), rtol=1e-12)
    assert torch.equal(values, before)


def test_answers_of_other_addresses_are_not_taken_for_the_targets() -> None:
    p = probe()
    p.session.shared.answers = Answers(["output"])
    with p.aiming(cs.Channel("conv", 0)):
        for score in (p.score(X), p.shared_score(X[:1])):
            assert torch.allclose(score[0], NET.conv(X)[0, 0].mean(), rtol=1e-12)


def test_a_target_before_the_address_has_no_gradient_there() -> None:
    with pytest.raises(cs.UnsupportedError, match="the target does not depend on 'relu'"):
        probe(target=cs.Channel("conv", 0)).grad(X, "relu")


def test_a_target_gives_one_number_per_image() -> None:
    class Two(cs.Target, name="test-two"):
        """Two numbers per image."""

        def __call__(self, activations: Any) -> Tensor:
            return activations["output"][:, :2]

    with pytest.raises(cs.UsageError, match=r"one number per image, shape \(7,\); got \(7, 2\)"):
        probe(target=Two()).score(X)


# ---- draws
def test_draws_depend_on_seed_image_and_number_only() -> None:
    every = probe().normal(X)
    assert torch.equal(probe([4, 1]).normal(X[[4, 1]]), every[[4, 1]])
    assert torch.equal(probe(batch_size=1).normal(X), every)
    assert torch.equal(probe().normal(X.float()), every.float())  # the same numbers in another type
    distinct = [every[0], every[1], probe().normal(X, draw=1)[0], probe(seed=1).normal(X)[0], probe().repeat([0]).normal(X)[0]]
    for i, a in enumerate(distinct):
        assert not any(torch.equal(a, b) for b in distinct[i + 1 :])
    state = torch.get_rng_state()
    probe().uniform(X)
    assert torch.equal(torch.get_rng_state(), state)


def test_repeated_rows_draw_by_image_and_copy() -> None:
    p = probe([2, 5])
    copies = p.repeat([0, 1, 2])
    assert copies.rows.tolist() == [2, 2, 2, 5, 5, 5]
    assert copies.keys == ((2, 0), (2, 1), (2, 2), (5, 0), (5, 1), (5, 2))
    x = X[[2, 5]].repeat_interleave(3, 0)
    noise = copies.normal(x)
    later = p.repeat([2]).normal(X[[2, 5]])  # in another block
    assert torch.equal(noise[[2, 5]], later)
    nested = copies.repeat([7])
    assert nested.keys[0] == (2, 0, 7)
    assert not torch.equal(nested.normal(x), noise)


def test_blocks_cover_all_copies_in_about_a_batch() -> None:
    for rows, batch in ((7, 32), (1, 5), (7, 3)):
        blocks = list(probe(list(range(rows)), batch_size=batch).blocks(11))
        assert [i for b in blocks for i in b] == list(range(11))
        assert all(len(b) * rows <= max(batch, rows) for b in blocks)


def test_what_is_drawn_is_distributed_as_said() -> None:
    x = torch.zeros(7, 1, 100, 100, dtype=torch.float64)
    p = probe()
    normal, uniform, ones = p.normal(x), p.uniform(x), p.bernoulli(x, 0.2)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert sorted(ones.unique().tolist()) == [0, 1]
    assert abs(ones.mean() - 0.2) < 0.01


# ---- rules
def test_rules_hold_inside_and_only_there() -> None:
    p = probe()
    plain = p.grad(X)
    with p.rules(GUIDED):
        guided = p.grad(X)
        assert torch.equal(p.score(X), probe().score(X))
    assert not torch.allclose(guided, plain)
    assert torch.equal(p.grad(X), plain)
    with pytest.raises(KeyboardInterrupt), p.rules(GUIDED):
        raise KeyboardInterrupt
    assert torch.equal(p.grad(X), plain)


def test_rules_that_match_nothing_raise() -> None:
    nowhere = Composite((Entry("relu", Guided(), addresses="layer9.*"),), strict=False)
    p = probe()
    with pytest.raises(cs.UnsupportedError, match="the composite matched no operator of this network"), p.rules(nowhere):
        p.grad(X)
    here = Composite((Entry("relu", Guided(), addresses="rel*"),), strict=False)
    with p.rules(here):
        p.grad(X)
    assert p.session.matched == ["relu"]


# ---- notes
def test_notes_gather_one_value_per_image_over_batches() -> None:
    p = probe()
    p.note("gap", torch.tensor([1.0, 2.0]))
    p.note("gap", torch.tensor([3.0]))
    p.note("layer", "conv")
    assert p.session.notes == {"gap": [1.0, 2.0, 3.0], "layer": "conv"}


def test_a_probe_without_a_network_says_what_it_lacks() -> None:
    for ask in (lambda p: p.layer(None), lambda p: p.baseline("black", X), lambda p: p.tail("conv")):
        with pytest.raises(cs.UsageError):
            ask(probe())
    assert probe().layer("conv") == "conv"
