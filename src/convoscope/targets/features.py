"""Targets that compare the activations at an address with given ones: codes to invert, directions, guides."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.record import Activations
from convoscope.core.spec import AtLeast
from convoscope.targets.base import Scores, Target


class FeatureDistance(Target):
    """The relative error of a code, `|a - c|^2 / |c|^2` (Mahendran and Vedaldi 2015, eq. 2): 0 where it is met.

    `code` is the activations of one image at the address, or `(images, ...)`, one for each; `of="log-probabilities"` compares
    their log-softmax. To invert a code, make this small: raise `-FeatureDistance(...)`.
    """

    layer: Annotated[str, "address"]
    code: Annotated[Tensor, "the activations to meet, of one image or of each"]
    of: Annotated[Literal["activations", "log-probabilities"], "what is compared"] = "activations"

    unit = "relative error"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        code, values = _fitting(self.layer, self.code, activations[self.layer], activations.rows)
        if self.of == "log-probabilities":
            values, code = values.log_softmax(1), code.log_softmax(1)
        scale = code.flatten(1).square().sum(1).clamp(min=torch.finfo(code.dtype).tiny)
        return (values - code).flatten(1).square().sum(1) / scale


class DotCosine(Target):
    """The dot product of activations with given ones times a power of their cosine, the mean over places.

    `(a . c) max(cos(a, c), 0.1)^power`: the power keeps the picture to the direction, the dot product asks for much of it
    (Carter et al. 2019). `code` is the activations of one image, or `(images, ...)`, one for each.
    """

    layer: Annotated[str, "address"]
    code: Annotated[Tensor, "the activations to agree with, of one image or of each"]
    power: Annotated[float, "how much the angle counts", AtLeast(0)] = 1.0

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        code, values = _fitting(self.layer, self.code, activations[self.layer], activations.rows)
        dot = (values * code).sum(1)
        tiny = torch.finfo(values.dtype).tiny
        cosine = dot / (values.square().sum(1) * code.square().sum(1)).clamp(min=tiny).sqrt()
        return (dot * cosine.clamp(min=0.1) ** self.power).flatten(1).mean(1)


class BestMatch(Target):
    """How well each place of a layer matches the best of given features: `sum_p max_q a_p . c_q`.

    Its gradient is the best matching feature at each place: DeepDream by a guide picture (Mordvintsev et al. 2015).
    """

    layer: Annotated[str, "address"]
    features: Annotated[Tensor, "(channels, places) of the guide"]

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer].flatten(2)
        if self.features.dim() != 2 or values.shape[1] != len(self.features):
            raise UsageError(
                f"{self.layer!r} has {values.shape[1]} channels; got features of shape {tuple(self.features.shape)}, "
                "expected (channels, places)"
            )
        return torch.einsum("bcp,cq->bpq", values, self.features.to(values)).amax(2).sum(1)


def _fitting(layer: str, code: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    code = code if code.dim() == values.dim() else code[None]
    if code.shape[1:] != values.shape[1:]:
        raise UsageError(
            f"{layer!r} has shape {tuple(values.shape[1:])} for a picture of this size; the code has {tuple(code.shape[1:])}"
        )
    if len(code) > 1:
        if int(rows.max()) >= len(code):
            raise UsageError(f"{len(code)} codes for {int(rows.max()) + 1} images; give one for each")
        code = code[rows.to(code.device)]
    return code.to(values), values
