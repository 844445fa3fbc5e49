"""What zennit 0.5.1, shap 0.51.0 and saliency 0.2.1 get wrong, why, and that the same networks are explained rightly here.

The tests of a library hold for the release in which the defect was seen and are skipped elsewhere.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from networks import (
    bias_free,
    images,
    network_of,
    normal,
    randomized,
    relative,
    torchvision_models,
    torchvision_network,
    untouched,
    values,
)
from peers import change, gap, method, seen_in
from torch import Tensor, nn

import convoscope as cs

torchvision_models()  # the peers must find it loaded

ZENNIT, SHAP, SALIENCY = seen_in("zennit", "0.5.1"), seen_in("shap", "0.51.0"), seen_in("saliency", "0.2.1")
CLASS = 3
X = images("resnet18")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def zennits(module: nn.Module, composite: Any, x: Tensor) -> Tensor:
    """Relevance by zennit, beginning with the logit of the class."""
    from zennit.attribution import Gradient

    mask = torch.zeros(10, dtype=torch.float64)
    mask[CLASS] = 1
    with Gradient(model=module, composite=composite) as attributor:
        return attributor(x.clone(), lambda output: output * mask)[1]


def epsilon(canonizers: list[Any]) -> Any:
    """zennit's epsilon rule on every linear module, its stabilizers negligible."""
    from zennit import composites, rules, types

    linear = [(kind, rules.Epsilon(1e-14)) for kind in (types.Convolution, types.Linear)]
    return composites.LayerMapComposite([*linear, *composites.layer_map_base(1e-14)], canonizers=canonizers)


class TestBatchNormsOfDenseNet:
    """16. zennit merges a batch norm with what was registered before it: in DenseNet a convolution that does not feed it.

    The shapes differ, `__enter__` raises, `__exit__` never runs: the network is left changed, and no longer runs.
    """

    @ZENNIT
    def test_zennit(self) -> None:
        from zennit.canonizers import SequentialMergeBatchNorm

        module = deepcopy(torchvision_network("densenet121"))
        with pytest.raises(RuntimeError):
            zennits(module, epsilon([SequentialMergeBatchNorm()]), X)
        with pytest.raises(RuntimeError):
            module(X)

    def test_ours(self) -> None:
        module = torchvision_network("densenet121")
        without = bias_free(module)
        with untouched(module):
            values(module, X, cs.LRP(composite="epsilon"), CLASS)
        with torch.no_grad():
            assert gap(values(without, X, cs.LRP(composite="epsilon"), CLASS), without(X)[:, CLASS]) < 1e-6


class Added(nn.Module):
    """One skip addition by the operator, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.relu, self.head = nn.ReLU(), nn.Conv2d(6, 10, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.relu(self.second(x) + x)).flatten(1)


class TestEpsilonOfBatchNormsAndFunctions:
    """17. zennit's merged batch norm keeps its epsilon and so still scales; a sum by `a + b` is seen by no module.

    Gradients pass the sum whole on both sides, and nothing says so.
    """

    x = X[:, :, :12, :12]

    @staticmethod
    def normed() -> nn.Module:
        first = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-2), nn.ReLU())
        module = nn.Sequential(*first, nn.Conv2d(4, 10, 10), nn.Flatten())
        return bias_free(randomized(module, normal(4, 3, 12, 12, seed=2)))

    @ZENNIT
    def test_zennit(self) -> None:
        from zennit.canonizers import SequentialMergeBatchNorm

        module = self.normed()
        merged = deepcopy(module)
        composite = epsilon([SequentialMergeBatchNorm()])
        with composite.context(merged) as changed, torch.no_grad():
            assert 1e-3 < relative(changed(self.x), module(self.x)) < 1e-1
        added = bias_free(randomized(Added(), normal(4, 3, 12, 12, seed=2)))
        assert gap(zennits(added, epsilon([]), self.x), added(self.x)[:, CLASS]) > 0.1

    def test_ours(self) -> None:
        for module in (self.normed(), bias_free(randomized(Added(), normal(4, 3, 12, 12, seed=2)))):
            with torch.no_grad():
                assert gap(values(module, self.x, cs.LRP(composite="epsilon"), CLASS), module(self.x)[:, CLASS]) < 1e-6


class TestHooksOfDeepExplainer:
    """18. shap's DeepExplainer hooks every module and fails on a ReLU in place, leaving its hooks on the network."""

    @SHAP
    def test_shap(self) -> None:
        shap = pytest.importorskip("shap")
        module = deepcopy(torchvision_network("squeezenet1_1"))
        explainer = shap.DeepExplainer(module, X[:1].clone())
        with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
            explainer.shap_values(X[1:].clone())
        hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules())
        assert hooks > 50

    def test_ours(self) -> None:
        module = torchvision_network("squeezenet1_1")
        with untouched(module):
            found = values(module, X[1:], method("DeepLIFT", baseline=X[:1]), CLASS)
        assert gap(found, change(module, X[1:], X[:1], CLASS)) < 1e-5


