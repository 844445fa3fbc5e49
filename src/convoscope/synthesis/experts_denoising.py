"""The denoising autoencoder as an expert: what it takes away from a picture is the gradient of the log density."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.synthesis.experts import Expert, Pixels, Rows


class Denoiser(nn.Module):
    """A small U-Net that takes pictures of any size; what it gives is added to the picture it is given."""

    def __init__(self, channels: int, width: int = 24, levels: int = 3) -> None:
        super().__init__()
        wide = [width * 2**k for k in range(levels)]
        self.levels = levels
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(wide))
        self.same = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in wide)
        self.up = nn.ModuleList(nn.Conv2d(b + a, a, 3, padding=1) for a, b in pairwise(wide))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        z = F.silu(self.same[0](F.silu(self.first(x))))
        for k, down in enumerate(self.down):
            kept.append(z)
            z = F.silu(self.same[k + 1](F.silu(down(z))))
        for k in reversed(range(len(self.up))):
            z = F.interpolate(z, kept[k].shape[2:], mode="nearest")
            z = F.silu(self.up[k](torch.cat([z, kept[k]], 1)))
        return x + self.last(z)


@dataclass(eq=False, repr=False, kw_only=True)
class DenoisingExpert(Expert):
    """A denoiser `r` of noise with deviation `s`: `(r(x) - x) / s^2` is the gradient of the log density of the noisy data.

    Alain and Bengio, "What regularized auto-encoders learn from the data generating distribution", 2014 (theorem 1; exact
    for the best possible denoiser). A denoiser knows pictures with noise, and says nothing sensible of smooth ones that are
    far from the data: so the gradient is the mean over `views` of the picture with noise, the same draws every time, in pairs
    of opposite sign. The value is `-||r - x||^2 / (2 s^2)` of the mean `r`: no log density, but lower the more the denoiser
    wants to change. It takes pictures of any size.
    """

    kind: ClassVar[str] = "denoising"
    normalized: ClassVar[bool] = False
    denoiser: Callable[[Tensor], Tensor]
    deviation: float
    views: int = 4

    def __call__(self, pixels: Pixels) -> Float[Tensor, " rows"]:
        self.check(pixels)
        with torch.no_grad():
            left = self.restored(pixels.detach()) - pixels.detach()
        score = left / self.deviation**2
        value = -left.flatten(1).square().sum(1) / (2 * self.deviation**2)
        return value + ((pixels - pixels.detach()) * score).flatten(1).sum(1)

    def restored(self, pixels: Pixels) -> Pixels:
        """What the denoiser takes the pictures for: of themselves, or the mean over the views with noise."""
        if self.views < 2:
            return self.denoised(pixels)
        draw, found = torch.Generator().manual_seed(0), torch.zeros_like(pixels)
        for _ in range(self.views // 2):
            noise = self.deviation * torch.randn(pixels.shape[1:], generator=draw).to(pixels)
            found += self.denoised(pixels + noise) + self.denoised(pixels - noise)
        return found / (2 * (self.views // 2))

    def check(self, pixels: Pixels) -> None:
        if pixels.dim() != 4 or pixels.shape[1] != self.window[0]:
            raise UsageError(f"this expert knows pictures (rows, {self.window[0]}, any, any); got {tuple(pixels.shape)}")

    def denoised(self, pixels: Pixels) -> Pixels:
        """The pictures that the denoiser takes these for, with noise."""
        if isinstance(self.denoiser, nn.Module):
            first = next(self.denoiser.parameters(), pixels)
            if first.device != pixels.device or first.dtype != pixels.dtype:
                self.denoiser.to(pixels.device, pixels.dtype)
        return self.denoiser(pixels)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.denoiser.state_dict())  # type: ignore[attr-defined]

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        return ("deviation", "views")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], made: dict[str, Any]) -> "DenoisingExpert":
        width, channels = tensors["first.weight"].shape[:2]
        with torch.random.fork_rng(devices=[]):
            denoiser = Denoiser(channels, width, sum(k.startswith("same.") and k.endswith("weight") for k in tensors))
        denoiser.load_state_dict(dict(tensors))
        return cls(**made, denoiser=denoiser.eval().requires_grad_(False))

    def density(self, rows: Rows) -> Float[Tensor, " rows"]:
        return self(rows.view(-1, *self.window))
