"""Training generators as adversaries of a discriminator: a simple GAN and a DCGAN."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.images.generator import Generator, Perceptron, build, doublings
from convoscope.network import Network
from convoscope.synthesis.generator_loop import Pictures, Run, adam, drawn, seeded

Batch = Float[Tensor, "batch channels height width"]


class Discriminator(nn.Module):
    """Tells real pictures from made ones, patch by patch: `(batch, 1, h, w)` logits, positive for real.

    Strided convolutions as in DCGAN (Radford et al., 2016); the last has a value for each place of a small map.
    """

    def __init__(self, size: Sequence[int], channels: int, width: int) -> None:
        super().__init__()
        stages = max(1, doublings(size))
        widths = [channels, *(width * (k + 1) for k in range(stages))]
        parts: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise(widths)):
            parts += [nn.Conv2d(a, b, 4, 2, 1, bias=k == 0), *([nn.BatchNorm2d(b)] if k else []), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, pixels: Batch) -> Float[Tensor, "batch 1 h w"]:
        return self.layers(pixels)


def discriminator(size: Sequence[int], channels: int, width: int) -> Discriminator:
    """One with any weights; the process's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return Discriminator(size, channels, width)


def called_real(logits: Tensor) -> Tensor:
    """How far from calling these pictures real a discriminator is, in nats."""
    return F.softplus(-logits).mean()


def called_made(logits: Tensor) -> Tensor:
    """How far from calling these pictures made a discriminator is, in nats."""
    return F.softplus(logits).mean()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step; only what this optimizer changes gets a gradient."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        p.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# ---- generative adversarial networks
class _Adversarial:
    """Two networks against each other (Goodfellow et al., 2014), the generator by the non-saturating loss."""

    def __init__(self, pictures: Pictures, generator: nn.Module, width: int, seed: int, device: torch.device) -> None:
        channels, *size = pictures.shape
        made = generator, discriminator(size, channels, width)
        g, d = (seeded(m, seed + k).to(device, memory_format=torch.channels_last).train() for k, m in enumerate(made))
        self.modules = {"generator": g, "discriminator": d}
        self.optimizers = {k: adam(m.parameters()) for k, m in self.modules.items()}
        self.pictures, self.seed, self.device, self.shown = pictures, seed, device, torch.empty(0)

    def step(self, number: int) -> dict[str, Tensor]:
        g, d = self.modules["generator"], self.modules["discriminator"]
        real = self.pictures.batch(number, self.device)
        code = torch.randn(len(real), g.settings["code"] if isinstance(g, Perceptron) else g.settings["code"][0],
                           generator=drawn(self.seed, "code", number)).to(self.device)  # fmt: skip
        fake = g(code)
        self.shown = fake[:16].detach()
        judged = called_real(d(real)) + called_made(d(fake.detach()))
        descend(self.optimizers["discriminator"], judged)
        fooled = called_real(d(fake))
        descend(self.optimizers["generator"], fooled)
        return {"discriminator": judged, "generator": fooled}


def train_gan(
    data: Any, kind: Literal["gan", "dcgan"] = "dcgan", *, size: int | tuple[int, int] = 64, channels: int = 3, code: int = 64,
    width: int | None = None, steps: int = 4000, batch_size: int = 64, rate: float = 4e-4, pictures: int = 20_000,
    seed: int = 0, device: str = "cpu", store: str | Path | None = None, progress: Any = None, watch: Any = None,
) -> Generator:  # fmt: skip
    """A generator of pictures like those of `data` from codes drawn from N(0, I).

    "gan" is a perceptron (Goodfellow et al., 2014), "dcgan" doubles a small map until it has `size` (Radford et al., 2016).
    `data` is what `open_dataset` takes; at most `pictures` of it, evenly spread, are kept in memory as bytes. `store` is a
    file that keeps the state: the same call goes on from it, to the same weights on one machine. `watch(step, pixels, losses)`
    is shown some made pictures and the losses every 50 steps.
    """
    if kind not in ("gan", "dcgan"):
        raise UsageError(f"no kind of GAN {kind!r}; expected 'gan' or 'dcgan'")
    known = Pictures(Network(nn.Identity(), size, channels=channels), data, pictures, batch_size, seed, progress)
    channels, *sides = known.shape
    width = width or (256 if kind == "gan" else 32)
    shape = code if kind == "gan" else (code, 1, 1)
    module = build(
        {"kind": "perceptron", "code": code, "size": sides, "channels": channels, "width": width}
        if kind == "gan"
        else {"kind": "upconvolution", "code": shape, "size": sides, "channels": channels, "width": width}
    )
    training = _Adversarial(known, module, min(width, 32), seed, torch.device(device))
    told = {"kind": kind, "size": sides, "code": code, "width": width, "batch_size": batch_size, "seed": seed}
    told |= {"pictures": len(known)}
    Run(steps, rate, {**told, "data": known.digest}, None if store is None else Path(store), progress, watch).go(training)
    made = {**told, "steps": steps, "rate": rate}
    return Generator(module.to("cpu", memory_format=torch.contiguous_format), shape, made=made, reference=kind)
