"""The cost of attribution methods in units of one forward plus backward pass, for convoscope, captum and zennit side by side.

    python benchmarks/attribution.py [--batch 8] [--size 224] [--threads 2] [--repeats 5] [--device cpu] [--only lrp]

The network is torchvision's resnet18 with random weights, in evaluation mode, its parameters frozen; nothing is downloaded. A
unit is one forward pass of the batch and the gradient of the target with respect to it. In every round the unit is measured
before and after each method, and the libraries take turns; a cell is the median over rounds of time / unit, with the smallest
and the largest. Methods of many passes are divided by their number, and get the same rows per pass from every library.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LIBRARIES = ("convoscope", "captum", "zennit")
Run = Callable[[], Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="images in the batch")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="how the names of the methods to measure begin, with commas: gradient,lrp")
    parser.add_argument("--without", default="", help="libraries to leave out, with commas")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser.parse_args()


@dataclass
class Case:
    """One line of the table; `passes` is what times are divided by, `goal` the most units we allow ourselves."""

    name: str
    runs: dict[str, Run]
    passes: int = 1
    goal: float | None = None
    ratios: dict[str, list[float]] = field(default_factory=dict)


def network(device: str) -> Any:
    """resnet18 in evaluation mode, frozen, with statistics that keep the signal alive."""
    import torch

    from convoscope.loading import import_torchvision

    torch.manual_seed(0)
    module = import_torchvision().models.resnet18(weights=None).to(device)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 64, 64, device=device))
    return module.eval().requires_grad_(False)


def ours(module: Any, x: Any, target: int, window: int) -> dict[str, Run]:
    import convoscope as cs

    net = cs.Network(module, size=x.shape[2])

    def run(method: cs.Method) -> Run:
        return lambda: cs.explain(net, x, method, target, batch_size=len(x)).values

    return {
        "gradient": run(cs.Gradient()),
        "guided backprop": run(cs.GuidedBackprop()),
        "deconvnet": run(cs.Deconvnet()),
        "lrp epsilon-plus": run(cs.LRP()),
        "lrp epsilon": run(cs.LRP(composite="epsilon")),
        "integrated gradients, n = 32": run(cs.IntegratedGradients(steps=32, baseline=0.0)),
        "integrated gradients, n = 50": run(cs.IntegratedGradients(steps=50, baseline=0.0)),
        "smooth-grad, n = 8": run(cs.SmoothGrad(samples=8)),
        "grad-cam": run(cs.GradCAM(layer="layer4")),
        "occlusion": run(cs.Occlusion(window=window, stride=window, fill=0.0)),
    }


def captums(module: Any, x: Any, target: int, window: int) -> dict[str, Run]:
    import warnings

    from captum import attr

    warnings.filterwarnings("ignore", module="captum")
    path, place = attr.IntegratedGradients(module), (x.shape[1], window, window)

    def integrated(steps: int) -> Run:
        return lambda: path.attribute(
            x, 0.0, target, n_steps=steps, method="riemann_middle", internal_batch_size=len(x), return_convergence_delta=True
        )

    return {
        "gradient": lambda: attr.Saliency(module).attribute(x, target, abs=False),
        "guided backprop": lambda: attr.GuidedBackprop(module).attribute(x, target),
        "deconvnet": lambda: attr.Deconvolution(module).attribute(x, target),
        "integrated gradients, n = 32": integrated(32),
        "integrated gradients, n = 50": integrated(50),
        "smooth-grad, n = 8": lambda: attr.NoiseTunnel(attr.Saliency(module)).attribute(
            x, nt_samples=8, nt_samples_batch_size=1, stdevs=0.5, target=target, abs=False
        ),
        "grad-cam": lambda: attr.LayerGradCam(module, module.layer4).attribute(x, target, relu_attributions=True),
        "occlusion": lambda: attr.Occlusion(module).attribute(x, place, strides=place, baselines=0.0, target=target),
    }


def zennits(module: Any, x: Any, target: int, window: int) -> dict[str, Run]:
    import torch
    from zennit import attribution, composites, rules, types
    from zennit.torchvision import ResNetCanonizer

    mask = torch.zeros(module.fc.out_features, device=x.device)
    mask[target] = 1

    def run(kind: Any, composite: Callable[[], Any] | None = None, **settings: Any) -> Run:
        def call() -> Any:
            with kind(model=module, composite=composite() if composite else None, **settings) as attributor:
                return attributor(x, lambda output: output * mask)[1]

        return call

    def lrp_epsilon() -> Any:
        linear = [(kind, rules.Epsilon(1e-9)) for kind in (types.Convolution, types.Linear)]
        return composites.LayerMapComposite([*linear, *composites.layer_map_base()], canonizers=[ResNetCanonizer()])

    return {
        "gradient": run(attribution.Gradient),
        "guided backprop": run(attribution.Gradient, composites.GuidedBackprop),
        "deconvnet": run(attribution.Gradient, composites.DeconvNet),
        "lrp epsilon-plus": run(attribution.Gradient, lambda: composites.EpsilonPlus(canonizers=[ResNetCanonizer()])),
        "lrp epsilon": run(attribution.Gradient, lrp_epsilon),
        "integrated gradients, n = 32": run(attribution.IntegratedGradients, n_iter=32),
        "integrated gradients, n = 50": run(attribution.IntegratedGradients, n_iter=50),
        "smooth-grad, n = 8": run(attribution.SmoothGrad, n_iter=8),
        "occlusion": run(attribution.Occlusion, window=window, stride=window),
    }


def cases(module: Any, x: Any, target: int, left_out: list[str]) -> list[Case]:
    window = x.shape[2] // 4
    makers = {"convoscope": ours, "captum": captums, "zennit": zennits}
    made: dict[str, dict[str, Run]] = {}
    for library, make in makers.items():
        if library not in left_out:
            try:
                made[library] = make(module, x, target, window)
            except ModuleNotFoundError as error:
                print(f"without {library}: {error}", file=sys.stderr)
    goals = {"gradient": 1.05, "guided backprop": 1.1, "lrp epsilon-plus": 1.6}
    goals |= {f"integrated gradients, n = {n}": 1.02 for n in (32, 50)}
    passes = {"integrated gradients, n = 32": 32, "integrated gradients, n = 50": 50, "smooth-grad, n = 8": 8, "occlusion": 16}
    names = list(made.get("convoscope") or ours(module, x, target, window))
    return [
        Case(name, {k: runs[name] for k, runs in made.items() if name in runs}, passes.get(name, 1), goals.get(name))
        for name in names
    ]


def unit_of(module: Any, x: Any, target: int) -> Run:
    """One forward pass and the gradient of the target."""
    import torch

    def run() -> Any:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(module(leaf)[:, target].sum(), leaf)[0]

    return run


def seconds(run: Run, device: str) -> float:
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def measure(chosen: list[Case], unit: Run, repeats: int, device: str) -> list[float]:
    """Fills the cases' ratios; returns the seconds of all units."""
    units: list[float] = []
    for case in chosen:
        for run in (unit, *case.runs.values()) if case.passes == 1 else ():
            run()
    for turn in range(repeats):
        for case in chosen:
            before = seconds(unit, device)
            order = list(case.runs)
            order = order[turn % len(order) :] + order[: turn % len(order)]
            times = {library: seconds(case.runs[library], device) for library in order}
            after = seconds(unit, device)
            units += [before, after]
            for library, value in times.items():
                case.ratios.setdefault(library, []).append(value / ((before + after) / 2) / case.passes)
            print(f"round {turn + 1} of {repeats}: {case.name}", file=sys.stderr)
    return units


