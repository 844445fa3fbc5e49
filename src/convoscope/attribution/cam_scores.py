"""Class activation maps without gradients: what the target says when channels or places of a layer are shown or taken away."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from convoscope.attribution.cam import (
    AFFINE,
    Values,
    layer_values,
    linear_behind,
    ratio,
    weighted,
    with_places,
)
from convoscope.attribution.regions import Fill, filled
from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.core.probe import Place, Probe
from convoscope.core.spec import About, AtLeast, Paper
from convoscope.method import Maps, Method
from convoscope.network import Images
from convoscope.targets import Logit, Probability

Scored = Literal["logit", "probability"]
Per = Literal["score", "activation"]
Norm = Literal["softmax", "none"]
Masks = Float[Tensor, "rows 1 height width"]


def each(probe: Probe) -> Iterator[tuple[slice, Probe]]:
    """Every row, and a probe for it alone."""
    for i in range(len(probe.rows)):
        yield slice(i, i + 1), replace(probe, rows=probe.rows[i : i + 1], keys=probe.keys[i : i + 1])


def at_layer(one: Probe, x: Images, layer: str, like: Tensor, count: int, make: Callable[[range], Tensor]) -> Tensor:
    """The target of one image if a layer were each of `count` tensors like `like`: `make(numbers)` gives those of a block.

    As many at once as 32 million numbers hold, for what is shared by all is computed once.
    """
    size = max(1, (1 << 25) // max(1, like.numel()))
    blocks = [range(k, min(k + size, count)) for k in range(0, count, size)]
    found = [one.repeat(block).score_at(x, layer, make(block)) for block in blocks]
    return torch.cat(found) if found else x.new_zeros(0)


def check_follows(probe: Probe, layer: str) -> None:
    """Raises UnsupportedError where all that the target reads comes before a layer."""
    addresses, left = set(probe.session.target.addresses()), len(probe.tail(layer))
    if "output" not in addresses and all(len(probe.tail(a)) > left for a in addresses):
        raise UnsupportedError(f"the target does not depend on {layer!r}: it comes before")


def most(sizes: Tensor, count: int) -> list[int]:
    """The numbers of at most `count` channels of one image with the largest sizes `(channels,)`, but those without any."""
    chosen = sizes.topk(min(count, len(sizes))).indices
    return sorted(chosen[sizes[chosen] > 0].tolist())


def _stretched(maps: Tensor) -> Masks:
    """Each map from 0 to 1; no map is constant but for rounding."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return ratio(maps - low, high - low)


def _probability(probe: Probe) -> Probability:
    target = probe.session.target
    if isinstance(target, Logit):
        return Probability(target.index)
    if isinstance(target, Probability):
        return target
    raise UnsupportedError(f"score='probability' is that of a class: the target is a Logit or a Probability, not {target}")


class MaskingCAM(Method, abstract=True):
    """Base of maps of channels weighted by the mean score of images masked by each; constant channels have no weight."""

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    score: Annotated[Scored, "what masked images are judged by: the target itself, or the probability of its class"] = "logit"
    norm: Annotated[Norm, "how scores become weights: softmax over channels, or as they are"] = "softmax"
    channels: Annotated[int, "at most how many channels are scored: those that vary most over the image", AtLeast(1)] = 2048
    fill: Annotated[Fill, "what hides: a name, a number or a tensor in input space"] = 0.0

    unit: ClassVar[str] = "activation, weighted by the {target}"
    signed = False

    def draws(self) -> int:
        """How many masks are made of each channel."""
        return 1

    def masks(self, probe: Probe, maps: Masks, draw: Tensor) -> Masks:
        """The masks of the rows of a probe, from channels stretched to 0..1 and the number of the draw `(rows,)`."""
        return maps

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        values, fill = layer_values(probe, x, layer, self.title), filled(probe, x, self.fill)
        with probe.aiming(_probability(probe)) if self.score == "probability" else nullcontext():
            found = [self._weights(one, x[row], fill[row], values[row], layer) for row, one in each(probe)]
        return weighted(values, torch.cat(found)[..., None, None]).relu()

    def _weights(self, one: Probe, x: Images, fill: Images, values: Values, layer: str) -> Tensor:
        """The weights of one image's channels `(1, channels)`."""
        varying = most(values.amax((0, 2, 3)) - values.amin((0, 2, 3)), self.channels)
        channel = torch.tensor(varying, device="cpu").long().repeat_interleave(self.draws())
        draw = torch.arange(self.draws(), device="cpu").repeat(len(varying))
        scores = [x.new_zeros(0)]
        for numbers in one.blocks(len(channel)):
            block = slice(numbers.start, numbers.stop)
            copies = one.repeat((channel[block] * self.draws() + draw[block]).tolist())
            maps = _stretched(copies.place(values[0][channel[block]][:, None], layer))
            scores.append(copies.score(torch.lerp(fill, x, self.masks(copies, maps, draw[block].to(x.device)).to(x))))
        found = torch.cat(scores).view(len(varying), -1).mean(1) if varying else x.new_zeros(0)
        weights = x.new_zeros(values.shape[1])
        weights[varying] = (found.softmax(0) if self.norm == "softmax" else found).to(weights)
        return weights[None]

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 1 + self.channels * self.draws()


