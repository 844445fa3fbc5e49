"""A few of the damaged and malicious files of `python -m benchmarks.fuzz`, on every change."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from convoscope.core.errors import ImageError, LoadError, UsageError

sys.path.append(str(Path(__file__).resolve().parents[2]))
pictures = pytest.importorskip("benchmarks.fuzz_pictures", reason="the benchmarks are not part of this installation")
checkpoints = pytest.importorskip("benchmarks.fuzz_checkpoints")

COSTLY = {  # each of them took seconds or gigabytes before there were limits, which these words are of
    "jpeg2000 of tiny precincts": "is not read", "jpeg of 100 scans": "in 105 passes, more than a picture needs",
    "tiff of huge tiles": "larger than the picture", "tiff of a million strips": "more than a picture has",
    "gif of many comments": "more parts than a picture has", "ico of 169 megapixels": "at most 1024 x 1024 are read",
    "ico of a bitmap of 100 megapixels": "at most 1024 x 1024 are read", "dds of 4 megapixels": "since they are read slowly",
    "ppm in words of 4 megapixels": "since they are read slowly", "qoi of 24 megapixels": "since they are read slowly",
    "png of a million chunks": "more parts than a picture has", "ppm of a long comment": "more parts than a picture has",
}  # fmt: skip


@pytest.mark.parametrize("start", [1, 301, 601, 1001, 1301])
def test_damaged_pictures_end_in_pixels_or_in_one_line(start: int) -> None:
    said = []
    for number in range(start, start + 250):
        _, data, ending = pictures.case(1, number)
        try:
            pictures.attempt(data, ending)
        except (ImageError, UsageError) as error:
            said.append(str(error))
    assert 100 < len(said) < 225
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(("name", "limit"), COSTLY.items())
def test_pictures_made_to_cost_are_refused_by_a_limit(name: str, limit: str) -> None:
    with pytest.raises(ImageError, match=limit):
        pictures.attempt(pictures.BOMBS[name](), "-")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where code of a file would leave its mark."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


def test_damaged_files_of_weights_end_in_tensors_or_in_one_line(folder: Path) -> None:
    kinds, said = set(), []
    for number in range(1, 120):
        kind, data, ending = checkpoints.case(1, number)
        kinds.add(kind)
        try:
            checkpoints.attempt(data, ending)
        except (LoadError, UsageError) as error:
            said.append(str(error))
    assert len(kinds) >= 7
    assert 50 < len(said) < 119
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("way", ["archive", "legacy"])
def test_no_program_runs(way: str, folder: Path) -> None:
    """Even the loader that trusts files leaves a mark for these, so the canary can sing."""
    import torch

    for name, thing in checkpoints.programs(checkpoints.CANARY).items():
        try:
            data = checkpoints.saved(thing, legacy=way == "legacy")
        except (AttributeError, TypeError, NotImplementedError):
            continue
        if name in ("os.system", "eval", "nested"):
            (folder / "trusted.pth").write_bytes(data)
            torch.load(folder / "trusted.pth", weights_only=False)
            assert (folder / checkpoints.CANARY).exists(), name
            (folder / checkpoints.CANARY).unlink()
            (folder / "trusted.pth").unlink()
        start = time.process_time()
        with suppress(LoadError):  # some are tensors and sets
            checkpoints.attempt(data, ".pth")
        assert time.process_time() - start < 20, name  # those made to cost take minutes or 100 GB where they run


def test_a_size_that_is_none_of_the_archive_is_refused(folder: Path) -> None:
    """PyTorch 2.6 reads beyond the file's memory there."""

    def change(name: str, old: bytes) -> list[tuple[str, bytes]]:
        return [(name, old.replace(b"K\x05", b"M\xff\x7f") if name.endswith("data.pkl") else old)]

    data: Any = checkpoints.rewritten(checkpoints.files()["archive"][0], change)
    with pytest.raises(LoadError, match="not of one size"):
        checkpoints.attempt(data, ".pth")
    checkpoints.attempt(checkpoints.files()["archive"][0], ".pth")
