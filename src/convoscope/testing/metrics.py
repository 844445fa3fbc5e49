"""What every metric has to pass: a case with a known answer, its opposite, maps that say nothing, and harmless changes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from convoscope.core.probe import Probe
from convoscope.core.spec import Spec, fields_of
from convoscope.evaluation import Case, Metric
from convoscope.evaluation.base import seeded
from convoscope.evaluation.evaluate import metric_of
from convoscope.evaluation.nulls import edges, noise
from convoscope.method import Method, explain, method_of
from convoscope.network import Network
from convoscope.targets import Logit
from convoscope.testing.untouched import unchanged

IMAGES, SIDE, NULLS = 3, 12, 24
CLOSE = 1e-9


METRIC_EXCEPTIONS = {
    ("completeness", "knows the truth"): "a sum does not know where its parts are",
    ("non-sensitivity", "knows the opposite"): "it asks whether there is relevance, not of which sign",
}


class Linear(nn.Module):
    """Two classes, the second the sum of each pixel times its weight: all that a map can say of it is known."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weights).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def oracle(channels: int = 1, images: int = IMAGES, side: int = SIDE) -> tuple[Case, Tensor]:
    """A case of a linear network on pictures of a bright object, and the one true map of each image from a baseline of zeros.

    The weights are positive on an object, negative around it and zero at the bottom, the true map is weight times input, the
    truth the object.
    """
    g = torch.Generator().manual_seed(5)
    truth = torch.zeros(images, side, side, dtype=torch.bool)
    weights = torch.zeros(channels, side, side, dtype=torch.float64)
    truth[:, side // 4 : side // 4 * 3, side // 3 : side // 3 * 2] = True
    weights[:, truth[0]] = torch.rand(channels, int(truth[0].sum()), generator=g, dtype=torch.float64) + 0.5
    weights[:, ~truth[0]] = -1.0  # the ground speaks against,
    weights[:, -side // 6 :] = 0  # but for the lowest rows, which say nothing
    x = 0.05 + 0.1 * torch.rand(images, channels, side, side, generator=g, dtype=torch.float64)
    x += 0.7 * truth[:, None]
    share = (x * weights.clamp(min=0)).sum() / (x * weights.clamp(max=0)).sum().abs()
    weights = torch.where(weights < 0, 0.7 * share * weights, weights)
    weights *= 3 / (x * weights).sum((1, 2, 3)).mean()
    exact = (x * weights).sum(1)
    network = Network(Linear(weights), size=side, channels=channels, name="linear")
    case = Case(network, x, Logit(1), exact[None], ("exact",), truth=truth, batch_size=7)
    return case, exact


def _with(case: Case, maps: Tensor, **changes: object) -> Case:
    settings: dict = {
        "network": case.network, "x": case.x, "target": case.target, "truth": case.truth, "places": case.places,
        "seed": case.seed, "batch_size": case.batch_size, **changes,
    }  # fmt: skip
    return Case(maps=maps, names=tuple(map(str, range(len(maps)))), **settings)


def _shuffled(maps: Tensor, number: int) -> Tensor:
    """The same values at other places, for each image in its own way."""
    flat = maps.flatten(1)
    orders = [torch.randperm(flat.shape[1], generator=seeded(9, "shuffled", number, i)) for i in range(len(flat))]
    return torch.stack([row[order] for row, order in zip(flat, orders, strict=True)]).view_as(maps)


def _better(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    return (a - b) * metric.direction


def _surpasses(metric: Metric, scores: Tensor) -> bool:
    """Whether the first method is better than the second for each image; no score is worse than any."""
    other = torch.nan_to_num(scores[1], nan=-torch.inf * metric.direction)
    return bool((_better(metric, scores[0], other) > 0).all())


# ---------------------------------------------------------------- the laws
def _knows_the_truth(metric: Metric, case: Case, exact: Tensor) -> None:
    if metric.blind:
        return _knows_the_simple(metric, case, exact)
    nulls = torch.stack([_shuffled(exact, k) for k in range(NULLS)])
    scores = metric.score(_with(case, torch.cat([exact[None], nulls])))
    assert scores.shape == (NULLS + 1, IMAGES), f"scores of shape {tuple(scores.shape)}; expected (methods, images)"
    assert not scores[0].isnan().any(), "the exact map has no score"
    worse = _better(metric, scores[:1].mean(-1), scores[1:].mean(-1))
    assert (worse > 0).all(), f"{int((worse <= 0).sum())} of {NULLS} shuffled maps are judged at least as good as the exact one"


def _knows_the_simple(metric: Metric, case: Case, exact: Tensor) -> None:
    """What looks at the values alone: their places and their sign do not matter, fewer of them are simpler."""
    one, two = torch.zeros_like(exact), torch.zeros_like(exact)
    one[:, 3, 4] = two[:, 3, 4] = two[:, 7, 7] = 1
    scores = metric.score(_with(case, torch.stack([one, two, exact, _shuffled(exact, 1), -exact])))
    _same(scores[3], scores[2], "shuffled")
    _same(scores[4], scores[2], "negated")
    assert _surpasses(metric, scores[:2]), f"one pixel {scores[0].tolist()}, two {scores[1].tolist()}"
    assert _surpasses(metric, scores[1:3]), f"two pixels {scores[1].tolist()}, many {scores[2].tolist()}"


def _knows_the_opposite(metric: Metric, case: Case, exact: Tensor) -> None:
    if metric.blind:
        return
    scores = metric.score(_with(case, torch.stack([exact, -exact])))
    assert _surpasses(metric, scores), f"the exact map {scores[0].tolist()}, its negative {scores[1].tolist()}"


def _constant_maps_are_not_best(metric: Metric, case: Case, exact: Tensor) -> None:
    for value in (0.0, 1.0):
        scores = metric.score(_with(case, torch.stack([exact, torch.full_like(exact, value)])))
        assert _surpasses(metric, scores), f"a map of {value:g} {scores[1].tolist()}, the exact one {scores[0].tolist()}"


def _batch_mates_do_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    whole = metric.score(_with(case, maps))
    strange = maps.clone()
    strange[:, 0] *= 100
    after = metric.score(_with(case, strange))
    _same(after[:, 1:], whole[:, 1:], "another image's map was scaled")
    for i in range(IMAGES):
        truth = None if case.truth is None else case.truth[i : i + 1]
        alone = metric.score(_with(case, maps[:, i : i + 1], x=case.x[i : i + 1], truth=truth, places=(case.places[i],)))
        _same(alone[:, 0], whole[:, i], f"image {i} alone")
    for m in range(2):
        _same(metric.score(_with(case, maps[m : m + 1]))[0], whole[m], f"method {m} alone")


def _batch_size_does_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    scores = [metric.score(_with(case, exact[None], batch_size=size)) for size in (1, 7, 64)]
    for other in scores[1:]:
        _same(other, scores[0], "another batch size")


def _scale_does_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    if not metric.scale_free:
        return
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    whole = metric.score(_with(case, maps))
    for factor in (1e-6, 3.0, 1e6):
        _same(metric.score(_with(case, maps * factor)), whole, f"maps times {factor:g}")


def _same_seed_same_score(metric: Metric, case: Case, exact: Tensor) -> None:
    a, b = (metric.score(_with(case, exact[None])) for _ in range(2))
    assert torch.equal(a, b), "the same seed gave other scores"


def _nothing_is_changed(metric: Metric, case: Case, exact: Tensor) -> None:
    maps, before = exact[None].clone(), exact[None].clone()
    with unchanged(case.network.module, case.x, "after a metric"):
        metric.score(_with(case, maps))
    assert torch.equal(maps, before), "the metric changed the maps it was given"


def _within_its_range(metric: Metric, case: Case, exact: Tensor) -> None:
    maps = torch.stack([exact, -exact, torch.zeros_like(exact), noise(case.x, case.places, 9) - 0.5, exact * 1e30])
    scores = metric.score(_with(case, maps))
    low, high = metric.range
    known = scores[~scores.isnan()]
    assert known.isfinite().all(), f"scores that are not finite: {scores.tolist()}"
    assert ((known >= low - 1e-9) & (known <= high + 1e-9)).all(), f"scores outside {low:g} to {high:g}: {scores.tolist()}"


def _is_described(metric: Metric, case: Case, exact: Tensor) -> None:
    assert Spec.from_dict(metric.to_dict()) == metric, "the metric does not come back from its own description"
    for name in ("title", "family", "unit", "use", "drawback"):
        assert getattr(metric, name, ""), f"the metric has no {name}"
    assert type(metric).__doc__, "the metric has no docstring"
    assert metric.passes(case) >= 0


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    both = torch.isnan(found) & torch.isnan(expected)
    error = torch.where(both, 0, (found - expected).abs() / expected.abs().clamp(min=1))
    assert (error <= CLOSE).all(), f"{what}: {found.tolist()}, not {expected.tolist()}"


# ---------------------------------------------------------------- the laws of metrics that make maps anew
class _Given(Method, abstract=True):
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


def _made(case: Case, *methods: Method | str, **changes: Any) -> Case:
    """The case with the maps of these methods."""
    x = changes.get("x", case.x)
    chosen = [method_of(m) for m in methods]
    maps = torch.stack([explain(case.network, x, m, case.target, seed=case.seed).heatmap().double() for m in chosen])
    made = _with(case, maps, **changes)
    made.methods = tuple(chosen)
    return made


def _knows_steady_from_sharp(metric: Metric, case: Case) -> None:
    scores = metric.score(_made(case, "gradient", _Given("sharp")))
    if metric.family == "robustness":
        assert (scores[0].abs() <= 1e-6).all(), f"the gradient of a linear network never changes; got {scores[0].tolist()}"
        assert (scores[1] > 0.1).all(), f"a map that changes with anything: {scores[1].tolist()}"


def _knows_what_ignores_the_network(metric: Metric, case: Case) -> None:
    if metric.family != "randomization":
        return
    scores = metric.score(_made(case, "gradient", _Given("edges")))
    assert torch.allclose(scores[1], torch.ones_like(scores[1])), f"an edge detector stays the same; got {scores[1].tolist()}"
    assert (scores[0] < 0.9).all(), f"the gradient knows the network; got {scores[0].tolist()}"


def _constant_made_maps_have_no_score(metric: Metric, case: Case) -> None:
    scores = metric.score(_made(case, _Given("zeros"), _Given("ones")))
    assert scores.isnan().all(), f"maps that are constant: {scores.tolist()}"


def _made_alone_or_together(metric: Metric, case: Case) -> None:
    methods = ("gradient", "input-x-gradient")
    whole = metric.score(_made(case, *methods))
    for size in (1, 64):
        _same(metric.score(_made(case, *methods, batch_size=size)), whole, f"batch size {size}")
    for m, method in enumerate(methods):
        _same(metric.score(_made(case, method))[0], whole[m], f"method {m} alone")
    for i in range(IMAGES):
        alone = metric.score(_made(case, *methods, x=case.x[i : i + 1], truth=None, places=(case.places[i],)))
        _same(alone[:, 0], whole[:, i], f"image {i} alone")


def _made_at_any_scale(metric: Metric, case: Case) -> None:
    if metric.scale_free:
        scores = [metric.score(_made(case, _Given("sharp", factor))) for factor in (1.0, 1e-6, 1e6)]
        for other in scores[1:]:
            _same(other, scores[0], "maps times a factor")


def _made_without_a_trace(metric: Metric, case: Case) -> None:
    made = _made(case, "gradient")
    with unchanged(case.network.module, case.x, "after a metric"):
        metric.score(made)


def _made_within_its_range(metric: Metric, case: Case) -> None:
    scores = metric.score(_made(case, "gradient", "input-x-gradient", _Given("sharp", 1e30)))
    low, high = metric.range
    assert scores.isfinite().all(), f"scores that are not finite: {scores.tolist()}"
    assert ((scores >= low - 1e-9) & (scores <= high + 1e-9)).all(), f"scores outside {low:g} to {high:g}: {scores.tolist()}"


MAKING_LAWS: dict[str, Callable[[Metric, Case], None]] = {
    law.__name__.strip("_").replace("_", " "): law
    for law in (
        _knows_steady_from_sharp, _knows_what_ignores_the_network, _constant_made_maps_have_no_score, _made_alone_or_together,
        _made_at_any_scale, _made_without_a_trace, _made_within_its_range,
    )
}  # fmt: skip
METRIC_LAWS: dict[str, Callable[[Metric, Case, Tensor], None]] = {
    law.__name__.strip("_").replace("_", " "): law
    for law in (
        _knows_the_truth, _knows_the_opposite, _constant_maps_are_not_best, _batch_mates_do_not_matter,
        _batch_size_does_not_matter, _scale_does_not_matter, _same_seed_same_score, _nothing_is_changed, _within_its_range,
        _is_described,
    )
}  # fmt: skip


def _on_zeros(metric: Metric) -> Metric:
    """The metric with the baseline, the target and the share of the picture of which the answer is known."""
    known = {"fill": 0.0, "baseline": 0.0, "of": "target", "tolerance": 0, "shares": (0.2,)}
    return replace(metric, **{f.name: known[f.name] for f in fields_of(type(metric)) if f.name in known})


def check_metric(metric: Metric | str) -> None:
    """Raises AssertionError naming the law that a metric breaks, on cases of which the answer is known."""
    metric = _on_zeros(metric_of(metric))
    for channels in (1, 3):
        case, exact = oracle(channels)
        laws: dict[str, Callable[[], None]] = {n: partial(law, metric, case, exact) for n, law in METRIC_LAWS.items()}
        if "methods" in metric.needs:
            laws = {n: partial(law, metric, case) for n, law in MAKING_LAWS.items()}
            laws["is described"] = partial(_is_described, metric, case, exact)
        for name, law in laws.items():
            if (metric.name, name) in METRIC_EXCEPTIONS:
                continue
            try:
                law()
            except AssertionError as error:
                raise AssertionError(f"{metric.name}, {channels} channels: {name}: {error}") from error
