"""What every metric has to pass: a case with a known answer, its opposite, maps that say nothing, and harmless changes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from convoscope.core.spec import Spec, fields_of
from convoscope.evaluation import Case, Metric
from convoscope.evaluation.base import seeded
from convoscope.evaluation.evaluate import metric_of
from convoscope.evaluation.nulls import noise, permutations
from convoscope.network import Network
from convoscope.testing.cases import IMAGES, SIDE, Linear, levels, oracle, same, with_maps
from convoscope.testing.making import GRID_LAWS, MAKING_LAWS
from convoscope.testing.untouched import unchanged

NULLS = 24
SHUFFLES, NOISES = 19, 6
METRIC_EXCEPTIONS = {
    ("completeness", "knows the truth"): "a sum does not know where its parts are",
    ("completeness", "permutations find the truth"): "a sum does not know where its parts are",
    ("non-sensitivity", "knows the opposite"): "it asks whether there is relevance, not of which sign",
    ("sic", "channels have no order"): "files store colors, not channels",
    ("aic", "channels have no order"): "files store colors, not channels",
    ("irof", "channels have no order"): "superpixels are cut by color",
    ("road", "channels have no order"): "its noise is drawn channel by channel",
}


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
    scores = metric.score(with_maps(case, torch.cat([exact[None], nulls])))
    assert scores.shape == (NULLS + 1, IMAGES), f"scores of shape {tuple(scores.shape)}; expected (methods, images)"
    assert not scores[0].isnan().any(), "the exact map has no score"
    worse = _better(metric, scores[:1].mean(-1), scores[1:].mean(-1))
    assert (worse > 0).all(), f"{int((worse <= 0).sum())} of {NULLS} shuffled maps are judged at least as good as the exact one"


def _knows_the_simple(metric: Metric, case: Case, exact: Tensor) -> None:
    """What looks at the values alone: their places and their sign do not matter, fewer of them are simpler."""
    one, two = torch.zeros_like(exact), torch.zeros_like(exact)
    one[:, 3, 4] = two[:, 3, 4] = two[:, 7, 7] = 1
    scores = metric.score(with_maps(case, torch.stack([one, two, exact, _shuffled(exact, 1), -exact])))
    same(scores[3], scores[2], "shuffled")
    same(scores[4], scores[2], "negated")
    assert _surpasses(metric, scores[:2]), f"one pixel {scores[0].tolist()}, two {scores[1].tolist()}"
    assert _surpasses(metric, scores[1:3]), f"two pixels {scores[1].tolist()}, many {scores[2].tolist()}"


def _knows_the_opposite(metric: Metric, case: Case, exact: Tensor) -> None:
    if metric.blind:
        return
    scores = metric.score(with_maps(case, torch.stack([exact, -exact])))
    assert _surpasses(metric, scores), f"the exact map {scores[0].tolist()}, its negative {scores[1].tolist()}"


def _constant_maps_are_not_best(metric: Metric, case: Case, exact: Tensor) -> None:
    for value in (0.0, 1.0):
        scores = metric.score(with_maps(case, torch.stack([exact, torch.full_like(exact, value)])))
        assert _surpasses(metric, scores), f"a map of {value:g} {scores[1].tolist()}, the exact one {scores[0].tolist()}"


def _batch_mates_do_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    whole = metric.score(with_maps(case, maps))
    strange = maps.clone()
    strange[:, 0] *= 100
    after = metric.score(with_maps(case, strange))
    same(after[:, 1:], whole[:, 1:], "another image's map was scaled")
    for i in range(IMAGES):
        truth = None if case.truth is None else case.truth[i : i + 1]
        alone = metric.score(with_maps(case, maps[:, i : i + 1], x=case.x[i : i + 1], truth=truth, places=(case.places[i],)))
        same(alone[:, 0], whole[:, i], f"image {i} alone")
    for m in range(2):
        same(metric.score(with_maps(case, maps[m : m + 1]))[0], whole[m], f"method {m} alone")


def _batch_size_does_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    scores = [metric.score(with_maps(case, exact[None], batch_size=size)) for size in (1, 7, 64)]
    for other in scores[1:]:
        same(other, scores[0], "another batch size")


def _scale_does_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    if not metric.scale_free:
        return
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    whole = metric.score(with_maps(case, maps))
    for factor in (1e-6, 3.0, 1e6):
        same(metric.score(with_maps(case, maps * factor)), whole, f"maps times {factor:g}")


def _same_seed_same_score(metric: Metric, case: Case, exact: Tensor) -> None:
    a, b = (metric.score(with_maps(case, exact[None])) for _ in range(2))
    assert torch.equal(a, b), "the same seed gave other scores"


def _nothing_is_changed(metric: Metric, case: Case, exact: Tensor) -> None:
    maps, before = exact[None].clone(), exact[None].clone()
    with unchanged(case.network.module, case.x, "after a metric"):
        metric.score(with_maps(case, maps))
    assert torch.equal(maps, before), "the metric changed the maps it was given"


def _within_its_range(metric: Metric, case: Case, exact: Tensor) -> None:
    maps = torch.stack([exact, -exact, torch.zeros_like(exact), noise(case.x, case.places, 9) - 0.5, exact * 1e30])
    scores = metric.score(with_maps(case, maps))
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


def _images_have_no_order(metric: Metric, case: Case, exact: Tensor) -> None:
    order = [2, 0, 1]
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    truth = None if case.truth is None else case.truth[order]
    moved = with_maps(case, maps[:, order], x=case.x[order], truth=truth, places=tuple(case.places[i] for i in order))
    same(metric.score(moved), metric.score(with_maps(case, maps))[:, order], "images in another order")


def _other_images_do_not_matter(metric: Metric, case: Case, exact: Tensor) -> None:
    more = case.x.flip(0, 2) * 1.1
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    truth = None if case.truth is None else torch.cat([case.truth, case.truth.flip(2)])
    padded = with_maps(
        case, torch.cat([maps, 5 * maps.flip(0)], 1), x=torch.cat([case.x, more]), truth=truth,
        places=(*case.places, *(p + IMAGES for p in case.places)),
    )  # fmt: skip
    same(metric.score(padded)[:, :IMAGES], metric.score(with_maps(case, maps)), "more images in the batch")


def _channels_have_no_order(metric: Metric, case: Case, exact: Tensor) -> None:
    """The network and the pictures with their channels the other way round are the same, and so are the maps."""
    network = Network(Linear(case.network.module.weights.detach().flip(0)), size=SIDE, channels=case.network.channels)
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    turned = metric.score(with_maps(case, maps, x=case.x.flip(1), network=network))
    same(turned, metric.score(with_maps(case, maps)), "channels in another order")


def _float32_is_enough(metric: Metric, case: Case, exact: Tensor) -> None:
    network = Network(Linear(case.network.module.weights.detach().float()), size=SIDE, channels=case.network.channels)
    maps = torch.stack([exact, noise(case.x, case.places, 9)])
    found = metric.score(with_maps(case, maps, x=case.x.float(), network=network))
    same(found, metric.score(with_maps(case, maps)), "in float32", 1e-4)


def _permutations_find_the_truth(metric: Metric, case: Case, exact: Tensor) -> None:
    """The exact map beside itself with its values at other places; where places do not matter, all shuffles are as good."""
    found = permutations(metric, with_maps(case, exact[None]), SHUFFLES)
    if metric.blind:
        assert (found.p == 1).all(), f"it does not look at places, and p is {found.p.tolist()}"
        return
    as_good = _better(metric, found.shuffled.mean(-1), found.score.mean(-1)) >= 0
    p = (1 + int(as_good.sum())) / (1 + SHUFFLES)
    assert p <= 2 / (1 + SHUFFLES), f"the exact map has p = {p:g} beside {SHUFFLES} shuffles of itself"


def _permutations_find_nothing_in_noise(metric: Metric, case: Case, exact: Tensor) -> None:
    """Of random maps a share q at most has p <= q, and shuffles are as often better as worse, both up to four deviations."""
    if metric.blind:
        return
    maps = torch.stack([noise(case.x, case.places, 9, k) - 0.5 for k in range(NOISES)])
    found = permutations(metric, with_maps(case, maps), SHUFFLES)
    p = found.p[~found.p.isnan()]
    for q in (0.1, 0.25, 0.5):
        share, most = float((p <= q).double().mean()), q + 4 * (q * (1 - q) / len(p)) ** 0.5
        assert share <= most, f"{share:.0%} of random maps have p <= {q:g}: {p.tolist()}"
    gap = _better(metric, found.score, found.shuffled)
    place = ((gap > 0).double().mean(0) - (gap < 0).double().mean(0))[~found.p.isnan()]
    off = float(place.mean())
    assert abs(off) <= 4 / (3 * len(place)) ** 0.5, f"random maps surpass {(1 + off) / 2:.0%} of their shuffles, not a half"


METRIC_LAWS: dict[str, Callable[[Metric, Case, Tensor], None]] = {
    law.__name__.strip("_").replace("_", " "): law
    for law in (
        _knows_the_truth, _knows_the_opposite, _constant_maps_are_not_best, _batch_mates_do_not_matter,
        _batch_size_does_not_matter, _images_have_no_order, _other_images_do_not_matter, _channels_have_no_order,
        _float32_is_enough, _scale_does_not_matter, _same_seed_same_score, _nothing_is_changed, _within_its_range,
        _is_described, _permutations_find_the_truth, _permutations_find_nothing_in_noise,
    )
}  # fmt: skip


def _on_zeros(metric: Metric) -> Metric:
    """The metric with the baseline, the target and the share of the picture of which the answer is known."""
    few = min(2, getattr(metric, "smooth", 2))
    known = {"fill": 0.0, "baseline": 0.0, "of": "target", "tolerance": 0, "shares": (0.2,), "smooth": few}
    return replace(metric, **{f.name: known[f.name] for f in fields_of(type(metric)) if f.name in known})


def check_metric(metric: Metric | str) -> None:
    """Raises AssertionError naming the law that a metric breaks, on cases of which the answer is known."""
    metric = _on_zeros(metric_of(metric))
    for channels in (1, 3):
        case, exact = oracle(channels)
        laws: dict[str, Callable[[], None]] = {n: partial(law, metric, case, exact) for n, law in METRIC_LAWS.items()}
        if "methods" in metric.needs:
            table, made = (GRID_LAWS, levels(channels)) if "classes" in metric.needs else (MAKING_LAWS, case)
            laws = {n: partial(law, metric, made) for n, law in table.items()}
            laws["is described"] = partial(_is_described, metric, case, exact)
        for name, law in laws.items():
            if (metric.name, name) in METRIC_EXCEPTIONS or (channels > 1 and name.startswith("permutations")):
                continue
            try:
                law()
            except AssertionError as error:
                raise AssertionError(f"{metric.name}, {channels} channels: {name}: {error}") from error
