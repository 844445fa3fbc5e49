"""Where Quantus, captum and grad-cam compute the published definition, the same numbers on the same draws; where not, how far.

Quantus is no dependency: `pip install --no-deps --target FOLDER quantus==0.6.0` and PYTHONPATH=FOLDER let its tests run.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.evaluation import (
    ROAD,
    AverageDrop,
    AverageSensitivity,
    EffectiveComplexity,
    EnergyPointing,
    Entropy,
    FaithfulnessCorrelation,
    Gini,
    IncreaseInConfidence,
    Infidelity,
    LocalizationAUC,
    LocalLipschitz,
    MaxSensitivity,
    PointingGame,
    RankAccuracy,
    RelativeInputStability,
    RelativeOutputStability,
    RelativeRepresentationStability,
    TopK,
)
from convoscope.evaluation.base import ranks
from convoscope.evaluation.imputation import imputed
from convoscope.evaluation.randomization import histogram_entropy
from convoscope.evaluation.robustness import changed
from convoscope.evaluation.subsets import subsets
from convoscope.evaluation.sweeps import removal
from convoscope.targets import Logit, Probability

SIDE, IMAGES, PIXELS = 8, 3, 64
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Small(nn.Module):
    """One channel in, so that a map and an attribution of the input are the same thing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.last = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(5 * PIXELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.conv(x)).flatten(1))


@pytest.fixture
def case() -> cs.Case:
    """Images away from zero, maps of different values, a truth, the class with the largest logit."""
    g = torch.Generator().manual_seed(4)
    module = Small().eval()
    x = 0.3 + 0.7 * torch.rand(IMAGES, 1, SIDE, SIDE, generator=g)
    classes = module(x).argmax(1).tolist()
    maps = torch.rand(1, IMAGES, SIDE, SIDE, generator=g, dtype=torch.float64) + 0.1
    truth = torch.zeros(IMAGES, SIDE, SIDE, dtype=torch.bool)
    truth[:, 2:5, 1:6] = True
    network = cs.Network(module, size=SIDE, channels=1)
    return cs.Case(network, x, Logit(tuple(classes)), maps, ("map",), truth=truth)


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    """Peers import it; where its operators are missing, this says so."""
    from convoscope.loading import import_torchvision

    try:
        import_torchvision()
    except cs.ConvoscopeError as error:
        pytest.skip(str(error))


@pytest.fixture
def quantus() -> Iterator[Any]:
    """The library, with what numpy 2.4 took from it put back while a test runs."""
    missing = not hasattr(np, "trapz")
    if missing:
        np.trapz = np.trapezoid  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("quantus", reason="Quantus is not installed")
        yield found
    if missing:
        del np.trapz  # type: ignore[attr-defined]


def asked(metric: Any, case: cs.Case, truth: bool = False, **more: Any) -> Tensor:
    """What a metric of Quantus says of the first map of each image."""
    given = {
        "model": case.network.module, "x_batch": case.x.numpy().copy(), "y_batch": np.array(case.target.index),
        "a_batch": case.maps[0].numpy().copy()[:, None], "channel_first": True, **more,
    }  # fmt: skip
    if truth:
        given["s_batch"] = case.truth.numpy()[:, None]
    return torch.as_tensor(np.array(metric(**given), dtype=float))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.double(), theirs.double(), **CLOSE), f"{ours.tolist()}, not {theirs.tolist()}"


# ---------------------------------------------------------------- faithfulness
def test_pixel_flipping_is_that_of_quantus(case, quantus) -> None:
    theirs = asked(quantus.PixelFlipping(features_in_step=4, perturb_baseline=0.0, **PLAIN), case, softmax=True)
    close(removal(case, True, 0.0, 16, Probability(case.target.index)).curve[0, :, 1:], theirs)
    turned = asked(  # the other way round; it refuses maps without a positive value (Quantus issue 375)
        quantus.PixelFlipping(features_in_step=4, perturb_baseline=0.0, **PLAIN), case, softmax=False,
        a_batch=1 + case.maps[0].amax().item() - case.maps[0].numpy()[:, None],
    )  # fmt: skip
    close(removal(case, False, 0.0, 16, case.target).curve[0, :, 1:], turned)


