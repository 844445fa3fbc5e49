"""Where maps point, against plain definitions."""

import pytest
import torch

import convoscope as cs
from convoscope.core.errors import UsageError
from convoscope.evaluation.localization import _dilated
from convoscope.testing.metrics import oracle


def scored(name: str, maps: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    case, _ = oracle(images=len(truth), side=truth.shape[-1])
    case = cs.Case(case.network, case.x, case.target, maps, tuple(map(str, range(len(maps)))), truth=truth)
    return cs.metrics()[name.partition(":")[0]].make(
        {k: float(v) if "." in v else int(v) for k, v in (p.split("=") for p in name.partition(":")[2].split(",") if p)}
    ).score(case)  # fmt: skip


@pytest.fixture
def masks() -> torch.Tensor:
    return torch.rand(4, 10, 10, generator=torch.Generator().manual_seed(2)) > 0.7


@pytest.fixture
def maps() -> torch.Tensor:
    values = torch.randn(3, 4, 10, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values[1] = values[1].round()  # with ties
    return values


def test_auc_is_that_of_scikit_learn(maps, masks) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    found = scored("localization-auc", maps, masks)
    for m in range(3):
        for i in range(4):
            expected = learn.roc_auc_score(masks[i].flatten(), maps[m, i].flatten())
            assert abs(float(found[m, i]) - expected) < 1e-12


def test_best_iou_tries_every_threshold(maps, masks) -> None:
    found = scored("best-iou", maps, masks)
    for m in range(3):
        for i in range(4):
            cuts = [maps[m, i] >= t for t in maps[m, i].unique()]
            expected = max(float((c & masks[i]).sum() / (c | masks[i]).sum()) for c in cuts)
            assert abs(float(found[m, i]) - expected) < 1e-6


def test_iou_at_a_threshold(maps, masks) -> None:
    for threshold in (0.15, 0.5, 1.0):
        found = scored(f"iou:threshold={threshold}", maps, masks)
        for m in range(3):
            for i in range(4):
                cut = maps[m, i] >= threshold * maps[m, i].max()
                assert abs(float(found[m, i]) - float((cut & masks[i]).sum() / (cut | masks[i]).sum())) < 1e-6
    assert scored("iou", -maps.abs(), masks).isnan().all()
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        scored("iou:threshold=0.0", maps, masks)


def test_ties_count_in_expectation(masks) -> None:
    constant = torch.ones(1, 4, 10, 10, dtype=torch.float64)
    share = masks.flatten(1).double().mean(1)
    assert torch.allclose(scored("rank-accuracy", constant, masks)[0], share)
    assert torch.allclose(scored("top-k", constant, masks)[0], share)
    assert torch.allclose(scored("localization-auc", constant, masks)[0], torch.full((4,), 0.5, dtype=torch.float64))
    assert scored("pointing-game", constant, masks).isnan().all()
    two = torch.zeros(1, 4, 10, 10, dtype=torch.float64)
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[:, 2, 2] = two[:, :, 2, 2].bool().any()
    two[:, :, 2, 2] = two[:, :, 8, 8] = 1
    masks[:, 2, 2] = True
    assert scored("pointing-game:tolerance=0", two, masks)[0].tolist() == [0.5] * 4


def test_empty_and_full_masks_have_no_score(maps) -> None:
    for value in (False, True):
        masks = torch.full((4, 10, 10), value)
        for name, cls in cs.metrics().items():
            if "truth" in cls.needs:
                assert scored(name, maps, masks).isnan().all(), name


def test_energy_of_positive_relevance() -> None:
    masks = torch.zeros(1, 2, 2, dtype=torch.bool)
    masks[0, 0] = True
    maps = torch.tensor([[[[3.0, -5.0], [1.0, 0.0]]], [[[-1.0, -1.0], [-1.0, -1.0]]]], dtype=torch.float64)
    case = cs.Case(*_any(2), maps, ("a", "b"), truth=masks)
    found = cs.metrics()["energy-pointing"]().score(case)[:, 0]
    assert float(found[0]) == 0.75
    assert found[1].isnan()


def _any(side: int):
    case, _ = oracle(images=1, side=12)
    return case.network, torch.zeros(1, 1, side, side, dtype=torch.float64), case.target


@pytest.mark.parametrize("radius", [0, 1, 2, 3.0, 15])
def test_tolerance_is_a_disk(radius) -> None:
    masks = torch.rand(2, 9, 14, generator=torch.Generator().manual_seed(4)) > 0.97
    masks[:, 4, 3] = True
    y, x = torch.meshgrid(torch.arange(9), torch.arange(14), indexing="ij")
    for mask, found in zip(masks, _dilated(masks, int(radius)), strict=True):
        near = torch.stack([(y - a).square() + (x - b).square() <= radius**2 for a, b in mask.nonzero()]).any(0)
        assert torch.equal(found, near)
