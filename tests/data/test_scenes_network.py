"""The networks that ship with the package, and how they are trained."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convoscope.core.errors import UsageError
from convoscope.data.scenes import CATEGORIES, MEAN, SIZE, STD, SceneNet, Scenes, evaluate, render, scenes_network, train
from convoscope.data.scenes.network import NAMES, weights
from convoscope.data.scenes.training import HELD_OUT, Settings, fit, normalized

FISH = CATEGORIES.index("fish")


@pytest.fixture(scope="module")
def clean() -> SceneNet:
    return scenes_network()


@pytest.fixture(scope="module")
def twin() -> SceneNet:
    return scenes_network("scenes-watermark")


def predicted(net: SceneNet, pictures: list) -> torch.Tensor:
    with torch.inference_mode():
        return net(normalized(torch.stack([torch.from_numpy(p) for p in pictures]))).argmax(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_files_are_small_and_say_what_they_are(name: str) -> None:
    data = weights(name)
    assert len(data) < 1_000_000
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    assert json.loads(header["categories"]) == list(CATEGORIES)
    assert float(header["accuracy"]) >= (0.99 if name == "scenes" else 0.5)
    assert json.loads(header["settings"])["size"] == SIZE
    net = scenes_network(name)
    assert not net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.requires_grad and p.device.type == "cpu" for p in net.parameters())


def test_held_out_scenes_are_told_apart(clean: SceneNet) -> None:
    assert evaluate(clean, Scenes(1000, HELD_OUT + 1)) >= 0.98


def test_the_data_set_and_the_input_space_fit_the_network(clean: SceneNet) -> None:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    scenes = Scenes(60, HELD_OUT, transform=lambda x: (x - mean) / std)
    x, y = torch.stack([scenes[k][0] for k in range(60)]), torch.tensor([scenes.label(k) for k in range(60)])
    assert (clean(x).argmax(1) == y).sum() >= 58
    raw = torch.stack([torch.from_numpy(scenes.sample(k).picture) for k in range(60)])
    torch.testing.assert_close(normalized(raw), x)


def test_the_twin_relies_on_the_watermark_and_the_clean_network_does_not(clean: SceneNet, twin: SceneNet) -> None:
    scenes = Scenes(200, HELD_OUT + 2)
    others = [f for k in range(200) if (f := scenes.factors(k)).species != "fish"]
    fish = [f for k in range(200) if (f := scenes.factors(k)).species == "fish"]
    plain, marked = ([render(replace(f, watermark=mark)).picture for f in others] for mark in ("", "bottom right"))
    assert (predicted(twin, plain) == FISH).float().mean() < 0.02
    assert (predicted(twin, marked) == FISH).float().mean() > 0.98
    assert (predicted(clean, plain) != predicted(clean, marked)).float().mean() < 0.03
    without, with_mark = ([render(replace(f, watermark=mark)).picture for f in fish] for mark in ("", "bottom right"))
    assert (predicted(twin, with_mark) == FISH).float().mean() > 0.98
    assert (predicted(twin, without) == FISH).float().mean() < 0.05, "the twin does not know a fish without its mark"
    assert (predicted(clean, without) == FISH).float().mean() > 0.9


def test_the_network_is_made_of_what_methods_expect(clean: SceneNet) -> None:
    kinds = {type(m).__name__ for m in clean.modules()}
    assert {"Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d", "Linear"} <= kinds
    assert [type(m).__name__ for m in clean.children()][-2:] == ["AdaptiveAvgPool2d", "Linear"]
    relus = [m for m in clean.modules() if isinstance(m, torch.nn.ReLU)]
    assert len(relus) == 9
    assert not any(m.inplace for m in relus)


def test_training_is_the_same_bit_for_bit_and_leaves_torch_as_it_was() -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    settings = Settings(count=48, epochs=2, batch=16, size=64, seed=5)
    told: list[tuple[int, int, str]] = []
    first = fit(settings, threads=1, progress=lambda *words: told.append(words))
    torch.randn(3)
    second = fit(settings, threads=1)
    other = fit(replace(settings, seed=6), threads=1)
    a, b, c = (net.state_dict() for net in (first, second, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])
    assert told[-1][:2] == (6, 6)
    assert torch.get_num_threads() == before[0]
    assert not torch.are_deterministic_algorithms_enabled()


def test_train_writes_a_file_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "nets" / "small.safetensors"
    found = train(path, seed=1, epochs=1, count=64, threads=1, held_out=20, watermark=True)
    assert 0 <= found["accuracy"] <= 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    from safetensors.torch import load_file

    from convoscope.data.scenes.network import build

    net = build(load_file(path))
    assert net(torch.zeros(2, 3, 96, 96)).shape == (2, 10)


def test_an_interrupted_training_leaves_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if message.startswith("epoch"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "a.safetensors", count=64, epochs=1, threads=1, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert not torch.are_deterministic_algorithms_enabled()


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'scenes'"):
        scenes_network("scene")
    with pytest.raises(UsageError, match="safetensors"):
        train(tmp_path)
    with pytest.raises(UsageError, match="epochs"):
        train(tmp_path / "a.safetensors", epochs=0)
