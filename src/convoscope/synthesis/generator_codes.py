"""The codes of a generator of features: a layer's activations, or principal components of those of some layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.images.generator import Generator
from convoscope.network import Network
from convoscope.synthesis.generator_loop import Pictures

SIDE = 12  # larger maps are averaged down to this before principal components are taken


@dataclass
class Features:
    """How codes are read from a network: `code(activations)`.

    `mean`, `deviation` and `least` are those of the activations of one layer; with principal components `basis` is what a
    centered row of all activations is multiplied by.
    """

    network: Network
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    mean: Tensor
    deviation: Tensor
    least: float
    basis: Float[Tensor, "entries components"] | None = None

    @property
    def whitened(self) -> bool:
        """Whether codes are near N(0, I)."""
        return self.basis is not None

    @classmethod
    @torch.no_grad()
    def measured(
        cls, network: Network, layers: tuple[str, ...], known: Pictures, components: int | None, most: int = 2000
    ) -> "Features":
        """Codes of at most `most` of the pictures, evenly spread, and what is to be known of them."""
        if components is None and len(layers) != 1:
            raise UsageError(f"codes of {len(layers)} layers need components=, the number of principal components")
        chosen, rows = torch.arange(0, len(known), -(-len(known) // most)), []
        for part in chosen.split(known.batch_size):
            x = network.normalize((known.bytes[part].float() / 255).to(network.device, network.dtype))
            found = record(network.plain, x, layers, head=network.head)
            rows.append((_flat(found, layers) if components else found[layers[0]]).float().cpu())
        every = torch.cat(rows)
        if every.dim() not in (2, 4):
            raise UsageError(
                f"{layers[0]!r} has shape {tuple(every.shape)}; a code is (rows, d) or (rows, channels, height, width)"
            )
        deviation, mean = torch.std_mean(every, 0, unbiased=False)
        if components is None:
            return cls(network, layers, tuple(mean.shape), mean, deviation, float(every.min()))
        sizes = [f[0].numel() for f in _parts({a: v[:1] for a, v in found.items()}, layers)]
        basis = _components(every - mean, sizes, components)
        return cls(network, layers, (components,), mean, deviation, float(every.min()), basis)

    def code(self, activations: Mapping[str, Tensor]) -> Tensor:
        """The codes of some rows."""
        if self.basis is None:
            return activations[self.layers[0]]
        rows = _flat(activations, self.layers)
        return (rows - self.mean.to(rows)) @ self.basis.to(rows)

    def generator(self, module: nn.Module, made: dict[str, Any]) -> Generator:
        """The generator of these codes."""
        name = f"{self.network.name}:{made['layer']}"
        mean, deviation = (torch.zeros(self.shape), torch.ones(self.shape)) if self.whitened else (self.mean, self.deviation)
        made = {**made, "rectified": self.least >= 0 and not self.whitened}
        return Generator(module, self.shape, prior="features", mean=mean, deviation=deviation, made=made, reference=name)


def _parts(activations: Mapping[str, Tensor], layers: tuple[str, ...]) -> list[Tensor]:
    found = [activations[a] for a in layers]
    small = [F.adaptive_avg_pool2d(f, (min(SIDE, f.shape[2]), min(SIDE, f.shape[3]))) if f.dim() == 4 else f for f in found]
    return [f.flatten(1) for f in small]


def _flat(activations: Mapping[str, Tensor], layers: tuple[str, ...]) -> Float[Tensor, "rows entries"]:
    return torch.cat(_parts(activations, layers), 1)


def _components(rows: Float[Tensor, "rows entries"], sizes: list[int], components: int) -> Float[Tensor, "entries components"]:
    """Principal components, each divided by its deviation, of layers that count alike: each is divided by its own spread."""
    if components >= min(rows.shape):
        raise UsageError(
            f"{components} principal components of {rows.shape[0]} pictures and {rows.shape[1]} entries; give fewer"
        )
    scale = torch.cat(
        [
            part.square().sum(1).mean().sqrt().clamp(min=1e-12).expand(n)
            for part, n in zip(rows.split(sizes, 1), sizes, strict=True)
        ]
    )
    scaled = (rows / scale).double()
    if len(rows) < rows.shape[1]:  # the smaller of the two Gram matrices
        values, vectors = torch.linalg.eigh(scaled @ scaled.T)
        vectors = scaled.T @ vectors[:, -components:] / values[-components:].clamp(min=1e-12).sqrt()
    else:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        vectors = vectors[:, -components:]
    deviation = (values[-components:] / len(rows)).clamp(min=1e-12).sqrt()
    signs = torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # the same on every machine
    return (vectors * signs / deviation / scale[:, None]).flip(1).float()
