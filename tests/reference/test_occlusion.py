"""Occlusion beside captum's, where windows replayed and windows run are to be the same; and on real networks."""

import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

import convoscope as cs
from convoscope.testing.zoo import randomized


@pytest.mark.parametrize(("window", "stride"), [((12, 8), (4, 8)), ((16, 4), (16, 2))])
def test_captum(torchvision: ModuleType, window: tuple[int, int], stride: tuple[int, int]) -> None:
    """Where strides divide what windows leave; elsewhere captum's last window lies partly outside, ours ends at the edge."""
    attr = pytest.importorskip("captum.attr")
    module = randomized(torchvision.models.squeezenet1_1(weights=None)).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = int(module(x).argmax())
    theirs = attr.Occlusion(module).attribute(x, (3, *window), (3, *stride), 0.25, target=target, perturbations_per_eval=32)
    ours = cs.explain(cs.Network(module), x, cs.Occlusion(window=window, stride=stride, fill=0.25), target).values
    assert ours.abs().max() > 0
    assert (ours - theirs[:, :1]).abs().max() <= 1e-6 * ours.abs().max()  # captum's sums are in single precision


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_real_networks_in_single_precision(torchvision: ModuleType, torch_home: Path, name: str) -> None:
    if not any((torch_home / "hub" / "checkpoints").glob(f"{name}-*.pth")):
        pytest.skip(f"TORCH_HOME holds no weights of {name}")
    assert os.environ["TORCH_HOME"]
    module = getattr(torchvision.models, name)(weights="DEFAULT").eval()
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    method = cs.Occlusion(window=20, stride=70, fill=0.0, average=False)
    drops = cs.explain(cs.Network(module), x, method, 281).values[0, 0]
    with torch.no_grad():
        clean = module(x)
        for r, top in enumerate((0, 70, 140)):
            for c, left in enumerate((0, 70, 140)):
                hidden = x.clone()
                hidden[:, :, top : top + 20, left : left + 20] = 0
                expected = module(hidden)
                assert abs(drops[r, c] - (clean - expected)[0, 281]) <= 1e-5 * expected.abs().max()
