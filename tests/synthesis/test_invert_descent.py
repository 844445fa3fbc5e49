"""Descent of rows: exact on quadratics, down a bent valley, each row on its own, resumable."""

import torch
from torch import Tensor

from convoscope.synthesis.invert_descent import LBFGS, Momentum, WarmedLBFGS


def quadratics(rows: int = 4, numbers: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(rows, numbers, numbers, generator=g, dtype=torch.float64)
    return a @ a.mT + 0.1 * torch.eye(numbers, dtype=torch.float64), torch.randn(rows, numbers, generator=g).double()


def quadratic(x: Tensor, matrices: Tensor, aims: Tensor) -> tuple[Tensor, Tensor]:
    off = x - aims
    slope = torch.einsum("rij,rj->ri", matrices, off)
    return (off * slope).sum(1) / 2, slope


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def test_quadratics_are_solved() -> None:
    matrices, aims = quadratics()
    descent = LBFGS(torch.zeros_like(aims))
    for _ in range(120):
        descent.tell(*quadratic(descent.trial, matrices, aims))
    torch.testing.assert_close(descent.best, aims, atol=1e-6, rtol=0)


def test_the_valley_of_rosenbrock_is_followed_to_its_end() -> None:
    descent = LBFGS(torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]], dtype=torch.float64))
    for _ in range(200):
        descent.tell(*rosenbrock(descent.trial))
    torch.testing.assert_close(descent.best, torch.ones(3, 2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_best_is_never_worse_than_before() -> None:
    descent = LBFGS(torch.tensor([[-1.2, 1.0]], dtype=torch.float64))
    last = float("inf")
    for _ in range(100):
        descent.tell(*rosenbrock(descent.trial))
        now = float(rosenbrock(descent.best)[0])
        assert now <= last
        last = now


def test_rows_know_nothing_of_each_other() -> None:
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]], dtype=torch.float64)
    together, alone = LBFGS(start), LBFGS(start[1:2])
    for _ in range(40):
        together.tell(*rosenbrock(together.trial))
        alone.tell(*rosenbrock(alone.trial))
    torch.testing.assert_close(together.best[1:2], alone.best, atol=1e-12, rtol=1e-12)


def test_a_value_that_is_none_is_stepped_back_from() -> None:
    def root(x: Tensor) -> tuple[Tensor, Tensor]:  # not a number beyond zero
        x = x.detach().requires_grad_()
        value = (x[:, 0] - x[:, 0].log()) * 50
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    descent = LBFGS(torch.tensor([[0.01]], dtype=torch.float64))
    for _ in range(80):
        descent.tell(*root(descent.trial))
    torch.testing.assert_close(descent.best, torch.ones(1, 1, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_restored_descent_goes_the_same_way() -> None:
    start = torch.tensor([[-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
    makers = (LBFGS, lambda x: Momentum(x, [1e-4] * 20 + [1e-5] * 20), lambda x: WarmedLBFGS(x, 20, 0.05))
    for make in makers:
        whole, half = make(start), make(start)
        for descent, steps in ((whole, 40), (half, 17)):
            for _ in range(steps):
                descent.tell(*rosenbrock(descent.trial))
        other = make(torch.zeros_like(start))
        other.restore({k: t.clone() for k, t in half.state().items()})
        for _ in range(23):
            other.tell(*rosenbrock(other.trial))
        assert torch.equal(other.best, whole.best)


def test_momentum_starts_anew_where_the_rate_changes() -> None:
    x, speed = torch.tensor([[5.0]], dtype=torch.float64), 0.0
    rates = [0.1, 0.1, 0.01, 0.01]
    descent, place = Momentum(x, rates), 5.0
    for step, rate in enumerate(rates):
        speed = 0.0 if step == 2 else speed
        speed = 0.9 * speed - rate * 2 * place
        place += speed
        descent.tell(descent.trial[:, 0] ** 2, 2 * descent.trial)
        assert abs(float(descent.trial) - place) < 1e-12


def test_the_warm_up_is_adam_and_then_the_valley_is_followed() -> None:
    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)
    descent, place = WarmedLBFGS(start, 10, 0.05), start.clone().requires_grad_()
    adam = torch.optim.Adam([place], lr=0.05)
    for _ in range(10):
        torch.testing.assert_close(descent.trial, place.detach())
        descent.tell(*rosenbrock(descent.trial))
        place.grad = rosenbrock(place)[1]
        adam.step()
    torch.testing.assert_close(descent.best, place.detach())
    for _ in range(100):
        descent.tell(*rosenbrock(descent.trial))
    torch.testing.assert_close(descent.best, torch.ones_like(start), atol=1e-5, rtol=0)
