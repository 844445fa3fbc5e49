"""The cost of feature visualization beside lucent, in one run, on the ResNet-18 of torchvision.

    pip install --no-deps torch-lucent==0.1.8 kornia==0.4.1 && pip install tqdm decorator ipython
    python -m benchmarks.synthesis [--only layer1,layer3] [--units 4] [--steps 128] [--repeats 3] [--quick] [--json]

lucent pins kornia and installs test tools as it runs, so it is not among this package's own peers; without it our numbers stand
alone. Both start from Fourier noise and take steps of Adam of 0.05 under their own standard transforms, `steps` of them.

Each line is a layer, `units` of it. Two comparisons: **own defaults**, lucent optimizing 128 pixels that it enlarges to 224 in
every step, one unit after the other and all of them in one batch, against ours of 128 pixels in one batch; and **same size**,
both at 224 pixels. What a picture is worth is its score under held-out transforms that neither was made with: shifts, turns
and scales, at the size at which the library itself shows pictures to the network. `least` is the smallest number of our steps,
doubling from 8, at which the mean of that over units is at least lucent's; `to equal` is timed with those. Hooks that lucent
leaves on the network would slow its own later runs; they are counted, and removed before each.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

LAYERS = {"layer1": "layer1.1.bn2", "layer2": "layer2.1.bn2", "layer3": "layer3.1.bn2", "layer4": "layer4.1.bn2", "class": "fc"}
INSTALL = (
    "lucent is not installed: pip install --no-deps torch-lucent==0.1.8 kornia==0.4.1 && pip install tqdm decorator ipython"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(LAYERS), help=f"of {', '.join(LAYERS)}, with commas")
    parser.add_argument("--units", type=int, default=4, help="of each layer")
    parser.add_argument("--steps", type=int, default=128, help="of each picture")
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which the libraries take turns")
    parser.add_argument("--sizes", default="own,same", help="comparisons: own (128 beside 128 enlarged), same (224 both)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few steps and units: does it run at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.units, options.steps, options.repeats = 2, 4, 1
    return options


@dataclass
class Line:
    """One comparison of one layer: seconds of each round by library, held-out scores, what lucent left behind."""

    name: str
    units: int
    steps: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    least: int | None = None

    def rate(self, library: str) -> float:
        """Pictures per second."""
        return self.units / statistics.median(self.seconds[library])

    def ratio(self, ours: str, library: str) -> float:
        """How many times faster ours is: the median over rounds of the ratio within a round."""
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[library], strict=True))

    def text(self) -> str:
        """The line for people."""
        found = [self.name]
        for library in self.seconds:
            text = f"  {library:14} {self.rate(library):7.3f} pictures/s"
            text += f", held out {self.scores[library]:.3g}" if library in self.scores else ""
            text += f", ours with {self.least} steps" if library == "to equal" else ""
            if library.startswith("lucent"):
                text += f", ours {self.ratio('ours', library):.2f}x as fast"
                text += f", {self.ratio('to equal', library):.2f}x at equal score" if self.least else ""
            found.append(text)
        return "\n".join(found)


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        from . import networks

        self.module, self.weights = networks.network("resnet18")
        self.theirs, self.options = deepcopy(self.module), options
        import convoscope as cs

        self.net = cs.Network(self.module, 224, networks.MEAN, networks.STD, name="resnet18")
        self.hooks = self.gradients = 0
        try:
            import lucent.optvis.render  # type: ignore  # noqa: F401
        except ImportError as error:
            self.missing: str = f"{INSTALL} ({error})"
        else:
            self.missing = ""

    def targets(self, layer: str) -> list[Any]:
        """Units spread over the layer."""
        import convoscope as cs

        count = 1000 if layer == "fc" else self.net.module.get_submodule(layer).num_features
        chosen = [(2 * k + 1) * count // (2 * self.options.units) for k in range(self.options.units)]
        return [cs.Logit(c) if layer == "fc" else cs.Channel(layer, c) for c in chosen]

    def ours(self, targets: list[Any], size: int, steps: int) -> Any:
        import convoscope as cs

        return cs.maximize(self.net, targets, cs.Fourier(size), steps=steps)

    def lucent(self, targets: list[Any], size: int, together: bool) -> Any:
        """Pictures `(units, 3, size, size)` by lucent, each on its own or all in one batch."""
        import torch
        from lucent.optvis import objectives, param, render  # type: ignore

        for m in self.theirs.modules():
            m._forward_hooks.clear()
        numbers = [getattr(t, "channel", getattr(t, "index", 0)) for t in targets]
        layer = getattr(targets[0], "layer", "fc").replace(".", "_")
        found = []
        for group in [numbers] if together else [[n] for n in numbers]:
            parts = [objectives.channel(layer, n, batch=b if together else None) for b, n in enumerate(group)]
            whole = objectives.Objective.sum(parts) if together else parts[0]
            image = partial(param.image, size, batch=len(group))
            settings = {"thresholds": (self.options.steps,), "progress": False, "show_image": False}
            made = render.render_vis(self.theirs, whole, image, **settings)
            found.append(torch.from_numpy(made[-1]).permute(0, 3, 1, 2))
        self.hooks = sum(len(m._forward_hooks) for m in self.theirs.modules())
        self.gradients = sum(p.grad is not None for p in self.theirs.parameters())
        return torch.cat(found)

    def held_out(self, targets: list[Any], pixels: Any, size: int) -> float:
        """The mean score of pictures, enlarged to `size`, under transforms that neither library draws."""
        import torch

        import convoscope as cs

        if pixels.shape[-1] != size:
            pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=True)
        moves = (cs.Jitter(12), cs.Spin(8.0, 0.08))
        start = pixels.clamp(1e-3, 1 - 1e-3)
        made = cs.ascend(self.net, targets, cs.Pixels(size), start=start, steps=0, held_out=moves, seed=77)
        return statistics.mean(made.held_out)


def compare(bench: Bench, name: str, kind: str) -> Line:
    """One layer, at the libraries' own sizes or both at 224 pixels."""
    from . import timing

    options, targets = bench.options, bench.targets(LAYERS[name])
    size = 128 if kind == "own" else 224
    line = Line(f"{name}, {'own defaults' if kind == 'own' else 'both 224 px'}", len(targets), options.steps)
    line.scores["ours"] = bench.held_out(targets, bench.ours(targets, size, options.steps).pixels, size)
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: bench.ours(targets, size, options.steps)}
    if not bench.missing:
        for library, together in (("lucent", False), ("lucent, batch", True)):
            with timing.quiet():
                pixels = bench.lucent(targets, size, together)
            line.scores[library] = bench.held_out(targets, pixels, 224)
            runs[library] = lambda t=together: bench.lucent(targets, size, t)
        goal, steps = line.scores["lucent"], 8
        while steps <= options.steps and line.least is None:
            found = line.scores["ours"] if steps == options.steps else None
            found = bench.held_out(targets, bench.ours(targets, size, steps).pixels, size) if found is None else found
            line.least = steps if found >= goal else None
            steps *= 2
        if line.least is not None:
            runs["to equal"] = lambda: bench.ours(targets, size, line.least or 0)
    for turn in range(options.repeats):
        order = list(runs)[turn % len(runs) :] + list(runs)[: turn % len(runs)]
        for library in order:
            with timing.quiet():
                line.seconds.setdefault(library, []).append(timing.seconds(runs[library]))
    timing.say(line.text())
    return line


