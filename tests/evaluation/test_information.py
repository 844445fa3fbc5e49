"""Performance information curves against plain definitions, and against their authors' implementation."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.core.errors import UsageError
from convoscope.evaluation import AIC, SIC, median_curve
from convoscope.evaluation.imputation import interpolated
from convoscope.evaluation.information import area, information, information_curve, sharp
from convoscope.testing.metrics import oracle


def by_hand(size: list[float], answer: list[float], at: float) -> float:
    """The curve at one place: points in order, the last of equal ones, straight lines between."""
    best, points = 0.0, []
    for s, a in zip(size[1:-1], answer[1:-1], strict=True):
        best = max(best, min(1.0, max(0.0, (a - answer[0]) / (answer[-1] - answer[0]))))
        points.append((min(1.0, max(0.0, (s - size[0]) / (size[-1] - size[0]))), best))
    points = sorted([*points, (0.0, 0.0), (1.0, 1.0)], key=lambda p: p[0])
    if at == 1:
        return 1.0
    k = max(k for k, p in enumerate(points) if p[0] <= at)
    (x0, y0), (x1, y1) = points[k], points[k + 1]
    return y0 + (at - x0) / (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("size", "answer"),
    [
        ([10, 20, 30], [0.1, 0.5, 0.9]),
        ([10, 15, 40, 30, 50], [0.0, 0.6, 0.2, 0.9, 1.0]),  # what was known stays known; sizes out of order
        ([10, 5, 12, 60, 50], [0.2, 0.1, 0.5, 0.99, 0.9]),  # below, above
        ([10, 20, 20, 30], [0.0, 0.5, 0.75, 1.0]),
    ],
)
def test_the_curve_joins_its_points(size, answer) -> None:
    found = information_curve(torch.tensor(size), torch.tensor(answer), points=40)
    assert found.dtype == torch.float64
    given = np.float32(answer).tolist()
    assert found.tolist() == pytest.approx([by_hand(size, given, k / 40) for k in range(41)], abs=1e-12)
    assert float(area(found)) == pytest.approx(float((found[1:] + found[:-1]).sum()) / 80, abs=1e-12)


def test_the_area_of_a_straight_line_and_of_knowing_at_once() -> None:
    line = information_curve(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert float(area(line)) == pytest.approx(0.5, abs=1e-12)
    at_once = information_curve(torch.tensor([0.0, 1e-9, 1.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert float(area(at_once)) == pytest.approx(1 - 0.5 / 1000, abs=1e-6)
    assert len(at_once) == 1001


@pytest.mark.parametrize(("size", "answer"), [([5, 6, 5], [0, 1, 1]), ([5, 6, 7], [1, 1, 1]), ([5, 6, 7], [0.5, 1, 0.4])])
def test_pictures_that_are_known_when_blurred_have_no_curve(size, answer) -> None:
    assert information_curve(torch.tensor(size).double(), torch.tensor(answer).double()).isnan().all()


def test_the_curve_of_a_data_set_is_the_median() -> None:
    curves = torch.tensor([[[0.0, 0.2], [1.0, 0.4], [0.5, 0.9], [float("nan")] * 2]], dtype=torch.float64)
    assert median_curve(curves).tolist() == [[0.5, 0.4]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_information_is_the_size_of_the_lossless_picture(channels) -> None:
    g = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, channels, 17, 23, generator=g, dtype=torch.float64)
    mean, std = [0.3, 0.4, 0.5, 0.2][:channels], [0.2, 0.3, 0.25, 0.5][:channels]
    network = cs.Network(nn.Conv2d(channels, 1, 1).double(), channels=channels, mean=mean, std=std)
    found = information(network.normalize(pixels), network)
    for row, size in zip(pixels, found, strict=True):
        whole = (row * 255).round().byte()
        arrays = [whole.permute(1, 2, 0).numpy()] if channels == 3 else [c.numpy() for c in whole]
        files = [io.BytesIO() for _ in arrays]
        for file, array in zip(files, arrays, strict=True):
            Image.fromarray(array).save(file, format="WEBP", lossless=True, quality=100, method=0)
        assert size == sum(len(f.getvalue()) for f in files)
    flat = torch.full_like(pixels, 0.5)
    assert (information(network.normalize(flat), network) < found / 3).all()


@pytest.mark.parametrize("kind", [SIC, AIC])
def test_the_metric_shows_what_is_relevant(kind) -> None:
    """By the definition, one picture at a time."""
    case, exact = oracle(3, side=36)
    shares = (0.05, 0.1, 0.2, 0.6)
    found = kind(shares=shares, start=0.02).score(case)[0]
    assert (found > 0.3).all()
    for i in range(3):
        start = sharp(case, i, 0.02)
        order = exact[i].flatten().argsort(descending=True, stable=True)
        pictures = []
        for share in (0.0, *shares):
            known = start.clone().view(-1)
            known[order[: round(share * 36**2)]] = True
            known = known.view(1, 1, 36, 36)
            pictures.append(torch.where(known, case.x[i : i + 1], interpolated(case.x[i : i + 1], known.double())))
        pictures = torch.cat([*pictures, case.x[i : i + 1]])
        output = case.network.module(pictures)
        answer = output.softmax(1)[:, 1] if kind is SIC else (output.argmax(1) == 1).double()
        assert float(found[i]) == pytest.approx(
            float(area(information_curve(information(pictures, case.network), answer.detach()))), abs=1e-12
        )


def test_what_is_sharp_from_the_start() -> None:
    case, _ = oracle()
    known = sharp(case, 1, 0.1)
    assert all(known[r, c] for r in (0, -1) for c in (0, -1))
    assert 14 <= int(known.sum()) <= 18
    assert not torch.equal(known, sharp(case, 2, 0.1))
    assert int(sharp(case, 1, 0.0).sum()) == 4


def test_accuracy_needs_a_class() -> None:
    case, exact = oracle()
    other = cs.Case(case.network, case.x, cs.Channel("output", 1), exact[None], ("exact",))
    with pytest.raises(UsageError, match="not a class"):
        AIC().score(other)


def test_curves_are_those_of_the_authors(monkeypatch) -> None:
    """The same pictures and answers make the same curve as PAIR's saliency, which asks numpy for a name it has dropped."""
    pic = pytest.importorskip("saliency.metrics.pic")
    monkeypatch.setattr(np, "trapz", getattr(np, "trapezoid", None) or np.trapz, raising=False)
    g = np.random.default_rng(0)
    pixels = (g.random((24, 24, 3)) * 255).astype(np.uint8)
    weights = g.standard_normal((24, 24, 1)) / 255 / 40

    def answer(rows: np.ndarray) -> list[float]:
        return [float(1 / (1 + np.exp(-(r * weights).sum() * np.sign((pixels * weights).sum())))) for r in rows]

    relevance = g.standard_normal((24, 24))
    shares = [0.02, 0.1, 0.3, 0.6]
    theirs = pic.compute_pic_metric(pixels, relevance, g.random((24, 24)) < 0.01, answer, shares, min_pred_value=0.0)
    predictions = torch.tensor(theirs.predictions, dtype=torch.float64)
    size = torch.tensor([pic.estimate_image_entropy(image) for image in theirs.blurred_images], dtype=torch.float64)
    curve = information_curve(size, predictions)
    assert len(size) == len(shares) + 2
    assert np.abs(curve.numpy() - theirs.curve_y).max() < 1e-9
    assert abs(float(area(curve)) - theirs.auc) < 1e-9
