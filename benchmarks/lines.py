"""The lines of the table: on which networks, in how many rounds, and what is to be reached."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

import convoscope as cs

from . import ours, peers_cams, peers_gradients, peers_pictures
from .networks import Bench, network, pictures
from .timing import OURS, Case, Run

ALL, SMALL, RESNET = ("resnet18", "squeezenet1_1", "vgg16"), ("resnet18", "squeezenet1_1"), ("resnet18",)
LIBRARIES: dict[str, Callable[[Bench], dict[str, Run]]] = {
    OURS: ours.runs, "captum": peers_gradients.captum, "zennit": peers_gradients.zennit, "grad-cam": peers_cams.grad_cam,
    "torchcam": peers_cams.torchcam, "shap": peers_pictures.shap, "lime": peers_pictures.lime,
    "saliency": peers_pictures.saliency,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line: its networks, the most rounds it gets, how many times faster ours is to be (by network), and than whom."""

    name: str
    networks: tuple[str, ...] = SMALL
    rounds: int = 99
    least: float | dict[str, float] = 1.0
    than: tuple[str, ...] = ()
    note: str = ""


LINES = (
    Line("gradient", ALL),
    Line("input x gradient"),
    Line("guided backprop", ALL),
    Line("deconvnet"),
    Line("smooth-grad"),
    Line("integrated gradients", ALL, 3),
    Line("expected gradients", rounds=3),
    Line("conductance", rounds=3),
    Line("conductance, several layers", rounds=3),
    Line("internal influence", rounds=3),
    Line("deep-lift", ("squeezenet1_1", "vgg16", "resnet18"), note="captum's sums are wrong on SqueezeNet and VGG"),
    Line("deep-lift-shap", ("squeezenet1_1",), 5),
    Line("lrp epsilon", ALL),
    Line("lrp epsilon-plus", ALL, least=1 / 0.6, than=("zennit",)),
    Line("lrp epsilon-gamma-box", ALL),
    Line("lrp epsilon-alpha2beta1", ALL),
    Line("excitation backprop", ALL),
    Line("grad-cam", ALL),
    Line("grad-cam++", note="torchcam's lacks the denominator"),
    Line("xgrad-cam"),
    Line("hires-cam"),
    Line("layer-cam"),
    Line("eigen-cam"),
    Line("eigen-grad-cam"),
    Line("shapley-cam"),
    Line("finer-cam"),
    Line("eight cams", RESNET, least=15.0, than=("grad-cam",), note="in one call, beside eight calls"),
    Line("smooth grad-cam++", rounds=5),
    Line("guided grad-cam"),
    Line("full-grad", rounds=3),
    Line("ablation-cam", RESNET, 2, 200.0, ("grad-cam",)),
    Line("score-cam", RESNET, 2),
    Line("occlusion", ALL, 2, {"vgg16": 8.0, "squeezenet1_1": 2.7, "resnet18": 2.2}, ("captum",)),
    Line("rise", SMALL, 3),
    Line("lime", SMALL, 3),
    Line("kernel-shap", SMALL, 3),
    Line("feature ablation", SMALL, 3),
    Line("shapley sampling", SMALL, 3),
    Line("partition-shap", SMALL, 3),
    Line("guided ig", SMALL, 3),
    Line("blur ig", SMALL, 3),
    Line("xrai", RESNET, 2),
)


def matching(words: list[str], networks: list[str]) -> list[tuple[Line, str]]:
    """The lines whose names begin with one of the words, each with a network of `networks`."""
    chosen = [line for line in LINES if not words or any(line.name.startswith(w) for w in words)]
    return [(line, name) for name in networks for line in chosen if name in line.networks]


def benches(name: str, batch: int, size: int, quick: bool) -> tuple[Bench, str]:
    module, weights = network(name)
    x = pictures(batch, size)
    with torch.no_grad():
        target = int(module(x[:1]).argmax())
    small = {"steps": 4, "samples": 2, "masks": 20} if quick else {}
    return Bench(name, module, x, target, **small), weights  # type: ignore[arg-type]


def cases(bench: Bench, lines: list[Line], repeats: int, without: list[str]) -> list[Case]:
    """The cases of one network; every library has a copy of its own, since some change it."""
    made: dict[str, dict[str, Run]] = {}
    for library, make in LIBRARIES.items():
        if library not in without:
            try:
                made[library] = make(bench.copy())
            except ModuleNotFoundError as error:
                print(f"without {library}: {error}", file=sys.stderr)
    found = []
    for line in lines:
        runs = {library: calls[line.name] for library, calls in made.items() if line.name in calls}
        least = line.least[bench.name] if isinstance(line.least, dict) else line.least
        rounds, warm = min(repeats, line.rounds), line.rounds > 2
        found.append(Case(line.name, bench.name, bench.unit, runs, rounds, warm, least, line.than, line.note))
    return [case for case in found if case.runs]


STEPS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)


def steps_to_converge(
    bench: Bench, rule: str, theirs: int = 64, images: int = 8, **settings: bool
) -> tuple[int, float]:
    """The fewest of `STEPS` with which our median completeness error is at most that of captum's steps, and that error.

    `settings` are those of our integrated gradients. The error is relative to the change of the target from the black picture;
    the median is over pictures.
    """
    from captum import attr

    x, start, target, errors = pictures(images, bench.x.shape[-1]), bench.start, bench.target, []
    with torch.no_grad():
        change = (bench.module(x) - bench.module(start))[:, target]
    for k in range(images):
        _, gap = attr.IntegratedGradients(bench.module).attribute(
            x[k : k + 1].clone(), start, target=target, n_steps=theirs, method=rule, internal_batch_size=bench.rows,
            return_convergence_delta=True,
        )  # fmt: skip
        errors.append(abs(float(gap) / float(change[k])))
    goal, net = statistics.median(errors), bench.network()
    for steps in STEPS:
        key = ("gap", steps, *settings)
        if key not in bench.best:
            method = cs.IntegratedGradients(steps=steps, baseline=start, **settings)  # type: ignore[arg-type]
            found = cs.explain(net, x, method, target, batch_size=bench.rows)
            bench.best[key] = statistics.median(found.diagnostics["completeness gap relative"])
        if bench.best[key] <= goal:
            return steps, goal
    return STEPS[-1] + 1, goal
