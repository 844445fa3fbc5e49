"""COCO panoptic folders, lists of masks, and the Broden layout."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convoscope as cs

KINDS = [
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
    {"id": 18, "name": "dog", "supercategory": "animal", "isthing": 1},
    {"id": 118, "name": "floor-wood", "supercategory": "floor", "isthing": 0},
    {"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0},
    {"id": 195, "name": "paper-merged", "supercategory": "raw-material", "isthing": 0},
]
IDS = {7: 1, 300: 18, 70000: 118, 16777215: 187, 65536: 195, 8: 1}  # segments and their categories
SIZE = (9, 14)


def rgb(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], -1).astype(np.uint8))


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A folder as COCO's archives unpack: three pictures, the last without labels."""
    root, maps = tmp_path / "coco", []
    draw = np.random.default_rng(0)
    images, annotations = [], []
    (root / "val2017").mkdir(parents=True)
    (root / "annotations" / "panoptic_val2017").mkdir(parents=True)
    for k in range(3):
        file = f"{k:012d}"
        pixels = draw.integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(root / "val2017" / f"{file}.jpg")
        images.append({"id": 40 + k, "file_name": f"{file}.jpg", "height": SIZE[0], "width": SIZE[1]})
        if k == 2:
            break
        ids = draw.choice([0, 5, *IDS], SIZE)  # 0 is void, 5 is a segment that the list does not have
        rgb(ids).save(root / "annotations" / "panoptic_val2017" / f"{file}.png")
        info = [{"id": n, "category_id": c, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for n, c in IDS.items()]
        annotations.append({"image_id": 40 + k, "file_name": f"{file}.png", "segments_info": info[::-1]})
        maps.append(ids)
    listed = {"images": images, "annotations": annotations[::-1], "categories": KINDS}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(listed))
    return root, maps


# ---- COCO panoptic
def test_panoptic_segments_become_concepts(coco: tuple[Path, list[np.ndarray]]) -> None:
    root, maps = coco
    d = cs.open_dataset(root)
    assert [str(c) for c in d.concepts] == [
        "person (object)", "dog (object)", "floor-wood (object)", "sky (object)", "paper (material)", "wood (material)",
    ]  # fmt: skip
    assert (len(d), d.name, d.classes, d.class_of(0)) == (3, "val2017", (), -1)
    numbers = {c: k + 1 for k, c in enumerate(k["id"] for k in KINDS)}
    for i, ids in enumerate(maps):
        found = d.segments(i)
        assert found.dtype == torch.int32
        expected = [[numbers[IDS[n]] if n in IDS else 0 for n in row] for row in ids.tolist()]
        assert found[0].tolist() == expected
        assert found[1].tolist() == [[6 if n == 70000 else 0 for n in row] for row in ids.tolist()]  # floor-wood is of wood
    assert d.segments(2).shape == (0, *SIZE)
    again = pickle.loads(pickle.dumps(d))
    assert torch.equal(again.segments(1), d.segments(1))


