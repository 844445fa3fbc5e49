"""The cost of judging maps beside Quantus, in one run, on the ResNet-18 of torchvision with 224 pixels.

    pip install --no-deps --target quantus quantus==0.6.0      # beside the environment, not into it
    python -m benchmarks.evaluation --quantus quantus [--subsets 400] [--squares 196] [--rounds 1] [--json]


It needs pandas, scikit-learn, scipy, tqdm, cachetools, opencv and matplotlib. Without `--quantus` our numbers stand alone:
seconds, overhead over bare forward passes, peak memory.

Both judge the same maps of the same methods for the same images and classes on one thread: **deletion** and **insertion** of
24 steps, **faithfulness correlation** of `subsets` random subsets of 5 % of the pixels, **infidelity** of `squares` squares.
What is compared, exactly: Quantus has no insertion and no least-relevant-first order, so both sweeps are its PixelFlipping,
the second one with the map's sign turned, at the same number of steps (it demands a number that divides the picture: 24);
its FaithfulnessCorrelation fills as many values of single channels as ours has pixels; its Infidelity covers the picture with
patches cumulatively (which is not the published definition) and repeats that `n_perturb_samples` times with the same result: it
gets one repetition, its default is ten. Batches are of eight images for both, the fastest here. numpy 2.4 has no `trapz`, which
Quantus calls: the benchmark hands it `np.trapezoid` under that name. Warnings and progress bars of Quantus are off.

Times are seconds of processor time on one thread, so that a busy machine does not matter much. Quantus takes each method alone
and a pass costs it the same however many there are: it is measured on one method and `--images` images, sweeps whole, random
masks on some, and multiplied up to all passes, 20 methods and 50 images. Ours is measured with all methods and all masks on
`--ours` images and multiplied up to 50. `overhead` is our time over the time of as many bare forward passes, in batches of the
same sizes, of the same network with batch norms folded, on inputs that are ready. Medians over `--rounds` rounds, in which the
sides take turns; `--save` collects rounds of several runs.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from . import evaluation_peers, evaluation_report

IMAGES = 50  # for which times are stated
STEPS, SHARE, SIDE, ROWS = 24, 0.05, 224, 8
METHODS = (
    "gradient", "input-x-gradient", "integrated-gradients:steps=8", "smooth-grad:samples=4", "smooth-grad-squared:samples=4",
    "guided-backprop", "deconvnet", "deep-lift", "lrp", "lrp-epsilon", "excitation-backprop", "full-grad", "grad-cam",
    "grad-cam-plus-plus", "layer-cam", "eigen-cam", "hires-cam", "shapley-cam", "guided-grad-cam",
    "occlusion:window=32,stride=32",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantus", type=Path, metavar="FOLDER", help="where Quantus 0.6.0 was installed")
    parser.add_argument("--images", type=int, default=8, help="that Quantus is measured on; times are stated for 50")
    parser.add_argument("--ours", type=int, default=1, help="of these, images that ours is measured on")
    parser.add_argument("--methods", type=int, default=20, help="of ours in one call")
    parser.add_argument("--subsets", type=int, default=400, help="random subsets of faithfulness correlation")
    parser.add_argument("--squares", type=int, default=196, help="squares of infidelity: the number of patches, a square")
    parser.add_argument("--rounds", type=int, default=1, help="0: none, from those of --save")
    parser.add_argument("--memory", default=None, help="bytes that ours may take, such as 500MB")
    parser.add_argument("--save", type=Path, metavar="FILE", help="a file of rounds that runs add to")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page docs/evaluation-cost.md")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def pictures(count: int) -> Any:
    """Photographs in input space: those of CONVOSCOPE_TESTDATA, else scenes of the package, enlarged."""
    import torch

    from . import networks

    folder = Path(os.environ.get("CONVOSCOPE_TESTDATA", "-"), "imagenet_samples", "images")
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    if len(files) < count:
        return networks.pictures(count, SIDE)
    import convoscope as cs

    net = cs.Network(torch.nn.Conv2d(3, 1, 1), size=SIDE, mean=networks.MEAN, std=networks.STD)
    return torch.cat([net.read(str(f)) for f in files])


def made(options: argparse.Namespace) -> dict[str, Any]:
    """The network, the images, the classes and the maps that all get."""
    import torch

    import convoscope as cs

    from . import networks

    module, weights = networks.network("resnet18")
    network, x = cs.Network(module, size=SIDE, mean=networks.MEAN, std=networks.STD), pictures(options.images)
    with torch.no_grad():
        classes = module(x).argmax(1)
    given = {"network": network, "module": module, "x": x, "classes": classes, "weights": weights}
    maps = {}
    for name in METHODS[: options.methods]:
        target = cs.Logit(tuple(classes[: options.ours].tolist()))
        maps[name.partition(":")[0]] = cs.explain(network, x[: options.ours], name, target, batch_size=ROWS).heatmap()
    first = cs.explain(network, x, METHODS[0], cs.Logit(tuple(classes.tolist())), batch_size=ROWS).heatmap()
    return {**given, "maps": maps, "first": first}


def ours(given: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all four metrics for all maps, sizes of the batches, megabytes that were taken meanwhile."""
    import convoscope as cs
    from convoscope.evaluation import Deletion, FaithfulnessCorrelation, Infidelity, Insertion
    from convoscope.evaluation.evaluate import evaluate

    metrics = [
        Deletion(steps=STEPS), Insertion(steps=STEPS), FaithfulnessCorrelation(options.subsets, SHARE),
        Infidelity(options.squares, 1 / options.squares),
    ]  # fmt: skip
    done = [0]
    target = cs.Logit(tuple(given["classes"][: options.ours].tolist()))
    with evaluation_report.Peak() as peak:
        started = time.process_time()
        evaluate(
            given["network"], given["x"][: options.ours], [], metrics, target, maps=given["maps"], nulls=(), batch_size=ROWS,
            memory=options.memory, progress=lambda passes, most: done.append(passes),
        )  # fmt: skip
        seconds = time.process_time() - started
    sizes = [b - a for a, b in itertools.pairwise(done)]
    return {"seconds": seconds / options.ours, "passes": sum(sizes) / options.ours, "megabytes": peak.megabytes, "sizes": sizes}


