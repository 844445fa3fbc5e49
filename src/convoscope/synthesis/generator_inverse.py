"""Training the generator that inverts features: the prior of DGN-AM, and a trained inverse of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.core.run import undisturbed
from convoscope.images.generator import Generator, build
from convoscope.network import Network
from convoscope.synthesis.generator_codes import Features
from convoscope.synthesis.generator_gan import called_made, called_real, descend, discriminator
from convoscope.synthesis.generator_loop import Pictures, Run, adam, channels_last, drawn, seeded

Batch = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Losses:
    """What the inverse of a layer is trained on (Dosovitskiy and Brox, "Generating images with perceptual similarity metrics
    based on deep networks", 2016, eq. 1 to 4): weights of three losses.

    `image` and `feature` are squared errors over the variance of what they compare, so that 1 is the error of a constant;
    features are compared at the layers `comparators`, the inverted ones if none is named. `adversarial` weighs the
    discriminator's opinion, in nats, and sets in after a share `warm` of the steps. For codes of principal components it is
    also asked of codes from N(0, I), as many as the share `random` of a batch, since these are where synthesis begins.
    """

    image: float = 1.0
    feature: float = 0.3
    adversarial: float = 0.05
    comparators: tuple[str, ...] = ()
    warm: float = 0.25
    random: float = 0.5


class _Inversion:
    """A generator and a discriminator; the network whose layer is inverted stays as it is."""

    def __init__(self, features: Features, known: Pictures, module: nn.Module, losses: Losses, steps: int, seed: int) -> None:
        channels, *size = known.shape
        network, judge = features.network, discriminator(size, channels, module.settings["width"])
        place = {"device": network.device, "memory_format": torch.channels_last}
        made = {"generator": module, "discriminator": judge}
        self.modules = {k: seeded(m, seed + n).to(**place).train() for n, (k, m) in enumerate(made.items())}
        self.optimizers = {"generator": adam(module.parameters()), "discriminator": adam(judge.parameters(), 0.3)}
        self.features, self.pictures, self.losses, self.seed = features, known, losses, seed
        self.comparators, self.shown = losses.comparators or features.layers, torch.empty(0)
        self.warm = round(losses.warm * steps) if losses.adversarial else steps

    def seen(self, pixels: Batch) -> dict[str, Tensor]:
        """The activations of pictures where codes are read and where features are compared."""
        network = self.features.network
        x = network.normalize(pixels).to(network.dtype)
        return record(network.plain, x, tuple(dict.fromkeys((*self.features.layers, *self.comparators))), head=network.head)

    def step(self, number: int) -> dict[str, Tensor]:
        g, weigh = self.modules["generator"], self.losses
        real = self.pictures.batch(number, self.features.network.device)
        with torch.no_grad():
            aim = self.seen(real)
            code = self.features.code(aim).float()
        random = round(weigh.random * len(real)) if number >= self.warm and self.features.whitened else 0
        more = torch.randn(random, *code.shape[1:], generator=drawn(self.seed, "code", number)).to(code)
        every = g(channels_last(torch.cat([code, more])) if code.dim() == 4 else torch.cat([code, more]))
        fake = every[: len(real)]
        self.shown = torch.cat([real[:8], fake[:8]]).detach()
        told = {"image": relative(fake, real)}
        loss = weigh.image * told["image"]
        if weigh.feature:
            found = self.seen(fake)
            told["feature"] = torch.stack([relative(found[a], aim[a]) for a in self.comparators]).mean()
            loss = loss + weigh.feature * told["feature"]
        if number >= self.warm:
            told |= self._judged(real, every)
            loss = loss + weigh.adversarial * told["adversarial"]
        descend(self.optimizers["generator"], loss)
        return told

    def _judged(self, real: Batch, fake: Batch) -> dict[str, Tensor]:
        judge = self.modules["discriminator"]
        loss = called_real(judge(real)) + called_made(judge(fake.detach()))
        descend(self.optimizers["discriminator"], loss)
        return {"discriminator": loss, "adversarial": called_real(judge(fake))}


def relative(found: Tensor, aim: Tensor) -> Tensor:
    """The squared error over the variance of what is aimed at."""
    return (found.float() - aim.float()).square().mean() / aim.float().var().clamp(min=1e-12)


def train_dgn_am(
    network: Network | nn.Module, data: Any, layer: str | Sequence[str], *, components: int | None = None, width: int = 32,
    losses: Losses | None = None, steps: int = 4000, batch_size: int = 32, rate: float = 2e-3, pictures: int = 20_000,
    seed: int = 0, store: str | Path | None = None, progress: Any = None, watch: Any = None,
) -> Generator:  # fmt: skip
    """The generator that makes pictures of a layer's activations, trained to invert them (Dosovitskiy and Brox, 2016).

    It is the prior of DGN-AM (Nguyen et al., 2016) and, called with features, a trained inverse of the layer. Its codes are
    activations at `layer`, `(C, h, w)` or `(d,)`; mean and deviation of each entry over `data` become their bounds. Codes with
    places are free to repeat an object everywhere; with `components` a code is that many principal components of the
    activations, of one or more layers ("input" is one), each divided by its deviation: a whole picture, near N(0, I).
    `data`, `pictures` and `store` are as in `train_gan`. The network is left as it was.
    """
    network = network if isinstance(network, Network) else Network(network)
    losses, known = losses or Losses(), Pictures(network, data, pictures, batch_size, seed, progress)
    if known.shape[0] != network.channels:
        raise UsageError(f"pictures of {known.shape[0]} channels for a network of {network.channels}")
    with undisturbed(network.plain):
        features = Features.measured(network, (layer,) if isinstance(layer, str) else tuple(layer), known, components)
        module = build(
            {
                "kind": "upconvolution",
                "code": features.shape,
                "size": known.shape[1:],
                "channels": known.shape[0],
                "width": width,
            }
        )
        training = _Inversion(features, known, module, losses, steps, seed)
        told = {"kind": "dgn-am", "network": network.name, "network_hash": network.hash, "layer": ", ".join(features.layers)}
        told |= {"components": components, "width": width, "batch_size": batch_size, "seed": seed, "pictures": len(known)}
        told |= {"losses": vars(replace(losses, comparators=training.comparators))}
        Run(steps, rate, {**told, "data": known.digest}, None if store is None else Path(store), progress, watch).go(training)
    made = {**told, "steps": steps, "rate": rate}
    return features.generator(module.to("cpu", memory_format=torch.contiguous_format), made)
