"""The ascent: closed forms, rows that know nothing of each other, runs that go on to the bit, networks left alone."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope.images.base import Draws, Image, Parameters, Penalty, Space, Transform
from convoscope.synthesis import rows as rows_module
from convoscope.synthesis.updates import Update


class Raw(Image, abstract=True):
    """Pixels as they are: a network that is linear in them has closed forms."""

    size: int | tuple | None = None
    rate, optimizer = 0.1, "sgd"

    def begin(self, space: Space, draws: Draws) -> Parameters:
        return {"pixels": torch.zeros(len(draws.keys), space.channels, *space.size)}

    def pixels(self, parameters: Parameters, space: Space) -> Tensor:
        return parameters["pixels"] * 1.0

    def encode(self, pixels: Tensor, space: Space) -> Parameters:
        return {"pixels": pixels}


class Square(Penalty, abstract=True):
    """The squared norm of a picture."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.square().flatten(1).sum(1)


class Doubled(Transform, abstract=True):
    """Times a factor drawn for each row, view and step."""

    def __call__(self, pixels: Tensor, draws: Draws, step: int) -> Tensor:
        return pixels * draws.uniform((), ("factor", step)).view(-1, 1, 1, 1)


def linear(channels: int = 2, side: int = 3, classes: int = 4) -> cs.Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes)).double()
    return cs.Network(module, side, mean=0.25, std=0.5, channels=channels)


