"""Every metric beside its definition, written plainly: a network with batch norm, mean and std, on pictures not square,
with settings that are not the default ones."""

import itertools
import math

import pytest
import torch
from plain import (
    HEIGHT,
    PIXELS,
    PLACES,
    SEED,
    STD,
    TARGETS,
    TENSOR,
    WIDTH,
    answer,
    area,
    case,
    correlation,
    curve,
    every,
    fill,
    network,
    ordered,
    said_and_lost,
    subset,
    without,
)
from plain import alike as spearman
from torch import Tensor, nn

import convoscope as cs
from convoscope import evaluation as e
from convoscope.evaluation.base import seeded

OF = ("probability", "target")


def close(found: Tensor, expected: Tensor, at: float = 1e-9) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=at, equal_nan=True)


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "mean", "black", "white", 0.3))))
def test_removal(of, which) -> None:
    c = case()
    most = {(m, i): curve(c, m, i, 7, which, of) for m in range(2) for i in range(3)}
    least = {(m, i): curve(c, m, i, 7, which, of, most=False) for m in range(2) for i in range(3)}
    settings = {"steps": 7, "fill": which, "of": of}
    assert close(e.Deletion(**settings).score(c), every(c, lambda m, i: area(most[m, i])))
    assert close(e.Insertion(**settings).score(c), every(c, lambda m, i: area(least[m, i])))
    assert close(e.MoRF(**settings).score(c), every(c, lambda m, i: most[m, i][0] - sum(most[m, i]) / 8))
    assert close(e.LeRF(**settings).score(c), every(c, lambda m, i: least[m, i][0] - sum(least[m, i]) / 8))

    def enough(m: int, i: int) -> float:
        shown = least[m, i][::-1]
        rise = shown[-1] - shown[0]
        kept = [(v - shown[0]) / rise >= 0.6 for v in shown]
        return next(k for k in range(8) if all(kept[k:])) / 7

    assert close(e.EffectiveComplexity(keep=0.6, **settings).score(c), every(c, enough))


def test_one_step_and_too_many() -> None:
    c = case()
    ends = every(c, lambda m, i: (answer(c, c.x[i], i, "target") + answer(c, fill(c.x[i], "white"), i, "target")) / 2)
    assert close(e.Deletion(steps=1, fill="white", of="target").score(c), ends)
    assert close(e.Deletion(steps=PIXELS, fill="white", of="target").score(c),
                 every(c, lambda m, i: area(curve(c, m, i, PIXELS, "white", "target"))))  # fmt: skip
    with pytest.raises(cs.ConvoscopeError, match=f"steps is {PIXELS + 1}; expected 1 to the number of pixels, {PIXELS}"):
        e.Deletion(steps=PIXELS + 1).score(c)


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "mean"))))
def test_shares(of, which) -> None:
    c, shares = case(), (0.001, 0.1, 0.45)

    def left(m: int, i: int, keep: bool) -> float:
        order, base, total = ordered(c.maps[m, i]), fill(c.x[i], which), 0.0
        for share in shares:
            count = max(1, round(share * PIXELS))
            total += answer(c, without(c.x[i], base, order[count:] if keep else order[:count]), i, of)
        return answer(c, c.x[i], i, of) - total / len(shares)

    assert close(e.Comprehensiveness(shares, which, of).score(c), every(c, lambda m, i: left(m, i, keep=False)))
    assert close(e.Sufficiency(shares, which, of).score(c), every(c, lambda m, i: left(m, i, keep=True)))


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "white"))))
def test_seen_through_the_map(of, which) -> None:
    c = case()
    c.maps[1, 2] = 1.5  # constant: explains nothing

    def seen(m: int, i: int) -> tuple[float, float]:
        mask, base = c.maps[m, i].clamp(min=0), fill(c.x[i], which)
        mask = mask / mask.max()
        return answer(c, c.x[i], i, of), answer(c, mask * c.x[i] + (1 - mask) * base, i, of)

    def drop(m: int, i: int) -> float:
        clean, shown = seen(m, i)
        return max(0.0, clean - shown) / clean if clean > 0 and (m, i) != (1, 2) else math.nan

    def rises(m: int, i: int) -> float:
        clean, shown = seen(m, i)
        return float(shown > clean) if (m, i) != (1, 2) else math.nan

    assert close(e.AverageDrop(which, of).score(c), every(c, drop))
    assert close(e.IncreaseInConfidence(which, of).score(c), every(c, rises))


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "mean"))))
def test_subsets(of, which) -> None:
    c = case()

    def correlated(m: int, i: int, share: float, count: int) -> float:
        return correlation(*said_and_lost(c, m, i, max(1, round(share * PIXELS)), count, "pixels", which, of))

    assert close(e.FaithfulnessCorrelation(9, 0.1, which, of).score(c), every(c, lambda m, i: correlated(m, i, 0.1, 9)))
    both = every(c, lambda m, i: (correlated(m, i, 0.001, 5) + correlated(m, i, 0.5, 5)) / 2)
    assert close(e.SensitivityN(5, (0.001, 0.5), which, of).score(c), both)
    for shape in ("square", "pixels"):
        size = round(0.17 * PIXELS)

        def plain(m: int, i: int, shape: str = shape, size: int = size) -> float:
            said, lost = said_and_lost(c, m, i, size, 6, shape, which, of)
            return float((said - lost).square().mean())

        def scaled(m: int, i: int, shape: str = shape, size: int = size) -> float:
            said, lost = said_and_lost(c, m, i, size, 6, shape, which, of)
            tries = torch.linspace(0, 4, 400001, dtype=torch.float64) * lost.abs().max() / said.abs().max()
            return float(((lost.square().mean() - 2 * tries * (said * lost).mean() + tries**2 * said.square().mean())
                          / lost.square().mean()).min())  # fmt: skip

        settings = {"count": 6, "share": 0.17, "shape": shape, "fill": which, "of": of}
        assert close(e.Infidelity(scale="none", **settings).score(c), every(c, plain))
        assert close(e.Infidelity(scale="optimal", **settings).score(c), every(c, scaled), 1e-6)


