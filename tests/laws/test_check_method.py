"""The laws bite: each of these methods breaks one."""

import random
import threading
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

from convoscope.core.errors import ConvoscopeError, UnsupportedError
from convoscope.core.spec import About
from convoscope.method import Method
from convoscope.testing import LAWS, check_on, small, zoo
from convoscope.testing.laws_trial import Trial


class Base(Method, abstract=True):
    """A method that keeps every law it can without being registered."""

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x)

    def evaluations(self, x: Tensor) -> int:
        return 1


class WrongShape(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x).sum(1)


class WrongType(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x).double()


class GlobalNoise(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x + torch.rand_like(x))


class PythonNoise(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        random.random()
        return probe.grad(x)


class Steady(Base, abstract=True):
    stochastic = True


class MixesImages(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) - x.mean(0)


class Trains(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        next(probe.session.module.parameters()).data.add_(0.1)
        return probe.grad(x)


class LeavesGradients(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        for p in probe.session.module.parameters():
            p.grad = None
        return probe.grad(x)


class LeavesAHook(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        first = next(m for m in probe.session.module.modules() if isinstance(m, nn.Conv2d))
        handle = first.register_forward_hook(lambda m, a, o: o)
        values = probe.grad(x)
        handle.remove()
        return values


class Swallows(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        try:
            return probe.grad(x)
        except Exception:
            return torch.zeros_like(x)


class Incomplete(Base, abstract=True):
    complete = True


class IgnoresTheTarget(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        probe.grad(x)
        return x


class NeedsTwo(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        probe.score(x)
        return probe.grad(x)


class SharedState(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        weight = next(probe.session.module.parameters())
        weight.data.mul_(2)
        values = probe.grad(x)
        weight.data.div_(2)
        return values * float(probe.session.target.index == 1)


class Keeps(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        KEPT.append(probe.grad(x))
        return KEPT[-1]


KEPT: list[Tensor] = []
EIGHT = threading.Barrier(8)


class DividesByTheLargest(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        found = probe.grad(x) * x
        return found / found.abs().amax((1, 2, 3), keepdim=True)


class GoesAroundTheProbe(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(probe.session.module(leaf.clone())[:, 1].sum(), leaf)[0]


class NeedsRows(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) * (x[:, :, 1:2] - x[:, :, :1])[..., :1]


class CountsRectifiers(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) * sum(isinstance(m, nn.ReLU) for m in probe.session.module.modules())


class SwallowsEverything(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        try:
            return probe.grad(x)
        except BaseException:
            return torch.zeros_like(x)


class LooksElsewhere(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        KEPT[:] = [torch.tensor(probe.session.target.index)]
        if threading.current_thread() is not threading.main_thread():
            EIGHT.wait(120)  # until each of the law's threads has left its own
        return probe.grad(x) * KEPT[0]


class WritesToItsSettings(Base, abstract=True):
    baseline: Annotated[Any, "where it starts"] = 0.0

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        if isinstance(self.baseline, Tensor):
            self.baseline.add_(1)
        return probe.grad(x)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (Keeps, "leaves nothing in memory"),
        (DividesByTheLargest, "survives extreme values"),
        (GoesAroundTheProbe, "halves batches where memory ends"),
        (GoesAroundTheProbe, "refuses bad calls with the reason"),
        (Swallows, "refuses bad calls with the reason"),
        (NeedsRows, "takes any size"),
        (WrongType, "takes any float"),
        (MixesImages, "keeps images apart"),
        (LooksElsewhere, "works in eight threads"),
        (CountsRectifiers, "gives what its plain twin gives"),
        (CountsRectifiers, "takes other forms or refuses"),
        (SwallowsEverything, "leaves the network untouched when a callback raises"),
        (WritesToItsSettings, "leaves tensors in its settings alone"),
        (WrongShape, "keeps shape dtype device"),
        (WrongType, "keeps shape dtype device"),
        (GlobalNoise, "repeats with a seed"),
        (GlobalNoise, "leaves the network untouched"),
        (PythonNoise, "leaves the network untouched"),
        (Steady, "repeats with a seed"),
        (MixesImages, "takes any batch size"),
        (Trains, "leaves the network untouched"),
        (LeavesGradients, "leaves the network untouched"),
        (LeavesAHook, "leaves the network untouched when interrupted"),
        (SharedState, "leaves the network untouched when interrupted"),
        (Swallows, "leaves the network untouched when interrupted"),
        (Incomplete, "is complete"),
        (Incomplete, "is exact on linear networks"),
        (IgnoresTheTarget, "tells targets apart"),
        (NeedsTwo, "counts its evaluations"),
        (WrongShape, "is documented"),
    ],
)
def test_a_broken_method_breaks_the_law(method: type[Method], law: str) -> None:
    networks = ("linear",) if "linear" in law else ("shared-relu",) if "twin" in law else ("in-place-relu", "skip-in-place")
    for network in getattr(LAWS[law], "networks", networks):
        with pytest.raises((AssertionError, RuntimeError, ConvoscopeError)):
            LAWS[law](Trial(method(), zoo()[network]))


def test_an_honest_one_keeps_them() -> None:
    for network in ("in-place-relu", "skip"):
        trial = Trial(Base(), zoo()[network])
        for law, check in LAWS.items():
            if law not in ("survives json", "is documented") and network in getattr(check, "networks", (network,)):
                check(trial)


def test_the_message_names_law_method_and_network() -> None:
    with pytest.raises(AssertionError, match=r"on 'skip' breaks the law 'takes any batch size': batch_size=1: differs"):
        check_on(MixesImages(), zoo()["skip"])


def test_exceptions_that_hold_no_more_fail() -> None:
    gradient = small("gradient")
    with pytest.raises(AssertionError, match="strike it"):
        check_on(gradient, zoo()["skip"], {("gradient", "skip", "is documented"): "it was not"})
    with pytest.raises(AssertionError, match="strike it"):
        check_on(gradient, zoo()["skip"], {("gradient", "*", "refuses the network"): "it did"})


def test_refusing_is_allowed_with_a_reason() -> None:
    class Refuses(Base, abstract=True):
        def attribute(self, probe: Any, x: Tensor) -> Tensor:
            raise UnsupportedError(self.reason())

        def reason(self) -> str:
            return "this method needs a network with spectral norm, and this one has none"

    class Sulks(Refuses, abstract=True):
        def reason(self) -> str:
            return "no"

    assert "spectral" in check_on(Refuses(), zoo()["skip"])
    with pytest.raises(AssertionError, match="without saying"):
        check_on(Sulks(), zoo()["skip"])


class Unfounded(Base, abstract=True):
    """Documented, without a paper."""

    about = About("decision", "nothing", "1 forward + 1 backward", "all", "none")


def test_a_paper_is_wanted() -> None:
    with pytest.raises(AssertionError, match="no paper"):
        LAWS["is documented"](Trial(Unfounded(), zoo()["skip"]))


def test_public_door(capsys: pytest.CaptureFixture[str]) -> None:
    import convoscope

    convoscope.testing.check_method("gradient", ["skip", "linear"])
    convoscope.testing.check_method("guided-backprop", ["linear", "functional-relu"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gradient keeps all laws on 2 networks"
    assert said[1].startswith("guided-backprop keeps all laws on 1 network; refuses linear: ")
    with pytest.raises(AssertionError, match=r"(?s)on 'linear' breaks .*\n.*on 'one-channel' breaks .*\(2 of 2 networks\)"):
        convoscope.testing.check_method(IgnoresTheTarget, ["linear", "one-channel"])
    convoscope.testing.check_method(convoscope.SmoothGrad(samples=2), ["skip"])
    with pytest.raises(AssertionError, match="tells targets apart"):
        convoscope.testing.check_method(IgnoresTheTarget, ["skip"])
