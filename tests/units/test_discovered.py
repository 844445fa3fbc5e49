"""Discovered concepts: planted factors, Sobol indices in closed form, and concepts of a network that is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs
from convoscope.units.discovered import discover, squares, superpixels
from convoscope.units.factors import coefficients, factorized, total_indices


def planted(rows: int = 200, count: int = 4, channels: int = 15) -> tuple[Tensor, Tensor]:
    """Sparse amounts of sparse directions: such factors are unique."""
    draw = torch.Generator().manual_seed(0)
    basis = torch.rand(count, channels, generator=draw, dtype=torch.float64)
    basis = basis * (torch.rand(count, channels, generator=draw) < 0.5)
    for j in range(count):
        basis[:, j] = torch.eye(count)[j]
    amounts = torch.rand(rows, count, generator=draw, dtype=torch.float64)
    amounts = amounts * (torch.rand(rows, count, generator=draw) < 0.5)
    return amounts, F.normalize(basis, dim=1)


def test_planted_factors_are_recovered() -> None:
    amounts, basis = planted()
    found, rows = factorized(amounts @ basis, 4)
    alike = basis @ rows.T
    order = alike.argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert float(alike.amax(1).min()) > 0.99
    assert torch.allclose(found @ rows, amounts @ basis, atol=1e-2)
    assert float(torch.corrcoef(torch.stack([found[:, order[0]], amounts[:, 0]]))[0, 1]) > 0.99
    assert float(found.min()) >= 0
    assert float(rows.min()) >= 0
    assert torch.allclose(rows.norm(dim=1), torch.ones(4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
def test_factors_are_at_least_as_near_as_those_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.decomposition")
    a = torch.rand(60, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, rows = factorized(a, 5)
    oracle = sklearn.NMF(5, init="nndsvda", max_iter=300, tol=1e-5)
    other = oracle.fit_transform(a.numpy()) @ oracle.components_
    assert float((a - found @ rows).norm()) <= 1.01 * float(np.linalg.norm(a.numpy() - other))
    assert torch.equal(factorized(a, 5)[1], rows)


def test_coefficients_are_the_non_negative_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = torch.Generator().manual_seed(2)
    a, basis = torch.rand(30, 8, generator=draw, dtype=torch.float64), torch.rand(4, 8, generator=draw, dtype=torch.float64)
    found = coefficients(a, basis, steps=5000)
    expected = np.stack([optimize.nnls(basis.T.numpy(), row.numpy())[0] for row in a])
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert bool((found == 0).any())


def test_what_has_no_factors_is_said() -> None:
    with pytest.raises(cs.UsageError, match="at least 0"):
        factorized(-torch.ones(3, 3), 1)
    with pytest.raises(cs.UsageError, match="at most 3"):
        factorized(torch.ones(3, 5), 4)
    found, rows = factorized(torch.zeros(6, 4), 2)
    assert float((found @ rows).abs().max()) == 0


# ---- Sobol indices


def test_total_indices_of_a_sum() -> None:
    """f = sum a_i x_i: index i is a_i^2 / sum a^2."""
    a = torch.tensor([3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    found = total_indices(lambda x: x @ a, 4, 4096)
    assert torch.allclose(found, a.square() / a.square().sum(), atol=0.01)


def test_total_indices_of_the_g_function() -> None:
    """Sobol's g: with V_i = 1 / (3 (1 + a_i)^2), total_i = V_i prod_{j != i} (1 + V_j) / (prod_j (1 + V_j) - 1)."""
    a = torch.tensor([0.0, 0.5, 3.0, 9.0], dtype=torch.float64)
    parts = 1 / (3 * (1 + a).square())
    whole = (1 + parts).prod()
    expected = parts * whole / (1 + parts) / (whole - 1)
    found = total_indices(lambda x: (((4 * x - 2).abs() + a) / (1 + a)).prod(1), 4, 8192)
    assert torch.allclose(found, expected, atol=0.02)


def test_total_indices_of_a_constant_and_of_several_values() -> None:
    assert total_indices(lambda x: torch.full((len(x),), 3.0), 3, 16).tolist() == [0, 0, 0]
    found = total_indices(lambda x: torch.stack([x[:, 0], x[:, 1]], 1), 2, 2048)
    assert torch.allclose(found, torch.eye(2, dtype=torch.float64), atol=0.02)
    again = [total_indices(lambda x: x.prod(1), 3, 32, seed=s) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


# ---- crops


def test_squares_cover_the_picture_and_are_enlarged() -> None:
    x = torch.arange(2 * 1 * 20 * 30, dtype=torch.float64).view(2, 1, 20, 30)
    found = squares(x, 0.5)
    assert found.shape[1:] == (1, 20, 30)
    assert len(found) % 2 == 0
    assert torch.allclose(found[0, 0], F.interpolate(x[:1, :, :10, :10], (20, 30), mode="bilinear")[0, 0])
    last = F.interpolate(x[1:, :, 10:, 20:], (20, 30), mode="bilinear")[0, 0]
    assert torch.allclose(found[-1, 0], last)
    assert torch.equal(squares(x, 1.0)[0, 0, 0, 0], x[0, 0, 0, 0])


def test_superpixels_hold_one_color_on_gray() -> None:
    net = cs.Network(nn.Conv2d(3, 2, 1), size=32, mean=0.5, std=0.5)
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0, :, :16], x[:, 2, :, 16:] = 1, 1
    found = superpixels(net, x)
    assert found.shape[1:] == (3, 32, 32)
    middles = found[:, :, 16, 16]
    assert bool(((middles[:, 0] > 0.5) ^ (middles[:, 2] > 0.5)).all())