def test_subsets_have_to_fit() -> None:
    with pytest.raises(cs.ConvoscopeError, match=f"a subset of {2 * PIXELS} pixels; expected 1 to {PIXELS}"):
        e.FaithfulnessCorrelation(share=2.0).score(case())


def test_nothing_to_lose_and_nothing_said() -> None:
    c = case()
    c.maps[0] = 0
    assert e.FaithfulnessCorrelation(count=5).score(c)[0].isnan().all()
    assert close(e.Infidelity(count=5).score(c)[0], torch.ones(3).double())  # no better than a map of zeros
    same = cs.Case(c.network, fill(c.x[0], "black").expand(3, -1, -1, -1), c.target, c.maps, c.names)
    assert e.Infidelity(count=5, fill="black").score(same).isnan().all()


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "mean"))))
def test_regions(of, which) -> None:
    from skimage.segmentation import slic

    c = case()

    def fall(m: int, i: int, labels: list[int], most: int) -> float:
        base, values = fill(c.x[i], which), c.maps[m, i].flatten().tolist()
        parts: dict[int, list[int]] = {}
        for pixel, label in enumerate(labels):
            parts.setdefault(label, []).append(pixel)
        order = sorted(parts, key=lambda k: (-sum(values[p] for p in parts[k]) / len(parts[k]), k))
        gone: list[int] = []
        found = [0.0]
        for label in order[:most]:
            gone += parts[label]
            found.append(answer(c, c.x[i], i, of) - answer(c, without(c.x[i], base, gone), i, of))
        return sum(found) / len(found)

    grid = [(p // WIDTH) * 4 // HEIGHT * 4 + (p % WIDTH) * 4 // WIDTH for p in range(PIXELS)]
    for most in (5, 99):
        found = e.RegionPerturbation(4, most, which, of).score(c)
        assert close(found, every(c, lambda m, i, most=most: fall(m, i, grid, most)))
    pictures = c.network.picture(c.x).permute(0, 2, 3, 1).double().numpy()
    cut = [slic(p, n_segments=8, start_label=0).flatten().tolist() for p in pictures]
    assert close(e.IROF(8, which, of).score(c), every(c, lambda m, i: fall(m, i, cut[i], 99)))


@pytest.mark.parametrize("of", OF)
def test_road(of) -> None:
    from test_imputation import solved

    c, shares = case(), (0.2, 0.5)

    def left(m: int, i: int, most: bool) -> float:
        drawn = torch.randn(3, HEIGHT, WIDTH, generator=seeded(SEED, "road", PLACES[i])).double()
        noise = drawn * 0.1 / torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
        order, total = ordered(c.maps[m, i]), 0.0
        order = order if most else order[::-1]
        for share in shares:
            gone = torch.zeros(PIXELS, dtype=torch.bool)
            gone[order[: round(share * PIXELS)]] = True
            gone = gone.view(HEIGHT, WIDTH)
            picture = torch.stack([torch.from_numpy(solved(p.numpy(), gone.numpy())) for p in c.x[i]])
            total += answer(c, torch.where(gone, picture + noise, c.x[i]), i, of)
        return total / len(shares)

    expected = every(c, lambda m, i: left(m, i, most=False) - left(m, i, most=True))
    assert close(e.ROAD(shares, 0.1, of).score(c), expected, 1e-4)


def test_localization() -> None:
    c = case()
    share = [float(t.double().mean()) for t in c.truth]

    def top(m: int, i: int, count: int) -> float:
        """How many of the most relevant pixels lie on the object, ties in expectation."""
        values, truth = c.maps[m, i].flatten(), c.truth[i].flatten()
        edge = values.sort(descending=True).values[count - 1]
        above, at = values > edge, values == edge
        return float(truth[above].sum() + (count - above.sum()) * truth[at].double().mean())

    def energy(m: int, i: int) -> float:
        positive = c.maps[m, i].clamp(min=0)
        return float(positive[c.truth[i]].sum() / positive.sum())

    inside = [int(t.sum()) for t in c.truth]
    assert close(e.RankAccuracy().score(c), every(c, lambda m, i: top(m, i, inside[i]) / inside[i]))
    for part, count in ((0.001, 1), (0.1, 10), (5.0, PIXELS)):
        assert close(e.TopK(part).score(c), every(c, lambda m, i, count=count: top(m, i, count) / count))
    assert e.TopK(5.0).score(c)[0].tolist() == pytest.approx(share)
    assert close(e.EnergyPointing().score(c), every(c, energy))
    for radius in (0, 1, 2):

        def hits(m: int, i: int, radius: int = radius) -> float:
            best = (c.maps[m, i] == c.maps[m, i].max()).nonzero().tolist()
            near = [any((a - r) ** 2 + (b - q) ** 2 <= radius**2 for a, b in c.truth[i].nonzero().tolist()) for r, q in best]
            return sum(near) / len(best)

        assert close(e.PointingGame(radius).score(c), every(c, hits))
    nothing = cs.Case(c.network, c.x, c.target, -c.maps.abs() - 1, c.names, truth=c.truth)
    assert e.EnergyPointing().score(nothing).isnan().all()


def test_complexity() -> None:
    c = case()

    def gini(m: int, i: int) -> float:
        values = c.maps[m, i].abs().flatten()
        return float((values[:, None] - values).abs().sum() / (2 * PIXELS * values.sum()))

    def entropy(m: int, i: int) -> float:
        shares = (c.maps[m, i].abs() / c.maps[m, i].abs().sum()).flatten().tolist()
        return -sum(p * math.log(p) for p in shares if p)

    assert close(e.Gini().score(c), every(c, gini))
    assert close(e.Entropy().score(c), every(c, entropy))
    c.maps[0] = 0
    assert e.Gini().score(c)[0].isnan().all()
    assert e.Entropy().score(c)[0].isnan().all()


@pytest.mark.parametrize(("of", "which"), list(itertools.product(OF, (TENSOR, "black"))))
def test_axioms_of_maps(of, which) -> None:
    c = case()

    def gap(m: int, i: int) -> float:
        gain = answer(c, c.x[i], i, of) - answer(c, fill(c.x[i], which), i, of)
        whole = float(c.maps[m, i].sum())
        return abs(whole - gain) / max(abs(whole), abs(gain))

    assert close(e.Completeness(which, of).score(c), every(c, gap))
    labels = [(p // WIDTH) * 5 // HEIGHT * 5 + (p % WIDTH) * 5 // WIDTH for p in range(PIXELS)]
    c.maps[0, :, :4, :5] = 0
    c.maps[1, 1] = 2.0
    c.x[:, :, 5:] = fill(c.x[0], TENSOR)[:, 5:] if which is TENSOR else fill(c.x[0], which)[:, 5:]  # without effect
    c.memo.clear()

    def disagree(m: int, i: int) -> float:
        if (m, i) == (1, 1):
            return math.nan
        parts = [[p for p in range(PIXELS) if labels[p] == k] for k in sorted(set(labels))]
        base, clean = fill(c.x[i], which), answer(c, c.x[i], i, of)
        effect = [abs(clean - answer(c, without(c.x[i], base, part), i, of)) for part in parts]
        said = [float(c.maps[m, i].abs().flatten()[part].sum()) for part in parts]
        flags = [(a > 1e-3 * max(effect)) != (b > 1e-3 * max(said)) for a, b in zip(effect, said, strict=True)]
        return sum(flags) / len(flags)

    found = e.NonSensitivity(5, which, of).score(c)
    assert close(found, every(c, disagree))
    assert (found[0] > 0).all()


# ---------------------------------------------------------------- metrics that make maps anew
def made(*methods: object, **changes: object) -> cs.Case:
    from convoscope.testing.making import made_of

    return made_of(case(**changes), *methods)


class Ramp(cs.Method, abstract=True):
    """The picture brighter to the right: not what a mirror does."""

    title, unit = "Ramp", "activation"

    def attribute(self, probe, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) * torch.arange(1.0, x.shape[-1] + 1)

    def evaluations(self, x: Tensor) -> int:
        return 0


def test_axioms_of_methods() -> None:
    c = made("input-x-gradient", "gradient", Ramp())
    shift = (0.5 / torch.tensor(STD, dtype=torch.float64)).view(1, 3, 1, 1)
    gradient = cs.explain(c.network, c.x, "gradient", c.target).values
    moved = ((c.x + 0.5 * 1 / torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)) * gradient).sum(1)
    ramp = torch.arange(1, WIDTH + 1).double()
    found = e.InputInvariance(shift=0.5).score(c)
    assert close(found[0], torch.tensor([spearman(a, b) for a, b in zip(c.maps[0], moved, strict=True)], dtype=torch.float64))
    assert close(found[1], torch.ones(3).double())
    bright = ((c.x + shift).mean(1)) * ramp
    assert close(found[2], torch.tensor([spearman(a, b) for a, b in zip(c.maps[2], bright, strict=True)], dtype=torch.float64))
    found = e.Symmetry().score(c)
    assert close(found[:2], torch.ones(2, 3).double())
    turned = c.x.mean(1) * ramp.flip(0)
    assert close(found[2], torch.tensor([spearman(a, b) for a, b in zip(c.maps[2], turned, strict=True)], dtype=torch.float64))


def test_symmetry_of_a_network_with_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.inner(x), "b": -self.inner(x)}

    c = made("input-x-gradient")
    c.network = cs.Network(Two(c.network.module), output="b", channels=3, mean=c.network.mean, std=c.network.std)
    c.memo.clear()
    assert close(e.Symmetry().score(c), torch.ones(1, 3).double())
    assert e.InputInvariance().score(c).isfinite().all()


def test_robustness() -> None:
    c = made("input-x-gradient", "gradient")
    black, white = (fill(c.x[0], w)[None] for w in ("black", "white"))
    count, radius = 3, 0.1
    pictures = []
    for k in range(count):
        drawn = torch.stack([torch.rand(3, HEIGHT, WIDTH, generator=seeded(SEED, "change", k, p)) for p in PLACES]).double()
        noise = (2 * drawn - 1) * radius / torch.tensor(STD, dtype=torch.float64).view(1, 3, 1, 1)
        pictures.append((c.x + noise).clamp(black, white))
    maps = [[cs.explain(c.network, p, m, c.target).heatmap() for p in pictures] for m in c.methods]

    def norms(m: int, i: int) -> list[float]:
        return [float((after[i] - c.maps[m, i]).norm()) for after in maps[m]]

    def relative(a: Tensor, b: Tensor) -> float:
        floor = 1e-3 * float(a.abs().max())
        terms = [((y - x) / max(abs(x), floor)) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        return math.sqrt(sum(terms))

    def ratio(m: int, i: int, of) -> float:
        return max(relative(c.maps[m, i], maps[m][k][i]) / relative(of(c.x)[i], of(pictures[k])[i]) for k in range(count))

    def by_the_answer(m: int, i: int) -> float:
        answers = [module(x).detach()[i] for x in (c.x, *pictures)]
        return max(relative(c.maps[m, i], maps[m][k][i]) / float((answers[k + 1] - answers[0]).norm()) for k in range(count))

    module = c.network.module
    first = lambda x: module[:5](x).detach()  # noqa: E731
    assert close(e.MaxSensitivity(count, radius).score(c), every(c, lambda m, i: max(norms(m, i)) / c.maps[m, i].norm()))
    assert close(e.AverageSensitivity(count, radius).score(c),
                 every(c, lambda m, i: sum(norms(m, i)) / count / c.maps[m, i].norm()))  # fmt: skip
    assert close(e.LocalLipschitz(count, radius).score(c), every(
        c, lambda m, i: max(n / float((p[i] - c.x[i]).norm()) for n, p in zip(norms(m, i), pictures, strict=True))
    ))  # fmt: skip
    assert close(e.RelativeInputStability(count, radius).score(c), every(c, lambda m, i: ratio(m, i, lambda x: x)), 1e-7)
    assert close(e.RelativeOutputStability(count, radius).score(c),
                 every(c, by_the_answer), 1e-7)  # fmt: skip
    assert close(e.RelativeRepresentationStability(count, radius, layer="4").score(c),
                 every(c, lambda m, i: ratio(m, i, first)), 1e-7)  # fmt: skip
    last = e.RelativeRepresentationStability(count, radius).score(c)  # the last spatial tensor: the pooled one
    assert close(last, every(c, lambda m, i: ratio(m, i, lambda x: module[:6](x).detach())), 1e-7)


def test_robustness_keeps_pixels_that_were_out_of_range() -> None:
    from convoscope.evaluation.robustness import changed

    c = case()
    c.x[0, 0, 0, 0], c.x[0, 0, 0, 1] = 99.0, -99.0
    found = changed(c, 4, 0.01)[:, 0, 0, 0]
    assert (found[:, 0] <= 99).all()
    assert (found[:, 1] >= -99).all()
    assert ((found[:, 0] - 99).abs() <= 0.01 / STD[0] + 1e-9).all()


@pytest.mark.parametrize("order", ["top-down", "bottom-up", "once"])
def test_parameter_randomization(order) -> None:
    c = made("input-x-gradient")
    twin = network()
    layers = [("0", ("weight", "bias")), ("2", ("weight", "bias")), ("3", ("weight", "bias")), ("7", ("weight", "bias"))]
    found = []
    for name, own in layers if order == "bottom-up" else layers[::-1]:
        part = twin.module.get_submodule(name)
        for parameter in own:
            values = getattr(part, parameter).data
            places = torch.randperm(values.numel(), generator=seeded(SEED, "weights", name, parameter))
            values.copy_(values.flatten()[places].view_as(values))
        maps = cs.explain(twin, c.x, "input-x-gradient", c.target).heatmap()
        found.append([spearman(a, b) for a, b in zip(c.maps[0], maps, strict=True)])
    expected = torch.tensor(found[-1:] if order == "once" else found, dtype=torch.float64)
    assert close(e.ParameterRandomization(order).curve(c), expected)
    assert close(e.ParameterRandomization(order).score(c)[0], expected.mean(0))


def test_random_logit() -> None:
    c = made("input-x-gradient", "gradient")
    others = []
    for place, own in zip(PLACES, TARGETS, strict=True):
        drawn = int(torch.randint(3, (), generator=seeded(SEED, "class", place)))
        others.append([k for k in range(4) if k != own][drawn])
    maps = [cs.explain(c.network, c.x, m, cs.Logit(tuple(others))).heatmap() for m in c.methods]
    expected = every(c, lambda m, i: spearman(c.maps[m, i], maps[m][i]))
    assert close(e.RandomLogit().score(c), expected)
    alone = cs.Case(c.network, c.x[:1], cs.Logit(TARGETS[0]), c.maps[:, :1], c.names, c.methods, places=PLACES[:1], seed=SEED)
    assert close(e.RandomLogit().score(alone), expected[:, :1])


PASSES = {
    "deletion:steps=5": 6, "insertion:steps=5": 6, "morf:steps=5": 6, "lerf:steps=5": 6, "effective-complexity:steps=5": 6,
    "comprehensiveness": 6, "sufficiency": 6, "average-drop": 2, "increase-in-confidence": 2, "road": 10,
    "region-perturbation:regions=7": 8, "irof:segments=9": 18, "faithfulness-correlation:count=7": 8,
    "sensitivity-n:count=7": 36,
    "infidelity:count=7": 8, "completeness": 2, "non-sensitivity:cells=3": 10, "input-invariance": 1, "symmetry": 4, "gini": 0,
    "entropy": 0, "pointing-game": 0, "energy-pointing": 0, "localization-auc": 0, "rank-accuracy": 0, "top-k": 0,
    "best-iou": 0,
    "iou": 0,
    "max-sensitivity:count=4": 4, "average-sensitivity:count=4": 4, "local-lipschitz:count=4": 4,
    "relative-input-stability:count=4": 4, "relative-output-stability:count=4": 4,
    "relative-representation-stability:count=4": 4, "mprt": 5, "smprt:smooth=3": 15, "emprt": 1, "random-logit": 1, "sic": 15,
    "aic": 15, "grid-pointing-game:cells=3": 10, "di-full": 5,
}  # fmt: skip


@pytest.mark.parametrize("which", PASSES)
def test_what_a_metric_costs(which) -> None:
    from convoscope.evaluation.evaluate import metric_of

    assert metric_of(which).passes(case()) == PASSES[which]


def test_every_metric_has_a_cost_here() -> None:
    ours = {name for name, cls in cs.metrics().items() if cls.__module__.startswith("convoscope.")}  # not those of other tests
    assert {w.partition(":")[0] for w in PASSES} == ours


def test_other_seeds_and_places_draw_others() -> None:
    for metric in (
        e.FaithfulnessCorrelation(5),
        e.SensitivityN(5, (0.2,)),
        e.Infidelity(5),
        e.ROAD((0.3,), 0.1),
        e.SIC((0.1,)),
    ):
        one, other = metric.score(case()), metric.score(case(seed=SEED + 1))
        assert not torch.equal(one, other), metric
    for metric in (e.ROAD((0.3,), 0.1), e.MaxSensitivity(2, 0.1), e.SmoothRandomization(smooth=2)):
        one, other = (metric.score(made("input-x-gradient", places=p)) for p in (PLACES, (1, 2, 3)))
        assert (one[:, 1] == other[:, 1]).all(), metric
        assert not (one[:, ::2] == other[:, ::2]).any(), metric


def test_passes_are_counted() -> None:
    c = case()
    e.Deletion(steps=5).score(c)
    assert c.passes == 3 + 3 + 2 * 3 * 4  # the pictures, the filled ones, and four steps of each order
    e.Insertion(steps=5, fill=0.0).score(c)
    assert c.passes == 30 + 2 * 3 * 4
    counted: list[int] = []
    c = made("gradient")
    c.progress = counted.append
    e.MaxSensitivity(count=2).score(c)
    assert sum(counted) == c.passes == 2 * 3 * 1


def test_wrong_cases_say_what_is_wrong() -> None:
    c = case()
    with pytest.raises(cs.ConvoscopeError, match=r"height, width\) = \(2, 3, 9, 11\); got \(2, 3, 11, 9\)"):
        cs.Case(c.network, c.x, c.target, c.maps.transpose(2, 3), c.names)
    with pytest.raises(cs.ConvoscopeError, match=r"a mask of each image \(3, 9, 11\); got \(3, 11, 9\)"):
        cs.Case(c.network, c.x, c.target, c.maps, c.names, truth=c.truth.transpose(1, 2))
    with pytest.raises(cs.ConvoscopeError, match="some maps hold values that are not finite; no metric can rank them"):
        cs.Case(c.network, c.x, c.target, c.maps / 0, c.names)
    with pytest.raises(cs.ConvoscopeError, match="fine is given as maps alone; this metric makes maps anew"):
        e.MaxSensitivity().score(c)
    net = cs.Network(nn.AdaptiveAvgPool2d(1), channels=3)
    with pytest.raises(cs.ConvoscopeError, match="AdaptiveAvgPool2d has no weights to randomize"):
        e.ParameterRandomization().score(cs.Case(net, c.x, c.target, c.maps, c.names, c.methods))
    assert e.Deletion().score(c).isfinite().all()


def test_correlations_of_what_hardly_varies() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=torch.float64)
    for scale in (1e-100, 1.0, 1e100):
        assert float(e.base.pearson(values * scale, -values)) == pytest.approx(-1)
    for constant in (0.0, 1e-9, 1 / 3, 1e12 / 3):
        assert e.base.pearson(values, torch.full_like(values, constant)).isnan()
        assert e.base.pearson(torch.full_like(values, constant), values).isnan()
    assert float(e.base.pearson(values, values)) <= 1
    assert float(e.base.pearson(values, -values)) >= -1


OTHER = TENSOR.flip(1)
VARIANTS = [
    *(kind(fill=f, of=o, **s) for kind, s in (
        (e.Deletion, {"steps": 3}), (e.Insertion, {"steps": 3}), (e.EffectiveComplexity, {"steps": 3}), (e.AverageDrop, {}),
        (e.IncreaseInConfidence, {}), (e.Sufficiency, {"shares": (0.2,)}), (e.FaithfulnessCorrelation, {"count": 4}),
        (e.Infidelity, {"count": 4}), (e.Completeness, {}), (e.NonSensitivity, {"cells": 3}),
    ) for f in (TENSOR, OTHER, "mean", 0.3) for o in OF),
    e.Deletion(5, 0.3), e.Infidelity(4, shape="pixels"), e.Infidelity(4, share=0.2), e.Infidelity(9), e.NonSensitivity(4),
    e.SIC((0.2,)), e.SIC((0.3,)), e.SIC((0.2,), start=0.2), e.SIC((0.2,), fill=TENSOR), e.SIC((0.2,), fill=OTHER),
    e.AIC((0.2,)), e.ROAD((0.2,)), e.ROAD((0.3,)), e.TopK(), e.RankAccuracy(), e.BestIoU(),
]  # fmt: skip


def test_what_metrics_share_is_what_each_would_have_found_alone() -> None:
    """All on one case, one after the other and back: nothing is taken for something else."""
    c = case()
    found = [m.score(c) for m in VARIANTS]
    again = [m.score(c) for m in reversed(VARIANTS)][::-1]
    for metric, one, other in zip(VARIANTS, found, again, strict=True):
        assert close(one, other, 0), metric
        assert close(one, metric.score(case()), 1e-12), metric


def test_made_maps_are_shared_by_what_they_are_made_of() -> None:
    several = (e.MaxSensitivity(2, 0.1), e.MaxSensitivity(3, 0.1), e.MaxSensitivity(2, 0.2), e.RelativeOutputStability(2, 0.1),
               e.RelativeRepresentationStability(2, 0.1), e.RelativeRepresentationStability(2, 0.1, "2"))  # fmt: skip
    c = made("input-x-gradient", "gradient")
    for metric in several:
        assert close(metric.score(c), metric.score(made("input-x-gradient", "gradient")), 1e-12), metric
    before = c.passes
    e.AverageSensitivity(2, 0.1).score(c)  # the maps of the largest serve the mean
    assert c.passes == before


def test_shares_that_fall_on_the_edge_are_enough() -> None:
    """A network that counts pixels: half of them are half of the way."""
    network = cs.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double(), size=8, channels=1)
    network.module[1].weight.data[:], network.module[1].bias.data[:] = torch.tensor([[-1.0], [1.0]]), 0
    x, maps = torch.ones(1, 1, 8, 8).double(), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    for target in (0, 1):  # one that falls, one that rises
        c = cs.Case(network, x, cs.Logit(target), maps, ("any",))
        for keep, expected in ((0.5, 0.5), (0.51, 0.75), (1.0, 1.0), (0.0, 0.0)):
            assert float(e.EffectiveComplexity(keep, 4, 0.0, "target").score(c)) == expected


def test_values_of_any_size() -> None:
    c = case()
    plain = [m().score(c) for m in (e.Gini, e.Entropy)]
    for factor in (1e-300, 1e200, 1e300):
        big = cs.Case(c.network, c.x, c.target, c.maps * factor, c.names, truth=c.truth)
        assert all(close(m().score(big), p) for m, p in zip((e.Gini, e.Entropy), plain, strict=True))
        assert close(e.EnergyPointing().score(big), e.EnergyPointing().score(c))
        assert close(e.AverageDrop().score(big), e.AverageDrop().score(c))


def test_a_twin_knows_what_the_network_knows() -> None:
    net = cs.Network(nn.Conv2d(3, 4, 3), (7, 9), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], ["a", "b"], name="mine", output="logits")
    other = nn.Conv2d(3, 4, 1)
    found = e.base.twin_of(net, other)
    assert found.module is other
    for name in ("size", "mean", "std", "categories", "channels", "name", "output"):
        assert getattr(found, name) == getattr(net, name), name
    assert e.base.twin_of(net, other, (14, 18)).size == (14, 18)
    gray = cs.Network(nn.AdaptiveAvgPool2d(1), channels=1)
    assert e.base.twin_of(gray, nn.Identity()).channels == 1


