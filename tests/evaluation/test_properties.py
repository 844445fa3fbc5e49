"""The five properties: what an exact explanation gets, what one gets that knows nothing, and each by hand."""

import json
import math

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.evaluation.axioms import recoded
from convoscope.evaluation.properties import DRAWS, types
from convoscope.evaluation.properties_result import PROPERTIES

SIDE = 12


def patchwork(spots: dict[int, tuple[int, int]]) -> cs.Network:
    """Class k has the sum of a 4 x 4 patch of its own: linear, so that the exact explanation is weight times pixel."""
    linear = nn.Linear(3 * SIDE * SIDE, len(spots), bias=False)
    weight = torch.zeros(len(spots), 3, SIDE, SIDE)
    for k, (y, x) in spots.items():
        weight[k, :, y : y + 4, x : x + 4] = 0.1
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
    return cs.Network(nn.Sequential(nn.Flatten(), linear).double(), SIDE, channels=3, name="patchwork")


SPOTS = {0: (0, 0), 1: (0, 8), 2: (8, 0)}


def pictures(*patches: dict[int, float]) -> torch.Tensor:
    """One picture for each: how bright the patches of classes are, on black."""
    x = torch.zeros(len(patches), 3, SIDE, SIDE, dtype=torch.float64)
    for i, values in enumerate(patches):
        for k, value in values.items():
            y, z = SPOTS[k]
            x[i, :, y : y + 4, z : z + 4] = value
    return x


@pytest.fixture
def net() -> cs.Network:
    return patchwork(SPOTS)


@pytest.fixture
def x() -> torch.Tensor:
    return pictures({0: 0.9, 1: 0.2}, {1: 1.0}, {2: 0.8, 0: 0.1}, {0: 1.0})


def exact(network, x, target, places):
    return cs.explain(network, x, "input-x-gradient", target).heatmap()


def opposite(network, x, target, places):
    return -exact(network, x, target, places)


def constant(network, x, target, places):
    return torch.ones_like(x[:, 0])


def broken(network, x, target, places):
    return torch.full_like(x[:, 0], torch.nan)


def refusing(network, x, target, places):
    raise UnsupportedError("not this one")


def test_what_is_right_is_best_and_what_is_not_is_not(net, x) -> None:
    mappers = {"exact": exact, "opposite": opposite, "constant": constant, "broken": broken, "refusing": refusing}
    found = cs.properties(net, x, mappers=mappers)
    assert found.value("exact", "exactness") > 0 > found.value("opposite", "exactness")
    assert found.value("exact", "completeness") == 1.0
    assert found.value("opposite", "completeness") == 0.0
    for name in ("constant", "broken", "refusing"):
        assert math.isnan(found.value(name, "exactness"))
        assert math.isnan(found.value(name, "consistency"))
        assert found.value(name, "completeness") == 0.0
    assert found.left_out["refusing", "patchwork"] == "not this one"
    assert found.left_out["broken", "patchwork"] == found.left_out["constant", "patchwork"]
    assert abs(found.value("random", "exactness")) < found.value("exact", "exactness") / 2


def test_exactness_is_insertion_less_deletion_above_random_maps(net, x) -> None:
    from convoscope.evaluation.nulls import noise

    found = cs.properties(net, x, ["gradient"], steps=4, nulls=())
    places = tuple(range(4))
    maps = {f"{k}": noise(x, places, 0, k + 1) for k in range(DRAWS)}
    metrics = [cs.metrics()["insertion"](steps=4, fill="blur"), cs.metrics()["deletion"](steps=4, fill="blur")]
    scores = cs.evaluate(net, x, ["gradient"], metrics, maps=maps, nulls=()).scores
    gain = scores[0] - scores[1]
    assert torch.allclose(found.items["exactness"][0], gain[0] - gain[1:].mean(0))
    kinds = types(net, x)
    better = []
    for shown in kinds.values():
        scores = cs.evaluate(net, shown, ["gradient"], metrics, maps=maps, nulls=()).scores
        gain = scores[0] - scores[1]
        better.append((gain[0] > gain[1:].amax(0)).double())
    assert torch.equal(found.items["completeness"][0], torch.stack(better).mean(0))


def test_kinds_of_pictures_in_the_input_space() -> None:
    net = cs.Network(nn.Conv2d(3, 2, 1), 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = types(net, net.normalize(pixels))
    assert torch.allclose(made["gray"], net.normalize(pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)), atol=1e-6)
    assert torch.allclose(made["dark"], net.normalize(pixels / 2), atol=1e-6)
    gray = cs.Network(nn.Conv2d(1, 2, 1), 4)
    assert list(types(gray, torch.rand(1, 1, 4, 4))) == ["as they are", "dark"]


def test_consistency_sees_every_kind_of_contradiction(net, x) -> None:
    calls = {"n": 0}

    def fickle(network, x, target, places):  # another map at every call
        calls["n"] += 1
        return torch.rand(len(x), SIDE, SIDE, generator=torch.Generator().manual_seed(calls["n"]), dtype=torch.float64)

    def coded(network, x, target, places):  # the pixels as they are stored, the other way round where they are stored otherwise
        return exact(network, x, target, places) * (-1 if type(network.module).__name__ == "_Shifted" else 1)

    found = cs.properties(net, x, ["gradient"], mappers={"fickle": fickle, "coded": coded})
    assert found.value("gradient", "consistency") == pytest.approx(1.0)  # linear: the gradient is the same everywhere
    assert found.value("edges", "consistency") > 0.5
    assert abs(found.value("fickle", "consistency")) < 0.15
    assert abs(found.value("random", "consistency")) < 0.15
    assert found.value("coded", "consistency") < 0.7


