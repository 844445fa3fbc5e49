"""Many logistic regressions at once, from inner products alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

STEPS, HALVINGS, TOLERANCE = 60, 12, 1e-9
LARGEST = 1 << 23  # numbers in the matrices of one block of regressions


@dataclass(frozen=True)
class Fits:
    """Regressions number r has the weight vector `sum_i coefficients[r, i] x[rows[r, i]]` and an intercept."""

    rows: Int[Tensor, "fits rows"]
    coefficients: Float[Tensor, "fits rows"]
    intercept: Float[Tensor, " fits"]

    def applied(self, products: Float[Tensor, "points rows"]) -> Float[Tensor, "fits points"]:
        """The weight vectors' inner products with points, from the points' products with all rows."""
        return torch.stack([products[:, r] @ c for r, c in zip(self.rows, self.coefficients, strict=True)])

    def norms(self, gram: Float[Tensor, "all all"]) -> Float[Tensor, " fits"]:
        """The lengths of the weight vectors."""
        squares = [c @ gram[r][:, r] @ c for r, c in zip(self.rows, self.coefficients, strict=True)]
        return torch.stack(squares).clamp(min=0).sqrt()


def gram(a: Float[Tensor, "rows numbers"], b: Float[Tensor, "others numbers"] | None = None) -> Float[Tensor, "rows others"]:
    """All inner products in double precision, on the CPU, a part of the numbers at a time."""
    b = a if b is None else b
    out = torch.zeros(len(a), len(b), dtype=torch.float64)
    for start in range(0, a.shape[1], 1 << 14):
        part = slice(start, start + (1 << 14))
        out += a[:, part].cpu().double() @ b[:, part].cpu().double().T
    return out


def logistic(products: Float[Tensor, "all all"], rows: Int[Tensor, "fits rows"], labels: Tensor, penalty: float) -> Fits:
    """For each fit the minimum of `mean log(1 + exp(-s (w x + b))) + penalty |w|^2 / 2`, `s` being +1 or -1 by `labels`.

    `products` are the inner products of all points; fit r sees those of `rows[r]`. By the representer theorem
    `w = sum_i a_i x_i`, so Newton's method runs in as many dimensions as there are points, for all fits at once.
    """
    parts, size = [], max(1, LARGEST // max(1, rows.shape[1] ** 2))
    for block in rows.split(size):
        parts.append(_newton(products[block[:, :, None], block[:, None, :]], labels.to(products), penalty))
    return Fits(rows, torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]))


def _newton(k: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    fits, n = k.shape[:2]
    a, b, ridge = k.new_zeros(fits, n), k.new_zeros(fits), n * penalty
    system = k.new_zeros(fits, n + 1, n + 1)
    system[:, n, :n] = 1
    known = k.new_zeros(fits, n + 1)
    value = _loss(k, a, b, labels, penalty)
    for _ in range(STEPS):
        f = (k @ a[..., None])[..., 0] + b[:, None]
        p = f.sigmoid()
        w = p * (1 - p)
        system[:, :n, :n] = w[..., None] * k + ridge * torch.eye(n).to(k)
        system[:, :n, n], known[:, :n] = w, w * f + labels - p
        step = torch.linalg.solve(system, known) - torch.cat([a, b[:, None]], 1)
        a, b, lower = _shortened(k, (a, b), step, value, labels, penalty)
        if bool((value - lower <= TOLERANCE * lower.abs()).all()):
            break
        value = lower
    return a, b


def _shortened(
    k: Tensor, at: tuple[Tensor, Tensor], step: Tensor, value: Tensor, labels: Tensor, penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each fit's step, halved until its loss does not rise."""
    length = torch.ones_like(value)
    for _ in range(HALVINGS):
        a, b = at[0] + length[:, None] * step[:, :-1], at[1] + length * step[:, -1]
        found = _loss(k, a, b, labels, penalty)
        worse = ~(found <= value)
        if not bool(worse.any()):
            return a, b, found
        length = torch.where(worse, length / 2, length)
    a, b = torch.where(worse[:, None], at[0], a), torch.where(worse, at[1], b)
    return a, b, torch.where(worse, value, found)


def _loss(k: Tensor, a: Tensor, b: Tensor, labels: Tensor, penalty: float) -> Tensor:
    ka = (k @ a[..., None])[..., 0]
    return F.softplus((1 - 2 * labels) * (ka + b[:, None])).mean(1) + penalty / 2 * (a * ka).sum(1)
