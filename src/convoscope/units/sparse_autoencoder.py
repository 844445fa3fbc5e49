"""Features of a layer found by a sparse autoencoder, and a network of which they are units.

Gao et al., "Scaling and evaluating sparse autoencoders", 2024: of all latents only the k largest are kept.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from convoscope.core.errors import UsageError
from convoscope.data.sealed import open_sealed, write_sealed
from convoscope.network import Network
from convoscope.targets import Direction
from convoscope.units.reservoir import Sample

FORMAT = "convoscope.sparse-autoencoder/1"
Rows = Float[Tensor, "rows channels"]


@dataclass(frozen=True)
class Report:
    """How well an autoencoder does on activations it was not trained on.

    `explained` is the share of the variance that reconstructions hold, `active` the mean number of latents that are not zero
    (L0), `dead` the share of latents that no activation uses (also none trained on), `rows` how many were looked at.
    """

    explained: float
    active: float
    dead: float
    rows: int


@dataclass
class SparseAutoencoder:
    """`latents = top-k(relu((x - center) / scale @ encoder.T + bias))`, `x = center + scale * (latents @ decoder)`.

    Rows of `decoder` have length 1: each is a feature, a direction in the layer's channels. `k` latents of each position are
    kept. `layer` and `network_hash` say what it was trained on, `settings` how, `report` how well it does on held-out rows.
    """

    encoder: Float[Tensor, "latents channels"]
    bias: Float[Tensor, " latents"]
    decoder: Float[Tensor, "latents channels"]
    center: Float[Tensor, " channels"]
    scale: float
    k: int
    layer: str = ""
    network_hash: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None

    def __len__(self) -> int:
        return len(self.decoder)

    def __repr__(self) -> str:
        r = self.report
        told = "" if r is None else f", {r.explained:.1%} of the variance, {r.active:.1f} active, {r.dead:.0%} dead"
        return f"SparseAutoencoder({self.layer}: {len(self)} features of {len(self.center)} channels{told})"

    def encode(self, activations: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch latents ..."]:
        """The latents at every position of activations `(B, C)` or `(B, C, h, w)`."""
        if activations.dim() < 2 or activations.shape[1] != len(self.center):
            raise UsageError(
                f"expected activations (B, {len(self.center)}, ...) of {self.layer!r}; got {tuple(activations.shape)}"
            )
        rows = activations.movedim(1, -1)
        center, encoder, bias = (t.to(rows) for t in (self.center, self.encoder, self.bias))
        return _largest(F.linear((rows - center) / self.scale, encoder, bias), self.k).movedim(-1, 1)

    def decode(self, latents: Float[Tensor, "batch latents ..."]) -> Float[Tensor, "batch channels ..."]:
        """The activations that latents stand for."""
        rows = latents.movedim(1, -1)
        return (self.center.to(rows) + self.scale * (rows @ self.decoder.to(rows))).movedim(-1, 1)

    def direction(self, feature: int, by: Literal["encoder", "decoder"] = "encoder") -> Direction:
        """A feature as a Direction of its layer, a target for every tool.

        "encoder" is what the feature reads: its value before the top-k is this projection plus a constant, so gradients are
        those of the feature wherever it is active. "decoder" is what it writes into the layer, of length 1. A Direction has
        no top-k and is negative where the feature is silent; `attached` makes the features themselves units of a network.
        """
        if not 0 <= feature < len(self):
            raise UsageError(f"no feature {feature}; there are {len(self)}, counted from 0")
        if by not in ("encoder", "decoder"):
            raise UsageError(f"a direction by {by!r}; expected 'encoder' or 'decoder'")
        return Direction(self.layer, self.encoder[feature] / self.scale if by == "encoder" else self.decoder[feature])

    def measure(self, rows: Rows) -> Report:
        """Explained variance, L0 and dead latents on activations."""
        used, active, error = torch.zeros(len(self), dtype=torch.bool), 0, 0.0
        for part in rows.split(4096):
            latents = self.encode(part)
            used |= (latents > 0).any(0).cpu()
            active += int((latents > 0).sum())
            error += float((self.decode(latents) - part).cpu().double().square().sum())
        known = rows.cpu().double()
        total = float((known - known.mean(0)).square().sum())
        explained = 1 - error / total if total else math.nan
        return Report(explained, active / len(rows), float((~used).double().mean()), len(rows))

    def attached(self, network: Network, name: str = "sparse_features") -> Network:
        """The network with one more address, `name`, where the features of its layer are channels `(B, latents, ...)`.

        Every tool takes it: `sweep(net, data, TopPatches(), "sparse_features")`, `Channel("sparse_features", 7)`. The network
        itself is untouched, its modules are shared, and what it computes is unchanged.
        """
        from convoscope.units.attaching import attach

        scaled = self.encoder.double() / self.scale
        shifted = self.bias.double() - scaled @ self.center.double()
        if self.network_hash not in ("", network.hash):
            raise UsageError(f"these features are of network {self.network_hash}; {network.name} is {network.hash}")
        return attach(network, self.layer, name, TopK(scaled, shifted, self.k).to(network.device, network.dtype))

    def save(self, path: str | Path) -> Path:
        """Writes everything to a safetensors file, whole or absent."""
        path = Path(path)
        told = {"scale": self.scale, "k": self.k, "layer": self.layer, "network_hash": self.network_hash}
        told |= {"settings": self.settings, "report": None if self.report is None else vars(self.report)}
        tensors = {name: getattr(self, name) for name in ("encoder", "bias", "decoder", "center")}
        write_sealed(path, tensors, {"format": FORMAT, "made": json.dumps(told, sort_keys=True)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote. Raises LoadError for any other file."""
        tensors, said = open_sealed(path, "sparse autoencoder", FORMAT)
        made = json.loads(said["made"])
        report = made.pop("report")
        return cls(**tensors, **made, report=None if report is None else Report(**report))


