"""Concept activation vectors: the regressions, the corrections, planted concepts and their null."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convoscope as cs
from convoscope.units.logistic import gram, logistic
from convoscope.units.significance import corrected
from convoscope.units.tcav import tcav

CHANNELS, SIZE = 12, 4


class Curved(nn.Module):
    """Logit 0 rises with the first channel and bends with all others; its gradient is another for each picture."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        self.layer.weight.data = torch.eye(CHANNELS)[..., None, None]
        self.mix = nn.Linear(CHANNELS, 64, bias=False)
        self.out = nn.Linear(64, 2, bias=False)
        self.mix.weight.data = torch.randn(64, CHANNELS, generator=draw)
        self.mix.weight.data[:, 0] = 0
        self.out.weight.data = torch.randn(2, 64, generator=draw) / 8
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.layer(x).mean((2, 3))
        bent = self.out((3 * self.mix(pooled)).sin())
        return bent + torch.stack([2 * pooled[:, 0] + pooled[:, 0].exp(), 0 * pooled[:, 0]], 1)


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(count: int, seed: int) -> Tensor:
    x = noise(count, seed)
    x[:, 0] += 1
    return x


NET = cs.Network(Curved(), size=SIZE, channels=CHANNELS)


@pytest.fixture(scope="module")
def tests() -> object:
    concepts = {"planted": planted(40, 1), "nothing": noise(40, 2)}
    return tcav(NET, noise(60, 3), concepts, noise(120, 4), "layer", [cs.Logit(0), cs.Logit(1)], null=99, runs=3, seed=5)


def test_a_planted_concept_is_found_and_a_random_one_is_not(tests: object) -> None:
    found = {(t.concept, t.target): t for t in tests}
    first = found["planted", str(cs.Logit(0))]
    assert first.score == 1
    assert first.p <= 0.05
    assert first.sensitivity_adjusted <= 0.05
    assert first.sensitivity > 0.2
    assert first.accuracy > 0.9
    assert abs(first.random_accuracy - 0.5) < 0.05
    for key in (("nothing", str(cs.Logit(0))), ("nothing", str(cs.Logit(1)))):
        assert found[key].sensitivity_adjusted > 0.05
        assert found[key].adjusted > 0.05
        assert abs(found[key].accuracy - 0.5) < 0.25


def test_the_vector_points_where_the_concept_was_planted_and_is_a_direction(tests: object) -> None:
    vector = tests.vectors["planted", "layer"]
    assert vector.shape == (CHANNELS,)
    assert abs(float(vector.norm()) - 1) < 1e-12
    assert vector.argmax() == 0
    assert vector[0] > 0.9
    scores = cs.explain(NET, noise(2, 9), "gradient", tests.direction("planted")).values
    assert torch.allclose(scores, (vector / SIZE**2).view(1, -1, 1, 1).expand_as(scores))
    with pytest.raises(cs.UsageError, match=r"no vector of 'plantd'.*did you mean 'planted'"):
        tests.direction("plantd")


def test_the_score_is_the_share_of_pictures_that_rise() -> None:
    """Against a plain loop: one vector, derivatives by finite differences."""
    x = noise(30, 3)
    found = tcav(NET, x, {"c": planted(20, 1)}, noise(60, 4), "layer", cs.Logit(1), null=19, runs=1)
    v = found.vectors["c", "layer"]
    with torch.no_grad():
        up, down = (NET.module(x + s * 1e-6 * v[:, None, None])[:, 1] for s in (1, -1))
    assert abs(found[0].score - float((up > down).double().mean())) < 1e-12


def test_the_same_seed_gives_the_same_numbers() -> None:
    def run(seed: int) -> str:
        return str(tcav(NET, noise(9, 3), {"c": planted(12, 1)}, noise(40, 4), "layer", 0, null=19, seed=seed).to_dict())

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_flattened_layers_and_layers_without_positions() -> None:
    found = tcav(NET, noise(9, 3), {"c": planted(20, 1)}, noise(60, 4), ["layer", "mix"], 0, null=19, positions="all")
    assert found.vectors["c", "layer"].shape == (CHANNELS, SIZE, SIZE)
    assert found.vectors["c", "mix"].shape == (64,)
    with pytest.raises(cs.UsageError, match="runs over channels and positions"):
        found.direction("c", "layer")
    with pytest.raises(cs.UsageError, match="say which layer"):
        found.direction("c")


def test_null_p_values_are_uniform_where_there_is_nothing_to_find() -> None:
    others = noise(200, 7)
    x = noise(30, 3)
    concepts = {str(k): noise(12, 100 + k) for k in range(60)}
    p = torch.tensor([t.sensitivity_p for t in tcav(NET, x, concepts, others, "layer", 1, null=99, runs=1)])
    assert 0.35 < float(p.mean()) < 0.65  # mean of 60 uniform numbers: 0.5, deviation 0.037, more as they share pictures
    assert float((p <= 0.1).double().mean()) < 0.25


def test_where_all_gradients_are_alike_a_note_says_so() -> None:
    torch.manual_seed(0)
    linear = cs.Network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2)).double(), size=4)
    draw = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(n, 3, 4, 4, generator=draw, dtype=torch.float64) for n in (8, 12, 40))
    found = tcav(linear, x, {"c": y}, z, "0", 1, null=19, runs=1)
    assert "the same for all pictures" in found.notes[0]
    assert found[0].score in (0, 1)
    assert found[0].p > 0.5
    assert "the same for all pictures" in str(found)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(cs.UsageError, match="concept 'c' has 4 pictures; give at least 10"):
        tcav(NET, noise(9, 3), {"c": noise(4, 1)}, noise(40, 4), "layer", 0)
    with pytest.raises(cs.UsageError, match="20 random pictures; give at least 30"):
        tcav(NET, noise(9, 3), {"c": noise(14, 1)}, noise(20, 4), "layer", 0)
    with pytest.raises(cs.UsageError, match="no correction 'bonferoni'"):
        tcav(NET, noise(9, 3), {"c": noise(14, 1)}, noise(40, 4), "layer", 0, correction="bonferoni")


