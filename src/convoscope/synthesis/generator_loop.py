"""Training in steps that can be stopped at any moment: what step k does depends on the seed, on k and on the state alone."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.data.dataset import Dataset, open_dataset
from convoscope.data.sealed import read_state, write_state
from convoscope.network import Network

EVERY = 15.0  # seconds between two checkpoints


class Training(Protocol):
    """What is trained: its modules and optimizers by name hold all of its state."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    shown: Float[Tensor, "pictures channels height width"]  # made in the latest step

    def step(self, number: int) -> dict[str, Tensor]:
        """One step, from 0; the losses by name."""
        ...


@dataclass
class Run:
    """How far a training goes and where its state is kept; `told` is what that state belongs to."""

    steps: int
    rate: float
    told: Mapping[str, Any]
    store: Path | None = None
    progress: Callable[[int, int], None] | None = None
    watch: Callable[[int, Tensor, dict[str, float]], None] | None = None

    def go(self, training: Training) -> None:
        """Run the steps that are still to be run. An interruption loses at most what came after the latest checkpoint."""
        done, saved = self._restore(training), time.monotonic()
        for number in range(done, self.steps):
            rate = self.rate * min(1.0, 3 * (1 - number / self.steps))  # constant, then a line to nothing over the last third
            for optimizer in training.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["share"]
            with torch.inference_mode(False), torch.enable_grad():
                losses = training.step(number)
            if self.progress is not None:
                self.progress(number + 1, self.steps)
            if self.watch is not None and (number + 1) % 50 == 0:
                self.watch(number + 1, training.shown, {k: float(v.detach()) for k, v in losses.items()})
            if self.store is not None and (time.monotonic() - saved >= EVERY or number + 1 == self.steps):
                self._save(training, number + 1)
                saved = time.monotonic()

    @property
    def digest(self) -> str:
        """What a state must have been written for to be gone on with."""
        said = json.dumps({"steps": self.steps, "rate": self.rate, **self.told}, sort_keys=True)
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def _save(self, training: Training, done: int) -> None:
        assert self.store is not None
        state = {"done": done, "digest": self.digest}
        state |= {"modules": {k: m.state_dict() for k, m in training.modules.items()}}
        state |= {"optimizers": {k: o.state_dict() for k, o in training.optimizers.items()}}
        write_state(self.store, state)

    def _restore(self, training: Training) -> int:
        if self.store is None or not self.store.is_file():
            return 0
        try:
            state = read_state(self.store)
        except Exception as error:  # whatever a damaged file makes of it
            raise UsageError(f"{self.store.name} is no state of a training: {error}; delete it to begin again") from None
        if state.get("digest") != self.digest:
            raise UsageError(
                f"{self.store.name} is the state of a training with other settings or data; delete it, or give these again"
            )
        for name, module in training.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in training.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        return int(state["done"])


def adam(parameters: Iterator[nn.Parameter], share: float = 1.0) -> torch.optim.Adam:
    """Adam with the moments of DCGAN (Radford et al., 2016); its rate is `share` of the training's."""
    return torch.optim.Adam([{"params": list(parameters), "share": share}], 1.0, betas=(0.5, 0.99), foreach=False)


class Pictures:
    """Pictures of a data set in memory, as bytes `(N, C, H, W)`; batches are drawn without replacement, epoch by epoch."""

    def __init__(self, network: Network, data: Any, most: int, batch_size: int, seed: int, progress: Any = None) -> None:
        dataset = data if isinstance(data, Dataset) else open_dataset(data)
        count = min(len(dataset), most)
        if count < 2 or batch_size < 2:
            raise UsageError(f"training takes two or more pictures and as many in a batch; got {count} and {batch_size}")
        rows = [k * len(dataset) // count for k in range(count)]
        self.bytes: UInt8[Tensor, "count channels height width"] = torch.empty(0)
        for k, row in enumerate(rows):
            pixels = _pixels(network, network.read(dataset.picture(row)))
            if k == 0:
                self.bytes = torch.empty(count, *pixels.shape[1:], dtype=torch.uint8)
            elif pixels.shape[1:] != self.bytes.shape[1:]:
                raise UsageError(
                    f"pictures of different sizes {tuple(self.bytes.shape[2:])}, {tuple(pixels.shape[2:])}; give a size"
                )
            self.bytes[k] = pixels[0].mul(255).round().to(torch.uint8)
            if progress is not None and (k + 1) % 100 == 0:
                progress(k + 1, count)
        self.batch_size, self.seed = min(batch_size, count), seed
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        return tuple(self.bytes.shape[1:])  # type: ignore[return-value]

    @property
    def digest(self) -> str:
        """Changes with any pixel."""
        return hashlib.blake2b(memoryview(self.bytes.numpy().reshape(-1)), digest_size=8).hexdigest()

    def batch(self, number: int, device: torch.device) -> Float[Tensor, "batch channels height width"]:
        """The pixels 0..1 of step `number`."""
        each = len(self) // self.batch_size
        epoch, place = divmod(number, each)
        if self._epoch[0] != epoch:
            self._epoch = epoch, torch.randperm(len(self), generator=drawn(self.seed, "epoch", epoch))
        chosen = self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]
        return channels_last(self.bytes[chosen].to(device).float() / 255)


def _pixels(network: Network, x: Tensor) -> Tensor:
    """Inputs as pixels 0..1, in the network's own channels."""
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (network.mean, network.std))
    return (x * std + mean).clamp(0, 1).cpu()


def drawn(*keys: Any) -> torch.Generator:
    """A generator on the CPU whose numbers depend on the keys alone."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def channels_last(x: Tensor) -> Tensor:
    """The layout in memory that convolutions on a CPU are fastest with."""
    return x.contiguous(memory_format=torch.channels_last)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """Weights drawn anew from a seed: N(0, 0.02) for convolutions as in DCGAN, Kaiming's for linear layers."""
    draw = drawn(seed, "weights")
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() == 4:
                p.copy_(torch.randn(p.shape, generator=draw) * 0.02)
            elif p.dim() == 2:
                p.copy_(torch.randn(p.shape, generator=draw) * (2 / p.shape[1]) ** 0.5)
            elif name.endswith("bias"):
                p.zero_()
    return module
