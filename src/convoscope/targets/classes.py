"""Targets that read the scores of classes, `(images, classes)`."""

from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import SpecError, UsageError
from convoscope.core.record import Activations
from convoscope.targets.base import Index, Scores, Target, check_classes, per_row


class Logit(Target):
    """The output of one class before any softmax (what the network returns, in its own units).

    `index` is a class number, a category name, one number per image, or None: the top class of each image.
    """

    unit, classes, each = "logit", ("index",), ("index",)
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None

    def __call__(self, activations: Activations) -> Scores:
        return _pick(activations["output"], self.index, activations.rows)

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Logit(_top(activations["output"])) if self.open else self


class Probability(Target):
    """The probability of one class, 0..1; `index` as for Logit.

    The softmax of the output (the sigmoid of a single one), or the output itself where it is a distribution already.
    """

    unit, classes, each = "probability", ("index",), ("index",)
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None

    def __call__(self, activations: Activations) -> Scores:
        return _pick(probabilities(_matrix(activations["output"])), self.index, activations.rows)

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Probability(_top(activations["output"])) if self.open else self


class LogProbability(Target):
    """The natural logarithm of the probability of one class, in nats, at most 0; `index` as for Logit.

    Unlike the probability it keeps its gradient where the class is all but certain not to be.
    """

    unit, classes, each = "nat", ("index",), ("index",)
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None

    def __call__(self, activations: Activations) -> Scores:
        output = _matrix(activations["output"])
        if output.shape[1] == 1:
            return _pick(torch.nn.functional.logsigmoid(output), self.index, activations.rows)
        done = output.clamp(min=torch.finfo(output.dtype).tiny).log()
        found = torch.where(_distributions(output)[:, None], done, output.log_softmax(1))
        return _pick(found, self.index, activations.rows)

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return LogProbability(_top(activations["output"])) if self.open else self


class Margin(Target):
    """The logit of one class minus that of another; without `other`, minus the largest of all others."""

    unit, classes, each = "logit", ("index", "other"), ("index", "other")
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None
    other: Annotated[Index, "class number, category name, one number per image, or None for the strongest other"] = None

    def __call__(self, activations: Activations) -> Scores:
        output = _matrix(activations["output"])
        score = _pick(output, self.index, activations.rows)
        if self.other is not None:
            return score - _pick(output, self.other, activations.rows)
        if output.shape[1] < 2:
            raise UsageError("the network has one class; a margin needs two")
        index = output.argmax(1) if self.index is None else per_row(self.index, activations.rows, output.device)
        return score - output.scatter(1, index[:, None], -torch.inf).amax(1)

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Margin(_top(activations["output"]), self.other) if self.open else self


class Contrast(Target):
    """The logit of one class minus the weighted mean of those of others: what speaks for this one and not for them.

    `others` are the same for all images (None: every other class), `weights` as many numbers, of any sum but zero.
    """

    unit, classes, each = "logit", ("index", "others"), ("index",)
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None
    others: Annotated[tuple | None, "the classes to compare with, or None for all others"] = None
    weights: Annotated[tuple | None, "one number for each of the others, or None for equal ones"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.others is not None and len(set(self.others)) != len(self.others)) or self.others == ():
            raise SpecError(f"contrast: others are {self.others}; expected one or more different classes")
        if self.weights is not None and len(self.weights) != len(self.others or ()):
            raise SpecError(f"contrast: weights are one number for each of the others; got {self.weights} for {self.others}")
        if self.weights is not None and sum(self.weights) == 0:
            raise SpecError(f"contrast: weights {self.weights} sum to zero, and make no mean")

    def __call__(self, activations: Activations) -> Scores:
        output = _matrix(activations["output"])
        score = _pick(output, self.index, activations.rows)
        if self.others is None:
            if output.shape[1] < 2:
                raise UsageError("the network has one class; a contrast needs two")
            return score - (output.sum(1) - score) / (output.shape[1] - 1)
        check_classes(self.others, output.shape[1])
        chosen = self.index if isinstance(self.index, tuple) else (self.index,)
        if twice := set(chosen) & set(self.others):
            raise UsageError(f"contrast: class {twice.pop()} is to be compared with itself; strike it from the others")
        weights = torch.tensor(self.weights or (1.0,) * len(self.others), dtype=output.dtype, device=output.device)
        return score - output[:, list(self.others)] @ (weights / weights.sum())

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        if not self.open:
            return self
        output = _matrix(activations["output"])
        if self.others is not None:
            check_classes(self.others, output.shape[1])
            output = output.index_fill(1, torch.tensor(self.others, device=output.device), -torch.inf)
        return replace(self, index=_top(output))


def probabilities(output: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Softmax of each row, sigmoid of a single output; a row that is a distribution already stays as it is."""
    if output.shape[1] == 1:
        return output.sigmoid()
    return torch.where(_distributions(output)[:, None], output, output.softmax(1))


def _distributions(output: Float[Tensor, "batch classes"]) -> Tensor:
    """Which rows are distributions already: none negative, the sum 1 but for rounding."""
    return (output >= 0).all(1) & ((output.sum(1) - 1).abs() < max(1e-4, 4 * torch.finfo(output.dtype).eps))


def _matrix(output: Tensor) -> Float[Tensor, "batch classes"]:
    output = output[:, None] if output.dim() == 1 else output
    if output.dim() != 2:
        raise UsageError(
            f"the output has shape {tuple(output.shape)}, not (images, classes); name a place in it: "
            "Channel('output', class) for its mean over positions, Neuron('output', class, row, column) for one, "
            "SegmentationClass(class) for the region where the network sees the class"
        )
    if not output.is_floating_point():
        raise UsageError(
            f"the output holds {str(output.dtype).removeprefix('torch.')}, not scores of classes as real numbers; wrap the "
            "network so that it returns scores, or choose another target, such as Channel(address, channel)"
        )
    return output


def _pick(output: Tensor, index: Index, rows: Tensor) -> Scores:
    output = _matrix(output)
    if index is None:
        return output.amax(1)
    check_classes(index, output.shape[1])
    return output.gather(1, per_row(index, rows, output.device)[:, None])[:, 0]


def _top(output: Tensor) -> tuple[int, ...]:
    return tuple(_matrix(output).argmax(1).tolist())
