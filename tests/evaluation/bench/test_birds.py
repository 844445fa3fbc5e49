"""FunnyBirds' protocols: by hand on small worlds, on drawn scenes, and on a folder in FunnyBirds' layout."""

import itertools

import pytest
import torch

from convoscope.core.errors import UsageError
from convoscope.evaluation.bench import birds_protocols as protocols
from convoscope.evaluation.bench.birds import BirdsCompleteness, BirdsContrastivity, BirdsCorrectness, best_set, flock, paint
from convoscope.evaluation.bench.birds_truth import Bird, Contrast, bits, borne_out, minimal, most_unlike, of_game, sets
from convoscope.evaluation.bench.parts_game import games, showing
from convoscope.evaluation.bench.run import edge_maps, random_maps
from convoscope.loading import load

SMALL = {"pictures": 6, "seed": 5}


def bird(outputs: dict[str, tuple[float, ...]], lone: tuple[tuple[float, ...], ...] = (), label: int = 0) -> Bird:
    """A picture with parts a, b, c in a row of 2 x 2 squares, of which outputs are given by the parts that are kept."""
    names = ("a", "b", "c", *(f"around {k}" for k in range(len(lone))))
    kept = torch.tensor([outputs["".join(n for n, yes in zip("abc", row, strict=True) if yes)] for row in sets(3).tolist()])
    masks = torch.zeros(len(names), 2, 2 * len(names) + 1, dtype=torch.bool)
    for k in range(len(names)):
        masks[k, :, 2 * k : 2 * k + 2] = True
    stays = kept.argmax(1) == kept[-1].argmax()
    around = torch.tensor(lone).double().reshape(len(lone), kept.shape[1])
    return Bird(label, names, masks, kept.double(), around, minimal(stays), None)


@pytest.fixture
def either() -> Bird:
    """Class 0 where a is there, or b and c; 2 otherwise. One thing around matters, the other does not."""
    keys = ["".join(k) for n in range(4) for k in itertools.combinations("abc", n)]
    value = {k: 4.0 if "a" in k else 3.0 if "b" in k and "c" in k else 0.0 for k in keys}
    value["abc"] = 5.0
    return bird({k: (v, 2.0) for k, v in value.items()}, ((4.9, 2.0), (4.0, 2.0)))


def found(*names: str, of: Bird) -> torch.Tensor:
    return torch.tensor([n in names for n in of.names])


def test_sets_are_numbered_by_their_bits() -> None:
    assert bits(sets(4)).tolist() == list(range(16))
    assert sets(3)[5].tolist() == [True, False, True]


def test_the_smallest_sets_that_are_enough(either: Bird) -> None:
    assert {tuple(r) for r in either.sufficient.tolist()} == {(True, False, False), (False, True, True)}
    assert len(minimal(torch.ones(8, dtype=torch.bool))) == 0  # nothing is needed
    assert minimal(torch.tensor([False, True])).tolist() == [[True]]


@pytest.mark.parametrize(
    ("names", "csdc", "pc", "dc"),
    [("", 0, 0, 0), ("a", 1, 1, 0), ("b", 0.5, 0, 0), ("bc", 1, 1, 0), ("ab", 1, 1, 1), ("abc", 1, 1, 1)],
)
def test_completeness_by_hand(either: Bird, names: str, csdc: float, pc: float, dc: float) -> None:
    got = protocols.checks(either, found(*names, of=either))
    assert got[:3].tolist() == [csdc, pc, dc]
    # Taking away b, c or the first thing around costs 1, 1 and .1 of 5: a twentieth of it is .25.
    assert either.irrelevant.tolist() == [False, False, False, True, False]
    assert float(protocols.distractibility(either, found(*names, "around 0", of=either))) == 0.0
    assert float(protocols.distractibility(either, found(*names, "around 1", of=either))) == 1.0
    assert float(protocols.complete(got)) == pytest.approx(((csdc + pc + dc) / 3 + 1) / 2)
    assert protocols.background_independence(either).tolist() == [1.0, 0.0]


def test_no_set_is_known_where_the_network_is_wrong(either: Bird) -> None:
    wrong = Bird(1, either.names, either.masks, either.kept, either.lone, either.sufficient, None)
    got = protocols.checks(wrong, found("a", of=either))
    assert got[0].isnan()
    assert float(protocols.complete(got)) == pytest.approx(((1 + 0) / 2 + 1) / 2)


def test_the_best_set(either: Bird) -> None:
    number, best = best_set(either)
    assert (sets(3)[number].tolist(), best) == ([True, True, False], 1.0)