def test_areas_do_not_depend_on_the_number_of_steps_as_those_of_quantus_do(case, quantus) -> None:
    """It leaves out the unchanged picture, and a step is 1 however many there are."""
    areas = [
        asked(quantus.PixelFlipping(features_in_step=n, perturb_baseline=0.0, return_auc_per_sample=True, **PLAIN), case)
        for n in (2, 16)
    ]
    assert (areas[0] > 5 * areas[1]).all()
    mine = [removal(case, True, 0.0, PIXELS // n, Probability(case.target.index)).area[0] for n in (2, 16)]
    assert torch.allclose(mine[0], mine[1], rtol=0.1)


def test_faithfulness_correlation_is_that_of_quantus(case, quantus, monkeypatch) -> None:
    size, count = 6, 40
    masks = subsets(case, size, count)
    drawn = itertools.chain.from_iterable([row.nonzero()[:, 0].numpy()] * IMAGES for row in masks)
    monkeypatch.setattr(np.random, "choice", lambda *args, **kwargs: next(drawn))
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=count, subset_size=size, perturb_baseline=0.0, return_aggregate=False, **PLAIN
    )
    theirs = asked(metric, case, softmax=False)
    close(FaithfulnessCorrelation(count, size / PIXELS, 0.0).score(case)[0], theirs)


@pytest.mark.parametrize("shape", ["square", "pixels"])
def test_infidelity_is_that_of_captum(case, shape) -> None:
    metrics = pytest.importorskip("captum.metrics")
    count = 30
    masks = subsets(case, 4, count, shape).view(count, 1, SIDE, SIDE)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        every = masks.repeat(IMAGES, 1, 1, 1)  # it repeats each image `count` times in turn
        return every.float(), torch.where(every, 0.0, inputs)

    settings = {"inputs": case.x, "attributions": case.maps[0, :, None].float(), "target": torch.tensor(case.target.index)}
    for normalize, scale in ((True, "optimal"), (False, "none")):
        theirs = metrics.infidelity(
            case.network.module, perturb, **settings, n_perturb_samples=count, normalize=normalize
        ).detach()
        mine = Infidelity(count, 4 / PIXELS, shape, scale, 0.0).score(case)[0]
        if normalize:  # ours is in units of the mean squared loss
            filled = torch.where(masks, 0.0, case.x[:, None]).flatten(0, 1)
            logits = case.network.module(filled).view(IMAGES, count, -1).detach()
            clean = case.network.module(case.x).detach()
            rows = torch.arange(IMAGES)
            lost = clean[rows, list(case.target.index)][:, None] - logits[rows, :, list(case.target.index)]
            mine = mine * lost.square().mean(1)
        close(mine, theirs)


def test_infidelity_of_captum_depends_on_the_units_of_the_map(case) -> None:
    """github.com/meta-pytorch/captum/issues/613: its default does not scale."""
    bigger = cs.Case(case.network, case.x, case.target, 100 * case.maps, ("map",))
    settings = {"count": 30, "share": 4 / PIXELS, "fill": 0.0}
    assert torch.allclose(Infidelity(**settings).score(case), Infidelity(**settings).score(bigger))
    plain = [Infidelity(**settings, scale="none").score(c) for c in (case, bigger)]
    assert (plain[1] > 1000 * plain[0]).all()


# ---------------------------------------------------------------- robustness
def explained(case: cs.Case) -> cs.Case:
    """The case with the maps of a method."""
    maps = cs.explain(case.network, case.x, "gradient", case.target).heatmap()[None].double()
    return cs.Case(case.network, case.x, case.target, maps, ("gradient",), (cs.Gradient(),))


def gradients(case: cs.Case) -> Callable[..., Any]:
    def explain(inputs: Any, **_: Any) -> Any:
        rows = torch.as_tensor(inputs)
        index = case.target.index * (len(rows) // IMAGES)
        return cs.explain(case.network, rows, "gradient", Logit(index)).values

    return explain


def given_changes(case: cs.Case, count: int, radius: float) -> Callable[..., np.ndarray]:
    """Hands out our changed pictures one after another."""
    pictures = iter(changed(case, count, radius))
    return lambda arr, **_: next(pictures).flatten(1).numpy()


def test_max_sensitivity_is_that_of_captum(case) -> None:
    metrics = pytest.importorskip("captum.metrics")
    made, count = explained(case), 5
    pictures = changed(made, count, 0.05)

    def explain(inputs: tuple[Tensor]) -> tuple[Tensor]:
        each = tuple(index for index in case.target.index for _ in range(len(inputs[0]) // IMAGES))
        return (cs.explain(case.network, inputs[0], "gradient", Logit(each)).values,)

    theirs = metrics.sensitivity_max(
        explain, (case.x,), perturb_func=lambda inputs: (pictures.transpose(0, 1).flatten(0, 1),), n_perturb_samples=count,
        max_examples_per_batch=count * IMAGES,
    )  # fmt: skip
    close(MaxSensitivity(count, 0.05).score(made)[0], theirs)


def robust(quantus: Any, case: cs.Case, name: str, count: int, **settings: Any) -> Tensor:
    metric = getattr(quantus, name)(
        nr_samples=count, perturb_func=given_changes(case, count, 0.05), return_nan_when_prediction_changes=False,
        **{**PLAIN, **settings},
    )  # fmt: skip
    explain = gradients(case)
    return asked(metric, case, explain_func=lambda model, inputs, targets, **_: explain(inputs).numpy())


def test_local_lipschitz_is_that_of_quantus(case, quantus) -> None:
    made = explained(case)
    theirs = robust(quantus, made, "LocalLipschitzEstimate", 4, norm_numerator=_euclidean, norm_denominator=_euclidean)
    close(LocalLipschitz(4, 0.05).score(made)[0], theirs)


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm((a - b).reshape(len(a), -1), axis=-1)


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (RelativeInputStability(4, 0.05), "RelativeInputStability", {}),
        (RelativeOutputStability(4, 0.05), "RelativeOutputStability", {}),
        (RelativeRepresentationStability(4, 0.05, layer="last"), "RelativeRepresentationStability", {"layer_names": ["last"]}),
    ],
)
def test_relative_stability_is_that_of_quantus(case, quantus, ours, theirs, settings) -> None:
    """On maps and layers without values near zero, which ours keeps from deciding alone."""
    made = explained(case)
    smallest = made.maps.flatten(2).abs().amin(-1) / made.maps.flatten(2).abs().amax(-1)
    assert (smallest > 1e-3).all()
    close(ours.score(made)[0], robust(quantus, made, theirs, 4, **settings))


# ---------------------------------------------------------------- complexity
def test_sparseness_and_entropy_are_those_of_quantus(case, quantus) -> None:
    settings = {**PLAIN, "abs": True}
    close(Gini().score(case)[0], asked(quantus.Sparseness(**settings), case))
    close(Entropy().score(case)[0], asked(quantus.Complexity(**settings), case))


def test_effective_complexity_of_quantus_does_not_ask_the_network(case, quantus) -> None:
    """It counts values above a threshold; the paper's is the fewest features that keep the prediction."""
    metric = quantus.EffectiveComplexity(eps=0.5, **{**PLAIN, "abs": True})
    theirs = asked(metric, case)
    assert torch.equal(theirs, (case.maps[0].flatten(1) > 0.5).sum(1).double())
    other = cs.Case(case.network, case.x, case.target, 0.1 * case.maps, ("map",))
    assert (asked(metric, other) == 0).all()
    assert torch.equal(EffectiveComplexity().score(case), EffectiveComplexity().score(other))


# ---------------------------------------------------------------- localization
@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (RankAccuracy(), "RelevanceRankAccuracy", {}),
        (EnergyPointing(), "RelevanceMassAccuracy", {}),
        (TopK(9 / PIXELS), "TopKIntersection", {"k": 9}),
        (PointingGame(0), "PointingGame", {}),
        (LocalizationAUC(), "AUC", {}),
    ],
)
def test_localization_is_that_of_quantus(case, quantus, ours, theirs, settings) -> None:
    close(ours.score(case)[0], asked(getattr(quantus, theirs)(**PLAIN, **settings), case, truth=True))


