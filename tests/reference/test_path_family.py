"""Methods along paths: closed forms, completeness, and equality with captum and saliency where those are right."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import images, network_of, normal, randomized, relative, torchvision_network, values
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.attribution import path_regions
from convoscope.attribution.path import quadrature
from convoscope.attribution.path_curved import blurred_by
from convoscope.attribution.path_regions import LEAST_NEW, SIDE, gathered
from convoscope.core.probe import Probe

SIZE, CLASS = 12, 1
X, A, START = normal(2, 3, SIZE, SIZE, seed=1), normal(1, 3, SIZE, SIZE, seed=2), normal(1, 3, SIZE, SIZE, seed=3)
WAY = X - START


class Function(nn.Module):
    """Class 0 is zero, class 1 the sum of `A * function(x)`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = (A * self.function(x)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def network(function: Callable[[Tensor], Tensor]) -> cs.Network:
    return cs.Network(Function(function))


LINEAR, SQUARE = network(lambda x: x), network(torch.square)


def small() -> nn.Module:
    """A network with biases and kinks."""
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip
    return randomized(module, normal(4, 3, SIZE, SIZE, seed=4))


SMALL = small()


def change(start: Tensor, target: int = CLASS) -> Tensor:
    with torch.no_grad():
        return SMALL(X)[:, target] - SMALL(start.expand_as(X))[:, target]


def explained(method: cs.Method, **settings: Any) -> cs.Attribution:
    return cs.explain(network_of(SMALL), X, method, CLASS, **settings)


def sums(maps: Tensor) -> Tensor:
    return maps.flatten(1).sum(1)


# ---------------------------------------------------------------- quadrature
@pytest.mark.parametrize("points", [2, 3, 8, 33])
@pytest.mark.parametrize("rule", ["midpoint", "graded", "gauss-legendre", "trapezoid"])
def test_weights(rule: Any, points: int) -> None:
    """They sum to 1, and each rule is exact up to its degree: that of its average over 0..1 is 1 / (degree + 1)."""
    nodes, weights = (torch.tensor(v, dtype=torch.float64) for v in quadrature(rule, points))
    assert float((weights.sum() - 1).abs()) < 1e-14
    for degree in range({"gauss-legendre": 2 * points, "graded": 1}.get(rule, 2)):
        assert float(((weights * nodes**degree).sum() - 1 / (degree + 1)).abs()) < 1e-13


@pytest.mark.parametrize("rule", ["midpoint", "gauss-legendre", "trapezoid"])
def test_integrated_gradients_of_linear_and_quadratic(rule: Any) -> None:
    method = cs.IntegratedGradients(steps=3, baseline=START, rule=rule)
    assert relative(cs.explain(LINEAR, X, method, 1).values, A * WAY) < 1e-13
    assert relative(cs.explain(SQUARE, X, method, 1).values, A * (X.square() - START.square())) < 1e-13


def test_graded_points_on_a_linear_gradient() -> None:
    """(k + 1/2)^2 / n^2 with weights (2 k + 1) / n^2 miss the mean 1/2 of t by 1 / (4 n^2)."""
    for points in (1, 4, 9):
        nodes, weights = (torch.tensor(v, dtype=torch.float64) for v in quadrature("graded", points))
        assert float((weights * nodes).sum()) == pytest.approx(0.5 - 1 / (4 * points**2))


def test_gauss_legendre_is_exact_for_polynomials() -> None:
    method = cs.IntegratedGradients(steps=3, baseline=START, rule="gauss-legendre")
    found = cs.explain(network(lambda x: x**6), X, method, 1)
    assert relative(found.values, A * (X**6 - START**6)) < 1e-13


def test_gauss_legendre_is_captums() -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    theirs = attr.IntegratedGradients(SMALL).attribute(X, START, target=CLASS, n_steps=7, method="gausslegendre")
    assert relative(explained(cs.IntegratedGradients(steps=7, baseline=START, rule="gauss-legendre")).values, theirs) < 1e-7


def test_trapezoid_needs_two_points() -> None:
    with pytest.raises(cs.SpecError, match="2 points"):
        explained(cs.IntegratedGradients(steps=1, rule="trapezoid"))


@pytest.mark.parametrize(("rule", "first", "last"), [("graded", 2, 54), ("midpoint", 2, 54), ("trapezoid", 3, 65)])
def test_tolerance_uses_all_points_again(rule: Any, first: int, last: int) -> None:
    """Down to a tolerance of zero the map is that of as many points at once, and takes no more evaluations."""
    refined = explained(cs.IntegratedGradients(steps=first, baseline=START, rule=rule, tolerance=0.0, most=last))
    at_once = explained(cs.IntegratedGradients(steps=last, baseline=START, rule=rule))
    assert relative(refined.values, at_once.values) < 1e-12
    assert refined.diagnostics["points"] == [last, last]
    assert refined.diagnostics["evaluations"] == 2 * last + 3  # the line's points, both images and one baseline


def test_tolerance_stops_for_each_image() -> None:
    method = cs.IntegratedGradients(steps=2, baseline=START, tolerance=0.01)
    both = explained(method)
    assert max(both.diagnostics["completeness gap relative"]) <= 0.01
    for i in range(2):
        alone = cs.explain(network_of(SMALL), X[i : i + 1], method, CLASS)
        assert relative(alone.values, both.values[i : i + 1]) < 1e-12
        assert alone.diagnostics["points"] == both.diagnostics["points"][i : i + 1]


def test_tolerance_refuses_points_that_do_not_nest() -> None:
    with pytest.raises(cs.SpecError, match="graded or midpoint"):
        explained(cs.IntegratedGradients(rule="gauss-legendre", tolerance=0.1))


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_sharing_the_gap_never_leads_away_from_the_integral(steps: int) -> None:
    """It is complete, and the mean gradient is no farther from that of many points."""
    start = START.clone()
    start[..., :3] = X[:1, ..., :3]
    plain, shared, exact = (
        explained(cs.IntegratedGradients(steps=n, baseline=start, share_gap=s)).values
        for n, s in ((steps, False), (steps, True), (5000, False))
    )
    assert torch.allclose(sums(shared), change(start), rtol=1e-12)
    moved = (X - start).abs() > 0
    errors = [
        torch.where(moved, (m - exact) / (X - start), torch.zeros_like(m)).flatten(1).square().sum(1) for m in (plain, shared)
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-6)).all())
    assert bool((shared[0, ..., :3] == 0).all())


