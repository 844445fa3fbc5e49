"""Learned masks: their parts against the formulas, the area they are asked for, and a planted patch."""

import pytest
import torch
from networks import network_of, normal
from torch import nn

import convoscope as cs
from convoscope.attribution.extremal import Blurs, area_reference, minimized, spread_out

SIDE = 32
PATCH = (slice(4, 14), slice(16, 26))


class Stripes(nn.Module):
    """Class 1: how strong horizontal stripes of two pixels are, anywhere; class 0: vertical ones."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, 2, 4, bias=False)
        wave = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(4, 4) / 16
        self.filters.weight = nn.Parameter(torch.stack([wave, wave.T])[:, None], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.filters(x).abs().mean((2, 3)) * 20


NET = network_of(Stripes().double())


def image() -> torch.Tensor:
    """A patch of horizontal stripes, and vertical ones elsewhere in the second image."""
    stripes = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat(SIDE // 4)
    x = 0.02 * normal(2, 1, SIDE, SIDE)
    x[:, 0, *PATCH] += stripes[PATCH[0], None]
    x[1, 0, 20:30, 2:12] += stripes[2:12]
    return x


X = image()


def inside(map_: torch.Tensor) -> float:
    return float(map_[..., *PATCH].sum() / map_.sum())


@pytest.mark.parametrize("mode", ["preserve", "delete"])
def test_extremal_perturbation_finds_a_planted_patch(mode: str) -> None:
    """The patch is a tenth of the image; so is the mask that is asked for."""
    found = cs.explain(NET, X, cs.ExtremalPerturbation(area=0.1, mode=mode, steps=100, cells=16, blur=0.2), 1)  # type: ignore[arg-type]
    assert torch.tensor(found.diagnostics["area 0.1 reached"]).sub(0.1).abs().max() < (0.02 if mode == "preserve" else 0.04)
    for one in found.values:
        assert inside(one) > 0.65
        assert 0 <= one.min() <= one.max() <= 1
    with torch.no_grad():
        whole = NET.module(X)[:, 1]
        nothing = NET.module(Blurs(X, 0.2 * SIDE).last)[:, 1]
    share = (torch.tensor(found.diagnostics["area 0.1 target"]) - nothing) / (whole - nothing)
    assert (share > 0.3).all() if mode == "preserve" else (share < 0.2).all()


def test_extremal_perturbation_follows_the_target() -> None:
    found = cs.explain(NET, X[1:], cs.ExtremalPerturbation(area=0.1, steps=100, cells=16, blur=0.2), 0).values
    assert float(found[0, 0, 20:30, 2:12].sum() / found.sum()) > 0.5


def test_several_areas_are_the_mean_of_each() -> None:
    settings = {"steps": 20, "cells": 8}
    both = cs.explain(NET, X, cs.ExtremalPerturbation(area=(0.05, 0.3), **settings), 1)  # type: ignore[arg-type]
    each = [cs.explain(NET, X, cs.ExtremalPerturbation(area=a, **settings), 1) for a in (0.05, 0.3)]  # type: ignore[arg-type]
    assert torch.allclose(both.values, (each[0].values + each[1].values) / 2, atol=1e-9)
    assert both.diagnostics["area 0.3 reached"] == pytest.approx(each[1].diagnostics["area 0.3 reached"])
    assert both.diagnostics["evaluations"] == 2 * (2 + 2 * 21)
    for wrong in (0.0, 1.0, (), (0.1, 2.0), ("a",)):
        with pytest.raises(cs.SpecError, match="fractions between 0 and 1"):
            cs.explain(NET, X, cs.ExtremalPerturbation(area=wrong), 1)  # type: ignore[arg-type]


def test_meaningful_perturbation_deletes_the_patch_and_little_else() -> None:
    found = cs.explain(NET, X, cs.MeaningfulPerturbation(steps=100, cells=16, sparsity=5e-3), 1)
    with torch.no_grad():
        whole = NET.module(X)[:, 1]
    assert (torch.tensor(found.diagnostics["target when deleted"]) < 0.2 * whole).all()
    assert max(found.diagnostics["area"]) < 0.25
    for one in found.values:
        assert one[0][PATCH].mean() > 0.9
        assert inside(one) > 0.4


@pytest.mark.parametrize("method", [cs.MeaningfulPerturbation(steps=8, cells=8), cs.ExtremalPerturbation(steps=8, cells=8)])
def test_images_do_not_touch_each_other(method: cs.Method) -> None:
    both = cs.explain(NET, X, method, 1).values
    for size in (1, 2):
        assert torch.allclose(cs.explain(NET, X, method, 1, batch_size=size).values, both, atol=1e-12)
    assert torch.allclose(cs.explain(NET, X[:1], method, 1).values, both[:1], atol=1e-12)


def test_the_nearest_mask_of_an_area_is_the_papers_sorted_one() -> None:
    """Where values differ: zeros, then ones, in the order of the values. Where they are equal, what is left is shared."""
    masks = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    area = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    for mask, a, found in zip(masks, area, area_reference(masks, area), strict=True):
        values = mask.flatten().sort().values
        reference = torch.cat([torch.zeros(64 - int(64 * a)), torch.ones(int(64 * a))])
        assert torch.isclose(((mask - found) ** 2).sum(), ((values - reference) ** 2).sum())
    equal = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    assert torch.allclose(area_reference(equal, torch.tensor([0.3]).double()), torch.tensor(0.3, dtype=torch.float64))


def test_smooth_masks_are_maxima_of_kernels() -> None:
    """Ones stay ones, zeros zeros; a single seed becomes its kernel as the temperature falls."""
    assert torch.allclose(spread_out(torch.ones(1, 9, 9).double(), 1.5), torch.ones(()).double())
    assert spread_out(torch.zeros(1, 9, 9), 1.5).abs().max() == 0
    seed = torch.zeros(1, 9, 9, dtype=torch.float64)
    seed[0, 4, 4] = 1
    distance = (torch.arange(9) - 4.0)[:, None] ** 2 + (torch.arange(9) - 4.0) ** 2
    kernel = torch.exp(-distance / (2 * 1.5**2)).double() * (distance <= 9)
    assert (spread_out(seed, 1.5, temperature=1e-3)[0] - kernel)[distance <= 9].abs().max() < 0.01


def test_blurs_are_the_image_and_its_gaussian_means() -> None:
    x = normal(2, 3, 12, 12)
    blurs = Blurs(x, 2.0)
    assert torch.equal(blurs(torch.ones(2, 1, 12, 12).double()), x)
    assert torch.allclose(blurs(torch.zeros(2, 1, 12, 12).double()), blurs.last)
    assert torch.allclose(blurs(torch.full((2, 1, 12, 12), 4 / 7, dtype=torch.float64)), blurs.levels[:, 3])
    flat = torch.full((1, 3, 12, 12), 0.7, dtype=torch.float64)
    assert torch.allclose(Blurs(flat, 2.0).last, flat)
    kernel = torch.exp(-(torch.arange(-5, 6).double() ** 2) / 8)
    kernel = kernel[:, None] * kernel / kernel.sum() ** 2
    point = torch.zeros(1, 1, 23, 23, dtype=torch.float64)
    point[0, 0, 11, 11] = 1
    assert torch.allclose(Blurs(point, 2.0).last[0, 0, 6:17, 6:17], kernel, atol=1e-3)


def test_adam_finds_a_minimum_inside_and_at_the_border() -> None:
    goal = torch.tensor([[[0.3, 0.9], [-1.0, 2.0]]])
    found = minimized(torch.full((1, 2, 2), 0.5), 300, 0.05, lambda _time, _step, m: ((m - goal) ** 2).sum())
    assert torch.allclose(found, goal.clamp(0, 1), atol=1e-3)