def small(channels: int = 3) -> cs.Network:
    """Convolutions, a norm and rectifiers, in double precision; 16 pixels."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).double()  # fmt: skip
    with torch.no_grad():
        module(torch.randn(32, channels, 16, 16, dtype=torch.float64))  # statistics
    return cs.Network(module.eval(), 16, mean=0.5, std=0.25, channels=channels)


def slope(net: cs.Network, index: int) -> Tensor:
    """The gradient of a logit with respect to pixels 0..1."""
    return (net.module[1].weight[index] / 0.5).view(1, net.channels, 3, 3).detach()


# ---- closed forms
def test_plain_steps_up_a_linear_network() -> None:
    net = linear()
    made = cs.ascend(net, [cs.Logit(1), cs.Logit(3)], Raw(), steps=7, rate=1e-3, start="gray")
    for k, index in enumerate((1, 3)):
        assert torch.allclose(made.pixels[k].double(), (0.5 + 7e-3 * slope(net, index))[0], atol=1e-7)
        x = (made.pixels[k : k + 1].double() - 0.25) / 0.5
        assert made.scores[k] == pytest.approx(float(net.module(x)[0, index].detach()), abs=1e-6)
    assert made.history.shape == (7, 2)
    assert bool((made.history.diff(dim=0) > 0).all())


def test_the_algebra_of_targets() -> None:
    net = linear()
    a, b = slope(net, 0), slope(net, 1)
    cases = {
        cs.Logit(0) - cs.Logit(1): a - b, 2 * (cs.Logit(0) + cs.Logit(1)): 2 * (a + b), cs.Logit(1) - cs.Logit(0): b - a,
        -0.5 * cs.Logit(0) + cs.Logit(1): b - 0.5 * a,
    }  # fmt: skip
    made = cs.ascend(net, list(cases), Raw(), steps=1, rate=1e-2, start="gray")
    for pixels, gradient in zip(made.pixels.double(), cases.values(), strict=True):
        assert torch.allclose(pixels, (0.5 + 1e-2 * gradient)[0], atol=1e-7)


@pytest.mark.parametrize("by", ["penalty", "expert"])
def test_the_class_model_of_simonyan(by: str) -> None:
    """Steps on S - strength * |I|^2 shrink the distance to w / (2 strength) by 1 - 2 rate strength each."""
    net, strength, rate, steps = linear(), 3.0, 0.02, 25
    settings: dict[str, Any] = (
        {"penalties": [Square(strength)]} if by == "penalty" else {"expert": lambda p: -Square()(p), "expert_weight": strength}
    )
    made = cs.ascend(net, cs.Logit(2), Raw(), steps=steps, rate=rate, start="gray", **settings)
    goal = slope(net, 2) / (2 * strength)
    expected = goal + (0.5 - goal) * (1 - 2 * rate * strength) ** steps
    assert torch.allclose(made.pixels.double(), expected.clamp(0, 1), atol=1e-6)


def test_a_penalty_only_lowers() -> None:
    made = cs.ascend(linear(), 0 * cs.Logit(0), Raw(), steps=5, rate=0.1, start="gray", penalties=[Square(1.0)])
    assert torch.allclose(made.pixels, torch.full_like(made.pixels, 0.5 * 0.8**5))


def test_views_are_averaged_and_drawn_anew() -> None:
    net = linear()
    made = cs.ascend(net, cs.Logit(0), Raw(), steps=2, rate=1e-2, start="gray", transforms=[Doubled()], views=3, seed=4)
    space = Space(2, (3, 3), torch.device("cpu"), torch.float64)
    draws = Draws(4, tuple((0, v) for v in range(3)), space)
    factor = sum(float(draws.uniform((), ("factor", step)).mean()) for step in range(2))
    assert torch.allclose(made.pixels.double(), 0.5 + 1e-2 * factor * slope(net, 0), atol=1e-7)


def test_the_rate_goes_from_the_first_to_the_last() -> None:
    net = linear()
    made = cs.ascend(net, cs.Logit(0), Raw(), steps=5, rate=(4e-3, 0.0), start="gray")
    assert torch.allclose(made.pixels.double(), 0.5 + 1e-2 * slope(net, 0), atol=1e-7)


def test_normalized_steps_are_those_of_each_row() -> None:
    net = linear()
    made = cs.ascend(net, [cs.Logit(0), 100 * cs.Logit(0)], Raw(), steps=3, rate=0.01, optimizer="normalized", start="gray")
    expected = 0.5 + 0.03 * slope(net, 0) / slope(net, 0).abs().mean()
    assert torch.allclose(made.pixels.double(), expected.expand(2, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda p: torch.optim.Adam(p, 0.05, maximize=True)),
        ("nadam", lambda p: torch.optim.NAdam(p, 0.05, maximize=True)),
        ("sgd", lambda p: torch.optim.SGD(p, 0.05, maximize=True)),
        ("momentum", lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, maximize=True)),
    ],
)
def test_steps_are_those_of_torch(name: str, make: Callable) -> None:
    torch.manual_seed(2)
    mine, theirs = (torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 12).requires_grad_() for _ in range(2))
    update, optimizer = Update(name, [mine], 0.05, 40), make([theirs])
    for step in range(40):
        theirs.grad = torch.randn(2, 12, dtype=torch.float64) * 10 ** (step % 5 - 3)
        update(step, [theirs.grad.clone()])
        optimizer.step()
    assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)  # torch keeps NAdam's product in single precision


# ---- rows know nothing of each other
def mixed() -> list[cs.Target]:
    """Sixteen targets at four addresses, some of them twice."""
    return [
        *(cs.Channel("1", k) for k in range(5)), *(cs.Logit(k) for k in range(4)), *(cs.Channel("4", 3 * k) for k in range(4)),
        cs.Neuron("4", 2, 3, 1), cs.Channel("1", 0), cs.Channel("4", 1) - 0.5 * cs.Channel("1", 2),
    ]  # fmt: skip


def test_sixteen_at_once_are_sixteen_single_runs() -> None:
    net = small()
    settings: dict[str, Any] = {"steps": 12, "transforms": ["jitter:pixels=2", "spin"], "penalties": [Square(1e-3)], "seed": 3}
    together = cs.ascend(net, mixed(), "fourier", copies=2, **settings)
    assert len(together) == 32
    for k, target in enumerate(mixed()):
        alone = cs.ascend(net, target, "fourier", copies=2, batch_size=1, **settings)
        assert torch.allclose(together.pixels[2 * k : 2 * k + 2], alone.pixels, atol=1e-6)
        assert torch.allclose(together.history[:, 2 * k : 2 * k + 2], alone.history, rtol=1e-9)
        assert together.held_out[2 * k : 2 * k + 2] == pytest.approx(alone.held_out, rel=1e-6)
    assert not torch.allclose(together.pixels[0], together.pixels[1], atol=1e-3)  # copies differ


def test_the_same_seed_gives_the_same_bits_and_another_another_picture() -> None:
    net = small()
    one, two, three = (cs.ascend(net, cs.Logit(1), "fourier", steps=5, transforms=["spin"], seed=s) for s in (7, 7, 8))
    assert torch.equal(one.pixels, two.pixels)
    assert one.to_dict()["pictures"] == two.to_dict()["pictures"]
    assert not torch.allclose(one.pixels, three.pixels)


def test_a_batch_is_never_larger_than_asked() -> None:
    net, seen = small(), []
    net.module[0].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    made = cs.ascend(net, mixed(), Raw(), steps=1, views=2, batch_size=4)
    assert max(seen) == 4
    assert len(made) == 16


# ---- interrupted and resumed
class Stop:
    """Raises once so many steps of single pictures are done."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error

    def __call__(self, done: int, total: int) -> None:
        if done >= self.after:
            raise self.error


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "sgd", "momentum", "normalized"])
def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path, optimizer: str) -> None:
    net, steps = small(), 6
    settings: dict[str, Any] = {
        "steps": steps,
        "optimizer": optimizer,
        "transforms": ["jitter:pixels=2"],
        "copies": 2,
        "rate": 0.01,
    }
    targets = [cs.Channel("1", 3), cs.Logit(0)]  # two batches, of which the first is done when the second stops
    whole = cs.ascend(net, targets, "fourier", **settings)
    for after in range(2, 24, 5):
        store = tmp_path / f"{optimizer}-{after}"
        with pytest.raises(KeyboardInterrupt):
            cs.ascend(net, targets, "fourier", store=store, progress=Stop(after), **settings)
        again = cs.ascend(net, targets, "fourier", store=store, **settings)
        assert torch.equal(whole.pixels, again.pixels)
        assert torch.equal(whole.history, again.history)
        assert whole.scores == again.scores
        assert [s for s, _ in whole.frames] == [s for s, _ in again.frames]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole.frames, again.frames, strict=True))
        assert again.diagnostics["continued from step"] > 0
        third = cs.ascend(net, targets, "fourier", store=store, progress=Stop(10**9), **settings)
        assert torch.equal(whole.pixels, third.pixels)  # nothing left to do


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "EVERY", 0.0)
    net = small()

    def run(**settings: Any) -> cs.Synthesis:
        return cs.ascend(net, cs.Logit(2), "fourier", steps=9, transforms=["spin"], **settings)

    whole = run()
    child = os.fork()
    if child == 0:
        try:
            run(store=tmp_path, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 6 else None)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    again = run(store=tmp_path)
    assert 0 < again.diagnostics["continued from step"] <= 6
    assert torch.equal(whole.pixels, again.pixels)


