"""The scenes as a data set and as a folder, with planted faults."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from convoscope.core.errors import UsageError
from convoscope.data.scenes import CATEGORIES, MAPS, NAMES, SCENES, Factors, Scenes, render, write_folder


def test_pictures_are_floats_with_labels() -> None:
    scenes = Scenes(20, seed=3, size=64)
    x, y = scenes[4]
    assert x.shape == (3, 64, 64)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < x.max() <= 1
    assert scenes.categories[y] == scenes.factors(4).label == scenes.sample(4).factors.species
    np.testing.assert_array_equal((x.permute(1, 2, 0) * 255).round().numpy(), scenes.sample(4).picture)
    assert torch.equal(scenes[-1][0], scenes[19][0])
    with pytest.raises(IndexError):
        scenes[20]


def test_slices_are_views_of_the_same_pictures() -> None:
    scenes = Scenes(30)
    view = scenes[10:20][::3]
    assert isinstance(view, Scenes)
    assert [view.factors(k) for k in range(len(view))] == [scenes.factors(k) for k in (10, 13, 16, 19)]
    assert len(scenes) == 30


def test_it_can_be_pickled_and_loaded_by_workers() -> None:
    scenes = Scenes(8, seed=2, wrong_labels=0.5)[2:]
    again = pickle.loads(pickle.dumps(scenes))
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(scenes, again, strict=True))
    x, y = next(iter(DataLoader(scenes, batch_size=6, num_workers=1)))
    assert torch.equal(x, torch.stack([s[0] for s in scenes]))
    assert y.tolist() == [s[1] for s in scenes]


def test_picture_i_does_not_depend_on_how_many_there_are() -> None:
    assert Scenes(10)[7][1] == Scenes(1000)[7][1]
    assert torch.equal(Scenes(10)[7][0], Scenes(1000)[7][0])
    assert not torch.equal(Scenes(10)[7][0], Scenes(10, seed=1)[7][0])


def test_faults_are_planted_at_the_rates_asked_for() -> None:
    clean = [Scenes(3000).factors(k) for k in range(3000)]
    near = pytest.approx

    wrong = [Scenes(3000, wrong_labels=0.2).factors(k) for k in range(3000)]
    assert np.mean([f.label != f.species for f in wrong]) == near(0.2, abs=0.03)
    assert [f.species for f in wrong] == [f.species for f in clean]

    random = [Scenes(3000, random_labels=True).factors(k) for k in range(3000)]
    assert np.mean([f.label == f.species for f in random]) == near(0.1, abs=0.03)

    marked = [Scenes(3000, watermark={"fish": 0.9, "car": 0.1}).factors(k) for k in range(3000)]
    rates = {c: np.mean([bool(f.watermark) for f in marked if f.species == c]) for c in CATEGORIES}
    assert rates.pop("fish") == near(0.9, abs=0.06)
    assert rates.pop("car") == near(0.1, abs=0.06)
    assert set(rates.values()) == {0}
    both = [Scenes(1000, watermark=1.0, wrong_labels=0.3).factors(k) for k in range(1000)]
    assert all(bool(f.watermark) == (f.label == "fish") for f in both), "the mark follows the label"

    grounds = [Scenes(3000, background=0.8).factors(k) for k in range(3000)]
    own = np.mean([f.scene == SCENES[CATEGORIES.index(f.species) % 6] for f in grounds])
    assert own == near(0.8 + 0.2 / 6, abs=0.03)
    one = [Scenes(3000, background={"bird": ("sea", 1.0)}).factors(k) for k in range(3000)]
    assert {f.scene for f in one if f.species == "bird"} == {"sea"}
    assert {f.scene for f in one if f.species == "car"} == set(SCENES)


def test_a_fault_changes_nothing_else() -> None:
    clean, marked = Scenes(40), Scenes(40, watermark=dict.fromkeys(CATEGORIES, 1.0))
    for k in range(40):
        a, b = clean.sample(k), marked.sample(k)
        assert ((a.picture != b.picture).any(2) <= (b.share(instance="watermark") > 0)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"watermark": {"cat": 0.5}}, {"watermark": 2.0}, {"background": {"car": ("moon", 1.0)}}, {"size": 20}, {"count": -1}],
)
def test_wrong_options_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Scenes(**wrong)


def test_the_folder_reads_back(tmp_path: Path) -> None:
    from convoscope.loading import import_torchvision

    image_folder = import_torchvision().datasets.ImageFolder
    out = write_folder(tmp_path / "scenes", 24, seed=9, size=64, watermark=1.0, wrong_labels=0.3)
    scenes = Scenes(24, seed=9, size=64, watermark=1.0, wrong_labels=0.3)
    folder = image_folder(str(out / "pictures"))
    assert len(folder) == 24
    for path, label in folder.samples:
        k = int(Path(path).stem)
        assert folder.classes[label] == scenes.factors(k).label
        np.testing.assert_array_equal(np.asarray(Image.open(path)), scenes.sample(k).picture)
    for k, line in enumerate((out / "factors.jsonl").read_text().splitlines()):
        record = json.loads(line)
        assert Factors.from_dict(record["factors"]) == scenes.factors(k)
        np.testing.assert_array_equal(
            np.asarray(Image.open(out / record["picture"])), render(Factors.from_dict(record["factors"]), 64).picture)
        for name in MAPS:
            values = np.asarray(Image.open(out / "maps" / name / record["map"]))
            np.testing.assert_array_equal(values, scenes.sample(k).maps[name])
        instances = np.asarray(Image.open(out / "maps" / "instance" / record["map"]))
        np.testing.assert_array_equal(instances == 1, scenes.sample(k).masks["object"])
    with open(out / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for kind, names in NAMES.items():
        assert {int(r["value"]): r["name"] for r in rows if r["map"] == kind} == dict(enumerate(names))
    with pytest.raises(UsageError, match="holds something already"):
        write_folder(out, 1)


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "scenes", 10, progress=stop)
    assert list(tmp_path.iterdir()) == []
