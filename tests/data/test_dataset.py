"""Data sets opened from folders, lists, memory and PyTorch."""

import os
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

import convoscope as cs
from convoscope.data.scenes import MAPS, NAMES, Scenes, write_folder

PIXELS = torch.randint(0, 256, (6, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(path: Path, size: tuple[int, int] = (6, 4), color: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for place in ("b/2.png", "b/1.jpg", "a/9.PNG", "c/deep/er/1.webp", "a/.hidden.png", ".git/x.png"):
        draw(tmp_path / "tree" / place)
    (tmp_path / "tree" / "a" / "notes.txt").write_text("nothing")
    return tmp_path / "tree"


# ---- folders
def test_sub_folders_are_classes_in_the_order_of_their_names(tree: Path) -> None:
    d = cs.open_dataset(tree)
    assert (len(d), d.classes, d.concepts, d.name) == (4, ("a", "b", "c"), (), "tree")
    assert [Path(d.picture(i)).relative_to(tree).as_posix() for i in range(4)] == [
        "a/9.PNG", "b/1.jpg", "b/2.png", "c/deep/er/1.webp",
    ]  # fmt: skip
    assert [d.class_of(i) for i in range(4)] == [0, 1, 1, 2]
    assert d.segments(0).shape == (0, 4, 6)
    assert d.segments(0).dtype == torch.int32
    assert repr(d) == "Files(tree: 4 pictures, 3 classes)"


def test_torchvisions_image_folder_is_the_same_data_set(tree: Path, torchvision: Any) -> None:
    for hidden in (".git", "a/.hidden.png"):  # which torchvision counts
        (tree / hidden).rename(tree.parent / hidden.replace("/", "-"))
    theirs = torchvision.datasets.ImageFolder(str(tree))
    mine, opened = cs.open_dataset(tree), cs.open_dataset(theirs)
    assert [p for p, _ in theirs.samples] == [mine.picture(i) for i in range(len(mine))]
    assert [opened.key(i) for i in range(len(opened))] == [mine.key(i) for i in range(len(mine))]
    assert (opened.classes, [opened.class_of(i) for i in range(4)]) == (mine.classes, [k for _, k in theirs.samples])


def test_classes_can_be_chosen_or_done_without(tree: Path) -> None:
    assert cs.open_dataset(tree, classes=["c", "a"]).classes == ("c", "a")
    assert [cs.open_dataset(tree, classes=["c", "a"]).class_of(i) for i in range(2)] == [0, 1]
    flat = cs.open_dataset(str(tree), classes=False, name="flat")
    assert (len(flat), flat.classes, flat.class_of(3), flat.name) == (4, (), -1, "flat")
    draw(tree / "loose.png")
    assert cs.open_dataset(tree).classes == ()
    assert len(cs.open_dataset(tree)) == 5
    assert cs.open_dataset(tree, classes=True).classes == ("a", "b", "c")


def test_a_key_changes_with_its_file_and_only_then(tree: Path) -> None:
    before = [cs.open_dataset(tree).key(i) for i in range(4)]
    assert [cs.open_dataset(tree).key(i) for i in range(4)] == before
    assert all(k.startswith(p) for k, p in zip(before, ("a/9.PNG:", "b/1.jpg:", "b/2.png:", "c/deep"), strict=True))
    d = cs.open_dataset(tree)
    os.utime(tree / "b/1.jpg", ns=(1, 1))
    assert [i for i in range(4) if d.key(i) != before[i]] == [1]
    (tree / "b/1.jpg").unlink()
    with pytest.raises(cs.UsageError, match=r"no file '.*b/1.jpg'"):
        d.key(1)


def test_a_moved_folder_has_the_same_keys(tree: Path) -> None:
    before = [cs.open_dataset(tree).key(i) for i in range(4)]
    moved = tree.rename(tree.with_name("moved"))
    assert [cs.open_dataset(moved).key(i) for i in range(4)] == before


def test_a_link_to_a_folder_above_ends(tree: Path) -> None:
    (tree / "a" / "loop").symlink_to(tree, target_is_directory=True)
    assert len(cs.open_dataset(tree, classes=False)) < 20


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    """Twice the files take twice the calls, and the disk is asked for folders only."""

    def calls(files: int) -> Counter[str]:
        for k in range(10):
            (tmp_path / f"{files}" / f"{k}").mkdir(parents=True)
            for n in range(files):
                (tmp_path / f"{files}" / f"{k}" / f"{n}.jpg").touch()
        found: list[str] = []
        sys.setprofile(lambda frame, event, argument: found.append(getattr(argument, "__name__", "") or event))
        try:
            d = cs.open_dataset(tmp_path / f"{files}")
        finally:
            sys.setprofile(None)
        assert len(d) == 10 * files
        return Counter(found)

    calls(10)  # what is imported on the way
    few, many = calls(50), calls(100)
    assert many.total() < 2.1 * few.total()
    assert many["scandir"] == few["scandir"] > 10
    assert many["stat"] == few["stat"]


def test_folders_that_are_none(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for k in ("train", "val"):
        draw(tmp_path / "splits" / k / "cat" / "1.png")
    for given, error in [
        (tmp_path / "tre", r"no folder '.*tre'; did you mean 'tree'"),
        (tmp_path / "empty", r"no pictures in folder '.*empty'; looked for"),
        (tmp_path / "splits", "holds train, val: open one of them"),
        (tree / "a" / "notes.txt", "is no picture and no list of pictures"),
    ]:
        with pytest.raises(cs.UsageError, match=error):
            cs.open_dataset(given)
    with pytest.raises(cs.UsageError, match="no sub folder 'd' for a class"):
        cs.open_dataset(tree, classes=["d"])
    with pytest.raises(cs.UsageError, match=r"no setting 'clases' .*did you mean 'classes'\?; it takes classes, name"):
        cs.open_dataset(tree, clases=["a"])
    with pytest.raises(cs.UsageError, match="got the text 'abc'"):
        cs.open_dataset(tree, classes="abc")
    assert cs.open_dataset(tmp_path / "splits", classes=True).classes == ("train", "val")


# ---- lists and memory
def test_a_list_of_paths_and_one_path(tree: Path) -> None:
    paths = [tree / "b/2.png", str(tree / "a/9.PNG")]
    d = cs.open_dataset(paths, labels=[7, 2])
    assert [d.picture(i) for i in range(2)] == [str(p) for p in paths]
    assert [d.class_of(i) for i in range(2)] == [7, 2]
    assert d.key(0).startswith("b/2.png:")
    assert len(cs.open_dataset(paths[0])) == 1
    with pytest.raises(cs.UsageError, match="no file"):
        cs.open_dataset([*paths, tree / "gone.png"])
    with pytest.raises(cs.UsageError, match="1 labels for 2 pictures"):
        cs.open_dataset(paths, labels=[1])
    with pytest.raises(cs.UsageError, match="it is a folder"):
        cs.open_dataset([tree])


def test_pixels_in_memory_and_their_keys() -> None:
    d = cs.open_dataset(PIXELS, labels=[0, 1, 0, 1, 0, 1], classes=["x", "y"])
    assert torch.equal(d.picture(2), PIXELS[2])
    assert (d.class_of(3), d.segments(0).shape, len(d)) == (1, (0, 5, 7), 6)
    assert len({d.key(i) for i in range(6)}) == 6
    other = PIXELS.clone()
    other[4, 0, 0, 0] += 1
    again = cs.open_dataset(other, labels=[0, 1, 0, 1, 0, 1])
    assert [i for i in range(6) if again.key(i) != d.key(i)] == [4]
    relabeled = cs.open_dataset(PIXELS, labels=[0, 1, 0, 1, 0, 0])
    assert [i for i in range(6) if relabeled.key(i) != d.key(i)] == [5]


ROWS: list[Any] = [
    TensorDataset(PIXELS, torch.tensor([0, 1, 2, 0, 1, 2])),
    DataLoader(TensorDataset(PIXELS, torch.tensor([0, 1, 2, 0, 1, 2])), batch_size=4, shuffle=True),
    [(PIXELS[i], i % 3) for i in range(6)],
    [{"image": PIXELS[i], "label": torch.tensor(i % 3), "id": 5} for i in range(6)],
    [(PIXELS[i].permute(1, 2, 0).numpy(), np.int64(i % 3)) for i in range(6)],
    [(Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()), i % 3) for i in range(6)],
    Subset(TensorDataset(PIXELS[[0, 0, 1, 2, 3, 4, 5]], torch.tensor([5, 0, 1, 2, 0, 1, 2])), [1, 2, 3, 4, 5, 6]),
    ConcatDataset([TensorDataset(PIXELS[k : k + 2], torch.tensor([k, k + 1]) % 3) for k in (0, 2, 4)]),
]


@pytest.mark.parametrize("source", ROWS, ids=lambda r: type(r).__name__ + (type(r[0]).__name__ if isinstance(r, list) else ""))
def test_rows_of_every_kind_are_read_alike(source: Any) -> None:
    d = cs.open_dataset(source)
    assert (len(d), [d.class_of(i) for i in range(6)]) == (6, [0, 1, 2, 0, 1, 2])
    network = cs.Network(torch.nn.Conv2d(3, 1, 1))
    expected = network.read(PIXELS)
    assert torch.equal(torch.cat([network.read(d.picture(i)) for i in range(6)]), expected)
    assert [d.class_of(i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert len({d.key(i) for i in range(6)}) == 6
    again = pickle.loads(pickle.dumps(d))
    assert [again.key(i) for i in range(6)] == [d.key(i) for i in range(6)]


def test_a_ready_data_set_stays_as_it_is() -> None:
    d = cs.open_dataset(PIXELS)
    assert cs.open_dataset(d) is d
    with pytest.raises(cs.UsageError, match="no setting 'classes' for this data set; it takes none"):
        cs.open_dataset(d, classes=["a"])


class Raw(torch.utils.data.Dataset[Any]):
    """As MNIST and CIFAR: raw pixels, classes, and rows that count how often they are made."""

    def __init__(self) -> None:
        self.data, self.targets, self.classes, self.read = PIXELS.numpy(), [4, 3, 2, 1, 0, 0], list("abcde"), 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        self.read += 1
        return Image.fromarray(np.moveaxis(self.data[i], 0, 2)), self.targets[i]


def test_raw_pixels_give_keys_and_classes_without_reading() -> None:
    source = Raw()
    d = cs.open_dataset(source)
    before = source.read
    assert [d.class_of(i) for i in range(6)] == [4, 3, 2, 1, 0, 0]
    assert len({d.key(i) for i in range(6)}) == 6
    assert source.read == before
    assert d.classes == ("a", "b", "c", "d", "e")
    d.picture(2), d.class_of(2), d.segments(2)
    assert source.read == before + 1


def test_classes_of_a_batch_that_was_read_cost_no_reading() -> None:
    read: list[int] = []

    class Plain:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            read.append(i)
            return PIXELS[i], i

    d = cs.open_dataset(Plain())
    read.clear()
    pictures = [d.picture(i) for i in range(6)]
    assert [d.class_of(i) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert read == [1, 2, 3, 4, 5]  # row 0 is still there from opening
    assert len(pictures) == 6


def test_dense_labels_of_rows() -> None:
    maps = torch.arange(35).view(5, 7)
    d = cs.open_dataset([(PIXELS[0], maps), (PIXELS[1], maps % 3, 1)], concepts=["cat", ("wood", "material")])
    assert d.concepts == (cs.Concept("cat", "object"), cs.Concept("wood", "material"))
    found = d.segments(0)
    assert found.dtype == torch.int32
    assert found.flatten().tolist() == [0, 1, 2] + [0] * 32  # numbers without a concept are nothing
    assert torch.equal(d.segments(1)[0], (maps % 3).int())
    assert [d.class_of(i) for i in range(2)] == [-1, 1]
    with pytest.raises(cs.UsageError, match="say what they mean with concepts="):
        cs.open_dataset([(PIXELS[0], maps)])
    wrong = cs.open_dataset([{"image": PIXELS[0], "segments": maps[:4]}], concepts=["cat"])
    with pytest.raises(cs.ImageError, match=r"row 0 of list has labels of shape \(1, 4, 7\) for a picture .* \(5, 7\)"):
        wrong.segments(0)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(PIXELS)


class Noisy(Raw):
    def __getitem__(self, i: int) -> tuple[Any, int]:
        return torch.rand(3, 4, 4), 0


def test_what_has_no_rows_is_refused_with_the_reason() -> None:
    for given, error in [
        (Endless(), "Endless has no rows to come back to"),
        (DataLoader(Endless()), "Endless has no rows to come back to"),
        (iter(PIXELS), r"opened as list\(\.\.\.\) of it"),
        (5, "a int has no rows"),
        ([], "the list is empty"),
        (torch.zeros(3, 4, 4), r"is \(images, channels, height, width\); got shape \(3, 4, 4\)"),
        (torch.zeros(3, 3, 4, 4) - 2, "leave Normalize out of its transform"),
        (Noisy(), "another picture each time"),
        ([{"pixels": PIXELS[0]}], "mappings with pixels; the picture is 'image'"),
        ([(5, 3)], "begin with int; expected a picture"),
        ({"a": 1}, "a mapping has no order of rows"),
    ]:
        with pytest.raises(cs.UsageError, match=error):
            cs.open_dataset(given)


# ---- some of the rows
def test_subsets_choose_rows_and_nest() -> None:
    d = cs.open_dataset(PIXELS, labels=range(6), classes=list("abcdef"))
    for rows, expected in [
        ([5, 0, -1], [5, 0, 5]),
        (slice(None, None, -2), [5, 3, 1]),
        (range(2, 4), [2, 3]),
        (torch.tensor([1, 4]), [1, 4]),
        (np.array([True, False, False, True, False, False]), [0, 3]),
    ]:
        part = d.subset(rows)  # type: ignore[arg-type]
        assert [part.class_of(i) for i in range(len(part))] == expected
        assert [part.key(i) for i in range(len(part))] == [d.key(i) for i in expected]
        assert (part.classes, part.concepts) == (d.classes, d.concepts)
        assert part.subset([1]).class_of(0) == expected[1]
        assert part.subset([1]).segments(0).shape == (0, 5, 7)
    with pytest.raises(cs.UsageError, match="rows are numbers 0 to 5; got 6"):
        d.subset([6])
    with pytest.raises(cs.UsageError, match="2 times yes or no for 6 rows"):
        d.subset([True, False])
    with pytest.raises(cs.UsageError, match="has rows 0 to 5; got 6"):
        d.picture(6)


# ---- the scenes
def test_scenes_have_the_renderers_labels_in_six_layers() -> None:
    d = cs.open_dataset("scenes:12", seed=4)
    scenes = Scenes(12, 4)
    assert (len(d), d.classes, len({c.category for c in d.concepts})) == (12, tuple(scenes.categories), 6)
    for i in (0, 7):
        sample, found = scenes.sample(i), d.segments(i)
        assert np.array_equal(np.asarray(d.picture(i)), sample.picture)
        assert found.shape == (6, 96, 96)
        for layer, kind in zip(found.tolist(), MAPS, strict=True):
            for row, expected in zip(layer, sample.maps[kind].tolist(), strict=True):
                names = ["" if k == 0 else d.concepts[k - 1].name for k in row]
                assert names == [NAMES[kind][v].replace("plain", "") if kind == "texture" else NAMES[kind][v] for v in expected]
        assert d.class_of(i) == scenes.label(i)
    assert all(d.concepts[k - 1].category == kind for layer, kind in zip(found, MAPS, strict=True) for k in layer.unique() if k)


def test_scenes_are_opened_by_name_or_ready_made() -> None:
    d = cs.open_dataset("scenes:5", watermark=1.0)
    assert len(cs.open_dataset("scenes")) == 1000
    ready = cs.open_dataset(Scenes(9, watermark=1.0)[2:5])
    assert [ready.key(i) for i in range(3)] == [d.key(i) for i in range(2, 5)]
    assert not {d.key(i) for i in range(5)} & {cs.open_dataset("scenes:5").key(i) for i in range(5)}
    assert not {d.key(i) for i in range(5)} & {cs.open_dataset("scenes:5", seed=1, watermark=1.0).key(i) for i in range(5)}
    assert pickle.loads(pickle.dumps(d)).key(3) == d.key(3)
    for wrong in ("scenes:many", "scenes:0", "scenes:-3"):
        with pytest.raises(cs.UsageError, match="'scenes:500'"):
            cs.open_dataset(wrong)


def test_a_written_folder_of_scenes_is_the_same_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", 8, seed=2, size=64)
    drawn, written = cs.open_dataset("scenes:8", seed=2, size=64), cs.open_dataset(tmp_path / "s")
    assert (written.classes, written.concepts, len(written)) == (drawn.classes, drawn.concepts, 8)
    for i in range(8):
        assert torch.equal(written.segments(i), drawn.segments(i))
        assert written.class_of(i) == drawn.class_of(i)
        assert np.array_equal(np.asarray(Image.open(written.picture(i))), np.asarray(drawn.picture(i)))
    before = written.key(0)
    os.utime(tmp_path / "s/maps/part/000000.png", ns=(1, 1))
    assert written.key(0) != before
    (tmp_path / "s/maps/color/000003.png").unlink()
    with pytest.raises(cs.UsageError, match=r"names 'maps/color/000003.png', which is not in"):
        cs.open_dataset(tmp_path / "s")


def test_the_guide_runs() -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "data-sets.md"
    found: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)), found)
    assert found["labels"].shape == (1, 96, 96)
    assert found["labels"][0, :, :48].sum() == 0
    assert bool(found["labels"][0, :, 48:].all())
    assert repr(cs.open_dataset("scenes:500")) in guide.read_text(encoding="utf-8")
