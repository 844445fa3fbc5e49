"""What is explained: named activations to one number per image. Closed under `+`, `-` and multiplication by a number."""

from collections.abc import Sequence
from numbers import Real
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import SpecError, UsageError, did_you_mean
from convoscope.core.record import Activations
from convoscope.core.spec import Spec

Scores = Float[Tensor, " batch"]


class Target(Spec, kind="target", abstract=True):
    """Base of all targets: says where it looks and gives one number per row, in its `unit`."""

    unit: ClassVar[str] = "activation"

    def addresses(self) -> tuple[str, ...]:
        """The addresses whose activations it reads."""
        return ("output",)

    def __call__(self, activations: Activations) -> Scores:
        """The target of each row."""
        raise NotImplementedError

    def named(self, categories: Sequence[str]) -> "Target":
        """This target with category names replaced by their indices. Raises UsageError for a name that does not exist."""
        return self

    @property
    def open(self) -> bool:
        """Whether something is still to be fixed by the clean pass, such as the top class of each image."""
        return False

    def resolve(self, activations: Activations) -> "Target":
        """This target with everything open fixed from the clean pass over all images."""
        return self

    def __add__(self, other: "Target") -> "Sum":
        if not isinstance(other, Target):
            return NotImplemented
        return Sum((*_terms(self), *_terms(other)), (*_weights(self), *_weights(other)))

    def __radd__(self, other: int) -> "Target":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # so that sum([...]) works

    def __mul__(self, factor: float) -> "Sum":
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        return Sum(_terms(self), tuple(w * float(factor) for w in _weights(self)))

    __rmul__ = __mul__

    def __neg__(self) -> "Sum":
        return self * -1.0

    def __sub__(self, other: "Target") -> "Sum":
        return self + -other if isinstance(other, Target) else NotImplemented


def _terms(target: Target) -> tuple[Target, ...]:
    return target.terms if isinstance(target, Sum) else (target,)


def _weights(target: Target) -> tuple[float, ...]:
    return target.weights if isinstance(target, Sum) else (1.0,)


class Sum(Target):
    """Weighted sum of targets; made by `+`, `-` and `*`."""

    terms: Annotated[tuple, "the targets"]
    weights: Annotated[tuple, "one number for each"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.terms or len(self.terms) != len(self.weights) or not all(isinstance(t, Target) for t in self.terms):
            raise SpecError(f"a sum has one number for each of its targets; got {self.terms} and {self.weights}")

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a for t in self.terms for a in t.addresses()))

    def __call__(self, activations: Activations) -> Scores:
        return torch.stack([w * t(activations) for w, t in zip(self.weights, self.terms, strict=True)]).sum(0)

    def named(self, categories: Sequence[str]) -> Target:
        return Sum(tuple(t.named(categories) for t in self.terms), self.weights)

    @property
    def open(self) -> bool:
        return any(t.open for t in self.terms)

    def resolve(self, activations: Activations) -> Target:
        return Sum(tuple(t.resolve(activations) for t in self.terms), self.weights)


Index = int | str | tuple | None


class Logit(Target):
    """The output of one class before any softmax (what the network returns, in its own units).

    `index` is a class number, a category name, one number per image, or None: the top class of each image.
    """

    unit = "logit"
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None

    def __call__(self, activations: Activations) -> Scores:
        return _pick(activations["output"], self.index, activations.rows)

    def named(self, categories: Sequence[str]) -> Target:
        return Logit(_category(self.index, categories))

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Logit(_top(activations["output"])) if self.open else self


class Probability(Target):
    """The probability of one class, 0..1; `index` as for Logit.

    The softmax of the output (the sigmoid of a single one), or the output itself where it is a distribution already.
    """

    unit = "probability"
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None

    def __call__(self, activations: Activations) -> Scores:
        return _pick(probabilities(_matrix(activations["output"])), self.index, activations.rows)

    def named(self, categories: Sequence[str]) -> Target:
        return Probability(_category(self.index, categories))

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Probability(_top(activations["output"])) if self.open else self


class Margin(Target):
    """The logit of one class minus that of another; without `other`, minus the largest of all others."""

    unit = "logit"
    index: Annotated[Index, "class number, category name, one number per image, or None for the top class"] = None
    other: Annotated[Index, "class number, category name, one number per image, or None for the strongest other"] = None

    def __call__(self, activations: Activations) -> Scores:
        output = _matrix(activations["output"])
        score = _pick(output, self.index, activations.rows)
        if self.other is not None:
            return score - _pick(output, self.other, activations.rows)
        if output.shape[1] < 2:
            raise UsageError("the network has one class; a margin needs two")
        index = output.argmax(1) if self.index is None else _per_row(self.index, activations.rows, output.device)
        return score - output.scatter(1, index[:, None], -torch.inf).amax(1)

    def named(self, categories: Sequence[str]) -> Target:
        return Margin(_category(self.index, categories), _category(self.other, categories))

    @property
    def open(self) -> bool:
        return self.index is None

    def resolve(self, activations: Activations) -> Target:
        return Margin(_top(activations["output"]), self.other) if self.open else self


class Layer(Target):
    """Half the squared norm of everything at an address, `sum(a^2) / 2`: what a layer responds with (DeepDream's objective)."""

    layer: Annotated[str, "address"]

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        return activations[self.layer].flatten(1).square().sum(1) / 2


class Channel(Target):
    """Mean activation of one channel over all positions."""

    layer: Annotated[str, "address"]
    channel: Annotated[int, "number of the channel"]

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        _within(self.channel, values.shape[1], f"channel of {self.layer!r}")
        return values[:, self.channel].flatten(1).mean(1) if values.dim() > 2 else values[:, self.channel]