def test_a_network_stored_otherwise_is_the_same_function(net, x) -> None:
    twin = recoded(net, torch.full((1, 3, 1, 1), 0.5))
    assert torch.allclose(twin.module(x + 0.5), net.module(x))


def test_universality_counts_networks(net, x) -> None:
    deep = cs.Network(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double(), 9
    )
    inputs = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = cs.properties(net, x, ["gradient", "grad-cam", "occlusion"], networks=[(deep, inputs), (net, x)])
    assert found.value("gradient", "universality") == 1.0
    assert found.value("grad-cam", "universality") == 0.5  # a network without rows and columns has no layer for it
    assert found.value("occlusion", "universality") == 1.0  # its window fits the picture
    assert "rows and columns" in found.left_out["grad-cam", "patchwork"]


def test_reward_is_mistakes_mended(net) -> None:
    # The patch of another class is brighter: without it the class is right.
    x = pictures({0: 0.9, 1: 0.5}, {2: 1.0, 0: 0.6}, {1: 1.0}, {0: 1.0})
    labels = [1, 0, 1, -1]
    found = cs.properties(net, x, mappers={"exact": exact, "opposite": opposite}, labels=labels)
    assert [len(v) for v in found.items["reward"]] == [2] * 4  # two mistakes; what has no label is none
    assert found.value("exact", "reward") > 0 >= found.value("opposite", "reward")

    def mended(i: int, share: float) -> bool:  # by hand: the 16 pixels of the patch come first
        gone = max(1, round(share * SIDE * SIDE))
        z = x[i].clone()
        y, w = SPOTS[int(net.module(x[i : i + 1]).argmax())]
        patch = z[:, y : y + 4, w : w + 4].reshape(3, 16)
        patch[:, :gone] = x[i].mean((1, 2))[:, None]
        z[:, y : y + 4, w : w + 4] = patch.view(3, 4, 4)
        return int(net.module(z[None]).argmax()) == labels[i]

    own = torch.tensor([sum(mended(i, s) for s in (0.02, 0.05, 0.1)) / 3 for i in (0, 1)])
    chance = own - found.items["reward"][0]
    assert ((chance >= 0) & (chance <= 1)).all()
    assert own.min() > 0


def test_what_was_not_given_is_said(net, x) -> None:
    found = cs.properties(net, x, ["gradient"])
    assert set(found.missing) == {"universality", "reward"}
    assert "labels" in found.missing["reward"]
    right = cs.properties(net, x, ["gradient"], labels=[0, 1, 2, 0])
    assert right.missing["reward"] == "the network makes no mistake on these images"
    with pytest.raises(UsageError, match="3 labels for 4 images"):
        cs.properties(net, x, ["gradient"], labels=[0, 1, 2])
    with pytest.raises(UsageError, match="two maps are called 'gradient'"):
        cs.properties(net, x, ["gradient", "gradient"])
    with pytest.raises(UsageError, match="no null 'noise'"):
        cs.properties(net, x, ["gradient"], nulls=("noise",))
    with pytest.raises(UsageError, match="no methods and no maps"):
        cs.properties(net, x, nulls=())


def test_images_are_taken_some_at_a_time_and_places_decide(net) -> None:
    x = pictures(*({k % 3: 0.5 + 0.04 * k} for k in range(10)))
    steps: list[tuple[int, int]] = []
    found = cs.properties(net, x, ["gradient"], steps=4, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(8, 10), (10, 10)]
    first = cs.properties(net, x[:8], ["gradient"], steps=4)
    for which in ("exactness", "completeness", "consistency"):
        assert torch.allclose(found.items[which][0][:8], first.items[which][0])


def test_a_data_set_is_read_with_its_classes(net) -> None:
    x = pictures({0: 0.9, 1: 0.5}, {1: 1.0}, *({2: 1.0} for _ in range(8)))
    data = cs.open_dataset(x.float(), labels=[1, 1, *[2] * 8], classes=["a", "b", "c"])
    found = cs.properties(net, data, ["gradient"], steps=4, nulls=())
    given = cs.properties(net, net.read(x.float()), ["gradient"], labels=[1, 1, *[2] * 8], steps=4, nulls=())
    for which in PROPERTIES:
        assert torch.equal(found.items[which][0], given.items[which][0])
    assert len(found.items["reward"][0]) == 1


def test_tables_and_files(net, x, tmp_path) -> None:
    found = cs.properties(net, x, ["gradient"], networks=[(net, x)])
    rows = found.rows()
    assert [r["property"] for r in rows[:5]] == list(PROPERTIES)
    assert rows[0]["low"] <= rows[0]["value"] <= rows[0]["high"]
    assert (rows[3]["items"], rows[4]["items"]) == (1, 0)
    table = found.table()
    assert list(table.columns) == ["method", *PROPERTIES]
    read = json.loads(found.save(tmp_path / "p.json").read_text())
    assert set(read["definitions"]) == set(PROPERTIES)
    assert read["rows"][4]["value"] is None
    assert found.save(tmp_path / "p.csv").read_text().startswith("method,property,value,low,high,items")
    assert "Exactness" in found.save(tmp_path / "p.html").read_text()
    assert found.image().width > found.image().height
    with pytest.raises(UsageError, match=r"expected \.json, \.csv"):
        found.save(tmp_path / "p.xlsx")
    with pytest.raises(UsageError, match="no property 'beauty'"):
        found.value("gradient", "beauty")
    with pytest.raises(UsageError, match="no method 'lrp'"):
        found.value("lrp", "reward")
