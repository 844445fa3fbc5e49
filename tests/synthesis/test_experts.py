"""Experts: log densities against torch's, sums over all states, the best denoiser of a Gaussian; training, windows, files."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import convoscope as cs
from convoscope.synthesis.experts import Expert, gradient_of, load_expert
from convoscope.synthesis.experts_denoising import Denoiser, DenoisingExpert
from convoscope.synthesis.experts_gaussian import GaussianExpert, WindowMoments
from convoscope.synthesis.experts_rbm import RBMExpert, free_energy
from convoscope.synthesis.experts_training import train_expert


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(values: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    a = drawn(values, values, seed=seed)
    return drawn(values, seed=seed + 1), a @ a.T / values


def gaussian(window: tuple[int, int, int], stride: int = 1, **settings: Any) -> GaussianExpert:
    mean, covariance = moments(window[0] * window[1] * window[2])
    return GaussianExpert.fitted(mean, covariance, window, stride=stride, **{"noise": 0.1, **settings})


# ---- Gaussian
def test_the_log_density_is_that_of_torch() -> None:
    mean, covariance = moments(12)
    expert, x = gaussian((3, 2, 2)), drawn(7, 3, 2, 2, seed=5)
    exact = MultivariateNormal(mean, covariance + 0.01 * torch.eye(12, dtype=torch.float64))
    assert torch.allclose(expert(x), exact.log_prob(x.flatten(1)), atol=1e-9)


def test_with_fewer_axes_it_is_that_of_probabilistic_components() -> None:
    mean, covariance = moments(12)
    expert, x = gaussian((3, 2, 2), rank=4), drawn(7, 3, 2, 2, seed=5)
    values, vectors = torch.linalg.eigh(covariance)
    rest = values[:8].mean()
    modeled = vectors[:, 8:] @ torch.diag(values[8:]) @ vectors[:, 8:].T + rest * vectors[:, :8] @ vectors[:, :8].T
    exact = MultivariateNormal(mean, modeled + 0.01 * torch.eye(12, dtype=torch.float64))
    assert torch.allclose(expert(x), exact.log_prob(x.flatten(1)), atol=1e-9)


def test_it_is_differentiable() -> None:
    x = drawn(2, 1, 4, 5, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(gaussian((1, 3, 3), stride=2), (x,))


def test_moments_merge_and_are_those_of_all_windows() -> None:
    x = drawn(9, 2, 5, 4)
    whole, a, b = (WindowMoments(height=2, width=3, stride=1) for _ in range(3))
    whole.update(x)
    a.update(x[:4])
    b.update(x[4:])
    rows = [x[n, :, i : i + 2, j : j + 3].flatten() for n, i, j in itertools.product(range(9), range(4), range(2))]
    for found in (whole.value(), a.merge(b).value()):
        assert torch.allclose(found[0], torch.stack(rows).mean(0))
        assert torch.allclose(found[1], torch.cov(torch.stack(rows).T, correction=0))


def test_a_larger_picture_is_the_product_of_its_windows() -> None:
    expert, x = gaussian((2, 3, 2), stride=2), drawn(3, 2, 6, 5, seed=7)
    places = list(itertools.product((0, 2, 3), (0, 2, 3)))
    each = [expert.density(x[:, :, i : i + 3, j : j + 2].flatten(1)) for i, j in places]
    assert torch.allclose(expert(x), torch.stack(each).sum(0) * (30 / (6 * 9)))
    assert torch.allclose(expert(x[:, :, :3, :2]), expert.density(x[:, :, :3, :2].flatten(1)))


def test_samples_have_its_moments() -> None:
    for rank in (None, 3):
        expert = gaussian((1, 2, 3), rank=rank)
        rows = expert.sample(40_000).flatten(1)
        left = torch.eye(6, dtype=torch.float64) - expert.basis @ expert.basis.T
        covariance = expert.basis @ torch.diag(expert.variances) @ expert.basis.T + expert.rest * left
        assert torch.allclose(rows.mean(0), expert.mean, atol=0.03)
        assert torch.allclose(torch.cov(rows.T), covariance, atol=0.05)


# ---- restricted Boltzmann machine
def machine(hidden: int = 4, values: int = 6) -> RBMExpert:
    tensors = {"weight": drawn(hidden, values), "visible": drawn(values, seed=1), "hidden": drawn(hidden, seed=2)}
    return RBMExpert(window=(1, 2, values // 2), deviation=0.7, **tensors)


def energy(m: RBMExpert, v: Tensor, h: Tensor) -> Tensor:
    inside = (v / m.deviation**2) @ m.weight.T @ h
    return (v - m.visible).square().sum(1) / (2 * m.deviation**2) - m.hidden @ h - inside


def states(count: int) -> list[Tensor]:
    return [torch.tensor(s, dtype=torch.float64) for s in itertools.product((0, 1), repeat=count)]


def test_the_free_energy_is_the_sum_over_all_hidden_states() -> None:
    m, v = machine(), drawn(5, 6, seed=3)
    slow = -torch.stack([-energy(m, v, h) for h in states(4)]).logsumexp(0)
    assert torch.allclose(free_energy(v, m.weight, m.visible, m.hidden, m.deviation), slow)
    assert torch.allclose(m(v.view(5, 1, 2, 3)), -slow)


def test_the_density_is_a_mixture_of_gaussians_up_to_its_constant() -> None:
    """Integrating the pixels out of exp(-E) leaves the weight of each hidden state."""
    m, v = machine(), drawn(5, 6, seed=3)
    logs = []
    for h in states(4):
        mean = m.visible + h @ m.weight
        weight = m.hidden @ h + (mean.square().sum() - m.visible.square().sum()) / (2 * m.deviation**2)
        logs.append(weight - (v - mean).square().sum(1) / (2 * m.deviation**2))
    assert torch.allclose(torch.stack(logs).logsumexp(0), m.density(v))
    assert not m.normalized


def test_its_gradient() -> None:
    assert torch.autograd.gradcheck(machine(), (drawn(2, 1, 3, 4, seed=3).requires_grad_(),))


def two_clusters(count: int = 400) -> Tensor:
    """Bright on the left or bright on the right."""
    draw = torch.Generator().manual_seed(0)
    left = (torch.rand(count, 1, 1, 1, generator=draw) < 0.5).double()
    shape = torch.cat([left.expand(-1, 1, 4, 2), (1 - left).expand(-1, 1, 4, 2)], 3)
    return (0.2 + 0.6 * shape + 0.05 * torch.randn(shape.shape, generator=draw)).clamp(0, 1).float()


@pytest.mark.parametrize("settings", [{"rate": 1e-3}, {"persistent": False, "rate": 3e-3}])
def test_a_trained_machine_prefers_the_data_to_what_lies_between(settings: dict[str, Any]) -> None:
    x = two_clusters()
    made = train_expert("rbm:hidden=8,epochs=12,batch=20", x, **settings)
    mixed = x.mean(0, keepdim=True)  # the Gaussian's favorite
    assert float(made(x).mean()) > float(made(mixed)) + 2
    assert float(made(1 - x).mean()) > float(made(mixed)) + 2
    normal = train_expert("gaussian", x)
    assert float(normal(mixed)) > float(normal(x).mean())


# ---- denoising autoencoder
def test_the_best_denoiser_of_gaussian_data_has_the_gradient_of_their_density() -> None:
    mean, covariance = moments(12)
    noise = 0.6
    noisy = covariance + noise**2 * torch.eye(12, dtype=torch.float64)
    gain = covariance @ torch.linalg.inv(noisy)

    def best(x: Tensor) -> Tensor:
        return (mean + (x.flatten(1) - mean) @ gain.T).view_as(x)

    x = drawn(4, 3, 2, 2, seed=9)
    exact = gradient_of(lambda p: MultivariateNormal(mean, noisy).log_prob(p.flatten(1)), x)
    for views in (1, 4):
        expert = DenoisingExpert(window=(3, 2, 2), denoiser=best, deviation=noise, views=views)
        assert torch.allclose(gradient_of(expert, x), exact, atol=1e-10)
        left = best(x) - x
        assert torch.allclose(expert(x), -left.flatten(1).square().sum(1) / (2 * noise**2))


def test_a_trained_denoiser_comes_near_the_best() -> None:
    draw = torch.Generator().manual_seed(0)
    level = torch.rand(320, 1, 1, 1, generator=draw)
    x = (0.3 + 0.4 * level).expand(-1, 1, 8, 8)  # flat gray: the best denoiser averages
    made = train_expert("denoising:width=8,levels=2,epochs=15,batch=16,noise=0.2,rate=0.005", x)
    noisy = x[:50] + 0.2 * torch.randn(50, 1, 8, 8, generator=draw)
    assert float((made.denoised(noisy) - x[:50]).square().mean()) < 0.17 * 0.2**2
    assert made.report["error left"] < 0.5 * 0.2**2


def test_a_denoiser_takes_any_size() -> None:
    with torch.random.fork_rng():
        expert = DenoisingExpert(window=(2, 8, 8), denoiser=Denoiser(2, 4, 3).double(), deviation=0.2)
    assert expert(torch.rand(3, 2, 13, 7, dtype=torch.float64)).shape == (3,)


# ---- all of them
RECIPES = ["gaussian:rank=5", "rbm:hidden=6,epochs=2,batch=20", "denoising:width=4,levels=2,epochs=2"]


def same(a: Expert, b: Expert, x: Tensor) -> bool:
    return torch.equal(a(x), b(x)) and torch.equal(gradient_of(a, x), gradient_of(b, x))


@pytest.mark.parametrize("recipe", RECIPES)
def test_files_seeds_and_batches(recipe: str, tmp_path: Path) -> None:
    x = two_clusters(80)
    a, b = train_expert(recipe, x, seed=1), train_expert(recipe, x, seed=1)
    assert same(a, b, x[:5])
    found = load_expert(a.save(tmp_path / "expert.safetensors"))
    assert type(found) is type(a)
    assert found.settings == a.settings
    assert same(found, a, x[:5])
    alone = torch.cat([a(row[None]) for row in x[:5]])
    assert torch.allclose(a(x[:5]), alone, rtol=1e-4, atol=1e-4)
    large = torch.rand(2, 1, 9, 6)
    assert a(large).shape == (2,)
    assert gradient_of(a, large).abs().flatten(1).sum(1).min() > 0


@pytest.mark.parametrize(
    "recipe", ["rbm:hidden=6,epochs=5,batch=20,persistent=true", "denoising:width=4,levels=2,epochs=5,batch=20"]
)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(recipe: str, tmp_path: Path) -> None:
    x, store = two_clusters(60), tmp_path / "state"

    def stop(done: int, total: int) -> None:
        if done > 0.5 * total:
            raise KeyboardInterrupt

    whole = train_expert(recipe, x)
    with pytest.raises(KeyboardInterrupt):
        train_expert(recipe, x, store=store, progress=stop)
    assert store.is_file()
    seen: list[int] = []
    again = train_expert(recipe, x, store=store, progress=lambda done, total: seen.append(done / total))
    assert seen[0] > 0.4
    assert same(whole, again, x[:4])
    with pytest.raises(cs.UsageError, match="other settings or data"):
        train_expert(recipe, x[:50], store=store)
    store.write_bytes(b"broken")
    with pytest.raises(cs.LoadError, match="delete it"):
        train_expert(recipe, x, store=store)


def test_windows_of_large_pictures_in_color(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        pixels = torch.rand(30, 41, 3, generator=torch.Generator().manual_seed(i))
        Image.fromarray((pixels * 255).to(torch.uint8).numpy()).save(tmp_path / f"{i}.png")
    for recipe in ("gaussian", "rbm:hidden=5,epochs=1,count=40", "denoising:width=4,levels=2,epochs=1,count=40"):
        made = train_expert(recipe, str(tmp_path), size=28, window=(4, 6))
        assert made.window == (3, 4, 6)
        assert made(torch.rand(2, 3, 32, 20)).shape == (2,)
    assert train_expert("gaussian", str(tmp_path), size=40).window == (3, 16, 16)
    assert train_expert("gaussian", str(tmp_path), size=40, channels=1).window == (1, 40, 40)


def test_maximize_with_an_expert_is_likelier_and_still_the_class() -> None:
    torch.manual_seed(0)
    net = cs.Network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), 4, channels=1)
    expert = train_expert("gaussian", two_clusters(200))
    settings: dict[str, Any] = {"image": "pixels", "transforms": (), "steps": 60, "seed": 0}
    plain = cs.maximize(net, [0, 1, 2], **settings)
    prior = cs.maximize(net, [0, 1, 2], **settings, expert=expert, expert_weight=0.05)
    assert bool((expert(prior.pixels) > expert(plain.pixels)).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gaussian((1, 3, 3))(drawn(2, 1, 2, 5)), "3 or more"),
        (lambda: gaussian((1, 3, 3))(drawn(2, 3, 5, 5)), "this expert knows pictures"),
        (lambda: train_expert("gauss", two_clusters(4)), "no expert 'gauss'"),
        (lambda: train_expert("gaussian", two_clusters(4), window=9), "does not lie in pictures"),
        (lambda: train_expert("gaussian:noise=0", two_clusters(4) * 0 + 0.5), "noise above zero"),
        (lambda: train_expert("gaussian", two_clusters(4), hidden=3), "no setting 'hidden'"),
        (lambda: train_expert("rbm:rate=1e9,epochs=3,hidden=4", two_clusters(40)), "diverged"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make: Any, words: str) -> None:
    with pytest.raises(cs.ConvoscopeError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_other_files_are_no_experts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no")
    for name in ("a", "b", "c"):
        with pytest.raises(cs.LoadError):
            load_expert(tmp_path / f"{name}.safetensors")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from convoscope.cli.run import run
    from convoscope.data.scenes import write_folder

    write_folder(tmp_path / "scenes", 6, 0, 64)
    out = tmp_path / "expert.safetensors"
    words = ["expert", "train", "rbm", str(tmp_path / "scenes" / "pictures"), "--size", "16", "--hidden", "5", "--epochs", "2"]
    assert run([*words, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["window"] == [3, 16, 16]
    assert told["settings"]["recipe"]["hidden"] == 5
    assert load_expert(out)(torch.rand(1, 3, 16, 16)).shape == (1,)
    assert not list(tmp_path.glob(".*.training"))
    assert run(["expert", "train", "rbn", str(tmp_path / "scenes" / "pictures"), "--size", "16"]) == 2
    assert "did you mean 'rbm'" in capsys.readouterr().err
