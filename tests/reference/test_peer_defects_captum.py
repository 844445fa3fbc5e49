"""What captum 0.9.0 gets wrong, why, and that the same networks are explained rightly here. One class per defect.

The tests of captum hold for the release in which the defect was seen and are skipped elsewhere.
"""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from networks import (
    images,
    network_of,
    normal,
    randomized,
    relative,
    torchvision_models,
    torchvision_network,
    values,
    without_biases,
)
from peers import change, gap, method, seen_in, total
from torch import Tensor, nn
from torch.nn import functional as F

import convoscope as cs

torchvision_models()  # captum must find it loaded

CAPTUM = seen_in("captum", "0.9.0")
CLASS = 3
START = 0.3 * normal(1, 3, 64, 64, seed=5)
X = images("resnet18")

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


class Adding(nn.Module):
    """A skip addition; with captum's module for it, or by the operator."""

    def __init__(self, add: nn.Module | None) -> None:
        super().__init__()
        self.convolution, self.relu, self.add = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(), add

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.convolution(x))
        return out + x if self.add is None else self.add(out, x)


class Residual(nn.Module):
    """Eight skip additions without biases."""

    def __init__(self, add: Callable[[], nn.Module | None] = lambda: None) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1)
        self.blocks, self.head = nn.Sequential(*[Adding(add()) for _ in range(8)]), nn.Linear(8, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x).relu())).flatten(1))


def residual(add: Callable[[], nn.Module | None] = lambda: None) -> nn.Module:
    return randomized(Residual(add), X[:, :, :12, :12])


class TestRelevanceOfSkipAdditions:
    """1. captum's LRP changes modules; `out + x` is none. Both branches get the whole relevance, twice as much per block."""

    x = X[:, :, :12, :12]

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import LRP
        from captum.attr._utils.custom_modules import Addition_Module

        module = residual()
        score = module(self.x)[:, CLASS]
        assert gap(LRP(module).attribute(self.x.clone(), target=CLASS), score) > 10
        module = residual(Addition_Module)
        assert gap(LRP(module).attribute(self.x.clone(), target=CLASS), module(self.x)[:, CLASS]) < 1e-5
        module = deepcopy(without_biases("resnet18"))
        assert gap(LRP(module).attribute(X.clone(), target=CLASS), module(X)[:, CLASS]) > 1e6

    def test_ours(self) -> None:
        for module, x in ((residual(), self.x), (without_biases("resnet18"), X)):
            assert gap(values(module, x, cs.LRP(composite="epsilon"), CLASS), module(x)[:, CLASS]) < 1e-6


class TestRulesOfTheUser:
    """2. captum's LRP deletes `module.rule` when it ends: the second call silently takes another rule.

    It knows modules by their exact type, and neither Flatten, Identity nor LeakyReLU is among them.
    """

    x = X[:, :, :12, :12]

    @staticmethod
    def plain(*more: nn.Module) -> nn.Module:
        return randomized(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 10), *more), normal(4, 3, 12, 12, seed=2)
        )

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import LRP
        from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule

        module = self.plain()
        for part in module:
            part.rule = Alpha1_Beta0_Rule()
        first, second = (LRP(module).attribute(self.x.clone(), target=(CLASS, 0, 0)) for _ in range(2))
        assert not hasattr(module[0], "rule")
        assert relative(second, first) > 0.1
        for part in (nn.Flatten(), nn.Identity(), nn.LeakyReLU()):
            with pytest.raises(TypeError, match="no rule defined"):
                LRP(self.plain(part)).attribute(self.x.clone(), target=(CLASS, 0, 0))

    def test_ours(self) -> None:
        module = self.plain(nn.Identity(), nn.Flatten())
        first, second = (values(module, self.x, cs.LRP(), CLASS) for _ in range(2))
        assert torch.equal(first, second)
        assert vars(module[0]).keys() == vars(nn.Conv2d(1, 1, 1)).keys()


