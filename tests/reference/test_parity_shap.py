"""Equal to shap, where its values are exact: every coalition enumerated, or no ReLU between pools."""

from copy import deepcopy

import pytest
import torch
from networks import normal, randomized, relative, torchvision_models, values
from peers import method
from torch import Tensor, nn

torchvision_models()  # shap must find it loaded
np = pytest.importorskip("numpy")
shap = pytest.importorskip("shap", reason="shap is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
CLASS = 3


def small(size: int, channels: int = 2) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * size * size, 10))
    return randomized(module, normal(4, channels, size, size, seed=2))


def scores(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)[:, CLASS]


def test_partition() -> None:
    """All boxes divided down to pixels: the Owen values, exactly."""
    module, x = small(4, 1), normal(1, 1, 4, 4, seed=3)
    picture = x[0].permute(1, 2, 0).numpy()

    def ask(pictures: object) -> object:
        return scores(module, torch.as_tensor(pictures).permute(0, 3, 1, 2)).numpy()

    explainer = shap.PartitionExplainer(ask, shap.maskers.Image(np.zeros_like(picture)))
    expected = explainer(picture[None], max_evals=10**6, batch_size=64, silent=True).values[0].reshape(4, 4)
    found = values(module, x, method("PartitionSHAP", samples=10**6, baseline=0.0), CLASS)[0, 0]
    assert relative(found, torch.as_tensor(expected)) < 1e-10


def test_kernel() -> None:
    """Six regions and all coalitions: the Shapley values, exactly."""
    module, x = small(6), normal(1, 2, 6, 6, seed=3)
    regions = (torch.arange(6)[:, None] // 3 * 3 + torch.arange(6) // 2)[None]

    def ask(shown: object) -> object:
        mask = torch.as_tensor(shown, dtype=x.dtype)[:, regions[0]]
        return scores(module, x * mask[:, None]).numpy()

    explainer = shap.KernelExplainer(ask, np.zeros((1, 6)))
    expected = torch.as_tensor(explainer.shap_values(np.ones((1, 6)), nsamples=62, silent=True))[0]
    found = values(module, x, method("KernelSHAP", samples=62, regions=regions, baseline=0.0), CLASS)[0].sum(0)
    sums = torch.stack([found[regions[0] == k].sum() for k in range(6)])
    assert relative(sums, expected) < 1e-8


@pytest.mark.parametrize("pooled", ["without pools", "with pools"])
def test_deep(pooled: str) -> None:
    """DeepLIFT over several references; its modules are all apart, its pools do not overlap."""
    pool = [nn.AvgPool2d(2)] if pooled == "with pools" else []
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), *pool, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 if pool else 256, 10)
    )
    module = randomized(module, normal(4, 3, 12, 12, seed=2))
    x, data = normal(2, 3, 12, 12, seed=3), normal(3, 3, 12, 12, seed=4)
    # DeepExplainer compares its sums in single precision.
    expected = shap.DeepExplainer(deepcopy(module), data.clone()).shap_values(x.clone(), check_additivity=False)
    found = values(module, x, method("DeepLIFTSHAP", baseline=data), CLASS)
    assert relative(found, torch.as_tensor(expected)[..., CLASS].double()) < 1e-5


def test_expected_gradients_of_a_linear_network() -> None:
    """With one reference the draws do not matter: `w (x - x0)`. shap works in single precision."""
    module = randomized(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), normal(4, 3, 4, 4))
    x, data = normal(2, 3, 4, 4, seed=3), normal(1, 3, 4, 4, seed=4)
    expected = shap.GradientExplainer(deepcopy(module).float(), data.float()).shap_values(x.float(), nsamples=3)
    found = values(module, x, method("ExpectedGradients", samples=3, baseline=data), CLASS)
    assert relative(found, torch.as_tensor(expected)[..., CLASS].double()) < 1e-5
