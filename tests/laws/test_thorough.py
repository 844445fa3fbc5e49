"""The costly laws bite, other processes answer, and `check_method` takes networks of your own and says what to do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.method import Method
from convoscope.testing import FAULTS, LAWS, check_method, small, zoo
from convoscope.testing.checking import report, verdicts_of
from convoscope.testing.laws_process import _compare
from convoscope.testing.laws_trial import NotTried, Trial
from convoscope.testing.own import own
from convoscope.testing.workers import Reply, answers


class Base(Method, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x)

    def evaluations(self, x: Tensor) -> int:
        return 1


class GoesByDefaults(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) * torch.ones(x.shape)


class RoundsAsTheDefault(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x).to(torch.get_default_dtype()).to(x)


class TakesOneThread(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        torch.set_num_threads(1)
        return probe.grad(x)


class CountsThreads(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) * torch.get_num_threads()


class KeepsNumbers(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        KEPT.extend([float(k) for k in range(100, 150)])
        return probe.grad(x)


class KeepsMaps(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        KEPT.append(probe.grad(x))
        return KEPT[-1]


KEPT: list[Any] = []


class DrawsEachTime(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        KEPT.append(1)
        return probe.grad(x) * len(KEPT)


class DropsHooks(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        values = probe.grad(x)
        for m in probe.session.module.modules():
            m._forward_hooks.clear()
        return values


class SwallowsErrorsOfLayers(Base, abstract=True):
    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        try:
            return probe.grad(x)
        except BaseException:
            return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (GoesByDefaults, "works with other defaults"),
        (RoundsAsTheDefault, "works with other defaults"),
        (TakesOneThread, "gives the same numbers with two threads"),
        (CountsThreads, "gives the same numbers with two threads"),
        (DrawsEachTime, "only reads arrays"),
        (KeepsNumbers, "leaves nothing after many calls"),
        (KeepsMaps, "leaves nothing after many calls"),
        (DropsHooks, "leaves the network untouched when a layer raises"),
        (SwallowsErrorsOfLayers, "leaves the network untouched when a layer raises"),
    ],
)
def test_a_broken_method_breaks_the_law(method: type[Method], law: str) -> None:
    honest = Trial(Base(), zoo()["linear"], thorough=True)
    LAWS[law](honest)
    with pytest.raises((AssertionError, RuntimeError)):
        LAWS[law](Trial(method(), zoo()["linear"], thorough=True))


def test_answers_of_other_processes_are_compared() -> None:
    trial = Trial(small("gradient"), zoo()["linear"])
    last_bit = trial.reference.clone()
    last_bit[0, 0, 0, 0] *= 1 + 2.0**-52
    _compare(trial, Reply("right", values=trial.reference), "there", exact=True)
    _compare(trial, Reply("right", values=last_bit), "there")
    _compare(trial, Reply("refused", "for a reason that is said in a line"), "there")
    _compare(trial, Reply("not made", "no such form"), "there")
    assert trial.cases == {"right": 2, "refused": 1, "not made": 1}
    for wrong, exact in (
        (Reply("right", values=last_bit), True), (Reply("right", values=2 * last_bit), False), (Reply("crashed", "no"), False),
        (Reply("refused", "no"), False), (Reply("refused", "for a reason that is said in a line"), True),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="there: "):
            _compare(trial, wrong, "there", exact=exact)


def test_two_processes_share_a_network() -> None:
    trial = Trial(small("gradient"), zoo()["in-place-relu"])
    LAWS["follows networks that processes share"](trial)
    assert trial.cases == {"right": 4}  # two forms, two processes
    (one, two) = answers("fully sharded", small("lrp"), zoo()["in-place-relu"])
    assert one.how == two.how == "refused"  # the wrapper is a function of its own
    assert "rules would miss it" in one.what


def test_what_another_process_cannot_make_is_not_tried() -> None:
    class Local(Base, abstract=True):
        pass

    Local.__module__ = "__main__"
    with pytest.raises(NotTried, match="put it into a file and import it"):
        answers("alone", Local(), zoo()["linear"])
    with pytest.raises(NotTried, match="give a function of a module that builds it"):
        answers("alone", small("gradient"), own(mine()))


def mine() -> cs.Network:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return cs.Network(module, (6, 7), channels=2, name="mine")


def test_networks_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    check_method("gradient", [mine])
    assert capsys.readouterr().out == "gradient keeps all laws on 1 network\n"
    known = own(mine), own(mine()), own(mine().module)
    assert [h.name for h in known] == ["mine", "mine", "Sequential"]
    assert [h.source.split(":")[-1] for h in known] == ["mine", "", ""]
    assert [h.images(2).shape for h in known] == [(2, 2, 6, 7), (2, 2, 6, 7), (2, 2, 32, 32)]
    assert {h.classes for h in known} == {4}
    with pytest.raises(cs.UsageError, match=r"no network 'resnet' in the zoo; it has functional-relu, .* or give a network"):
        check_method("gradient", ["resnet"])
    with pytest.raises(cs.UsageError, match="at least two classes"):
        check_method("gradient", [nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())])


class MixesImages(Base, abstract=True):
    """One image at a time is all it knows."""

    def attribute(self, probe: Any, x: Tensor) -> Tensor:
        return probe.grad(x) - x.mean(0)


def test_a_broken_law_names_fault_method_network_and_what_to_do() -> None:
    broken = [str(v) for v in verdicts_of(MixesImages(), own(mine()), thorough=False) if v.broken]
    said = next(line for line in broken if "'keeps images apart'" in line)
    assert said.startswith("MixesImages on 'mine' breaks the law 'keeps images apart': other images beside it: differs by ")
    assert said.endswith(" (F14: reduce over (1, 2, 3), never over the first axis)")
    with pytest.raises(AssertionError, match=r"MixesImages on 'linear' breaks the law 'takes any batch size'.*\(F13: draw"):
        check_method(MixesImages, ["linear"])


def test_every_law_looks_for_a_fault_or_for_a_promise() -> None:
    known = {law for fault in FAULTS.values() for law in fault.laws}
    assert known <= LAWS.keys()
    assert LAWS.keys() - known == {
        "is complete", "is exact on linear networks", "tells targets apart", "survives json", "counts its evaluations",
        "is documented",
    }  # fmt: skip
    assert list(FAULTS) == [f"F{k}" for k in (*range(1, 17), 34, 35, 36)]
    lines = report(verdicts_of(small("gradient"), zoo()["linear"])).splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)
