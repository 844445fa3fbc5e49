"""The reader of FunnyBirds, on a folder written here in exactly its layout."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.core.errors import ImageError, UnsupportedError, UsageError
from convoscope.data.funny_birds import FunnyBirds
from convoscope.data.parts import Rivals
from convoscope.evaluation.bench.birds_truth import of_picture

PARTS = {
    "beak": [{"model": "beak01.glb", "color": "yellow"}, {"model": "beak02.glb", "color": "yellow"}],
    "eye": [{"model": "eye01.glb"}, {"model": "eye02.glb"}],
    "foot": [{"model": "foot01.glb"}, {"model": "foot02.glb"}],
    "tail": [{"model": "tail01.glb", "color": "red"}, {"model": "tail01.glb", "color": "green"}],
    "wing": [{"model": "wing01.glb", "color": "red"}, {"model": "wing02.glb", "color": "red"}],
}
# Class 1 shares beak and eye with class 0, class 2 foot and tail, class 3 everything but the wing.
CLASSES = [(0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (1, 1, 0, 0, 1), (0, 0, 0, 0, 1)]
COLORS = {"beak": (255, 255, 0), "eye": (255, 255, 253), "foot": (255, 0, 1), "tail": (0, 0, 255), "wing": (0, 255, 1)}
SPOTS = {"beak": (2, 2), "eye": (2, 10), "foot": (10, 2), "tail": (10, 10), "wing": (18, 2)}
AROUND = ((18, 10), (18, 18))


def drawn(of: int, parts: tuple[str, ...], around: tuple[int, ...], masks: bool) -> Image.Image:
    """A bird of class `of`: its parts are red in their first model and green in their second, the background is blue."""
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[..., 3] = 255
    for name in parts:
        y, x = SPOTS[name]
        color = ((255, 0, 0), (0, 255, 0))[CLASSES[of][tuple(PARTS).index(name)]]
        pixels[y : y + 4, x : x + 4, :3] = COLORS[name] if masks else color
    for k in around:
        y, x = AROUND[k]
        pixels[y : y + 4, x : x + 4, :3] = (204, 204, 204 + k) if masks else (0, 0, 255)
    return Image.fromarray(pixels)


def saved(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def written(root: Path) -> Path:
    """Four birds, one of each class, each with two objects in the background."""
    root.mkdir()
    names, rows = tuple(PARTS), []
    (root / "parts.json").write_text(json.dumps(PARTS))
    classes = [{"class_idx": k, "parts": dict(zip(names, c, strict=True))} for k, c in enumerate(CLASSES)]
    (root / "classes.json").write_text(json.dumps(classes))
    for i, numbers in enumerate(CLASSES):
        params = {"class_idx": i, "camera_distance": 300}
        for name, number in zip(names, numbers, strict=True):
            params |= {f"{name}_{k}": v for k, v in PARTS[name][number].items()}
        rows.append({**params, "bg_objects": "3,0,", "bg_radius": "120,150,"})
        saved(drawn(i, names, (0, 1), False), root / f"test/{i}/{i:06d}.png")
        saved(drawn(i, names, (0, 1), True), root / f"test_part_map/{i}/{i:06d}.png")
        folder = root / f"test_interventions/{i}/{i:06d}"
        for kept in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(6)):
            saved(drawn(i, kept, (0, 1), False), folder / f"body_{'_'.join(sorted(kept))}.png")
        for k in (0, 1):
            saved(drawn(i, names, (1 - k,), False), folder / f"background_interventions/{k}.png")
    (root / "dataset_test.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "FunnyBirds")


def test_the_folder_is_a_data_set_with_masks(root: Path) -> None:
    birds = cs.open_dataset(root)
    assert isinstance(birds, FunnyBirds)
    assert len(birds) == 4
    assert birds.classes == ("class 0", "class 1", "class 2", "class 3")
    assert birds.class_of(2) == 2
    assert birds.picture(2).endswith("test/2/000002.png")
    names = [c.name for c in birds.concepts]
    segments = birds.segments(1)
    assert segments.shape == (1, 24, 24)
    assert segments.dtype == torch.int32
    for name, (y, x) in (*SPOTS.items(), ("background 0", AROUND[0]), ("background 1", AROUND[1])):
        where = torch.zeros(24, 24, dtype=torch.bool)
        where[y : y + 4, x : x + 4] = True
        assert torch.equal((segments == names.index(name) + 1)[0], where), name
    assert len({birds.key(i) for i in range(4)}) == 4


def test_interventions(root: Path) -> None:
    birds = FunnyBirds(root)
    assert birds.parts(0) == tuple(PARTS)
    assert birds.surroundings(0) == ("background 0", "background 1")
    assert birds.without(0, []) == birds.picture(0)
    assert birds.without(3, ["eye", "beak"]).endswith("test_interventions/3/000003/body_foot_tail_wing.png")
    assert birds.without(3, list(PARTS)).endswith("body_.png")
    assert birds.without(3, ["background 1"]).endswith("background_interventions/1.png")
    y, x = SPOTS["foot"]
    assert np.asarray(Image.open(birds.without(1, ["foot"])))[y, x].tolist() == [0, 0, 0, 255]
    assert np.asarray(Image.open(birds.without(1, ["eye"])))[y, x].tolist() == [0, 255, 0, 255]
    with pytest.raises(UsageError, match=r"no 'tale'.*did you mean 'tail'"):
        birds.without(0, ["tale"])
    with pytest.raises(UsageError, match="one at a time"):
        birds.without(0, ["background 0", "eye"])


def test_the_smallest_sets_of_parts_that_tell_a_class(root: Path) -> None:
    birds = FunnyBirds(root)
    assert set(birds.sufficient(0)) == {frozenset({"wing"})}  # no other class has its wing
    assert set(birds.sufficient(3)) == {frozenset({a, b, "wing"}) for a in ("beak", "eye") for b in ("foot", "tail")}


def test_rivals_share_two_parts_each_and_not_the_same(root: Path) -> None:
    birds = FunnyBirds(root)
    assert birds.rivals(0) == Rivals((1, 2), (frozenset({"beak", "eye"}), frozenset({"foot", "tail"})))
    assert birds.rivals(3) is None


def test_subsets_and_other_processes(root: Path) -> None:
    birds = FunnyBirds(root).subset([3, 1])
    assert len(birds) == 2
    assert birds.class_of(0) == 3
    assert birds.without(1, ["eye"]).split("test_interventions")[1][1] == "1"
    again = pickle.loads(pickle.dumps(birds))
    assert again.key(0) == birds.key(0)
    assert torch.equal(again.segments(1), birds.segments(1))


def test_training_birds_lack_parts(root: Path) -> None:
    rows = json.loads((root / "dataset_test.json").read_text())
    rows[1]["beak_model"] = "placeholder"
    (root / "dataset_train.json").write_text(json.dumps(rows))
    (root / "test").rename(root / "train")
    birds = cs.open_dataset(root, split="train")
    assert birds.parts(1) == ("eye", "foot", "tail", "wing")
    assert birds.parts(0) == tuple(PARTS)
    with pytest.raises(UsageError, match="train_interventions' is not there"):
        birds.without(1, ["eye"])
    with pytest.raises(UsageError, match="train_part_map"):
        birds.segments(0)


@pytest.mark.parametrize("file", ["classes.json", "parts.json", "dataset_test.json"])
def test_what_is_missing_or_broken_is_named(root: Path, file: str) -> None:
    (root / file).write_text("{")
    with pytest.raises(UsageError, match=f"{file}' cannot be read as JSON"):
        FunnyBirds(root)
    (root / file).write_text("3")
    with pytest.raises(UsageError, match=f"{file}' holds no"):
        FunnyBirds(root)
    (root / file).unlink()
    with pytest.raises(UsageError, match=f"no {file} in"):
        FunnyBirds(root)


def test_what_does_not_fit_together_is_named(root: Path) -> None:
    rows = json.loads((root / "dataset_test.json").read_text())
    (root / "dataset_test.json").write_text(json.dumps([*rows, {**rows[0], "class_idx": 9}]))
    with pytest.raises(UsageError, match=r"row 4 of dataset_test\.json is of class 9"):
        FunnyBirds(root)
    (root / "parts.json").write_text(json.dumps({"beak": []}))
    with pytest.raises(UsageError, match=r"class 0 in classes\.json has the parts"):
        FunnyBirds(root)
    with pytest.raises(UsageError, match="splits test and train"):
        FunnyBirds(root, "validation")


def test_masks_of_another_kind_are_refused(root: Path) -> None:
    Image.new("L", (24, 24)).save(root / "test_part_map/0/000000.png")
    with pytest.raises(ImageError, match="mode L"):
        FunnyBirds(root).segments(0)


# ---------------------------------------------------------------- the protocols
WORTH = {"beak": 5.0, "eye": 1.0, "foot": 3.0, "tail": 2.0, "wing": 4.0}


def expert(around: float = 0.0) -> cs.Network:
    """A linear network: a class gets a part's worth where the part is of its model, and `around` from the second object."""
    conv = nn.Conv2d(3, len(CLASSES), 24, bias=False)
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        for k, models in enumerate(CLASSES):
            for (name, (y, x)), model in zip(SPOTS.items(), models, strict=True):
                conv.weight[k, model, y : y + 4, x : x + 4] = WORTH[name] / 16
            y, x = AROUND[1]
            conv.weight[k, 2, y : y + 4, x : x + 4] = around / 16
    return cs.Network(nn.Sequential(conv, nn.Flatten()).double(), 24)


