"""Peak memory of an evaluation beside what it was allowed, each bound in a process of its own.

python -m benchmarks.evaluation_memory [BOUND ...]          # such as 350MB 500MB 2GB none
"""

import subprocess
import sys

BOUNDS = ("310MB", "350MB", "500MB", "2GB", "none")
METHODS = ("gradient", "lrp", "integrated-gradients:steps=2")
METRICS = ("deletion:steps=2", "insertion:steps=2", "faithfulness-correlation:count=40", "infidelity:count=8")
IMAGES, GIVEN = 4, 20


def measured(bound: str) -> tuple[float, str]:
    """Megabytes beyond the network and the images, and what was held at once, in this process."""
    import torch

    import convoscope as cs
    from convoscope.evaluation.budget import budget
    from convoscope.evaluation.evaluate import metric_of

    from . import networks
    from .evaluation import SIDE, pictures
    from .evaluation_report import Peak

    torch.set_num_threads(1)
    module, _ = networks.network("resnet18")
    net, x = cs.Network(module, size=SIDE, mean=networks.MEAN, std=networks.STD), pictures(IMAGES)
    with torch.no_grad():
        module(x[:1])
    net.trace(x[:1])
    drawn = torch.Generator().manual_seed(0)
    maps = {str(k): torch.randn(IMAGES, SIDE, SIDE, generator=drawn) for k in range(GIVEN)}
    memory = None if bound == "none" else bound
    with Peak() as peak:
        cs.evaluate(net, x, METHODS, METRICS, maps=maps, memory=memory)
    held = budget(memory, net, x, [metric_of(m) for m in METRICS], GIVEN + len(METHODS) + 2, "auto")
    return peak.megabytes, f"{held.images} images, {held.rows} row{'s' if held.rows > 1 else ''}"


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--here":
        megabytes, held = measured(sys.argv[2])
        print(f"| {sys.argv[2]} | {megabytes:.0f} MB | {held} |")
        return
    for bound in sys.argv[1:] or BOUNDS:
        command = [sys.executable, "-m", "benchmarks.evaluation_memory", "--here", bound]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
