"""Training of generators: what they learn, that an interruption changes nothing, that networks are left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.core.record import record
from convoscope.images.generator import Upconvolution, doublings, load_generator
from convoscope.synthesis import generator_loop
from convoscope.synthesis.generator_codes import Features
from convoscope.synthesis.generator_inverse import Losses, train_dgn_am
from convoscope.synthesis.generator_loop import Pictures, drawn


def squares(count: int = 48, side: int = 16, channels: int = 1) -> Tensor:
    """A bright square on black somewhere: two numbers say where."""
    pictures = torch.zeros(count, channels, side, side, dtype=torch.uint8)
    for k, (y, x) in enumerate(torch.randint(0, side - 8, (count, 2), generator=drawn("places")).tolist()):
        pictures[k, :, y : y + 8, x : x + 8] = 230
    return pictures


def small() -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    return cs.Network(module.train(), 16)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (96, 96), (64, 96), (50, 50), (7, 7), (224, 224)])
@pytest.mark.parametrize("code", [(5,), (5, 1, 1), (5, 6, 6), (5, 13, 13)])
def test_any_size_can_be_made_of_any_code(size: tuple[int, int], code: tuple[int, ...]) -> None:
    module = Upconvolution(code, size, 2, 2).eval()
    assert module(torch.randn(1, *code)).shape == (1, 2, *size)


def test_a_map_is_doubled_from_a_side_of_four_to_seven() -> None:
    assert [doublings((n, n)) for n in (4, 8, 28, 32, 96, 224)] == [0, 1, 2, 3, 4, 5]
    assert doublings((96, 96), (12, 12)) == 3


@pytest.mark.parametrize("kind", ["gan", "dcgan"])
def test_a_gan_learns_what_the_pictures_have_in_common(kind: Any) -> None:
    """Left half bright, right half dark, in every picture: made pictures come to have that too."""
    pictures = torch.zeros(16, 1, 16, 16, dtype=torch.uint8)
    pictures[..., :8] = 220
    untrained, trained = (
        cs.train_gan(pictures, kind, size=16, channels=1, code=4, width=8, steps=n, batch_size=8, rate=2e-3) for n in (1, 400)
    )
    codes = torch.randn(20, 4, generator=drawn("codes"))
    contrast = [float(g(codes)[..., :8].mean() - g(codes)[..., 8:].mean()) for g in (untrained, trained)]
    assert abs(contrast[0]) < 0.3
    assert contrast[1] > 0.4, contrast
    assert trained.prior == "normal"


def test_the_inverse_of_a_layer_shows_what_the_layer_saw() -> None:
    net, data = small(), squares()
    losses = Losses(adversarial=0.0)
    generator = train_dgn_am(net, data, "3", width=8, losses=losses, steps=150, batch_size=16, rate=1e-2)
    x = net.read(data)
    with torch.no_grad():
        made = generator(record(net.plain, x, ("3",))["3"])
    assert float((made - x).square().mean() / x.var()) < 0.25
    assert generator.code == (8, 4, 4)
    assert generator.made["rectified"]


def test_bounds_are_the_mean_and_three_deviations_of_the_layer() -> None:
    net, data = small(), squares(10)
    generator = train_dgn_am(net, data, "3", width=2, steps=1, batch_size=4)
    with torch.no_grad():
        codes = record(net.plain.eval(), net.read(data), ("3",))["3"].double()
    low, high = generator.bounds
    assert torch.allclose(high.double(), codes.mean(0) + 3 * codes.std(0, unbiased=False), atol=1e-5)
    assert not low.any()


def test_codes_of_components_are_white_over_the_data() -> None:
    net, data = small(), squares(40)
    known = Pictures(net, data, 100, 8, 0)
    features = Features.measured(net, ("input", "3"), known, 5)
    with torch.no_grad():
        codes = features.code(record(net.plain, net.read(data), ("input", "3"))).double()
    assert torch.allclose(codes.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(codes.T @ codes / 40, torch.eye(5, dtype=torch.float64), atol=1e-3)


def test_components_of_one_layer_are_those_of_a_singular_value_decomposition() -> None:
    net, data = small(), squares(40)
    features = Features.measured(net, ("3",), Pictures(net, data, 100, 8, 0), 3)
    with torch.no_grad():
        activations = record(net.plain, net.read(data), ("3",))
        rows = activations["3"].double().flatten(1)
        found = features.code(activations).double()
    left = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).U[:, :3] * 40**0.5
    assert torch.allclose((left.T @ found / 40).abs(), torch.eye(3, dtype=torch.float64), atol=1e-3)


def test_several_layers_need_a_number_of_components() -> None:
    with pytest.raises(cs.UsageError, match="components="):
        train_dgn_am(small(), squares(8), ("input", "3"), steps=1, batch_size=4)
    with pytest.raises(cs.UsageError, match="give fewer"):
        train_dgn_am(small(), squares(8), ("3",), components=8, steps=1, batch_size=4)


@pytest.mark.parametrize("components", [None, 3])
def test_an_interrupted_training_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, components: int | None
) -> None:
    net, data = small(), squares(12)
    settings: dict[str, Any] = {"components": components, "width": 2, "steps": 6, "batch_size": 4, "losses": Losses(warm=0.4)}
    whole = train_dgn_am(net, data, "3", **settings)
    store = tmp_path / "state"

    def stop(done: int, total: int) -> None:
        if (done, total) == (4, 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(generator_loop, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_dgn_am(net, data, "3", store=store, progress=stop, **settings)
    assert store.is_file()
    seen: list[int] = []
    again = train_dgn_am(net, data, "3", store=store, progress=lambda done, total: seen.append(done), **settings)
    assert seen[0] == 4  # step 3 was the last to be written
    assert same(whole.module, again.module)
    assert again.hash == whole.hash


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    data, store = squares(8), tmp_path / "state"
    cs.train_gan(data, "gan", size=16, channels=1, code=2, width=4, steps=1, batch_size=4, store=store)
    with pytest.raises(cs.UsageError, match="other settings or data"):
        cs.train_gan(data, "gan", size=16, channels=1, code=2, width=4, steps=1, batch_size=4, store=store, seed=1)
    store.write_bytes(b"junk")
    with pytest.raises(cs.UsageError, match="no state of a training"):
        cs.train_gan(data, "gan", size=16, channels=1, code=2, width=4, steps=1, batch_size=4, store=store)


def test_training_an_inverse_leaves_the_network_alone() -> None:
    net = small()
    before = {k: v.clone() for k, v in net.plain.state_dict().items()}
    state = torch.random.get_rng_state()
    train_dgn_am(net, squares(8), "3", width=2, steps=2, batch_size=4, losses=Losses(warm=0.0))
    assert net.plain.training
    assert all(p.requires_grad and p.grad is None for p in net.plain.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.plain.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.plain.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_generator_of_the_scenes_ships() -> None:
    generator = load_generator("scenes")
    pictures = generator(torch.randn(2, *generator.code, generator=drawn("codes")))
    assert pictures.shape == (2, 3, 96, 96)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
