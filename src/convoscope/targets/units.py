"""Targets that read the activations at an address."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from convoscope.core.errors import UsageError
from convoscope.core.record import Activations
from convoscope.targets.base import Scores, Target, per_row, within


class Layer(Target):
    """What a layer responds with: one number from everything at an address.

    `over="energy"` is half the squared norm, `sum(a^2) / 2` (DeepDream's objective), `"l2"` the norm itself.
    """

    layer: Annotated[str, "address"]
    over: Annotated[Literal["energy", "l2", "mean", "max"], "half the squared norm, the norm, the mean, the maximum"] = "energy"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer].flatten(1)
        if self.over == "energy":
            return values.square().sum(1) / 2
        return values.norm(dim=1) if self.over == "l2" else values.mean(1) if self.over == "mean" else values.amax(1)


class Channel(Target):
    """Mean or largest activation of one channel over all positions.

    The largest is wherever it is in each image, also in a changed one; `Neuron` keeps to the position of the clean pass.
    """

    layer: Annotated[str, "address"]
    channel: Annotated[int, "number of the channel"]
    over: Annotated[Literal["mean", "max"], "the mean or the maximum over positions"] = "mean"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        within(self.channel, values.shape[1], f"channel of {self.layer!r}")
        values = values[:, self.channel].reshape(len(values), -1)
        return values.mean(1) if self.over == "mean" else values.amax(1)


class Neuron(Target):
    """Activation of one channel at one position; without a position, where the channel is strongest in each image."""

    each = ("channel", "row", "column")
    layer: Annotated[str, "address"]
    channel: Annotated[int | tuple, "number of the channel, one per image"]
    row: Annotated[int | tuple | None, "row of the feature map, one per image, or None for the strongest position"] = None
    column: Annotated[int | tuple | None, "column of the feature map, one per image, or None"] = None

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def _map(self, activations: Activations) -> Tensor:
        values = activations[self.layer]
        within(self.channel, values.shape[1], f"channel of {self.layer!r}")
        if values.dim() != 4:
            raise UsageError(
                f"{self.layer!r} has shape {tuple(values.shape)}, no rows and columns; "
                f"use Channel({self.layer!r}, {self.channel})"
            )
        if not isinstance(self.channel, tuple):
            return values[:, self.channel]
        return values[torch.arange(len(values), device=values.device), per_row(self.channel, activations.rows, values.device)]

    def __call__(self, activations: Activations) -> Scores:
        maps = self._map(activations)
        row, column = self._places(maps, activations.rows)
        return maps[torch.arange(len(maps), device=maps.device), row, column]

    def _places(self, maps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column for each image; where one is open, the strongest in the other."""
        among = torch.zeros_like(maps)
        for value, axis, name in ((self.row, 1, "row"), (self.column, 2, "column")):
            if value is not None:
                within(value, maps.shape[axis], f"{name} of {self.layer!r}")
                places = torch.arange(maps.shape[axis], device=maps.device).view((-1, 1) if axis == 1 else (1, -1))
                among = among.masked_fill(places != per_row(value, rows, maps.device)[:, None, None], -torch.inf)
        best = (maps.detach() + among).flatten(1).argmax(1)
        return best // maps.shape[2], best % maps.shape[2]

    @property
    def open(self) -> bool:
        return self.row is None or self.column is None

    def resolve(self, activations: Activations) -> Target:
        if not self.open:
            return self
        row, column = self._places(self._map(activations), activations.rows)
        return replace(self, row=tuple(row.tolist()), column=tuple(column.tolist()))


class Direction(Target):
    """Mean over positions of the activations' projection on a vector over channels."""

    layer: Annotated[str, "address"]
    vector: Annotated[Tensor, "one number per channel"]

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        if self.vector.shape != values.shape[1:2]:
            raise UsageError(
                f"{self.layer!r} has {values.shape[1]} channels; got a direction of shape {tuple(self.vector.shape)}"
            )
        projection = torch.tensordot(values, self.vector.to(values), dims=([1], [0]))
        return projection.flatten(1).mean(1) if values.dim() > 2 else projection


class EmbeddingSimilarity(Target):
    """How alike the activations at an address are to a reference, all taken as one vector: cosine -1..1, or dot product.

    The reference `(...)` or `(1, ...)` has the shape of one image's activations there, for example those of another picture;
    `(images, ...)` is one for each image.
    """

    layer: Annotated[str, "address"]
    reference: Annotated[Tensor, "the activations to compare with"]
    by: Annotated[Literal["cosine", "dot"], "the cosine of the angle, or the dot product"] = "cosine"

    unit = "similarity"

    def addresses(self) -> tuple[str, ...]:
        return (self.layer,)

    def __call__(self, activations: Activations) -> Scores:
        values = activations[self.layer]
        reference = self.reference if self.reference.dim() == values.dim() else self.reference[None]
        if reference.shape[1:] != values.shape[1:]:
            raise UsageError(
                f"{self.layer!r} has shape {tuple(values.shape[1:])} for each image; got a reference of shape "
                f"{tuple(self.reference.shape)}"
            )
        if len(reference) > 1:
            if int(activations.rows.max()) >= len(reference):
                raise UsageError(f"{len(reference)} references for {int(activations.rows.max()) + 1} images; give one for each")
            reference = reference[activations.rows.to(reference.device)]
        a, b = values.flatten(1), reference.to(values).flatten(1)
        return torch.cosine_similarity(a, b, dim=1) if self.by == "cosine" else (a * b).sum(1)