def column(found, name: str, protocol: str) -> float:
    return next(r for r in found.rows() if r["method"] == name)[protocol]


def test_an_exact_explanation_is_right_in_every_protocol(root: Path) -> None:
    found = cs.birds_protocols(expert(), FunnyBirds(root), ["input-x-gradient"])
    assert (found.accuracy, found.background_independence) == (1.0, 1.0)
    row = {k: column(found, "input-x-gradient", k) for k in ("CSDC", "PC", "D", "SD", "TS", "correctness", "contrastivity")}
    assert row == dict.fromkeys(row, pytest.approx(1.0))
    assert column(found, "random", "SD") < 1
    assert column(found, "random", "TS") == column(found, "edges", "TS") == 0.5  # the same map for both classes
    assert found.of_maps[0, 5].isnan().tolist() == [False, True, True, True]  # only bird 0 has rivals
    table = found.table()
    assert list(table["method"]) == ["input-x-gradient", "random", "edges"]
    assert found.to_dict()["pictures"] == 4


def test_a_wrong_explanation_is_wrong(root: Path) -> None:
    net = expert()

    def negated(network, x, target, places):
        return -cs.explain(network, x, "input-x-gradient", target).heatmap()

    def elsewhere(network, x, target, places):  # everything on one of the two objects in the background
        found = (x[:, 2] > 0).double()
        found[:, :, : AROUND[1][1] - 2] = 0
        return found

    found = cs.birds_protocols(net, FunnyBirds(root), mappers={"negated": negated, "elsewhere": elsewhere}, nulls=())
    assert (column(found, "negated", "SD"), column(found, "negated", "TS")) == (pytest.approx(0.0), 0.0)
    for name in ("negated", "elsewhere"):
        assert (column(found, name, "CSDC"), column(found, name, "DC")) == (0.0, 0.0)
    assert column(found, "elsewhere", "D") == 0.5
    assert column(found, "negated", "D") == 1.0


