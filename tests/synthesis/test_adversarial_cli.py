"""`convoscope attack`: folders, targets, settings as options, files, JSON."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import convoscope as cs
from convoscope.cli.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from convoscope.data.scenes import write_folder

    place = tmp_path_factory.mktemp("attack") / "scenes"
    write_folder(place, 4, 0, 96)
    return place / "pictures"


def test_a_folder_to_a_target(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = cs.load("scenes")
    goal = net.categories[2]
    words = ["attack", "scenes", str(folder), "--target", goal, "--epsilon", "8/255", "--steps", "4", "--json"]
    words += ["--out", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.html"), "--pictures", str(tmp_path / "adversarial")]
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["images"]) == 4
    assert told["targeted"]
    assert told["method"]["epsilon"] == pytest.approx(8 / 255)
    assert told["method"]["steps"] == 4
    written = sorted((tmp_path / "adversarial").rglob("*.png"))
    assert len(written) == 4
    assert Image.open(written[0]).size == net.size
    place = {Path(row["picture"]).name: row for row in told["images"]}
    for path in written:
        index = int(net.module(net.read(path)).argmax(1))
        assert index == place[path.name]["saved"]["index"]
        assert place[path.name]["success_as_8_bit_picture"] == (net.category(index) == goal)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "a.html"))


def test_it_is_what_the_library_does(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(folder.rglob("*.png"))[:2]
    net = cs.load("scenes")
    assert run(["attack", "scenes", *map(str, paths), "--method", "fgsm:epsilon=0.02", "--json", "--seed", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = cs.attack(net, net.read(paths), "fgsm", epsilon=0.02, seed=3)
    assert [row["l2"] for row in told["images"]] == pytest.approx(found.l2.tolist(), rel=1e-5)
    assert torch.equal(found.success, torch.tensor([row["success"] for row in told["images"]]))


def test_a_table_for_people_and_what_cannot_be_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    one = next(iter(sorted(folder.rglob("*.png"))))
    assert run(["attack", "scenes", str(one), str(broken), "--method", "fgsm"]) == 1
    out, err = capsys.readouterr()
    assert "Fast gradient sign method" in out
    assert "1 of 2 pictures could not be read" in err
    assert Path("convoscope-attack.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epsilom", "0.1"], "no setting 'epsilom'; did you mean 'epsilon'"),
        (["--method", "pgdd"], "did you mean 'pgd'"),
        (["--target", "nothing"], "no category 'nothing'"),
        (["--out", "a.gif"], "expected a picture"),
        (["--target", "0", "--target", "1", "--target", "2", "--target", "3", "--target", "0"], "5 targets for 4 pictures"),
        (["--epsilon", "8"], None),
    ],
)
def test_wrong_usage_is_one_line(folder: Path, words: list[str], told: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["attack", "scenes", str(folder), *words, *(["--json", "--method", "fgsm"] if told is None else [])])
    err = capsys.readouterr().err
    if told is None:
        assert code == 0
        return
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_universal_over_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attack", "scenes", str(folder), "--method", "universal", "--passes", "1", "--out", str(tmp_path / "u.html")]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"]["images"] == 3
    assert told["notes"]["held_out"] == 1
    assert "made from 3 images" in (tmp_path / "u.html").read_text(encoding="utf-8")