def _largest(values: Float[Tensor, "... latents"], k: int) -> Float[Tensor, "... latents"]:
    """The k largest along the last axis (more where several are equal to the least of them), others and negatives zero."""
    least = values.detach().topk(k, -1).values[..., -1:]
    return values.relu() * (values >= least)


class TopK(nn.Module):
    """The features as a layer: `(B, C)` or `(B, C, h, w)` to as many channels as there are features."""

    encoder: Tensor
    bias: Tensor

    def __init__(self, encoder: Tensor, bias: Tensor, k: int) -> None:
        super().__init__()
        self.register_buffer("encoder", encoder)
        self.register_buffer("bias", bias)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        weight = self.encoder[..., None, None] if x.dim() == 4 else self.encoder
        before = (F.conv2d if x.dim() == 4 else F.linear)(x.clone(), weight, self.bias)  # what follows may overwrite x
        with torch.no_grad(), torch._C.DisableTorchFunction():  # what follows operators need not know of a top-k
            kept = before >= before.topk(self.k, 1).values[:, -1:]
        return before.relu() * kept


# ---- training


def train_sparse_autoencoder(
    rows: Sample | Rows, *, layer: str = "", network_hash: str = "", latents: int | None = None, k: int = 8, epochs: int = 40,
    batch_size: int = 256, learning_rate: float = 3e-3, auxiliary: float = 1 / 32, dead_after: int = 1, held_out: float = 0.1,
    seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> SparseAutoencoder:  # fmt: skip
    """Trains a top-k sparse autoencoder of a layer on activations, one row each (a Sample, or `(rows, channels)`).

    `latents` is by default four times the channels. A latent that was not used for `dead_after` epochs is dead; a share
    `auxiliary` of the loss asks the strongest dead ones to explain what the others leave over (section 2.4 of the paper). Rows
    are divided by one number, so that `learning_rate` means the same for every layer; the last `held_out` of a sample, which
    comes in random order, are what the report is about. The same seed gives the same numbers on one machine.
    """
    values = (rows.values if isinstance(rows, Sample) else rows).detach().float()
    if values.dim() != 2 or not bool(values.isfinite().all()):
        raise UsageError(f"expected finite activations (rows, channels); got shape {tuple(values.shape)}")
    latents, kept = latents or 4 * values.shape[1], round(len(values) * (1 - held_out))
    if not 1 <= k <= latents or kept < 2 or kept == len(values):
        raise UsageError(
            f"expected 1 <= k <= {latents} latents, rows to train on and rows to hold out; got k {k}, {len(values)} rows"
        )
    train, rest = values[:kept], values[kept:]
    center = train.mean(0)
    scale = float((train - center).cpu().double().square().sum(1).mean().sqrt()) or 1.0
    model = _Model(values.shape[1], latents, k, torch.Generator().manual_seed(seed)).to(values.device)
    _fit(model, (train - center) / scale, _Plan(epochs, batch_size, learning_rate, auxiliary, dead_after, seed), progress)
    settings = {"latents": latents, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    settings |= {"auxiliary": auxiliary, "dead_after": dead_after, "held_out": held_out, "seed": seed}
    found = (t.detach() for t in (model.encoder, model.bias, model.decoder))
    made = SparseAutoencoder(*found, center + scale * model.center.detach(), scale, k, layer, network_hash, settings)
    made.report = replace(made.measure(rest), dead=made.measure(values).dead)
    return made


@dataclass(frozen=True)
class _Plan:
    epochs: int
    batch_size: int
    learning_rate: float
    auxiliary: float
    dead_after: int
    seed: int


class _Model(nn.Module):
    """Tied at the start: the encoder is the decoder, whose rows have length 1 throughout."""

    def __init__(self, channels: int, latents: int, k: int, draw: torch.Generator) -> None:
        super().__init__()
        decoder = F.normalize(torch.randn(latents, channels, generator=draw), dim=1)
        self.decoder, self.encoder = nn.Parameter(decoder), nn.Parameter(decoder.clone())
        self.bias, self.center, self.k = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(channels)), k

    def forward(self, x: Rows) -> tuple[Tensor, Tensor]:
        """Latents before and after the top-k."""
        before = F.linear(x - self.center, self.encoder, self.bias)
        return before, _largest(before, self.k)


def _fit(model: _Model, x: Rows, plan: _Plan, progress: Any) -> None:
    draw = torch.Generator().manual_seed(plan.seed)
    optimizer = torch.optim.Adam(model.parameters(), plan.learning_rate, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    idle = torch.zeros(len(model.decoder), dtype=torch.long, device=x.device)  # rows since a latent was used
    steps = plan.epochs * -(-len(x) // plan.batch_size)
    step = 0
    with torch.enable_grad():
        for _ in range(plan.epochs):
            for batch in torch.randperm(len(x), generator=draw).to(x.device).split(plan.batch_size):
                rows = x[batch]
                before, latents = model(rows)
                left = rows - model.center - latents @ model.decoder
                loss = left.square().sum(1).mean()
                dead = idle >= plan.dead_after * len(x)
                if plan.auxiliary > 0 and bool(dead.any()):
                    loss = loss + plan.auxiliary * _revived(model, before, left.detach(), dead)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for group in optimizer.param_groups:  # a short rise, then a line down to nothing over the last fifth
                    group["lr"] = plan.learning_rate * min(1.0, (step + 1) / 20, max(5 * (1 - step / steps), 1e-3))
                optimizer.step()
                _shorten(model)
                used = (latents.detach() > 0).any(0)
                idle = torch.where(used, torch.zeros_like(idle), idle + len(rows))
                step += 1
                if progress is not None:
                    progress(step, steps)


def _revived(model: _Model, before: Tensor, left: Tensor, dead: Tensor) -> Tensor:
    """How far the strongest dead latents, before the rectifier that may hold them down, are from what others leave over."""
    count = min(int(dead.sum()), max(1, model.encoder.shape[1] // 2))
    least = before.detach().masked_fill(~dead, -torch.inf).topk(count, 1).values[:, -1:]
    latents = before * (dead & (before >= least))
    return (left - latents @ model.decoder).square().sum(1).mean()


@torch.no_grad()
def _shorten(model: _Model) -> None:
    model.decoder.copy_(F.normalize(model.decoder, dim=1))
