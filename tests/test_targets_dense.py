"""Segmentation and detection as targets: against their formulas, frozen by the clean pass, explained on real networks."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.record import Activations, record
from convoscope.core.spec import Spec

METHODS = ["gradient", "integrated-gradients:steps=32", "grad-cam:layer=body", "occlusion:window=6,stride=6,fill=black"]
G = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 3, 5, 6, generator=G, dtype=torch.float64)
BOXES = torch.tensor([[[0, 0, 4, 4], [2, 0, 6, 4], [8, 8, 9, 9]], [[1, 1, 3, 3], [1, 1, 3, 3.5], [0, 0, 9, 9]]]).double()
SCORES = torch.tensor([[[0.6, 0.1], [0.9, 0.2], [0.2, 0.8]], [[0.1, 0.3], [0.2, 0.6], [0.4, 0.1]]]).double()


def activations(**tensors: Tensor) -> Activations:
    given = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    found = Activations({"output": MAPS, "output.boxes": BOXES, "output.scores": SCORES} | given)
    found.rows = torch.arange(2)
    return found


# ---- segmentation
def test_the_region_of_a_class_is_where_it_was_seen() -> None:
    seen = MAPS.argmax(1) == 1
    expected = torch.stack([MAPS[i, 1][seen[i]].mean() for i in range(2)])
    for target in (cs.SegmentationClass(1), cs.SegmentationClass(1, mask=seen)):
        assert torch.allclose(target(activations()), expected)
    fixed = cs.SegmentationClass(1, over="sum").resolve(activations())
    assert not fixed.open
    other = activations(output=MAPS.flip(1))
    assert torch.allclose(fixed(other), (MAPS.flip(1)[:, 1] * seen).sum((1, 2)))
    assert Spec.from_dict(json.loads(json.dumps(fixed.to_dict()))) == fixed


def test_a_class_and_a_mask_for_each_image() -> None:
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 2] = mask[4, 0] = True
    expected = torch.stack([MAPS[i, k][mask].mean() for i, k in ((0, 2), (1, 0))])
    assert torch.allclose(cs.SegmentationClass((2, 0), mask)(activations()), expected)
    assert torch.equal(cs.SegmentationClass(0, mask[None])(activations(output=MAPS[:, :1])), MAPS[:, 0][:, mask].mean(1))
    alone = cs.SegmentationClass(0).resolve(activations(output=MAPS[:, :1]))
    assert torch.equal(alone.mask, MAPS[:, 0] > 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (cs.SegmentationClass(3), "no class 3"),
        (cs.SegmentationClass("sky"), "no category names"),
        (cs.SegmentationClass(0, torch.ones(2, 2)), r"'output' has 5 x 6 positions; got a mask of \(2, 2\)"),
        (cs.SegmentationClass(0, torch.ones(3, 5, 6)[:0]), r"got a mask of \(0, 5, 6\)"),
        (cs.SegmentationClass(0, layer="output.boxes"), r"not \(images, classes, rows, columns\)"),
    ],
)
def test_what_does_not_fit_a_segmentation(target: cs.Target, reason: str) -> None:
    with pytest.raises(cs.UsageError, match=reason):
        target(activations())


def test_a_class_that_is_nowhere() -> None:
    output = MAPS.clone()
    output[1, 0] = -99
    with pytest.raises(cs.UsageError, match=r"sees class 0 nowhere in image 1, but 1, 2; choose another class or give a mask"):
        cs.SegmentationClass(0).resolve(activations(output=output))


# ---- detection
def test_box_scores_are_overlap_times_score() -> None:
    found = cs.BoxScore(0, (0, 0, 4, 4))(activations())
    assert torch.allclose(found, torch.tensor([0.6, 0.4 * 16 / 81]).double())  # 1 * 0.6 beats 1/3 * 0.9
    each = cs.BoxScore((0, 1), ((2, 0, 6, 4), (1, 1, 3, 3)))(activations())
    assert torch.allclose(each, torch.tensor([0.9, 0.6 / 1.25]).double())
    centers = torch.cat([(BOXES[..., :2] + BOXES[..., 2:]) / 2, BOXES[..., 2:] - BOXES[..., :2]], 2)
    again = cs.BoxScore((0, 1), ((2, 0, 6, 4), (1, 1, 3, 3)), corners=False)(activations(output_boxes=centers))
    assert torch.allclose(again, each)
    one = cs.BoxScore((0, 1), ((2, 0, 6, 4), (1, 1, 3, 3)), boxes="output", scores="output", logits=True)
    both = torch.cat([BOXES, SCORES.logit()], 2)
    assert torch.allclose(one(activations(output=both)), each)


@pytest.mark.parametrize(
    ("target", "classes", "boxes"),
    [
        (cs.BoxScore(), (0, 1), ((2, 0, 6, 4), (1, 1, 3, 3.5))),
        (cs.BoxScore(1), (1, 1), ((8, 8, 9, 9), (1, 1, 3, 3.5))),
        (cs.BoxScore((1, 0)), (1, 0), ((8, 8, 9, 9), (0, 0, 9, 9))),
        (cs.BoxScore(box=(0, 0, 3, 4)), (0, 1), (0, 0, 3, 4)),
    ],
)
def test_the_object_is_fixed_by_the_clean_pass(target: cs.BoxScore, classes: Any, boxes: Any) -> None:
    for labels in (None, "output.labels"):
        there = activations()
        if labels:  # the same candidates, one for each class
            there["output.boxes"] = BOXES.repeat_interleave(2, 1)
            there["output.scores"], there["output.labels"] = SCORES.flatten(1), torch.arange(2).repeat(2, 3)
        fixed = cs.BoxScore(target.index, target.box, labels=labels).resolve(there)
        assert (fixed.index, fixed.box) == (classes, boxes)
        assert not fixed.open
        assert fixed.resolve(there) == fixed
        assert Spec.from_dict(json.loads(json.dumps(fixed.to_dict()))) == fixed


def test_rounding_does_not_choose_a_slope_at_the_box_itself() -> None:
    boxes, slopes = torch.tensor([[[0.1, 0.2, 4.3, 4.7]]]), []
    for offset in (0, 1e-6, -1e-6):
        moved = (boxes + offset * torch.tensor([1, -1, -1, 1])).requires_grad_()
        there = activations(output_boxes=moved, output_scores=torch.tensor([[[0.6]]]))
        there.rows = torch.arange(1)
        found = cs.BoxScore(0, (0.1, 0.2, 4.3, 4.7))(there)
        slopes.append(torch.autograd.grad(found.sum(), moved)[0])
        assert found.tolist() == pytest.approx([0.6])
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


def test_nothing_found_counts_as_zero_and_has_a_gradient() -> None:
    boxes, scores = BOXES[:, :0].clone().requires_grad_(), SCORES[:, :0].clone().requires_grad_()
    found = cs.BoxScore(0, (0, 0, 4, 4))(activations(output_boxes=boxes, output_scores=scores))
    assert found.tolist() == [0, 0]
    found.sum().backward()
    with pytest.raises(cs.UsageError, match="finds no object in image 0; give the box and its class"):
        cs.BoxScore().resolve(activations(output_boxes=boxes, output_scores=scores))
    with pytest.raises(cs.UsageError, match="no object of class 1 in image 1"):
        cs.BoxScore(1).resolve(activations(output_scores=SCORES * torch.tensor([[[1.0, 1]], [[1, 0]]])))


def test_what_does_not_fit_a_detection() -> None:
    with pytest.raises(cs.UsageError, match=r"scores at 'output.scores' go from .* expected 0 to 1, or logits=True"):
        cs.BoxScore().resolve(activations(output_scores=SCORES.logit()))
    with pytest.raises(cs.UsageError, match=r"boxes are \(images, N, 4\)"):
        cs.BoxScore(0, boxes="output")(activations())
    with pytest.raises(cs.UsageError, match=r"scores are \(images, N\), for there are labels"):
        cs.BoxScore(0, labels="output.labels")(activations(output_labels=SCORES[..., 0]))
    with pytest.raises(cs.UsageError, match="2 boxes for 3 images"):
        cs.BoxScore(0, ((0, 0, 1, 1), (0, 0, 1, 1))).check(3)
    for box in ((0, 0, 4), (4, 0, 0, 4), ((0, 0, 1, 1), (0, 0))):
        with pytest.raises(cs.SpecError, match="left, top, right, bottom"):
            cs.BoxScore(0, box)


# ---- explained
class Detector(nn.Module):
    """Anchor-free: every fourth pixel is the center of a box; red is class 0, green class 1."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body = nn.Conv2d(3, 4, 5, stride=4, padding=2, bias=False)
        weight = torch.full((4, 3, 5, 5), -0.02)
        weight[0, 0] = weight[1, 1] = 0.03
        weight[2:] = 0.01
        self.body.weight.data = weight

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        scores = h[:, :2].relu().clamp(max=1).flatten(2).mT
        size = (4 + h[:, 2:].tanh()).flatten(2).mT
        rows, columns = torch.meshgrid(torch.arange(0, x.shape[2], 4), torch.arange(0, x.shape[3], 4), indexing="ij")
        center = torch.stack([columns, rows], -1).flatten(0, 1).to(x)
        boxes = torch.cat([center - size, center + size], 2)
        if self.form == "tensor":
            return torch.cat([boxes, scores], 2)
        if self.form == "tuple":
            return boxes, scores
        if self.form == "mapping":
            return {"boxes": boxes, "scores": scores}
        kept = [s.amax(1) > 0.3 for s in scores]
        return [
            {"boxes": b[k], "scores": s[k].amax(1), "labels": s[k].argmax(1)}
            for b, s, k in zip(boxes, scores, kept, strict=True)
        ]