def test_an_interruption_amid_a_step_keeps_the_last_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, ordinary = small(), Update.__call__
    settings: dict[str, Any] = {"steps": 5, "store": tmp_path}
    whole = cs.ascend(net, cs.Logit(2), "fourier", steps=5)

    def half(self: Update, step: int, gradients: Sequence[Tensor]) -> None:
        ordinary(self, step, gradients)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Update, "__call__", half)
    with pytest.raises(KeyboardInterrupt):
        cs.ascend(net, cs.Logit(2), "fourier", **settings)
    monkeypatch.undo()
    assert torch.equal(cs.ascend(net, cs.Logit(2), "fourier", **settings).pixels, whole.pixels)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_state_counts_as_none(tmp_path: Path, damage: bytes | None) -> None:
    net = small()
    whole = cs.ascend(net, cs.Logit(2), "fourier", steps=4, store=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    again = cs.ascend(net, cs.Logit(2), "fourier", steps=4, store=tmp_path)
    assert torch.equal(whole.pixels, again.pixels)
    assert "continued from step" not in again.diagnostics


@pytest.mark.parametrize("change", [{"seed": 1}, {"rate": 0.1}, {"views": 2}, {"penalties": [Square(2.0)]}, {"start": "black"}])
def test_other_settings_do_not_go_on_from_a_state(tmp_path: Path, change: dict[str, Any]) -> None:
    net = small()
    cs.ascend(net, cs.Logit(2), "fourier", steps=2, store=tmp_path)
    assert "continued from step" not in cs.ascend(net, cs.Logit(2), "fourier", steps=2, store=tmp_path, **change).diagnostics


# ---- the network and memory
@pytest.mark.parametrize("stop", [None, RuntimeError])
def test_the_network_is_left_as_it_was(stop: type[BaseException] | None) -> None:
    net = small()
    net.module.train()
    net.module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    flags = [p.requires_grad for p in net.module.parameters()]
    state = torch.get_rng_state()
    settings: dict[str, Any] = {"steps": 3, "transforms": ["spin"], "progress": Stop(2, stop) if stop else None}
    with pytest.raises(stop) if stop else torch.no_grad():
        cs.ascend(net, cs.Logit(2), "fourier", **settings)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert [p.requires_grad for p in net.module.parameters()] == flags
    assert all(p.grad is None for p in net.module.parameters())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in net.module.modules())
    assert torch.equal(torch.get_rng_state(), state)


