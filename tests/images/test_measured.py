"""What a data set has in common, against all its pictures at once; parts that merge; pictures that start from it."""

import pytest
import torch
from torch import nn

import convoscope as cs
from convoscope.core.statistic import Statistic
from convoscope.images.color import color_axes, uncolored
from convoscope.images.measured import ColorCovariance, MeanPicture, Spectrum, mean_picture, measure, measured_axes

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def network(channels: int = 3) -> cs.Network:
    torch.manual_seed(0)
    return cs.Network(nn.Conv2d(channels, 4, 3), (8, 10), MEAN[:1] * channels, STD[:1] * channels, channels=channels)


def pictures(channels: int = 3, count: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    mix = torch.rand(channels, channels, generator=draw)
    return torch.einsum("dc,bchw->bdhw", mix / mix.sum(1, keepdim=True), torch.rand(count, channels, 8, 10, generator=draw))


STATISTICS = [MeanPicture(), ColorCovariance(), Spectrum(), Spectrum(axes=((1.0, 0.5, 0), (0, 1, 0), (0, 0, 2)))]


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.label())
def test_any_split_merges_to_the_whole(statistic: Statistic) -> None:
    x = pictures()
    whole = statistic.fresh()
    whole.update(x)
    for cuts in ([3, 4], [1, 0, 6], [1] * 7):
        parts = []
        for part in x.split(cuts):
            parts.append(statistic.fresh())
            if len(part):
                parts[-1].update(part)
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        assert torch.allclose(merged.value(), whole.value(), rtol=1e-12)
    batches = statistic.fresh()
    for part in x.split(2):
        batches.update(part)
    assert torch.allclose(batches.value(), whole.value(), rtol=1e-12)


def test_the_values() -> None:
    x = pictures().double()
    found = []
    for statistic in STATISTICS:
        statistic = statistic.fresh()
        statistic.update(x)
        found.append(statistic.value())
    assert torch.allclose(found[0], x.mean(0))
    assert torch.allclose(found[1], torch.cov(x.transpose(0, 1).flatten(1), correction=0))
    assert torch.allclose(found[2], torch.fft.rfft2(x - 0.5, norm="ortho").abs().mean(0))
    axes = torch.tensor([(1.0, 0.5, 0), (0, 1, 0), (0, 0, 2)]).double()
    assert torch.allclose(found[3], torch.fft.rfft2(uncolored(x - 0.5, axes), norm="ortho").abs().mean(0))


def test_inputs_count_as_pixels() -> None:
    net, x = cs.Network(nn.Conv2d(3, 4, 3), (8, 10), MEAN, STD), pictures()
    assert torch.allclose(mean_picture(net, x)[0].double(), x.double().mean(0), atol=1e-6)
    covariance = measure(net, x, ColorCovariance()).value()
    assert torch.allclose(covariance, torch.cov(x.double().transpose(0, 1).flatten(1), correction=0), atol=1e-6)
    with pytest.raises(cs.UsageError, match="nothing was seen"):
        Spectrum().value()
    with pytest.raises(cs.UsageError, match=r"expected pictures \(B, C, H, W\)"):
        MeanPicture().update(torch.ones(2, 3))
    once = MeanPicture()
    once.update(x)
    with pytest.raises(cs.UsageError, match="pictures of one size"):
        once.update(x[:, :, :4])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_axes_make_colors_independent(channels: int) -> None:
    net, x = network(channels), pictures(channels)
    axes = measured_axes(net, x)
    assert axes.norm(dim=0).max() == pytest.approx(1)
    assert (axes.norm(dim=0).diff() <= 1e-9).all()  # longest first
    assert (axes.sum(0) >= 0).all()
    along = uncolored(x.double(), axes).transpose(0, 1).flatten(1)
    covariance = torch.cov(along, correction=0) if channels > 1 else torch.cov(along, correction=0).view(1, 1)
    assert torch.allclose(covariance, covariance[0, 0] * torch.eye(channels).double(), atol=1e-6)
    image = cs.Fourier(decorrelate=axes)
    made = cs.maximize(net, cs.Channel("output", 0), image, steps=3)
    assert made.pixels.shape == (1, channels, 8, 10)
    gray = torch.full((2, channels, 8, 10), 0.5)
    with pytest.raises(cs.UsageError, match="all of one color"):
        measured_axes(net, gray)


@pytest.mark.parametrize("channels", [1, 3])
def test_maco_with_the_magnitudes_of_a_data_set(channels: int) -> None:
    net, x = network(channels), pictures(channels)
    image = cs.MACO.measured(net, x)
    axes = color_axes(True, _space(net)) if channels == 3 else measured_axes(net, x)
    assert axes is not None
    expected = torch.fft.rfft2(uncolored(x.double() - 0.5, axes.double()), norm="ortho").abs().mean(0)
    assert image.magnitude is not None
    assert torch.allclose(image.magnitude.double(), expected, rtol=2e-3, atol=1e-4)
    assert cs.maximize(net, cs.Channel("output", 0), image, steps=2).pixels.shape == (1, channels, 8, 10)
    assert cs.MACO.measured(net, x, size=16).size == 16


def _space(net: cs.Network):  # type: ignore[no-untyped-def]
    from convoscope.images.base import Space

    return Space(net.channels, (8, 10), net.device)


def test_a_start_from_the_mean_picture() -> None:
    net, x = network(), pictures()
    mean = mean_picture(net, x)
    made = cs.maximize(net, cs.Channel("output", 0), "fourier", start=mean, steps=0)
    assert torch.allclose(made.pixels, mean, atol=1e-5)
    bright = cs.L2(weight=0.1, middle=mean)
    assert float(bright(mean)) == 0