def test_the_background_of_a_network_that_looks_at_it(root: Path) -> None:
    found = cs.birds_protocols(expert(around=2.0), FunnyBirds(root), ["input-x-gradient"], nulls=())
    assert found.background_independence == 0.5  # 2 of 17 is more than a twentieth
    assert cs.birds_protocols(expert(around=0.5), FunnyBirds(root), nulls=("random",)).background_independence == 1.0


def test_where_the_data_do_not_say_the_network_is_asked_what_it_needs(root: Path) -> None:
    class Unsaid(FunnyBirds):
        def sufficient(self, i: int) -> tuple[frozenset[str], ...]:
            return ()

    _, known = of_picture(expert(), Unsaid(root), 3)
    # Of class 3, with beak 5, eye 1, foot 3, tail 2 and wing 4, each of the others lacks some, and wins where it is equal.
    for least in known.sufficient:
        kept = {n for n, yes in zip(PARTS, least.tolist(), strict=True) if yes}
        assert wins(3, kept)
        assert not any(wins(3, kept - {n}) for n in kept)
    _, told = of_picture(expert(), FunnyBirds(root), 3)
    assert told.sufficient.sum() == 3 * len(told.sufficient)


def wins(bird: int, parts: set[str]) -> bool:
    """Whether `expert` takes these parts of a bird for the bird; of equals the first class wins."""
    worth = [
        sum(WORTH[p] for p, model, own in zip(PARTS, c, CLASSES[bird], strict=True) if p in parts and model == own)
        for c in CLASSES
    ]
    return worth.index(max(worth)) == bird


