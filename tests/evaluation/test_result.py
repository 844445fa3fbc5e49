"""What an evaluation says of its scores: rows, tables, comparisons, files."""

import csv
import json
import math

import pytest
import torch

from convoscope.core.errors import UsageError
from convoscope.evaluation import Deletion, Insertion, RankAccuracy
from convoscope.evaluation.result import Evaluation
from convoscope.evaluation.statistics import interval, told_apart

NAN = math.nan


def evaluation(**changes) -> Evaluation:
    g = torch.Generator().manual_seed(0)
    random = torch.rand(2, 1, 12, generator=g, dtype=torch.float64)
    good = random + torch.tensor([-0.5, 0.5], dtype=torch.float64).view(2, 1, 1)  # less deletion, more insertion
    worse = random + torch.tensor([0.3, -0.3], dtype=torch.float64).view(2, 1, 1)
    worse[0, 0, 3] = NAN
    settings = {
        "metrics": (Deletion(), Insertion()), "names": ("good", "worse", "random"), "nulls": ("random",),
        "scores": torch.cat([good, worse, random], 1), "units": ("probability", "probability"),
        "left_out": {("deletion", "worse"): "it refused"}, "network": "net", "network_hash": "0f", "seed": 3, "passes": 7,
        "seconds": 1.5, "explained": 11, **changes,
    }  # fmt: skip
    return Evaluation(**settings)


def test_rows_are_means_intervals_and_skill() -> None:
    found = evaluation()
    rows = {(r["metric"], r["method"]): r for r in found.rows()}
    assert list(rows) == [(m, n) for m in ("deletion", "insertion") for n in ("good", "worse", "random")]
    row = rows["deletion", "worse"]
    scores = found.scores[0, 1]
    assert row["mean"] == pytest.approx(float(scores.nanmean()))
    low, high = interval(found.scores[0], 3)
    assert (row["low"], row["high"]) == (float(low[1]), float(high[1]))
    assert row["low"] < row["mean"] < row["high"]
    assert (row["images"], row["unit"], row["direction"]) == (11, "probability", -1)
    assert rows["insertion", "worse"]["images"] == 12
    assert rows["deletion", "good"]["skill"] == pytest.approx(0.5)
    assert rows["insertion", "good"]["skill"] == pytest.approx(0.5)
    assert rows["deletion", "worse"]["skill"] == pytest.approx(-0.3)
    assert rows["deletion", "random"]["skill"] == 0
    assert math.isnan(rows["deletion", "random"]["p"])
    together = told_apart(found.scores[0, :2] - found.scores[0, 2], 3)[1]
    assert [rows["deletion", name]["p"] for name in ("good", "worse")] == together.tolist()
    assert [rows["deletion", name]["group"] for name in found.names] == ["a", "b", ""]
    assert [rows["deletion", name]["better_than"] for name in found.names[:2]] == [1, 0]
    assert math.isnan(rows["deletion", "random"]["better_than"])


def test_without_random_maps_there_is_no_skill() -> None:
    for row in evaluation(nulls=()).rows():
        assert math.isnan(row["skill"])
        assert math.isnan(row["p"])


def test_rankings_and_comparisons_know_the_direction() -> None:
    found = evaluation()
    assert found.ranking("deletion") == found.ranking("insertion") == ["good", "random", "worse"]
    scores = found.scores.clone()
    scores[0, 0] = NAN
    assert evaluation(scores=scores).ranking("deletion") == ["random", "worse", "good"]
    for metric, sign in (("deletion", 1), ("insertion", 1)):
        apart = found.compare(metric, "good", "random")
        assert apart.difference == apart.low == apart.high == pytest.approx(sign * 0.5)
        assert (apart.p, apart.p_all, apart.superiority, apart.images) == (2 / 2**12, 2 / 2**12, 1.0, 12)
        assert found.compare(metric, "random", "good").difference == pytest.approx(-0.5)
    with pytest.raises(UsageError, match=r"no metric 'morf' here.*; there are deletion, insertion"):
        found.ranking("morf")
    with pytest.raises(UsageError, match=r"no method 'lrp' here.*; there are good, worse, random"):
        found.compare("deletion", "lrp", "good")


def test_evaluations_are_joined_where_they_have_a_common_mean() -> None:
    one, two = evaluation(), evaluation(left_out={("insertion", "good"): "no"})
    both = one.joined(two)
    assert torch.equal(both.scores.nan_to_num(9), torch.cat([one.scores, two.scores], -1).nan_to_num(9))
    assert (both.passes, both.seconds, both.explained) == (14, 3.0, 22)
    assert both.left_out == {("deletion", "worse"): "it refused", ("insertion", "good"): "no"}
    for what, other in {
        "units": ("logit", "probability"), "names": ("a", "b", "random"), "network_hash": "1",
        "metrics": (Deletion(9), Insertion()),
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=f"differ in their {what}, and have no common mean"):
            one.joined(evaluation(**{what: other}))


def test_a_table_is_the_rows() -> None:
    pandas = pytest.importorskip("pandas")
    found = evaluation()
    table = found.table()
    assert list(table.columns) == list(found.rows()[0])
    for row, expected in zip(table.to_dict("records"), found.rows(), strict=True):
        assert all(pandas.isna(row[k]) if v != v else row[k] == v for k, v in expected.items())


