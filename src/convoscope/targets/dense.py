"""Targets of networks that say where things are: segmentation and detection. What they look at is fixed by the clean pass."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.core.errors import SpecError, UsageError
from convoscope.core.record import Activations
from convoscope.core.spec import Paper
from convoscope.targets.base import Index, Scores, Target, check_classes, per_row


class SegmentationClass(Target):
    """The score of one class in the region where the network sees it, from an output `(images, classes, rows, columns)`.

    The mean (or sum) of the class's logits over a mask. Without a mask it is where the clean pass gives the class the largest
    score (of a single class: one above zero); it stays there whatever happens to the image.
    """

    unit, classes, each = "logit", ("index",), ("index",)
    index: Annotated[int | str | tuple, "class number, category name, or one number per image"]
    mask: Annotated[Tensor | None, "where, (rows, columns) or one per image, in the output's size; none: as seen"] = None
    over: Annotated[Literal["mean", "sum"], "the mean or the sum over the mask"] = "mean"
    layer: Annotated[str, "address of the scores"] = "output"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        output, rows = self._output(activations), activations.rows
        mask = self._seen(output, rows) if self.mask is None else self._given(output, rows)
        total = (self._logits(output, rows) * mask).flatten(1).sum(1)
        return total if self.over == "sum" else total / mask.flatten(1).sum(1).clamp(min=1)

    def _output(self, activations: Activations) -> Tensor:
        output = activations[self.layer]
        if output.dim() != 4:
            raise UsageError(f"{self.layer!r} has shape {tuple(output.shape)}, not (images, classes, rows, columns)")
        check_classes(self.index, output.shape[1])
        return output

    def _logits(self, output: Tensor, rows: Tensor) -> Tensor:
        index = per_row(self.index, rows, output.device)  # type: ignore[arg-type]
        return output[torch.arange(len(output), device=output.device), index]

    def _seen(self, output: Tensor, rows: Tensor) -> Tensor:
        logits = self._logits(output, rows).detach()
        return (logits > 0 if output.shape[1] == 1 else logits == output.detach().amax(1)).to(output.dtype)

    def _given(self, output: Tensor, rows: Tensor) -> Tensor:
        assert self.mask is not None
        mask = self.mask if self.mask.dim() == 3 else self.mask[None]
        if mask.dim() != 3 or not len(mask) or mask.shape[1:] != output.shape[2:]:
            raise UsageError(
                f"{self.layer!r} has {output.shape[2]} x {output.shape[3]} positions; got a mask of {_shape(self.mask)}"
            )
        if len(mask) > 1 and int(rows.max()) >= len(mask):
            raise UsageError(f"{len(mask)} masks for {int(rows.max()) + 1} images; give one for each")
        return mask.to(output)[rows.to(output.device)] if len(mask) > 1 else mask.to(output)

    @property
    def open(self) -> bool:
        return self.mask is None

    def resolve(self, activations: Activations) -> Target:
        if not self.open:
            return self
        output = self._output(activations)
        seen = self._seen(output, activations.rows) > 0
        for i in torch.nonzero(~seen.flatten(1).any(1)).flatten().tolist():
            there = sorted(set(output[i].argmax(0).flatten().tolist()))[:10] if output.shape[1] > 1 else []
            raise UsageError(
                f"the network sees class {int(per_row(self.index, activations.rows, output.device)[i])} nowhere in image {i}"  # type: ignore[arg-type]
                + (f", but {', '.join(map(str, there))}" if there else "")
                + "; choose another class or give a mask"
            )
        return replace(self, mask=seen)


class BoxScore(Target):
    """How surely the network still finds one object: over its candidates the largest of `IoU(candidate, box) * score`.

    Box and class are those of the strongest candidate in the clean pass, unless given, and stay: another object that becomes
    stronger when the image changes does not take its place (as D-RISE, Petsiuk et al. 2021; where they compare the
    probabilities of all classes, here the score of the object's class counts).

    `boxes` `(images, N, 4)` and `scores` `(images, N, classes)`, or with `labels` `(images, N)` one score for each box, are
    addresses: `output.boxes` is the entry of the mapping (or of each of a list of mappings) that the network returns,
    `output.0` that of a tuple. Where both are one address, its tensor `(images, N, 4 + classes)` holds both. Where a network
    drops candidates below a threshold the score jumps there, which gradients do not see: methods by perturbation do.
    """

    unit, classes, each = "score", ("index",), ("index",)
    paper = Paper(
        "petsiuk2021black", "Petsiuk, Vitali and Jain, Rajiv and Manjunatha, Varun and Morariu, Vlad I. and Mehra, Ashutosh "
        "and Ordonez, Vicente and Saenko, Kate",
        "Black-box Explanation of Object Detectors via Saliency Maps", "CVPR", 2021, "2006.03204",
    )  # fmt: skip
    index: Annotated[Index, "class number, category name, one number per image, or None for the strongest"] = None
    box: Annotated[tuple | None, "(left, top, right, bottom) in the units of the boxes, one such per image, or None"] = None
    boxes: Annotated[str, "address of the boxes"] = "output.boxes"
    scores: Annotated[str, "address of the scores"] = "output.scores"
    labels: Annotated[str | None, "address of the class of each box, where a box has one score"] = None
    corners: Annotated[bool, "boxes are left, top, right, bottom; else center x, center y, width, height"] = True
    logits: Annotated[bool, "scores are logits, and their sigmoid is meant"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for one in self._given():
            if not (isinstance(one, tuple) and len(one) == 4 and one[0] < one[2] and one[1] < one[3]):
                raise SpecError(f"box-score: a box is (left, top, right, bottom), or one such per image; got {one}")

    def _given(self) -> tuple:
        """The boxes given: one, or one for each image."""
        return () if self.box is None else self.box if isinstance(self.box[0], tuple) else (self.box,)

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a for a in (self.boxes, self.scores, self.labels) if a))

    def check(self, images: int) -> None:
        super().check(images)
        if self.box is not None and isinstance(self.box[0], tuple) and len(self.box) != images:
            raise UsageError(f"box-score: {len(self.box)} boxes for {images} images; give one for each")

    def __call__(self, activations: Activations) -> Scores:
        boxes, scores, labels = self._candidates(activations)
        if self.index is None:
            scores = scores if labels is not None else scores.amax(2)
        else:
            index = per_row(self.index, activations.rows, scores.device)  # type: ignore[arg-type]
            if labels is not None:
                scores = scores * (labels == index[:, None])
            else:
                check_classes(self.index, scores.shape[2])
                scores = scores[torch.arange(len(scores), device=scores.device), :, index]
        if not boxes.shape[1]:  # nothing found, and still on the graph
            return boxes.flatten(1).sum(1) + scores.sum(1)
        return (self._overlap(boxes, activations.rows) * scores).amax(1)

    def _candidates(self, activations: Activations) -> tuple[Tensor, Tensor, Tensor | None]:
        boxes, scores = activations[self.boxes], activations[self.scores]
        labels = activations[self.labels] if self.labels else None
        if self.boxes == self.scores:
            boxes, scores = boxes[..., :4], scores[..., 4:]
        if boxes.dim() != 3 or boxes.shape[2] != 4 or scores.shape[:2] != boxes.shape[:2]:
            raise UsageError(f"boxes are (images, N, 4), scores (images, N, ...); got {_shape(boxes)} and {_shape(scores)}")
        if scores.dim() != (3 if labels is None else 2):
            expected = "(images, N, classes)" if labels is None else "(images, N), for there are labels"
            raise UsageError(f"scores are {expected}; got {_shape(scores)}")
        if self.logits:
            scores = scores.sigmoid()
        if not self.corners:
            boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], 2)
        return boxes, scores, labels

    def _overlap(self, boxes: Tensor, rows: Tensor) -> Tensor:
        """Intersection over union of every candidate with the box; ones where no box is fixed yet."""
        if self.box is None:
            return boxes.new_ones(boxes.shape[:2])
        given = torch.tensor(self._given(), dtype=boxes.dtype, device=boxes.device)
        if len(given) > 1 and int(rows.max()) >= len(given):
            raise UsageError(f"{len(given)} boxes for {int(rows.max()) + 1} images; give one for each")
        box = given[rows.to(given.device)] if len(given) > 1 else given.expand(len(rows), 4)
        # On the box itself overlap is at its peak, with another slope to each side: rounding is not to choose between them.
        size = (box[:, 2:] - box[:, :2]).repeat(1, 2)
        slack = 1e-4 * size + 4 * torch.finfo(boxes.dtype).eps * box.abs()
        boxes = torch.where((boxes - box[:, None]).abs() <= slack[:, None], box[:, None], boxes)
        low, high = torch.maximum(boxes[..., :2], box[:, None, :2]), torch.minimum(boxes[..., 2:], box[:, None, 2:])
        both = (high - low).clamp(min=0).prod(2)
        either = _area(boxes) + _area(box)[:, None] - both
        return both / either.clamp(min=torch.finfo(boxes.dtype).tiny)

    @property
    def open(self) -> bool:
        return self.index is None or self.box is None

    def resolve(self, activations: Activations) -> Target:
        if not self.open:
            return self
        boxes, scores, labels = self._candidates(activations)
        if scores.numel() and not (scores.amin() >= 0 and scores.amax() <= 1):
            raise UsageError(
                f"scores at {self.scores!r} go from {float(scores.amin()):.3g} to {float(scores.amax()):.3g}; expected 0 to 1, "
                "or logits=True"
            )
        overlap = self._overlap(boxes, activations.rows)
        classes, found = [], []
        for i, row in enumerate(activations.rows):
            weighted = overlap[i] * scores[i] if labels is not None else overlap[i, :, None] * scores[i]
            wanted = None if self.index is None else int(per_row(self.index, row[None], scores.device))  # type: ignore[arg-type]
            if wanted is not None:
                weighted = weighted * (labels[i] == wanted) if labels is not None else weighted[:, [wanted]]
            if not weighted.numel() or weighted.amax() <= 0:
                what = "no object" if wanted is None else f"no object of class {wanted}"
                raise UsageError(f"the network finds {what} in image {i}; give the box and its class")
            n, k = divmod(int(weighted.argmax()), weighted[0].numel())
            classes.append(wanted if wanted is not None else int(labels[i, n]) if labels is not None else k)
            found.append(tuple(boxes[i, n].tolist()))
        return replace(self, index=tuple(classes), box=tuple(found) if self.box is None else self.box)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
