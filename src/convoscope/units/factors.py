"""Matrices as products of non-negative ones, and which inputs of a function matter in all."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError

TINY = 1e-12


def factorized(
    values: Float[Tensor, "rows channels"], count: int, steps: int = 500, tolerance: float = 1e-6
) -> tuple[Float[Tensor, "rows count"], Float[Tensor, "count channels"]]:
    """Non-negative `coefficients @ basis` near `values` (Lee and Seung 1999), rows of the basis of length 1.

    By hierarchical alternating least squares (Cichocki and Phan 2009) from a start by singular vectors (NNDSVD, Boutsidis and
    Gallopoulos 2008), in double precision on the CPU: the same values give the same factors, without a seed. Raises UsageError
    for negative values.
    """
    a = values.cpu().double()
    if a.numel() == 0 or float(a.min()) < 0 or not bool(a.isfinite().all()):
        raise UsageError("expected finite values of at least 0; concepts are sought behind a ReLU")
    if not 1 <= count <= min(a.shape):
        raise UsageError(f"{count} concepts of {a.shape[0]} rows and {a.shape[1]} channels; at most {min(a.shape)}")
    u, w = _start(a, count)
    before = torch.inf
    for _ in range(steps):
        w = _improved(w.T, a.T @ u, u.T @ u).T
        u = _improved(u, a @ w.T, w @ w.T)
        error = float((a - u @ w).square().sum())
        if before - error <= tolerance * max(error, TINY):
            break
        before = error
    lengths = w.norm(dim=1)
    return u * lengths, w / lengths.clamp(min=TINY)[:, None]


def coefficients(
    values: Float[Tensor, "rows channels"], basis: Float[Tensor, "count channels"], steps: int = 200
) -> Float[Tensor, "rows count"]:
    """Non-negative coefficients of rows for a basis that is kept (least squares, by coordinate descent)."""
    a, w = values.cpu().double(), basis.cpu().double()
    products, square = a @ w.T, w @ w.T
    u = (torch.linalg.pinv(square) @ products.T).T.clamp(min=0)
    for _ in range(steps):
        new = _improved(u, products, square)
        if float((new - u).abs().max()) <= 1e-9 * max(float(new.abs().max()), TINY):
            return new
        u = new
    return u


def _improved(u: Tensor, products: Tensor, square: Tensor) -> Tensor:
    """One round of coordinate descent for `min |a - u w|^2` from `a w^T` and `w w^T`, a column at a time."""
    u = u.clone()
    for j in range(u.shape[1]):
        if square[j, j] > TINY:
            u[:, j] = (u[:, j] + (products[:, j] - u @ square[:, j]) / square[j, j]).clamp(min=0)
    return u


def _start(a: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each pair of singular vectors the positive or the negative halves, whichever hold more; zeros made a little more."""
    left, sizes, right = torch.linalg.svd(a, full_matrices=False)
    u, w = a.new_zeros(len(a), count), a.new_zeros(count, a.shape[1])
    for j in range(count):
        pairs = [((s * left[:, j]).clamp(min=0), (s * right[j]).clamp(min=0)) for s in (1, -1)]
        held = [float(x.norm() * y.norm()) for x, y in pairs]
        best = int(held[1] > held[0])
        x, y = pairs[best]
        scale = (float(sizes[j]) * held[best]) ** 0.5
        u[:, j], w[j] = scale * x / x.norm().clamp(min=TINY), scale * y / y.norm().clamp(min=TINY)
    fill = float(a.mean()) / 100
    return torch.where(u > 0, u, fill), torch.where(w > 0, w, fill)


def total_indices(
    function: Callable[[Float[Tensor, "points inputs"]], Float[Tensor, "points ..."]], inputs: int, designs: int = 64,
    seed: int = 0,
) -> Float[Tensor, "inputs ..."]:  # fmt: skip
    """Total Sobol indices of inputs uniform in 0..1: the share of the variance of the value that is there only with each.

    By Jansen's estimator (1999) on a scrambled Sobol sequence of `designs` points: `function` is asked at `designs * (inputs
    + 2)` points at once. Indices of a constant are zero.
    """
    drawn = torch.quasirandom.SobolEngine(2 * inputs, scramble=True, seed=seed).draw(designs, dtype=torch.float64)
    a, b = drawn[:, :inputs], drawn[:, inputs:]
    mixed = a.repeat(inputs, 1, 1)
    mixed[torch.arange(inputs), :, torch.arange(inputs)] = b.T
    found = function(torch.cat([a, b, mixed.flatten(0, 1)])).double()
    base, both = found[:designs], found[: 2 * designs]
    changed = found[2 * designs :].unflatten(0, (inputs, designs))
    variance = both.var(0, correction=0)
    shares = (base - changed).square().mean(1) / 2 / variance.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(variance > 1e-12 * both.square().mean(0), shares, torch.zeros_like(shares))
