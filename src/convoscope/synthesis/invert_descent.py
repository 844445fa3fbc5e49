"""Descent of many functions at once, each row on its own: L-BFGS, and momentum by a schedule."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "rows numbers"]
Values = Float[Tensor, " rows"]

ENOUGH = 1e-4  # of the fall that the slope promises, for a step to be taken (Armijo)
MEMORY = 12  # steps that tell of the curvature


class LBFGS:
    """Limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4) with a search along each direction by shrinking.

    Look at `trial`, call `tell` with what was found there, and so on: one evaluation of each row at a time, and every row
    takes or shrinks its step by itself, so that its way does not depend on the others. `best` is the lowest point so far.
    """

    def __init__(self, start: Rows) -> None:
        rows, numbers = start.shape
        like = {"device": start.device, "dtype": start.dtype}
        self.trial, self.best, self.slope = start.clone(), start.clone(), torch.zeros_like(start)
        self.direction = torch.zeros_like(start)
        self.value = torch.full((rows,), torch.inf, **like)
        self.length, self.fall = torch.zeros(rows, **like), torch.zeros(rows, **like)
        self.moves, self.turns = torch.zeros(MEMORY, rows, numbers, **like), torch.zeros(MEMORY, rows, numbers, **like)
        self.weights = torch.zeros(MEMORY, rows, **like)  # 1 / (move . turn); 0 where a row has none

    def tell(self, values: Values, slopes: Rows) -> None:
        """The value and the gradient at `trial`; the next trial."""
        first = self.value.isinf()
        taken = (values <= self.value - ENOUGH * self.length * self.fall) & values.isfinite() & slopes.isfinite().all(1)
        self._remember(taken & ~first, slopes)
        self.best = torch.where(taken[:, None], self.trial, self.best)
        self.slope = torch.where(taken[:, None], slopes, self.slope)
        shrunk = self._shrunk(values)
        self.value = torch.where(taken, values, self.value)
        lost = ~taken & (shrunk * self.direction.abs().amax(1) < 1e-7)  # nothing to gain that way: start anew
        self.weights[:, lost] = 0
        fresh = taken | lost
        self.direction = torch.where(fresh[:, None], -self._quasi_newton(), self.direction)
        self.fall = -(self.direction * self.slope).sum(1)
        blind = (self.weights == 0).all(0)
        careful = 1 / self.slope.abs().sum(1).clamp(min=torch.finfo(values.dtype).tiny)
        begun = torch.where(blind, careful.clamp(max=1.0), torch.ones_like(values))
        self.length = torch.where(fresh, begun, shrunk)
        self.trial = self.best + self.length[:, None] * self.direction

    def _remember(self, rows: Tensor, slopes: Rows) -> None:
        move, turn = self.trial - self.best, slopes - self.slope
        product = (move * turn).sum(1)
        keep = rows & (product > 1e-10 * turn.square().sum(1).clamp(min=torch.finfo(turn.dtype).tiny))
        for memory, new in ((self.moves, move), (self.turns, turn), (self.weights, 1 / torch.where(keep, product, 1.0))):
            shifted = torch.cat([memory[1:], new[None]])
            mask = keep.view(1, -1, *[1] * (memory.dim() - 2))
            memory.copy_(torch.where(mask, shifted, memory))

    def _shrunk(self, values: Values) -> Values:
        """The length at which a parabola through what is known is lowest, a tenth to a half of the last."""
        t = self.length
        best = self.fall * t.square() / (2 * (values - self.value + self.fall * t)).clamp(min=torch.finfo(t.dtype).tiny)
        return torch.where(best.isfinite(), best, 0.1 * t).clamp(min=0.1 * t, max=0.5 * t)

    def _quasi_newton(self) -> Rows:
        """The gradient times what is known of the inverse of the curvature (two loops)."""
        q, kept = self.slope.clone(), []
        for move, turn, weight in zip(self.moves.flip(0), self.turns.flip(0), self.weights.flip(0), strict=True):
            a = weight * (move * q).sum(1)
            q -= a[:, None] * turn
            kept.append(a)
        last = (self.weights[-1] > 0)[:, None]
        scale = 1 / (self.weights[-1] * self.turns[-1].square().sum(1))
        q = torch.where(last, scale[:, None] * q, q)
        for move, turn, weight, a in zip(self.moves, self.turns, self.weights, reversed(kept), strict=True):
            q += (a - weight * (turn * q).sum(1))[:, None] * move
        return q

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        names = ("trial", "best", "slope", "direction", "value", "length", "fall", "moves", "turns", "weights")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        for name in self.state():
            setattr(self, name, state[name].to(self.trial))


class WarmedLBFGS:
    """`warm` steps of Adam, whose long steps leave the dead ends near the start, then L-BFGS from where they led."""

    def __init__(self, start: Rows, warm: int, rate: float) -> None:
        self.warm, self.rate, self.step = warm, rate, 0
        self.mean, self.square = torch.zeros_like(start), torch.zeros_like(start)
        self.inner = LBFGS(start)

    @property
    def trial(self) -> Rows:
        """Where to look next."""
        return self.inner.trial

    @property
    def best(self) -> Rows:
        """The lowest point so far; while it is warming up, the last."""
        return self.inner.trial if self.step < self.warm else self.inner.best

    def tell(self, values: Values, slopes: Rows) -> None:
        """The value and the gradient at `trial`; the next trial."""
        if self.step >= self.warm:
            self.inner.tell(values, slopes)
        else:
            self.mean = 0.9 * self.mean + 0.1 * slopes
            self.square = 0.999 * self.square + 0.001 * slopes.square()
            n = self.step + 1
            move = self.mean / (1 - 0.9**n) / ((self.square / (1 - 0.999**n)).sqrt() + 1e-8)
            self.inner.trial = self.inner.trial - self.rate * move
            self.inner.best = self.inner.trial
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        own = {"mean": self.mean, "square": self.square, "step": torch.tensor(self.step)}
        return own | {f"inner.{k}": t for k, t in self.inner.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        self.mean, self.square, self.step = state["mean"].to(self.mean), state["square"].to(self.mean), int(state["step"])
        self.inner.restore({k.removeprefix("inner."): t for k, t in state.items() if k.startswith("inner.")})


class Momentum:
    """Gradient descent with momentum .9, which starts anew where the rate changes; `rates` has one for each step."""

    def __init__(self, start: Rows, rates: Sequence[float]) -> None:
        self.trial, self.speed = start.clone(), torch.zeros_like(start)
        self.rates, self.step = rates, 0

    @property
    def best(self) -> Rows:
        """Where it is."""
        return self.trial

    def tell(self, values: Values, slopes: Rows) -> None:
        """The gradient at `trial`; the next trial."""
        rate = self.rates[self.step]
        if self.step and rate != self.rates[self.step - 1]:
            self.speed.zero_()
        self.speed = 0.9 * self.speed - rate * slopes
        self.trial = self.trial + self.speed
        self.step += 1

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        return {"trial": self.trial, "speed": self.speed, "step": torch.tensor(self.step)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        self.trial, self.speed = state["trial"].to(self.trial), state["speed"].to(self.trial)
        self.step = int(state["step"])
