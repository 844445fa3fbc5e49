"""What `convoscope attack` keeps on the way, and attacks read back from files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convoscope as cs
from convoscope.cli.run import run
from convoscope.core.errors import LoadError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    data = cs.open_dataset("scenes:18")
    for i in range(18):
        pixels = data.picture(i)
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
        picture.save(folder / f"{i:02}.png")
    return folder


def document(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert run(["attack", "scenes", *map(str, words), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {k: v for k, v in found.items() if k not in ("seconds", "files")}


def test_an_attack_comes_back_from_its_file(tmp_path: Path) -> None:
    net = cs.load("scenes")
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    made = cs.attack(net, net.normalize(x), "pgd", steps=3)
    back = cs.Attack.load(made.save(tmp_path / "a.safetensors"), net)
    assert back.to_dict() == made.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(back.tensors().values(), made.tensors().values(), strict=True))
    with pytest.raises(LoadError, match="cannot read"):
        cs.Attack.load(tmp_path / "none.safetensors", net)
    other = cs.Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), size=2, channels=3)
    with pytest.raises(LoadError, match="other weights"):
        cs.Attack.load(tmp_path / "a.safetensors", other)


def test_what_is_watched_is_every_step_of_every_image() -> None:
    net = cs.load("scenes")
    x = net.normalize(torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(1)))
    seen: list[tuple[list[int], torch.Tensor]] = []
    made = cs.attack(net, x, "pgd", steps=4, batch_size=2, epsilon=4 / 255, watch=lambda r, p: seen.append((r.tolist(), p)))
    assert [r for r, _ in seen] == [[0, 1]] * 4 + [[2]] * 4
    for rows, pixels in seen:
        assert float((pixels - made.clean[rows]).abs().max()) <= 4 / 255 + 1e-6


def test_a_stopped_attack_goes_on_from_what_is_done(photos, capsys, monkeypatch) -> None:
    import convoscope.synthesis.adversarial as adversarial

    words = (photos, "--steps", 3, "--store", "kept", "--strip", "strip.png", "--preview", "now.png")
    plain = document(capsys, photos, "--steps", 3)
    first, calls = adversarial.attack, []

    def stopped(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return first(*args, **settings)

    monkeypatch.setattr(adversarial, "attack", stopped)
    assert run(["attack", "scenes", *map(str, words), "--json"]) == 130
    assert "goes on from what is done" in capsys.readouterr().err
    assert len(list(Path("kept").iterdir())) == 2  # what was attacked, and its steps
    calls[:] = [1, 1]
    assert document(capsys, *words) == plain
    assert len(calls) == 3  # the second group alone
    assert len(list(Path("kept").iterdir())) == 4
    assert Image.open("strip.png").width > 300
    assert Image.open("now.png").width > 90


def test_its_own_state_is_gone_at_the_end(photos) -> None:
    assert run(["attack", "scenes", str(photos / "00.png"), "--steps", "2", "-o", "a.png"]) == 0
    assert not Path("a.state").exists()
    assert Image.open("a.png").width > 300
