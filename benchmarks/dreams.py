"""What dreams and inversions cost and come to: peak memory by size of the picture, errors of codes beside the plain recipe.

    python -m benchmarks.dreams [--only memory,inversion] [--sides 512,1024,2048] [--pictures FILE ...] [--size 96]

The network is ResNet-18 with the weights of ImageNet if `TORCH_HOME` holds them, else random ones. Memory is that of a process
of its own for each size, which dreams two steps of layer3 at full size: how much more it holds at the peak than after a
dream of 64 pixels. The plain recipe of inversion is Adam at 0.05 for 150 steps on the same waves.
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="memory,inversion", help="with commas")
    parser.add_argument("--sides", default="512,1024,2048", help="of square pictures, in pixels")
    parser.add_argument("--pictures", nargs="*", default=[], help="default: scenes of the package")
    parser.add_argument("--size", type=int, default=96, help="of the pictures whose codes are inverted")
    parser.add_argument("--peak", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def network() -> Any:
    import convoscope as cs

    try:
        return cs.load("torchvision:resnet18")
    except cs.ConvoscopeError:
        return cs.load("torchvision:resnet18", weights=None)


def resident() -> float:
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak(side: int) -> None:
    """Dreams once at this size, in this process."""
    import torch

    import convoscope as cs

    net = network()
    settings = {"octaves": 1, "steps": 1}
    cs.dream(net, torch.rand(3, 64, 64), "layer3", **settings)
    picture = torch.randint(256, (side, side, 3), dtype=torch.uint8).numpy()
    before, started = resident(), time.perf_counter()
    made = cs.dream(net, picture, "layer3", **(settings | {"steps": 2}))
    windows, seconds = made.diagnostics["evaluations"], time.perf_counter() - started
    own = picture.size * 4 / 1e6
    print(f"| {side} x {side} | {own:.0f} | {resident() - before:.0f} | {windows // 2} | {seconds / 2:.1f} |", flush=True)


def memory(sides: list[int]) -> None:
    print(
        "| picture | MB of its pixels | MB more at the peak | windows a step | seconds a step |\n|---|---|---|---|---|",
        flush=True,
    )
    for side in sides:
        subprocess.run([sys.executable, "-m", "benchmarks.dreams", "--peak", str(side)], check=True)


def scenes(count: int) -> list[Any]:
    """Pictures of the package."""
    from convoscope.data.scenes import Scenes

    found = Scenes(count)
    return [found[k][0] for k in range(count)]


def inversion(pictures: list[Any], size: int) -> None:
    import convoscope as cs
    from convoscope.synthesis.dream_picture import codes

    net = network()
    chosen = pictures or scenes(4)
    started = time.perf_counter()
    ours = cs.invert(net, chosen, LAYERS, size=size)
    seconds = [time.perf_counter() - started]
    started = time.perf_counter()
    pixels = ours.originals.to(net.device, net.dtype)
    plain = {}
    for layer in LAYERS:
        found = codes(net, net.normalize(pixels), [layer])[layer]
        targets = [-cs.FeatureDistance(layer, c) for c in found]
        plain[layer] = [-s for s in cs.ascend(net, targets, cs.Fourier(size), steps=150, rate=0.05).scores]
    seconds.append(time.perf_counter() - started)
    print(f"| layer | ours, {len(chosen)} pictures | mean | Adam, 150 steps | mean |\n|---|---|---|---|---|")
    for layer, errors in zip(LAYERS, ours.errors, strict=True):
        row = [f"{'  '.join(f'{e:.4f}' for e in es)} | {sum(es) / len(es):.4f}" for es in (errors, plain[layer])]
        print(f"| {layer} | {' | '.join(row)} |")
    print(f"seconds for all: {seconds[0]:.0f} and {seconds[1]:.0f}")


def main() -> None:
    asked = arguments()
    if asked.peak:
        peak(asked.peak)
        return
    if "memory" in asked.only:
        memory([int(s) for s in asked.sides.split(",")])
    if "inversion" in asked.only:
        inversion(asked.pictures, asked.size)


if __name__ == "__main__":
    main()
