"""The Gaussian with the data's covariance."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.statistic import SUM, Samples, Statistic
from convoscope.synthesis.experts import Expert, Rows

LARGEST = 4096  # values in a window: the covariance of more needs more than 128 MiB


@dataclass(kw_only=True, eq=False)
class WindowMoments(Statistic):
    """Mean and covariance of all windows of `height` x `width` pixels, every `stride`, of pictures `(B, C, H, W)`; float64."""

    height: int
    width: int
    stride: int = 1

    state = {"count": SUM, "total": SUM, "square": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        if batch.dim() != 4 or batch.shape[2] < self.height or batch.shape[3] < self.width:
            raise UsageError(f"expected pictures of at least {self.height} x {self.width}; got {tuple(batch.shape)}")
        found = batch.detach().unfold(2, self.height, self.stride).unfold(3, self.width, self.stride)
        rows = found.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
        if rows.shape[1] > LARGEST:
            raise UsageError(f"windows of {rows.shape[1]} values have too large a covariance; {LARGEST} at most")
        if not self.begun:
            self.count = torch.tensor(0)
            self.total = torch.zeros(rows.shape[1], dtype=torch.float64)
            self.square = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in rows.split(4096):
            values = part.to("cpu", torch.float64)
            self.count = self.count + len(values)
            self.total = self.total + values.sum(0)
            self.square = self.square.addmm(values.T, values)

    def value(self) -> tuple[Tensor, Tensor]:
        """Mean `(D,)` and covariance `(D, D)` of windows, flattened. Raises UsageError before the second window."""
        if not self.begun or int(self.count) < 2:
            raise UsageError("no covariance: fewer than two windows were seen")
        mean = self.total / self.count
        return mean, self.square / self.count - torch.outer(mean, mean)


@dataclass(eq=False, repr=False, kw_only=True)
class GaussianExpert(Expert):
    """The log density of a Gaussian: `mean`, the covariance's first axes (`basis`, with `variances`), `rest` along all others.

    With as many axes as values the covariance is exact; with fewer it is that of probabilistic PCA (Tipping and Bishop 1999).
    """

    kind: ClassVar[str] = "gaussian"
    mean: Float[Tensor, " values"]
    basis: Float[Tensor, "values axes"]
    variances: Float[Tensor, " axes"]
    rest: float

    @classmethod
    def fitted(
        cls, mean: Tensor, covariance: Tensor, window: tuple[int, int, int], *, noise: float, rank: int | None = None,
        stride: int = 1, settings: dict[str, Any] | None = None,
    ) -> "GaussianExpert":  # fmt: skip
        """That of a mean and a covariance, to which noise of this deviation is added (pixels that never vary would rule)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        kept = len(values) if rank is None else min(rank, len(values))
        rest = float(values[kept:].mean()) if kept < len(values) else 0.0
        variances = values[:kept] + noise**2
        if float(rest + noise**2) <= 0 or (kept and float(variances.min()) <= 0):
            raise UsageError("the data do not vary in some directions; give noise above zero")
        report = {
            "values": len(values),
            "axes": kept,
            "variance explained": float(values[:kept].sum() / values.sum().clamp(1e-12)),
        }
        made = {"window": window, "stride": stride, "settings": settings or {}, "report": report}
        tensors = {"mean": mean.double(), "basis": vectors[:, :kept].contiguous(), "variances": variances}
        return cls(**made, **tensors, rest=rest + noise**2)

    def density(self, rows: Rows) -> Float[Tensor, " rows"]:
        mean, basis, variances = (t.to(rows) for t in (self.mean, self.basis, self.variances))
        centered = rows - mean
        along = centered @ basis
        left = len(self.mean) - len(self.variances)
        quadratic = (along.square() / variances).sum(1)
        volume = float(self.variances.double().log().sum())
        if left:
            quadratic = quadratic + (centered.square().sum(1) - along.square().sum(1)).clamp(min=0) / self.rest
            volume += left * math.log(self.rest)
        return -0.5 * (quadratic + volume + len(self.mean) * math.log(2 * math.pi))

    def sample(self, count: int, seed: int = 0) -> Float[Tensor, "count channels height width"]:
        """Windows drawn from it; their values may leave 0..1."""
        draw = torch.Generator().manual_seed(seed)
        first = torch.randn(count, len(self.variances), generator=draw, dtype=torch.float64)
        noise = torch.randn(count, len(self.mean), generator=draw, dtype=torch.float64)
        basis = self.basis.double().cpu()
        noise = (noise - noise @ basis @ basis.T) * self.rest**0.5
        rows = self.mean.double().cpu() + (first * self.variances.double().cpu().sqrt()) @ basis.T + noise
        return rows.view(count, *self.window)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis, "variances": self.variances}

    @classmethod
    def numbers(cls) -> tuple[str, ...]:
        return ("rest",)