class TestCachesOfPartition:
    """19. shap's image masker keeps a blurred image by `id(x)` of a temporary: another image may get the blur of the last.

    Its queue breaks ties by random numbers, so that equal calls differ.
    """

    @SHAP
    def test_blur_of_shap(self) -> None:
        """Where Python puts the new image at the address of the last one, freed by then: about one time in fifty."""
        np, shap = pytest.importorskip("numpy"), pytest.importorskip("shap")
        pytest.importorskip("cv2")
        masker, nothing, second = shap.maskers.Image("blur(3,3)", (4, 4, 1)), np.zeros(16, bool), np.ones(16)
        masker(nothing, np.zeros(16))
        assert masker.last_xid is not None
        masker.last_xid = id(second)  # what the address of the first image would be
        assert float(masker(nothing, second)[0].mean()) == 0.0

    @SHAP
    def test_ties_of_shap(self) -> None:
        """Four equal quarters, and evaluations for some of them only: which ones is drawn by NumPy's global generator."""
        np, shap = pytest.importorskip("numpy"), pytest.importorskip("shap")
        weights = np.tile(np.array([[1.0, 2.0], [3.0, 4.0]]), (2, 2))
        explainer = shap.PartitionExplainer(
            lambda x: (x[..., 0] * weights).sum((1, 2)), shap.maskers.Image(0.0, (4, 4, 1))
        )
        found = [explainer(np.ones((1, 4, 4, 1)), max_evals=32, batch_size=2, silent=True).values for _ in range(8)]
        assert max(float(abs(f - found[0]).max()) for f in found) > 0.1

    def test_ours(self) -> None:
        """Every image gets its own blur, whatever came before; equal calls are equal."""
        module = randomized(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)), normal(4, 3, 8, 8))
        x = normal(6, 3, 8, 8, seed=9)
        partition = method("PartitionSHAP", baseline="blur")
        alone = torch.cat([values(module, x[k : k + 1].clone(), partition, CLASS) for k in range(len(x))])
        together = values(module, x, partition, CLASS)
        assert relative(together, alone) < 1e-10
        assert torch.equal(values(module, x, partition, CLASS), together)


def asked(module: nn.Module) -> Callable[..., dict[str, Any]]:
    """The network as saliency calls it: arrays (images, height, width, channels), gradients or values by key."""

    def call(x: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, Any]:
        leaf = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
        scores = module(leaf)[:, CLASS]
        gradient = torch.autograd.grad(scores.sum(), leaf)[0].permute(0, 2, 3, 1)
        return {"INPUT_OUTPUT_GRADIENTS": gradient.numpy(), "OUTPUT_LAYER_VALUES": scores.detach().numpy()}

    return call


