"""What a task of the benchmark is: networks and pictures of which the right explanation is known exactly."""

from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from convoscope.core.spec import Spec
from convoscope.network import Images, Network
from convoscope.targets import Target

Mapper = Callable[[Network, Images, Target, tuple[int, ...]], Float[Tensor, "rows height width"]]
"""Who gives maps: signed, at the size of the images, float64 on the CPU, one for each row of `x`; `places` number the items
of the task that the rows belong to."""


class Task(Spec, kind="task", abstract=True):
    """Base of all tasks: one number for each item (a picture, a network) and whoever gives the maps.

    `exact` says in a line why the truth is exact, `measures` what the number is, between `range`; higher is better.
    `perfect` is the number of the right answer. What a map that knows nothing gets is measured, never assumed.
    """

    title: ClassVar[str]
    exact: ClassVar[str]
    measures: ClassVar[str]
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    perfect: ClassVar[float] = 1.0

    def quick(self) -> "Task":
        """The task with settings of which all methods together take a few seconds on two cores."""
        return self

    def score(self, mapper: Mapper) -> Float[Tensor, " items"]:
        """The number of each item, in float64; NaN where it is not defined. The same truth is computed once for all mappers."""
        raise NotImplementedError

    def oracle(self) -> Mapper:
        """Who knows the answer: the best map there is for each item."""
        raise NotImplementedError