class Neuron(Target):
    """Activation of one channel at one position; without a position, where the channel is strongest in each image."""

    layer: Annotated[str, "address"]
    channel: Annotated[int, "number of the channel"]
    row: Annotated[int | tuple | None, "row of the feature map, one per image, or None for the strongest position"] = None
    column: Annotated[int | tuple | None, "column of the feature map, one per image, or None"] = None

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def _map(self, activations: Activations) -> Tensor:
        values = activations[self.layer]
        _within(self.channel, values.shape[1], f"channel of {self.layer!r}")
        if values.dim() != 4:
            raise UsageError(
                f"{self.layer!r} has shape {tuple(values.shape)}, no rows and columns; "
                f"use Channel({self.layer!r}, {self.channel})"
            )
        return values[:, self.channel]

    def __call__(self, activations: Activations) -> Scores:
        maps = self._map(activations)
        row, column = self._places(maps, activations.rows)
        return maps[torch.arange(len(maps), device=maps.device), row, column]

    def _places(self, maps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column for each image; where one is open, the strongest in the other."""
        among = torch.zeros_like(maps)
        for value, axis, name in ((self.row, 1, "row"), (self.column, 2, "column")):
            if value is not None:
                _within(value, maps.shape[axis], f"{name} of {self.layer!r}")
                places = torch.arange(maps.shape[axis], device=maps.device).view((-1, 1) if axis == 1 else (1, -1))
                among = among.masked_fill(places != _per_row(value, rows, maps.device)[:, None, None], -torch.inf)
        best = (maps.detach() + among).flatten(1).argmax(1)
        return best // maps.shape[2], best % maps.shape[2]

    @property
    def open(self) -> bool:
        return self.row is None or self.column is None

    def resolve(self, activations: Activations) -> Target:
        if not self.open:
            return self
        row, column = self._places(self._map(activations), activations.rows)
        return Neuron(self.layer, self.channel, tuple(row.tolist()), tuple(column.tolist()))


class Direction(Target):
    """Mean over positions of the activations' projection on a vector over channels."""

    layer: Annotated[str, "address"]
    vector: Annotated[Tensor, "one number per channel"]

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        if self.vector.shape != values.shape[1:2]:
            raise UsageError(
                f"{self.layer!r} has {values.shape[1]} channels; got a direction of shape {tuple(self.vector.shape)}"
            )
        projection = torch.tensordot(values, self.vector.to(values), dims=([1], [0]))
        return projection.flatten(1).mean(1) if values.dim() > 2 else projection


def _matrix(output: Tensor) -> Float[Tensor, "batch classes"]:
    output = output[:, None] if output.dim() == 1 else output
    if output.dim() != 2:
        raise UsageError(
            f"the output has shape {tuple(output.shape)}, not (images, classes); name a place in it: "
            "Channel('output', class) for its mean over positions, Neuron('output', class, row, column) for one"
        )
    return output


def probabilities(output: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Softmax of each row, sigmoid of a single output; a row that is a distribution already stays as it is."""
    if output.shape[1] == 1:
        return output.sigmoid()
    done = (output >= 0).all(1) & ((output.sum(1) - 1).abs() < 1e-4)
    return torch.where(done[:, None], output, output.softmax(1))


def _per_row(value: int | tuple, rows: Tensor, device: torch.device) -> Tensor:
    if not isinstance(value, tuple):
        return torch.full((len(rows),), value, device=device)
    if int(rows.max()) >= len(value):
        raise UsageError(f"the target has {len(value)} entries for {int(rows.max()) + 1} images; give one for each")
    return torch.tensor(value, device=device)[rows.to(device)]


def _pick(output: Tensor, index: Index, rows: Tensor) -> Scores:
    output = _matrix(output)
    if index is None:
        return output.amax(1)
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, str):
            raise UsageError(
                f"the network has no category names, so {i!r} is unknown; give the number of the class, "
                f"0 to {output.shape[1] - 1}"
            )
    _within(index, output.shape[1], "class")
    return output.gather(1, _per_row(index, rows, output.device)[:, None])[:, 0]


def _top(output: Tensor) -> tuple[int, ...]:
    return tuple(_matrix(output).argmax(1).tolist())


def _within(index: int | tuple, count: int, what: str) -> None:
    for i in index if isinstance(index, tuple) else (index,):
        if not isinstance(i, int) or not 0 <= i < count:
            raise UsageError(f"no {what} {i}; there are {count}, counted from 0")


def _category(index: Index, categories: Sequence[str]) -> Index:
    if isinstance(index, tuple):
        return tuple(_category(i, categories) for i in index)
    if not isinstance(index, str) or not (categories or index.isdecimal()):
        return index
    if index.isdecimal() and index not in categories:
        return int(index)
    wanted = index.lower()
    # "tabby, tabby cat" is found by the whole, and by each of its synonyms where nothing is called that alone.
    found = [i for i, c in enumerate(categories) if c.lower() == wanted]
    found = found or [i for i, c in enumerate(categories) if wanted in c.lower().split(", ")]
    if not found:
        names = list(dict.fromkeys([*categories, *(n for c in categories for n in c.split(", "))]))
        raise UsageError(
            f"no category {index!r}{did_you_mean(index, names)} ({len(categories)} categories; a number works too)"
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} categories are called {index!r}: {', '.join(map(str, found))}; give the number of one")
    return found[0]