def alone_and_together(bench: Bench) -> dict[str, float]:
    """The largest difference of a pixel between 16 units in one batch and 16 single runs of 16 steps, by precision."""
    import torch

    import convoscope as cs

    targets, found = [cs.Channel("layer1.1.bn2", 4 * k) for k in range(16)], {}
    for dtype in (torch.float64, torch.float32):
        net = cs.Network(deepcopy(bench.module).to(dtype), 224, bench.net.mean, bench.net.std)
        together = cs.maximize(net, targets, cs.Fourier(64), steps=16, batch_size=16)
        alone = [cs.maximize(net, t, cs.Fourier(64), steps=16) for t in targets]
        found[str(dtype).removeprefix("torch.")] = float(
            max((a.pixels[0] - p).abs().max() for a, p in zip(alone, together.pixels, strict=True))
        )
    return found


def left_behind(module: Any) -> tuple[int, int]:
    return (
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()),
        sum(p.grad is not None for p in module.parameters()),
    )


def main() -> None:
    options = arguments()
    import torch

    torch.set_num_threads(options.threads)
    unknown = [w for w in options.only.split(",") if w not in LAYERS]
    if unknown:
        sys.exit(f"error: no layer {unknown[0]!r}; expected some of {', '.join(LAYERS)}")
    bench = Bench(options)
    lines = [compare(bench, name, kind) for name in options.only.split(",") for kind in options.sizes.split(",")]
    facts = alone_and_together(bench)
    ours = left_behind(bench.module)
    if options.json:
        rows = [{**vars(line), "rates": {k: line.rate(k) for k in line.seconds}} for line in lines]
        facts_ = {"together and alone": facts, "left by ours": ours, "left by lucent": [bench.hooks, bench.gradients]}
        print(json.dumps({"weights": bench.weights, "options": vars(options), "lines": rows, **facts_}, indent=1))
        return
    print(f"ResNet-18, {bench.weights}; {options.units} units, {options.steps} steps, {options.threads} threads")
    print("\n".join(["", *(line.text() for line in lines)]))
    gaps = ", ".join(f"{v:.1e} in {k}" for k, v in facts.items())
    print(f"\n16 units in one batch and one by one: largest difference of a pixel {gaps}")
    theirs = bench.missing or f"lucent left {bench.hooks} hooks, {bench.gradients} gradients"
    print(f"ours left {ours[0]} hooks and {ours[1]} gradients on the network; {theirs}")


if __name__ == "__main__":
    main()
