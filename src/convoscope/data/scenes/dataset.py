"""The scenes as a data set of PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from convoscope.core.errors import UsageError

from .drawing import Faults, draw_factors
from .factors import CATEGORIES, Factors
from .rendering import Sample, render

INDEX = {name: k for k, name in enumerate(CATEGORIES)}


class Scenes(Dataset[tuple[Any, int]]):
    """`count` pictures of 10 species, drawn when asked for; picture i depends on `seed`, i and the faults alone.

    `scenes[i]` is the picture, a float tensor (3, size, size) in 0..1, and its label; `scenes[10:20]` is a view;
    `scenes.sample(i)` has the label maps, masks and factors. `Faults` says what `watermark`, `background`, `wrong_labels` and
    `random_labels` do. `transform` is called with the picture. Raises UsageError for sizes, rates or names out of range.
    """

    def __init__(
        self,
        count: int = 10_000,
        seed: int = 0,
        size: int = 96,
        *,
        watermark: float | Mapping[str, float] = 0.0,
        background: float | Mapping[str, tuple[str, float]] = 0.0,
        wrong_labels: float = 0.0,
        random_labels: bool = False,
        corner: str = "bottom right",
        transform: Callable[[Tensor], Any] | None = None,
    ):
        if count < 0:
            raise UsageError(f"a data set has 0 or more pictures, not {count}")
        if not 64 <= size <= 128:
            raise UsageError(f"scenes are 64 to 128 pixels square, not {size}")
        self.seed, self.size, self.transform = seed, size, transform
        self.faults = Faults(watermark, background, wrong_labels, random_labels, corner)
        self.categories = list(CATEGORIES)
        self._indices: range = range(count)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 size size"], int]: ...
    @overload
    def __getitem__(self, index: slice) -> "Scenes": ...
    def __getitem__(self, index: int | slice) -> "tuple[Float[Tensor, '3 size size'], int] | Scenes":
        if isinstance(index, slice):
            view = object.__new__(type(self))
            view.__dict__ = {**self.__dict__, "_indices": self._indices[index]}
            return view
        sample = self.sample(index)
        picture = torch.from_numpy(sample.picture).permute(2, 0, 1).to(torch.float32).div_(255)
        return (self.transform(picture) if self.transform else picture), INDEX[sample.factors.label]

    def factors(self, index: int) -> Factors:
        """What picture `index` is made of; drawing no picture, it takes some microseconds."""
        return draw_factors(self.seed, self._indices[index], self.faults)

    def sample(self, index: int) -> Sample:
        """Picture `index` with its label maps, masks and factors."""
        return render(self.factors(index), self.size)

    def label(self, index: int) -> int:
        """The label of picture `index`, without drawing it."""
        return INDEX[self.factors(index).label]

    def arrays(self, progress: Callable[[int, int], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All pictures (N, size, size, 3) uint8 and labels (N,) int64 at once, for training from memory."""
        pictures = np.empty((len(self), self.size, self.size, 3), np.uint8)
        labels = np.empty(len(self), np.int64)
        for k in range(len(self)):
            sample = self.sample(k)
            pictures[k], labels[k] = sample.picture, INDEX[sample.factors.label]
            if progress and (k + 1) % 100 == 0:
                progress(k + 1, len(self))
        return pictures, labels
