"""What evaluators of explanations are known to get wrong, one test each: the right answer by a closed form.

Quantus, captum, grad-cam, OpenXAI, RISE and Xplique have shown these; where captum or grad-cam is installed, what it says is
asserted beside ours.
"""

import ast
import gc
import itertools
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope import evaluation as e
from convoscope.evaluation.base import pearson, ranks
from convoscope.evaluation.imputation import imputed
from convoscope.evaluation.randomization import layers_with_weights, randomized_steps, similarity, ssim
from convoscope.evaluation.robustness import changed
from convoscope.evaluation.subsets import subsets
from convoscope.evaluation.sweeps import removal, removed_after
from convoscope.loading import import_torchvision
from convoscope.testing.cases import Linear, oracle, with_maps
from convoscope.testing.making import Given, made_of


def peer(name: str):
    """A peer's module; the test is skipped where it is not installed."""
    try:
        import_torchvision()  # which they need, and may not be able to import themselves
    except cs.ConvoscopeError as error:
        pytest.skip(str(error))
    return pytest.importorskip(name, exc_type=ImportError)


def flat_case(images: int = 2) -> cs.Case:
    """A network that sums all pixels of a picture of ones: each pixel counts alike."""
    network = cs.Network(Linear(torch.ones(1, 12, 12, dtype=torch.float64)), size=12, channels=1)
    maps = torch.rand(1, images, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return cs.Case(network, torch.ones(images, 1, 12, 12, dtype=torch.float64), cs.Logit(1), maps, ("any",))


def test_p1_no_metric_asks_numpy_for_names_that_come_and_go() -> None:
    for path in Path(e.__file__).parent.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {n.attr for n in tree if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "np"}
        assert not names & {"trapz", "NaN", "Inf", "float_", "product", "in1d", "row_stack"}, path.name


def test_p2_areas_have_their_origin_and_do_not_grow_with_the_steps() -> None:
    case = flat_case()
    for steps in (1, 3, 16, 144):
        curve = removal(case, True, 0.0, steps, case.target).curve
        assert torch.allclose(curve[..., 0], torch.full((1, 2), 144.0).double())
        assert torch.allclose(e.Deletion(steps, 0.0, "target").score(case), torch.full((1, 2), 72.0).double())


def test_p3_a_map_takes_away_whole_pixels_in_as_few_passes_as_asked_for() -> None:
    case, exact = oracle(3)
    e.Deletion(6, 0.0, "target").score(case)
    assert case.passes == 3 * 7
    place = ranks(case.maps)[0].view(exact.shape)
    rows = torch.where(place[:, None] < removed_after(6, 144)[2], 0.0, case.x)
    after = case.scores(rows, torch.arange(3))
    assert torch.allclose(removal(case, True, 0.0, 6, case.target).curve[0, :, 2], after)
    assert torch.equal((rows == 0).all(1), (rows == 0).any(1))


def test_p4_the_mean_is_that_of_the_picture_as_it_was() -> None:
    case, exact = oracle(3)
    mean = case.x.mean((2, 3), keepdim=True)
    weights = case.network.module.weights.detach()
    lost = ((case.x - mean) * weights).sum(1).flatten(1)
    order = exact.flatten(1).argsort(dim=1, descending=True, stable=True)
    curve = case.clean()[:, None] - torch.cat([torch.zeros(3, 1), lost.gather(1, order).cumsum(1)], 1)
    found = removal(case, True, "mean", 12, case.target).curve[0]
    assert torch.allclose(found, curve[:, removed_after(12, 144)], atol=1e-12)


def test_p5_road_takes_colors_and_says_something_where_the_network_is_wrong() -> None:
    case, _ = oracle(3)
    wrong = with_maps(case, -case.maps, target=cs.Logit(0))  # the class that the network does not choose
    assert (case.network.module(case.x).argmax(1) == 1).all()
    found = e.ROAD((0.2,), of="target").score(wrong)
    assert (found > 0.5).all()


def test_p6_irof_takes_colors_and_knows_negative_outputs() -> None:
    case, _ = oracle(3)
    shifted = cs.Network(nn.Sequential(case.network.module, _Plus(-100.0)), size=12, channels=3)
    made = with_maps(case, case.maps, network=shifted)
    assert (made.clean() < 0).all()
    for metric in (e.IROF(9, 0.0, "target"), e.RegionPerturbation(4, 16, 0.0, "target")):
        assert torch.allclose(metric.score(made), metric.score(case), atol=1e-9)
        assert (metric.score(made) > metric.score(with_maps(made, -made.maps))).all()


class _Plus(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + self.number


def test_p7_what_is_shown_is_the_picture_so_that_right_and_wrong_orders_differ() -> None:
    case, exact = oracle()
    both = with_maps(case, torch.stack([exact, -exact]))
    gains = removal(both, False, 0.0, 12, case.target).curve.flip(-1).diff(dim=-1)
    assert (gains[0].diff(dim=-1) <= 1e-12).all()  # every step gains less than the one before
    assert (gains[1].diff(dim=-1) >= -1e-12).all()
    assert not torch.allclose(gains[0], gains[1])


def test_p8_sensitivity_n_is_one_for_the_exact_map_for_every_n_and_a_single_picture() -> None:
    case, _ = oracle(3, images=1)
    for share in (0.01, 0.1, 0.5, 0.9):
        assert torch.allclose(e.SensitivityN(8, (share,), 0.0).score(case), torch.ones(1, 1).double(), atol=1e-9)


def test_p9_infidelity_draws_anew_fits_any_size_and_takes_negative_maps() -> None:
    case, _ = oracle()
    noisy = with_maps(case, torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    few, many = (e.Infidelity(count, 0.17, fill=0.0).score(noisy) for count in (5, 10))
    assert not torch.allclose(few, many)
    masks = subsets(case, round(0.17 * 144), 10, "square")
    assert masks.sum(1).tolist() == [25] * 10  # 12 is no multiple of 5
    assert len({tuple(m.tolist()) for m in masks}) > 5
    negative = with_maps(noisy, -1 - noisy.maps)
    assert e.Infidelity(fill=0.0).score(negative).isfinite().all()


def test_p10_what_another_picture_of_the_batch_is_worth_does_not_matter() -> None:
    case, exact = oracle()
    scaled = exact.clone()
    scaled[0] *= 100
    for metric in (
        e.Infidelity(10, fill=0.0),
        e.Infidelity(10, fill=0.0, scale="none"),
        e.AverageDrop(0.0, "target"),
        e.Gini(),
    ):
        assert torch.equal(metric.score(with_maps(case, scaled[None]))[:, 1:], metric.score(case)[:, 1:])


def test_p11_the_pointing_game_has_a_tolerance_no_empty_masks_and_ties_in_expectation() -> None:
    case, _ = oracle(images=3)
    maps, truth = torch.zeros(1, 3, 12, 12, dtype=torch.float64), torch.zeros(3, 12, 12, dtype=torch.bool)
    maps[0, :, 5, 5] = 1
    truth[0, 5, 9] = truth[2, 5, 5] = True
    maps[0, 2, 0, 0] = 1  # as strong, elsewhere
    given = with_maps(case, maps, truth=truth)
    assert e.PointingGame(3).score(given)[0].nan_to_num(-1).tolist() == [0.0, -1.0, 0.5]
    assert e.PointingGame(4).score(given)[0].nan_to_num(-1).tolist() == [1.0, -1.0, 0.5]


def test_p12_shares_of_the_relevance_do_not_depend_on_the_number_of_pictures() -> None:
    expected = None
    for count in (1, 2, 3, 4):
        case, exact = oracle(images=4)
        part = slice(0, count)
        given = with_maps(case, exact[None, part], x=case.x[part], truth=case.truth[part], places=case.places[part])
        found = e.EnergyPointing().score(given)[0, 0]
        expected = found if expected is None else expected
        assert found == expected == 1


def test_p13_an_exact_sum_has_no_gap_and_negative_relevance_is_relevance() -> None:
    case, exact = oracle(3)
    assert (e.Completeness(0.0).score(case) <= 1e-12).all()
    nearly = with_maps(case, exact[None] * (1 + 1e-9))
    assert (e.Completeness(0.0).score(nearly) <= 2e-9).all()
    negative = with_maps(case, -exact[None])
    assert torch.equal(e.NonSensitivity(12, 0.0).score(negative), e.NonSensitivity(12, 0.0).score(case))
    assert (e.NonSensitivity(12, 0.0).score(case) == 0).all()


def test_p14_maps_of_the_caller_stay_what_they_are() -> None:
    case, exact = oracle()
    for name, metric in cs.metrics().items():
        if "methods" not in metric.needs:
            mine = (exact[None] - 0.3).clone()
            metric().score(with_maps(case, mine))
            assert torch.equal(mine, exact[None] - 0.3), name


def test_p15_every_layer_is_drawn_for_itself_and_none_is_left_out() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(1 if k == 0 else 6, 6, 3, padding=1) for k in range(4))
            self.scale = nn.Parameter(torch.arange(1.0, 7.0).view(1, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(x).relu()
            return (x * self.scale).mean((2, 3))

    network = cs.Network(Bare(), size=8, channels=1)
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    case = made_of(cs.Case(network, x, cs.Logit(1), torch.zeros(1, 1, 8, 8), ("none",)), "gradient")
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    steps = list(randomized_steps(case, "top-down"))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    before, after = network.module.state_dict(), steps[-1].module.state_dict()
    assert not torch.equal(before["scale"], after["scale"])
    moved = []
    for k in (1, 2, 3):
        name = f"convs.{k}.weight"
        assert torch.equal(before[name].flatten().sort().values, after[name].flatten().sort().values)
        moved.append((before[name].flatten()[:, None] == after[name].flatten()).double().argmax(0))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(moved, 2))
    curve = e.ParameterRandomization().curve(case)
    assert len(curve) == len(layers_with_weights(network.module)) == 5  # the network itself is no step
    assert torch.allclose(e.ParameterRandomization().score(case)[0], curve.nanmean(0), equal_nan=True)


def test_p16_structural_similarity_is_that_of_pictures() -> None:
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(1, 16, 16, generator=g, dtype=torch.float64)
    shifted = maps.roll(1, 1)
    rows, columns = ssim(maps, maps.roll(1, 2)), ssim(maps.transpose(1, 2), maps.transpose(1, 2).roll(1, 1))
    assert torch.allclose(rows, columns)  # a line of pixels would know rows from columns
    assert (similarity(maps, shifted, "ssim") < 0.2).all()
    assert torch.allclose(similarity(maps, maps, "ssim"), torch.ones(1).double())


def test_p17_networks_are_let_go_noise_in_them_is_off_and_a_softmax_is_not_taken_twice() -> None:
    case, exact = oracle()
    plain = case.network.module

    def score(module: nn.Module) -> Tensor:
        network = cs.Network(module, size=12, channels=1)
        return cs.evaluate(network, case.x, [], [e.Deletion(8, 0.0)], 1, maps={"exact": exact}, nulls=()).scores

    expected = score(plain)
    assert torch.allclose(score(nn.Sequential(plain, nn.Sequential(nn.Softmax(1)))), expected)
    noisy = nn.Sequential(nn.Sequential(nn.Dropout(0.5)), plain)
    noisy.eval()[0][0].train()
    assert torch.allclose(score(noisy), expected)
    assert noisy[0][0].training
    module = Linear(plain.weights.detach().clone())
    score(module)
    seen = weakref.ref(module)
    del module
    gc.collect()
    assert seen() is None


def test_p18_outputs_that_differ_are_named_and_never_averaged() -> None:
    case, exact = oracle()
    asked = ["deletion:fill=0.0", "deletion:fill=0.0,of=target", "faithfulness-correlation"]
    found = cs.evaluate(case.network, case.x, [], asked, 1, maps={"exact": exact}, nulls=())
    assert found.units == ("probability", "logit", "correlation")
    judged = {m.name for m in cs.metrics().values() if getattr(m, "of", None) == "probability"}
    assert {"deletion", "insertion", "morf", "lerf", "road", "irof", "sufficiency", "comprehensiveness", "sic"} <= judged
    one, other = (cs.evaluate(case.network, case.x, [], [a], 1, maps={"exact": exact}, nulls=()) for a in asked[:2])
    with pytest.raises(cs.ConvoscopeError, match="no common mean"):
        one.joined(other)


def test_p19_infidelity_in_units_of_the_losses_and_captums_without() -> None:
    case, exact = oracle(3)
    hundred = with_maps(case, exact[None] * 100)
    assert (e.Infidelity(20, fill=0.0).score(hundred) < 1e-20).all()
    captum = peer("captum.metrics")
    count, share = 15, 0.1
    masks = subsets(case, round(share * 144), count, "square").double().view(-1, 1, 12, 12)
    noise = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for maps, scale in ((exact, "none"), (100 * exact, "none"), (noise, "none"), (100 * exact, "optimal"), (noise, "optimal")):
        drawn = iter(masks)

        def perturb(x: Tensor, drawn=drawn) -> tuple[Tensor, Tensor]:
            gone = next(drawn).expand(len(x), 3, -1, -1)
            return gone, x * (1 - gone)

        theirs = captum.infidelity(
            case.network.module, perturb, case.x, maps[:, None].expand(-1, 3, -1, -1) / 3, target=1, n_perturb_samples=count,
            max_examples_per_batch=3, normalize=scale == "optimal",
        )  # fmt: skip
        given = with_maps(case, maps[None])
        ours = e.Infidelity(count, share, scale=scale, fill=0.0).score(given)[0]
        if scale == "optimal":  # ours is a share of the mean squared loss
            lost = (exact.flatten(1) @ masks.flatten(1).T).square().mean(1)
            ours = ours * lost
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (e.Infidelity(count, share, scale="none", fill=0.0).score(hundred) > 1).all()  # what captum says by default


def test_p20_a_map_that_never_says_anything_is_not_perfectly_stable() -> None:
    case, _ = oracle()
    silent = made_of(case, Given("zeros"))
    state = torch.get_rng_state()
    assert e.MaxSensitivity(3).score(silent).isnan().all()
    assert torch.equal(torch.get_rng_state(), state)
    captum = peer("captum.metrics")
    assert (captum.sensitivity_max(lambda x: (torch.zeros_like(x[0]),), case.x) == 0).all()  # the best there is
    steep = made_of(case, Given("sharp"))
    pictures = changed(steep, 4, 0.05)

    def perturb(x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (pictures.transpose(0, 1).flatten(0, 1),)

    theirs = captum.sensitivity_max(lambda x: ((1e4 * x[0]).sin(),), case.x, perturb_func=perturb, n_perturb_samples=4)
    ours = e.MaxSensitivity(4, 0.05).score(steep)[0]
    assert torch.allclose(ours, theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the peer's
def test_p21_a_sparse_map_has_as_many_pixels_removed_as_asked_for() -> None:
    case, _ = oracle(3)
    sparse = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    sparse[:, :, 4:6, 4:6] = 1  # 4 of 144 pixels
    place = ranks(sparse)[0].view(3, 12, 12)
    for share in (0.1, 0.5, 0.9):
        assert ((place < round(share * 144)).flatten(1).sum(1) == round(share * 144)).all()
    each = [e.ROAD((share,), of="target").score(with_maps(case, sparse)) for share in (0.1, 0.5, 0.9)]
    assert not torch.allclose(each[0], each[1])
    assert torch.equal(e.ROAD().score(with_maps(case, sparse)), e.ROAD().score(with_maps(case, sparse)))
    road = peer("pytorch_grad_cam.metrics.road")
    gone: list[int] = []

    def count(x: Tensor, mask: Tensor) -> Tensor:
        gone.append(int((mask == 0).sum()))
        return x

    for percentile in (10, 50, 90):
        road.RemoveMostRelevantFirst(percentile, count)(case.x[0], sparse[0, 0])
    assert gone == [144, 144, 144]
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(6)) > 0.6
    theirs = road.NoisyLinearImputer(noise=0.0)(case.x[0].float(), mask.float())
    ours = imputed(case.x[:1].float(), ~mask[None])[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_p22_what_the_map_hides_is_black_and_the_drop_is_a_share_of_the_target() -> None:
    network = cs.Network(_Bright(), size=4, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    pixels = torch.full((1, 3, 4, 4), 0.8, dtype=torch.float64)
    half = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    half[..., :2] = 5.0
    case = cs.Case(network, network.normalize(pixels), cs.Logit(0), half, ("half",))
    assert float(e.AverageDrop(of="target").score(case)) == pytest.approx(0.5, abs=1e-12)
    metrics = peer("pytorch_grad_cam.metrics.cam_mult_image")
    targets = [lambda output: output[0]]
    theirs = metrics.DropInConfidence()(case.x, half[0].numpy() / 5, targets, network.module)
    assert theirs[0] == pytest.approx(0.15)  # of .8, with gray of .5 for what is hidden


class _Bright(nn.Module):
    """The mean of the pixels, of inputs with mean .5 and deviation .25."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.one * (x * 0.25 + 0.5).mean((1, 2, 3))[:, None]


def test_p23_settings_are_of_one_metric_and_cannot_change() -> None:
    one, other = e.Deletion(5), e.Deletion(7, fill="mean")
    assert (one.steps, one.fill, other.steps) == (5, 0.0, 7)
    with pytest.raises(AttributeError):
        one.steps = 9
    case, exact = oracle()
    alone = cs.evaluate(case.network, case.x, [], [one], 1, maps={"exact": exact}, nulls=())
    both = cs.evaluate(case.network, case.x, [], [one, other], 1, maps={"exact": exact}, nulls=())
    assert torch.equal(alone.scores[0], both.scores[0])
    assert not torch.equal(both.scores[0], both.scores[1])


def test_p24_ties_have_an_order_and_batches_need_not_divide_the_steps() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [2.0, 1.0]]]], dtype=torch.float64)
    assert ranks(maps).flatten().tolist() == [2, 0, 1, 3]
    case, exact = oracle()
    ties = exact.round(decimals=1)[None]
    found = [e.Deletion(11, 0.0).score(with_maps(case, ties, batch_size=size)) for size in (1, 3, 7, 50)]
    assert all(torch.allclose(f, found[0], atol=1e-12) for f in found)
    wrong = with_maps(case, ties, target=cs.Logit(0))
    assert torch.allclose(
        e.Deletion(11, 0.0, "target").score(wrong), -e.Deletion(11, 0.0, "target").score(with_maps(case, ties))
    )


def test_p25_judging_by_logits_or_by_probabilities_is_said() -> None:
    case, exact = oracle()
    logit = e.Deletion(6, 0.0, "target").score(case)
    known = cs.evaluate(case.network, case.x, [], [e.Deletion(6, 0.0, "target")], 1, maps={"exact": exact}, nulls=())
    assert torch.allclose(known.scores[0], logit)
    assert known.units == ("logit",)
    curve = removal(case, True, 0.0, 6, case.target).curve
    probability = torch.trapezoid((2 * curve).sigmoid(), dim=-1) / 6
    assert torch.allclose(e.Deletion(6, 0.0).score(case), probability)


class _Noise(cs.Method, abstract=True):
    """Noise that is drawn by the weights: it changes with them, and says nothing."""

    title, unit = "Noise", "activation"

    def attribute(self, probe, x: Tensor) -> Tensor:
        seed = int(
            1e6
            * float(
                torch.cat([p.flatten().double() * torch.arange(p.numel()) for p in probe.session.module.parameters()]).sum()
            )
        )
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(abs(seed)), dtype=x.dtype)

    def evaluations(self, x: Tensor) -> int:
        return 0


def test_p26_noise_passes_similarity_tests_and_gains_nothing_by_complexity() -> None:
    case, _ = oracle()
    torch.manual_seed(8)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    ).double()
    made = made_of(with_maps(case, case.maps, network=cs.Network(module, size=12, channels=1)), _Noise(), Given("edges"))
    similar = e.ParameterRandomization().score(made)
    assert (similar[0].abs() < 0.25).all()  # as good as an explanation can be, to that metric
    assert torch.allclose(similar[1], torch.ones(3).double())
    rise = e.EfficientRandomization().score(made)
    assert (rise[0].abs() < 0.1).all()  # no better than an edge detector
    assert torch.equal(rise[1], torch.zeros(3).double())
    assert torch.allclose(e.SmoothRandomization(smooth=2).score(made)[1], torch.ones(3).double())


def test_p27_any_fill_can_be_asked_for_and_the_result_says_which() -> None:
    case, exact = oracle()
    fills = ("black", "mean", "blur", "white", 0.3)
    asked = [e.Deletion(12, fill, "target") for fill in fills]
    found = cs.evaluate(case.network, case.x, [], asked, 1, maps={"exact": exact}, nulls=())
    assert [m["fill"] for m in found.to_dict()["metrics"]] == list(fills)
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(found.scores, 2))
    shown = {fill: case.fill(fill) for fill in fills}
    for metric, scores in zip(asked, found.scores, strict=True):
        lost = ((case.x - shown[metric.fill]) * case.network.module.weights.detach()).sum(1).flatten(1)
        order = exact.flatten(1).argsort(dim=1, descending=True, stable=True)
        curve = case.clean()[:, None] - torch.cat([torch.zeros(3, 1), lost.gather(1, order).cumsum(1)], 1)
        assert torch.allclose(scores[0], torch.trapezoid(curve[:, removed_after(12, 144)]) / 12, atol=1e-9)


def test_exact_maps_agree_with_the_losses_of_whatever_subset() -> None:
    case, exact = oracle(3)
    masks = subsets(case, 30, 40).double()
    said = exact.flatten(1) @ masks.T
    rows = (case.x[:, None] * (1 - masks.view(1, 40, 1, 12, 12))).flatten(0, 1)
    lost = case.clean()[:, None] - case.scores(rows, torch.arange(3).repeat_interleave(40)).view(3, 40)
    assert torch.allclose(said, lost, atol=1e-12)
    assert torch.allclose(pearson(said, lost), torch.ones(3).double())