def test_completeness_of_small_and_of_no_changes() -> None:
    c = case()
    small = cs.Case(c.network, c.x, c.target, c.maps * 1e-4, c.names)
    whole = small.maps.flatten(2).sum(-1)
    gains = [answer(c, c.x[i], i, "probability") - answer(c, fill(c.x[i], 0.0), i, "probability") for i in range(3)]
    gain = torch.tensor(gains, dtype=torch.float64).expand(2, 3)
    assert (gain.abs() < 1).all()
    assert close(e.Completeness(0.0, "probability").score(small), (whole - gain).abs() / torch.maximum(whole.abs(), gain.abs()))
    flat = cs.Case(c.network, torch.zeros_like(c.x), c.target, torch.zeros_like(c.maps), c.names)
    assert e.Completeness(0.0).score(flat).isnan().all()


def test_random_masks_may_be_drawn_some_at_a_time() -> None:
    for metric in (e.Infidelity(9), e.FaithfulnessCorrelation(9, 0.2), e.SensitivityN(9, (0.1, 0.3))):
        whole = metric.score(case())
        for room in (1, 2000, 5000):
            assert close(metric.score(case(room=room)), whole, 1e-12), (metric, room)
    c = case()
    single = [subset(c, 1, k, "square") for k in range(4)]
    said = torch.stack([c.maps.flatten(2)[..., s].sum(-1) for s in single], -1)
    lost = torch.stack([said_and_lost(c, 0, i, 1, 4, "square", 0.2, "target")[1] for i in range(3)])
    found = e.Infidelity(4, 0.001, scale="none", fill=0.2).score(c)
    assert close(found, (said - lost).square().mean(-1))


def test_localization_of_a_single_pixel_and_of_all_but_one() -> None:
    c = case()
    c.maps[0, 1] = 0.25  # constant among others that are not
    for inside in (1, PIXELS - 1):
        c.truth[:] = inside > 1
        c.truth[:, 8, 10] = inside == 1
        c.memo.clear()

        def higher(m: int, i: int) -> float:
            a, b = c.maps[m, i][c.truth[i]], c.maps[m, i][~c.truth[i]]
            return float(((a[:, None] > b).double() + (a[:, None] == b).double() / 2).mean())

        assert close(e.LocalizationAUC().score(c), every(c, higher))
        found = e.RankAccuracy().score(c)
        if inside == 1:
            best = [(c.maps[m, i] == c.maps[m, i].max()) for m in range(2) for i in range(3)]
            expected = [float(b[8, 10]) / float(b.sum()) for b in best]
            assert found.flatten().tolist() == pytest.approx(expected)
        hits = e.PointingGame(99).score(c)
        assert hits[0, 1].isnan()
        assert (hits[~hits.isnan()] == 1).all()
        assert hits.isnan().sum() == 1