class ScoreCAM(MaskingCAM):
    """A layer's channels, weighted by the target of the image seen through each of them; the positive part.

    Wang et al. 2020: a channel's map at input size, stretched to 0..1, is the mask. As in the paper weights are the softmax of
    logits over channels, where the score of the baseline cancels out; `score="probability", norm="none"` is what the authors'
    code does. Channels that are constant mask nothing and have no weight.
    """

    title = "Score-CAM"
    paper = Paper(
        "wang2020score", "Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui and "
        "Mardziel, Piotr and Hu, Xia", "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
        "CVPR Workshop", 2020, "1910.01279",
    )  # fmt: skip
    about = About(
        "decision", "where the class is seen, without gradients", "1 + channels forwards", "any CNN, any layer",
        "slow; a softmax over channels leaves only the best few",
    )  # fmt: skip


class SSCAM(MaskingCAM, name="ss-cam"):
    """Score-CAM with scores averaged over noise on the masks (Wang et al. 2020, their first variant)."""

    samples: Annotated[int, "noisy masks for each channel", AtLeast(1)] = 10
    sigma: Annotated[float, "deviation of the noise, where a mask goes from 0 to 1", AtLeast(0)] = 2.0

    title = "SS-CAM"
    stochastic = True
    paper = Paper(
        "wang2020ss", "Wang, Haofan and Naidu, Rakshit and Michael, Joy and Kundu, Soumya Snigdha",
        "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", "arXiv", 2020, "2006.14255",
    )  # fmt: skip
    about = About(
        "decision", "a steadier Score-CAM", "1 + channels x samples forwards", "any CNN, any layer",
        "very slow; its noise is larger than the mask",
    )  # fmt: skip

    def draws(self) -> int:
        return self.samples

    def masks(self, probe: Probe, maps: Masks, draw: Tensor) -> Masks:
        return maps + self.sigma * probe.normal(maps)


class ISCAM(MaskingCAM, name="is-cam"):
    """Score-CAM with scores averaged on the way from nothing to the masked image (Naidu et al. 2020).

    The mask is shown at strengths `i / steps`, i = 1 .. steps, so that the last is Score-CAM's; the coefficients printed in the
    paper add up to more than 1, beyond the image.
    """

    steps: Annotated[int, "strengths of each mask", AtLeast(1)] = 10

    title = "IS-CAM"
    paper = Paper(
        "naidu2020iscam", "Naidu, Rakshit and Ghosh, Ankita and Maurya, Yash and Nayak K, Shamanth R and "
        "Kundu, Soumya Snigdha", "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", "arXiv", 2020, "2010.03023",
    )  # fmt: skip
    about = About(
        "decision", "a Score-CAM that no saturated score decides", "1 + channels x steps forwards", "any CNN, any layer",
        "very slow; dark pictures are unlike any the network has seen",
    )  # fmt: skip

    def draws(self) -> int:
        return self.steps

    def masks(self, probe: Probe, maps: Masks, draw: Tensor) -> Masks:
        return maps * ((draw + 1).to(maps) / self.steps).view(-1, 1, 1, 1)


