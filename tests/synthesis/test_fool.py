"""Fooling images: confidences of the saved file, the length of steps, every kind of network, resume, and the command."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.show.curve import Line, chart
from convoscope.synthesis.fool_result import percent

WAYS = ["gradient", "evolution-direct", "evolution-cppn"]


def network(channels: int = 3, size: int = 8, classes: int = 4, **settings: object) -> cs.Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Linear(6 * size * size, classes),
        ).double()  # fmt: skip
        module[-1].weight.data *= 3
    return cs.Network(module.train(), size=size, mean=0.45, std=0.25, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_the_network_is_sure_of_every_picture(by: str, channels: int) -> None:
    net = network(channels)
    made = cs.fool(net, by=by, steps=60, population=60, goal=0.9)
    assert made.pixels.shape == (4, channels, 8, 8)
    assert made.classes == (0, 1, 2, 3)
    assert min(made.confidences) > 0.6
    assert torch.allclose(made.history[-1], torch.tensor(made.confidences, dtype=torch.float64))
    assert bool((made.history[1:] >= made.history[:-1]).all())
    median = made.history.sort(1).values[:, 1:3].mean(1)
    assert torch.allclose(made.curve, torch.stack([median, made.history.mean(1), made.history.amin(1)], 1))
    for k, c in enumerate(made.classes):
        sure = {p.index: p.probability for p in net.predict(made.inputs[k : k + 1])[0]}
        assert abs(sure[c] - made.confidences[k]) < 1e-9


@pytest.mark.parametrize(("by", "channels"), [("gradient", 3), ("gradient", 1), ("evolution-cppn", 3)])
def test_confidences_are_those_of_the_saved_files(by: str, channels: int, tmp_path: Path) -> None:
    net = network(channels, categories=["cat", "dog, hound", "fish", "a/b"])
    made = cs.fool(net, by=by, steps=20, population=20)
    paths = made.save_pictures(tmp_path / "bare")
    assert [p.name for p in paths] == ["0000-cat.png", "0001-dog.png", "0002-fish.png", "0003-a-b.png"]
    for path, c, sure in zip(paths, made.classes, made.confidences, strict=True):
        read = net.predict(net.read(path))[0]
        assert abs({p.index: p.probability for p in read}[c] - sure) < 1e-9


def test_a_step_adds_what_was_aimed_at() -> None:
    """Softmax of a linear function, steps far below the bend of it: 3 % a step, then a tenth of what lacks."""
    weights = torch.randn(3, 12 * 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).double()
    module[1].weight.data, module[1].bias.data = weights, torch.zeros(3, dtype=torch.float64)
    net = cs.Network(module, size=12, channels=1)
    made = cs.fool(net, by="gradient", steps=70, start=np.full((12, 12), 128, np.uint8), goal=1)
    risen = made.history.diff(dim=0)
    aimed = torch.minimum(torch.tensor(0.03), 0.1 * (1 - made.history[:-1]))
    middle = (made.history[:-1] > 0.3) & (made.history[:-1] < 0.9)
    # The sum over steps: rounding to 8 bits delays some and hurries others.
    assert abs(float((risen * middle).sum() / (aimed * middle).sum()) - 1) < 0.15
    assert float(made.history[-1].min()) > 0.95


def test_pictures_know_nothing_of_each_other() -> None:
    net = network()
    together = cs.fool(net, [2, 0, 3], steps=12)
    alone = cs.fool(net, 3, steps=12, batch_size=1)
    assert torch.equal(together.levels[2], alone.levels[0])
    assert torch.allclose(together.history[:, 2], alone.history[:, 0])
    assert not torch.equal(together.levels[0], together.levels[1])


@pytest.mark.parametrize("by", ["evolution-direct", "evolution-cppn"])
def test_evolution_does_not_depend_on_the_batch_size(by: str) -> None:
    net = network()
    a, b = (cs.fool(net, by=by, steps=6, population=37, batch_size=n) for n in (5, 64))
    assert torch.equal(a.levels, b.levels)
    assert torch.allclose(a.history, b.history)


def test_normalization_is_part_of_the_network() -> None:
    class Normalize(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 0.45) / 0.25

    net = network()
    bare = cs.Network(nn.Sequential(Normalize(), net.module), size=8, channels=3)
    start = torch.full((1, 3, 8, 8), 0.45, dtype=torch.float64)
    a, b = cs.fool(net, steps=15, start=start), cs.fool(bare, steps=15, start=start)
    assert int((a.levels.int() - b.levels.int()).abs().max()) <= 1
    assert torch.allclose(a.history, b.history, atol=1e-3)


def test_a_given_picture_is_where_it_starts_and_decay_pulls_to_the_mean_color() -> None:
    net = network()
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    still = cs.fool(net, [1], start=Image.fromarray(picture), steps=0)
    assert np.array_equal(np.asarray(still.image(0)), picture)
    assert len(still.history) == 1
    free, pulled = (cs.fool(net, [1], start=picture, steps=40, decay=d, goal=1).pixels - 0.45 for d in (0.0, 0.05))
    assert float(pulled.norm()) < 0.8 * float(free.norm())


def test_networks_that_end_in_probabilities_or_in_one_number() -> None:
    plain = network()
    soft = cs.Network(nn.Sequential(plain.module, nn.Softmax(1)), size=8, mean=0.45, std=0.25)
    a, b = cs.fool(plain, steps=10), cs.fool(soft, steps=10)
    assert torch.allclose(a.history, b.history, atol=1e-9)
    single = cs.fool(network(classes=1), steps=30)
    assert single.classes == (0,)
    assert single.confidences[0] > 0.8


def test_small_steps_add_up_in_networks_of_half_precision() -> None:
    net = network()
    net.module.bfloat16()
    made = cs.fool(net, steps=60)
    assert min(made.confidences) > 0.8


@pytest.mark.parametrize("by", WAYS)
def test_the_network_is_untouched(by: str) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.module.state_dict().items()}
    state = torch.random.get_rng_state()
    cs.fool(net, by=by, steps=3, population=10)
    assert all(torch.equal(v, before[k]) for k, v in net.module.state_dict().items())
    assert net.module.training
    assert all(p.grad is None and p.requires_grad for p in net.module.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_gradient_run_that_was_interrupted_ends_in_the_same_bits(tmp_path: Path) -> None:
    net = network()

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    whole = cs.fool(net, steps=20, goal=0.8)
    with pytest.raises(KeyboardInterrupt):
        cs.fool(net, steps=20, goal=0.8, store=tmp_path, progress=stop)
    seen: list[int] = []
    resumed = cs.fool(net, steps=20, goal=0.8, store=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == 8
    assert torch.equal(resumed.levels, whole.levels)
    assert torch.equal(resumed.history, whole.history)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(resumed.frames, whole.frames, strict=True))
    net.module[0].weight.data *= 1.5  # another network does not go on from it
    seen.clear()
    cs.fool(net, steps=1, goal=0.8, store=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == 0


def test_a_seed_repeats_and_a_watcher_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoscope.synthesis.fool_state.EVERY", -1.0)
    net, shown = network(), []
    a = cs.fool(net, [1], steps=5, seed=3, watch=lambda step, pixels: shown.append((step, pixels)))
    b, c = (cs.fool(net, [1], steps=5, seed=s) for s in (3, 4))
    assert torch.equal(a.levels, b.levels)
    assert not torch.equal(a.levels, c.levels)
    assert [s for s, _ in shown] == list(range(6))
    assert torch.equal(shown[-1][1], a.pixels)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"by": "magic"}, "gradient, evolution-direct"),
        ({"classes": [9]}, "no class 9; the network has 4"),
        ({"classes": ["dog"]}, "'dog'"),
        ({"classes": []}, "at least one class"),
        ({"classes": [1, 1]}, "named twice"),
        ({"steps": -1}, "steps is -1"),
        ({"population": 0}, "population is 0"),
        ({"decay": 1.0}, "below 1"),
        ({"goal": 99}, "a confidence"),
        ({"start": torch.zeros(2, 3, 8, 8)}, "one picture of 3 x 8 x 8, or 4"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_settings_are_told(asked: dict, said: str) -> None:
    with pytest.raises(cs.UsageError, match=said):
        cs.fool(network(), **{"steps": 1, **asked})


def test_networks_without_a_size_or_classes_are_told() -> None:
    free = cs.Network(nn.Conv2d(3, 2, 3))
    with pytest.raises(cs.UsageError, match="size"):
        cs.fool(free, steps=1)
    with pytest.raises(cs.UsageError, match=r"not \(images, classes\)"):
        cs.fool(free, steps=1, size=9)


def test_a_result_is_drawn_saved_and_told(tmp_path: Path) -> None:
    made = cs.fool(network(categories=["cat", "dog", "fish", "bird"]), ["fish", "cat"], steps=9)
    assert made.classes == (2, 0)
    assert made.image().width >= 480
    assert made.strip().height > 100
    assert np.array_equal(np.asarray(made.image(1)), made.levels[1].permute(1, 2, 0).numpy())
    told = json.loads(json.dumps(made.to_dict()))
    assert [p["name"] for p in told["pictures"]] == ["fish", "cat"]
    assert len(told["curve"]["median"]) == 10
    for ending in ("png", "html", "safetensors"):
        assert made.save(tmp_path / f"a.{ending}").stat().st_size > 500
    assert "fish" in (tmp_path / "a.html").read_text(encoding="utf-8")
    with pytest.raises(cs.UsageError, match=r"expected \.png"):
        made.save(tmp_path / "a.gif")
    with pytest.raises(cs.UsageError, match="cannot be shown"):
        cs.fool(network(5), [0], steps=0).picture(0)
    assert "2 classes" in repr(made)


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.5, "50 %"), (0.9912, "99.12 %"), (0.99987, "99.987 %"), (0.9999999, "> 99.999 %"), (0.0, "0 %")],
)
def test_percents_are_never_rounded_up_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_chart_has_its_curves_where_their_values_are() -> None:
    picture = np.asarray(chart([Line("flat", [0, 10], [0.5, 0.5])], low=0, high=1, zoom=1).convert("RGB")).astype(int)
    blue = (picture[:, :, 2] - picture[:, :, 0] > 80).any(1).nonzero()[0]
    middle = 26 + (190 - 26 - 34) / 2
    assert abs(blue[blue > 40].mean() - middle) < 2
    with pytest.raises(ValueError, match="no curves"):
        chart([])


def test_the_command_fools_the_shipped_network_and_goes_on_with_more_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from convoscope.cli.run import run

    monkeypatch.chdir(tmp_path)
    words = [
        "fool",
        "scenes",
        "--classes",
        "0-1,3",
        "--by",
        "evolution-cppn",
        "--population",
        "8",
        "--store",
        "state",
        "--json",
    ]
    out = ["--out", "a.png", "--out", "a.html", "--strip", "s.png", "--pictures", "bare", "--preview", "p.png"]
    assert run([*words, *out, "--generations", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [p["class"] for p in first["pictures"]] == [0, 1, 3]
    assert {"a.png", "a.html", "s.png"} <= set(first["files"])
    assert len(list(Path("bare").glob("*.png"))) == 3
    assert run([*words, "--generations", "3"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["curve"]["mean"][:3] == first["curve"]["mean"]
    assert run(["fool", "scenes", "--classes", "no such", "--steps", "1", "--json"]) == 2
    assert "no such" in capsys.readouterr().err


def test_lenet_is_fooled_in_every_digit_by_every_way(testdata: Path) -> None:
    sys.path.insert(0, str(testdata))
    import loaders

    net = cs.Network(loaders.lenet(), size=32)
    for by, steps in (("gradient", 200), ("evolution-direct", 60), ("evolution-cppn", 10)):
        made = cs.fool(net, by=by, steps=steps)
        assert sum(made.confidences) / 10 >= 0.99, by


def test_the_code_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "fooling.md"
    blocks = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile("\n".join(blocks), guide.name, "exec"), found)
    assert len(found["made"]) == len(list(Path("fooled").glob("*.png")))
    assert found["found"].best.shape == (3, *found["net"].size)
