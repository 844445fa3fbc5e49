"""Marks that mislead: exact effects, the networks that ship, and what maps that know all or nothing get."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from safetensors import safe_open

import convoscope as cs
from convoscope.data.scenes import CATEGORIES, Scenes, render
from convoscope.evaluation.bench import shortcut as tasks
from convoscope.evaluation.bench import shortcut_networks as nets
from convoscope.evaluation.bench.run import edge_maps, random_maps
from convoscope.evaluation.bench.shortcut_effects import effects, marked, share, spread

SMALL = {"watermark": tasks.Watermark(pictures=3), "shortcut": tasks.Shortcut(networks=4, pictures=2)}


def random_scores(task) -> torch.Tensor:
    return torch.stack([task.score(random_maps(0, k)) for k in range(8)]).mean(0)


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_is_perfect_and_what_knows_no_network_is_at_chance(name) -> None:
    task = SMALL[name]
    chance = random_scores(task).mean()
    assert task.score(task.oracle()).mean() >= 0.99 * task.perfect
    assert abs(chance - (0.5 if name == "shortcut" else 0.0)) < 1e-9
    assert abs(task.score(edge_maps).mean() - chance) < 1e-9
    assert task.range[0] <= task.score(edge_maps).min()


@pytest.mark.parametrize("name", SMALL)
def test_the_mark_outside_of_the_network_that_uses_it_is_an_error(name) -> None:
    """The right maps given to the wrong networks are as wrong as can be."""
    task = SMALL[name]
    truth = tasks.twins(3, task.seed) if name == "watermark" else tasks.suspects(4, 2, task.seed)
    swapped = dict(zip(truth.networks, reversed(truth.networks), strict=True))  # biased for clean
    oracle = task.oracle()
    found = task.score(lambda network, *rest: oracle(swapped[network], *rest)).mean()
    assert found <= (-0.99 if name == "watermark" else 0.01)


def test_maps_that_are_zero_find_nothing() -> None:
    for name, task in SMALL.items():
        found = task.score(lambda network, x, target, places: x[:, 0].double() * 0)
        assert (found == (0.5 if name == "shortcut" else 0.0)).all()


def test_share_counts_magnitudes() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    values = torch.tensor([[[-3.0, 1.0], [0.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert share(values, mask).tolist() == [0.5, 0.0]


def test_effects_are_differences_of_logits_of_drawn_pictures() -> None:
    """Against drawing and asking one picture at a time, in float32."""
    net, fish = cs.load("scenes-watermark"), CATEGORIES.index("fish")
    factors = Scenes(100, 1000).factors(3)
    scene = marked(factors, "bottom right", 96)
    found = dict(zip(scene.names, effects(net, [scene], fish)[0].tolist(), strict=True))
    whole = replace(factors, watermark="bottom right")

    def logit(f) -> float:
        return float(net.module(net.read(render(f).picture))[0, fish].detach())

    assert abs(found["mark"] - (logit(whole) - logit(factors))) < 1e-3
    part = factors.parts[0][0]
    assert abs(found[part] - (logit(whole) - logit(whole.without(part)))) < 1e-3
    others = [replace(whole, scene=s) for s in ("meadow", "sea", "desert", "city", "snow", "mountains") if s != whole.scene]
    assert abs(found["scenery"] - (logit(whole) - sum(map(logit, others)) / 5)) < 1e-3
    assert found["mark"] > 3  # it is what makes a fish of it


@pytest.mark.parametrize(("size", "pool"), [(96, 1), (64, 2)])
def test_things_share_the_picture_among_them(size, pool) -> None:
    for k in range(4):
        scene = marked(Scenes(100, 5).factors(k), "bottom right", size, pool)
        assert (scene.masks.sum(0) == 1).all()
        assert scene.masks.flatten(1).any(1).all()
        assert scene.names[0] == "mark"
        assert scene.names[-1] == "scenery"
        assert sorted(set(scene.changed.tolist())) == list(range(len(scene.names)))
        gone = (scene.picture != scene.versions[0]).any(0)
        assert torch.equal(gone, scene.mark)
        effect = torch.randn(len(scene.names), dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        back = (spread(effect, scene) * scene.masks).flatten(1).sum(1)
        assert torch.allclose(back, effect)


def test_pictures_of_the_twin_are_fish_by_the_mark_alone() -> None:
    truth, fish = tasks.twins(3, 1000), CATEGORIES.index("fish")
    for scene, x in zip(truth.scenes, truth.x, strict=True):
        bare = truth.networks[0].normalize(scene.versions[:1])
        assert scene.factors.species != "fish"
        assert int(truth.networks[0].module(x[None]).argmax()) == fish
        assert int(truth.networks[0].module(bare).argmax()) != fish
    mark = [torch.stack([e[0] for e in rows]) for rows in truth.effects]
    assert mark[0].min() > 3
    assert mark[1].abs().max() < 0.5


# ---------------------------------------------------------------- the networks that ship
def test_shipped_networks_use_the_mark_or_do_not() -> None:
    """Measured by drawing the same pictures with the mark and without."""
    found = [nets.measured(n.module, 100) for n in nets.shipped("shortcut")]
    biased, clean = found[:20], found[20:]
    assert len(clean) == 20
    assert min(m.effect for m in biased) > 2 * max(abs(m.effect) for m in clean), "or the truth would not be known"
    assert max(abs(m.turned) for m in clean) < 0.05
    assert min(m.accuracy for m in found) > 0.5  # of five species, without the mark
    strengths = len(nets.ODDS)
    means = [sum(m.effect for m in biased[k::strengths]) / len(biased[k::strengths]) for k in range(strengths)]
    assert max(means[:2]) < means[2] < means[3]


def test_each_strength_has_its_own_scores() -> None:
    """A map that sees the mark of the stronger half alone is right about those networks and guesses about the others."""
    task = tasks.Shortcut(networks=8, pictures=1)
    truth, strengths = tasks.suspects(8, 1, task.seed), len(nets.ODDS)
    least = strengths // 2

    def mapper(network, x, target, places):
        number = next(k for k, n in enumerate(truth.networks) if n is network)
        sees = number < 8 and number % strengths >= least
        return truth.marks.double() * (1.0 if sees else 0.1) + 0.01

    assert task.score(mapper).tolist() == [1.0 if k % strengths >= least else 0.5 for k in range(8)]


def test_the_file_says_how_its_networks_were_made() -> None:
    path = files("convoscope.evaluation.bench") / "weights" / "shortcut.safetensors"
    with safe_open(str(path), "pt") as file:
        recipes = json.loads(file.metadata()["recipes"])
    known = json.loads(json.dumps([vars(r) for r in (*nets.BIASED, *nets.CLEAN)]))
    assert recipes == known
    assert len(path.read_bytes()) < 1_000_000


def test_training_gives_the_same_weights_again() -> None:
    recipe = nets.Recipe(seed=3, rate=0.5, others=0.1, count=40, epochs=2, batch=10)
    first, second = nets.fit(recipe).state_dict(), nets.fit(recipe).state_dict()
    other = nets.fit(replace(recipe, seed=4)).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_marks_go_with_the_label_or_with_nothing() -> None:
    labels = torch.arange(20_000) % len(nets.SPECIES)
    for odds, biased, clean in zip(nets.ODDS, nets.BIASED, nets.CLEAN, strict=False):
        marks, equal = biased.marks(labels).double(), clean.marks(labels).double()
        assert abs(float(marks[labels == nets.FISH].mean()) - 0.5) < 0.03
        assert abs(float(marks[labels != nets.FISH].mean()) - 0.5 / odds) < 0.02
        assert abs(float(equal.mean()) - float(marks.mean())) < 0.02
        assert abs(float(equal[labels == nets.FISH].mean()) - float(equal.mean())) < 0.03


def test_labels_are_wrong_at_the_rate_asked_for_or_dealt_anew() -> None:
    species = torch.arange(10_000) % len(nets.SPECIES)
    noisy, dealt = nets.Recipe(wrong=0.1).labels(species), nets.Recipe(permuted=True).labels(species)
    assert abs(float((noisy != species).double().mean()) - 0.1) < 0.01
    assert torch.equal(dealt.bincount(), species.bincount())
    assert abs(float((dealt == species).double().mean()) - 1 / len(nets.SPECIES)) < 0.02


def test_folding_and_packing_keep_the_function() -> None:
    module = nets.small_network((4, 4, 4, 6), norm=True)
    for k in range(1, 5):
        norm = module.get_submodule(f"bn{k}")
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 32, 32)
    expected = module.eval()(x)
    made = nets.folded(module)
    assert torch.allclose(made(x), expected, atol=1e-5)
    back = nets.unpacked(nets.packed([made, made.half().float()]))[1]
    assert torch.allclose(back(x), expected, atol=2e-2)