FORMS = {
    "tensor": {"boxes": "output", "scores": "output"},
    "tuple": {"boxes": "output.0", "scores": "output.1"},
    "mapping": {},
    "list": {"labels": "output.labels"},
}


def scenes() -> Tensor:
    """Two pictures with a red and a green square, 24 x 24; in the second the other way round."""
    x = torch.zeros(2, 3, 24, 24)
    x[0, 0, 2:9, 2:9] = x[0, 1, 14:21, 14:21] = 1
    x[1, 1, 2:9, 2:9] = x[1, 0, 14:21, 14:21] = 0.9
    return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_detectors_are_explained(form: str, method: str) -> None:
    net, x = cs.Network(Detector(form), size=24), scenes()
    for index, places in ((0, ((0, 0), (1, 1))), (1, ((1, 1), (0, 0)))):
        a = cs.explain(net, x, method, cs.BoxScore(index, **FORMS[form]), batch_size=1)
        for i, (row, column) in enumerate(places):
            size = a.heatmap()[i].abs()
            share = size[12 * row : 12 * row + 12, 12 * column : 12 * column + 12].sum() / size.sum()
            assert share > 0.9, f"class {index} in image {i}: {share:.2f}"
        if "completeness gap" in a.diagnostics and form != "list":  # a list leaves out weak boxes: its score jumps
            assert max(a.diagnostics["completeness gap relative"]) < 0.05


