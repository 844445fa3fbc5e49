"""What a picture to optimize is: a parametrization, the transforms it is seen under, and what it is to be spared."""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.spec import AtLeast, Spec

PixelRows = Float[Tensor, "rows channels height width"]
Rows = Float[Tensor, " rows"]
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Space:
    """What a picture is to a network: channels, height and width, and where its numbers live."""

    channels: int
    size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Draws:
    """Random numbers of some rows: they depend on the seed, the row's key and the name of the draw, on nothing else.

    So a row gets the same ones in any batch, on any device and after any interruption.
    """

    seed: int
    keys: tuple[Hashable, ...]
    space: Space

    def normal(self, shape: tuple[int, ...], draw: Hashable) -> Tensor:
        """Standard normal numbers `(rows, *shape)`."""
        return self._each(draw, lambda g: torch.randn(shape, generator=g))

    def uniform(self, shape: tuple[int, ...], draw: Hashable) -> Tensor:
        """Numbers uniform in 0..1, `(rows, *shape)`."""
        return self._each(draw, lambda g: torch.rand(shape, generator=g))

    def _each(self, draw: Hashable, make: Callable[[torch.Generator], Tensor]) -> Tensor:
        made: dict[Hashable, Tensor] = {}
        for key in self.keys:
            if key not in made:
                digest = hashlib.blake2b(repr((self.seed, key, draw)).encode(), digest_size=8).digest()
                made[key] = make(torch.Generator().manual_seed(int.from_bytes(digest) >> 1))
        return torch.stack([made[key] for key in self.keys]).to(self.space.device, self.space.dtype)


class Image(Spec, kind="image", abstract=True):
    """A parametrization of pictures: what is optimized, and how pixels come out of it.

    Rows are pictures that know nothing of each other. `size` is a side, (height, width), or None for the network's own.
    `rate`, `optimizer` and `views` are those of an ascent where nobody says.
    """

    rate: ClassVar[float] = 0.05
    optimizer: ClassVar[str] = "adam"
    views: ClassVar[int] = 1

    def begin(self, space: Space, draws: Draws) -> Parameters:
        """The parameters of a fresh start, `(rows, ...)` each, drawn at random."""
        raise NotImplementedError

    def pixels(self, parameters: Parameters, space: Space) -> PixelRows:
        """The pixels 0..1 that parameters show."""
        raise NotImplementedError

    def encode(self, pixels: PixelRows, space: Space) -> Parameters:
        """The parameters that show these pixels, as nearly as they can. Raises UsageError where there are none."""
        raise UsageError(f"{self.name} pictures cannot start from given pixels; leave the start out")

    def settle(self, parameters: Parameters, space: Space, step: int) -> None:
        """Brings parameters back, in place, to where they are allowed, after each step from 0."""

    def transforms(self, size: tuple[int, int], seen: tuple[int, int]) -> "tuple[Transform, ...] | None":
        """How pictures of a size are best moved for a network that takes `seen`; None: like any others of their size."""
        return None


class Transform(Spec, kind="transform", abstract=True):
    """How pictures are moved before the network sees them, each row on its own."""

    def __call__(self, pixels: PixelRows, draws: Draws, step: int) -> PixelRows:
        """The moved pictures; what is drawn depends on the row and the step."""
        raise NotImplementedError


class Penalty(Spec, kind="penalty", abstract=True):
    """What counts against a picture, once for each row; larger is always worse."""

    weight: Annotated[float, "how much of the target's unit one unit of the penalty costs", AtLeast(0)] = 1.0

    def __call__(self, pixels: PixelRows) -> Rows:
        """The penalty of each row, without the weight."""
        raise NotImplementedError


def image_size(size: int | tuple | None, default: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a picture from a setting. Raises UsageError where neither it nor the network says."""
    size = default if size is None else size
    if size is None:
        raise UsageError("this network takes any size; give the picture one, such as Pixels(224)")
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in both):
        raise UsageError(f"a size is a number of pixels or (height, width); got {size!r}")
    return both
