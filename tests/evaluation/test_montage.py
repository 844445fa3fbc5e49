"""Montages: who lies where, what a map says of its own cell, and which networks and methods are refused."""

import pytest
import torch
from torch import Tensor, nn

import convoscope as cs
from convoscope import evaluation as e
from convoscope.core.errors import UnsupportedError
from convoscope.evaluation.base import seeded
from convoscope.evaluation.montage import box, groups_of, montage
from convoscope.testing.cases import levels
from convoscope.testing.making import Given, Opposite, made_of

HEIGHT, WIDTH = 4, 6


class Many(nn.Module):
    """Nine classes, each the number of pixels of about its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        off = (x.mean(1, keepdim=True) - self.levels.view(1, -1, 1, 1)) / 0.05
        return 5 * (torch.relu(off + 1) - 2 * torch.relu(off) + torch.relu(off - 1)).sum((2, 3))


def nine(images: int = 11, seed: int = 4) -> cs.Case:
    """Pictures of nine brightnesses in turn, not square, at places of their own."""
    g = torch.Generator().manual_seed(7)
    index = tuple(i % 9 for i in range(images))
    level = torch.tensor(index, dtype=torch.float64).view(-1, 1, 1, 1) * 0.1 + 0.08
    x = level + 0.01 * torch.rand(images, 3, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
    maps = torch.zeros(1, images, HEIGHT, WIDTH, dtype=torch.float64)
    places = tuple(range(20, 20 + 2 * images, 2))
    return cs.Case(cs.Network(Many(), channels=3), x, cs.Logit(index), maps, ("none",), places=places, seed=seed, batch_size=4)


def made(case: cs.Case, *methods: object) -> cs.Case:
    found = made_of(case, *methods)
    found.places, found.seed = case.places, case.seed
    return found


def test_cells_lie_row_after_row() -> None:
    x = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, HEIGHT, WIDTH)
    whole = montage(x, 3)
    assert whole.shape == (3, 3 * HEIGHT, 3 * WIDTH)
    for r in range(3 * HEIGHT):
        for q in range(3 * WIDTH):
            assert (whole[:, r, q] == r // HEIGHT * 3 + q // WIDTH).all()
    for cell in range(9):
        part = whole[(slice(None), *box(whole, 3, cell))]
        assert part.shape == (3, HEIGHT, WIDTH)
        assert (part == cell).all()


@pytest.mark.parametrize(("cells", "seed"), [(2, 4), (2, 5), (3, 4)])
def test_groups_are_the_images_after_it_of_other_classes(cells, seed) -> None:
    case = nine(seed=seed)
    case.x[4] = 0.4  # between two classes: not sure
    case.x[6] = case.x[7]  # of another class than its target
    classes = case.target.index
    sure = [i not in (4, 6) for i in range(11)]
    expected = []
    for i in range(11):
        others: list[int] = []
        for j in [*range(i + 1, 11), *range(i)]:
            if sure[j] and classes[j] != classes[i] and classes[j] not in [classes[k] for k in others]:
                others.append(j)
        others = others[: cells**2 - 1]
        place = int(torch.randint(cells**2, (), generator=seeded(seed, "cell", case.places[i])))
        enough = sure[i] and len(others) == cells**2 - 1
        expected.append([*others[:place], i, *others[place:]] if enough else [])
    assert groups_of(case, cells, 0.9, "any") == expected
    assert any(expected) == (cells == 2)
    assert groups_of(case, cells, 1.01, "any") == [[]] * 11


def test_nine_cells() -> None:
    case = nine()
    groups = groups_of(case, 3, 0.9, "any")
    assert all(sorted(case.target.index[i] for i in g) == list(range(9)) for g in groups)
    assert len({g.index(i) for i, g in enumerate(groups)}) > 2
    assert torch.allclose(e.GridPointingGame(3, 0.9).score(made(case, "gradient")), torch.ones(1, 11).double())


@pytest.mark.parametrize("metric", [e.GridPointingGame(), e.DiFull(), e.GridPointingGame(3)])
def test_the_share_of_the_own_cell(metric) -> None:
    """Of a method that says the same of a picture whatever the network, so that the share is known."""
    case = nine()
    given = made(case, Given("sharp"), "gradient", Given("sharp", 1e300), Opposite())
    groups = groups_of(case, metric.cells, 0.5, "any")
    for i, group in enumerate(groups):
        parts = [(1e4 * case.x[j].sum(0)).sin().clamp(min=0).sum() for j in group]
        share = float(parts[group.index(i)] / sum(parts))
        found = metric.score(given)[:, i].tolist()
        assert found[0] == pytest.approx(share, abs=1e-9)
        assert found[1] == pytest.approx(1, abs=1e-12)
        assert found[2] == pytest.approx(share, abs=1e-9)
        assert found[3] != found[3]  # nothing positive
    assert metric.score(made(case, Given("ones"))).isnan().all()


def test_what_can_have_no_influence_is_known() -> None:
    """Other pictures do influence a network with a global maximum, and cannot where each cell is alone."""

    class Brightest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Many()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x.sum((1, 2, 3))[:, None]

    case = nine()
    case.network = cs.Network(Brightest(), channels=3)
    given = made(case, "input-x-gradient")
    assert (e.GridPointingGame().score(given) < 0.999).all()
    assert torch.allclose(e.DiFull().score(given), torch.ones(1, 11).double())


def test_networks_of_one_size() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * HEIGHT * WIDTH, 4)).double()
    net = cs.Network(module, (HEIGHT, WIDTH), channels=3, name="fixed")
    x = 20 * module[1].weight.detach().view(4, 3, HEIGHT, WIDTH)
    case = made_of(cs.Case(net, x, cs.Logit((0, 1, 2, 3)), torch.zeros(1, 4, HEIGHT, WIDTH), ("none",)), "gradient")
    with pytest.raises(UnsupportedError, match="fixed takes no pictures of 8 x 12, as a montage of those of 4 x 6 is"):
        e.GridPointingGame().score(case)
    assert torch.allclose(e.DiFull().score(case), torch.ones(1, 4).double())
    one = cs.Case(net, x, cs.Logit(1), case.maps, case.names, case.methods)
    assert e.DiFull().score(one).isnan().all()  # one class for all: nobody else to show it among


def test_networks_that_answer_everywhere_are_no_classifiers_of_montages() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Many()

        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(x)
            return found if x.shape[2] == HEIGHT else found[:, :, None, None]

    case = nine()
    case.network = cs.Network(Dense(), channels=3, name="dense")
    with pytest.raises(UnsupportedError, match=r"dense does not classify pictures of 8 x 12: its output is \(1, 9, 1, 1\)"):
        e.GridPointingGame().score(made(case, "gradient"))


def test_methods_that_look_at_layers_are_refused_where_layers_see_one_cell() -> None:
    case = nine()
    for name in ("grad-cam", "cam", "full-grad"):
        case.methods = (cs.methods()[name](),)
        with pytest.raises(UnsupportedError, match=f"shows each cell to the network by itself; {name} looks at its layers"):
            e.DiFull().score(case)
    found = cs.evaluate(case.network, case.x[:8], ["gradient", "grad-cam"], ["di-full"], case.target.index[:8], nulls=())
    assert (found.scores[0, 0] == 1).all()
    assert found.scores[0, 1].isnan().all()
    assert "looks at its layers" in found.left_out["di-full", "grad-cam"]


def test_only_classes_have_montages() -> None:
    case = levels()
    case.target = cs.Channel("output", 1)
    with pytest.raises(cs.ConvoscopeError, match=r"di-full asks for a class; the target is .*, not a class"):
        e.DiFull().score(case)
    maps_alone = levels()
    with pytest.raises(cs.ConvoscopeError, match="none is given as maps alone"):
        e.DiFull().score(maps_alone)
