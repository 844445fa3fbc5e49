"""Pictures through generators: does the network see the class, and do they look like the pictures it was made for?

    python -m benchmarks.codespace [--copies 4] [--steps 120] [--out docs/images/codespace-scenes.png] [--quick]

The scenes: every class, from `--copies` starts each, is maximized (`LogProbability`) in the space of pixels, in that of waves
with moved pictures (`Fourier`, as `cs.maximize` does it), and in the code of the generator that ships (DGN-AM). Similarity is
measured in the features of networks that no picture was optimized for: the pooled features of "scenes-watermark", a network of
the same kind with other weights, and those of ResNet-18 trained on ImageNet where `TORCH_HOME` holds it. Real are scenes of a
seed that neither network nor generator was trained on. Reported are

- `nearest`: the mean distance to the nearest of the real scenes, over that of other real scenes, which is 1; between directions
  from the mean of real features, since a gray picture is near to that mean and so to everything;
- `Frechet`: the Frechet distance between the Gaussians that fit made and real features (Heusel et al. 2017), in the 48
  directions in which real ones vary most, over their variance; that of as many other real scenes is not 0 either.

MNIST, where `CONVOSCOPE_TESTDATA` names the folder of test data: every digit through a GAN (a perceptron, codes of 64 numbers)
from 8 starts, classified by a LeNet that knows nothing of the GAN; the best start of each digit is to have 99 %.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import convoscope as cs
from benchmarks.networks import FILES, MEAN, STD, network
from convoscope.core.record import record
from convoscope.data.scenes import Scenes

UNSEEN = 2_000_003  # a seed that nothing was trained on
DIRECTIONS = 48


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    done = _digits()
    net = cs.load("scenes")
    real, others = _real(given.real), _real(len(net.categories) * given.copies, UNSEEN + 1)
    made = {name: _made(net, image, given) for name, image in _images().items()}
    judges = _judges()
    print(f"\nThe scenes, {len(net.categories)} classes x {given.copies} starts x {given.steps} steps, {len(real)} real ones")
    heads = "".join(f"   {name:>24}" for name in judges)
    print(f"{'':24}classified   confidence{heads}\n{'':48}" + "      nearest     Frechet" * len(judges))
    shares: dict[str, list[float]] = {}
    for name, pictures in {"real scenes": others, **{k: s.pixels for k, s in made.items()}}.items():
        right = _right(net, made[name]) if name in made else None
        shown = f"{right[0]:10.0%}   {right[1]:10.3f}" if right else f"{'':23}"
        shares[name] = [v for judge in judges.values() for v in _similarity(judge, pictures, real, others)]
        print(f"{name:24}{shown}" + "".join(f"{v:13.2f}" for v in shares[name]))
        done &= right is None or name != "generator code" or right[0] == 1.0
    ours, rest = shares["generator code"], [v for n, v in shares.items() if n in made and n != "generator code"]
    # All but the nearest neighbors among ImageNet's features: to those, gray noise is nearer to scenes than scenes are.
    done &= all(o < min(v[k] for v in rest) for k, o in enumerate(ours) if k != 2)
    if given.out:
        _figure(net, made, real).save(given.out)
        print(f"\n{given.out}")
    print("\nAs it should be." if done else "\nNOT as it should be.")
    return 0 if done else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--real", type=int, default=600)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.copies, given.steps, given.real = 2, 60, 200
    return given


# ---- MNIST
def _digits(steps: int = 200, copies: int = 8) -> bool:
    folder = Path(os.environ.get("CONVOSCOPE_TESTDATA", ""))
    if not (folder / "mnist_models").is_dir():
        print("MNIST: left out, CONVOSCOPE_TESTDATA names no folder with mnist_models")
        return True
    spec = importlib.util.spec_from_file_location("loaders", folder / "loaders.py")
    loaders: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    net = cs.Network(loaders.lenet(), 32, channels=1, name="LeNet", categories=[str(k) for k in range(10)])
    generator = cs.Generator(loaders.gan_mlp_generator(), 64, (-1, 1), shape=(1, 28, 28))
    targets = [cs.LogProbability(k) for k in range(10)]
    found = cs.ascend(net, targets, cs.Code(generator), steps=steps, copies=copies)
    share = torch.tensor(found.scores).exp().view(10, copies)
    print(f"MNIST through a GAN, probability of the digit by LeNet, {copies} starts x {steps} steps")
    print("digit     " + "".join(f"{k:9}" for k in range(10)))
    print("best start" + "".join(f"{v:9.4f}" for v in share.amax(1).tolist()))
    print(">= 0.99   " + "".join(f"{v:7}/{copies}" for v in (share >= 0.99).sum(1).tolist()))
    return bool((share.amax(1) >= 0.99).all())


# ---- the scenes
def _images() -> dict[str, cs.Image]:
    return {"pixels": cs.Pixels(), "waves, moved": cs.Fourier(), "generator code": cs.Code("scenes")}


def _made(net: cs.Network, image: cs.Image, given: argparse.Namespace) -> cs.Synthesis:
    targets = [cs.LogProbability(k) for k in range(len(net.categories))]
    plain = {} if isinstance(image, cs.Fourier) else {"transforms": ()}
    return cs.maximize(net, targets, image, steps=given.steps, copies=given.copies, **plain)


def _right(net: cs.Network, made: cs.Synthesis) -> tuple[float, float]:
    """The share of pictures that the network takes for their class, and its mean probability."""
    share = torch.tensor(made.scores).exp()
    wanted = [t.index for t in made.targets]
    seen = [p[0].index for p in net.predict(made.inputs, 1)]
    return sum(a == b for a, b in zip(wanted, seen, strict=True)) / len(wanted), float(share.mean())


def _real(count: int, seed: int = UNSEEN) -> Tensor:
    return torch.from_numpy(Scenes(count, seed).arrays()[0]).permute(0, 3, 1, 2).float() / 255


def _judges() -> dict[str, Any]:
    """Networks whose features judge: functions of pixels."""
    twin = cs.load("scenes-watermark")
    found = {"scenes-watermark": lambda x: record(twin.plain, twin.normalize(x), ("pool",))["pool"].flatten(1)}
    if Path(os.environ.get("TORCH_HOME", ""), "hub", "checkpoints", FILES["resnet18"]).is_file():
        net = cs.Network(network("resnet18")[0], 96, MEAN, STD)
        found["ResNet-18 of ImageNet"] = lambda x: record(net.plain, net.normalize(x), ("avgpool",))["avgpool"].flatten(1)
    return found


@torch.no_grad()
def _similarity(judge: Any, pictures: Tensor, real: Tensor, others: Tensor) -> tuple[float, float]:
    """The mean distance to the nearest real picture, over that of other real ones; the Frechet distance."""
    x, known, other = (torch.cat([judge(p) for p in t.split(100)]).double() for t in (pictures, real, others))
    center = known.mean(0)
    one, two, three = (torch.nn.functional.normalize(t - center, dim=1) for t in (x, other, known))
    nearest = [float(torch.cdist(a, three).amin(1).mean()) for a in (one, two)]
    axes = torch.linalg.svd(known - center, full_matrices=False).Vh[:DIRECTIONS].T
    return nearest[0] / nearest[1], _frechet(x @ axes, known @ axes)


def _frechet(a: Tensor, b: Tensor) -> float:
    """Squared distance of the means plus tr(A + B - 2 (A B)^(1/2)), over the trace of B."""
    one, two = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(two)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ one @ root).clamp(min=0).sqrt().sum()
    return float(((a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * cross) / two.trace())


def _figure(net: cs.Network, made: dict[str, cs.Synthesis], real: Tensor) -> Image.Image:
    """A column for each class, a row for each way, and below the real scene whose features are nearest to ours."""
    twin, count = cs.load("scenes-watermark"), len(net.categories)
    with torch.no_grad():
        features = [
            torch.cat([record(twin.plain, twin.normalize(p), ("pool",))["pool"].flatten(1) for p in t.split(100)])
            for t in (made["generator code"].pixels, real)
        ]
    each = len(made["generator code"]) // count
    nearest = torch.cdist(features[0][::each], features[1]).argmin(1)
    rows = {**{name: s.pixels[::each] for name, s in made.items()}, "nearest real scene": real[nearest]}
    side, left, top, zoom = 96, 150, 26, 1
    page = Image.new("RGB", ((left + count * (side + 4)) * zoom, (top + len(rows) * (side + 4)) * zoom), "#ffffff")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13 * zoom)
    for k, name in enumerate(net.categories):
        draw.text(((left + k * (side + 4) + side / 2) * zoom, top * zoom / 2), name, "#1b1f24", font, anchor="mm")
    for r, (name, pictures) in enumerate(rows.items()):
        y = top + r * (side + 4)
        draw.text(((left - 10) * zoom, (y + side / 2) * zoom), name, "#1b1f24", font, anchor="rm")
        for k in range(count):
            tile = Image.fromarray((pictures[k].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            page.paste(
                tile.resize((side * zoom, side * zoom), Image.Resampling.NEAREST), ((left + k * (side + 4)) * zoom, y * zoom)
            )
    return page


if __name__ == "__main__":
    sys.exit(main())
