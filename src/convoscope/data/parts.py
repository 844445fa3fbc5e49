"""Pictures of things made of parts, each of which can be taken away: what FunnyBirds' protocols ask of a data set."""

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Self

from convoscope.core.errors import UsageError, did_you_mean
from convoscope.data.dataset import Dataset, chosen


class Rivals(NamedTuple):
    """Two other classes, and the parts that a picture's class shares with the first and with the second; none with both."""

    classes: tuple[int, int]
    parts: tuple[frozenset[str], frozenset[str]]


class PartPictures(Dataset):
    """Pictures whose parts can be taken away, exactly: what was behind them is seen.

    Subclasses say which `parts` and `surroundings` a picture has, and give it `without` some of them. `segments` tells where
    they are: each is a concept of its name. `margin`: how many pixels beyond its mask a part reaches. `_rows`: which rows of
    what was opened are these.
    """

    margin: int = 0
    _rows: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self._rows)

    def parts(self, i: int) -> tuple[str, ...]:
        """The parts that the thing in picture `i` has."""
        raise NotImplementedError

    def surroundings(self, i: int) -> tuple[str, ...]:
        """What else in picture `i` can be taken away, and says nothing of the class."""
        return ()

    def without(self, i: int, names: Collection[str]) -> Any:
        """Picture `i` without some of its parts, or without one of its surroundings. Raises UsageError for others."""
        raise NotImplementedError

    def sufficient(self, i: int) -> tuple[frozenset[str], ...]:
        """The smallest sets of parts that tell the class; none where it is for the network to say which it needs."""
        return ()

    def rivals(self, i: int) -> Rivals | None:
        """Two classes to tell apart in picture `i`; None where there are none."""
        return None

    def subset(self, rows: slice | Iterable[int]) -> Self:
        made = copy.copy(self)
        made._rows = [self._rows[r] for r in chosen(rows, len(self))]
        return made

    def check_names(self, i: int, names: Collection[str]) -> None:
        """Raises UsageError for what picture `i` does not have, or cannot be without."""
        parts, around = self.parts(i), self.surroundings(i)
        for name in names:
            if name not in (*parts, *around):
                hint = did_you_mean(name, [*parts, *around])
                raise UsageError(f"picture {i} of {self.name} has no {name!r}{hint}; it has {', '.join((*parts, *around))}")
        if len(names) > 1 and set(names) & set(around):
            raise UsageError(f"surroundings are taken away one at a time, and alone; got {', '.join(sorted(names))}")