class TestDeepLIFTOnRealNetworks:
    """3. captum's DeepLIFT hooks modules: a ReLU used twice raises, and functions between modules are left out.

    With a baseline of zero and no biases it equals gradient times input, which hides this.
    """

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import DeepLift

        with pytest.raises(RuntimeError, match="used more than once"):
            DeepLift(deepcopy(torchvision_network("resnet18"))).attribute(X.clone(), START.expand_as(X), target=CLASS)
        for name in ("squeezenet1_1", "densenet121"):
            module = deepcopy(torchvision_network(name))
            found = DeepLift(module).attribute(X.clone(), START.expand_as(X), target=CLASS)
            assert gap(found, change(module, X, START, CLASS)) > 0.1

    @pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
    def test_ours(self, name: str) -> None:
        module = torchvision_network(name)
        found = values(module, X, method("DeepLIFT", baseline=START), CLASS)
        assert gap(found, change(module, X, START, CLASS)) < 1e-5


class TestDeepLIFTOfOverlappingPools:
    """4. captum sends multipliers back by `max_unpool`, which overwrites where windows overlap instead of adding.

    Windows that do not overlap are exact.
    """

    x, start = X[:, :, :20, :20], START[:, :, :20, :20]

    @staticmethod
    def pooled(window: int, stride: int) -> nn.Module:
        size = (20 - window) // stride + 1
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(window, stride), nn.Conv2d(4, 6, size), nn.Flatten())
        return randomized(module, normal(4, 3, 20, 20, seed=2))

    @CAPTUM
    @pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1)])
    def test_captum(self, window: int, stride: int) -> None:
        from captum.attr import DeepLift

        module = self.pooled(window, stride)
        found = DeepLift(module).attribute(self.x.clone(), self.start.expand_as(self.x), target=CLASS)
        error = gap(found, change(module, self.x, self.start, CLASS))
        assert error < 1e-10 if window == stride else error > 0.05

    @pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1)])
    def test_ours(self, window: int, stride: int) -> None:
        module = self.pooled(window, stride)
        found = values(module, self.x, method("DeepLIFT", baseline=self.start), CLASS)
        assert gap(found, change(module, self.x, self.start, CLASS)) < 1e-10


class TestDeepLIFTOfSoftmax:
    """5. captum normalizes the multipliers of a softmax by their sum over the whole batch: images change each other's maps."""

    x, start = X[:, :, :12, :12], START[:, :, :12, :12]

    @staticmethod
    def softmaxed() -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 10), nn.Flatten(), nn.Softmax(1))
        return randomized(module, normal(4, 3, 12, 12, seed=2))

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import DeepLift

        module = self.softmaxed()
        both = DeepLift(module).attribute(self.x.clone(), self.start.expand_as(self.x), target=CLASS)
        alone = DeepLift(module).attribute(self.x[:1].clone(), self.start, target=CLASS)
        assert relative(both[:1], alone) > 0.01

    def test_ours(self) -> None:
        module, deeplift = self.softmaxed(), method("DeepLIFT", baseline=self.start)
        assert relative(values(module, self.x, deeplift, CLASS)[:1], values(module, self.x[:1], deeplift, CLASS)) < 1e-10


