"""Targets of pictures made together, and of directions among channels."""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.record import Activations
from convoscope.core.spec import AtLeast
from convoscope.targets.base import Scores, Target

LEAST = 0.1  # of the cosine: below it there would be no gradient to turn by


class Diversity(Target):
    """How alike each picture is to the others of its target: the sum over them of the cosine of Gram matrices at a layer.

    A Gram matrix says how much two channels respond at the same places: what is in a picture, wherever it is. Alike is
    positive, so it is taken off: `Channel("layer4", 42) - 100 * Diversity("layer3")` with several copies makes pictures of all
    that a channel responds to (Olah et al. 2017). Of a single picture it is 0. With several views of a picture, each counts
    as the mean of its views. The work grows with the pictures, not with the pairs: the sum over all is `|sum_i g_i|^2 - n`.
    """

    layer: Annotated[str, "address"]

    unit = "similarity"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    @property
    def together(self) -> bool:
        return True

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        if values.dim() < 3:
            raise UsageError(
                f"{self.layer!r} has shape {tuple(values.shape[1:])}, no places to compare; name a layer with some"
            )
        styles = _styles(values.flatten(2))
        if activations.pictures is None:
            return (styles * (styles.sum(0) - styles)).sum(1)
        which = activations.pictures.unique(return_inverse=True)[1].to(styles.device)
        views = torch.nn.functional.one_hot(which).to(styles)
        means = (views / views.sum(0)).T @ styles
        return (styles * (means.sum(0) - means[which])).sum(1)


class CosineDirection(Target):
    """Activations along a vector over channels: the mean over places of `(a . v) max(cos(a, v), 0.1)^power`.

    The dot product alone drifts to channels that are strong everywhere, the cosine alone leaves pictures pale; their product
    does neither (Carter et al. 2019). `v` counts with length 1, power 0 is the dot product.
    """

    layer: Annotated[str, "address"]
    vector: Annotated[Tensor, "one number per channel"]
    power: Annotated[float, "how much the angle counts", AtLeast(0)] = 2.0

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        if self.vector.shape != values.shape[1:2]:
            raise UsageError(
                f"{self.layer!r} has {values.shape[1]} channels; got a direction of shape {tuple(self.vector.shape)}"
            )
        tiny = torch.finfo(values.dtype).tiny
        vector = self.vector.to(values)
        vector = vector / vector.norm().clamp(min=tiny)
        dot = torch.tensordot(values, vector, dims=([1], [0]))
        cosine = dot / values.square().sum(1).clamp(min=tiny).sqrt()
        return (dot * cosine.clamp(min=LEAST) ** self.power).reshape(len(values), -1).mean(1)


def _styles(values: Float[Tensor, "rows channels places"]) -> Float[Tensor, "rows channels*channels"]:
    """The Gram matrix of each row as a vector of length 1; zeros where nothing responds."""
    grams = (values @ values.mT).flatten(1)
    return grams / grams.square().sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny).sqrt()