# ---------------------------------------------------------------- IDGI, expected gradients
def test_idgi_is_its_formula() -> None:
    steps, expected = 6, torch.zeros_like(X)
    for k in range(steps):
        here = (START + k / steps * WAY).requires_grad_()
        score = SMALL(here)[:, CLASS]
        (g,) = torch.autograd.grad(score.sum(), here)
        rise = SMALL(START + (k + 1) / steps * WAY)[:, CLASS] - score
        expected += (g.square() * (rise / g.square().flatten(1).sum(1)).view(-1, 1, 1, 1)).detach()
    found = explained(cs.IDGI(steps=steps, baseline=START))
    assert relative(found.values, expected) < 1e-12
    assert torch.allclose(sums(found.values), change(START), rtol=1e-12)


def test_idgi_where_the_gradient_vanishes() -> None:
    """A step that starts where nothing changes gives nothing away; what it misses is the gap."""
    late = network(lambda x: F.relu(x.mean((1, 2, 3), keepdim=True) - 0.25) * torch.ones_like(x))
    found = cs.explain(late, torch.ones_like(X), cs.IDGI(steps=2, baseline=0.0), 1)
    assert bool(found.values.isfinite().all())
    total = float(A.sum())
    assert float(sums(found.values)[0]) == pytest.approx(0.5 * total)
    assert found.diagnostics["completeness gap"][0] == pytest.approx(-0.25 * total)


