"""Attributions: values, heat maps, what they tell of themselves; citations."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import convoscope as cs
from convoscope.core.spec import Spec


@pytest.fixture(scope="module")
def net() -> cs.Network:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    return cs.Network(nn.Sequential(*parts).eval(), (24, 32), 0.5, 0.25, ["a", "b", "c", "d"], name="small")


@pytest.fixture(scope="module")
def x(net: cs.Network) -> torch.Tensor:
    return net.read(torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)))


def test_heat_maps_sum_channels_at_input_size(net: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(net, x, "gradient", 1)
    assert a.values.shape == x.shape
    assert torch.equal(a.heatmap(), a.values.sum(1))
    assert torch.equal(a.heatmap("max-abs"), a.values.abs().amax(1))
    assert torch.allclose(a.heatmap("l2"), a.values.norm(dim=1))
    assert a.heatmap(size=(12, 16)).shape == (2, 12, 16)
    with pytest.raises(cs.UsageError, match="no reduction 'mean'; expected one of sum, max-abs, l2"):
        a.heatmap("mean")  # type: ignore[arg-type]


def test_coarse_maps_are_enlarged_with_pixel_centers_aligned(net: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(net, x, cs.GradCAM(layer="2"), 1)
    assert a.values.shape == (2, 1, 6, 8)
    large = a.heatmap()
    assert large.shape == (2, 24, 32)
    v = a.values[:, 0].double()
    # Pixel 2 lies 2.5 / 4 = 0.625 cells from the edge, an eighth past the center of the first cell.
    assert torch.allclose(large[:, 2, 0].double(), v[:, 0, 0] * 7 / 8 + v[:, 1, 0] / 8, atol=1e-6)
    assert torch.allclose(large[:, 0, 2].double(), v[:, 0, 0] * 7 / 8 + v[:, 0, 1] / 8, atol=1e-6)
    assert torch.allclose(large[:, [0, -1]][:, :, [0, -1]].double(), v[:, [0, -1]][:, :, [0, -1]])


def test_a_result_says_what_made_it(net: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(net, x, cs.IntegratedGradients(steps=5), "c", seed=7)
    assert (a.method, a.target, a.at, a.seed) == (cs.IntegratedGradients(steps=5), cs.Logit(2), "input", 7)
    assert (a.network_name, a.network_hash) == ("small", net.hash)
    assert len(a) == 2
    assert len(a.diagnostics["completeness gap"]) == 2
    assert a.diagnostics["seconds"] > 0
    told = json.loads(json.dumps(a.to_dict()))
    assert Spec.from_dict(told["method"]) == a.method
    assert Spec.from_dict(told["target"]) == a.target
    assert told["shape"] == [2, 3, 24, 32]
    assert told["network_hash"] == net.hash
    assert "IntegratedGradients(steps=5" in repr(a)
    assert "completeness gap" in repr(a)


def test_the_layer_that_was_chosen_is_told(net: cs.Network, x: torch.Tensor) -> None:
    assert cs.explain(net, x, "grad-cam", 1).diagnostics["layer"] == "2"
    assert cs.explain(net, x, cs.GradCAM(layer="1"), 1).diagnostics["layer"] == "1"
    assert cs.explain(net, x, cs.GradCAM(), 1, at="1").diagnostics["layer"] == "1"


def test_results_draw_and_save_themselves(net: cs.Network, x: torch.Tensor, tmp_path: Path) -> None:
    a = cs.explain(net, x, "gradient", 1)
    assert isinstance(a.image(over=x), Image.Image)
    assert a.image(index=1).size[0] <= a.image().size[0]
    a.save(tmp_path / "a.png", over=x)
    assert Image.open(tmp_path / "a.png").size == a.image(over=x).size
    a.save(tmp_path / "a.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "a.safetensors")["values"], a.values)
    assert "<img" in a._repr_html_()
    with pytest.raises(cs.UsageError):
        a.save(tmp_path / "a.xyz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.safetensors"]


def test_values_without_rows_and_columns_have_no_heat_map(net: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(net, x, "gradient", 1, at="4")
    assert a.values.shape == (2, 5)
    with pytest.raises(cs.UsageError, match=r"values of shape \(2, 5\) have no rows and columns"):
        a.heatmap()


def test_cite_names_each_paper_once(net: cs.Network, x: torch.Tensor) -> None:
    a = cs.explain(net, x, cs.SmoothGrad(of=cs.IntegratedGradients(steps=2), samples=2), 1)
    text = cs.cite(a, cs.IntegratedGradients, cs.SmoothGrad())
    assert text.count("@misc{") == 3  # the last one smooths gradients, which have a paper of their own
    assert text.count("@misc{simonyan2014deep,") == 1
    assert text.count("@misc{sundararajan2017axiomatic,") == 1
    assert text.count("@misc{smilkov2017smoothgrad,") == 1
    assert cs.cite(cs.GradCAM) == cs.cite(cs.GradCAM())
    assert cs.cite() == ""
    with pytest.raises(cs.UsageError, match="nothing to cite in 3"):
        cs.cite(3)


def test_coarse_maps_lie_where_their_units_look() -> None:
    """A stack of padded convolutions of stride 2: unit i is centered on pixel 4 i, not on the middle of its quarter."""
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = cs.Network(nn.Sequential(*layers, nn.Linear(4, 2)), size=32)
    found = cs.explain(net, torch.rand(1, 3, 32, 32), cs.GradCAM(layer="2"), 0)
    found.values = torch.zeros(1, 1, 8, 8)
    found.values[0, 0, 3, 5] = 1
    heatmap = found.heatmap()[0]
    assert heatmap.argmax() == 12 * 32 + 20
    assert heatmap.max() == 1
    assert heatmap[12, 18] == 0.5
    assert heatmap[12, 24] == 0


def test_maps_of_units_that_see_everything_are_spread_evenly() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            y = y * y.mean((2, 3), keepdim=True).sigmoid()
            return self.head(y.mean((2, 3)))

    found = cs.explain(cs.Network(Gated(), size=16), torch.rand(1, 3, 16, 16), cs.GradCAM(layer="mul"), 0)
    expected = nn.functional.interpolate(found.values, (16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(found.heatmap(), expected[:, 0], atol=1e-7)
