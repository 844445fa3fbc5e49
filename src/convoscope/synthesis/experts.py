"""Experts: log densities of pictures, differentiable, for activation maximization `max_x log p(class | x) + log p(x)`.

An expert is any callable from pixels 0..1 `(rows, C, H, W)` to `(rows,)` in nats. Those here are trained on the user's data,
kept in one file each, and take pictures larger than what they were trained on: densities of windows are then multiplied.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import LoadError, UsageError
from convoscope.data.sealed import open_sealed, write_sealed

Pixels = Float[Tensor, "rows channels height width"]
Rows = Float[Tensor, "rows values"]
FORMAT = "convoscope.expert/1"
_KINDS: dict[str, type["Expert"]] = {}


@dataclass(eq=False, kw_only=True)
class Expert:
    """Base of the experts that are trained here.

    `window` is channels, height and width of what it knows. A larger picture is the product of its windows, every `stride`
    pixels: their log densities are summed, and scaled so that each pixel counts once. `settings` says how it was made,
    `report` what came of it.
    """

    kind: ClassVar[str]
    normalized: ClassVar[bool] = True
    window: tuple[int, int, int]
    stride: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        _KINDS[cls.kind] = cls

    def density(self, rows: Rows) -> Float[Tensor, " rows"]:
        """The log density of windows, flattened, in nats."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What it has learned, by name."""
        raise NotImplementedError

    @classmethod
    def of(cls, tensors: dict[str, Tensor], made: dict[str, Any]) -> Self:
        """The expert of stored tensors."""
        return cls(**made, **tensors)

    def __call__(self, pixels: Pixels) -> Float[Tensor, " rows"]:
        """The log density of pictures in nats; where `normalized` is no, up to a constant."""
        found = self.windows(pixels)
        each = self.density(found.flatten(0, 1)).view(found.shape[:2])
        covered = self.window[1] * self.window[2] * found.shape[1]
        return each.sum(1) * (pixels.shape[2] * pixels.shape[3] / covered)

    def windows(self, pixels: Pixels) -> Float[Tensor, "rows windows values"]:
        """The windows of each picture, flattened; the last ones lie flush with its ends."""
        self.check(pixels)
        _, tall, wide = self.window
        found = pixels.unfold(2, tall, 1).unfold(3, wide, 1)  # (rows, C, places down, places across, tall, wide)
        down, across = (self._places(n) for n in found.shape[2:4])
        found = found[:, :, down][:, :, :, across]
        return found.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def check(self, pixels: Pixels) -> None:
        """Raises UsageError for pictures it has nothing to say about."""
        channels, tall, wide = self.window
        if pixels.dim() != 4 or pixels.shape[1] != channels or pixels.shape[2] < tall or pixels.shape[3] < wide:
            raise UsageError(
                f"this expert knows pictures (rows, {channels}, {tall} or more, {wide} or more); got {tuple(pixels.shape)}"
            )

    def _places(self, count: int) -> list[int]:
        return sorted({*range(0, count, self.stride), count - 1})

    def __repr__(self) -> str:
        told = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.report.items())
        return f"{type(self).__name__}(windows of {' x '.join(map(str, self.window))}: {told})"

    def save(self, path: str | Path) -> Path:
        """Writes it to a safetensors file, whole or absent."""
        path = Path(path)
        made = {"window": self.window, "stride": self.stride, "settings": self.settings, "report": self.report}
        made |= {k: getattr(self, k) for k in self.numbers()}
        write_sealed(path, self.tensors(), {"format": FORMAT, "kind": self.kind, "made": json.dumps(made, sort_keys=True)})
        return path

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        """The settings beside the tensors."""
        return ()


def load_expert(path: str | Path) -> Expert:
    """The expert in a file that `save` or `convoscope expert train` wrote. Raises LoadError for any other."""
    import convoscope.synthesis.experts_training  # noqa: F401  knows all kinds

    tensors, metadata = open_sealed(path, "expert", FORMAT)
    if metadata.get("kind") not in _KINDS:
        raise LoadError(f"{str(path)!r} holds an expert of a kind that is not known, {metadata.get('kind')!r}")
    made = json.loads(metadata["made"])
    return _KINDS[metadata["kind"]].of(tensors, made | {"window": tuple(made["window"])})


def gradient_of(expert: Any, pixels: Pixels) -> Pixels:
    """The gradient of an expert's log density with respect to the pixels."""
    with torch.enable_grad():
        leaf = pixels.detach().requires_grad_()
        (found,) = torch.autograd.grad(expert(leaf).sum(), leaf)
    return found