# ---------------------------------------------------------------- grad-cam
def targets(case: cs.Case) -> list[Any]:
    model_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    return [model_targets.ClassifierOutputSoftmaxTarget(index) for index in case.target.index]


def test_drop_and_increase_are_those_of_grad_cam(case) -> None:
    """Its drop is not a share of the score, as the paper's is; what it hides shows the mean color, zero in input space."""
    metrics = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    shown = (case.maps[0] / case.maps[0].amax((1, 2), keepdim=True)).float().numpy()
    given = (case.x, shown, targets(case), case.network.module)
    clean = case.clean(Probability(case.target.index))
    close(AverageDrop(fill=0.0).score(case)[0] * clean, torch.as_tensor(metrics.DropInConfidence()(*given)))
    raised = torch.as_tensor(metrics.IncreaseInConfidence()(*given) > 0)
    assert torch.equal(IncreaseInConfidence(fill=0.0).score(case)[0] > 0, raised)


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.3), (0.0, 0.8), (0.01, 0.5)])
def test_missing_pixels_are_filled_as_by_grad_cam(noise, share) -> None:
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    g = torch.Generator().manual_seed(1)
    x, gone = torch.rand(2, 3, 14, 11, generator=g), torch.rand(2, 14, 11, generator=g) < share
    found = imputed(x.double(), gone)
    for i in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = road.NoisyLinearImputer(noise=noise)(x[i], (~gone[i]).float())
        error = (found[i] - theirs).abs().max()
        assert error < (1e-5 if noise == 0 else 6 * noise)
        assert noise == 0 or error > noise  # which its draws of the global generator put there