class AblationCAM(Method):
    """A layer's channels, weighted by what the target loses when each is set to zero; the positive part.

    Desai and Ramaswamy 2020. Only what follows the layer runs for each channel. Behind pooling and linear layers the loss of a
    linear target is the sum of gradient times activation, exactly, and one pass gives all. Channels that are zero lose nothing
    and are skipped. `relative="score"` divides by the magnitude of the target, one number for the whole map (the paper, by the
    target, which turns the map around where it is negative); `relative="activation"` by the channel's mean, for a slope: behind
    pooling and one linear layer the map is then CAM's.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    relative: Annotated[Per | None, "what losses are divided by: the target's magnitude, the channel's mean, or nothing"] = None
    channels: Annotated[int, "at most how many channels are taken away one by one: the strongest", AtLeast(1)] = 2048

    title, unit = "Ablation-CAM", "activation, weighted by {target} lost"
    signed = False
    paper = Paper(
        "desai2020ablation", "Desai, Saurabh and Ramaswamy, Harish G.",
        "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization", "WACV", 2020,
    )  # fmt: skip
    about = About(
        "decision", "what the score loses without a feature", "1 forward; or 1 + channels passes of what follows the layer",
        "any CNN, any layer", "one channel at a time: features that stand in for each other seem unimportant",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        if linear_behind(probe, layer, AFFINE):
            found = probe.gradients(x, (layer,))
            values, score = with_places(found[layer][0], layer, self.title), found["score"]
            lost = (found[layer][1] * values).sum((2, 3))
        else:
            check_follows(probe, layer)
            values, score = layer_values(probe, x, layer, self.title), probe.score(x)
            lost = torch.cat([self._lost(one, x[row], layer, values[row], score[row]) for row, one in each(probe)])
        if self.relative:
            lost = ratio(lost, score.abs()[:, None] if self.relative == "score" else values.mean((2, 3)))
        return weighted(values, lost[..., None, None]).relu()

    def _lost(self, one: Probe, x: Images, layer: str, values: Values, score: Tensor) -> Tensor:
        """What one image loses with each channel `(1, channels)`."""
        lost, channels = torch.zeros_like(values[:, :, 0, 0]), most(values.abs().amax((0, 2, 3)), self.channels)

        def without(block: range) -> Values:
            left = values.repeat(len(block), 1, 1, 1)
            left[range(len(block)), channels[block.start : block.stop]] = 0
            return left

        lost[0, channels] = score - at_layer(one, x, layer, values, len(channels), without)
        return lost

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 4 + self.channels


class ReciproCAM(Method):
    """What the target says if a layer shows one place and nothing else, less what it says of nothing (Byun and Lee 2022).

    Every place in turn; only what follows the layer runs. A place comes with its neighbors, in the weights 1/4, 1/8 and 1/16
    of the paper's mask, or alone. Behind pooling and linear layers, one pass gives what all places say of a linear target,
    exactly: places alone, CAM divided by their number.
    """

    layer: Annotated[str | None, "address; none is the last spatial tensor"] = None
    mask: Annotated[Literal["gaussian", "place"], "whether a place comes with its neighbors"] = "gaussian"
    places: Annotated[int, "how many places a layer may have", AtLeast(1)] = 1024

    title, unit = "ReciproCAM", "{target} gained by a place alone"
    paper = Paper(
        "byun2022recipro", "Byun, Seok-Yong and Lee, Wonju",
        "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks", "arXiv", 2022, "2209.14074",
    )  # fmt: skip
    about = About(
        "decision", "what each place of a late layer says by itself, without gradients",
        "1 forward; or 1 + places passes of what follows the layer", "any CNN, late layers",
        "a layer that is zero but for one place is unlike any the network has seen",
    )  # fmt: skip

    def attribute(self, probe: Probe, x: Images) -> Maps:
        layer = probe.layer(self.layer)
        if linear_behind(probe, layer, AFFINE):
            values, gradients = probe.activations_and_gradients(x, layer)
            return self._spread(weighted(with_places(values, layer, self.title), gradients))
        check_follows(probe, layer)
        values = layer_values(probe, x, layer, self.title)
        rows, columns = values.shape[2:]
        if rows * columns > self.places:
            raise UsageError(f"{layer!r} has {rows} x {columns} places, more than places={self.places}; take a later layer")
        return torch.cat([self._places(one, x[row], layer, values[row]) for row, one in each(probe)])

    def _places(self, one: Probe, x: Images, layer: str, values: Values) -> Maps:
        rows, columns = values.shape[2:]

        def alone(block: range) -> Values:
            masks = values.new_zeros(len(block), rows * columns + 1)  # the last shows nothing
            masks[range(len(block)), list(block)] = 1
            return self._spread(masks[:, :-1].view(-1, 1, rows, columns)) * values

        scores = at_layer(one, x, layer, values, rows * columns + 1, alone)
        return (scores[:-1] - scores[-1]).view(1, 1, rows, columns)

    def _spread(self, masks: Tensor) -> Tensor:
        if self.mask == "place":
            return masks
        line = masks.new_tensor([0.25, 0.5, 0.25])
        return F.conv2d(masks, (line[:, None] * line)[None, None], padding=1)

    def needs(self, probe: Probe) -> tuple[Place, ...]:
        return (probe.layer(self.layer),)

    def evaluations(self, x: Images) -> int:
        return 4 + min(self.places, x.shape[2] * x.shape[3])