def test_panoptic_keys_change_with_picture_mask_and_meaning(coco: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = coco
    file = root / "annotations" / "panoptic_val2017.json"
    before = [cs.open_dataset(root).key(i) for i in range(3)]
    os.utime(root / "annotations/panoptic_val2017/000000000001.png", ns=(1, 1))
    assert [i for i in range(3) if cs.open_dataset(root).key(i) != before[i]] == [1]
    listed = json.loads(file.read_text())
    listed["annotations"][1]["segments_info"][1]["category_id"] = 1  # of picture 0
    file.write_text(json.dumps(listed))
    assert [i for i in range(3) if cs.open_dataset(file).key(i) != before[i]] == [0, 1]
    moved = root.rename(root.with_name("moved"))
    assert cs.open_dataset(moved).key(2) == before[2]


def test_panoptic_folders_and_categories_can_be_named(coco: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    root, _ = coco
    usual = cs.open_dataset(root, categories={"sky": "scene"})
    labels = usual.segments(1)
    assert cs.Concept("sky", "scene") in usual.concepts
    shutil.move(root / "val2017", tmp_path / "pictures")
    shutil.move(root / "annotations" / "panoptic_val2017", tmp_path / "labels")
    with pytest.raises(cs.UsageError, match=r"no '000000000000.jpg' in .*; say where they are with images= and masks="):
        cs.open_dataset(root)
    d = cs.open_dataset(root, images=tmp_path / "pictures", masks=tmp_path / "labels")
    assert torch.equal(d.segments(1), labels)
    with pytest.raises(cs.UsageError, match="no folder"):
        cs.open_dataset(root, images=tmp_path / "nowhere")


def test_several_panoptic_splits_have_to_be_chosen_from(coco: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = coco
    shutil.copy(root / "annotations/panoptic_val2017.json", root / "annotations/panoptic_train2017.json")
    with pytest.raises(cs.UsageError, match="has panoptic labels of 'train2017', 'val2017'; choose one with split="):
        cs.open_dataset(root)
    assert len(cs.open_dataset(root, split="val2017")) == 3


def test_what_panoptic_folders_lack_is_named(coco: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = coco
    (root / "val2017/000000000001.jpg").unlink()
    with pytest.raises(cs.UsageError, match=r"names '000000000001.jpg', which is not in .*skip_missing=True"):
        cs.open_dataset(root)
    d = cs.open_dataset(root, skip_missing=True)
    assert [Path(d.picture(i)).name for i in range(len(d))] == ["000000000000.jpg", "000000000002.jpg"]
    assert d.segments(1).shape == (0, *SIZE)
    mask = root / "annotations/panoptic_val2017/000000000000.png"
    Image.new("RGB", (5, 5)).save(mask)
    with pytest.raises(cs.ImageError, match=r"the mask .* has 5 x 5 pixels, its picture .* 14 x 9; they have to be"):
        d.segments(0)
    mask.write_bytes(b"nothing")
    with pytest.raises(cs.ImageError, match="is damaged or no picture"):
        d.segments(0)
    mask.unlink()
    with pytest.raises(cs.UsageError, match="no mask"):
        d.segments(0)
    with pytest.raises(cs.UsageError, match=r"names '000000000000.png', which is not in"):
        cs.open_dataset(root, skip_missing=True)
    (root / "annotations/panoptic_val2017.json").write_text("{}")
    with pytest.raises(cs.UsageError, match="has no 'images' and no 'annotations' and no 'categories'"):
        cs.open_dataset(root)
    (root / "annotations/panoptic_val2017.json").write_text("{")
    with pytest.raises(cs.UsageError, match="is no JSON file"):
        cs.open_dataset(root)


# ---- lists of pictures and masks
def listed(root: Path, mask: Image.Image, picture: Image.Image, **saving: Any) -> cs.Dataset:
    (root / "masks").mkdir(parents=True)
    picture.save(root / "a.jpg", **saving)
    mask.save(root / "masks" / "a.png")
    rows = [{"file": "a.jpg", "mask": "masks/a.png"}, {"file": "a.jpg", "mask": None}]
    kinds = {"0": "unlabeled", "3": "cat", "200": "wall-brick"}
    (root / "index.json").write_text(json.dumps({"images": rows, "mask_classes": kinds}))
    return cs.open_dataset(root)


def test_lists_of_masks(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).choice([0, 1, 3, 200, 255], SIZE).astype(np.uint8)
    palette = Image.fromarray(numbers).convert("P")
    palette.putpalette(list(range(256)) * 3)
    expected = [[{3: 1, 200: 2}.get(n, 0) for n in row] for row in numbers.tolist()]
    picture = Image.new("RGB", SIZE[::-1])
    for k, mask in enumerate((Image.fromarray(numbers), palette, Image.fromarray(numbers.astype(np.uint16)), rgb(numbers))):
        d = listed(tmp_path / str(k), mask, picture)
        assert [str(c) for c in d.concepts] == ["cat (object)", "wall-brick (object)", "brick (material)"]
        assert d.segments(0)[0].tolist() == expected
        assert (d.segments(0)[1] == 3).tolist() == (numbers == 200).tolist()
        assert d.segments(1).shape == (0, *SIZE)
    (tmp_path / "0" / "masks" / "a.png").unlink()
    with pytest.raises(cs.UsageError, match=r"index.json names 'masks/a.png', which is not in"):
        cs.open_dataset(tmp_path / "0")


def test_masks_turn_with_their_picture(tmp_path: Path) -> None:
    numbers = np.zeros(SIZE, np.uint8)
    numbers[:, :4] = 3
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned clockwise
    d = listed(tmp_path, Image.fromarray(numbers), Image.fromarray(numbers * 80).convert("RGB"), exif=exif, quality=95)
    seen = cs.Network(torch.nn.Conv2d(3, 1, 1)).read(d.picture(0))[0, 0]
    assert seen.shape == d.segments(0).shape[1:] == SIZE[::-1]
    assert torch.equal(seen > 0.5, d.segments(0)[0] == 1)


def test_the_labeled_photographs(testdata: Path) -> None:
    d = cs.open_dataset(testdata / "coco")
    index = json.loads((testdata / "coco" / "index.json").read_text())
    assert len(d) == len(index["images"])
    names = {int(k): v for k, v in index["mask_classes"].items()}
    seen = {c.category for c in d.concepts}
    assert seen == {"object", "material"}
    for i in range(0, len(d), 25):
        row, found = index["images"][i], d.segments(i)
        assert found.shape[1:] == (row["height"], row["width"])
        if row["mask"]:
            numbers = np.asarray(Image.open(testdata / "coco" / row["mask"]))
            shown = ["nothing", *(c.name for c in d.concepts)]
            for value in np.unique(numbers):
                named = {shown[k] for k in found[0][torch.from_numpy(numbers == value)].unique().tolist()}
                assert len(named) == 1
                assert names[int(value)].startswith(named.pop()) or value == 0


# ---- Broden
LABELS = [  # number, name, categories with the pictures they are in
    (1, "red", "color(2)"), (2, "cat", "object(2)"), (3, "head", "object(1);part(2)"), (5, "street", "scene(1)"),
    (300, "banded", "texture(1)"), (301, "ear", "part(1)"),
]  # fmt: skip


def table(path: Path, header: list[str], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def numbers_png(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([numbers % 256, numbers // 256, 0 * numbers], -1).astype(np.uint8)).save(path)


@pytest.fixture
def broden(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder in the published layout: label maps half as large as pictures, two layers of parts, labels of whole pictures."""
    root, draw = tmp_path / "broden", np.random.default_rng(0)
    maps = {n: draw.choice(c, (4, 6)) for n, c in (("color", [1]), ("object", [0, 2, 3]), ("p0", [0, 3]), ("p1", [0, 3, 301]))}
    for name, numbers in maps.items():
        numbers_png(root / "images" / "set" / f"a_{name}.png", numbers)
    for file in ("set/a.jpg", "dtd/b.jpg"):
        (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(root / "images" / file)
    header = ["image", "split", "ih", "iw", "sh", "sw", "color", "object", "part", "scene", "texture"]
    parts = "set/a_p0.png;set/a_p1.png"
    table(root / "index.csv", header, [
        ["set/a.jpg", "train", 8, 12, 4, 6, "set/a_color.png", "set/a_object.png", parts, "5", ""],
        ["dtd/b.jpg", "val", 8, 12, 4, 6, "", "", "", "", "300;1"],
    ])  # fmt: skip
    table(root / "label.csv", ["number", "name", "category", "frequency", "coverage", "syns"],
          [[n, name, c, 1, 1.0, name] for n, name, c in LABELS])  # fmt: skip
    return root, maps


def test_broden_layers_have_the_numbers_of_label_csv(broden: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, maps = broden
    d = cs.open_dataset(root)
    assert (len(d), d.name, len(d.concepts)) == (2, "broden", 301)
    assert [str(d.concepts[n - 1]) for n, *_ in LABELS] == [
        "red (color)", "cat (object)", "head (part)", "street (scene)", "banded (texture)", "ear (part)",
    ]  # fmt: skip
    assert d.concepts[3] == cs.Concept("label 4", "unnamed")
    found = d.segments(0)
    assert (found.shape, found.dtype) == ((5, 8, 12), torch.int32)
    expected = [maps["color"], maps["object"], maps["p0"].copy(), maps["p1"].copy(), np.full((4, 6), 5)]
    for layer in (2, 3):  # a label that two layers have at a pixel counts once
        for earlier in expected[:layer]:
            expected[layer][expected[layer] == earlier] = 0
    assert np.array_equal(found.numpy(), np.stack(expected).repeat(2, 1).repeat(2, 2))
    assert [sorted(layer.unique().tolist()) for layer in d.segments(1)] == [[300], [1]]
    assert torch.equal(pickle.loads(pickle.dumps(d)).segments(0), found)


def test_broden_rows_categories_and_coverage_can_be_chosen(broden: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, maps = broden
    d = cs.open_dataset(root, split="val")
    assert (len(d), Path(d.picture(0)).name) == (1, "b.jpg")
    only = cs.open_dataset(root, categories=["object"])
    assert np.array_equal(only.segments(0)[0, ::2, ::2].numpy(), maps["object"])
    assert only.segments(1).shape == (0, 8, 12)
    header = ["code", "number", "name", "frequency", "coverage"]
    table(root / "c_object.csv", header, [[1, 2, "cat", 2, 0.5], [2, 3, "head", 1, 0.9]])
    table(root / "c_part.csv", header, [[1, 3, "head", 2, 0.2], [2, 301, "ear", 1, 0.1]])
    assert cs.open_dataset(root).concepts[2] == cs.Concept("head", "object")  # where it covers most
    with pytest.raises(cs.UsageError, match=r"no category 'colour' in index.csv; did you mean 'color'\?"):
        cs.open_dataset(root, categories=["colour"])
    with pytest.raises(cs.UsageError, match=r"no rows of split 'test' in index.csv \(known: train, val\)"):
        cs.open_dataset(root, split="test")


def test_broden_folders_that_do_not_fit_together(broden: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = broden
    d = cs.open_dataset(root)
    before = [d.key(0), d.key(1)]
    os.utime(root / "images/set/a_p1.png", ns=(1, 1))
    assert d.key(0) != before[0]
    assert d.key(1) == before[1]
    numbers_png(root / "images/set/a_p1.png", np.full((4, 6), 302))
    with pytest.raises(cs.ImageError, match=r"labels of 'images/set/a.jpg' have number 302; label.csv ends at 301"):
        d.segments(0)
    numbers_png(root / "images/set/a_p1.png", np.full((4, 5), 3))
    with pytest.raises(cs.ImageError, match=r"'set/a_p1.png' .* has 5 x 4 pixels; index.csv says 6 x 4"):
        d.segments(0)
    (root / "images/set/a_p1.png").unlink()
    with pytest.raises(cs.UsageError, match=r"index.csv names 'images/set/a_p1.png', which is not in"):
        cs.open_dataset(root)
    (root / "images/dtd/b.jpg").unlink()
    with pytest.raises(cs.UsageError, match=r"index.csv names 'images/dtd/b.jpg', which is not in"):
        cs.open_dataset(root)
    table(root / "index.csv", ["picture", "sh", "sw"], [["a", 1, 1]])
    with pytest.raises(cs.UsageError, match=r"has no column 'image'; it has picture, sh, sw"):
        cs.open_dataset(root)
    table(root / "index.csv", ["image", "sh", "sw"], [])
    with pytest.raises(cs.UsageError, match="lists no pictures"):
        cs.open_dataset(root)