def test_idgi_shares_the_sweep_of_integrated_gradients() -> None:
    methods = [cs.IDGI(steps=5, baseline=START), cs.IntegratedGradients(steps=6, baseline=START, rule="trapezoid")]
    found = cs.explain(network_of(SMALL), X, methods, CLASS)
    assert sum(a.diagnostics["evaluations"] for a in found) <= 2 * 6 + 3
    assert all(torch.equal(a.values, explained(m).values) for a, m in zip(found, methods, strict=True))


def test_expected_gradients() -> None:
    """On a quadratic, from one baseline: A d (x0 + x + noise of alpha); the mean over four, within five standard errors."""
    one = cs.explain(LINEAR, X, cs.ExpectedGradients(baseline=START, samples=2), 1)
    assert relative(one.values, A * WAY) < 1e-13
    assert max(one.diagnostics["standard error of the sum"]) < 1e-12
    data = normal(4, 3, SIZE, SIZE, seed=7)
    found = cs.explain(SQUARE, X, cs.ExpectedGradients(baseline=data, samples=400), 1, batch_size=100)
    expected = sums(A * (X.square() - data.square().mean(0)))
    error = torch.tensor(found.diagnostics["standard error of the sum"])
    assert bool(((sums(found.values) - expected).abs() < 5 * error).all())
    assert bool((error < 0.3 * sums((A * X.square()).abs())).all())