def test_json_has_every_score_and_says_none_where_there_is_none(tmp_path) -> None:
    found = evaluation()
    assert found.save(str(tmp_path / "a.json")) == tmp_path / "a.json"
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["network"] == {"name": "net", "hash": "0f"}
    assert (read["seed"], read["passes"], read["explained"], read["seconds"]) == (3, 7, 11, 1.5)
    assert read["methods"] == ["good", "worse", "random"]
    assert read["metrics"] == [m.to_dict() for m in found.metrics]
    assert read["left_out"] == [{"metric": "deletion", "method": "worse", "reason": "it refused"}]
    assert read["scores"][0][1][3] is None
    assert read["scores"][1][2] == found.scores[1, 2].tolist()
    assert read["rows"][2]["p"] is None
    assert read["rows"][0]["mean"] == found.rows()[0]["mean"]
    assert "NaN" not in (tmp_path / "a.json").read_text()


def test_other_files(tmp_path) -> None:
    found = evaluation()
    found.save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["good", "worse", "random"] * 2
    assert [float(r["mean"]) for r in rows] == [r["mean"] for r in found.rows()]
    for name in ("a.html", "A.HTM"):
        found.save(tmp_path / name)
        text = (tmp_path / name).read_text()
        assert "<strong>worse by deletion</strong>: it refused" in text
        assert "7 forward passes of one image in 1.5 s, 11 for the maps." in text
        assert text.count("<h1") == 1
    found.save(tmp_path / "a.png")
    from PIL import Image

    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == found.image().size
    assert found._repr_html_().startswith('<img alt="Evaluation(3 methods by 2 metrics on 12 images of net)"')
    with pytest.raises(UsageError, match=r"cannot save 'a\.pdf': expected \.json, \.csv, \.html or \.png"):
        found.save("a.pdf")


def test_filled_points_are_better_than_random_maps() -> None:
    from convoscope.evaluation.drawing import scores_of

    shown = scores_of(evaluation())
    assert [[p.sure for p in panel.points] for panel in shown.panels] == [[True, False, False]] * 2
    assert [panel.null for panel in shown.panels] == [r["mean"] for r in evaluation().rows() if r["method"] == "random"]
    assert [panel.title for panel in shown.panels] == ["Deletion", "Insertion"]
    assert [panel.note for panel in shown.panels] == ["lower is better; probability", "higher is better; probability"]
    alone = evaluation(nulls=(), metrics=(Deletion(), RankAccuracy()))
    assert all(p.sure for panel in scores_of(alone).panels for p in panel.points)
    assert all(math.isnan(panel.null) for panel in scores_of(alone).panels)
    assert len(scores_of(alone).about) == 1


def test_the_page_says_who_is_better_than_what_knows_nothing_and_who_is_not_told_apart() -> None:
    """Of two metrics one has maps that beat random ones and edges, ones that beat random maps alone, and worse ones."""
    from convoscope.evaluation.drawing import judgment

    g = torch.Generator().manual_seed(0)
    means = torch.tensor([0.9, 0.9, 0.5, 0.1, 0.3, 0.7, NAN], dtype=torch.float64)[:, None]
    scores = means + torch.randn(7, 12, generator=g, dtype=torch.float64) / 20
    names = ("one", "two", "three", "worse", "random", "edges", "gone")
    found = Evaluation((Insertion(), Deletion()), (*names[:4], "gone", "random", "edges"), ("random", "edges"),
                       torch.stack([scores, -scores])[:, [0, 1, 2, 3, 6, 4, 5]], ("probability",) * 2,
                       {(m, "gone"): "it refused" for m in ("insertion", "deletion")}, data="some pictures")  # fmt: skip
    page = judgment(found)
    for metric in page.metrics:
        kinds = {m.name: m.kind for m in metric.marks}
        assert kinds == {"one": "both", "two": "both", "three": "random", "worse": "worse", "random": "null", "edges": "null",
                         "gone": ""}  # fmt: skip
        assert {m.name for m in metric.marks if m.best} == {"one", "two"}
        assert metric.marks[-1].name == "gone"
        assert metric.marks[-1].note == "it refused"
        assert [m.name for m in metric.marks if m.groups == [0]] == found.groups(metric.name)[0]
    assert page.metrics[0].arrow != page.metrics[1].arrow
    assert page.refused == [("gone by insertion, gone by deletion", "it refused")]
    assert page.lede.startswith("5 methods judged by 2 metrics on 12 images of some pictures")
    assert len(page.rows) == 14
    assert all(len(row) == len(page.header) for row in page.rows)
    assert not found.warning
    few = Evaluation(found.metrics, found.names, found.nulls, found.scores[..., :5], found.units)
    assert few.warning.startswith("5 images tell nothing apart: p is 0.062 at least.")
    assert min(c.p for c in few.comparisons() if c.p == c.p) >= 2 / 2**5
    assert few.warning in judgment(few).notes
    alone = judgment(Evaluation(found.metrics, found.names, found.nulls, found.scores[..., :1], found.units))
    assert not any(m.groups or m.best for metric in alone.metrics for m in metric.marks)
    assert not alone.kinds or all(m.kind in ("", "null") for metric in alone.metrics for m in metric.marks)