def test_grad_cam_removes_everything_where_a_map_is_sparse() -> None:
    """Its threshold is a percentile of the map, 0 for most maps with a rectifier: at 50 and at 80 percent all pixels go."""
    confidence = pytest.importorskip("pytorch_grad_cam.metrics.perturbation_confidence")
    sparse = torch.zeros(10, 10)
    sparse[:2, :3] = 1.0
    for percentile in (20, 50, 80):
        kept = confidence.RemoveMostRelevantFirst(percentile, lambda x, mask: mask)(sparse[None], sparse)
        assert not kept.any()
    steps = torch.tensor([round(s * 100) for s in (0.8, 0.5, 0.2)])
    assert torch.equal((ranks(sparse[None, None])[0, 0] < steps[:, None]).sum(1), steps)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the peer's
def test_road_is_that_of_grad_cam(case) -> None:
    """Without noise, which it draws anew each time: half of our difference of the two orders."""
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    perturbation = pytest.importorskip("pytorch_grad_cam.metrics.perturbation_confidence")
    shown, shares = case.maps[0].float().numpy(), (0.25, 0.5)
    both = []
    for remover in (road.RemoveLeastRelevantFirst, road.RemoveMostRelevantFirst):
        each = []
        for share in shares:
            gone = remover(100 - 100 * share, road.NoisyLinearImputer(noise=0.0))
            metric = perturbation.PerturbationConfidenceMetric(gone)
            scores = metric(case.x, shown, targets(case), case.network.module, return_diff=False)
            each.append(torch.as_tensor(scores).double())
        both.append(torch.stack(each).mean(0))
    found = ROAD(shares, 0.0).score(case)[0]
    assert torch.allclose(found, both[0] - both[1], rtol=0, atol=1e-5), f"{found.tolist()}, {(both[0] - both[1]).tolist()}"


def test_average_sensitivity_is_that_of_quantus(case, quantus) -> None:
    made = explained(case)
    close(AverageSensitivity(4, 0.05).score(made)[0], robust(quantus, made, "AvgSensitivity", 4))


def test_entropy_of_histograms_is_that_of_quantus(case, quantus) -> None:
    discrete = pytest.importorskip("quantus.functions.complexity_func").discrete_entropy
    maps = torch.cat([case.maps[0], -case.maps[0], (4 * case.maps[0]).round()])
    theirs = torch.tensor([discrete(m.numpy(), m.numpy(), n_bins=20) for m in maps])
    close(histogram_entropy(maps, 20), theirs)
