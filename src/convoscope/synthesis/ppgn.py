"""Sampling pictures through a generator: plug and play generative networks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.core.record import record
from convoscope.core.run import rows_at_once, undisturbed
from convoscope.images.base import Draws, Space, image_size
from convoscope.images.code import Code
from convoscope.images.generator import Generator
from convoscope.network import Network
from convoscope.synthesis.objective import Objective
from convoscope.synthesis.result import Synthesis
from convoscope.targets import LogProbability, Target
from convoscope.targets.base import class_number

Encoder = Callable[[Float[Tensor, "rows channels height width"]], Tensor]


def ppgn(
    network: Network | nn.Module, targets: Any, generator: Generator | str = "scenes", encoder: Encoder | None = None, *,
    copies: int = 1, steps: int = 200, prior: float = 1e-2, condition: float = 1.0, noise: float = 1e-2, every: int = 0,
    seed: int = 0, batch_size: int | str = "auto", progress: Any = None,
) -> Synthesis:  # fmt: skip
    """Samples of p(picture | class) by a chain over codes: one for each target and copy (Nguyen et al., "Plug & play
    generative networks", CVPR 2017, eq. 11),

        h <- h + prior (E(G(h)) - h) + condition dlog p(class | G(h)) / dh + N(0, noise^2)

    `targets` are class numbers or names, whose log probability is taken, or Targets. `encoder` makes codes of pixels 0..1, and
    E(G(h)) - h points to where codes are likely; without one that is the layer the generator inverts, in `network`, and -h for
    codes near N(0, I), those of a GAN and principal components. The paper has prior 1e-5, condition 1 and noise 1e-17, which is
    none in floating point; ours are for codes of deviation near 1. With `every`, each chain gives a sample after every so many
    steps, not only at its end.
    """
    network = network if isinstance(network, Network) else Network(network)
    image = Code(generator, decay=1.0)
    image = replace(image, keep="bounds" if image.generator.prior == "features" else "nothing")
    chosen = [_target(network, t) for t in (targets if isinstance(targets, list | tuple) else [targets])]
    if not chosen or min(copies, steps) < 1:
        raise UsageError(f"expected targets, and copies and steps of at least 1; got {len(chosen)}, {copies} and {steps}")
    space = Space(network.channels, image_size(None, network.size), network.device, network.dtype)
    most = rows_at_once(torch.empty(1, 1, *space.size, device=space.device)) if batch_size == "auto" else int(batch_size)
    began, made = time.perf_counter(), []
    with undisturbed(network.plain):
        encoder = encoder or _encoder(network, image.generator)
        rows = torch.arange(len(chosen) * copies)
        for part in rows.split(most):
            draws = Draws(seed, tuple((int(r) % copies,) for r in part), space)
            objective = Objective(tuple(chosen), part // copies)
            chain = _Chain(network, image, space, objective, draws, encoder, (prior, condition, noise))
            tell = _telling(progress, int(part[0]) * steps, len(part), len(rows) * steps)
            made.append(chain.run(steps, every or steps, tell))
    settings = {
        "image": image.to_dict(),
        "steps": steps,
        "prior": prior,
        "condition": condition,
        "noise": noise,
        "every": every,
    }
    settings |= {"copies": copies, "seed": seed, "encoder": encoder is not None}
    return _result(network, [chosen[int(r) // copies] for r in rows], made, settings, time.perf_counter() - began)


def _telling(progress: Any, before: int, each: int, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda step: progress(before + step * each, total)


def _target(network: Network, which: Any) -> Target:
    if isinstance(which, Target):
        return network.target(which)
    return LogProbability(class_number(which, network.categories))


def _encoder(network: Network, generator: Generator) -> Encoder | None:
    """How codes are read from pictures, where the network at hand is the one that the generator inverts."""
    if generator.prior != "features" or generator.made.get("components"):
        return None
    layer = generator.made.get("layer")
    if layer is None or generator.made.get("network_hash") != network.hash:
        raise UsageError(
            "this generator inverts a layer of another network; give encoder=, a function that makes its codes of pixels 0..1"
        )
    return lambda pixels: record(network.plain, network.normalize(pixels), (layer,), head=network.head)[layer]


@dataclass
class _Chain:
    """One batch of rows on their way."""

    network: Network
    image: Code
    space: Space
    objective: Objective
    draws: Draws
    encoder: Encoder | None
    weights: tuple[float, float, float]
    history: list[Tensor] = field(default_factory=list)

    def run(self, steps: int, every: int, progress: Callable[[int], None] | None) -> tuple[Tensor, Tensor, Tensor]:
        """The samples `(samples, rows, C, H, W)`, their scores `(samples, rows)` and those of all steps `(steps, rows)`."""
        code = self.image.begin(self.space, self.draws)["code"]
        pictures, scores = [], []
        for number in range(steps):
            code = self.step(code, number)
            if progress is not None:
                progress(number + 1)
            if (number + 1) % every == 0 or number + 1 == steps:
                pixels, score = self.judged(code)
                pictures.append(pixels.detach().float().cpu())
                scores.append(score.detach().double().cpu())
        return torch.stack(pictures), torch.stack(scores), torch.stack(self.history)

    def judged(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures of codes, and their targets."""
        pixels = self.image.pixels({"code": code}, self.space)
        x = self.network.normalize(pixels)
        found = record(self.network.plain, x, self.objective.addresses(), head=self.network.head)
        found.rows = torch.arange(len(code))
        return pixels, self.objective(found)

    def step(self, code: Tensor, number: int) -> Tensor:
        """The code after one step."""
        prior, condition, noise = self.weights
        leaf = code.detach().requires_grad_()
        pixels, score = self.judged(leaf)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
        self.history.append(score.detach().double().cpu())
        with torch.no_grad():
            away = -code if self.encoder is None else self.encoder(pixels.detach()).to(code).reshape(code.shape) - code
            new = code + prior * away + condition * gradient
            if noise:
                new = new + noise * self.draws.normal(code.shape[1:], ("step", number))
            self.image.settle({"code": new}, self.space, number)
        return new


def _result(
    network: Network, targets: Sequence[Target], made: Sequence[Any], settings: dict[str, Any], seconds: float
) -> Synthesis:
    pictures, scores = (torch.cat([m[k] for m in made], 1) for k in (0, 1))
    samples = len(pictures)
    values = scores.T.flatten().tolist()  # all samples of a chain side by side
    history = torch.cat([m[2] for m in made], 1).repeat_interleave(samples, 1)
    return Synthesis(
        network=network,
        targets=tuple(t for t in targets for _ in range(samples)),
        pixels=pictures.transpose(0, 1).flatten(0, 1),
        scores=values,
        held_out=[float("nan")] * len(values),  # a sample is no peak to be moved from
        history=history,
        settings=settings,
        diagnostics={"evaluations": len(history) * len(targets), "seconds": seconds},
    )
