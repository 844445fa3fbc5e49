"""The benchmark measures what it says: ratios within rounds, verdicts, and one name for a line everywhere."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import convoscope as cs

sys.path.append(str(Path(__file__).resolve().parents[2]))
timing = pytest.importorskip("benchmarks.timing", reason="the benchmarks are not part of this installation")


def case(ours: list[float], peers: dict[str, list[float]], **settings: object) -> object:
    made = timing.Case("line", "network", lambda: None, {}, len(ours), **settings)
    made.seconds, made.units = {timing.OURS: ours, **peers}, [1.0] * len(ours)
    return made


def test_ratios_are_of_one_round() -> None:
    """A machine that is twice as slow in one round is so for all."""
    made = case([1.0, 2.0, 1.0], {"captum": [3.0, 6.0, 3.0]})
    assert made.ratio("captum") == 3.0
    assert made.passes() == 1.0


@pytest.mark.parametrize(
    ("seconds", "settings", "verdict"),
    [
        (1.2, {}, "met"), (0.97, {}, "equal"), (0.9, {}, "missed"), (3.0, {"least": 4.0}, "missed"),
        (4.0, {"least": 4.0}, "met"),
        (0.5, {"than": ("zennit",)}, ""), (5.0, {"than": ("captum",), "least": 5.0}, "met"),
    ],
)  # fmt: skip
def test_verdicts(seconds: float, settings: dict[str, object], verdict: str) -> None:
    assert case([1.0], {"captum": [seconds]}, **settings).verdict() == verdict


def test_a_goal_without_a_name_is_meant_for_every_peer() -> None:
    assert case([1.0], {"captum": [2.0], "zennit": [0.5]}).verdict() == "missed"


def test_measuring() -> None:
    """What raises is noted and left out, the rest runs in turns once a round and once before."""
    order: list[str] = []

    def run(name: str) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            if name == "zennit":
                raise TypeError("no such argument")

        return call

    made = timing.Case("line", "network", run("unit"), {n: run(n) for n in (timing.OURS, "captum", "zennit")}, 2)
    timing.measure(made, lambda _: None)
    assert order[:4] == ["unit", timing.OURS, "captum", "zennit"]
    assert order[4:] == ["unit", timing.OURS, "captum", "unit", "unit", "captum", timing.OURS, "unit"]
    assert made.failed == {"zennit": "TypeError: no such argument"}
    assert made.peers == ["captum"]
    assert "zennit fails (TypeError: no such argument)" in timing.table([made])


def test_lines_have_one_name(torchvision: object) -> None:
    """Every library's run belongs to a line, and every line has a run of ours."""
    lines = pytest.importorskip("benchmarks.lines")
    bench, _ = lines.benches("resnet18", 1, 32, True)
    names = {line.name for line in lines.LINES}
    for library, make in lines.LIBRARIES.items():
        if library in ("shap", "lime"):
            continue  # seconds to import
        try:
            found = make(bench.copy())
        except ModuleNotFoundError:
            continue
        assert found.keys() <= names, library
        if library == timing.OURS:
            assert found.keys() == names


def test_steps_to_converge(torchvision: object) -> None:
    """On a linear network one step suffices."""
    pytest.importorskip("captum")
    lines, networks = pytest.importorskip("benchmarks.lines"), pytest.importorskip("benchmarks.networks")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)).eval()
    bench = networks.Bench("linear", module, networks.pictures(1, 32), 3)
    steps, error = lines.steps_to_converge(bench, "riemann_trapezoid", 8, images=2)
    assert steps == 1
    assert error == pytest.approx(1 / 8, rel=1e-3)
    assert cs.IntegratedGradients().steps >= 1