def test_another_object_does_not_take_its_place() -> None:
    x = scenes()[:1]
    x[0, 0, 14:21, 2:9] = 0.8  # a second red square, a little weaker
    net, without = cs.Network(Detector("mapping"), size=24), x.clone()
    fixed = cs.explain(net, x, "gradient", cs.BoxScore(0)).target
    without[0, 0, 2:9, 2:9] = 0
    there = {k: record(net.module, z, ("output.boxes", "output.scores")) for k, z in (("whole", x), ("without", without))}
    for found in there.values():
        found.rows = torch.arange(1)
    assert fixed(there["whole"]) > 0.3
    assert fixed(there["without"]) < 0.05
    assert there["without"]["output.scores"][..., 0].max() > 0.3  # the second is still found


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.body(x).relu()), x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "target",
    [
        cs.SegmentationClass(1),
        cs.SegmentationClass(1, over="sum"),
        cs.Channel("output", 1, over="max"),
        cs.Layer("head", over="l2"),
        cs.EmbeddingSimilarity("head", torch.linspace(-1, 1, 108).view(3, 6, 6)),
    ],
)
def test_networks_that_segment_are_explained(method: str, target: cs.Target) -> None:
    torch.manual_seed(0)
    net, x = cs.Network(Segmenter().double(), size=12), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    a = cs.explain(net, x, method, target)
    assert len(a) == 2
    assert a.heatmap().abs().sum() > 0
    assert not a.target.open
    assert torch.allclose(cs.explain(net, x, method, target, batch_size=1).values, a.values, atol=1e-12)


@pytest.mark.parametrize("method", ["gradient", "integrated-gradients", "grad-cam", "occlusion:window=4"])
def test_contrasts_are_explained_as_differences(method: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    net, x = cs.Network(nn.Sequential(*layers).double(), size=10), torch.rand(2, 3, 10, 10, dtype=torch.float64)
    difference = cs.Logit(2) - 0.75 * cs.Logit(0) - 0.25 * cs.Logit(1)
    one, two = cs.explain(net, x, method, [cs.Contrast(2, (0, 1), (3, 1)), difference])
    assert torch.allclose(one.values, two.values, atol=1e-12)


@pytest.mark.parametrize("target", [cs.Logit((0, 1, 2)), cs.Logit((0,)) + cs.Logit(1), cs.Neuron("0", 0, (1,), 1)])
def test_one_entry_for_each_image_is_asked_for_before_anything_runs(target: cs.Target) -> None:
    layers = [nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    net, x = cs.Network(nn.Sequential(*layers), size=10), torch.rand(2, 3, 10, 10)
    with pytest.raises(cs.UsageError, match="for 2 images; give one for each"):
        cs.explain(net, x, "gradient", target)
