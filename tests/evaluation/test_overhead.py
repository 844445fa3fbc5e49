"""What an evaluation costs beside the forward passes it asks for; `python -m benchmarks.evaluation` measures the time."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.evaluation.evaluate import evaluate

STEPS, COUNT = 8, 20
SWEEPS = (f"deletion:steps={STEPS}", f"insertion:steps={STEPS}")
METRICS = (*SWEEPS, f"faithfulness-correlation:count={COUNT}", f"infidelity:count={COUNT}")


def network(width: int = 48) -> cs.Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return cs.Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval(), size=48)


def case(images: int, methods: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, 48, 48, generator=g)
    return x, {str(k): torch.rand(images, 48, 48, generator=g) for k in range(methods)}


@pytest.mark.parametrize(("images", "methods"), [(1, 1), (3, 4), (10, 2)])
def test_no_pass_is_asked_for_twice(images, methods) -> None:
    x, maps = case(images, methods)
    found = evaluate(network(4), x, [], METRICS, 1, maps=maps, nulls=())
    ends = 2 + 1 + 1  # clean as a probability and as a logit, black and blurred
    assert found.passes == images * (ends + 2 * methods * (STEPS - 1) + 2 * COUNT)
    assert found.explained == 0


def test_batches_are_full() -> None:
    (x, maps), done = case(3, 4), [0]
    evaluate(network(4), x, [], METRICS, 1, maps=maps, nulls=(), batch_size=8, progress=lambda n, most: done.append(n))
    sizes = [b - a for a, b in itertools.pairwise(done)]
    per_metric = [3 * 4 * (STEPS - 1)] * 2 + [3 * COUNT] * 2
    assert sizes.count(8) == sum(n // 8 for n in per_metric)
    assert len(sizes) == sum(-(-n // 8) for n in per_metric) + 4


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_overhead import case, network
from convoscope.evaluation.evaluate import evaluate
import threading

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

net, (x, _) = network(4), case(24, 0)
maps = {str(k): torch.rand(24, 48, 48) for k in range(120)}
evaluate(net, x[:1], [], ["deletion:steps=1"], 1, maps={"0": maps["0"]}, nulls=())
for memory in ("16MB", None):
    before, most, stop = resident(), [0], threading.Event()
    def look():
        while not stop.wait(0.002):
            most[0] = max(most[0], resident())
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    evaluate(net, x, [], ["deletion:steps=1"], 1, maps=maps, nulls=(), memory=memory)
    stop.set(), thread.join()
    print(most[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not say how much memory a process has")
def test_memory_stays_within_the_bound() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    bounded, free = map(int, done.stdout.split())
    assert bounded <= 16e6
    assert free > bounded + 8e6  # or nothing was bounded


def alike() -> cs.Case:
    """Three maps of three pictures, of which two rank the pixels alike."""
    x, maps = case(3, 1)
    one = maps["0"].double()
    maps = torch.stack([one, 2 * one + 1, -one])
    return cs.Case(network(4), x, cs.Logit(1), maps, ("one", "two", "other"), batch_size=8)


@pytest.mark.parametrize(
    ("metric", "rows", "ends"),
    [
        ("deletion:steps=8", 7, 2), ("insertion:steps=8", 7, 2), ("morf:steps=8", 7, 2), ("lerf:steps=8", 7, 2),
        ("effective-complexity:steps=8", 7, 2), ("comprehensiveness", 5, 1), ("sufficiency", 5, 1),
        ("region-perturbation:cells=2,regions=3", 3, 1), ("road:shares=(0.2,0.5,0.6)", 6, 0), ("sic:shares=(0.1,0.2)", 4, 0),
    ],
)  # fmt: skip
def test_maps_that_rank_alike_are_run_once_in_full_batches(metric, rows, ends) -> None:
    c, sizes = alike(), []
    c.progress = sizes.append
    scores = cs.evaluation.evaluate.metric_of(metric).score(c)
    assert torch.equal(scores[0].nan_to_num(9), scores[1].nan_to_num(9))
    assert c.passes == sum(sizes) == 3 * (2 * rows + ends)
    if metric.partition(":")[0] not in ("road", "sic"):  # whose pictures take long to make
        assert sizes.count(8) == 3 * 2 * rows // 8
        assert len(sizes) == ends + -(-3 * 2 * rows // 8)


def test_what_metrics_have_in_common_is_run_once() -> None:
    c = alike()
    shown = {"fill": "blur", "steps": 8}
    first = [cs.evaluation.Deletion(8), cs.evaluation.Insertion(8), cs.evaluation.Infidelity(20)]
    for metric in first:
        metric.score(c)
    before = c.passes
    for metric in (
        *first, cs.evaluation.MoRF(8), cs.evaluation.LeRF(**shown), cs.evaluation.EffectiveComplexity(**shown),
        cs.evaluation.Infidelity(20, scale="none"), cs.evaluation.Completeness("blur", "probability"),
    ):  # fmt: skip
        metric.score(c)
    assert c.passes == before