# ---------------------------------------------------------------- curved paths
def places_of(method: cs.Method, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Where a method asks for gradients."""
    seen, ask = [], Probe.grad_and_score

    def asked(self: Probe, x: Tensor, edits: Any = None) -> Any:
        seen.append(x.clone())
        return ask(self, x, edits)

    monkeypatch.setattr(Probe, "grad_and_score", asked)
    explained(method)
    return seen


@pytest.mark.parametrize(("fraction", "distance"), [(0.25, 0.02), (0.1, 0.1), (0.5, 1.0)])
def test_guided_path_is_that_of_its_authors(fraction: float, distance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repaired for the NumPy of today, which calls `interpolation` `method`. It walks one image at a time, ours both."""
    library, np = pytest.importorskip("saliency.core"), pytest.importorskip("numpy")
    quantile, seen = np.quantile, []

    def asked(x: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.tensor(x, dtype=torch.float64).requires_grad_()
        seen.append(leaf.detach())
        return {"INPUT_OUTPUT_GRADIENTS": torch.autograd.grad(SMALL(leaf)[:, CLASS].sum(), leaf)[0].numpy()}

    ours = places_of(cs.GuidedIG(steps=12, baseline=START, fraction=fraction, distance=distance), monkeypatch)
    monkeypatch.setattr(np, "quantile", lambda v, q, interpolation: quantile(v, q, method=interpolation))
    for i, x in enumerate(X):
        seen.clear()
        library.GuidedIG().GetMask(
            x.numpy(), asked, x_baseline=START[0].numpy(), x_steps=12, fraction=fraction, max_dist=distance
        )
        for mine, theirs in zip(ours, seen, strict=False):
            assert relative(mine[i], theirs[0]) < 1e-7


def test_guided_path_only_goes_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value moves towards the image, within its distance from the straight line, and the L1 distance falls evenly."""
    steps, distance = 10, 0.15
    places = places_of(cs.GuidedIG(steps=steps, baseline=START, fraction=0.2, distance=distance), monkeypatch)
    done = [(p - START) / WAY for p in places]
    assert len(places) == steps + 1
    assert torch.equal(places[0], START.expand_as(X))
    assert torch.equal(places[-1], X)
    for k, (before, after) in enumerate(itertools.pairwise(done), 1):
        assert bool((after - before >= -1e-12).all())
        assert float((after - k / steps).abs().max()) <= distance + 1e-9
        left = (X - places[k]).abs().flatten(1).sum(1) / WAY.abs().flatten(1).sum(1)
        assert torch.allclose(left, torch.full_like(left, 1 - k / steps), atol=1e-7)


def test_guided_ig() -> None:
    on_the_line = explained(cs.GuidedIG(steps=9, baseline=START, distance=0.0)).values
    straight = explained(cs.IntegratedGradients(steps=10, baseline=START, rule="trapezoid")).values
    assert relative(on_the_line, straight) < 1e-9
    assert relative(cs.explain(LINEAR, X, cs.GuidedIG(steps=5, baseline=START), 1).values, A * WAY) < 1e-12
    assert bool((explained(cs.GuidedIG(steps=4, baseline=X[:1])).values[0] == 0).all())
    found = explained(cs.GuidedIG(steps=500, baseline=START))
    assert max(found.diagnostics["completeness gap relative"]) < 0.05


@pytest.mark.parametrize(("border", "mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_blur_is_scipys(border: Any, mode: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for sigma in (0.6, 2.5, 9.0):
        theirs = ndimage.gaussian_filter(X.numpy(), (0, 0, sigma, sigma), mode=mode)
        assert relative(blurred_by(X, sigma, border), torch.as_tensor(theirs)) < 1e-12


@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_blur_ig(spacing: Any) -> None:
    """Exact on a linear network for any steps; the gap to the blurred image closes."""
    method = cs.BlurIG(steps=5, sigma=4.0, spacing=spacing)
    assert relative(cs.explain(LINEAR, X, method, 1).values, A * (X - blurred_by(X, 4.0, "reflect"))) < 1e-12
    found = explained(cs.BlurIG(steps=400, sigma=4.0, spacing=spacing))
    start = blurred_by(X, 4.0, "reflect")
    with torch.no_grad():
        true = sums(found.values) - (SMALL(X) - SMALL(start))[:, CLASS]
    assert torch.allclose(true, torch.tensor(found.diagnostics["completeness gap to the blurred image"]).double(), atol=1e-9)
    assert max(found.diagnostics["completeness gap to the blurred image relative"]) < 0.02


def test_blur_ig_is_that_of_its_authors() -> None:
    """One point at a time, since a batch gets the last one's step; both approach the same integral."""
    library = pytest.importorskip("saliency.core", reason="saliency is not installed")

    def asked(x: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
        (g,) = torch.autograd.grad(SMALL(leaf)[:, CLASS].sum(), leaf)
        return {"INPUT_OUTPUT_GRADIENTS": g.permute(0, 2, 3, 1).numpy()}

    mask = library.BlurIG().GetMask(X[0].permute(1, 2, 0).numpy(), asked, max_sigma=3, steps=300, grad_step=1e-5, batch_size=1)
    found = explained(cs.BlurIG(steps=300, sigma=3.0, spacing="linear", border="zero")).values[0]
    assert relative(found, torch.as_tensor(mask).permute(2, 0, 1)) < 2e-2


# ---------------------------------------------------------------- layers
def test_conductance_of_the_input_is_integrated_gradients() -> None:
    found = values(SMALL, X, cs.Conductance(layer="input", steps=6, baseline=START), CLASS)
    assert relative(found, explained(cs.IntegratedGradients(steps=7, baseline=START, rule="trapezoid")).values) < 1e-12


def test_conductance_is_exact_where_all_is_linear() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 10), nn.Flatten()), X)
    found = values(module, X, cs.Conductance(layer="0", steps=1, baseline=START), CLASS)
    with torch.no_grad():
        expected = module[1].weight[CLASS] * (module[0](X) - module[0](START))
    assert relative(found, expected) < 1e-12


def test_conductance_sums_to_the_change_at_every_cut() -> None:
    """One sweep serves all layers, and internal influence as well; captum leaves out both ends of the path."""
    layers, steps = ["0", "2", "4", "7"], 400
    kinds = [cs.Conductance(steps=steps, baseline=START), cs.InternalInfluence(steps=steps, baseline=START)]
    found = cs.explain(network_of(SMALL), X, kinds, CLASS, at=layers, batch_size=256)
    assert sum(a.diagnostics["evaluations"] for a in found) <= 2 * (steps + 1)
    for a in found[:4]:
        assert torch.allclose(sums(a.values), change(START), rtol=2e-2)
    alone = explained(cs.Conductance(layer="2", steps=steps, baseline=START))
    assert relative(found[1].values, alone.values) < 1e-12
    gap = torch.tensor(alone.diagnostics["gap to the target's change"]).double()
    assert torch.allclose(gap, sums(alone.values) - change(START), atol=1e-9)