# ---- the parts


def test_regressions_are_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=draw, dtype=torch.float64)
    x[:20, 0] += 1
    rows = torch.stack([torch.arange(40), torch.randperm(40, generator=draw)])
    labels = (torch.arange(40) < 20).double()
    fits = logistic(gram(x), rows, labels, 0.05)
    for r in range(2):
        oracle = sklearn.LogisticRegression(C=1 / (0.05 * 40), tol=1e-12, max_iter=10_000)
        oracle.fit(x[rows[r]].numpy(), labels.numpy())
        w = fits.coefficients[r] @ x[rows[r]]
        assert torch.allclose(w, torch.tensor(oracle.coef_[0]), atol=1e-6)
        assert abs(float(fits.intercept[r]) - oracle.intercept_[0]) < 1e-6
    assert torch.allclose(fits.norms(gram(x))[0], (fits.coefficients[0] @ x).norm())
    assert torch.allclose(fits.applied(gram(x))[1], x @ (fits.coefficients[1] @ x[rows[1]]))


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("gap", [0.0, 3.0, 1000.0])
def test_regressions_end_at_the_minimum_also_where_classes_are_apart(penalty: float, gap: float) -> None:
    x = torch.randn(30, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:10] += gap
    labels = (torch.arange(30) < 10).double()
    fits = logistic(gram(x), torch.arange(30)[None], labels, penalty)
    w, b = fits.coefficients[0] @ x, fits.intercept[0]
    error = (x @ w + b).sigmoid() - labels
    slope = x.T @ error / 30 + penalty * w
    assert float(slope.norm()) < 1e-4 * max(1.0, gap)
    assert abs(float(error.mean())) < 1e-4


def test_inner_products_are_taken_in_parts() -> None:
    a = torch.randn(3, (1 << 14) + 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(a, a[:2]), a.double() @ a[:2].double().T)


def test_corrections_in_closed_form() -> None:
    p = torch.tensor([0.04, 0.01, 0.03, 0.005], dtype=torch.float64)
    holm = corrected(p, "bonferroni-holm")
    assert torch.allclose(holm, torch.tensor([0.06, 0.03, 0.06, 0.02], dtype=torch.float64))
    hochberg = corrected(p, "benjamini-hochberg")
    assert torch.allclose(hochberg, torch.tensor([0.04, 0.02, 0.04, 0.02], dtype=torch.float64))
    assert torch.equal(corrected(p, "none"), p)
    assert corrected(torch.tensor([0.9, 0.8], dtype=torch.float64), "bonferroni-holm").tolist() == [1, 1]
    assert corrected(torch.zeros(0)).tolist() == []


def test_corrections_reject_what_their_step_rules_reject() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        p, level = torch.rand(12, generator=draw, dtype=torch.float64) ** 3, 0.1
        order = p.argsort()
        down = next((k for k in range(12) if p[order[k]] > level / (12 - k)), 12)
        up = max((k + 1 for k in range(12) if p[order[k]] <= level * (k + 1) / 12), default=0)
        assert set(order[:down].tolist()) == set((corrected(p, "bonferroni-holm") <= level).nonzero()[:, 0].tolist())
        assert set(order[:up].tolist()) == set((corrected(p, "benjamini-hochberg") <= level).nonzero()[:, 0].tolist())


# ---- the command line


def run(*words: object) -> int:
    from convoscope.cli.run import run as command

    return command([str(w) for w in words])


def test_concepts_of_labels_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["concepts", "scenes", "scenes:90", "--layer", "layer3", "--target", "fish", "--null", "19"]
    assert run(*words, "--concept", "scene:sea", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "convoscope.concepts/1"
    assert found["tests"][0]["concept"] == "scene:sea"
    assert found["tests"][0]["target"] == "fish"
    assert run(*words, "--concept", "scene:see") == 2
    assert "no concept 'scene:see'" in capsys.readouterr().err
    assert run(*words, "--concept", "eye") == 2
    assert "'eye' covers 0.02 of the picture or more in 0 pictures" in capsys.readouterr().err
    assert run(*words, "--concept", "snow") == 2
    assert "several concepts are called 'snow': scene:snow" in capsys.readouterr().err
    assert run(*words, "--method", "tcav") == 2
    assert "--concept NAME" in capsys.readouterr().err
    assert run(*words, "--method", "craft", "--concept", "fin") == 2
    assert "--concept is for tcav" in capsys.readouterr().err


def test_folders_of_concepts_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    for folder, count, red in (("red", 12, 255), ("any", 40, 0)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            pixels = draw.integers(0, 200, (96, 96, 3), dtype=np.uint8)
            pixels[..., 0] = np.maximum(pixels[..., 0], red)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k:02}.png")
    words = ["concepts", "scenes", "scenes:20", "--layer", "layer2", "--target", "fish", "--null", "19"]
    assert run(*words, "--concept", f"red={tmp_path / 'red'}", "--random", tmp_path / "any") == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert "100% (random" in out