class TestPAIR:
    """20. saliency: guided IG calls NumPy by a name that is gone; blur IG takes the last step size for the whole batch of
    points; `GetSmoothedMask` is SmoothGrad-squared unless told otherwise; occlusion adds where windows overlap.
    """

    x = 0.5 * X[:1, :, :12, :12]

    @staticmethod
    def module() -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 10), nn.Flatten())
        return randomized(module, normal(4, 3, 12, 12, seed=2))

    def picture(self) -> Any:
        return self.x[0].permute(1, 2, 0).numpy()

    @SALIENCY
    def test_guided_ig_of_saliency(self) -> None:
        np, saliency = pytest.importorskip("numpy"), pytest.importorskip("saliency.core")
        if tuple(map(int, np.__version__.split(".")[:2])) < (2, 4):
            pytest.skip("this NumPy still knows quantile(interpolation=)")
        with pytest.raises(TypeError, match="interpolation"):
            saliency.GuidedIG().GetMask(self.picture(), asked(self.module()), x_steps=3)

    def test_guided_ig(self) -> None:
        module, start = self.module(), torch.zeros(1, 3, 12, 12, dtype=torch.float64)
        found = values(module, self.x, method("GuidedIG", steps=200, baseline=0.0), CLASS)
        assert gap(found, change(module, self.x, start, CLASS)) < 0.05

    @SALIENCY
    def test_blur_ig_of_saliency(self) -> None:
        """The map of a linear network is the difference of picture and blurred picture, whatever the batch of points."""
        saliency = pytest.importorskip("saliency.core")
        blurred = saliency.BlurIG()
        call = asked(self.module())
        one, many = (
            blurred.GetMask(self.picture(), call, max_sigma=4, steps=20, sqrt=True, batch_size=b) for b in (1, 20)
        )
        assert relative(torch.tensor(many), torch.tensor(one)) > 0.2

    def test_blur_ig(self) -> None:
        module, blur = self.module(), method("BlurIG")
        one, many = (
            cs.explain(network_of(module), self.x, blur, CLASS, batch_size=size).values for size in (1, 20)
        )
        assert relative(many, one) < 1e-10

    @SALIENCY
    def test_smooth_grad_of_saliency(self) -> None:
        saliency = pytest.importorskip("saliency.core")
        linear = randomized(nn.Sequential(nn.Flatten(), nn.Linear(432, 10)), normal(4, 3, 12, 12))
        found = saliency.GradientSaliency().GetSmoothedMask(self.picture(), asked(linear), nsamples=2)
        gradient = values(linear, self.x, cs.Gradient(), CLASS)[0].permute(1, 2, 0)
        assert relative(torch.tensor(found), gradient**2) < 1e-5

    def test_smooth_grad(self) -> None:
        linear = randomized(nn.Sequential(nn.Flatten(), nn.Linear(432, 10)), normal(4, 3, 12, 12))
        gradient = values(linear, self.x, cs.Gradient(), CLASS)
        assert relative(values(linear, self.x, cs.SmoothGrad(samples=3), CLASS), gradient) < 1e-12
        assert relative(values(linear, self.x, method("SmoothGradSquared", samples=3), CLASS), gradient**2) < 1e-12

    @SALIENCY
    def test_occlusion_of_saliency(self) -> None:
        """Windows add up: a pixel at the edge, under one window, gets less than one in the middle, under sixteen."""
        saliency = pytest.importorskip("saliency.core")
        found = saliency.Occlusion().GetMask(self.picture(), asked(self.module()), size=4, value=0)[..., 0]
        mean = values(self.module(), self.x, cs.Occlusion(window=4, stride=1, fill=0.0), CLASS)[0, 0]
        cover = torch.tensor([min(i + 1, 4, 12 - i) for i in range(12)], dtype=torch.float64)
        assert relative(torch.tensor(found), mean * cover[:, None] * cover[None]) < 1e-10
        assert float(cover.max() ** 2) == 16
