"""Values that are not finite: which, and where they appear first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convoscope.core.errors import NonFiniteError
from convoscope.core.record import Observer, record


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite; also of types that know no such question."""
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).detach().isfinite().all())


def place(tensor: Tensor, image: int | None = None) -> str:
    """`nan at (0, 3, 4)`, the first value that is not finite; of a batch that starts at an image, with that image's number."""
    index = tuple((~tensor.detach().float().isfinite()).nonzero()[0].tolist())
    where = index if image is None else f"{index[1:]} of image {image + index[0]}"
    return f"{tensor.detach()[index].item():g} at {where}"


@dataclass
class _Search(Observer):
    image: int

    def value(self, address: str, operator: str, module: nn.Module | None, output: Tensor) -> None:
        if output.is_floating_point() and not finite(output):
            where = f"{place(output, self.image)} at {address!r} ({operator})"
            raise NonFiniteError(f"the network gives {where}; nonfinite='propagate' runs all the same")


def search(module: nn.Module, x: Tensor, head: Callable[[Any], Tensor] | None, rows: int) -> None:
    """Shows the network the images again; raises NonFiniteError naming the first address that is not finite."""
    with torch.no_grad():
        for start in range(0, len(x), rows):
            record(module, x[start : start + rows].clone(), observer=_Search(start), head=head)
