"""Methods follow the network to its device, and give there what they give on the CPU."""

import copy

import pytest
import torch

import convoscope as cs
from convoscope.testing import small

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"))


@pytest.fixture(scope="module")
def network() -> cs.Network:
    return cs.load("scenes")


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", sorted(cs.methods()))
def test_values_are_those_of_the_cpu_in_double_precision(network: cs.Network, name: str, device: str) -> None:
    x = torch.rand(3, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    double = copy.deepcopy(network.module).double()
    method = "occlusion:window=24" if name == "occlusion" else small(name)
    expected = cs.explain(cs.Network(double, 48), x, method, batch_size=2)
    moved = cs.Network(copy.deepcopy(double).to(device), 48)
    found = cs.explain(moved, x.to(device), method, batch_size=3)
    assert found.values.device.type == device
    assert found.target == expected.target
    assert torch.allclose(found.values.cpu(), expected.values, rtol=1e-7, atol=1e-9 * float(expected.values.abs().max()))
    drawn, wanted = found.heatmap().cpu(), expected.heatmap()
    assert torch.allclose(drawn, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    # Inputs may stay where they are: values come back to them.
    assert cs.explain(moved, x, method, batch_size=3).values.device == x.device