def test_marked_is_a_share_of_what_is_positive_in_all(either: Bird) -> None:
    values = torch.zeros(either.masks.shape[1:])
    for k, total in enumerate((2.0, 1.0, -7.0, 0.4, 0.0)):
        values[:, 2 * k : 2 * k + 2] = total / 4
    values[:, -1] = 0.3  # elsewhere: .6 in all
    shares = torch.tensor([2, 1, -7, 0.4, 0]) / 4.0
    assert torch.equal(protocols.marked(values, either), shares > protocols.THRESHOLDS[:, None])
    assert torch.equal(protocols.marked(9 * values, either), protocols.marked(values, either))
    assert protocols.marked(-values.abs(), either).sum() == 0
    plain = torch.tensor([2, 1, -7, 0.4, 0]) > -3.0 * protocols.THRESHOLDS[:, None]
    assert torch.equal(protocols.marked(values, either, plain=True), plain)


def test_single_deletion_is_a_correlation_of_ranks() -> None:
    keys = ["".join(k) for n in range(4) for k in itertools.combinations("abc", n)]
    cost = {"a": 1.0, "b": 3.0, "c": 2.0}
    one = bird({k: (sum(cost[n] for n in k), -1.0) for k in keys}, ((6.0, -1.0),))
    for values, expected in (((1, 9, 3), 1.0), ((9, 1, 3), 0.0), ((3, 9, 1), 0.75), ((4, 4, 4), 0.5)):
        assert float(protocols.single_deletion(one, torch.tensor([*values, 100.0]))) == pytest.approx(expected)
    level = bird({k: (float(len(k)), -1.0) for k in keys})
    assert protocols.single_deletion(level, torch.tensor([1.0, 2, 3])).isnan()


def sized(cost: dict[str, float], sizes: tuple[int, int, int]) -> Bird:
    """Parts that cost so much each, and show so many pixels."""
    keys = ["".join(k) for n in range(4) for k in itertools.combinations("abc", n)]
    one = bird({k: (sum(cost[n] for n in k), -1.0) for k in keys})
    masks = torch.zeros(3, 1, sum(sizes), dtype=torch.bool)
    for mask, first, count in zip(masks, itertools.accumulate((0, *sizes)), sizes, strict=False):
        mask[:, first : first + count] = True
    return Bird(one.label, one.names, masks, one.kept, one.lone, one.sufficient, None)


def test_balanced_deletion_by_hand() -> None:
    """c is the smallest and costs most: pairs ac and bc (1 and 3 apart) against their size, ab (2 apart) along with it."""
    one = sized({"a": 4.0, "b": 2.0, "c": 5.0}, (9, 6, 1))
    for values, expected in (
        ((4, 2, 5), 1.0), ((9, 6, 1), 0.5), ((1, 6, 9), 0.5), ((7, 7, 7), 0.5), ((5, 2, 4), (1 + 3 / 4) / 2),
        ((5, 2, 5), (1 + 3.5 / 4) / 2), ((2, 4, 1), 0.0),
    ):  # fmt: skip
        assert float(protocols.balanced_deletion(one, torch.tensor(values).double())) == pytest.approx(expected)
    along = sized({"a": 5.0, "b": 4.0, "c": 2.0}, (9, 6, 1))
    assert protocols.balanced_deletion(along, torch.tensor([5.0, 4, 2])).isnan(), "size explains all of it"
    assert float(protocols.single_deletion(along, torch.tensor([9.0, 6, 1]))) == pytest.approx(1.0), "but it is published"


def test_size_alone_is_no_correctness() -> None:
    """On drawn scenes, whatever the costs: maps that are constant, or rank parts by size, get exactly 1/2."""
    task = BirdsCorrectness(**SMALL)
    published = BirdsCorrectness(**SMALL, published=True)
    flat = lambda network, x, target, places: torch.ones(len(x), *x.shape[2:], dtype=torch.float64)  # noqa: E731
    scores = task.score(flat)
    assert (scores[~scores.isnan()] == 0.5).all()
    assert (~scores.isnan()).any()
    assert float(published.score(flat).nanmean()) > 0.6
    for one in (task, published):
        assert float(one.score(one.oracle()).nanmean()) == pytest.approx(1.0)


def test_target_sensitivity_by_hand() -> None:
    a, b = torch.tensor([True, False, False]), torch.tensor([False, True, True])
    contrast = Contrast((3, 4), (a, b))
    first, second = torch.tensor([5.0, 1, 1, 50]), torch.tensor([3.0, 2, 2, 0])
    assert float(protocols.target_sensitivity(contrast, first, second)) == 1.0
    assert float(protocols.target_sensitivity(contrast, second, first)) == 0.0
    assert float(protocols.target_sensitivity(contrast, first, first)) == 0.5
    assert float(protocols.target_sensitivity(contrast, first, first, ties=0.0)) == 0.0
    assert float(protocols.target_sensitivity(contrast, first, torch.tensor([3.0, 1, 0, 0]))) == 0.5