def table(chosen: list[Case]) -> str:
    rows = [["method", "at most", *LIBRARIES]]
    for case in chosen:
        cells = []
        for library in LIBRARIES:
            found = case.ratios.get(library)
            cells.append(f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "-")
        name = case.name + (" (per pass)" if case.passes > 1 else "")
        rows.append([name, "" if case.goal is None else f"{case.goal:.2f}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for library in ("torch", "torchvision", *LIBRARIES):
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {library}")
    return ", ".join(found)


def main() -> None:
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    module, target = network(options.device), 7
    x = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(1)).to(options.device)
    words = [w.strip() for w in options.only.split(",") if w.strip()]
    chosen = [
        c for c in cases(module, x, target, options.without.split(",")) if not words or any(c.name.startswith(w) for w in words)
    ]
    if not chosen:
        sys.exit(f"error: no method is called like {options.only!r}")
    units = measure(chosen, unit_of(module, x, target), options.repeats, options.device)
    if options.json:
        values = {c.name: {"at most": c.goal, **c.ratios} for c in chosen}
        print(json.dumps({"versions": versions(), "options": vars(options), "unit seconds": units, "ratios": values}, indent=1))
        return
    print(versions())
    print(f"resnet18, batch {options.batch}, {options.size} px, {options.device}, {options.threads} threads")
    print(f"{options.repeats} rounds; one unit: {statistics.median(units):.3f} s ({min(units):.3f} to {max(units):.3f})\n")
    print(table(chosen))


if __name__ == "__main__":
    main()
