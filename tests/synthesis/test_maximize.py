"""`cs.maximize`: what it takes, what it does unasked, what its scores tell."""

from typing import Any

import pytest
import torch

import convoscope as cs


@pytest.fixture(scope="module")
def scenes() -> cs.Network:
    return cs.load("scenes")


def test_units_and_classes_in_words_numbers_and_targets(scenes: cs.Network) -> None:
    wanted = ["layer2:3", "tree", 1, cs.Channel("layer1", 0), "layer2:4 - 0.5*fish", "layer1.bn2:2@center"]
    made = cs.maximize(scenes, wanted, "pixels:size=32", steps=1, transforms=())
    assert made.names == ["layer2:3", "tree", "sailboat", "layer1:0", "layer2:4 - 0.5 fish", "layer1.bn2:2 at 8,8"]
    assert made.pixels.shape == (6, 3, 32, 32)


def test_what_it_does_unasked(scenes: cs.Network) -> None:
    made = cs.maximize(scenes, "layer2:3", steps=1)
    settings = made.settings
    assert (settings["image"]["name"], settings["optimizer"], settings["rate"]) == ("fourier", "adam", 0.05)
    assert [t["name"] for t in settings["transforms"]] == ["jitter", "spin"] == [t["name"] for t in settings["held_out"]]
    assert made.pixels.shape == (1, 3, *scenes.size)
    assert cs.maximize(scenes, "layer2:3", steps=1, size=(24, 40)).pixels.shape[2:] == (24, 40)
    bare = cs.maximize(scenes, "layer2:3", "pixels", steps=1, transforms=())
    assert bare.settings["transforms"] == []
    assert [t["name"] for t in bare.settings["held_out"]] == ["jitter", "spin"]


def test_an_image_says_how_it_is_best_seen(scenes: cs.Network) -> None:
    settings = cs.maximize(scenes, "tree", "maco:size=128", steps=1).settings
    assert settings["transforms"][0]["name"] == "crops"
    assert settings["views"] == cs.MACO.views
    assert cs.maximize(scenes, "tree", "maco:size=128", steps=1, views=1).settings["views"] == 1


@pytest.mark.parametrize("nothing", [None, [], [None], [""]])
def test_nothing_to_raise(scenes: cs.Network, nothing: Any) -> None:
    with pytest.raises(cs.UsageError):
        cs.maximize(scenes, nothing, steps=1)


def test_held_out_scores_unmask_noise(scenes: cs.Network) -> None:
    """Without transforms, pixels find patterns that a shift undoes."""
    settings: dict[str, Any] = {"steps": 40, "seed": 1}
    targets = ["layer3.bn2:5", "layer3.bn2:20"]
    bare = cs.maximize(scenes, targets, "pixels", transforms=(), **settings)
    moved = cs.maximize(scenes, targets, "fourier", **settings)
    for k in range(2):
        assert bare.held_out[k] / bare.scores[k] < 0.7 < 0.8 < moved.held_out[k] / moved.scores[k]


def test_the_class_model(scenes: cs.Network) -> None:
    """Simonyan's: pixels, no transforms, and a penalty on the norm, which shrinks with its weight."""
    made = [
        cs.maximize(scenes, "tree", "pixels", start="gray", transforms=(), penalties=[cs.L2(weight=w)], steps=20)
        for w in (0.0, 0.1, 10.0)
    ]
    norms = [float((m.pixels - 0.5).norm()) for m in made]
    assert norms[0] > norms[1] > norms[2]
    assert min(made[0].scores[0], made[1].scores[0]) > made[2].scores[0]


def test_a_probability_that_is_all_but_zero_is_raised_by_its_logarithm(scenes: cs.Network) -> None:
    made = cs.maximize(scenes, "log-probability:balloon", steps=30, size=64)
    assert made.scores[0] > float(made.history[0, 0])
    _, category, probability = scenes.predict(made.inputs, top=1)[0][0]
    assert (category, round(probability, 3)) == ("balloon", round(float(torch.tensor(made.scores[0]).exp()), 3))
