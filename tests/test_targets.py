"""Targets: each against its formula, the algebra against arithmetic, what is open against the clean pass."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import convoscope as cs
from convoscope.core.record import Activations
from convoscope.core.spec import Spec
from convoscope.targets import Sum, probabilities

G = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(3, 5, generator=G, dtype=torch.float64)
MAPS = torch.randn(3, 4, 6, 7, generator=G, dtype=torch.float64)
FLAT = torch.randn(3, 4, generator=G, dtype=torch.float64)
VECTOR = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
N = torch.arange(3)


def activations(rows: list[int] | None = None, **tensors: Tensor) -> Activations:
    found = Activations({"output": OUTPUT, "maps": MAPS, "flat": FLAT} | tensors)
    found.rows = torch.tensor(rows if rows is not None else [0, 1, 2])
    return found


def others(index: int) -> Tensor:
    return torch.cat([OUTPUT[:, :index], OUTPUT[:, index + 1 :]], 1)


TARGETS: dict[str, tuple[cs.Target, Tensor]] = {
    "logit": (cs.Logit(2), OUTPUT[:, 2]),
    "logit of each": (cs.Logit((2, 0, 4)), OUTPUT[N, [2, 0, 4]]),
    "open logit": (cs.Logit(), OUTPUT.amax(1)),
    "probability": (cs.Probability(2), OUTPUT.softmax(1)[:, 2]),
    "probability of each": (cs.Probability([1, 1, 3]), OUTPUT.softmax(1)[N, [1, 1, 3]]),
    "margin": (cs.Margin(2, 4), OUTPUT[:, 2] - OUTPUT[:, 4]),
    "margin of each": (cs.Margin((0, 1, 2), (4, 3, 1)), OUTPUT[N, [0, 1, 2]] - OUTPUT[N, [4, 3, 1]]),
    "margin to the rest": (cs.Margin(2), OUTPUT[:, 2] - others(2).amax(1)),
    "open margin": (cs.Margin(), OUTPUT.topk(2, 1).values[:, 0] - OUTPUT.topk(2, 1).values[:, 1]),
    "contrast": (cs.Contrast(2), OUTPUT[:, 2] - others(2).mean(1)),
    "contrast to some": (cs.Contrast(2, (0, 4)), OUTPUT[:, 2] - (OUTPUT[:, 0] + OUTPUT[:, 4]) / 2),
    "weighted contrast": (cs.Contrast(2, (0, 4), (3, 1)), OUTPUT[:, 2] - 0.75 * OUTPUT[:, 0] - 0.25 * OUTPUT[:, 4]),
    "contrast of each": (cs.Contrast((2, 0, 1), (3,)), OUTPUT[N, [2, 0, 1]] - OUTPUT[:, 3]),
    "open contrast": (cs.Contrast(), OUTPUT.amax(1) - (OUTPUT.sum(1) - OUTPUT.amax(1)) / 4),
    "channel": (cs.Channel("maps", 3), MAPS[:, 3].mean((1, 2))),
    "largest of a channel": (cs.Channel("maps", 3, over="max"), MAPS[:, 3].amax((1, 2))),
    "channel of a vector": (cs.Channel("flat", 3), FLAT[:, 3]),
    "neuron": (cs.Neuron("maps", 1, 2, 5), MAPS[:, 1, 2, 5]),
    "neuron of each": (cs.Neuron("maps", 1, (0, 1, 2), (6, 5, 4)), MAPS[N, 1, [0, 1, 2], [6, 5, 4]]),
    "neuron of a channel for each": (cs.Neuron("maps", (1, 3, 0), (0, 1, 2), 5), MAPS[N, [1, 3, 0], [0, 1, 2], 5]),
    "open neuron of a channel for each": (cs.Neuron("maps", (1, 3, 0)), MAPS[N, [1, 3, 0]].amax((1, 2))),
    "open neuron": (cs.Neuron("maps", 1), MAPS[:, 1].amax((1, 2))),
    "neuron open in a row": (cs.Neuron("maps", 1, 2), MAPS[:, 1, 2].amax(1)),
    "neuron open in a column": (cs.Neuron("maps", 1, None, 5), MAPS[:, 1, :, 5].amax(1)),
    "direction": (cs.Direction("maps", VECTOR), torch.einsum("bchw,c->b", MAPS, VECTOR) / 42),
    "direction of a vector": (cs.Direction("flat", VECTOR.float()), FLAT @ VECTOR),
    "layer": (cs.Layer("maps"), MAPS.square().sum((1, 2, 3)) / 2),
    "norm of a layer": (cs.Layer("maps", "l2"), MAPS.square().sum((1, 2, 3)).sqrt()),
    "mean of a layer": (cs.Layer("maps", "mean"), MAPS.mean((1, 2, 3))),
    "largest of a layer": (cs.Layer("flat", "max"), FLAT.amax(1)),
    "cosine": (cs.EmbeddingSimilarity("flat", VECTOR), FLAT @ VECTOR / FLAT.norm(dim=1) / VECTOR.norm()),
    "dot product": (cs.EmbeddingSimilarity("flat", VECTOR[None].float(), by="dot"), FLAT @ VECTOR),
    "cosine of maps": (
        cs.EmbeddingSimilarity("maps", MAPS.flip(0)),
        (MAPS * MAPS.flip(0)).sum((1, 2, 3)) / MAPS.flatten(1).norm(dim=1) / MAPS.flip(0).flatten(1).norm(dim=1),
    ),
    "sum": (cs.Logit(1) + cs.Channel("maps", 0), OUTPUT[:, 1] + MAPS[:, 0].mean((1, 2))),
    "difference": (0.8 * cs.Logit(1) - 0.2 * cs.Logit(3), 0.8 * OUTPUT[:, 1] - 0.2 * OUTPUT[:, 3]),
    "nested": (
        2 * (cs.Logit(1) - (cs.Logit(2) + cs.Probability(0)) * 3) - -cs.Layer("flat"),
        2 * OUTPUT[:, 1] - 6 * OUTPUT[:, 2] - 6 * OUTPUT.softmax(1)[:, 0] + FLAT.square().sum(1) / 2,
    ),
    "minus": (-cs.Logit(1), -OUTPUT[:, 1]),
    "total": (sum([cs.Logit(0), cs.Logit(1), cs.Logit(2)]), OUTPUT[:, :3].sum(1)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_their_formulas(name: str) -> None:
    target, expected = TARGETS[name]
    found = target(activations())
    assert found.shape == (3,)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", TARGETS)
def test_each_row_gets_the_index_of_its_image(name: str) -> None:
    target, expected = TARGETS[name]
    order = [2, 0, 2, 1]
    rows = {k: v[order] for k, v in activations().items()}
    found = target(activations(order, **rows))
    assert torch.allclose(found, expected[order], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_return_from_json_equal(name: str) -> None:
    target, _ = TARGETS[name]
    back = Spec.from_dict(json.loads(json.dumps(target.to_dict())))
    assert back == target
    assert hash(back) == hash(target)
    assert torch.equal(back(activations()), target(activations()))  # type: ignore[operator]


@pytest.mark.parametrize("name", TARGETS)
def test_addresses_are_what_a_target_reads(name: str) -> None:
    target, expected = TARGETS[name]
    only = Activations({a: v for a, v in activations().items() if a in target.addresses()})
    only.rows = N
    assert torch.allclose(target(only), expected, rtol=1e-10, atol=1e-14)
    for address in target.addresses():
        less = Activations({k: v for k, v in only.items() if k != address})
        less.rows = N
        with pytest.raises(KeyError):
            target(less)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_open_is_fixed_by_the_clean_pass(name: str) -> None:
    target, expected = TARGETS[name]
    fixed = target.resolve(activations())
    assert not fixed.open
    assert (fixed == target) is not target.open
    assert torch.allclose(fixed(activations()), expected, rtol=1e-10, atol=1e-14)
    assert fixed.resolve(activations()) == fixed
    # ... and looks at the same place afterwards, whatever happens elsewhere.
    moved = activations(output=OUTPUT.flip(1), maps=MAPS.flip(2, 3))
    if target.open:
        assert not torch.allclose(fixed(moved), target(moved))


def test_a_sum_fixes_what_is_open_and_leaves_the_rest() -> None:
    fixed = (cs.Logit() + 2 * cs.Neuron("maps", 1, 0, 0) - cs.Neuron("maps", 0, 3)).resolve(activations())
    top = tuple(OUTPUT.argmax(1).tolist())
    columns = tuple(MAPS[:, 0, 3].argmax(1).tolist())
    assert fixed == cs.Logit(top) + 2 * cs.Neuron("maps", 1, 0, 0) - cs.Neuron("maps", 0, (3, 3, 3), columns)


def test_the_algebra_is_closed_and_flat() -> None:
    made = 2 * (cs.Logit(1) - cs.Logit(2)) + -cs.Logit(3)
    assert isinstance(made, Sum)
    assert made.terms == (cs.Logit(1), cs.Logit(2), cs.Logit(3))
    assert made.weights == (2.0, -2.0, -1.0)
    assert made.addresses() == ("output",)
    assert (cs.Channel("b", 0) + cs.Logit(1) + cs.Channel("b", 1)).addresses() == ("b", "output")
    assert cs.Logit(1) + cs.Logit(2) != cs.Logit(2) + cs.Logit(1)


@pytest.mark.parametrize("wrong", [lambda t: t * t, lambda t: t + 1, lambda t: 1 - t, lambda t: t * "2", lambda t: t - None])
def test_targets_combine_with_targets_and_numbers_only(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"unsupported operand|multiply sequence"):
        wrong(cs.Logit(1))


def test_sums_are_checked() -> None:
    for terms, weights in (((cs.Logit(1),), (1.0, 2.0)), ((), ()), ((1,), (1.0,))):
        with pytest.raises(cs.SpecError, match="one number for each of its targets"):
            Sum(terms, weights)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (cs.Logit(5), "no class 5; there are 5, counted from 0"),
        (cs.Logit(-1), "no class -1"),
        (cs.Logit((0, 1, 9)), "no class 9"),
        (cs.Logit((0, 1)), "2 entries for 3 images; give one for each"),
        (cs.Logit("tabby"), "no category names, so 'tabby' is unknown"),
        (cs.Logit((0, 1, "tabby")), "'tabby' is unknown"),
        (cs.Logit((0, 1, 1.5)), "no class 1.5"),
        (cs.Margin(1, 5), "no class 5"),
        (cs.Channel("maps", 4), "no channel of 'maps' 4; there are 4"),
        (cs.Channel("flat", -1), "no channel of 'flat' -1"),
        (cs.Neuron("maps", 0, 6, 0), "no row of 'maps' 6; there are 6"),
        (cs.Neuron("maps", 0, 0, -1), "no column of 'maps' -1; there are 7"),
        (cs.Neuron("maps", 0, (0, 0), 0), "2 entries for 3 images"),
        (cs.Neuron("flat", 0, 0, 0), r"no rows and columns; use Channel\('flat', 0\)"),
        (cs.Direction("maps", torch.ones(3)), r"'maps' has 4 channels; got a direction of shape \(3,\)"),
        (cs.Contrast(2, (0, 9)), "no class 9"),
        (cs.Contrast(2, (0, 2)), "class 2 is to be compared with itself"),
        (cs.EmbeddingSimilarity("flat", torch.ones(3)), r"shape \(4,\) for each image; got a reference of shape \(3,\)"),
        (cs.EmbeddingSimilarity("flat", torch.ones(2, 4)), "2 references for 3 images"),
    ],
)
def test_what_is_out_of_range_says_so(target: cs.Target, reason: str) -> None:
    with pytest.raises(cs.UsageError, match=reason):
        target(activations())


@pytest.mark.parametrize(
    "target",
    [
        cs.Logit((0, 1, 2)),
        cs.Probability((0, 1)) + cs.Logit(1),
        cs.Margin(0, (1, 2, 3)),
        cs.Contrast((0, 1, 2)),
        cs.Neuron("maps", 0, (0, 1, 2), 0),
        cs.SegmentationClass((0, 1, 2)),
        cs.BoxScore((0, 1, 2)),
        cs.BoxScore(0, ((0, 0, 1, 1),) * 3),
    ],
)
def test_one_entry_for_each_image_is_neither_more_nor_less(target: cs.Target) -> None:
    images = 1 if isinstance(target, Sum) else 2
    target.check(images + 1)
    for wrong in (images, images + 2):
        with pytest.raises(cs.UsageError, match=rf"for {wrong} images; give one for each"):
            target.check(wrong)


def test_contrasts_are_checked() -> None:
    for settings in ({"others": ()}, {"others": (1, 1)}, {"others": (1, 2), "weights": (1,)}, {"weights": (1, 2)}):
        with pytest.raises(cs.SpecError, match="contrast"):
            cs.Contrast(0, **settings)  # type: ignore[arg-type]
    with pytest.raises(cs.SpecError, match="sum to zero"):
        cs.Contrast(0, (1, 2), (1, -1))


def test_an_open_contrast_is_not_one_of_the_others() -> None:
    first, second = OUTPUT.topk(2, 1).indices[0].tolist()
    fixed = cs.Contrast(others=(first,)).resolve(activations())
    assert isinstance(fixed, cs.Contrast)
    assert fixed.index[0] == second  # type: ignore[index]


def test_outputs_of_other_shapes() -> None:
    segmentation = activations(output=MAPS)
    with pytest.raises(cs.UsageError, match=r"not \(images, classes\); name a place.*Channel\('output', class\)"):
        cs.Logit(1)(segmentation)
    assert torch.allclose(cs.Channel("output", 1)(segmentation), MAPS[:, 1].mean((1, 2)))
    assert torch.equal(cs.Neuron("output", 1, 2, 3)(segmentation), MAPS[:, 1, 2, 3])
    assert torch.equal(cs.Logit(0)(activations(output=OUTPUT[:, 0])), OUTPUT[:, 0])  # (images,)
    assert torch.equal(cs.Probability(0)(activations(output=OUTPUT[:, :1])), OUTPUT[:, 0].sigmoid())
    short = torch.randn(3, 4, generator=torch.Generator().manual_seed(22)).softmax(1).bfloat16()  # sums to 1 but for rounding
    assert torch.equal(cs.Probability(0)(activations(output=short)), short[:, 0])
    with pytest.raises(cs.UsageError, match="a margin needs two"):
        cs.Margin(0)(activations(output=OUTPUT[:, :1]))


def test_probabilities_are_not_squashed_twice() -> None:
    mixed = torch.stack([OUTPUT[0].softmax(0), OUTPUT[1], torch.eye(5, dtype=torch.float64)[2]])
    assert torch.equal(probabilities(mixed), torch.stack([mixed[0], OUTPUT[1].softmax(0), mixed[2]]))
    assert torch.allclose(probabilities(OUTPUT.log_softmax(1)), OUTPUT.softmax(1))


def test_names_are_resolved_in_every_term() -> None:
    names = ("tench", "crane", "tabby, tabby cat")
    made = cs.Margin("tabby", "tench") + 2 * cs.Logit(("crane", "2", 0)) - cs.Probability("Crane") + cs.Channel("tench", 0)
    expected = cs.Margin(2, 0) + 2 * cs.Logit((1, 2, 0)) - cs.Probability(1) + cs.Channel("tench", 0)
    assert made.named(names) == expected
    made = cs.Contrast("tabby", ("crane", "tench")) + cs.SegmentationClass("crane") + cs.BoxScore("tench")
    assert made.named(names) == cs.Contrast(2, (1, 0)) + cs.SegmentationClass(1) + cs.BoxScore(0)


def test_directions_print_and_compare_by_their_vectors() -> None:
    assert cs.Direction("maps", VECTOR) == cs.Direction("maps", VECTOR.clone())
    assert cs.Direction("maps", VECTOR) != cs.Direction("maps", VECTOR.float())
    assert repr(cs.Direction("maps", VECTOR)) == "Direction(layer='maps', vector=tensor of shape (4,))"


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_reach_what_a_target_reads(name: str) -> None:
    target, _ = TARGETS[name]
    leaves = {k: v.clone().requires_grad_() for k, v in activations().items()}
    target(activations(**leaves)).sum().backward()
    assert all(leaves[a].grad is not None and leaves[a].grad.abs().sum() > 0 for a in target.addresses())