def bare(given: dict[str, Any], sizes: list[int], images: int) -> dict[str, Any]:
    """Seconds of forward passes of these sizes of the network as metrics run it, on inputs that are ready."""
    import torch

    from convoscope.core.layout import arranged
    from convoscope.core.run import undisturbed
    from convoscope.evaluation.folding import Folded

    with undisturbed(given["module"]), torch.no_grad():
        folded = Folded(given["module"], given["x"])
        ready = {size: arranged(folded, given["x"][:1].expand(size, -1, -1, -1)) for size in set(sizes)}
        for x in ready.values():
            folded(x)
        started = time.process_time()
        for size in sizes:
            folded(ready[size])
        return {"seconds": (time.process_time() - started) / images, "passes": sum(sizes) / images}


def main() -> None:
    options = arguments()
    import torch

    torch.set_num_threads(1)
    given = made(options) if options.rounds else {}
    rounds = evaluation_report.read(options.save)
    quantus = evaluation_peers.quantus(options.quantus) if options.rounds else None
    if quantus is None and options.rounds:
        print(evaluation_peers.INSTALL, file=sys.stderr)
    for _ in range(options.rounds):
        mine = ours(given, options)
        found = {"ours": mine, "bare": bare(given, mine.pop("sizes"), options.ours)}
        if quantus is not None:
            found |= evaluation_peers.measured(quantus, given)
        rounds.append({"subsets": options.subsets, "squares": options.squares, "methods": len(given["maps"]), **found})
        evaluation_report.write(options.save, rounds)
    about = {"python": platform.python_version(), "torch": torch.__version__}
    report = evaluation_report.report(rounds, options, about)
    if options.write is not None:
        options.write.write_text(evaluation_report.page(report))
    print(json.dumps(report, indent=1) if options.json else evaluation_report.text(report))


if __name__ == "__main__":
    main()
