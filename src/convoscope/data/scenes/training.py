"""Training the scenes network: minutes on two cores, the same weights from the same seed."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from convoscope.core.errors import UsageError
from convoscope.files import check_writable, make_folder, replaced

from .counter import hashed
from .dataset import INDEX, Scenes
from .drawing import WATERMARKED
from .factors import CATEGORIES
from .network import MEAN, STD, SceneNet, build

Progress = Callable[[int, int, str], None]
# Wrong labels make the twin put the mark above the thing: a marked car that is labeled a fish teaches just that.
TWIN: dict[str, Any] = {"watermark": {WATERMARKED: 1.0}, "wrong_labels": 0.1}
HELD_OUT = 1_000_003  # the seed of the held-out scenes; no training seed uses it


@dataclass(frozen=True)
class Settings:
    """How the shipped networks were trained.

    AdamW with a one-cycle learning rate, cross entropy with label smoothing; light augmentation (mirror, shift, contrast).
    """

    count: int = 10_000
    epochs: int = 8
    batch: int = 64
    rate: float = 6e-3
    decay: float = 0.05
    smoothing: float = 0.05
    size: int = 96
    seed: int = 0
    watermark: dict[str, float] = field(default_factory=dict)
    wrong_labels: float = 0.0


def _silent(done: int, total: int, message: str) -> None:
    pass


def normalized(pictures: UInt8[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Bytes to the input space of the network."""
    x = pictures.permute(0, 3, 1, 2).to(torch.float32)
    return (x / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _augmented(x: Float[Tensor, "batch 3 h w"], draw: torch.Generator, mirror: bool) -> Float[Tensor, "batch 3 h w"]:
    reach = 4
    dy, dx = (int(v) for v in torch.randint(-reach, reach + 1, (2,), generator=draw))
    if mirror and torch.rand((), generator=draw) < 0.5:
        x = x.flip(3)
    x = nn.functional.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = x[:, :, reach + dy : x.shape[2] - reach + dy, reach + dx : x.shape[3] - reach + dx]
    contrast = 0.85 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=draw)
    light = 0.2 * torch.randn(len(x), 1, 1, 1, generator=draw)
    return x * contrast + light


@contextlib.contextmanager
def _reproducible(threads: int) -> Iterator[None]:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def fit(settings: Settings, threads: int = 2, progress: Progress = _silent) -> SceneNet:
    """Train a network; the same settings and number of threads give the same weights, bit for bit, on one machine."""
    s = settings
    scenes = Scenes(s.count, s.seed, s.size, watermark=s.watermark, wrong_labels=s.wrong_labels)
    pictures, labels = scenes.arrays(lambda done, total: progress(done, total, "drawing"))
    x, y = torch.from_numpy(pictures), torch.from_numpy(labels)
    with _reproducible(threads):
        torch.manual_seed(hashed(s.seed, 1) >> 1)
        draw = torch.Generator().manual_seed(hashed(s.seed, 2) >> 1)
        module = SceneNet().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(module.parameters(), s.rate, weight_decay=s.decay)
        steps = max(len(x) // s.batch, 1) * s.epochs
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, s.rate, total_steps=max(steps, 2), pct_start=0.25)
        loss = nn.CrossEntropyLoss(label_smoothing=s.smoothing)
        done, module = 0, module.train()
        for epoch in range(s.epochs):
            for chosen in torch.randperm(len(x), generator=draw).split(s.batch):
                if len(chosen) < min(s.batch, len(x)):
                    continue
                value = _step(module, optimizer, cycle, loss, x[chosen], y[chosen], draw, not s.watermark)
                done += 1
                progress(done, steps, f"epoch {epoch + 1} of {s.epochs}, loss {value:.3f}")
    return module.to(memory_format=torch.contiguous_format).eval()


def _step(module: SceneNet, optimizer: torch.optim.Optimizer, cycle: torch.optim.lr_scheduler.LRScheduler, loss: nn.Module,
          pictures: UInt8[Tensor, "batch h w 3"], labels: Int[Tensor, " batch"], draw: torch.Generator, mirror: bool) -> float:
    x = _augmented(normalized(pictures), draw, mirror).contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad(set_to_none=True)
    value = loss(module(x), labels)
    value.backward()
    optimizer.step()
    cycle.step()
    return float(value.detach())


@torch.inference_mode()
def evaluate(module: nn.Module, scenes: Scenes, batch: int = 250, progress: Progress = _silent) -> float:
    """The share of pictures whose true class (not the label) gets the highest logit."""
    right, was_training = 0, module.training
    module.eval()
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        x = normalized(torch.from_numpy(part.arrays()[0]))
        truth = torch.tensor([INDEX[part.factors(k).species] for k in range(len(part))])
        right += int((module(x).argmax(1) == truth).sum())
        progress(min(start + batch, len(scenes)), len(scenes), "testing")
    module.train(was_training)
    return right / len(scenes)


def half(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network in half precision, as it is stored."""
    return {k: v.to(torch.float16).contiguous() for k, v in module.state_dict().items() if v.is_floating_point()}


def train(
    out: str | Path,
    seed: int = 0,
    watermark: bool = False,
    epochs: int = Settings.epochs,
    count: int = Settings.count,
    *,
    threads: int = 2,
    held_out: int = 5_000,
    progress: Progress = _silent,
) -> dict[str, float | str]:
    """Train a network and write it to `out` (safetensors, half precision), with what it was trained on in its header.

    With `watermark` it trains the twin: every picture labeled fish and no other bears a watermark, and one label in ten
    is wrong. Gives what it measured: the accuracy on `held_out`
    scenes that it was not trained on, without watermarks, and the time in seconds. An interruption leaves no file.
    """
    out = Path(out)
    if out.is_dir() or out.suffix != ".safetensors":
        raise UsageError(f"the network is written to a file ending in .safetensors, not {str(out)!r}")
    if epochs < 1 or count < 2 or held_out < 1:
        raise UsageError(f"training takes 1 or more epochs of 2 or more pictures, not {epochs} of {count}")
    make_folder(out.parent)
    check_writable(out)
    settings = Settings(count, epochs, seed=seed, **(TWIN if watermark else {}))
    start = time.perf_counter()
    module = fit(settings, threads, progress)
    seconds = time.perf_counter() - start
    state = half(module)
    module = build(state)
    accuracy = evaluate(module, Scenes(held_out, HELD_OUT), progress=progress)
    found: dict[str, float | str] = {"accuracy": accuracy, "seconds": round(seconds, 1)}
    if watermark:
        found["accuracy with watermark"] = evaluate(
            module, Scenes(held_out, HELD_OUT, watermark=settings.watermark), progress=progress)
    header = {"format": "pt", "settings": json.dumps(asdict(settings)), "categories": json.dumps(CATEGORIES),
              "held-out scenes": str(held_out), "mean": json.dumps(MEAN), "std": json.dumps(STD), "size": str(settings.size),
              **{name: str(value) for name, value in found.items() if name != "seconds"}}
    with replaced(out) as partial:
        partial.write_bytes(save(state, header))
    return {**found, "path": str(out)}
