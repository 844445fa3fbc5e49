"""Pixels of every format and layout are right, or one line says why there are none."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoscope.core.errors import ImageError
from convoscope.data.pictures import read_picture

sys.path.append(str(Path(__file__).resolve().parents[2]))
corpus = pytest.importorskip("benchmarks.fuzz_corpus", reason="the benchmarks are not part of this installation")


def test_the_corpus_is_large_and_its_names_differ() -> None:
    names = [s.name for s in corpus.samples()]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("sample", corpus.samples(), ids=lambda s: s.name.replace(" ", "-"))
def test_pixels_are_right(sample: Any) -> None:
    if sample.right is None:
        with pytest.raises(ImageError):
            read_picture(sample.data)
        return
    found = np.asarray(read_picture(sample.data)).astype(float)
    assert found.shape == sample.right.shape
    error = np.abs(found - sample.right)
    assert (error.mean() if sample.mean_only else error.max()) <= sample.tolerance
