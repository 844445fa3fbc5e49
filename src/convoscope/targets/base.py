"""What a target is, its algebra, and how its settings are read: classes by name, one entry for each image."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import SpecError, UsageError, did_you_mean
from convoscope.core.record import Activations
from convoscope.core.spec import Spec

Scores = Float[Tensor, " batch"]
Index = int | str | tuple | None


class Target(Spec, kind="target", abstract=True):
    """Base of all targets: says where it looks and gives one number per row, in its `unit`.

    `classes` lists its settings that name classes, `each` those that may hold one entry for each image.
    """

    unit: ClassVar[str] = "activation"
    classes: ClassVar[tuple[str, ...]] = ()
    each: ClassVar[tuple[str, ...]] = ()

    def addresses(self) -> tuple[str, ...]:
        """The addresses whose activations it reads."""
        return ("output",)

    def __call__(self, activations: Activations) -> Scores:
        """The target of each row."""
        raise NotImplementedError

    def named(self, categories: Sequence[str]) -> "Target":
        """This target with category names replaced by their indices. Raises UsageError for a name that does not exist."""
        return replace(self, **{name: class_number(getattr(self, name), categories) for name in self.classes})

    def check(self, images: int) -> None:
        """Raises UsageError where a setting holds one entry for each of another number of images."""
        for name in self.each:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != images:
                raise UsageError(f"{self.name}: {name} has {len(value)} entries for {images} images; give one for each")

    @property
    def open(self) -> bool:
        """Whether something is still to be fixed by the clean pass, such as the top class of each image."""
        return False

    @property
    def together(self) -> bool:
        """Whether rows are compared with each other, so that they have to be seen in one pass."""
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

    def check(self, images: int) -> None:
        for term in self.terms:
            term.check(images)

    @property
    def together(self) -> bool:
        return any(t.together for t in self.terms)

    @property
    def open(self) -> bool:
        return any(t.open for t in self.terms)

    def resolve(self, activations: Activations) -> Target:
        return Sum(tuple(t.resolve(activations) for t in self.terms), self.weights)


def per_row(value: int | tuple, rows: Tensor, device: torch.device) -> Tensor:
    """A setting for each row: the one there is, or that of the image the row belongs to."""
    if not isinstance(value, tuple):
        return torch.full((len(rows),), value, device=device)
    if int(rows.max()) >= len(value):
        raise UsageError(f"the target has {len(value)} entries for {int(rows.max()) + 1} images; give one for each")
    return torch.tensor(value, device=device)[rows.to(device)]


def within(index: int | tuple, count: int, what: str) -> None:
    """Raises UsageError unless every index is one of `count`."""
    for i in index if isinstance(index, tuple) else (index,):
        if not isinstance(i, int) or not 0 <= i < count:
            raise UsageError(f"no {what} {i}; there are {count}, counted from 0")


def check_classes(index: Index, count: int) -> None:
    """Raises UsageError unless every class is a number of one of `count`."""
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, str):
            raise UsageError(
                f"the network has no category names, so {i!r} is unknown; give the number of the class, 0 to {count - 1}"
            )
    if index is not None:
        within(index, count, "class")


def class_number(index: Index, categories: Sequence[str]) -> Index:
    """The number of a class by its name; raises UsageError with the closest names."""
    if isinstance(index, tuple):
        return tuple(class_number(i, categories) for i in index)
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