# ---- the whole


class Colored(nn.Module):
    """Red adds twice to the first logit, green once, blue nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AvgPool2d(4), nn.ReLU())
        self.layer[0].weight.data = torch.eye(3)[..., None, None]
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean((2, 3)))


def pictures() -> Tensor:
    """A quarter of each picture is red, a quarter green, a quarter blue, the rest black."""
    x = torch.zeros(6, 3, 16, 16, dtype=torch.float64)
    corners = [(slice(r, r + 8), slice(c, c + 8)) for r in (0, 8) for c in (0, 8)]
    for i in range(6):
        for color in range(3):
            x[i, color, *corners[(i + color) % 4]] = 1
    return x


NET = cs.Network(Colored(), size=16, categories=["warm", "cold"])


def test_concepts_are_the_colors_in_the_order_of_their_weight() -> None:
    found = discover(NET, pictures(), "layer", "warm", concepts=3, crop=0.5, designs=512)
    assert torch.allclose(found.basis, torch.eye(3, dtype=torch.float64), atol=0.02)
    # total indices of 2 u r + u g: 4 / 5, 1 / 5, 0
    assert torch.allclose(found.importance, torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64), atol=0.02)
    assert torch.allclose(found.rebuilt, found.scores, atol=0.02)
    assert found.explained > 0.99
    assert found.target == "warm"
    maps = found.maps(pictures())
    assert maps.shape == (6, 3, 16, 16)
    assert float(maps[0, 0, :4, :4].min()) > 0.9
    assert float(maps[0, 0, 12:].abs().max()) < 0.1
    assert found.maps(pictures(), placed_=False).shape == (6, 3, 4, 4)
    best = found.crops[found.exemplars(1, 3)]
    assert float((best[:, 1] - best[:, [0, 2]].amax(1)).mean()) > 0.5
    assert torch.allclose(found.direction(2).vector, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), atol=0.02)


def test_what_the_concepts_leave_over_is_dropped_or_kept() -> None:
    dropped, kept = (discover(NET, pictures(), "layer", 0, concepts=1, crop=0.5, residual=r) for r in (False, True))
    assert torch.allclose(kept.rebuilt, kept.scores)
    assert not torch.allclose(dropped.rebuilt, dropped.scores, atol=0.001)


def test_the_score_of_rebuilt_activations_is_a_plain_forward_pass() -> None:
    found = discover(NET, pictures(), "layer", 0, concepts=2, crop=0.5, designs=8)
    with torch.no_grad():
        values = NET.module.layer(pictures())
        rows = values.movedim(1, -1).reshape(-1, 3)
        made = (coefficients(rows, found.basis) @ found.basis).view(6, 4, 4, 3).movedim(-1, 1)
        expected = NET.module.head(made.mean((2, 3)))[:, 0]
    assert torch.allclose(found.rebuilt, expected)


def test_pictures_tables_and_the_same_seed(tmp_path: Path) -> None:
    found = discover(NET, pictures(), "layer", concepts=2, crop=0.5, by="superpixels", designs=8)
    assert Image.open(found.save(tmp_path / "concepts.png")).width > 400
    assert found.to_dict() == discover(NET, pictures(), "layer", concepts=2, crop=0.5, by="superpixels", designs=8).to_dict()
    assert len(found.rows()) == 2
    assert "the top class" in found.notes()[1]
    with pytest.raises(cs.UsageError, match="drawn as"):
        found.save(tmp_path / "concepts.jpg")
    with pytest.raises(cs.UsageError, match="no concept 2"):
        found.direction(2)


def test_layers_without_positions_and_negative_ones() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0.02)
    net = cs.Network(module, size=16, channels=3)
    found = discover(net, pictures(), "2", 0, concepts=2, designs=8)
    assert found.importance.shape == (2,)
    with pytest.raises(cs.UsageError, match="no maps"):
        found.maps(pictures())
    with pytest.raises(cs.UnsupportedError, match="behind a ReLU"):
        discover(net, pictures(), "3", 0)
    with pytest.raises(cs.UsageError, match="0 < crop <= 1"):
        discover(net, pictures(), "2", 0, crop=0)


def test_concepts_of_the_scenes_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convoscope.cli.run import run

    out = tmp_path / "concepts.png"
    words = ["concepts", "scenes", "scenes:60", "--layer", "layer3", "--target", "fish", "--out", str(out)]
    assert run([*words, "--concepts", "3", "--pictures", "4"]) == 0
    assert "importance" in capsys.readouterr().out
    assert Image.open(out).width > 400
