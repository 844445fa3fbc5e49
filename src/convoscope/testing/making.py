"""What metrics that make maps anew have to obey: methods that know nothing, or everything, and harmless changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from convoscope.core.probe import Probe
from convoscope.evaluation import Case, Metric
from convoscope.evaluation.nulls import edges
from convoscope.method import Method, explain, method_of
from convoscope.network import Network
from convoscope.targets import Logit
from convoscope.testing.cases import IMAGES, SIDE, Blocks, same, with_maps
from convoscope.testing.untouched import unchanged


class Given(Method, abstract=True):
    """A method that gives a known function of the picture, whatever the network and the target."""

    title, unit = "Given", "activation"
    kind_of: Annotated[str, "edges, sharp, zeros or ones"] = "edges"
    times: Annotated[float, "a factor of the map"] = 1.0

    def attribute(self, probe: Probe, x: Tensor) -> Tensor:
        made = {
            "edges": lambda: edges(x)[:, None].to(x),
            "sharp": lambda: (1e4 * x.sum(1, keepdim=True)).sin(),
            "zeros": lambda: torch.zeros_like(x),
            "ones": lambda: torch.ones_like(x),
        }[self.kind_of]()
        return made * self.times

    def evaluations(self, x: Tensor) -> int:
        return 0


def made_of(case: Case, *methods: Method | str, **changes: Any) -> Case:
    """The case with the maps of these methods."""
    x, target = changes.get("x", case.x), changes.get("target", case.target)
    chosen = [method_of(m) for m in methods]
    maps = torch.stack([explain(case.network, x, m, target, seed=case.seed).heatmap().double() for m in chosen])
    made = with_maps(case, maps, **changes)
    made.methods = tuple(chosen)
    return made


def _knows_steady_from_sharp(metric: Metric, case: Case) -> None:
    scores = metric.score(made_of(case, "gradient", Given("sharp")))
    if metric.family == "robustness":
        assert (scores[0].abs() <= 1e-6).all(), f"the gradient of a linear network never changes; got {scores[0].tolist()}"
        assert (scores[1] > 0.1).all(), f"a map that changes with anything: {scores[1].tolist()}"


def _knows_what_ignores_the_network(metric: Metric, case: Case) -> None:
    if metric.family != "randomization":
        return
    network = Network(Blocks(case.network.channels, SIDE), size=SIDE, channels=case.network.channels)
    scores = metric.score(made_of(replace(case, network=network, memo={}), "gradient", Given("edges")))
    same(scores[1], torch.full_like(scores[1], metric.still), "an edge detector stays the same")
    known = (scores[0] - metric.still) * metric.direction
    assert (known > 0.1).all(), f"the gradient knows the network; got {scores[0].tolist()}"


def _constant_made_maps_have_no_score(metric: Metric, case: Case) -> None:
    scores = metric.score(made_of(case, Given("zeros"), Given("ones")))
    assert scores.isnan().all(), f"maps that are constant: {scores.tolist()}"


def _made_alone_or_together(metric: Metric, case: Case) -> None:
    methods = ("gradient", "input-x-gradient")
    whole = metric.score(made_of(case, *methods))
    for size in (1, 64):
        same(metric.score(made_of(case, *methods, batch_size=size)), whole, f"batch size {size}")
    for m, method in enumerate(methods):
        same(metric.score(made_of(case, method))[0], whole[m], f"method {m} alone")
    if "classes" in metric.needs:  # they need each other
        return
    for i in range(IMAGES):
        alone = metric.score(made_of(case, *methods, x=case.x[i : i + 1], truth=None, places=(case.places[i],)))
        same(alone[:, 0], whole[:, i], f"image {i} alone")


def _made_at_any_scale(metric: Metric, case: Case) -> None:
    if metric.scale_free:
        scores = [metric.score(made_of(case, Given("sharp", factor))) for factor in (1.0, 1e-6, 1e6)]
        for other in scores[1:]:
            same(other, scores[0], "maps times a factor")


def _made_without_a_trace(metric: Metric, case: Case) -> None:
    made = made_of(case, "gradient")
    with unchanged(case.network.module, case.x, "after a metric"):
        metric.score(made)


def _made_within_its_range(metric: Metric, case: Case) -> None:
    scores = metric.score(made_of(case, "gradient", "input-x-gradient", Given("sharp", 1e30)))
    low, high = metric.range
    assert scores.isfinite().all(), f"scores that are not finite: {scores.tolist()}"
    assert ((scores >= low - 1e-9) & (scores <= high + 1e-9)).all(), f"scores outside {low:g} to {high:g}: {scores.tolist()}"


# ---------------------------------------------------------------- the laws of montages
class Opposite(Method, abstract=True):
    """The gradient with the other sign."""

    title, unit = "Opposite", "activation"

    def attribute(self, probe: Probe, x: Tensor) -> Tensor:
        return -probe.grad(x)

    def evaluations(self, x: Tensor) -> int:
        return 1


def _knows_the_right_picture(metric: Metric, case: Case) -> None:
    scores = metric.score(made_of(case, "gradient", "input-x-gradient", Given("sharp"), Opposite()))
    assert scores.shape == (4, len(case.x)), f"scores of shape {tuple(scores.shape)}; expected (methods, images)"
    same(scores[:2], torch.ones_like(scores[:2]), "methods that look at the right picture alone")
    assert (scores[2] < 0.6).all(), f"a map that looks everywhere: {scores[2].tolist()}"
    assert not (scores[3] > 0).any(), f"a map that looks nowhere: {scores[3].tolist()}"


def _needs_other_classes(metric: Metric, case: Case) -> None:
    few = metric.score(made_of(case, "gradient", x=case.x[:3], target=Logit((0, 1, 2)), places=(0, 1, 2)))
    assert few.isnan().all(), f"three classes fill no montage of four: {few.tolist()}"
    wrong = metric.score(made_of(case, "gradient", target=Logit((1, *case.target.index[1:]))))  # type: ignore[attr-defined]
    assert wrong[0, 0].isnan(), f"the first image is of another class than its target; got {wrong[0, 0]}"


MAKING_LAWS: dict[str, Callable[[Metric, Case], None]] = {
    law.__name__.strip("_").replace("_", " "): law
    for law in (
        _knows_steady_from_sharp, _knows_what_ignores_the_network, _constant_made_maps_have_no_score, _made_alone_or_together,
        _made_at_any_scale, _made_without_a_trace, _made_within_its_range,
    )
}  # fmt: skip
GRID_LAWS: dict[str, Callable[[Metric, Case], None]] = {
    law.__name__.strip("_").replace("_", " "): law
    for law in (
        _knows_the_right_picture, _needs_other_classes, _constant_made_maps_have_no_score, _made_alone_or_together,
        _made_at_any_scale, _made_without_a_trace, _made_within_its_range,
    )
}  # fmt: skip