@pytest.mark.parametrize("spots", [("wing",), tuple(PARTS), ("beak", "wing"), ("eye",)])
def test_deletion_and_preservation_by_hand(root: Path, spots: tuple[str, ...]) -> None:
    marks = torch.zeros(1, 24, 24)
    for y, x in (SPOTS[name] for name in spots):
        marks[:, y : y + 4, x : x + 4] = 1
    mine = {"mine": lambda network, x, target, places: marks.expand(len(x), -1, -1)}
    found = cs.birds_protocols(expert(), FunnyBirds(root).subset([0, 0]), mappers=mine, nulls=())
    assert column(found, "mine", "PC") == float(wins(0, set(spots)))
    assert column(found, "mine", "DC") == float(not wins(0, set(PARTS) - set(spots)))


def test_as_published_takes_one_threshold_for_all(root: Path) -> None:
    data = FunnyBirds(root)
    fair = cs.birds_protocols(expert(), data, ["input-x-gradient"])
    published = cs.birds_protocols(expert(), data, ["input-x-gradient"], as_published=True)
    assert len(published.thresholds[1].unique()) == 1
    assert column(published, "random", "completeness") >= column(fair, "random", "completeness")
    assert column(published, "edges", "TS") == 0.0  # ties are lost


def test_results_are_saved(root: Path, tmp_path: Path) -> None:
    def refusing(network, x, target, places):
        raise UnsupportedError("not for this network")

    found = cs.birds_protocols(expert(), FunnyBirds(root), mappers={"mine": refusing})
    assert found.left_out == {"mine": "not for this network"}
    assert np.isnan(column(found, "mine", "mean"))
    assert json.loads(found.save(tmp_path / "birds.json").read_text())["rows"][0]["mean"] is None
    assert found.save(tmp_path / "birds.csv").read_text().startswith("method,CSDC,PC,DC,D,SD,TS,balanced,completeness")
    with pytest.raises(UsageError, match=r"expected \.json or \.csv"):
        found.save(tmp_path / "birds.xlsx")


def test_what_cannot_be_judged_is_said(root: Path) -> None:
    with pytest.raises(UsageError, match="such as FunnyBirds"):
        cs.birds_protocols(expert(), cs.open_dataset("scenes:3"))
    with pytest.raises(UsageError, match="two pictures or more"):
        cs.birds_protocols(expert(), FunnyBirds(root).subset([0]))
    with pytest.raises(UsageError, match="two maps have one name"):
        cs.birds_protocols(expert(), FunnyBirds(root), ["gradient"], mappers={"gradient": None})
    with pytest.raises(UsageError, match="no null 'noise'"):
        cs.birds_protocols(expert(), FunnyBirds(root), nulls=("noise",))
