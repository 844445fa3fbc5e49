"""The cost of attribution methods beside captum, zennit, grad-cam, torchcam, shap, lime and saliency, in one run.

    python -m benchmarks.attribution [--only lrp,occlusion] [--networks resnet18,vgg16] [--repeats 7] [--quick] [--json]

ResNet-18 and SqueezeNet 1.1 have the weights of ImageNet if `TORCH_HOME` holds them, else random ones like VGG-16; nothing is
downloaded. Images are scenes of the package, 224 pixels, four at a time (VGG-16: one), one for methods that hide parts.

Every library does the same work on a copy of the same network: the same images and class, as many steps, samples, windows or
masked pictures, `rows` of them per pass wherever a library lets one choose, regions that are given. What belongs to the size of
the picture alone is made before (the tree of shap's boxes, our trace of the network). captum's occlusion gets the fastest of
its settings, found in the run. In every round the libraries take turns between two units, a unit being a forward and backward
pass of the images; a ratio is the median over rounds of the ratio within a round. Long lines get at most two rounds, and no run
before that is not counted. A goal without a name is meant for every peer: nothing is to be slower; a ratio between 0.95 and 1
counts as equal. At the end stand the goals that were missed. All of it takes about half an hour on two cores.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys

PACKAGES = (
    "torch", "torchvision", "numpy", "convoscope", "captum", "zennit", "grad-cam", "torchcam", "shap", "lime", "saliency",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="how the names of the lines to measure begin, with commas: gradient,lrp")
    parser.add_argument("--networks", default="resnet18,squeezenet1_1,vgg16", help="with commas")
    parser.add_argument("--without", default="", help="libraries to leave out, with commas")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, at most")
    parser.add_argument("--batch", type=int, default=4, help="images at a time; VGG-16 gets one")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels, a multiple of 8")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="small pictures, few steps and rounds: does it run at all?")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser.parse_args()


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def main() -> None:
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.quick:
        options.repeats, options.size = min(options.repeats, 2), min(options.size, 96)
    import torch

    from . import lines, timing

    torch.set_num_threads(options.threads)
    chosen = lines.matching(words(options.only), words(options.networks))
    counted = not words(options.only) or any("integrated gradients".startswith(w) for w in words(options.only))
    if not chosen:
        sys.exit(f"error: no line is called like {options.only!r} on {options.networks}")
    done, facts, heads = [], [], []
    for name in dict.fromkeys(name for _, name in chosen):
        bench, weights = lines.benches(name, 1 if name == "vgg16" else options.batch, options.size, options.quick)
        if counted and name != "vgg16" and "captum" not in words(options.without):
            facts += convergence(lines, bench, 16 if options.quick else 64)
        heads.append(f"{name}: {weights}, batch {len(bench.x)}, {options.size} px")
        for case in lines.cases(bench, [line for line, n in chosen if n == name], options.repeats, words(options.without)):
            timing.measure(case, timing.say)
            done.append(case)
    report(done, facts, heads, options)


def convergence(lines, bench, steps: int) -> list[tuple[str, bool | None]]:
    """What of the completeness goal is reached: 12 steps against captum's trapezoid rule; the others for comparison."""
    found = []
    for rule, settings, most in (
        ("riemann_trapezoid", {}, 12 * steps // 64), ("gausslegendre", {}, None), ("gausslegendre", {"share_gap": True}, None),
    ):  # fmt: skip
        needed, error = lines.steps_to_converge(bench, rule, steps, **settings)
        count = str(needed) if needed <= max(lines.STEPS) else f"more than {max(lines.STEPS)}"
        text = f"{bench.name}: integrated gradients reach captum's error of {steps} steps ({rule}: {error:.2%}) with {count}"
        text += "".join(f", {k}" for k in settings) + (f" (goal: at most {most})" if most else "")
        found.append((text, None if most is None else needed <= most))
    return found


def report(done, facts, heads: list[str], options: argparse.Namespace) -> None:
    from . import timing

    if options.json:
        rows = [
            {"network": c.network, "method": c.name, "seconds": c.seconds, "unit": c.units, "least": c.least, "than": c.than,
             "ratios": {p: c.ratio(p) for p in c.peers if timing.OURS in c.seconds}, "failed": c.failed, "verdict": c.verdict()}
            for c in done
        ]  # fmt: skip
        print(json.dumps({"versions": versions(), "options": vars(options), "lines": rows, "facts": facts}, indent=1))
        return
    print(versions())
    print(f"{options.threads} threads, at most {options.repeats} rounds; a unit is a forward and backward pass of the images")
    for head, name in zip(heads, dict.fromkeys(c.network for c in done), strict=True):
        unit = statistics.median(u for c in done if c.network == name for u in c.units)
        print(f"{head}; a unit took {unit:.3f} s")
    print(timing.table(done))
    print("\n" + "\n".join(text for text, _ in facts))
    for verdict, met in (("met", True), ("equal", None), ("missed", False)):
        names = [f"{c.name} ({c.network})" for c in done if c.verdict() == verdict]
        names += [text for text, good in facts if good is not None and good is met]
        print(f"\nGoals {verdict}: {len(names)}" + ("" if verdict == "met" else "".join(f"\n  {n}" for n in names)))


if __name__ == "__main__":
    main()