def test_parts_are_told_apart_by_how_clear_they_are() -> None:
    keys = ["".join(k) for n in range(4) for k in itertools.combinations("abc", n)]
    cost = {"a": (5.0, 0.0, 4.0), "b": (3.0, 1.0, 3.0), "c": (2.0, 1.0, 2.0)}
    one = bird({k: tuple(sum(cost[n][j] for n in k) for j in range(3)) for k in keys})
    # Profiles (.5, .3, .2), (0, .5, .5) and (4/9, 1/3, 2/9): class 1 is the one that other parts count for.
    assert most_unlike(one) == 1
    for first, second, expected in (
        ((5, 3, 2), (0, 7, 7), 1.0), ((0, 1, 1), (5, 3, 2), 0.0), ((1, 1, 1), (2, 2, 2), 0.5),
        ((2, 2, 0), (1, 2, 1), 0.9), ((9, 9, 0), (1, 1, 0), 0.5),  # of .5 + .2 + .3
    ):  # fmt: skip
        got = protocols.told_apart(one, 1, torch.tensor(first).double(), torch.tensor(second).double())
        assert float(got) == pytest.approx(expected), (first, second)


def test_a_contrast_has_to_be_borne_out() -> None:
    kept = torch.zeros(4, 3)
    kept[3], kept[1], kept[2] = torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    a, b = torch.tensor([True, False]), torch.tensor([False, True])  # without a (set 2) class 0 loses, without b class 1
    assert borne_out(Contrast((0, 1), (a, b)), kept)
    assert not borne_out(Contrast((1, 0), (a, b)), kept)
    assert not borne_out(Contrast((0, 2), (a, b)), kept)


def test_the_threshold_of_a_picture_is_chosen_on_others() -> None:
    values = torch.zeros(4, 5)
    values[0::2, 1], values[1::2, 3] = 1, 1
    assert protocols.crossed(values).tolist() == [3, 1, 3, 1]  # what is best for the other half, not for its own
    assert protocols.middle(torch.tensor([0.0, 1, 1, 1, 0])) == 2
    assert protocols.crossed(values[:1]).tolist() == [0]


# ---------------------------------------------------------------- the scenes
def test_a_scene_without_a_part_is_what_was_drawn() -> None:
    net = load("scenes")
    game = games(net, 1, seed=5)[0]
    one = of_game(game)
    for k, name in enumerate(game.names):
        picture = showing(game.factors, game.names, (1 << len(game.names)) - 1 - (1 << k))
        from convoscope.data.scenes import render

        x = net.normalize(torch.from_numpy(render(picture, 96).picture).permute(2, 0, 1)[None].float() / 255)
        with torch.no_grad():
            expected = one.kept[-1] - net.module(x)[0].double()
        assert (one.effects[k] - expected).abs().max() < 1e-4, name
    assert one.parts == sum(not n.startswith("distractor") for n in game.names)


@pytest.mark.parametrize("task", [BirdsCompleteness, BirdsCorrectness, BirdsContrastivity])
def test_the_oracle_is_right_and_random_maps_are_at_chance(task) -> None:
    made = task(**SMALL)
    score = made.score(made.oracle())
    assert score.shape == (6,)
    assert score.nanmean() == pytest.approx(1.0)
    drawn = torch.stack([made.score(random_maps(0, k)).nanmean() for k in range(64)])
    chance, rest = drawn[:32].mean(), drawn[32:].mean()
    assert abs(float((rest - chance) / (1 - chance))) < 0.1
    edges = made.score(edge_maps)
    assert float(edges.nanmean()) < 1
    assert (edges[~edges.isnan()] >= 0).all()


def test_an_answer_given_to_other_parts_is_worse() -> None:
    birds = flock("scenes", 6, 5).birds

    def turned(network, x, target, places):  # what costs most counts least
        return torch.stack([paint(-birds[i].effects[: birds[i].parts, birds[i].label], birds[i]) for i in places])

    task = BirdsCorrectness(**SMALL)
    assert float(task.score(turned).nanmean()) == pytest.approx(0.0)
    assert 0 < task.score(random_maps(0, 0)).nanmean() < 1

    def opposite(network, x, target, places):  # all that should not be marked
        return torch.stack([paint(1.0 - sets(birds[i].parts)[best_set(birds[i])[0]].double(), birds[i]) for i in places])

    task = BirdsCompleteness(**SMALL)
    assert task.score(opposite).nanmean() < task.score(random_maps(0, 0)).nanmean()
    task = BirdsContrastivity(**SMALL)
    wrong = task.oracle()
    assert task.score(lambda n, x, t, p: -wrong(n, x, t, p)).nanmean() == 0.0


def test_quick_is_the_pictures_of_parts() -> None:
    from convoscope.evaluation.bench.parts import Parts

    for task in (BirdsCompleteness(), BirdsCorrectness(), BirdsContrastivity()):
        quick, parts = task.quick(), Parts().quick()
        assert (quick.pictures, quick.seed, quick.network) == (parts.pictures, parts.seed, parts.network)


def test_distractors_come_last() -> None:
    game = games(load("scenes"), 1, seed=5)[0]
    object.__setattr__(game, "names", ("distractor 1", *game.names[1:-1], "body"))
    with pytest.raises(UsageError, match="after all parts"):
        of_game(game)