class Functional(nn.Module):
    """The ReLUs are calls of functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(torch.relu(self.first(x))))).flatten(1)


class TestFunctions:
    """6. Modules have hooks and functions have none: captum's guided backprop is then the gradient, DeepLIFT is off.

    DenseNet-121 calls one of its 121 ReLUs as a function.
    """

    x, start = X[:, :, :12, :12], START[:, :, :12, :12]

    @staticmethod
    def pair() -> tuple[nn.Module, nn.Module]:
        """The network with functions, and the same one with modules."""
        module = randomized(Functional(), normal(4, 3, 12, 12, seed=2))
        parts = (module.first, nn.ReLU(), module.second, nn.ReLU(), module.third, nn.Flatten())
        return module, nn.Sequential(*deepcopy(nn.ModuleList(parts)))

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import DeepLift, GuidedBackprop, Saliency

        module, _ = self.pair()
        gradient = Saliency(module).attribute(self.x.clone(), target=CLASS, abs=False)
        assert torch.equal(GuidedBackprop(module).attribute(self.x.clone(), target=CLASS), gradient)
        found = DeepLift(module).attribute(self.x.clone(), self.start.expand_as(self.x), target=CLASS)
        assert gap(found, change(module, self.x, self.start, CLASS)) > 0.1
        dense = deepcopy(torchvision_network("densenet121"))
        theirs = GuidedBackprop(dense).attribute(X.clone(), target=CLASS)
        assert relative(theirs, values(dense, X, cs.GuidedBackprop(), CLASS)) > 0.1

    def test_ours(self) -> None:
        functions, modules = self.pair()
        for name, settings in (("GuidedBackprop", {}), ("DeepLIFT", {"baseline": self.start})):
            found = values(functions, self.x, method(name, **settings), CLASS)
            assert relative(found, values(modules, self.x, method(name, **settings), CLASS)) < 1e-12
        assert gap(found, change(functions, self.x, self.start, CLASS)) < 1e-10

    @CAPTUM
    def test_guided_backprop_is_captums_where_all_are_modules(self) -> None:
        from captum.attr import GuidedBackprop

        functions, modules = self.pair()
        theirs = GuidedBackprop(modules).attribute(self.x.clone(), target=CLASS)
        assert relative(values(functions, self.x, cs.GuidedBackprop(), CLASS), theirs) < 1e-12


class TestTrapezoid:
    """7. The weights of captum's trapezoid rule sum to (n - 1) / n: the map of a linear function is too small by 1 / n."""

    @staticmethod
    def linear() -> nn.Module:
        return randomized(nn.Sequential(nn.Flatten(), nn.Linear(48, 10, bias=False)), normal(4, 3, 4, 4))

    @CAPTUM
    def test_captum(self) -> None:
        from captum.attr import IntegratedGradients

        module, x = self.linear(), X[:, :, :4, :4]
        found = IntegratedGradients(module).attribute(x.clone(), target=CLASS, n_steps=50, method="riemann_trapezoid")
        assert torch.allclose(total(found), 0.98 * module(x)[:, CLASS], rtol=1e-6)

    @pytest.mark.parametrize("rule", ["midpoint", "trapezoid", "gauss-legendre"])
    def test_ours(self, rule: str) -> None:
        module, x = self.linear(), X[:, :, :4, :4]
        found = values(module, x, cs.IntegratedGradients(steps=5, baseline=0.0, rule=rule), CLASS)
        assert gap(found, module(x)[:, CLASS]) < 1e-12


class TestConductanceOfTheWholePath:
    """8. captum's conductance sums differences between Gauss-Legendre nodes, which leave out both ends of the path."""

    x, start = X[:, :, :12, :12], START[:, :, :12, :12]

    @staticmethod
    def linear() -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 10), nn.Flatten())
        return randomized(module, normal(4, 3, 12, 12, seed=2))

    @CAPTUM
    def test_captum(self) -> None:
        """On a linear network the share that is lost is that of the path left out."""
        import numpy as np
        from captum.attr import LayerConductance

        module, steps = self.linear(), 4
        found = LayerConductance(module, module[0]).attribute(
            self.x.clone(), self.start.expand_as(self.x), target=CLASS, n_steps=steps
        )
        nodes = np.polynomial.legendre.leggauss(steps + 1)[0]
        share = (nodes[-1] - nodes[0]) / 2
        assert share < 0.95
        assert torch.allclose(total(found), share * change(module, self.x, self.start, CLASS), rtol=1e-6)

    def test_ours(self) -> None:
        module = self.linear()
        conductance = method("Conductance", layer="0", steps=4, baseline=self.start)
        found = cs.explain(network_of(module), self.x, conductance, CLASS).values
        assert gap(found, change(module, self.x, self.start, CLASS)) < 1e-10
