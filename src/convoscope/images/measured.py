"""What pictures of a data set have in common: their mean, how their colors vary, how strong waves are. For `cs.sweep`."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.statistic import SUM, Samples, Statistic
from convoscope.engine import sweep
from convoscope.images.base import Space
from convoscope.images.color import Axes, color_axes, unit
from convoscope.network import Network

_INPUT = "of the network, for inputs to become pixels 0..1; () where they are pixels"


class OfPixels(Statistic):
    """What statistics over `input` share: their batches are inputs of a network, and count as pixels 0..1."""

    mean: tuple = ()
    std: tuple = ()

    def _pixels(self, batch: Tensor) -> Float[Tensor, "rows channels height width"]:
        if batch.dim() != 4:
            raise UsageError(f"expected pictures (B, C, H, W); got shape {tuple(batch.shape)}")
        pixels = batch.detach().to("cpu", torch.float64)
        if not self.mean:
            return pixels
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return pixels * std + mean

    def _add(self, count: int, **sums: Tensor) -> None:
        found = {"count": torch.tensor(count), **sums}
        for name, value in found.items():
            if self.begun and getattr(self, name).shape != value.shape:
                raise UsageError(f"pictures of one size are measured; got {tuple(value.shape)} and {tuple(self.total.shape)}")
        before = self.state_dict()
        for name, value in found.items():
            setattr(self, name, before[name] + value if before else value)

    def _seen(self) -> None:
        if not self.begun:
            raise UsageError("no value: nothing was seen")


@dataclass(kw_only=True, eq=False)
class MeanPicture(OfPixels):
    """The mean of pictures, pixels 0..1."""

    mean: Annotated[tuple, "mean " + _INPUT] = ()
    std: Annotated[tuple, "standard deviation " + _INPUT] = ()

    state = {"count": SUM, "total": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        pixels = self._pixels(batch)
        self._add(len(pixels), total=pixels.sum(0))

    def value(self) -> Float[Tensor, "channels height width"]:
        self._seen()
        return self.total / self.count


@dataclass(kw_only=True, eq=False)
class ColorCovariance(OfPixels):
    """The covariance of channels over all pixels of all pictures, in pixels 0..1 squared."""

    mean: Annotated[tuple, "mean " + _INPUT] = ()
    std: Annotated[tuple, "standard deviation " + _INPUT] = ()

    state = {"count": SUM, "total": SUM, "products": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        pixels = self._pixels(batch).transpose(0, 1).flatten(1) - 0.5  # about gray, so that little is lost in rounding
        self._add(pixels.shape[1], total=pixels.sum(1), products=pixels @ pixels.T)

    def value(self) -> Float[Tensor, "channels channels"]:
        self._seen()
        mean = self.total / self.count
        return self.products / self.count - torch.outer(mean, mean)


@dataclass(kw_only=True, eq=False)
class Spectrum(OfPixels):
    """The mean magnitude of every wave, |rfft2| with norm="ortho", of pixels less 0.5 along axes of color."""

    mean: Annotated[tuple, "mean " + _INPUT] = ()
    std: Annotated[tuple, "standard deviation " + _INPUT] = ()
    axes: Annotated[tuple, "the matrix whose columns are axes of color, as rows; () for the channels as they are"] = ()

    state = {"count": SUM, "total": SUM}

    def update(self, batch: Tensor, samples: Samples | None = None) -> None:
        pixels = self._pixels(batch) - 0.5
        if self.axes:
            to = torch.linalg.inv(torch.tensor(self.axes, dtype=torch.float64))
            pixels = (to @ pixels.flatten(2)).view_as(pixels)
        self._add(len(pixels), total=torch.fft.rfft2(pixels, norm="ortho").abs().sum(0))

    def value(self) -> Float[Tensor, "channels height half"]:
        self._seen()
        return self.total / self.count


def measure(network: Network | nn.Module, dataset: Any, statistic: OfPixels, **settings: Any) -> Any:
    """A statistic of the pictures that a network is shown, as pixels 0..1; settings as for `cs.sweep`."""
    network = network if isinstance(network, Network) else Network(network)
    statistic = statistic.fresh()
    statistic.mean, statistic.std = tuple(network.mean), tuple(network.std)
    return sweep(network, dataset, statistic, ["input"], **settings)["input", statistic.label()]


def mean_picture(network: Network | nn.Module, dataset: Any, **settings: Any) -> Float[Tensor, "1 channels height width"]:
    """The mean picture of a data set, pixels 0..1: where an ascent may start, or the middle of `L2`."""
    return measure(network, dataset, MeanPicture(), **settings).value().float()[None]


def measured_axes(network: Network | nn.Module, dataset: Any, **settings: Any) -> Axes:
    """The axes along which the channels of a data set vary, for `Fourier(decorrelate=...)`; the longest has length 1.

    The principal axes (the Karhunen-Loeve transform) of the pixels, each as long as their deviation along it, longest first
    and pointing to where the sum over channels is positive.
    """
    covariance = measure(network, dataset, ColorCovariance(), **settings).value()
    values, vectors = torch.linalg.eigh(covariance)
    if not values[-1] > 0:
        raise UsageError("the pictures are all of one color, so there are no axes along which they vary")
    values, vectors = values.flip(0).clamp(min=1e-6 * float(values[-1])), vectors.flip(1)
    sign = torch.where(vectors.sum(0) < 0, -1.0, 1.0)
    return unit(vectors * sign * values.sqrt())


def natural_axes(network: Network | nn.Module, dataset: Any, **settings: Any) -> Axes:
    """The axes of color of natural pictures for three channels; those of the data set for any other number."""
    network = network if isinstance(network, Network) else Network(network)
    known = color_axes(True, Space(network.channels, (1, 1), torch.device("cpu"), torch.float64))
    return measured_axes(network, dataset, **settings) if known is None else known