class Narrow(nn.Module):
    """Has memory for two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.refused = nn.Conv2d(1, 4, 3).double(), 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return self.conv(x).mean((2, 3))


def test_batches_are_halved_once_where_memory_is_short() -> None:
    torch.manual_seed(0)
    module = Narrow()
    net = cs.Network(module, 8)
    targets = [cs.Logit(k) for k in range(4)]
    made = cs.ascend(net, targets, "pixels", steps=4, copies=2)
    assert made.diagnostics["batch size halved to"] == 2
    assert module.refused == 6  # 128, 64, 32, 16, 8 and 4 rows at once, and never again
    alone = cs.ascend(net, targets, "pixels", steps=4, copies=2, batch_size=2)
    assert torch.allclose(made.pixels, alone.pixels, atol=1e-7)
    with pytest.raises(cs.ConvoscopeError, match="out of memory with batch_size 4"):
        cs.ascend(net, targets, "pixels", steps=4, batch_size=4)


# ---- units that start dead
def closed() -> cs.Network:
    """Channel 0 passes nothing of a gray picture, channel 1 does."""
    conv = nn.Conv2d(1, 2, 3).double()
    with torch.no_grad():
        conv.weight[:] = torch.tensor([1.0, 1.0]).view(2, 1, 1, 1)
        conv.bias[:] = torch.tensor([-6.0, 1.0])
    return cs.Network(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(2, 2, 1).double(), nn.ReLU()), 8)


def test_a_dead_unit_is_woken_and_its_neighbor_notices_nothing() -> None:
    net, dead, live = closed(), cs.Channel("1", 0), cs.Channel("1", 1)
    settings: dict[str, Any] = {"steps": 30, "rate": 0.2, "start": "gray"}
    asleep = cs.ascend(net, dead, "pixels", redirect=0, **settings)
    assert asleep.scores == [0.0]
    assert torch.equal(asleep.pixels[0], asleep.pixels[0, :, :1, :1].expand(1, 8, 8))
    awake = cs.ascend(net, [dead, live], "pixels", **settings)
    assert awake.scores[0] > 1
    assert torch.equal(awake.pixels[1], cs.ascend(net, live, "pixels", redirect=0, **settings).pixels[0])


# ---- any network, any picture
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_and_any_shape(channels: int) -> None:
    made = cs.ascend(small(channels), cs.Channel("4", 2), "fourier:size=(12,17)", steps=2)
    assert made.pixels.shape == (1, channels, 12, 17)
    assert made.image().size[0] > 17
    assert made.strip().size[0] > 17


def test_a_network_of_half_precision_is_shown_pictures_of_single() -> None:
    net = small()
    net.module.to(torch.bfloat16)
    made = cs.ascend(net, [cs.Channel("4", 2), cs.Neuron("4", 1)], "fourier", steps=12, transforms=["spin"], seed=1)
    assert bool(made.pixels.isfinite().all())
    assert made.pixels.unique().numel() > 300  # eight bits would be 256
    assert all(float(h[-4:].mean()) > float(h[0]) for h in made.history.T)


def test_a_neuron_without_a_position_is_in_the_middle() -> None:
    net = small()
    open_, named = (cs.ascend(net, t, "fourier", steps=3) for t in (cs.Neuron("4", 2), cs.Neuron("4", 2, 3, 3)))
    assert torch.equal(open_.pixels, named.pixels)
    assert open_.targets == named.targets
    both = cs.ascend(net, 2 * cs.Neuron("4", 2, row=1) - cs.Logit(0), Raw(), steps=1)
    assert both.targets[0] == 2 * cs.Neuron("4", 2, 1, 3) - cs.Logit(0)


def test_who_watches_sees_every_step_and_progress_ends_whole() -> None:
    steps, told = [], []
    made = cs.ascend(
        small(), [cs.Logit(0), cs.Channel("1", 0)], "fourier", steps=4, progress=lambda *d: told.append(d),
        watch=lambda step, pixels: steps.append((step, pixels.shape)),
    )  # fmt: skip
    assert [s for s, _ in steps] == [0, 1, 2, 3, 4] * 2
    assert all(shape == (1, 3, 16, 16) for _, shape in steps)
    assert told == [(k, 8) for k in range(1, 9)]
    assert [s for s, _ in made.frames] == [0, 1, 2, 4]


def test_starts() -> None:
    net, given = linear(), torch.rand(2, 2, 3, 3, dtype=torch.float64)
    first = {s: cs.ascend(net, cs.Logit(0), Raw(), start=s, steps=0).pixels for s in ("gray", "black", "random")}
    assert bool((first["gray"] == 0.5).all())
    assert bool((first["black"] == 0).all())
    assert first["random"].std() > 0.1
    made = cs.ascend(net, [cs.Logit(0), cs.Logit(1)], Raw(), start=given, steps=0)
    assert torch.allclose(made.pixels.double(), given, atol=1e-7)
    assert torch.allclose(cs.ascend(net, cs.Logit(0), Raw(), start=given[:1], copies=3, steps=0).pixels[2].double(), given[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": []}, "name the targets"),
        ({"targets": ["tabby"]}, "name the targets"),
        ({"targets": cs.Logit()}, "name the class"),
        ({"targets": cs.Logit((0, 1))}, "2 entries"),
        ({"targets": cs.Logit(9)}, "no class 9"),
        ({"targets": cs.Channel("nowhere", 1)}, "nowhere"),
        ({"targets": cs.Channel("4", 99)}, "there are 16"),
        ({"image": "pixls"}, "pixels"),
        ({"image": 3}, "pixels"),
        ({"steps": -1}, "steps is -1"),
        ({"copies": 0}, "copies is 0"),
        ({"views": 1.5}, "views is 1.5"),
        ({"redirect": -2}, "redirect is -2"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "big"}, "batch_size is 'big'"),
        ({"rate": 0}, "a rate is"),
        ({"rate": (1, 2, 3)}, "a rate is"),
        ({"rate": float("nan")}, "a rate is"),
        ({"optimizer": "lion"}, "no optimizer 'lion'"),
        ({"start": "white"}, "no start 'white'"),
        ({"start": torch.zeros(2, 3, 16, 16)}, "one picture, or one for each"),
        ({"start": torch.zeros(1, 3, 8, 8)}, "a start is pixels"),
        ({"transforms": ["jiter"]}, "jitter"),
        ({"penalties": [3]}, "penalty"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings: dict[str, Any], said: str) -> None:
    given = {"targets": cs.Logit(0), "image": "fourier", "steps": 1} | settings
    with pytest.raises(cs.UsageError, match=said) as error:
        cs.ascend(small(), given.pop("targets"), given.pop("image"), **given)
    assert "\n" not in str(error.value)


def test_a_network_of_any_size_needs_a_picture_of_some() -> None:
    net = cs.Network(small().module, channels=3)
    with pytest.raises(cs.UsageError, match="give the picture one"):
        cs.ascend(net, cs.Logit(0), "pixels", steps=1)


# ---- a real network
def test_units_of_resnet18_together_and_alone(torch_home: Path) -> None:
    """Rounding differs with the batch, by a few units of the last place in each step."""
    net = cs.load("torchvision:resnet18")
    targets = [cs.Channel("layer1.1.bn2", k) for k in range(4)]
    settings: dict[str, Any] = {"image": "fourier:size=48", "steps": 6, "transforms": ["spin"]}
    together = cs.ascend(net, targets, **settings)
    for k, target in enumerate(targets):
        alone = cs.ascend(net, target, **settings)
        assert torch.allclose(together.pixels[k], alone.pixels[0], atol=2e-3)
    assert not torch.allclose(together.pixels[0], together.pixels[1], atol=0.02)