def test_internal_influence_is_captums() -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    theirs = attr.InternalInfluence(SMALL, SMALL[2]).attribute(
        X, START.expand_as(X), target=CLASS, n_steps=600, method="riemann_middle"
    )
    found = values(SMALL, X, cs.InternalInfluence(layer="2", steps=600, baseline=START), CLASS, batch_size=300)
    assert relative(found, theirs) < 0.01


def test_conductance_on_a_residual_network() -> None:
    """Everything passes through the sum after each stage."""
    module, x = torchvision_network("resnet18"), images("resnet18", 1)
    method, start = cs.Conductance(steps=16, baseline=0.3), torch.full_like(x, 0.3)
    with torch.no_grad():
        expected = (module(x) - module(start))[:, 3]
    for found in cs.explain(network_of(module), x, method, 3, at=["layer2", "layer4"]):
        assert float((sums(found.values) - expected).abs()) < 0.02 * float(found.values.abs().sum())


# ---------------------------------------------------------------- regions
def test_gathered_regions_are_those_of_the_authors() -> None:
    """The order of the regions and their densities, given the same attribution and segments."""
    library, np = pytest.importorskip("saliency.core"), pytest.importorskip("numpy")
    density = normal(SIDE, SIDE, seed=11) + F.interpolate(normal(1, 1, 7, 7, seed=12), (SIDE, SIDE), mode="bicubic")[0, 0]
    corners = torch.randint(0, 190, (40, 2), generator=torch.Generator().manual_seed(1)).tolist()
    masks = torch.zeros(40, SIDE, SIDE, dtype=torch.bool)
    for k, (i, j) in enumerate(corners):
        masks[k, i : i + 12 + k, j : j + 60 - k] = True
    assert library.XRAIParameters().experimental_params["min_pixel_diff"] == LEAST_NEW
    theirs = library.XRAI().GetMask(
        np.zeros((SIDE, SIDE, 1)), None, segments=[m.numpy() for m in masks], base_attribution=density[..., None].numpy()
    )
    assert relative(gathered(density, masks), torch.as_tensor(theirs)) < 1e-6


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """Soft shapes of the size the authors worked at."""
    drawn = F.interpolate(torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(3)), (SIDE, SIDE), mode="bicubic")
    return (drawn > 0.5).double() * 0.6 + 0.4 * drawn.clamp(0, 1).double()


def test_regions_are_those_of_the_authors(picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """At two of their six scales, which take most of the time."""
    xrai = pytest.importorskip("saliency.core.xrai", reason="saliency is not installed")
    monkeypatch.setattr(xrai, "_FELZENSZWALB_SCALE_VALUES", [250, 1200])
    monkeypatch.setattr(path_regions, "SCALES", (250.0, 1200.0))
    array = picture[0].permute(1, 2, 0).numpy()
    theirs = xrai._get_segments_felzenszwalb(array, resize_image=False)
    ours = path_regions._masks(array)
    assert len(ours) == len(theirs) > 10
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_xrai() -> None:
    """Of a linear network: the largest channel of A (x - gray), gathered in the regions of the picture."""
    x = F.interpolate(torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(4)).double(), (40, 40), mode="nearest")
    weights = normal(1, 3, 40, 40, seed=5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 2)).double()
    module[1].weight.data[1] = weights.flatten()
    found = cs.explain(cs.Network(module), x, cs.XRAI(steps=2), 1).values
    for map_, density, image in zip(found, (weights * (x - 0.5)).amax(1), x, strict=True):
        masks = torch.from_numpy(path_regions._masks(image.permute(1, 2, 0).numpy()))
        assert relative(map_[0], gathered(density, masks)) < 1e-12
